"""The world of one forward pass: everything that it reads and writes beside its inputs and the
weights. Passes that take turns on one model each keep their own.
"""

from collections.abc import Collection

from torch import nn

from octavo.network.module_state import ModuleState, Slot
from octavo.network.random_state import RandomState

__all__ = ["World"]


class World:
    """The random state, and the attributes and buffers of modules, of one pass or of several in
    turn. They are in place only in ``with`` blocks, one at a time, while a pass moves.

    Args:
        model: the model; its attributes and buffers of now are what the world begins with.
        slots: the attributes and buffers that a pass of the model may write.

    """

    def __init__(self, model: nn.Module, slots: Collection[Slot]) -> None:
        self._modules = ModuleState(model, slots)
        self._random = RandomState(model)
        self._values = self._modules.copied(self._modules.read())
        self._random_values = self._random.read()
        self._values_outside = self._values  # while the world is entered: what was there before
        self._random_outside = self._random_values

    def begin(self, number: int) -> None:
        """Let the next pass draw the random numbers of the batch of this number."""
        with self._random.kept():
            self._random.seed(number)
            self._random_values = self._random.read()

    def __enter__(self) -> None:
        """Put everything in place."""
        self._values_outside = self._modules.read()
        self._random_outside = self._random.read()
        self._modules.put(self._values)
        self._random.put(self._random_values)

    def __exit__(self, *_: object) -> None:
        """Keep everything as it is now, and put back what was there before."""
        self._values = self._modules.read()
        self._random_values = self._random.read()
        self._modules.put(self._values_outside)
        self._random.put(self._random_outside)
