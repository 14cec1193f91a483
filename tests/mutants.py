"""Break the code in many places, one after the other, and see whether the tests notice.

    python tests/mutants.py 300

``make mutants`` does this. cosmic-ray makes the mutants, and a seeded sample of them is tried on a
copy of the package, each against those tests of its folder that call the function it is in. A
mutant that no test kills is a missing test or a line to delete.

The result, benchmarks/results/mutants.json, is written after each mutant. What it says of a line
that still stands is not tried again: delete it to begin anew. ``python tests/mutants.py survivors``
tries the survivors once more, and imports the package again for each.
"""

import ast
import compileall
import gc
import hashlib
import importlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Generator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NoReturn

import coverage
import hypothesis.extra.numpy  # noqa: F401  # so that the tests need not import it
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "octavo"
RESULT = ROOT / "benchmarks" / "results" / "mutants.json"
FOLDERS = ("formats", "storage", "inq", "ptq", "dnq")  # those with the fastest tests first
SEED = 0
SECONDS = 600  # of the processor: a mutant that takes them hangs
HOUR = 3600  # one that takes it waits for what never comes
# No deadlines, and the same examples at each call.
OPTIONS = ["-q", "-p", "no:cacheprovider", "--hypothesis-profile=ci"]
# Modules that are imported before the tests are no fault of theirs; the second comes with a report.
OPTIONS += ["-W", "ignore::pytest.PytestAssertRewriteWarning", "-W", "ignore:mypy_extensions"]

INVALID = "no Python"  # it does not count
STUCK = "the process ended or took too long"
FIXTURE = "fixture "  # begins the name of a context of coverage.py that is no test
SURVIVED = "survived"


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


Change = list[tuple[CodeType, CodeType]]  # codes of functions, and those that they become
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
    drawn = sorted((first[line] for line in lines), key=lambda one: FOLDERS.index(_room(one)))
    return {mutant: places[mutant] for mutant in drawn}


def _drawn(text: str) -> str:
    """Return a random number, the same for the same text."""
    return hashlib.sha256(f"{SEED} {text}".encode()).hexdigest()


class Tests:
    """Runs tests on a copy of the package, with mutants or without.

    Each run is a process of its own, a fork of this one, which has imported the package already.
    """

    def __init__(self, copy: Path) -> None:
        self._copy = copy
        shutil.copytree(PACKAGE, copy / "octavo", ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(copy, quiet=1)
        sys.path.insert(0, str(copy))
        for folder in FOLDERS:
            for path in sorted((copy / "octavo" / folder).rglob("*.py")):
                importlib.import_module(_module(path.relative_to(copy)))

    def killer(
        self, mutant: Mutant, occurrence: int, tests: Sequence[str], *, anew: bool
    ) -> str | None:
        """Return the test that a mutant fails first, or None; INVALID if the mutant is none.

        Where possible, only the code of functions is replaced, which is fast, but misses what was
        done as the package was imported; ``anew`` imports it again in any case.
        """
        path = self._copy / "octavo" / mutant.file
        source = path.read_text(encoding="utf-8")
        changed = mutate_code(source, get_operator(mutant.operator)(), occurrence)
        try:
            change = changed_functions(*(compile(one, str(path), "exec", dont_inherit=True)
                                         for one in (source, changed)))  # fmt: skip
        except SyntaxError:
            return INVALID
        path.write_text(changed, encoding="utf-8")
        try:
            failed = self.failures(None if anew else change, "-x", *tests)
        finally:
            path.write_text(source, encoding="utf-8")
        return failed[0] if failed else None

    def calls(self, room: str) -> "Calls":
        """Return the tests of a folder that run each line of the package, and how long they take;
        all of them are run once for this.
        """
        report = self._copy / "calls"
        child = os.fork()
        if not child:
            watched = coverage.Coverage(data_file=None, source=[str(self._copy / "octavo")])
            watched.start()
            watcher = Watcher(watched, report)
            self._run([watcher], [str(ROOT / "tests" / room)])
        os.waitpid(child, 0)
        return Calls(**json.loads(report.read_text()))

    def failures(self, change: Change | None, *options: str | Path) -> list[str]:
        """Return the tests that fail, and files that cannot be imported, with a change of the code;
        without one, the package is imported again.
        """
        report = self._copy / "failures"
        report.unlink(missing_ok=True)
        child = os.fork()
        if not child:
            make(change)
            self._run([Failures(report)], list(map(str, options)))
        _, status = os.waitpid(child, 0)
        found = report.read_text().splitlines() if report.exists() else []
        return found or ([STUCK] if status else [])

    def _run(self, plugins: list[object], options: list[str]) -> NoReturn:
        """Run pytest in this process, which ends with it."""
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        signal.alarm(HOUR)
        os.environ |= {"PYTHONPATH": str(self._copy), "PYTHONDONTWRITEBYTECODE": "1"}
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            status = pytest.main([*OPTIONS, *options], plugins=plugins)
        os._exit(int(status))


def _module(file: Path) -> str:
    """Return the name of the module in a file."""
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


def changed_functions(code: CodeType, other: CodeType) -> Change | None:
    """Return the codes of functions that differ in another version of a module, with those that
    they become; None where something else differs.
    """
    if code.co_flags & CO_OPTIMIZED:  # of a function, with all that it has inside
        return [] if code == other else [(code, other)]
    if not other.co_flags & CO_OPTIMIZED:
        inside = [[one for one in some.co_consts if isinstance(one, CodeType)]
                  for some in (code, other)]  # fmt: skip
        same = [some.replace(co_consts=tuple(one for one in some.co_consts
                                             if not isinstance(one, CodeType)))
                for some in (code, other)]  # fmt: skip
        changes = [changed_functions(*pair) for pair in zip(*inside, strict=False)]
        if same[0] == same[1] and None not in changes:
            return [one for change in changes for one in change or []]
    return None


def make(change: Change | None) -> None:
    """Make a change of the code of functions; without one, forget the package."""
    if change is None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "octavo"]:
            del sys.modules[name]
    for old, new in change or []:
        for function in gc.get_objects():
            if type(function) is FunctionType and function.__code__ == old:
                function.__code__ = new


class Failures:
    """Writes the names of failing tests to a file: a plugin of pytest."""

    def __init__(self, report: Path) -> None:
        self._report = report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed:
            with self._report.open("a") as file:
                file.write(report.nodeid + "\n")


class Watcher:
    """Writes the tests that run each line, and their seconds, to a file: a plugin of pytest.

    What a fixture does counts for all tests that use it: it may be done for the first one only.
    """

    def __init__(self, watched: coverage.Coverage, report: Path) -> None:
        self._watched = watched
        self._report = report
        self._now = ""  # the test that runs
        self._users: dict[str, list[str]] = defaultdict(list)  # of each fixture
        self._seconds: dict[str, float] = defaultdict(float)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Function) -> Generator[None, object, object]:
        self._now = item.nodeid.partition("[")[0]
        for name in item.fixturenames:
            self._users[FIXTURE + name].append(self._now)
        self._watched.switch_context(self._now)
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None, object, object]:
        self._watched.switch_context(FIXTURE + fixturedef.argname)
        try:
            return (yield)
        finally:
            self._watched.switch_context(self._now)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid.partition("[")[0]] += report.duration

    def pytest_sessionfinish(self) -> None:
        self._watched.stop()
        data = self._watched.get_data()
        tests = {}
        for file in data.measured_files():
            found = {}
            for line, contexts in data.contexts_by_lineno(file).items():
                names = [one for name in contexts for one in self._users.get(name, [name])]
                found[line] = sorted(set(names) & set(self._seconds))
            tests[file.rpartition("/octavo/")[2]] = found
        self._report.write_text(json.dumps({"tests": tests, "seconds": self._seconds}))


@dataclass(frozen=True)
class Calls:
    """What was seen as the tests of a folder ran.

    Attributes:
        tests: the names of tests without parameters, by file and line.
        seconds: the time that each test takes with all its parameters.

    """

    tests: dict[str, dict[str, list[str]]]
    seconds: dict[str, float]

    def of(self, mutant: Mutant, line: int) -> list[str]:
        """Return the tests that call the function of a mutant; all tests if it is in none. Those in
        the files that are done first come first.
        """
        seen = self.tests.get(mutant.file, {})
        names = {name for each in function_lines(mutant.file, line)
                 for name in seen.get(str(each), [])}  # fmt: skip
        names = names or set(self.seconds)
        files: dict[str, float] = defaultdict(float)
        for name in names:
            files[name.partition("::")[0]] += self.seconds[name]
        return sorted(names, key=lambda name: (files[name.partition("::")[0]], name))


def function_lines(file: str, line: int) -> range:
    """Return the lines of the body of the innermost function around a line; none without one."""
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    bodies = [
        range(node.body[0].lineno, (node.end_lineno or 0) + 1)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]
    return min((body for body in bodies if line in body), key=len, default=range(0))


class Record:
    """The fates of mutants, kept in the result file: the test that killed it, or SURVIVED."""

    def __init__(self, places: Places) -> None:
        self._places = places
        rows = json.loads(RESULT.read_text())["mutants"] if RESULT.exists() else []
        found = {Mutant(**{key: row[key] for key in Mutant.__annotations__}): row for row in rows}
        self.fates: dict[Mutant, str] = {
            mutant: found[mutant]["fate"] for mutant in places if mutant in found
        }

    def add(self, mutant: Mutant, fate: str) -> None:
        """Note the fate of a mutant."""
        self.fates[mutant] = fate
        print(f"{len(self.fates)} {mutant.file}:{self._places[mutant][0]} {mutant.operator} "
              f"{mutant.place}: {fate}", flush=True)  # fmt: skip
        self.save()

    def take_back(self, tests: Collection[str]) -> None:
        """Forget the fates of mutants that tests killed which fail without a mutant."""
        self.fates = {mutant: fate for mutant, fate in self.fates.items() if fate not in tests}
        self.save()

    def save(self) -> None:
        """Write the result file."""
        rows = [asdict(mutant) | {"fate": fate} for mutant, fate in self.fates.items()]
        text = json.dumps(self._summary() | {"mutants": rows}, indent=1)
        RESULT.write_text(text + "\n", encoding="utf-8")

    def _summary(self) -> dict[str, Any]:
        fates = {one: fate for one, fate in self.fates.items() if fate != INVALID}
        dead = Counter(_room(one) for one, fate in fates.items() if fate != SURVIVED)
        tried = Counter(map(_room, fates))
        return {
            "seed": SEED,
            "asked": len(self._places),
            "tried": len(fates),
            "killed": {room: f"{dead[room]} of {tried[room]}" for room in FOLDERS},
            "share": round(dead.total() / max(1, tried.total()), 3),
        }


def _room(mutant: Mutant) -> str:
    return Path(mutant.file).parts[0]


def main() -> None:
    what = sys.argv[1] if len(sys.argv) > 1 else "300"
    again = what == "survivors"
    places = sample(json.loads(RESULT.read_text())["asked"] if again else int(what))
    record = Record(places)
    known = {one for one, fate in record.fates.items() if not (again and fate == SURVIVED)}
    sys.dont_write_bytecode = True  # that of a mutant might be taken for that of the next
    with tempfile.TemporaryDirectory() as folder:
        tests = Tests(Path(folder))
        for room in FOLDERS:
            left = [one for one in places if _room(one) == room and one not in known]
            if left:
                calls = tests.calls(room)
            for mutant in left:
                line, place = places[mutant]
                killer = tests.killer(mutant, place, calls.of(mutant, line), anew=again)
                record.add(mutant, killer or SURVIVED)
        check_killers(tests, record)


def check_killers(tests: Tests, record: Record) -> None:
    """Run each test that killed a mutant without any; what fails even so has killed nothing."""
    killers = {fate for fate in record.fates.values() if "::" in fate}
    files = {fate for fate in record.fates.values() if fate.endswith(".py")}
    if false := tests.failures([], *sorted(killers | files)):
        record.take_back(false)
        raise SystemExit(f"fail without a mutant, call again: {false}")


if __name__ == "__main__":
    main()
