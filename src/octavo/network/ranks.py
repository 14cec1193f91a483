"""The processes that train one network together: ranks, in torch's word. What they decide about the
network must be the same on all of them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed

from octavo.errors import OctavoError, TrainingError, brief

__all__ = ["ALONE", "Ranks"]

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """The ranks that train one network together, as one of them sees them.

    Every method but ``leads`` is called on all ranks, in the same order; each waits for the others.
    With a single rank, nothing waits and nothing is sent.

    Attributes:
        number: the number of this process, from 0.
        count: how many ranks there are.

    """

    number: int = 0
    count: int = 1

    @classmethod
    def of_process(cls) -> "Ranks":
        """Return the ranks of torch's default process group, or this process alone."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return ALONE
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def leads(self) -> bool:
        """True on rank 0, which alone reads and writes files."""
        return self.number == 0

    def once(self, work: Callable[[], Value]) -> Value:
        """Let rank 0 alone do ``work``, and return its result on every rank.

        An error of octavo or of the operating system that it raises is raised on every rank.
        """
        if self.count == 1:
            return work()
        answer: list[Any] = [_attempt(work) if self.leads else None]
        distributed.broadcast_object_list(answer, src=0)
        result, error = answer[0]
        if error is not None:
            raise error
        return cast("Value", result)

    @torch.no_grad()
    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the values that these tensors have on rank 0, in place. Their number and
        shapes are the same on all ranks.
        """
        if self.count == 1:
            return
        for tensor in tensors:
            sent = _carried(tensor.detach().contiguous())
            distributed.broadcast(sent.view(-1).view(torch.uint8), src=0)
            tensor.copy_(sent)

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean of a tensor over the ranks."""
        if self.count == 1:
            return tensor
        total = _carried(tensor.detach().clone())
        distributed.all_reduce(total)
        return (total / self.count).to(tensor.device)

    def most(self, *numbers: float) -> list[float]:
        """Return the largest of each number over the ranks."""
        if self.count == 1:
            return list(numbers)
        tensor = _carried(torch.tensor(numbers, dtype=torch.float64, device="cpu"))
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return cast("list[float]", tensor.tolist())

    def check_equal(self, values: Mapping[str, str], doing: str) -> None:
        """Raise TrainingError, on every rank, unless all ranks have the same values.

        Args:
            values: texts, such as digests, by the name of what they stand for.
            doing: what the ranks were doing, for the message.

        """
        if self.count == 1:
            return
        of_ranks: list[Any] = [None] * self.count
        distributed.all_gather_object(of_ranks, dict(values))
        for name in of_ranks[0]:
            found = [other.get(name) for other in of_ranks]
            usual = Counter(found).most_common(1)[0][0]
            others = [rank for rank, value in enumerate(found) if value != usual]
            if others:
                raise TrainingError(
                    f"{doing}: rank {others[0]} differs from rank {found.index(usual)} in {name}; "
                    "give every rank the same settings, and wrap the model for several ranks, so "
                    "that every rank makes the same updates"
                )


ALONE = Ranks()


def _attempt(work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """Return the result of some work and None, or None and the error that it raised."""
    try:
        return work(), None
    except (OctavoError, OSError) as error:
        return None, error
    except Exception as error:  # noqa: BLE001 - other errors may not travel: their texts do
        return None, OctavoError(f"rank 0: {brief(error)}")


def _carried(tensor: Tensor) -> Tensor:
    """Return a tensor where the process group can send it: NCCL alone sends none from the CPU."""
    if tensor.device.type == "cpu" and distributed.get_backend() == "nccl":
        return tensor.cuda()
    return tensor
