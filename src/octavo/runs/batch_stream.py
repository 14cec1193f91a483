"""The batches of retraining, from as many epochs as they take; the stream can be saved and resumed
in the middle of an epoch.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from octavo.errors import TrainingError
from octavo.network.random_state import RandomState

__all__ = ["BatchStream", "Source"]


class Source(Protocol):
    """An object that gives batches: a task, or the part of one that is a rank's."""

    def train_batches(self) -> Iterable[Any]:
        """Return one epoch of batches."""


class BatchStream:
    """An endless iterator over the batches of a task, epoch after epoch.

    A task draws its shuffling and augmentation from torch's random state. So an epoch is resumed by
    drawing it again, from the random state in which it began. A task may draw a batch only when it
    is asked for it. The model may have drawn numbers in the meantime, as dropout does: where it
    has, the random state ahead of the batch is kept too.

    Args:
        task: gives the batches.
        random: the random state that the task draws from.

    """

    def __init__(self, task: Source, random: RandomState) -> None:
        self._task = task
        self._random = random
        self._begun: list[Tensor] = []  # the random state in which the epoch began
        self._epoch: Iterator[Any] | None = None
        self._taken = 0  # batches of the epoch
        self._before: dict[int, list[Tensor]] = {}  # states ahead of batches, where they jumped
        self._after: list[Tensor] = []  # the state after the last batch

    def __next__(self) -> Any:
        """Return the next batch.

        Raises:
            TrainingError: an epoch is empty.

        """
        if self._epoch is None:
            self._begin(self._random.read())
        batch = self._drawn()
        if batch is None and self._taken:
            self._begin(self._random.read())
            batch = self._drawn()
        if batch is None:
            raise TrainingError(
                "the task's train_batches() gave nothing when asked again: "
                "it must give a new epoch every time"
            )
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on after the last batch."""
        return {"begun": self._begun, "taken": self._taken, "before": self._before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where ``state`` was taken, at the cost of drawing the epoch again up to there;
        the random state is left as that leaves it.

        Raises:
            TrainingError: the epoch has become shorter.

        """
        self._random.put(state["begun"])
        self._begin(state["begun"])
        for number in range(state["taken"]):
            if number in state["before"]:
                self._random.put(state["before"][number])
            if self._drawn() is None:
                raise TrainingError(
                    f"the task's train_batches() gave {number} batches, where the run had read "
                    f"{state['taken']} of the same epoch: its data have changed since"
                )

    def _begin(self, begun: list[Tensor]) -> None:
        """Begin an epoch, in a random state that is that of now."""
        self._begun = begun
        self._epoch = iter(self._task.train_batches())
        self._taken = 0
        self._before = {}
        self._after = self._random.read()

    def _drawn(self) -> Any:
        """Return the next batch of the epoch, or None at its end."""
        if self._epoch is None:
            return None
        before = self._random.read()
        if not all(map(torch.equal, before, self._after)):
            self._before[self._taken] = before
        batch = next(self._epoch, None)
        if batch is not None:
            self._taken += 1
        self._after = self._random.read()
        return batch
