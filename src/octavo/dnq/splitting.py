"""The division of the inputs of a search: some calibrate, some score trials, and some decide.

A plan that is scored on the inputs that calibrated it looks better than it will on unseen data. The
best of hundreds of plans looks better still on the inputs that chose it. So each task has inputs of
its own.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from octavo.network.forward import Inputs
from octavo.network.layers import Layer
from octavo.network.reach import batches_for
from octavo.network.samples import LEAST_SAMPLES, joined, neighbours, rows_of, sample_count

__all__ = ["Parts", "reaching", "split", "undivided"]

STRIDE = 4  # samples are dealt in turn, so it does not matter if they are ordered by class
CALIBRATING = (0, 1)  # index of a sample modulo STRIDE
SCORING = (2,)
CONFIRMING = (3,)


@dataclass(frozen=True)
class Parts:
    """The inputs of a search, divided by what they are for.

    Attributes:
        calibrating: the batches that candidates are quantized from.
        scoring: the batches that trials are scored on.
        confirming: the batches that the final choice is made on.
        solving: the batches that finalists are solved from: those that calibrate and score.
        held_out: number of samples that confirm and do nothing else; where batches cannot be
            divided, number of batches. 0: nothing was set aside, and every part is all inputs.

    """

    calibrating: tuple[Inputs, ...]
    scoring: tuple[Inputs, ...]
    confirming: tuple[Inputs, ...]
    solving: tuple[Inputs, ...]
    held_out: int


def undivided(batches: Sequence[Inputs]) -> Parts:
    """Return parts that each have all inputs."""
    every = tuple(batches)
    return Parts(every, every, every, every, held_out=0)


def split(batches: Sequence[Inputs], *, by_sample: bool = True) -> Parts:
    """Divide the inputs of a search by sample, or by batch.

    Sample ``i``, counted along dimension 0 over all batches, calibrates where ``i mod 4`` is 0 or
    1, scores where it is 2, and confirms where it is 3. The batches of a part are about as large as
    those that came. Inputs that are no tensors with a common dimension 0 are divided by batch in
    the same way. With fewer than 64 samples, or fewer than 4 such batches, every part is all
    inputs.

    Args:
        batches: the inputs of the search.
        by_sample: False divides by batch whatever the tensors are, because dimension 0 does not
            count samples: see ``octavo.ptq.setting_aside.is_divisible``.

    """
    sizes = [sample_count(batch) for batch in batches]
    samples = [size for size in sizes if size is not None]
    if not by_sample or len(samples) < len(batches):
        return _split_by_batch(batches)
    if sum(samples) < LEAST_SAMPLES:
        return undivided(batches)
    calibrating = _dealt(batches, samples, CALIBRATING)
    scoring = _dealt(batches, samples, SCORING)
    confirming = _dealt(batches, samples, CONFIRMING)
    held_out = sum(sample_count(batch) or 0 for batch in confirming)
    return Parts(calibrating, scoring, confirming, (*calibrating, *scoring), held_out)


def reaching(parts: Parts, model: nn.Module, layers: Sequence[Layer]) -> Parts:
    """Return parts whose calibrating inputs reach every layer, if any inputs do. A layer that only
    others reach is calibrated by the batch of these that reaches it first.
    """
    others = [*parts.scoring, *parts.confirming]
    extra = batches_for(model, layers, parts.calibrating, others)
    scoring = {id(batch) for batch in parts.scoring}
    new = [batch for batch in extra if id(batch) not in scoring]
    return replace(parts, calibrating=(*parts.calibrating, *extra), solving=(*parts.solving, *new))


def _split_by_batch(batches: Sequence[Inputs]) -> Parts:
    """Divide inputs by whole batches, where a batch cannot be divided by sample."""
    if len(batches) < STRIDE:
        return undivided(batches)
    calibrating, scoring, confirming = (
        tuple(batch for index, batch in enumerate(batches) if index % STRIDE in rests)
        for rests in (CALIBRATING, SCORING, CONFIRMING)
    )
    return Parts(calibrating, scoring, confirming, (*calibrating, *scoring), len(confirming))


def _dealt(
    batches: Sequence[Inputs], samples: Sequence[int], rests: Sequence[int]
) -> tuple[Inputs, ...]:
    """Return the samples whose index modulo STRIDE is among ``rests``, in batches again."""
    pieces: list[Inputs] = []
    first = 0  # index of the first sample of the batch
    for batch, count in zip(batches, samples, strict=True):
        rows = [row for row in range(count) if (first + row) % STRIDE in rests]
        if rows:
            pieces.append(rows_of(batch, rows))
        first += count
    return tuple(_regrouped(pieces, max(samples)))


def _regrouped(pieces: Iterable[Inputs], most: int) -> list[Inputs]:
    """Join neighbouring pieces that are alike, and divide them into batches of at most ``most``."""
    return [batch for group in neighbours(pieces) for batch in _divided(joined(*group), most)]


def _divided(batch: Inputs, most: int) -> list[Inputs]:
    """Divide a batch into as few as possible of at most ``most`` samples, of about equal size."""
    samples = sample_count(batch) or 0
    count = -(-samples // most)
    ends = [samples * index // count for index in range(count + 1)]
    return [rows_of(batch, slice(*pair)) for pair in itertools.pairwise(ends)]
