"""The loss of a batch in parts: each rank computes its own, and may do so piece by piece to save
memory. The gradients add up to that of the whole batch.
"""

import contextlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from octavo._seeds import seed_of
from octavo.errors import TrainingError
from octavo.network.digest import digest
from octavo.network.distributed import do_not_broadcast
from octavo.network.random_state import RandomState
from octavo.network.ranks import ALONE, Ranks
from octavo.network.samples import rows_of, sample_count
from octavo.runs.task import Batch, Task

__all__ = ["OwnNumbers", "OwnRows", "PartLosses", "check_same", "cut", "even_out"]

LossOf = Callable[[Batch], Tensor]


def cut(batch: Batch, count: int) -> list[tuple[Batch, float]]:
    """Cut a batch into parts of consecutive rows, as equal as they can be.

    Returns:
        Each part, and its share of the rows.

    Raises:
        TrainingError: not every tensor of the batch has the same rows, or there are too few.

    """
    if count == 1:
        return [(batch, 1.0)]
    rows = sample_count(batch)
    if rows is None or rows < count:
        got = "others" if rows is None else f"{rows}"
        raise TrainingError(
            f"expected batches of tensors with the same number of rows, at least {count}, to cut "
            f"each into {count} parts, for ranks or for retraining.accumulate; got {got}"
        )
    edges = [rows * number // count for number in range(count + 1)]
    pieces = [slice(edges[number], edges[number + 1]) for number in range(count)]
    return [(tuple(rows_of(batch, piece)), (piece.stop - piece.start) / rows) for piece in pieces]


class OwnRows:
    """The batches of a task, of which each rank has some rows.

    Where the epoch has a method ``part``, that gives the rows; else every rank reads all of them
    and leaves out those of the others.

    Args:
        task: gives the batches.
        ranks: the ranks that train together.

    """

    def __init__(self, task: Task, ranks: Ranks) -> None:
        self._task = task
        self._ranks = ranks

    def train_batches(self) -> Iterable[tuple[Batch, float]]:
        """Return an epoch: this rank's part of each batch, and its share of the rows."""
        epoch = self._task.train_batches()
        count = self._ranks.count
        if count == 1:
            return ((batch, 1.0) for batch in epoch)
        if hasattr(epoch, "part"):
            return ((batch, 1 / count) for batch in epoch.part(self._ranks.number, count))
        return (cut(batch, count)[self._ranks.number] for batch in epoch)


class _Loss(nn.Module):
    """A module whose call computes the loss of a batch, so that DDP can wrap it: what the loss
    calls is then the plain model.
    """

    def __init__(self, model: nn.Module, loss_of: LossOf) -> None:
        super().__init__()
        self.model = model
        self._loss_of = loss_of

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss."""
        return self._loss_of(batch)


class PartLosses:
    """The losses of the parts of a batch that are this rank's.

    With several ranks, the gradient of the last part is averaged over the ranks by
    ``DistributedDataParallel`` as it is computed.

    Args:
        model: the model that the loss is a function of.
        loss_of: computes the loss of a batch, a mean over its rows.
        accumulate: the number of parts of this rank's rows.
        ranks: the ranks that train the model together.

    """

    def __init__(
        self, model: nn.Module, loss_of: LossOf, accumulate: int = 1, ranks: Ranks = ALONE
    ) -> None:
        self._accumulate = accumulate
        self._ranks = ranks
        self._wrapped: DistributedDataParallel | None = None
        self._loss_of = loss_of
        if ranks.count > 1:
            loss = _Loss(model, loss_of)
            do_not_broadcast(loss, loss.modules())  # `even_out` makes buffers alike in the end
            self._wrapped = DistributedDataParallel(loss, find_unused_parameters=True)
            self._loss_of = self._wrapped

    def __call__(self, batch: Batch, share: float = 1.0) -> Iterator[Tensor]:
        """Yield a loss for each part; the caller makes its gradient before it asks for the next.

        The mean of their sums over the ranks is the loss of the whole batch.

        Args:
            batch: this rank's rows of a batch.
            share: their share of its rows.

        """
        weight = share * self._ranks.count
        for number, (part, of_these) in enumerate(cut(batch, self._accumulate), 1):
            last = number == self._accumulate
            with contextlib.nullcontext() if last else self._silent():
                loss = self._loss_of(part)
                yield loss if weight * of_these == 1 else loss * (weight * of_these)

    def _silent(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which gradients are not averaged yet."""
        return contextlib.nullcontext() if self._wrapped is None else self._wrapped.no_sync()


class OwnNumbers:
    """The random numbers of the data apart from those of the model: all ranks draw the same
    batches, and each drops out other units. A single rank draws both from one state.

    Args:
        random: the random state that both draw from; that of now is the data's.
        ranks: the ranks that train the model together.

    """

    def __init__(self, random: RandomState, ranks: Ranks) -> None:
        self._random = random
        self._apart = ranks.count > 1
        self._data = random.read()
        if self._apart:
            ranks.share(self._data)
            digits = zlib.crc32(b"".join(state.numpy().tobytes() for state in self._data))
            random.seed(seed_of(digits, ranks.number))

    def read(self) -> list[Tensor]:
        """Return the random state that the next batch is drawn from."""
        return self._data if self._apart else self._random.read()

    @contextlib.contextmanager
    def of_data(self) -> Iterator[None]:
        """Draw numbers of the data in a block."""
        if not self._apart:
            yield
            return
        with self._random.kept():
            self._random.put(self._data)
            yield
            self._data = self._random.read()


@torch.no_grad()
def even_out(model: nn.Module, ranks: Ranks) -> None:
    """Give all ranks the same buffers after training: batch norms the mean of their statistics, all
    others the values of rank 0.
    """
    averaged: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            averaged += [module.running_mean, module.running_var]  # type: ignore[list-item]
    for statistic in averaged:
        statistic.copy_(ranks.mean(statistic))
    ranks.share(model.buffers())


def check_same(model: nn.Module, ranks: Ranks, doing: str) -> None:
    """Raise TrainingError, which names a rank, unless all ranks have the same network."""
    if ranks.count > 1:
        state = model.state_dict().items()
        ranks.check_equal({name: digest(tensor) for name, tensor in state}, doing)
