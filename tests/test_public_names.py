"""The names that users may import; a change of this list is a change for the changelog."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import octavo

PUBLIC = {
    "METHODS", "Apot", "Budget", "BudgetError", "Cost", "ExportError", "FormatError", "Incremental",
    "Inspection", "OctavoError", "Packed", "Plan", "PlanError", "PowerOfTwo", "RecipeError",
    "SearchResult", "Stage", "Surgery", "Task", "TrainingError", "Width", "calibrate", "compress",
    "export", "fold_masks", "inspect", "power_of_two", "quantize_activations", "register_layer",
    "remove_quantizers", "search", "verify",
}  # fmt: skip
FUNCTIONS = sorted(name for name in PUBLIC if isinstance(getattr(octavo, name), FunctionType))
MODULES = sorted(module.name for module in pkgutil.walk_packages(octavo.__path__, "octavo."))

# Packages that take long to import and that most users of a command never need.
SLOW = {
    "cmaes",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "optuna",
    "pandas",
    "rich",
    "scipy.optimize",
    "sklearn",
    "sympy",
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.tensor",
    "torchvision",
    "transformers",
    "typer",
}


def test_the_public_names() -> None:
    assert set(octavo.__all__) == PUBLIC
    assert len(octavo.__all__) == len(PUBLIC) <= 35
    assert octavo.__all__ == sorted(octavo.__all__, key=lambda name: (not name.isupper(), name))
    assert set(dir(octavo)) >= PUBLIC


def test_what_the_package_shows_is_public_or_a_module() -> None:
    shown = {name for name in dir(octavo) if not name.startswith("_")} - {"TYPE_CHECKING"}
    assert shown - PUBLIC <= {module.removeprefix("octavo.").split(".")[0] for module in MODULES}
    with pytest.raises(AttributeError, match=r"^module 'octavo' has no attribute 'serach'$"):
        _ = octavo.serach  # type: ignore[attr-defined]


def test_type_checkers_see_each_name_where_it_is_loaded_from() -> None:
    """The imports for type checkers and the table for the interpreter say the same."""
    source = Path(octavo.__file__).read_text(encoding="utf-8")
    block = next(node for node in ast.parse(source).body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: node.module for node in imports for alias in node.names}
    assert seen == octavo._HOMES  # type: ignore[attr-defined]


def test_no_public_function_has_the_name_of_a_module() -> None:
    assert {"search", "export", "inspect", "verify"} <= set(FUNCTIONS)
    last_parts = {name.rpartition(".")[2] for name in MODULES}
    assert last_parts.isdisjoint(FUNCTIONS)
    for module in MODULES:
        if not module.endswith("__main__"):
            importlib.import_module(module)
    for name in FUNCTIONS:  # after every module was imported, none has taken its place
        assert isinstance(getattr(octavo, name), FunctionType), name


def own_names(module: ModuleType) -> dict[str, object]:
    """The functions and classes that are defined in a module and that have no underscore."""
    names = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return {
        name: value
        for name, value in names.items()
        if isinstance(value, type | FunctionType) and value.__module__ == module.__name__
    }


def test_the_names_of_every_module_exist_and_are_its_own() -> None:
    for name in MODULES:
        module = importlib.import_module(name) if not name.endswith("__main__") else octavo
        public = getattr(module, "__all__", [])
        assert len(set(public)) == len(public), name
        assert [missing for missing in public if not hasattr(module, missing)] == [], name
        if hasattr(module, "__path__") or module is octavo:
            continue  # a package may gather the names of its modules
        values = [getattr(module, each) for each in public]
        foreign = [v for v in values if isinstance(v, type | FunctionType) and v.__module__ != name]
        assert foreign == [], name
        assert public or not own_names(module), f"{name} has no __all__"


def test_every_module_and_public_name_has_a_docstring() -> None:
    for name in MODULES:
        module = importlib.import_module(name) if not name.endswith("__main__") else octavo
        assert module.__doc__, name
        values = own_names(module)
        bare = [n for n in getattr(module, "__all__", ()) if n in values and not values[n].__doc__]
        assert bare == [], name


def test_the_version_is_that_of_the_package() -> None:
    assert octavo.__version__ == importlib.import_module("importlib.metadata").version("octavo")


def modules_after(script: str) -> set[str]:
    """The modules that a new interpreter has loaded after a script that prints nothing wrong."""
    script += "\nimport sys; print('\\n'.join(['modules', *sys.modules]))"
    words = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.partition("\nmodules\n")[2].split() or done.stdout.split())


def test_importing_the_package_prints_nothing_and_loads_nothing_slow() -> None:
    loaded = modules_after("import octavo")
    assert "octavo.errors" in loaded
    assert loaded & (SLOW | {"torch", "numpy", "pydantic"}) == set()


def test_all_public_names_load_nothing_slow() -> None:
    loaded = modules_after("from octavo import *")
    assert "octavo.dnq.searching" in loaded
    assert loaded & SLOW == set()


def test_a_run_loads_nothing_slow_before_it_is_asked_for() -> None:
    """Exporting is part of a run, and needs onnx only if the recipe names a form."""
    loaded = modules_after("import octavo.runs.run, octavo.compression, octavo.deploy.forms")
    assert "octavo.deploy.exporting" in loaded
    assert loaded & SLOW == set()


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["search", "--help"]])
def test_the_help_of_the_command_line_loads_no_commands(words: list[str]) -> None:
    loaded = modules_after(
        f"import sys, octavo.cli; sys.argv = ['octavo', *{words}]\n"
        "try: octavo.cli.main()\nexcept SystemExit as stop: assert not stop.code"
    )
    rooms = {name.split(".")[1] for name in loaded if name.startswith("octavo.")}
    light = {"cli", "_deprecated", "_interruption", "_io", "dnq", "errors", "progress"}
    assert rooms == light
    assert {name for name in loaded if name.startswith("octavo.dnq.")} == {"octavo.dnq.settings"}
    assert loaded & (SLOW - {"rich", "typer"} | {"torch", "numpy"}) == set()
