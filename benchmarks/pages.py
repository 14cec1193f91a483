"""What the tables of benchmarks/table.py share: the results, words for their names, Markdown."""

import ast
import difflib
import json
import math
from pathlib import Path
from typing import Any

from octavo.runs.recipe import recorded_recipe

RESULTS = Path(__file__).parent / "results"
EXAMPLES = Path(__file__).parents[1] / "examples"

LABELS = {  # names in committed results, and the words for them on the pages
    "absorbed": "absorb",
    "closed form": "calibrated",
    "nearest": "nearest levels",
    "gptq": "default (order `gptq`)",
    "gptq, absorbed": "default, absorb",
    "gptq, corrected": "default, biases and batch norms fitted too",
    "gptq, float inputs": "default, full-precision inputs (`sequential=False`)",
    "gptq, per layer": 'default, `per="tensor"`',
    "random": "order `random`",
    "distance": "order `distance`",
    "magnitude": "order `magnitude`",
    "oneshot": "`ptq`",
    "compensated": "`refit`",
    "float": "`float`",
}


def load(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def results(pattern: str) -> list[Any]:
    """The committed results of runs whose names match: most bits first, then by seed."""
    every = [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{pattern}.json"))]
    matching = [run for run in every if "recipe" in run]
    return sorted(matching, key=lambda run: (-run["nominal_bits"], run["recipe"]["seed"]))


def label(name: str) -> str:
    return LABELS.get(name, name)


def labels(names: str) -> str:
    """The words for several names that are separated by commas."""
    return ", ".join(label(name) for name in names.split(", "))


def epochs(run: Any) -> str:
    return f"{sum(stage['epochs'] for stage in run['stages']):g}"


def control(run: Any) -> str:
    """The metric of the control, which runs that differ in bits alone share."""
    alike = [other for other in [run, *results("resnet20-*")] if training(other) == training(run)]
    scores = [other["control_score"] for other in alike if "control_score" in other]
    return f"{scores[0]:.2f}" if scores else "not run"


def training(run: Any) -> list[Any]:
    """What the control of a run depends on, see ``octavo.runs.steps``."""
    keys = ("task", "options", "teacher", "retraining", "seed", "warmup", "epochs", "prune")
    recipe = recorded_recipe(run["recipe"], "a result")  # with the keys that are newer than it
    return [getattr(recipe, key) for key in keys]


def three_digits(value: float) -> str:
    """A positive number with three digits that count: 0.0414, 0.0000619."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def size(row: Any) -> list[str]:
    """The bytes of a file, and how many times smaller it is."""
    return [f"{row['file_bytes']:,}", f"{row['ratio']:.1f}"]


def fill(page: str, name: str, text: str) -> str | None:
    """The page with ``text`` between the two markers of ``name``; None if it lacks the markers."""
    start = f"<!-- {name} -->"
    end = f"<!-- /{name} -->"
    before, found_start, rest = page.partition(start)
    _, found_end, after = rest.partition(end)
    if not found_start or not found_end:
        return None
    return f"{before}{start}\n{text}\n{end}{after}"


def difference(name: str) -> str:
    """What octavo adds to an example: the difference of the two files, without their docstrings."""
    before, after = (code(EXAMPLES / file) for file in (f"{name}.py", f"{name}_octavo.py"))
    lines = list(difflib.unified_diff(before, after, n=2, lineterm=""))[2:]
    shown = ["@@" if line.startswith("@@") else line.rstrip() for line in lines]
    return "\n".join(["```diff", *shown[1:], "```"])


def code(path: Path) -> list[str]:
    """The lines of a script behind its docstring."""
    text = path.read_text(encoding="utf-8")
    docstring = ast.parse(text).body[0]
    return text.splitlines()[docstring.end_lineno or 0 :]
