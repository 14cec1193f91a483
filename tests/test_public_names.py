"""The names that users may import; a change of these lists is a change for the changelog."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from types import FunctionType

import pytest

import octavo

PUBLIC = {
    "METHODS", "Apot", "Budget", "BudgetError", "Cost", "ExportError", "FormatError", "Incremental", "Inspection", "OctavoError",
    "Packed", "Plan", "PlanError", "PowerOfTwo", "RecipeError", "SearchResult", "Stage", "Surgery", "TrainingError", "calibrate",
    "compress", "export", "fold_masks", "inspect", "power_of_two", "quantize_activations", "register_layer",
    "remove_quantizers", "search", "Task", "Width", "verify",
}  # fmt: skip
MODULES = sorted(module.name for module in pkgutil.walk_packages(octavo.__path__, "octavo."))


def test_the_public_names() -> None:
    assert set(octavo.__all__) == PUBLIC
    assert len(octavo.__all__) == len(PUBLIC) <= 35
    assert octavo.__all__ == sorted(octavo.__all__, key=lambda name: (not name.isupper(), name))
    assert all(hasattr(octavo, name) for name in PUBLIC)


def test_what_the_package_shows_is_public_or_a_module() -> None:
    shown = {name for name in vars(octavo) if not name.startswith("_")}
    assert shown - PUBLIC <= {module.removeprefix("octavo.").split(".")[0] for module in MODULES}


def test_there_are_modules() -> None:
    assert {
        "octavo.errors",
        "octavo.formats.powers_of_two",
        "octavo.storage.packed",
        "octavo.inq.incremental",
    } <= set(MODULES)


@pytest.mark.parametrize("name", [module for module in MODULES if not module.endswith("__main__")])
def test_every_modules_names_exist_and_are_its_own(name: str) -> None:
    module = importlib.import_module(name)
    if not getattr(module, "__all__", None):
        names = [
            n
            for n, value in vars(module).items()
            if not n.startswith("_") and getattr(value, "__module__", "") == name
        ]
        assert names == [], f"{name} has no __all__"
        return
    assert len(set(module.__all__)) == len(module.__all__)
    missing = [public for public in module.__all__ if not hasattr(module, public)]
    assert missing == []
    made = [getattr(module, public) for public in module.__all__]
    foreign = [m for m in made if isinstance(m, type | FunctionType) and m.__module__ != name]
    assert (
        hasattr(module, "__path__") or foreign == []
    )  # a package may gather the names of its modules


@pytest.mark.parametrize("name", [module for module in MODULES if not module.endswith("__main__")])
def test_public_names_have_a_docstring(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    public = [getattr(module, public) for public in getattr(module, "__all__", [])]
    bare = [
        p.__name__
        for p in public
        if getattr(p, "__module__", None) == name and callable(p) and not p.__doc__
    ]
    assert bare == []


def test_the_version_is_that_of_the_package() -> None:
    assert octavo.__version__ == importlib.import_module("importlib.metadata").version("octavo")


def test_importing_the_package_prints_nothing_and_loads_no_command_line() -> None:
    heavy = {
        "typer",
        "rich",
        "sklearn",
        "torchvision",
        "onnx",
        "onnx_ir",
        "onnxscript",
        "onnxruntime",
    }
    script = f"import sys, octavo; print(sorted({heavy} & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert ast.literal_eval(run.stdout) == []
