"""Break the code in many places, one after the other, and see whether the tests notice.

    python tests/mutants.py 300

``make mutants`` does this. cosmic-ray makes the mutants, and a seeded sample of them is tried on a
copy of the package: first against the tests of its own module, which kill most within seconds; then
what survived, against all tests of its folder. A mutant that no test kills is a missing test or a
line to delete.

The result, benchmarks/results/mutants.json, is written after each mutant. What it says of a line
that still stands is not tried again: delete it to begin anew. ``python tests/mutants.py survivors``
tries the survivors once more.
"""

import ast
import compileall
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

import octavo.cli  # noqa: F401  # so that the processes of the tests have torch when they begin

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "octavo"
RESULT = ROOT / "benchmarks" / "results" / "mutants.json"
FOLDERS = ("formats", "ptq", "inq", "dnq", "storage")
SEED = 0
SECONDS = 600  # of the processor: a mutant that takes them hangs
HOUR = 3600  # one that takes it waits for what never comes
# No deadlines, and the same examples at each call.
OPTIONS = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=ci"]

# The fates of a mutant: killed by the tests of its module, by others of its folder, or by none; the
# second is not known yet of those that survived the first.
OWN, FOLDER, UNKNOWN, NONE = "its module's tests", "its folder's tests", "not its module's", "none"


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        file: relative to the package.
        text: the line of the place, which may move.
        copy: the number of the line among those of the same text.
        operator: the name of cosmic-ray's operator.
        place: the number of the place among those of the line where the operator can be applied.

    """

    file: str
    text: str
    copy: int
    operator: str
    place: int


Places = dict[Mutant, tuple[int, int]]  # the line, and cosmic-ray's number of the place


def mutants_of(path: Path) -> Places:
    """Return every mutant of a file but those in annotations, which do nothing."""
    source = path.read_text(encoding="utf-8")
    file = str(path.relative_to(PACKAGE))
    lines = _numbered(source)
    passive = annotated(source)
    nodes = list(ast_nodes(get_ast(source)))
    found = {}
    for name in sorted(name for name in operator_names() if "Variable" not in name):
        operator = get_operator(name)()
        places = [place for node in nodes for place in operator.mutation_positions(node)]
        seen: Counter[int] = Counter()
        for occurrence, (start, _) in enumerate(places):
            if start not in passive:
                text, copy = lines[start[0] - 1]
                mutant = Mutant(file, text, copy, name, seen[start[0]])
                found[mutant] = (start[0], occurrence)
            seen[start[0]] += 1
    return found


def _numbered(source: str) -> list[tuple[str, int]]:
    """Return the lines, each with the number of its copy."""
    seen: Counter[str] = Counter()
    numbered = []
    for line in source.splitlines():
        numbered.append((line.strip(), seen[line.strip()]))
        seen[line.strip()] += 1
    return numbered


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


def sample(count: int) -> Places:
    """Return so many mutants, the same as long as the code is the same, and nearly the same after a
    change of it: first a line is drawn, then a mutant of it, because some lines have a dozen.
    """
    places: Places = {}
    for folder in FOLDERS:
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            places |= mutants_of(path)
    first: dict[tuple[str, str, int], Mutant] = {}  # of each line, the one that is drawn
    for mutant in sorted(places, key=lambda mutant: _drawn(str(mutant))):
        first.setdefault((mutant.file, mutant.text, mutant.copy), mutant)
    lines = sorted(first, key=lambda line: _drawn(str(line)))[:count]
    return {first[line]: places[first[line]] for line in lines}


def _drawn(text: str) -> str:
    """Return a random number, the same for the same text."""
    return hashlib.sha256(f"{SEED} {text}".encode()).hexdigest()


class Tests:
    """Runs tests on a copy of the package, with mutants or without."""

    def __init__(self, copy: Path) -> None:
        self._copy = copy
        self._passing: set[tuple[Path, ...]] = set()  # without a mutant
        shutil.copytree(PACKAGE, copy / "octavo", ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(copy, quiet=1)

    def kill(self, mutant: Mutant, occurrence: int, files: tuple[Path, ...]) -> bool:
        """Tell if test files fail with a mutant; without one, they must not."""
        if not files:
            return False
        path = self._copy / "octavo" / mutant.file
        source = path.read_text(encoding="utf-8")
        operator = get_operator(mutant.operator)()
        path.write_text(mutate_code(source, operator, occurrence), encoding="utf-8")
        try:
            died = self._fail(files)
        finally:
            path.write_text(source, encoding="utf-8")
        if died and files not in self._passing and self._fail(files):
            names = ", ".join(file.name for file in files)
            raise SystemExit(f"{names}: they fail without a mutant: nothing is measured")
        self._passing.add(files)
        return died

    def _fail(self, files: tuple[Path, ...]) -> bool:
        """Tell if tests fail, in a process of their own."""
        child = os.fork()
        if not child:
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            signal.alarm(HOUR)
            for name in [name for name in sys.modules if name.partition(".")[0] == "octavo"]:
                del sys.modules[name]
            sys.path.insert(0, str(self._copy))
            os.environ |= {"PYTHONPATH": str(self._copy), "PYTHONDONTWRITEBYTECODE": "1"}
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                status = pytest.main([*OPTIONS, *map(str, files)])
            os._exit(int(status))
        _, status = os.waitpid(child, 0)
        return status != 0


def own_tests(mutant: Mutant) -> tuple[Path, ...]:
    """Return the test files of a mutant's module."""
    folder = ROOT / "tests" / Path(mutant.file).parent
    return tuple(sorted(folder.glob(f"test_{Path(mutant.file).stem}*.py")))


def other_tests(mutant: Mutant) -> tuple[Path, ...]:
    """Return the other test files of a mutant's folder."""
    folder = ROOT / "tests" / Path(mutant.file).parts[0]
    return tuple(sorted({*folder.rglob("test_*.py")} - {*own_tests(mutant)}))


class Record:
    """The fates of mutants, kept in the result file."""

    def __init__(self, places: Places) -> None:
        self._places = places
        rows = json.loads(RESULT.read_text())["mutants"] if RESULT.exists() else []
        found = {Mutant(**{key: row[key] for key in Mutant.__annotations__}): row for row in rows}
        self.fates: dict[Mutant, str] = {
            mutant: found[mutant]["killed_by"] for mutant in places if mutant in found
        }

    def add(self, mutant: Mutant, fate: str) -> None:
        """Note the fate of a mutant."""
        self.fates[mutant] = fate
        print(f"{len(self.fates)} {fate}: {mutant.file}:{self._places[mutant][0]} "
              f"{mutant.operator} {mutant.place}", flush=True)  # fmt: skip
        rows = [asdict(mutant) | {"killed_by": fate} for mutant, fate in self.fates.items()]
        text = json.dumps(self._summary() | {"mutants": rows}, indent=1)
        RESULT.write_text(text + "\n", encoding="utf-8")

    def _summary(self) -> dict[str, Any]:
        dead = Counter(_room(one) for one, fate in self.fates.items() if fate in (OWN, FOLDER))
        tried = Counter(map(_room, self.fates))
        return {
            "seed": SEED,
            "asked": len(self._places),
            "tried": len(self.fates),
            "killed": {room: f"{dead[room]} of {tried[room]}" for room in FOLDERS},
            "share": round(dead.total() / max(1, tried.total()), 3),
        }


def _room(mutant: Mutant) -> str:
    return Path(mutant.file).parts[0]


def main() -> None:
    what = sys.argv[1] if len(sys.argv) > 1 else "300"
    if what == "survivors":
        places = sample(json.loads(RESULT.read_text())["asked"])
        again = {UNKNOWN, NONE}
    else:
        places = sample(int(what))
        again = set()
    record = Record(places)
    sys.dont_write_bytecode = True  # that of a mutant might be taken for that of the next
    with tempfile.TemporaryDirectory() as folder:
        tests = Tests(Path(folder))
        for mutant, (_, occurrence) in places.items():
            if mutant not in record.fates or record.fates[mutant] in again:
                died = tests.kill(mutant, occurrence, own_tests(mutant))
                record.add(mutant, OWN if died else UNKNOWN)
        for mutant, (_, occurrence) in places.items():
            if record.fates[mutant] == UNKNOWN:
                died = tests.kill(mutant, occurrence, other_tests(mutant))
                record.add(mutant, FOLDER if died else NONE)


if __name__ == "__main__":
    main()
