"""Imports go one way: a folder imports only from folders below it; optional packages wait."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import octavo

PACKAGE = Path(octavo.__file__).parent

# Highest first. An entry is a folder or a module that lies directly in the package.
FLOORS = (
    ("__init__", "__main__"),
    ("cli",),
    ("hf", "plot", "trainers"),
    ("report",),
    ("runs",),
    ("deploy",),
    ("compression",),
    ("dnq",),
    ("inq",),
    ("pruning",),
    ("ptq",),
    ("inspection",),
    ("storage",),
    ("activations",),
    ("plan",),
    ("network",),
    ("formats",),
    ("_deprecated",),
    ("_interruption", "_locks"),
    ("progress", "_io", "_seeds", "_yaml"),
    ("errors",),
)
LEVEL = {room: -floor for floor, rooms in enumerate(FLOORS) for room in rooms}
ONNX = {"onnx", "onnx_ir", "onnxscript", "onnxruntime", "ml_dtypes"}
CHARTS = {"altair", "vl_convert"}
OPTIONAL = ONNX | CHARTS | {"sklearn", "torchvision", "timm", "PIL", "datasets", "optuna", "cmaes"}


def room(module: str) -> str:
    """The folder or top-level module that a dotted name inside the package belongs to."""
    return module.removeprefix("octavo").lstrip(".").partition(".")[0] or "__init__"


def imported(tree: ast.AST) -> set[str]:
    """The full dotted names that a module imports, wherever in it the statement stands."""
    names = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert all(node.level == 0 for node in froms), "imports are absolute"
    return names | {f"{node.module}.{alias.name}" for node in froms for alias in node.names}


def upward(own: str, names: set[str]) -> list[str]:
    """What a module of the room ``own`` must not import: a room above it, or the package itself."""
    inside = {name for name in names if name.partition(".")[0] == "octavo"}
    return sorted(n for n in inside if room(n) != own and LEVEL.get(room(n), 0) >= LEVEL[own])


def imported_at_once(module: ast.Module) -> set[str]:
    """First parts of what is imported with the module itself: everything outside of functions and
    of blocks for the type checker."""
    names: set[str] = set()
    nodes: list[ast.AST] = list(module.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes += node.orelse
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {name.partition(".")[0] for name in imported(node)}
        children = ast.iter_child_nodes(node)
        nodes += [child for child in children if isinstance(child, ast.stmt | ast.ExceptHandler)]
    return names


def test_imports_go_down() -> None:
    wrong = {}
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if found := upward(own, imported(ast.parse(path.read_text(encoding="utf-8")))):
            wrong[str(path.relative_to(PACKAGE))] = found
    assert wrong == {}


def modules() -> dict[str, set[str]]:
    """Each module of the package, and those of the package that it imports."""
    names = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        names[".".join(parts).removesuffix(".__init__")] = path
    return {
        name: {
            module
            for full in imported(ast.parse(path.read_text(encoding="utf-8")))
            for module in (full, full.rpartition(".")[0])
            if module in names and module != name
        }
        for name, path in names.items()
        if name != "octavo"
    }


def test_no_modules_import_each_other() -> None:
    """Inside a room as well, and for the type checker as well."""
    graph = modules()
    assert "octavo.runs.retraining" in graph["octavo.runs.training"]
    TopologicalSorter(graph).prepare()
    with pytest.raises(CycleError):
        TopologicalSorter(graph | {"octavo.errors": {"octavo.cli.failures"}}).prepare()


def test_every_room_has_a_floor() -> None:
    rooms = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in PACKAGE.rglob("*.py")}
    assert rooms <= set(LEVEL)


@pytest.mark.parametrize(
    ("own", "source", "wrong"),
    [
        ("formats", "from octavo.plan import Plan", True),
        ("plan", "from octavo.formats.width import Width", False),
        ("plan", "def f():\n    from octavo.runs.run import run", True),
        ("plan", "from octavo import Plan", True),
        ("plan", "import octavo", True),
        ("dnq", "from octavo.dnq.journal import Journal", False),
        ("dnq", "from octavo.inq.incremental import Incremental", False),
        ("inq", "from octavo.dnq.searching import search", True),
        ("dnq", "from octavo import search", True),
        ("cli", "from octavo import errors", False),
        ("_io", "import octavo.progress", True),  # one floor, two rooms
        ("plan", "import torch.nn as nn", False),
    ],
)
def test_the_rule_itself(own: str, source: str, wrong: bool) -> None:
    assert bool(upward(own, imported(ast.parse(source)))) is wrong


def test_a_relative_import_is_refused() -> None:
    with pytest.raises(AssertionError, match="imports are absolute"):
        imported(ast.parse("from . import plan"))


def test_the_numbers_floor_knows_no_modules() -> None:
    for path in (PACKAGE / "formats").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        attributes = {
            ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)
        }
        names = imported(tree) | {name for name in attributes if name.startswith("nn.")}
        names |= {name for name in attributes if name.startswith("torch.nn")}
        assert not [name for name in names if name.startswith(("torch.nn", "nn."))], path.name


def test_optional_packages_are_imported_where_they_are_used() -> None:
    for path in PACKAGE.rglob("*.py"):
        top = imported_at_once(ast.parse(path.read_text(encoding="utf-8")))
        allowed = {"deploy": ONNX, "charts": CHARTS}.get(path.parent.name, set())
        assert not top & (OPTIONAL - allowed), path.name


def test_what_counts_as_imported_at_once() -> None:
    source = """
import a.b
try:
    from c import d
except ImportError:
    import e
class F:
    import g
def h():
    import i
if TYPE_CHECKING:
    import j
else:
    import k
"""
    assert imported_at_once(ast.parse(source)) == set("acegk")
