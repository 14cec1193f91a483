"""Every way of choosing bits, with the same number of trials.

    python benchmarks/search.py --depth 20              # and 56; hours
    python benchmarks/search.py --depth 20 --retrain    # adds the accuracy after a short retraining

Budgets of 2.5, 3.0 and 3.5 average bits, 512 plans each, 3 seeds (1 where nothing is drawn), 512
unlabelled training images, 256 for ResNet-56. The plans of single layers are scored once for all
rows, and counted in each. Rows are written as they come, and skipped if they are there. Writes
benchmarks/results/search-resnet20.json or -resnet56.json.
"""

import argparse
import copy
import functools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from octavo import Budget, Incremental
from octavo.dnq.agent import dnq
from octavo.dnq.environment import Environment
from octavo.dnq.evaluator import Evaluator
from octavo.dnq.journal import Journal
from octavo.dnq.methods import SearchMethod, method_of
from octavo.dnq.prices import within
from octavo.dnq.settings import METHODS as NAMES
from octavo.dnq.space import Choice
from octavo.dnq.survey import survey
from octavo.runs.run import environment
from octavo.runs.run_folder import write_json
from octavo.runs.tasks.cifar10 import Cifar10
from octavo.runs.training import Retraining, retrain

RESULTS = Path(__file__).parent / "results"
IMAGES = {20: 512, 56: 256}
BATCH = 32
TRIALS = 512
BUDGETS = (3.0, 2.5, 3.5)
METHODS: dict[str, SearchMethod] = {name: method_of(name) for name in NAMES}
METHODS["dnq, cold"] = functools.partial(dnq, warm=False)
DRAWS = ("dnq", "dnq, cold", "random", "tpe", "cmaes")
PORTIONS = (0.5, 0.75, 0.9, 1.0)
EPOCHS = 0.05  # of the short retraining: after each portion
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
    """Yield the rows that have not been run. A method that draws nothing has one seed, and the
    policy without a warm start one budget.
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
        """Return the best plan of a method, and its accuracy on the test images before any
        retraining.
        """
        space = within(self.space, Budget(average_bits=average))
        journal = copy.deepcopy(self.journal)
        evaluator = Evaluator(space, self.environment, journal, TRIALS, seed=seed)
        started = time.monotonic()
        METHODS[method](evaluator)
        seconds = time.monotonic() - started
        best = evaluator.best
        return {
            "budget": average,
            "method": method,
            "seed": seed,
            "score": best.objective,
            "counted": TRIALS - evaluator.left,
            "seconds": round(seconds, 1),
            "stored_bits": round(best.stored_bits / sum(space.weights), 3),
            "accuracy": self.task.score(self.environment.network(best.choice)),
            "choice": [action.width.bits for action in space.chosen(best.choice)],
        }

    def choice(self, bits: Sequence[int]) -> Choice:
        """Return the choice that a row of results has as the bits of each layer."""
        return tuple(
            [action.width.bits for action in actions].index(wanted)
            for actions, wanted in zip(self.space.actions, bits, strict=True)
        )

    def retrained(self, choice: Choice, seed: int) -> float:
        """Return the test accuracy after INQ from the trial's weights, imitating the full-precision
        network.
        """
        model = self.task.model()
        teacher = self.task.model().requires_grad_(False)
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
            row["retrained"] = setting.retrained(setting.choice(row["choice"]), row["seed"])
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
