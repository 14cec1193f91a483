"""INQ with a rate: files and accuracies of the digits network, retrained and calibrated alone.

    python benchmarks/inq_rate.py    # a quarter of an hour on one core

The task ``digits``: a small convolutional network on scikit-learn's handwritten digits, and 360
test images. Every row has the coder ``small`` and folded norms. ``inq`` starts from full precision,
refits the weights that are still free, and retrains as the recipe ``digits`` does, without labels.
Widths and rates were fixed beforehand. Rows are written as they come, and skipped if they are
there. Writes benchmarks/results/inq-rate.json.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from octavo.runs.recipe import Recipe, make_recipe
from octavo.runs.run import environment, run
from octavo.runs.run_folder import write_json

RESULT = Path(__file__).parent / "results" / "inq-rate.json"
WIDTHS = ("apot5", 4)
RATES = (0.0, 4.0, 16.0)
SEEDS = (0,)


def recipe(width: int | str, method: str, rate: float, seed: int) -> Recipe:
    content: dict[str, Any] = {
        "task": "digits",
        "bits": width,
        "method": method,
        "ptq": {"rate": rate},
        "floats": "folded",
        "coding": "small",
        "control": False,
        "seed": seed,
    }
    if method == "inq":
        content |= {"start": "refit", "rate": rate, "ptq": {}, "straight_through": 0.875}
        content |= {"epochs": (5, 4, 3, 2), "retraining": {"learning_rate": 0.02, "temperature": 2}}
    return make_recipe(content, "inq_rate")


def row(width: int | str, method: str, rate: float, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        result = run(recipe(width, method, rate, seed), Path(folder) / "run")
    figures = ("float_score", "score", "file_bytes", "stored_bits", "sparsity", "seconds")
    named = {"width": width, "method": method, "rate": rate, "seed": seed}
    return named | {name: result[name] for name in figures}


def main() -> None:
    rows: list[Any] = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    wanted = [
        (width, method, rate, seed)
        for seed in SEEDS
        for width in WIDTHS
        for rate in RATES
        for method in ("ptq", "inq")
        if method == "inq" or seed == SEEDS[0]  # calibration draws nothing
    ]
    for one in wanted:
        if one not in [
            (each["width"], each["method"], each["rate"], each["seed"]) for each in rows
        ]:
            rows.append(row(*one))
            print(rows[-1], flush=True)
            write_json(RESULT, {"environment": environment(), "rows": rows})


if __name__ == "__main__":
    main()
