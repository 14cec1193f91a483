"""Every way of choosing bits, by the same trials: scores, test accuracy before and after a short
retraining, bytes, time.

    python benchmarks/search.py --depth 20              # and 56; hours. Rows are written as they
    come, and not made twice python benchmarks/search.py --depth 20 --retrain    # adds what each
    plan reaches after a short retraining

Budgets of 2.5, 3.0 and 3.5 average bits, 512 plans each, 3 seeds (1 where nothing is drawn), 512
unlabelled training images, 256 for ResNet-56. The plans of single layers are scored once for all
rows, and counted in each. Writes benchmarks/results/search-resnet20.json or -resnet56.json.
"""

import argparse
import copy
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from octavo import Budget, Incremental
from octavo.dnq.agent import dnq
from octavo.dnq.environment import Environment
from octavo.dnq.evaluator import Evaluator
from octavo.dnq.journal import Journal
from octavo.dnq.methods import METHODS as NAMES
from octavo.dnq.methods import method_of
from octavo.dnq.space import Choice
from octavo.dnq.survey import survey
from octavo.runs.folder import write_json
from octavo.runs.run import environment
from octavo.runs.tasks.cifar10 import Cifar10
from octavo.runs.training import Retraining, retrain

RESULTS = Path(__file__).parent / "results"
IMAGES, BATCH, TRIALS = {20: 512, 56: 256}, 32, 512
BUDGETS = (3.0, 2.5, 3.5)
METHODS: dict[str, Callable[[Evaluator], None]] = {
    **{name: method_of(name) for name in NAMES},
    "dnq, cold": functools.partial(dnq, warm=False),
}
DRAWS = ("dnq", "dnq, cold", "random", "tpe", "cmaes")
PORTIONS, EPOCHS = (0.5, 0.75, 0.9, 1.0), 0.05  # of the short retraining: after each portion
SETTINGS = Retraining(learning_rate=0.005, temperature=4.0, bfloat16=True)
Row = dict[str, Any]


def task_of(depth: int, images: int) -> Cifar10:
    return Cifar10(
        depth,
        f"~/.cache/octavo/resnet{depth}-cifar10.safetensors",
        calibration_size=images,
        batch=BATCH,
    )


def missing(rows: list[Row], seeds: list[int]) -> Iterator[tuple[float, str, int]]:
    """What has not been run: what draws nothing has one seed, and the controller is trained from
    nothing at one budget.
    """
    done = {(row["budget"], row["method"], row["seed"]) for row in rows}
    for seed in seeds:
        for budget in BUDGETS:
            for method in METHODS:
                wanted = (method in DRAWS or seed == 0) and (method != "dnq, cold" or budget == 3.0)
                if wanted and (budget, method, seed) not in done:
                    yield budget, method, seed


class Setting:
    """A network, its environment, and the journal that all rows share."""

    def __init__(self, depth: int, images: int) -> None:
        started = time.monotonic()
        self.task = task_of(depth, images)
        self.model = self.task.model()
        batches = list(self.task.calibration())
        self.space = survey(self.model, batches[0], (2, 3, 4, 5), {})
        self.environment = Environment(self.model, self.space.names, batches, self.space.actions)
        self.journal = Journal(None, self.space.actions, {})
        self.quantized_s = time.monotonic() - started
        Evaluator(self.space, self.environment, self.journal, TRIALS).losses()
        self.single_s = time.monotonic() - started - self.quantized_s

    def search(self, average: float, method: str, seed: int) -> Row:
        """What a method finds, and what its plan scores on the test images before any
        retraining.
        """
        space = dataclasses.replace(self.space, budget=Budget(average_bits=average))
        bench = Evaluator(space, self.environment, copy.deepcopy(self.journal), TRIALS, seed=seed)
        started = time.monotonic()
        METHODS[method](bench)
        seconds, best = time.monotonic() - started, bench.best
        return {
            "budget": average,
            "method": method,
            "seed": seed,
            "score": best.objective,
            "counted": TRIALS - bench.left,
            "seconds": round(seconds, 1),
            "stored_bits": round(best.stored_bits / sum(space.weights), 3),
            "accuracy": self.task.score(self.environment.network(best.choice)),
            "choice": [int(width) for width in best.plan.values()],
        }

    def choice_of(self, bits: list[int]) -> Choice:
        """The choice of a row's bits."""
        pairs = zip(self.space.actions, bits, strict=True)
        return tuple([action.width for action in actions].index(own) for actions, own in pairs)

    def retrained(self, choice: Choice, seed: int) -> float:
        """Test accuracy after INQ from the trial's weights, imitating the network in full
        precision.
        """
        model, teacher = self.task.model(), self.task.model().requires_grad_(False)
        model.load_state_dict(self.environment.network(choice).state_dict())
        torch.manual_seed(seed)
        for _ in Incremental(model, self.space.plan(choice), portions=PORTIONS, seed=seed):
            retrain(model, self.task, EPOCHS, SETTINGS, teacher=teacher)
        return self.task.score(model.eval())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--retrain", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    asked = parser.parse_args()
    path = RESULTS / f"search-resnet{asked.depth}.json"
    result = json.loads(path.read_text()) if path.exists() else {"rows": []}
    setting = Setting(asked.depth, IMAGES[asked.depth])
    result |= {
        "environment": environment(),
        "images": IMAGES[asked.depth],
        "trials": TRIALS,
        "layers": setting.space.names,
    }
    result |= {
        "quantized_s": round(setting.quantized_s, 1),
        "single_layers_s": round(setting.single_s, 1),
    }
    for budget, method, seed in missing(result["rows"], asked.seeds):
        result["rows"].append(setting.search(budget, method, seed))
        print(
            {key: value for key, value in result["rows"][-1].items() if key != "choice"}, flush=True
        )
        write_json(path, result)
    for row in result["rows"] if asked.retrain else ():
        if "retrained" not in row and row["seed"] in asked.seeds:
            row["retrained"] = setting.retrained(setting.choice_of(row["choice"]), row["seed"])
            print(
                row["budget"],
                row["method"],
                row["seed"],
                row["accuracy"],
                row["retrained"],
                flush=True,
            )
            write_json(path, result)


if __name__ == "__main__":
    main()
