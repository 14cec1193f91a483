"""The starts of INQ compared on the digits, at 3 and 2 bits.

    python benchmarks/start.py

``float`` starts from the network as it is, ``ptq`` from calibrated weights, and ``refit`` from the
network as it is, where each portion refits the free weights. This is the recipe of `octavo demo`
without its search and its control: 5 seeds, scored on the held-out part. Writes
benchmarks/results/start.json.
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from octavo.runs.recipe import load_recipe
from octavo.runs.recipes import RECIPES
from octavo.runs.run import environment, run

RESULT = Path(__file__).parent / "results" / "start.json"
SEEDS = range(5)


def score(bits: int, start: str, seed: int) -> dict[str, Any]:
    changes = [
        f"bits={bits}",
        f"start={start}",
        f"seed={seed}",
        "control=false",
        "options.split=holdout",
    ]
    with tempfile.TemporaryDirectory() as folder:
        return run(load_recipe(RECIPES / "digits.yaml", changes), Path(folder) / "run")


def main() -> None:
    rows = []
    before = 0.0
    for bits in (3, 2):
        for start in ("float", "ptq", "refit"):
            results = [score(bits, start, seed) for seed in SEEDS]
            scores = [round(result["score"], 2) for result in results]
            before = results[0]["float_score"]
            rows.append(
                {
                    "bits": bits,
                    "start": start,
                    "mean": round(statistics.mean(scores), 2),
                    "scores": scores,
                }
            )
            print(rows[-1])
    RESULT.write_text(
        json.dumps(
            {"float": round(before, 2), "environment": environment(), "rows": rows}, indent=2
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
