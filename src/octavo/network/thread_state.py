"""The settings that torch keeps for each thread and that a forward pass depends on."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch

__all__ = ["ThreadState", "cpu_by_default", "with_gradients", "without_autocast"]

DEVICE_TYPES = ("cpu", "cuda", "hpu", "ipu", "maia", "mps", "mtia", "xla", "xpu")


def _autocast_types() -> list[str]:
    """Return the device types that this build of torch has autocast for."""
    types = dict.fromkeys([*DEVICE_TYPES, torch._C._get_privateuse1_backend_name()])
    return [name for name in types if torch.amp.autocast_mode.is_autocast_available(name)]


@dataclass(frozen=True)
class _Autocast:
    """The autocast settings of one device type."""

    device_type: str
    enabled: bool
    dtype: torch.dtype

    @classmethod
    def of(cls, device_type: str) -> Self:
        enabled = torch.is_autocast_enabled(device_type)
        return cls(device_type, enabled, torch.get_autocast_dtype(device_type))

    def set(self) -> None:
        torch.set_autocast_enabled(self.device_type, self.enabled)
        torch.set_autocast_dtype(self.device_type, self.dtype)


@dataclass(frozen=True)
class ThreadState:
    """The settings of a thread.

    Attributes:
        inference: True if inference mode is on.
        device: the default device for new tensors.
        autocast: the autocast settings of every device type.
        autocast_cache: True if autocast keeps the weights that it has cast.

    """

    inference: bool
    device: torch.device
    autocast: tuple[_Autocast, ...]
    autocast_cache: bool

    @classmethod
    def current(cls) -> Self:
        """Return the settings of the thread that calls this."""
        return cls(
            torch.is_inference_mode_enabled(),
            torch.get_default_device(),
            tuple(map(_Autocast.of, _autocast_types())),
            torch.is_autocast_cache_enabled(),
        )

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Give these settings to the thread that calls this, for a while."""
        before = type(self).current()
        # A default device is a mode that every call passes through: none is needed if it is the
        # same.
        device = contextlib.nullcontext() if self.device == before.device else self.device
        with torch.inference_mode(self.inference), device:
            self._set_autocast()
            try:
                yield
            finally:
                before._set_autocast()

    def _set_autocast(self) -> None:
        for autocast in self.autocast:
            autocast.set()
        torch.set_autocast_cache_enabled(self.autocast_cache)


def cpu_by_default() -> contextlib.AbstractContextManager[object]:
    """Make new tensors on the CPU for a while, also where the caller has another default device."""
    cpu = torch.device("cpu")
    return contextlib.nullcontext() if torch.get_default_device() == cpu else cpu


@contextlib.contextmanager
def with_gradients() -> Iterator[None]:
    """Compute gradients for a while, also where the caller has them off, or inference mode on."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """Compute in the types of the tensors for a while, also where the caller has autocast on."""
    before = [_Autocast.of(device_type) for device_type in _autocast_types()]
    for autocast in before:
        torch.set_autocast_enabled(autocast.device_type, False)
    try:
        yield
    finally:
        for autocast in before:
            autocast.set()
