"""torch's random state: that of the CPU and those of the devices of a model."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["RandomState"]


class RandomState:
    """The random state that the calls of a model draw from.

    Args:
        model: its parameters and buffers say which devices count beside the CPU.

    """

    def __init__(self, model: nn.Module) -> None:
        devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
        self._generators = [torch.default_generator, *map(_generator, devices)]
        self._generators = [each for each in self._generators if each is not None]

    def read(self) -> list[Tensor]:
        """Return the state of now."""
        return [generator.get_state() for generator in self._generators]

    def put(self, states: list[Tensor]) -> None:
        """Put back a state that ``read`` returned."""
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)

    def seed(self, seed: int) -> None:
        """Let the next call draw what every call after the same seed draws."""
        for generator in self._generators:
            generator.manual_seed(seed)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Put the state of now back after a while."""
        before = self.read()
        try:
            yield
        finally:
            self.put(before)


def _generator(device: torch.device) -> Any:
    """Return the generator of a device other than the CPU; None if torch shows none."""
    if device.type in ("cpu", "meta"):
        return None
    generators = getattr(torch.get_device_module(device), "default_generators", ())
    index = device.index or 0
    return generators[index] if index < len(generators) else None
