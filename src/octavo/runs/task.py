"""The boundary with a user's model and data: the protocol of a task, and loading one by name."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn

from octavo.errors import OctavoError, RecipeError, nearest
from octavo.network.forward import Inputs
from octavo.progress import Event, Progress, silent
from octavo.runs.user_code import told

__all__ = [
    "Batch",
    "Task",
    "as_task",
    "load_callable",
    "load_task",
    "make",
    "model_of",
]

Batch: TypeAlias = tuple[Inputs, Any]

BUILT_IN = {
    "digits": "octavo.runs.tasks.digits:Digits",
    "cifar10": "octavo.runs.tasks.cifar10:Cifar10",
    "image_folder": "octavo.runs.tasks.image_folder:ImageFolder",
    "causal_lm": "octavo.runs.tasks.causal_lm:CausalLm",
    "text_classification": "octavo.runs.tasks.text_classification:TextClassification",
}
METHODS = ("model", "calibration", "train_batches", "loss", "score")


class Task(Protocol):
    """A task is a network, its data and its metric: the boundary between octavo and user code.

    Any class with these five methods is a task; it need not inherit from this one. The command line
    and recipes name it as ``package.module:Class`` or ``path/to/file.py:Class``, and it is the only
    user code that they load. The options of a recipe are the keyword arguments of the class.

    Inputs are a tensor, or a tuple or dict of arguments of the model. A batch is a pair
    ``(inputs, targets)``.
    """

    def model(self) -> nn.Module:
        """Return the trained full-precision network: a new copy of the same one at every call."""

    def calibration(self) -> Iterable[Inputs]:
        """Return batches of unlabelled inputs, the same at every call."""

    def train_batches(self) -> Iterable[Batch]:
        """Return one epoch of batches; it is called anew for every epoch.

        The epoch has a ``len()`` if that is known. Shuffling and augmentation draw from torch's
        global generator, so that a seeded run can be repeated and resumed.
        """

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the supervised loss of one batch, a scalar to call ``backward()`` on."""

    def score(self, model: nn.Module) -> float:
        """Return the metric of the model, such as its accuracy in per cent; higher is better.

        The model is left as it was. Its inputs go to the device that it is on.
        """


def load_task(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """Make the task called ``name``, with ``options`` as keyword arguments.

    Args:
        name: a ready-made task (``digits``, ``cifar10``, ``image_folder``, ``causal_lm``,
            ``text_classification``), ``package.module:Class`` or ``path/to/file.py:Class``. The
            working directory, or the file's folder, is appended to ``sys.path``, so that
            neighbours can be imported.
        options: keyword arguments of the class.

    Raises:
        RecipeError: there is no such task, or it does not take these options, or it lacks a method.
        OctavoError: an error that the task itself raises, such as missing data.

    """
    return as_task(make(name, options or {}), name)


def make(name: str, options: Mapping[str, Any]) -> object:
    """Return what the class or function called ``name`` makes of ``options``: see `load_task`."""
    maker = load_callable(*_split(name), f"task {name!r}")
    _check_options(name, maker, options)
    try:
        return maker(**options)
    except OctavoError:
        raise
    except Exception as error:
        raise RecipeError(f"task {name!r}: making it failed: {told(error)}") from error


def as_task(task: object, name: str) -> Task:
    """Return an object as a task, or raise RecipeError if it lacks a method of one."""
    missing = [method for method in METHODS if not callable(getattr(task, method, None))]
    if missing:
        raise RecipeError(
            f"task {name!r}: expected the methods {', '.join(METHODS)}; "
            f"{', '.join(missing)} missing"
        )
    return cast("Task", task)


def model_of(
    task: Task, name: str, progress: Progress = silent, device: torch.device | None = None
) -> nn.Module:
    """Return a new copy of a task's network.

    Args:
        task: the task.
        name: its name, for errors.
        progress: handed on to a ``model()`` that takes an argument of this name: one that trains
            its network can say how far it is.
        device: the device that the network is moved to; None leaves it where the task puts it.

    Raises:
        RecipeError: the task failed to make it.
        OctavoError: an error that the task itself raises, such as missing data.

    """
    takes = "progress" in inspect.signature(task.model).parameters
    progress(Event("model", message=f"making the network of the task {name}"))
    try:
        model = cast("Any", task).model(progress=progress) if takes else task.model()
        return model if device is None else model.to(device)
    except OctavoError:
        raise
    except Exception as error:
        raise RecipeError(f"task {name!r}: its model() failed: {told(error)}") from error


def load_callable(source: str, attribute: str, what: str) -> Callable[..., object]:
    """Import a class or function of a module, or of a file ``path/to/file.py``.

    Args:
        source: the module or the file; search paths are as for `load_task`.
        attribute: the name of the class or function.
        what: the name of the thing in errors, such as ``task 'mine.py:Mine'``.

    Raises:
        RecipeError: importing failed, or there is no such class or function.

    """
    try:
        module = _file_module(source, what) if source.endswith(".py") else _named_module(source)
    except OctavoError:
        raise
    except Exception as error:
        raise RecipeError(f"{what}: importing {source} failed: {told(error)}") from error
    maker: object = getattr(module, attribute, None)
    if callable(maker):
        return maker
    near = nearest(
        attribute, [key for key, value in vars(module).items() if callable(value)], only_alike=True
    )
    raise RecipeError(f"{what}: {source} has no class or function {attribute!r}{near}")


def _split(name: str) -> tuple[str, str]:
    """Split a name into the module or file before the colon, and the class after it."""
    source, colon, attribute = BUILT_IN.get(name, name).rpartition(":")
    if colon and source and attribute:
        return source, attribute
    raise RecipeError(
        f"task: expected one of {', '.join(BUILT_IN)}, package.module:Class or "
        f"path/to/file.py:Class, got {name!r}{nearest(name, BUILT_IN, only_alike=True)}"
    )


def _named_module(source: str) -> ModuleType:
    _append_path(Path.cwd())
    return importlib.import_module(source)


def _file_module(source: str, what: str) -> ModuleType:
    path = Path(source).expanduser().resolve()
    if not path.is_file():
        raise RecipeError(f"{what}: there is no file {source}")
    # Registered under a name of its own: pickle and dataclasses look a class's module up there.
    spec = importlib.util.spec_from_file_location(f"octavo_task_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"{what}: {source} cannot be imported")
    _append_path(path.parent)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


def _append_path(folder: Path) -> None:
    # At the end, so that nothing that is installed can be shadowed.
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _check_options(name: str, maker: Callable[..., object], options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(maker).parameters
    named = {
        key: p
        for key, p in parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in options:
        if key not in named and not takes_any:
            known = f"the options {', '.join(named)}" if named else "no options"
            raise RecipeError(
                f"task {name!r}: expected {known}, got {key!r}"
                f"{nearest(str(key), named, only_alike=True)}"
            )
    missing = [key for key, p in named.items() if p.default is p.empty and key not in options]
    if missing:
        raise RecipeError(
            f"task {name!r}: expected a value for each of the options {', '.join(missing)}; "
            "got none"
        )
