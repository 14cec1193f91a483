"""Bits of weights and inputs chosen together, by every method, beside the same bits everywhere.

    python benchmarks/mixed.py                          # about an hour of one core
    python benchmarks/mixed.py --seeds 0 --methods dnq evolution

As ``search.py`` does it for the bits of weights alone, with the same measures: ResNet-20 with 512
unlabelled training images. The budgets are the bit operations of three uniform plans, which every
row may spend; 768 trials are counted, of which the single layers take 321. Rows are written as they
come, and skipped if they are there. Writes benchmarks/results/mixed.json.
"""

import argparse
from pathlib import Path

from search import (  # type: ignore[import-not-found]  # its neighbour
    RESULTS,
    SEEDS,
    UNSEEN,
    Setting,
    add,
    is_there,
    named,
    read,
    wanted,
)

from octavo import Budget
from octavo.dnq.space import Action
from octavo.formats.width import Width
from octavo.runs.run_folder import write_json

RESULT = RESULTS / "mixed.json"
IMAGES = 512
INPUT_BITS = (3, 4, 6, 8)
UNIFORM = ((4, 4), (3, 4), (3, 3))  # bits of weights and inputs whose bit operations are a budget
METHODS = (
    "uniform", "exact", "greedy", "dnq", "dnq, learning off", "evolution", "cmaes", "random",
)  # fmt: skip
TRIALS = 768


def bit_ops(setting: Setting, weights: int, inputs: int) -> int:
    """Return the bit operations of the same bits in every layer."""
    action = Action(Width(weights), inputs)
    choice = tuple(actions.index(action) for actions in setting.space.actions)
    return int(setting.space.plan(choice).cost().bit_ops)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--journal", type=Path, help="keeps the measurements, as search.py has it")
    asked = parser.parse_args()
    setting = Setting(20, IMAGES, asked.journal, INPUT_BITS)
    about = {"images": IMAGES, "unseen": UNSEEN, "trials": TRIALS, "input_bits": INPUT_BITS}
    write_json(RESULT, read(RESULT) | about)
    limits = {bit_ops(setting, *bits): "{}x{}".format(*bits) for bits in UNIFORM}
    for limit, name, seed in wanted(tuple(limits), asked.methods, asked.seeds):
        if not is_there(RESULT, limit, name, seed):
            found = setting.search(Budget(bit_ops=limit), *named(name), seed, TRIALS)
            plan = setting.space.plan(setting.choice(found["choice"]))
            row = {"limit": limit, "everywhere": limits[limit], "method": name, "seed": seed}
            row["average_bits"] = plan.cost().average_bits
            add(RESULT, setting, row | found)


if __name__ == "__main__":
    main()
