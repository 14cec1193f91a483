"""Imports go one way: a folder imports only from folders below it; optional packages wait."""

import ast
from pathlib import Path

import octavo

PACKAGE = Path(octavo.__file__).parent

# Highest first. An entry is a folder or a module that lies directly in the package.
FLOORS = (
    ("__init__", "__main__"),
    ("cli",),
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
    ("errors", "progress", "_io", "_seeds"),
)
LEVEL = {room: -floor for floor, rooms in enumerate(FLOORS) for room in rooms}
ONNX = {"onnx", "onnx_ir", "onnxscript", "onnxruntime", "ml_dtypes"}
OPTIONAL = ONNX | {"sklearn", "torchvision", "timm", "PIL", "datasets", "optuna", "cmaes"}


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


def test_imports_go_down() -> None:
    wrong = {}
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if found := upward(own, imported(ast.parse(path.read_text(encoding="utf-8")))):
            wrong[str(path.relative_to(PACKAGE))] = found
    assert wrong == {}


def test_every_room_has_a_floor() -> None:
    rooms = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in PACKAGE.rglob("*.py")}
    assert rooms <= set(LEVEL)


def test_the_rule_itself() -> None:
    assert upward("formats", {"octavo.plan.Plan"}) == ["octavo.plan.Plan"]
    assert upward("plan", {"octavo.formats.width.Width", "torch.nn"}) == []
    assert upward("dnq", {"octavo.inq.incremental.Incremental", "octavo.search"}) == [
        "octavo.search"
    ]


def test_the_numbers_floor_knows_no_modules() -> None:
    for path in (PACKAGE / "formats").glob("*.py"):
        names = imported(ast.parse(path.read_text(encoding="utf-8")))
        assert not [name for name in names if name.startswith("torch.nn")], path.name


def test_optional_packages_are_imported_where_they_are_used() -> None:
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        statements = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
        top = {name.partition(".")[0] for node in statements for name in imported(node)}
        allowed = ONNX if path.parent.name == "deploy" else set()
        assert not top & (OPTIONAL - allowed), path.name
