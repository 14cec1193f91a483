"""Call a model: with inputs of any form, in evaluation mode, on its device, and with errors that
name the layer.
"""

import contextlib
import itertools
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from octavo.errors import OctavoError, PlanError, brief
from octavo.network.nested import mapped
from octavo.network.process_wide import ProcessWide

__all__ = [
    "Inputs",
    "arguments",
    "batches_of",
    "call",
    "check_batches",
    "device_of",
    "evaluating",
    "first_argument",
    "first_keyword",
    "hooked",
    "in_mode",
    "naming_errors",
    "observing",
    "on_device",
    "where_raised",
]

Inputs: TypeAlias = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments that inputs stand for.

    A tensor ``x`` is the only argument, a tuple or list becomes ``*x`` and a mapping ``**x``. A
    packed sequence, which is a tuple to Python, is one argument.
    """
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    several = isinstance(inputs, tuple | list) and not isinstance(inputs, PackedSequence)
    return (tuple(inputs) if several else (inputs,)), {}


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the argument of a layer's call that the layer multiplies with its weight."""
    return args[0] if args else kwargs[first_keyword(kwargs)]


def first_keyword(kwargs: dict[str, Any]) -> str:
    """Return the name of that argument in a call that has keyword arguments only."""
    return "input" if "input" in kwargs else next(iter(kwargs))


def batches_of(inputs: Iterable[Inputs]) -> Iterable[Inputs]:
    """Return calibration inputs, after a check that they are batches and not a single tensor.

    Raises:
        PlanError: ``inputs`` is a tensor or a mapping, whose rows or keys Python would take for
            batches, or nothing that can be iterated over.

    """
    if isinstance(inputs, Tensor):
        raise PlanError(
            f"inputs: expected several batches, got one tensor of shape {tuple(inputs.shape)}; "
            "write [inputs] if it is one batch, or inputs.split(32) for batches of 32"
        )
    if isinstance(inputs, Mapping):
        raise PlanError(
            "inputs: expected several batches, got one mapping with the keys "
            f"{', '.join(map(str, inputs))}; write [inputs] if it is one batch"
        )
    if hasattr(inputs, "__array__"):
        raise PlanError(
            f"inputs: expected several batches of tensors, got one {type(inputs).__name__}; "
            "write [torch.as_tensor(inputs)] if it is one batch"
        )
    if not isinstance(inputs, Iterable):
        raise PlanError(
            f"inputs: expected an iterable of batches, got {type(inputs).__name__}; "
            "write [inputs] if it is one batch"
        )
    return inputs


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Call the model with inputs, see :func:`arguments`, and return its outputs."""
    args, kwargs = arguments(inputs)
    return model(*args, **kwargs)


@contextlib.contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put the model into training or evaluation mode for a while; afterwards each of its modules
    has the mode that it had before.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def evaluating(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Put the model into evaluation mode for a while: see :func:`in_mode`."""
    return in_mode(model, training=False)


@contextlib.contextmanager
def _shown_to_hooks() -> Iterator[None]:
    """Let hooks see every module for a while: torch's fused path for transformers is off, and
    compiled models run as they were written.
    """
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _not_compiled():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _not_compiled() -> contextlib.AbstractContextManager[None]:
    """Return a context in which compiled models run as they were written.

    Nothing can be compiled before ``torch._dynamo`` is imported, which takes seconds.
    """
    if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):  # torch >= 2.6
        eager: contextlib.AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
        return eager
    return contextlib.nullcontext()


_observable = ProcessWide(_shown_to_hooks)


@contextlib.contextmanager
def observing(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode without gradients, for a while in which hooks see every
    module and every call reads its weights.

    torch's fused path for transformers calls no hooks, a compiled model calls those only that it
    had when it was compiled, and autocast keeps the weights that it has cast although octavo
    changes them between two calls. All three are off for this while.
    """
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with _observable, evaluating(model), torch.no_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)


@contextlib.contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove hooks, which were just registered, at the end of a ``with`` block."""
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter or buffer, or the CPU if it has none."""
    tensor = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def on_device(value: Any, device: torch.device) -> Any:
    """Return ``value`` with every tensor in its tuples, lists and mappings on ``device``."""
    ordered = device.type != "cpu"  # the CPU would read a copy that is not complete

    def moved(leaf: Any) -> Any:
        if isinstance(leaf, PackedSequence):
            return leaf.to(device)  # type: ignore[arg-type]
        return leaf.to(device, non_blocking=ordered) if isinstance(leaf, Tensor) else leaf

    return mapped(value, moved)


def where_raised(model: nn.Module, error: BaseException) -> str | None:
    """Return the name of the innermost module of ``model`` in whose call ``error`` was raised; None
    if it was not raised in any.
    """
    names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
    innermost: str | None = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        innermost = names.get(id(frame.f_locals.get("self")), innermost)
    return innermost


@contextlib.contextmanager
def naming_errors(*models: nn.Module) -> Iterator[None]:
    """Turn an error that is raised in a call of one of the models into a PlanError that names the
    module; an error from elsewhere stays as it is.
    """
    try:
        yield
    except OctavoError:
        raise
    except Exception as error:
        places = [place for model in models if (place := where_raised(model, error)) is not None]
        if not places:  # the inputs are not at fault
            raise
        place = places[0] or type(models[0]).__name__
        message = f"{place}: the model does not take these calibration inputs: {brief(error)}"
        if _argument_count(error) == 2:  # the model may take two arguments, and yet no labels
            message += "; if they are pairs (x, y), write [x for x, y in inputs]"
        raise PlanError(message) from error


def _argument_count(error: BaseException) -> int:
    """The number of positional arguments of the call of a model in which ``error`` was raised."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is call.__code__:
            return len(frame.f_locals.get("args", ()))
    return 0


def check_batches(count: int) -> None:
    """Raise PlanError unless there is at least one batch of calibration inputs."""
    if not count:
        raise PlanError("inputs: expected at least one batch of calibration inputs, got none")
