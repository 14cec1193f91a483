"""A copy of a model that is checked to be one: it computes the same, and from its own weights."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from octavo.errors import PlanError
from octavo.network.calls import call_alone, undisturbed
from octavo.network.conduct import close
from octavo.network.copies import copied
from octavo.network.forward import Inputs, device_of, naming_errors, observing, on_device
from octavo.network.nested import leaves

__all__ = ["check_faithful", "faithful_copy"]


def faithful_copy(model: nn.Module, batch: Inputs | None = None) -> nn.Module:
    """Return a copy of a model, after a check: see :func:`check_faithful`.

    Args:
        model: the model; it stays as it is.
        batch: inputs of one call; None if there are none, which leaves the check out.

    Raises:
        PlanError: the model has no copy, or its copy is not faithful.

    """
    twin = copied(model)
    if batch is not None:
        check_faithful(model, twin, on_device(batch, device_of(model)))
    return twin


def check_faithful(model: nn.Module, twin: nn.Module, batch: Inputs) -> None:
    """Check that a copy of a model computes what the model does, without a look at its weights.

    A forward that was patched on an instance, or a function that the model keeps, may hold the
    original's modules: a copy of it calls these, whatever happens to the copy's weights.

    Raises:
        PlanError: it does not; the message says what was found.

    """
    theirs = _Theirs(_names(model, twin))
    with observing(model), observing(twin), naming_errors(twin, model):
        with undisturbed(model):
            expected = call_alone(model, batch)
        _put_back(model, twin)
        with undisturbed(twin), theirs:
            computed = call_alone(twin, batch)
        if theirs.read is not None:
            raise PlanError(
                f"{theirs.read}: octavo works on a copy of the model, and the copy of "
                f"{type(model).__name__} reads this tensor of the original{_patched(model)}. "
                "Define forward in a class instead of a function that holds the module"
            )
        if not close(expected, computed) and _repeats(twin, batch, computed):
            raise PlanError(
                f"{type(model).__name__}: octavo works on a copy of the model, and its copy "
                f"returns other outputs for the first batch{_patched(model)}. Make "
                "copy.deepcopy(model) compute what the model does"
            )


@torch.no_grad()
def _put_back(model: nn.Module, twin: nn.Module) -> None:
    """Undo what a call did to the parameters of a model, such as the ``max_norm`` of embeddings."""
    own = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        if name in own and not torch.equal(parameter, own[name]):
            parameter.copy_(own[name])


class _Theirs(TorchFunctionMode):
    """A mode that notes the first tensor of the original that a function of torch reads.

    Attributes:
        read: the tensor's name; None as long as there is none.

    """

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self._names = names
        self.read: str | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for leaf in leaves((args, kwargs or {})):
            if self.read is None and isinstance(leaf, Tensor):
                self.read = self._names.get(id(leaf))
        return func(*args, **(kwargs or {}))


def _names(model: nn.Module, twin: nn.Module) -> dict[int, str]:
    """Return the names of the tensors that only the original has, by their ids."""
    own = {id(tensor) for _, tensor in _tensors(twin)}
    return {id(tensor): name for name, tensor in _tensors(model) if id(tensor) not in own}


def _tensors(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _patched(model: nn.Module) -> str:
    """Return a part of a message about the modules whose forward is an attribute of their own."""
    names = [
        name or type(model).__name__
        for name, module in model.named_modules()
        if "forward" in vars(module)
    ]
    return f": forward was patched on the instance {', '.join(names)}" if names else ""


def _repeats(model: nn.Module, batch: Inputs, outputs: Any) -> bool:
    with undisturbed(model):
        return close(call_alone(model, batch), outputs)
