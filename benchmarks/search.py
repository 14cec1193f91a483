"""Every way to choose bits, under the same file sizes and with the same number of trials.

    python benchmarks/search.py --depth 20              # about 3 hours of one core
    python benchmarks/search.py --depth 56              # about 2 hours
    python benchmarks/search.py --depth 20 --bytes 70000 --seeds 0 --methods dnq evolution

ResNet-20 under three file sizes with 1,024 unlabelled training images; ResNet-56 under the size of
the file of uniform 3 bits with 512. The images are divided as ``search`` divides them, 512 trials
are counted, and ways that draw have 3 seeds. Each row has the objective of its best trial; that
objective on 512 training images that no search has seen; and the network that ``calibrate`` then
writes from the images of the search: its file, its divergence on the unseen images, and its
accuracy on the 10,000 test images. Nothing is retrained.

All rows share one environment, and what one of them has measured no other measures again: each
still counts all of its trials. So the seconds of a row are those of the method alone; a trial takes
``trial_s``. With ``--journal FILE`` the measurements outlive the process. Rows are written as they
come, and skipped if they are there; several processes may work on different rows. Writes
benchmarks/results/search-resnet20.json or search-resnet56.json.
"""

import argparse
import functools
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from octavo import Budget, Plan, calibrate, quantize_activations
from octavo.dnq.agent import dnq
from octavo.dnq.environment import Environment, Measurement
from octavo.dnq.evaluator import Evaluator
from octavo.dnq.journal import Journal
from octavo.dnq.matching import matched, norm_statistics
from octavo.dnq.methods import SearchMethod, method_of
from octavo.dnq.prices import within
from octavo.dnq.refinement import run_refined
from octavo.dnq.reinforce import Reinforce
from octavo.dnq.space import Action, Choice, Partial
from octavo.dnq.splitting import split
from octavo.dnq.survey import survey
from octavo.network.digest import digest, weights_digest
from octavo.network.divergence import TEMPERATURE, Divergence
from octavo.network.outputs import Part
from octavo.runs.run import environment
from octavo.runs.run_folder import write_json
from octavo.runs.tasks.cifar10 import Cifar10

RESULTS = Path(__file__).parent / "results"
IMAGES = {20: 1024, 56: 512}
UNSEEN = 512
BATCH = 32
TRIALS = 512
OPTIONS = (2, 3, 4, 5)
BYTES = {20: (70_000, 79_300, 90_000), 56: ()}  # none: the file of uniform 3 bits
SEEDS = (0, 1, 2)
REFINE = 0.25
REFINED = ", refined"
Row = dict[str, Any]

LEARNING_OFF = functools.partial(dnq, settings=Reinforce(learning_rate=0.0))
OWN: dict[str, SearchMethod] = {"dnq, learning off": LEARNING_OFF}
ALONE = (
    "dnq", "dnq, learning off", "evolution", "exact", "greedy", "uniform", "cmaes", "random",
)  # fmt: skip
# Optuna's TPE comes last: its sampler takes longer than the trials.
ORDER = (
    *ALONE, *(name + REFINED for name in ("dnq", "exact", "greedy", "cmaes", "random")),
    "tpe", "tpe" + REFINED,
)  # fmt: skip
DRAWS_NOTHING = ("exact", "greedy", "uniform")


def named(name: str) -> tuple[SearchMethod, float]:
    """Return a method and its share of refinement, by the name of its rows."""
    plain = name.removesuffix(REFINED)
    share = 0.0 if plain == name else REFINE
    return OWN.get(plain) or method_of(plain), share


def wanted(
    limits: Sequence[int], methods: Sequence[str], seeds: Sequence[int]
) -> list[tuple[int, str, int]]:
    """Return the limit, method and seed of each row, in the order of running; TPE comes last."""
    each = itertools.product(seeds, limits, methods)
    rows = [
        (limit, name, seed) for seed, limit, name in each if seed == 0 or name not in DRAWS_NOTHING
    ]
    return sorted(rows, key=lambda row: row[1].startswith("tpe"))


def is_there(path: Path, limit: int, name: str, seed: int) -> bool:
    """Return whether a row was written, by this process or another."""
    rows = read(path)["rows"]
    return (limit, name, seed) in {(row["limit"], row["method"], row["seed"]) for row in rows}


class Shared:
    """The environment of all rows: it keeps what single layers change, and takes the time."""

    def __init__(self, inner: Environment) -> None:
        self.seconds: list[float] = []  # of each trial
        self._inner = inner
        self._kept: dict[Partial, Measurement] = {}

    def measure(
        self, choices: Sequence[Partial], *, keep_outputs: bool = False
    ) -> list[Measurement]:
        """Measure choices; those whose outputs are wanted only once."""
        new = [choice for choice in choices if not keep_outputs or choice not in self._kept]
        started = time.monotonic()
        measured = self._inner.measure(new, keep_outputs=keep_outputs)
        if new:
            self.seconds += [(time.monotonic() - started) / len(new)] * len(new)
        if not keep_outputs:
            return measured
        self._kept |= zip(new, measured, strict=True)
        return [self._kept[choice] for choice in choices]

    def full_outputs(self) -> tuple[Part, ...]:
        """Return the first outputs in full precision."""
        return self._inner.full_outputs()

    def stored_bits(self, choice: Choice) -> float:
        """Return the bits that the codes of a choice take."""
        return self._inner.stored_bits(choice)


class Setting:
    """A network, the images, the environment, and the journal that all rows share.

    With ``input_bits``, the bits of each layer's inputs are chosen with those of its weights.
    """

    def __init__(
        self, depth: int, images: int, journal: Path | None = None, input_bits: Sequence[int] = ()
    ) -> None:
        self.task = Cifar10(
            depth,
            f"~/.cache/octavo/resnet{depth}-cifar10.safetensors",
            calibration_size=images + UNSEEN,
            batch=BATCH,
        )
        self.model = self.task.model()
        every = torch.cat(list(self.task.calibration()))
        self.batches = every[:images].split(BATCH)
        self.parts = split(self.batches)
        self.space = survey(self.model, self.batches[0], OPTIONS, {}, input_bits or None)
        self.environment = Environment(
            self.model, self.space.names, self.parts.calibrating, self.space.actions,
            scoring=self.parts.scoring,
        )  # fmt: skip
        self.shared = Shared(self.environment)
        self.sizes = self.environment.file_sizes()
        self._unseen = Divergence(self.model, every[images:].split(BATCH))
        with torch.no_grad():
            self._statistics = norm_statistics(self.model.eval(), self._unseen.batches)
        about = {
            "weights": weights_digest(self.model.state_dict()),
            "inputs": digest(list(self.batches)),
            "temperature": TEMPERATURE,
            "matched": True,
        }
        self.journal = Journal(journal, self.space.actions, about)

    def evaluator(self, budget: Budget | None, seed: int, trials: int = TRIALS) -> Evaluator:
        """Return an evaluator that has counted nothing yet."""
        space = within(self.space, budget, self.sizes)
        return Evaluator(space, self.shared, self.journal, trials, seed=seed)

    def search(
        self, budget: Budget, method: SearchMethod, share: float, seed: int, trials: int = TRIALS
    ) -> Row:
        """Return the best trial of a method under a budget."""
        evaluator = self.evaluator(budget, seed, trials)
        known = len(self.shared.seconds)
        started = time.monotonic()
        refinement = run_refined(method, evaluator, share).refinement
        seconds = time.monotonic() - started - sum(self.shared.seconds[known:])
        best = evaluator.best
        row = {
            "objective": best.objective,
            "unseen": self.unseen_trial(best.choice),
            "share_of_limit": evaluator.space.cost(best.choice) / evaluator.space.limit,
            "choice": self.bits(best.choice),
            "counted": trials - evaluator.left,
            "seconds": round(seconds, 1),
        }
        return row if refinement is None else row | {"method_alone": refinement.before.objective}

    def unseen_trial(self, choice: Choice) -> float:
        """Return the objective of a trial on images that no search has seen."""
        network = self.environment.network(choice)
        with matched(network, self._statistics):
            return self.unseen(network)

    @torch.no_grad()
    def unseen(self, network: nn.Module) -> float:
        """Return the objective of a network on images that no search has seen."""
        return self._unseen.of(network)

    def solved(self, plan: Plan) -> Row:
        """Return what ``calibrate`` makes of a plan from the images of the search."""
        network = self.task.model()
        if plan.activations:
            quantize_activations(network, self.batches, plan.activations)
        packed = calibrate(network, plan, self.batches)
        packed.apply(network)
        return {
            "file_bytes": packed.file_bytes,
            "solved_unseen": self.unseen(network.eval()),
            "accuracy": self.task.score(network),
        }

    def bits(self, choice: Choice) -> str:
        """Return the bits of all layers: one digit each, or ``4x8`` where inputs have bits too."""
        texts = [str(action) for action in self.space.chosen(choice)]
        return ("" if max(map(len, texts)) == 1 else " ").join(texts)

    def choice(self, bits: str) -> Choice:
        """Return the choice that a row has as bits."""
        texts = bits.split() if " " in bits else bits
        return tuple(
            actions.index(Action.parse(text))
            for actions, text in zip(self.space.actions, texts, strict=True)
        )


def uniform_plans(setting: Setting, path: Path) -> Row:
    """Return what the uniform plans of 2, 3 and 4 bits give, which the rows are compared with."""
    known: Row = read(path).get("uniform", {})
    for bits in ("2", "3", "4"):
        if bits not in known:
            known[bits] = setting.solved(Plan.uniform(setting.model, int(bits)))
            print("uniform", bits, known[bits], flush=True)
    return known


def read(path: Path) -> Row:
    """Return the result so far; another process may have added to it."""
    if not path.exists():
        return {"rows": []}
    result: Row = json.loads(path.read_text())
    return result


def add(path: Path, setting: Setting, row: Row) -> None:
    """Solve the plan of a row, unless another row has the same one, and write the row."""
    alike = [each for each in read(path)["rows"] if each["choice"] == row["choice"]]
    keys = ("file_bytes", "solved_unseen", "accuracy")
    if alike:
        row |= {key: alike[0][key] for key in keys}
    else:
        row |= setting.solved(setting.space.plan(setting.choice(row["choice"])))
    result = read(path)
    result["rows"].append(row)
    result["environment"] = environment()
    if setting.shared.seconds:
        result["trial_s"] = round(statistics.median(setting.shared.seconds), 4)
    write_json(path, result)
    print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--depth", type=int, choices=sorted(IMAGES), default=20)
    parser.add_argument("--bytes", type=int, nargs="*")
    parser.add_argument("--methods", nargs="*", default=ORDER)
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--journal", type=Path)
    asked = parser.parse_args()
    path = RESULTS / f"search-resnet{asked.depth}.json"
    setting = Setting(asked.depth, IMAGES[asked.depth], asked.journal)
    uniform = uniform_plans(setting, path)
    about = {"images": IMAGES[asked.depth], "unseen": UNSEEN, "trials": TRIALS, "refine": REFINE}
    write_json(path, read(path) | about | {"layers": setting.space.names, "uniform": uniform})
    limits = asked.bytes or BYTES[asked.depth] or [uniform["3"]["file_bytes"]]
    for limit, name, seed in wanted(limits, asked.methods, asked.seeds):
        if not is_there(path, limit, name, seed):
            row = {"limit": limit, "method": name, "seed": seed}
            add(path, setting, row | setting.search(Budget(bytes=limit), *named(name), seed))


if __name__ == "__main__":
    main()
