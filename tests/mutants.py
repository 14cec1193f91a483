"""Break the code in many places, one after the other, and see whether the tests notice.

    python tests/mutants.py 300

``make mutants`` does this. cosmic-ray makes the mutants; a seeded sample of them is tried, each in
a copy of the package, against the tests of its own folder, those of its module first. A mutant that
no test kills is a missing test or a line to delete. The result goes to
benchmarks/results/mutants.json.
"""

import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "octavo"
RESULT = ROOT / "benchmarks" / "results" / "mutants.json"
FOLDERS = ("formats", "ptq", "inq", "dnq", "storage")
SEED = 0
TIMEOUT = 900  # seconds for the tests of a mutant; one that hangs is noticed too


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        file: relative to the package.
        operator: the name of cosmic-ray's operator.
        occurrence: the number of the place among those where the operator can be applied.
        line: the line of the place.

    """

    file: str
    operator: str
    occurrence: int
    line: int


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Yield every mutant of a file but those in annotations, which do nothing."""
    source = path.read_text(encoding="utf-8")
    passive = annotated(source)
    nodes = list(ast_nodes(get_ast(source)))
    names = [name for name in sorted(operator_names()) if "Variable" not in name]
    for name in names:
        operator = get_operator(name)()
        places = [place for node in nodes for place in operator.mutation_positions(node)]
        for occurrence, (start, _) in enumerate(places):
            if start not in passive:
                yield Mutant(str(path.relative_to(PACKAGE)), name, occurrence, start[0])


def annotated(source: str) -> set[tuple[int, int]]:
    """Return the places, lines and columns, of everything in annotations."""
    roots: list[ast.AST | None] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AnnAssign | ast.arg):
            roots.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            roots.append(node.returns)
    lines = source.splitlines()
    return {
        (line, column)
        for root in roots
        if isinstance(root, ast.expr)
        for line in range(root.lineno, (root.end_lineno or root.lineno) + 1)
        for column in range(len(lines[line - 1]) + 1)
        if (root.lineno, root.col_offset) <= (line, column)
        <= (root.end_lineno, root.end_col_offset)
    }  # fmt: skip


def sample(count: int) -> list[Mutant]:
    """Return so many mutants, the same at every call: first a line is drawn, then a mutant of it,
    because some lines have a dozen.
    """
    draw = random.Random(SEED)
    by_line: dict[tuple[str, int], list[Mutant]] = {}
    for folder in FOLDERS:
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            for mutant in mutants_of(path):
                by_line.setdefault((mutant.file, mutant.line), []).append(mutant)
    lines = draw.sample(sorted(by_line), min(count, len(by_line)))
    return [draw.choice(by_line[line]) for line in lines]


def killed(mutant: Mutant, copy: Path) -> bool:
    """Tell if the tests of the mutant's folder fail on a copy of the package with it."""
    path = copy / "octavo" / mutant.file
    source = path.read_text(encoding="utf-8")
    path.write_text(
        mutate_code(source, get_operator(mutant.operator)(), mutant.occurrence), encoding="utf-8"
    )
    folder = ROOT / "tests" / Path(mutant.file).parent
    first = sorted(folder.glob(f"test_{Path(mutant.file).stem}*.py"))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *first, folder]
    environ = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environ, capture_output=True, timeout=TIMEOUT, check=False
        )
        return done.returncode != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        path.write_text(source, encoding="utf-8")


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    score = {folder: [0, 0] for folder in FOLDERS}
    survivors: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(PACKAGE, copy / "octavo", ignore=shutil.ignore_patterns("__pycache__"))
        for number, mutant in enumerate(sample(count), 1):
            died = killed(mutant, copy)
            room = Path(mutant.file).parts[0]
            score[room][0] += died
            score[room][1] += 1
            word = "killed" if died else "SURVIVED"
            print(f"{number}/{count} {word} {mutant.file}:{mutant.line} {mutant.operator} "
                  f"{mutant.occurrence}", flush=True)  # fmt: skip
            if not died:
                survivors.append(vars(mutant))
    result = {
        "seed": SEED,
        "mutants": count,
        "killed": {name: f"{died} of {tried}" for name, (died, tried) in score.items()},
        "share": round(sum(died for died, _ in score.values()) / max(1, count), 3),
        "survivors": survivors,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({"killed": result["killed"], "share": result["share"]}))


if __name__ == "__main__":
    main()
