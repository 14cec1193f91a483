"""One search that is asked for 9 budgets, beside 9 searches with a ninth of the trials each.

    python benchmarks/one_search.py                     # about an hour of one core
    python benchmarks/one_search.py --seeds 0

ResNet-20 with the images of ``search.py``. ``dnq`` has no budget, and 512 trials; afterwards it is
asked for the best plan of 2.25, 2.5, ... 4.25 average bits, as ``SearchResult.at`` answers: a trial
or what the trained policy proposes. Each rival is run under each budget. It measures single layers
once, and has a ninth of the rest of the 512 trials for each budget. All answers are measured on 512
training images that no search has seen. Rows are written as they come, and skipped if they are
there. Writes benchmarks/results/one-search.json.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from search import (  # type: ignore[import-not-found]  # its neighbour
    IMAGES,
    RESULTS,
    SEEDS,
    TRIALS,
    UNSEEN,
    Setting,
    read,
)

from octavo import Budget
from octavo.dnq.agent import dnq
from octavo.dnq.front import Estimate, best_within
from octavo.dnq.methods import method_of
from octavo.dnq.prices import within
from octavo.dnq.space import Choice
from octavo.runs.run import environment
from octavo.runs.run_folder import write_json

RESULT = RESULTS / "one-search.json"
AVERAGES = tuple(float(average) for average in np.arange(2.25, 4.5, 0.25))
RIVALS = ("evolution", "cmaes", "random")
Row = dict[str, Any]


def asked_once(setting: Setting, seed: int) -> tuple[list[Choice], list[bool]]:
    """Return the answers of one search, and which of them are trials."""
    evaluator = setting.evaluator(None, seed, TRIALS)
    estimates = dnq(evaluator)
    trials = [Estimate(trial.choice, trial.objective) for trial in evaluator.trials]
    measured = {trial.choice for trial in trials}
    known = trials + [each for each in estimates if each.choice not in measured]
    answers = []
    for average in AVERAGES:
        space = within(setting.space, Budget(average_bits=average), setting.sizes)
        answers += [each.choice for each in best_within(known, space)]
    return answers, [choice in measured for choice in answers]


def asked_anew(setting: Setting, method: str, seed: int) -> list[Choice]:
    """Return the best trials of a rival, which is run under each budget."""
    singles = 1 + sum(map(len, setting.space.actions))
    answers = []
    for number, average in enumerate(AVERAGES):
        left = TRIALS - singles
        share = left // len(AVERAGES) + (number < left % len(AVERAGES))
        evaluator = setting.evaluator(Budget(average_bits=average), seed, singles + share)
        evaluator.sensitivity(outputs=True)  # measured once: the environment keeps it
        method_of(method)(evaluator)
        answers.append(evaluator.best.choice)
    return answers


def row(setting: Setting, method: str, seed: int) -> Row:
    """Return the answers of a method for all budgets, and what they are worth on unseen images."""
    started = time.monotonic()
    trials = [True] * len(AVERAGES)
    if method == "dnq":
        answers, trials = asked_once(setting, seed)
    else:
        answers = asked_anew(setting, method, seed)
    return {
        "method": method,
        "seed": seed,
        "unseen": [setting.unseen_trial(choice) for choice in answers],
        "objective": setting.environment.objectives(answers),
        "is_trial": trials,
        "choices": [setting.bits(choice) for choice in answers],
        "seconds": round(time.monotonic() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--methods", nargs="*", default=("dnq", *RIVALS))
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--journal", type=Path, help="as search.py has it; it may be the same")
    asked = parser.parse_args()
    setting = Setting(20, IMAGES[20], asked.journal)
    about = {"images": IMAGES[20], "unseen": UNSEEN, "trials": TRIALS, "averages": AVERAGES}
    for seed in asked.seeds:
        for method in asked.methods:
            there = {(each["method"], each["seed"]) for each in read(RESULT)["rows"]}
            if (method, seed) not in there:
                new = row(setting, method, seed)
                result = read(RESULT) | about | {"environment": environment()}
                result["rows"].append(new)
                write_json(RESULT, result)
                print(new, flush=True)


if __name__ == "__main__":
    main()
