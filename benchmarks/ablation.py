"""Parts of ``dnq`` switched off one by one: learning, the world model, the warm start.

    python benchmarks/ablation.py                       # about an hour of one core
    python benchmarks/ablation.py --variants "sign flipped" --seeds 0

ResNet-20 in 70,000 bytes, with the images, the trials and the measures of ``search.py``, 3 seeds.
*Learning off* is a learning rate of 0; *model off* measures without practice in between; *cold*
begins with a uniform policy; *sign flipped* lowers the reward instead of raising it. Rows are
written as they come, and skipped if they are there. Writes benchmarks/results/ablation.json.
"""

import argparse
import functools
from pathlib import Path
from unittest import mock

from search import (  # type: ignore[import-not-found]  # its neighbour
    IMAGES,
    LEARNING_OFF,
    RESULTS,
    SEEDS,
    TRIALS,
    UNSEEN,
    Setting,
    add,
    is_there,
    read,
)
from torch import Tensor

from octavo import Budget
from octavo.dnq import reinforce
from octavo.dnq.agent import dnq
from octavo.dnq.evaluator import Evaluator
from octavo.dnq.methods import SearchMethod
from octavo.dnq.reinforce import Reinforce
from octavo.runs.run_folder import write_json

RESULT = RESULTS / "ablation.json"
LIMIT = 70_000  # bytes of the file
MODEL_OFF = Reinforce(practice=0, before=0)


def sign_flipped(evaluator: Evaluator) -> None:
    """Run ``dnq`` with a policy gradient that lowers the rewards; all else is as it was."""
    surrogate = reinforce.surrogate

    def flipped(log_probability: Tensor, rewards: Tensor, entropy_weight: float) -> Tensor:
        return surrogate(log_probability, -rewards, entropy_weight)

    with mock.patch.object(reinforce, "surrogate", flipped):
        dnq(evaluator)


VARIANTS: dict[str, SearchMethod] = {
    "dnq": dnq,
    "learning off": LEARNING_OFF,
    "model off": functools.partial(dnq, settings=MODEL_OFF),
    "cold": functools.partial(dnq, warm=False),
    "cold, model off": functools.partial(dnq, warm=False, settings=MODEL_OFF),
    "sign flipped": sign_flipped,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--journal", type=Path, help="as search.py has it; it may be the same")
    asked = parser.parse_args()
    setting = Setting(20, IMAGES[20], asked.journal)
    write_json(RESULT, read(RESULT) | {"images": IMAGES[20], "unseen": UNSEEN, "trials": TRIALS})
    for seed in asked.seeds:
        for name in asked.variants:
            if not is_there(RESULT, LIMIT, name, seed):
                row = {"limit": LIMIT, "method": name, "seed": seed}
                row |= setting.search(Budget(bytes=LIMIT), VARIANTS[name], 0.0, seed)
                add(RESULT, setting, row)


if __name__ == "__main__":
    main()
