"""Imports go one way: a module imports only from floors below its own, and the numbers floor knows no modules."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "octavo"

# Lowest first. An entry stands for a module, or for a package and all in it; the longest entry that fits counts.
FLOORS = (
    "errors",
    "yamls",
    "seeds",
    "levels",
    "codebook",
    "widths",
    "additive",
    "grids",
    "compensate",
    "coding",
    "partition",
    "histogram",
    "calling",
    "outputs",
    "layers",
    "recurrent",
    "moments",
    "walk",
    "solve",
    "files",
    "plan",
    "freeze",
    "quantizer",
    "activations",
    "manifest",
    "digest",
    "container",
    "packed",
    "absorb",
    "slim",
    "forward_order",
    "oneshot",
    "prune",
    "incremental",
    "search",
    "compression",
    "export",
    "task",
    "inspection",
    "tasks.images",
    "tasks.image_files",
    "tasks.networks",
    "tasks.resnet",
    "tasks",
    "train",
    "recipe",
    "recipes",
    "folder",
    "stages",
    "report",
    "run",
    "cli",
    "__main__",
)
NUMBERS = (
    "errors",
    "seeds",
    "levels",
    "codebook",
    "widths",
    "additive",
    "grids",
    "compensate",
    "coding",
    "partition",
    "histogram",
)

ONNX = {"onnx", "onnx_ir", "onnxscript", "onnxruntime", "ml_dtypes"}
OPTIONAL = ONNX | {"sklearn", "torchvision", "timm", "PIL", "datasets", "constriction", "torchao"}
BEHIND = {f"export.{name}" for name in ("checks", "graph", "integers", "onnx", "ranges", "runtime")}  # loaded where asked for
STRANGERS = {("search", "incremental"), ("tasks", "tasks")}  # the search is handed a function; tasks know no other task


def module_name(path: Path) -> str:
    """`tasks/digits.py` is "tasks.digits", a package's `__init__.py` the package itself, the root's ""."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor(module: str) -> str | None:
    fitting = [f for f in FLOORS if module == f or module.startswith(f + ".")]
    return max(fitting, key=len, default=None)


def targets(node: ast.AST, package: str) -> list[str]:
    """Full dotted names that a statement imports; for `from x import y` both x and x.y, as y may be a module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    base = ".".join([*above, *([node.module] if node.module else [])])
    return [base, *(f"{base}.{alias.name}" for alias in node.names)]


def package_of(path: Path) -> str:
    return ".".join(("octavo", *path.relative_to(PACKAGE).parts[:-1]))


def modules() -> dict[str, Path]:
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def violations(module: str, path: Path, known: set[str]) -> list[str]:
    """One line for each import of `module` that does not go downwards."""
    own, found = floor(module), []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [t for t in targets(node, package_of(path)) if t.split(".")[0] == "octavo"]
        inner = [t.removeprefix("octavo").lstrip(".") for t in names]
        other = [name for name in inner if name in known and name]
        if names and not other:
            found.append(f"{module}:{node.lineno} imports the package itself")  # type: ignore[attr-defined]
        found += [f"{module} imports {name}" for name in other if not allowed(own, floor(name), module, name)]
    return found


def allowed(own: str | None, other: str | None, module: str, name: str) -> bool:
    if own is None or other is None or (own, other) in STRANGERS:
        return name == own  # a task may name its own package, which holds nothing
    return own == other or FLOORS.index(other) < FLOORS.index(own)


def top_level_imports(tree: ast.Module) -> set[str]:
    """First parts of what is imported when the module is: all statements outside of functions and not for the type checker."""
    names: set[str] = set()
    nodes: list[ast.AST] = list(tree.body)
    while nodes:
        node = nodes.pop()
        for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not for_types and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            names |= {name.split(".")[0] for name in targets(node, "octavo")}
            nodes += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.ExceptHandler)]
    return names


def test_every_module_has_a_floor() -> None:
    assert modules(), f"no module under {PACKAGE}"
    assert [m for m in modules() if m and floor(m) is None] == []


def test_imports_go_downwards() -> None:
    known = set(modules())
    found = [v for module, path in modules().items() if module for v in violations(module, path, known)]
    assert found == []


@pytest.mark.parametrize("module", NUMBERS)
def test_the_numbers_floor_knows_no_modules(module: str) -> None:
    path = PACKAGE / f"{module}.py"
    if not path.exists():
        pytest.skip(f"{module} is not written yet")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {name for node in ast.walk(tree) for name in targets(node, "octavo")}
    assert {name for name in imported if name == "torch.nn" or name.startswith("torch.nn.")} == set()
    attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {a for a in attributes if a.startswith(("torch.nn", "nn."))} == set()


def test_optional_packages_are_imported_where_they_are_used() -> None:
    trees = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in modules().items()}
    found = {m: top_level_imports(t) & OPTIONAL for m, t in trees.items()}
    assert {m: names for m, names in found.items() if names and m not in BEHIND} == {}
    assert all(names <= ONNX for m, names in found.items() if m in BEHIND)


def test_nobody_imports_what_needs_onnx_before_it_is_asked_for() -> None:
    for module, path in modules().items():
        nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if module not in BEHIND]
        names = {name.removeprefix("octavo.") for node in nodes for name in targets(node, package_of(path))}
        assert names & BEHIND == set(), module


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("codebook", "from octavo.plan import Plan", True),
        ("plan", "from octavo.codebook import PowerOfTwo", False),
        ("codebook", "from . import plan", True),
        ("plan", "def f():\n    from octavo import run", True),
        ("plan", "from octavo import Plan", True),
        ("plan", "import octavo", True),
        ("search.loop", "from octavo.search.journal import Journal", False),
        ("search.loop", "from octavo.incremental import Incremental", True),
        ("tasks.digits", "from octavo.tasks.cifar10 import Cifar10", True),
        ("tasks.digits", "from .cifar10 import Cifar10", True),
        ("tasks.digits", "from ..task import Task", False),
        ("tasks.cifar10", "from octavo.tasks.resnet import resnet", False),
        ("tasks.resnet", "from octavo.tasks.cifar10 import Cifar10", True),
        ("cli", "from octavo import errors", False),
        ("plan", "import torch.nn as nn", False),
    ],
)
def test_the_rules_themselves(module: str, source: str, wrong: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    path = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)
    known = {*FLOORS, "", "search.loop", "search.journal", "tasks.digits", "tasks.cifar10"}
    assert bool(violations(module, path, known)) is wrong


def test_an_unknown_module_has_no_floor() -> None:
    assert floor("planner") is None
    assert floor("tasks.digits") == "tasks"
    assert floor("tasks.resnet") == "tasks.resnet"
