"""Calls of a model that leave nothing behind: neither in the model nor in the inputs nor in torch's
random state.
"""

import contextlib
import threading
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from octavo.network.copies import fresh
from octavo.network.forward import (
    Inputs,
    batches_of,
    call,
    check_batches,
    device_of,
    naming_errors,
    observing,
    on_device,
)
from octavo.network.module_state import Slot, isolated
from octavo.network.random_state import RandomState

__all__ = ["call_alone", "feed", "few_rows", "undisturbed"]


# Calls of several threads at a time would share the process's random state.
_alone = threading.RLock()


@contextlib.contextmanager
def undisturbed(model: nn.Module, slots: Collection[Slot] | None = None) -> Iterator[None]:
    """Put back what calls of a model change, after a while: attributes, buffers and torch's random
    state. One thread at a time may do this.

    Args:
        model: the model.
        slots: the attributes and buffers that it may write; None: any.

    """
    with _alone, isolated(model, slots), RandomState(model).kept():
        yield


def call_alone(model: nn.Module, batch: Inputs, number: int = 0) -> Any:
    """Call the model with a copy of a batch, and with the random numbers of the batch of this
    number, and return its outputs; call it within :func:`undisturbed`.
    """
    RandomState(model).seed(number)
    return call(model, fresh(batch))


def few_rows(model: nn.Module, batch: Inputs, count: int) -> Inputs:
    """Return the first rows of a batch that is a tensor if the model takes so few, else the batch.

    Dimension 0 may be the channels of a single image, or time, of which a kernel needs some steps.
    """
    if not isinstance(batch, Tensor) or not batch.dim():
        return batch
    try:
        with observing(model), undisturbed(model):
            call_alone(model, batch[:count])
    except Exception:  # noqa: BLE001  # whatever a model raises that does not take them
        return batch
    return batch[:count]


def feed(model: nn.Module, inputs: Iterable[Inputs]) -> None:
    """Call the model with every batch of calibration inputs, for hooks that observe the calls;
    afterwards the model and the inputs are as they were before.

    Raises:
        PlanError: there are no inputs, or the model does not take them.

    """
    count = 0
    with observing(model), naming_errors(model), undisturbed(model):
        for count, batch in enumerate(batches_of(inputs), 1):
            call_alone(model, on_device(batch, device_of(model)), count - 1)
    check_batches(count)
