"""How a model is called: with which inputs, in which mode, on which device."""

import contextlib
import itertools
import traceback
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from octavo.errors import OctavoError, PlanError, brief
from octavo.network.nested import mapped

__all__ = [
    "Inputs",
    "arguments",
    "call",
    "check_given",
    "device_of",
    "evaluating",
    "feed",
    "hooked",
    "in_mode",
    "naming_errors",
    "observing",
    "on_device",
    "where_raised",
]

Inputs: TypeAlias = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments: ``x`` alone for a tensor, ``*x`` for a tuple or list,
    ``**x`` for a dict.

    A packed sequence, which is a tuple to Python, is one argument.
    """
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    several = isinstance(inputs, tuple | list) and not isinstance(inputs, PackedSequence)
    return (tuple(inputs) if several else (inputs,)), {}


def call(model: nn.Module, inputs: Inputs) -> Any:
    """The model's outputs: see :func:`arguments`."""
    args, kwargs = arguments(inputs)
    return model(*args, **kwargs)


@contextlib.contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put the model into training or evaluation mode for a while; afterwards each of its modules is
    in the mode it came in.
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
def observing(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, every module really called, and every weight really read.

    torch's fused path for transformers calls no hooks, and autocast keeps the weights that it has
    cast, which octavo changes between one call of a layer and the next. Both are off for a while.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    cached = torch.is_autocast_cache_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch.set_autocast_cache_enabled(False)
    try:
        with evaluating(model), torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        torch.set_autocast_cache_enabled(cached)


@contextlib.contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Take hooks, which were just registered, off again in the end."""
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer lives; the CPU for a model without any."""
    tensor = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def on_device(value: Any, device: torch.device) -> Any:
    """``value`` with every tensor inside its tuples, lists and dicts on ``device``."""

    def moved(leaf: Any) -> Any:
        if isinstance(leaf, PackedSequence):
            return leaf.to(device)  # type: ignore[arg-type]  # torch's stub is narrower than its method
        return leaf.to(device, non_blocking=True) if isinstance(leaf, Tensor) else leaf

    return mapped(value, moved)


def where_raised(model: nn.Module, error: BaseException) -> str | None:
    """The name of the innermost module of ``model`` in whose call ``error`` was raised; None where
    it was in no such call.
    """
    names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
    found: str | None = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        found = names.get(id(frame.f_locals.get("self")), found)
    return found


@contextlib.contextmanager
def naming_errors(*models: nn.Module) -> Iterator[None]:
    """Say at which layer the calibration inputs went wrong."""
    try:
        yield
    except OctavoError:
        raise
    except Exception as error:
        places = [place for model in models if (place := where_raised(model, error)) is not None]
        if not places:  # not the inputs' fault
            raise
        place = places[0] or type(models[0]).__name__
        raise PlanError(
            f"{place}: the model does not take these calibration inputs: {brief(error)}"
        ) from error


def feed(model: nn.Module, inputs: Iterable[Inputs]) -> None:
    """Call the model with every batch of calibration inputs, for what hooks make of it.

    Raises:
        PlanError: there are none, or the model does not take them.

    """
    given = False
    with observing(model), naming_errors(model):
        for batch in inputs:
            given = True
            call(model, on_device(batch, device_of(model)))
    check_given(given=given)


def check_given(*, given: bool) -> None:
    """Raise PlanError unless there were calibration inputs."""
    if not given:
        raise PlanError("inputs: expected at least one batch of calibration inputs, got none")
