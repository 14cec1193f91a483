"""Set a part of the inputs aside: the quantized network is measured on inputs that it was not
solved from.

Only some of the first samples are set aside, so that inputs can be divided as they come, and so
that the measurement costs the same however many inputs there are. The shares are our choice.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from torch import Tensor, nn

from octavo.network.calls import call_alone, undisturbed
from octavo.network.conduct import close
from octavo.network.forward import Inputs
from octavo.network.nested import named_tensors
from octavo.network.samples import LEAST_SAMPLES, alike, in_fewer, joined, rows_of, sample_count

__all__ = ["deal", "handed_over", "in_larger_batches", "is_divisible", "leading", "put_aside"]

EVERY = 8  # one sample in eight is set aside, so it does not matter if they are ordered by class
MOST_SAMPLES = 64  # that are set aside
MOST_BATCHES = 8
TRIED = 4  # samples of a batch that show if the model treats samples apart
TOLERANCE = 1e-2  # change of an output by rounding, as a share of the largest output

# A part of a batch that calibrates, and a part that is set aside; None where there is no such part.
Dealt: TypeAlias = tuple[Inputs | None, Inputs | None]


def deal(batches: Iterable[Inputs], *, by_sample: bool) -> Iterator[Dealt]:
    """Divide each batch into a part that calibrates and a part that is set aside.

    Every eighth sample is set aside until there are 64 of them; samples are counted over all
    batches. With fewer than 64 samples in all, none is set aside. Where batches cannot be divided,
    every eighth batch is set aside until there are 8 of them.

    Args:
        batches: calibration inputs.
        by_sample: True if a batch can be divided: see :func:`is_divisible`.

    """
    return _by_sample(batches) if by_sample else _by_batch(batches)


def _by_sample(batches: Iterable[Inputs]) -> Iterator[Dealt]:
    rest = iter(batches)
    first = leading(rest)
    count = sum(sample_count(batch) or 0 for batch in first)
    start = 0 if count >= LEAST_SAMPLES else EVERY * MOST_SAMPLES  # beyond all that is set aside
    for batch in itertools.chain(handed_over(first), rest):
        size = sample_count(batch) or 0
        aside = [row for row in range(size) if _is_aside(start + row, MOST_SAMPLES)]
        kept = [row for row in range(size) if not _is_aside(start + row, MOST_SAMPLES)]
        if aside:
            yield (rows_of(batch, kept) if kept else None), rows_of(batch, aside)
        else:
            yield batch, None
        start += size


def put_aside(batch: Inputs, others: list[Inputs], most: int) -> None:
    """Add a batch to those that are set aside: to the samples of one that is alike, where the two
    have no more than ``most`` samples together. A few samples take about as long as a whole batch.
    """
    count = sample_count(batch) or 0
    for index, other in enumerate(others):
        if 0 < count + (sample_count(other) or 0) <= most and alike(other, batch):
            others[index] = joined(other, batch)
            return
    others.append(batch)


def leading(batches: Iterator[Inputs]) -> list[Inputs]:
    """Take as many batches as have the least number of samples together, or all there are."""
    first: list[Inputs] = []
    count = 0
    for batch in batches:
        first.append(batch)
        count += sample_count(batch) or 0
        if count >= LEAST_SAMPLES:
            break
    return first


def handed_over(batches: list[Inputs]) -> Iterator[Inputs]:
    """Yield batches and let go of them, so that inputs which are streamed do not stay in memory."""
    while batches:
        yield batches.pop(0)


def _by_batch(batches: Iterable[Inputs]) -> Iterator[Dealt]:
    for index, batch in enumerate(batches):
        yield (None, batch) if _is_aside(index, MOST_BATCHES) else (batch, None)


def _is_aside(index: int, most: int) -> bool:
    return index % EVERY == EVERY - 1 and index < EVERY * most


def is_divisible(model: nn.Module, batch: Inputs) -> bool:
    """Tell if a batch can be divided along dimension 0: the model returns for some of the rows
    what it returns for these among others.

    It is no batch of samples along dimension 0 if, for example, that is the time of a recurrent
    network. Where the model draws random numbers, only the shapes can tell. A scalar that is
    returned beside, such as a loss, says nothing. Nothing stays of the calls that find out.

    Args:
        model: the network, in evaluation mode.
        batch: inputs that it is called with, on its device.

    """
    size = sample_count(batch)
    if not size:
        return False
    rows = list(range(min(size, TRIED)))
    some = rows_of(batch, rows)
    try:
        with undisturbed(model):
            of_all = _tensors(call_alone(model, some))
        with undisturbed(model):
            of_half = _tensors(call_alone(model, rows_of(some, rows[::2])))
        with undisturbed(model):
            with_other_noise = _tensors(call_alone(model, some, 1))
    except Exception:  # noqa: BLE001  # whatever a model raises that does not take other batches
        return False
    if of_all.keys() != of_half.keys() or not all(
        _has_rows(tensor, of_half[name], len(rows)) for name, tensor in of_all.items()
    ):
        return False
    is_noisy = not close(of_all, with_other_noise)
    half_of_all = {name: tensor[::2] for name, tensor in of_all.items()}
    return is_noisy or close(half_of_all, of_half, TOLERANCE)


def in_larger_batches(model: nn.Module, batches: list[Inputs], most: int) -> list[Inputs]:
    """Join neighbouring batches, so that about ``most`` are left, if the model treats the samples
    of larger ones apart.
    """
    joined_ones = in_fewer(batches, most)
    largest = max(joined_ones, key=lambda batch: sample_count(batch) or 0)
    return joined_ones if is_divisible(model, largest) else batches


def _tensors(outputs: Any) -> dict[str, Tensor]:
    """Return the tensors of outputs by name, without scalars if there are others."""
    tensors = dict(named_tensors(outputs))
    return {name: tensor for name, tensor in tensors.items() if tensor.dim()} or tensors


def _has_rows(tensor: Tensor, half: Tensor, count: int) -> bool:
    """Tell if a tensor has ``count`` rows, and ``half`` has half as many of the same shape."""
    return bool(tensor.dim()) and len(tensor) == count and tensor[::2].shape == half.shape
