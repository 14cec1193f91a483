"""The plans that searches end with, after the final choice and the fit of the file.

    python benchmarks/final_choice.py                   # about half an hour of one core
    python benchmarks/final_choice.py --bytes 70000 --methods dnq --seeds 0

The rows of ``search.py`` for ResNet-20 have the best trial of each method. ``search`` goes on from
there: the best trials, the exact and the uniform plan are solved as they ship, fitted to the file,
and compared on a quarter of the images, which nothing else saw. Each row has the best of them
beside the exact and the uniform plan: the final objective, and the file, the divergence on unseen
images and the test accuracy of the network that ``calibrate`` writes from all images of the search.
With the ``--journal`` of ``search.py`` no trial is measured again. Rows are written as they come,
and skipped if they are there. Writes benchmarks/results/final-choice.json.
"""

import argparse
import time
from pathlib import Path

from search import (  # type: ignore[import-not-found]  # its neighbour
    BYTES,
    IMAGES,
    RESULTS,
    SEEDS,
    TRIALS,
    Row,
    Setting,
    is_there,
    named,
    read,
    wanted,
)

from octavo import Budget
from octavo.dnq.finalists import Finalist, Shipping, choose
from octavo.dnq.refinement import run_refined
from octavo.dnq.rivals.exact import exact_choice
from octavo.runs.run import environment
from octavo.runs.run_folder import write_json

RESULT = RESULTS / "final-choice.json"
METHODS = ("dnq", "evolution", "dnq, refined")
PLANS = ("best", "exact", "uniform")  # of a verdict


class Solver:
    """The networks that ship, each plan solved once."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._solved: dict[str, Row] = {}
        for row in read(RESULT)["rows"]:
            for name in PLANS:
                self._solved[row[name]["choice"]] = row[name]

    def figures(self, finalist: Finalist) -> Row:
        """Return the figures of a finalist."""
        bits = self._setting.bits(finalist.choice)
        if bits not in self._solved:
            self._solved[bits] = self._setting.solved(finalist.plan)
        return self._solved[bits] | {"choice": bits, "final": finalist.final}


def ending(setting: Setting, solver: Solver, limit: int, name: str, seed: int) -> Row:
    """Return the best plan of a search after the final choice, beside the exact and the uniform."""
    method, share = named(name)
    evaluator = setting.evaluator(Budget(bytes=limit), seed)
    run_refined(method, evaluator, share)
    started = time.monotonic()
    shipping = Shipping(setting.model, setting.batches, setting.parts)
    exact = exact_choice(evaluator, evaluator.losses(beside=True))
    verdict = choose(evaluator, shipping, exact, limit)
    row = {
        "limit": limit,
        "method": name,
        "seed": seed,
        "seconds": round(time.monotonic() - started),
        "finalists": [setting.bits(each.choice) for each in verdict.finalists],
    }
    return row | {plan: solver.figures(getattr(verdict, plan)) for plan in PLANS}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bytes", type=int, nargs="*", default=BYTES[20])
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--journal", type=Path, help="as search.py has it; it may be the same")
    asked = parser.parse_args()
    setting = Setting(20, IMAGES[20], asked.journal)
    solver = Solver(setting)
    for limit, name, seed in wanted(asked.bytes, asked.methods, asked.seeds):
        if is_there(RESULT, limit, name, seed):
            continue
        row = ending(setting, solver, limit, name, seed)
        print(row, flush=True)
        result = read(RESULT) | {"environment": environment(), "trials": TRIALS}
        result["rows"].append(row)
        write_json(RESULT, result)


if __name__ == "__main__":
    main()
