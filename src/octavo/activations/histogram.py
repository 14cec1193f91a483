"""Counts of values in evenly spaced bins: what a distribution looks like, in constant memory, from
one pass over it.
"""

import math

import torch
from torch import Tensor

__all__ = ["Histogram"]

BINS = 1 << 14
LEAST_REACH = 2.0**-100
AT_ONCE = (
    1 << 22
    # values that are counted at a time: torch counts in float32, which is exact up to four times as
    # many
)


class Histogram:
    """Counts of values between ``-reach`` and ``reach``; the reach doubles as it has to, and pairs
    of bins become one.

    Attributes:
        lowest: of all values; infinite before the first.
        highest: likewise.
        counts: of each bin, (BINS,), float64.
        reach: a power of two, less than twice the largest magnitude.

    """

    def __init__(self) -> None:
        self.lowest, self.highest, self.reach = math.inf, -math.inf, LEAST_REACH
        self.counts = torch.zeros(BINS, dtype=torch.float64)

    @property
    def width(self) -> float:
        """Of a bin."""
        return 2 * self.reach / BINS

    @property
    def centers(self) -> Tensor:
        """The middle of each bin, (BINS,), float64."""
        return (torch.arange(BINS, dtype=torch.float64) + 0.5) * self.width - self.reach

    def add(self, values: Tensor) -> None:
        """Count finite values of any shape."""
        if not values.numel():
            return
        lowest, highest = (float(value) for value in values.aminmax())
        self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)
        while self.reach < max(-lowest, highest):
            rest = torch.zeros(BINS // 4, dtype=torch.float64)
            self.counts = torch.cat([rest, self.counts.view(-1, 2).sum(1), rest])
            self.reach *= 2
        for some in values.detach().float().flatten().split(AT_ONCE):
            self.counts += torch.histc(some, BINS, -self.reach, self.reach).cpu().double()

    def percentile(self, percent: float) -> float:
        """The magnitude that so many per cent of the values do not exceed, to a bin's width."""
        magnitudes = self.counts[BINS // 2 :] + self.counts[: BINS // 2].flip(0)
        below = magnitudes.cumsum(0)
        at = int(torch.searchsorted(below, below[-1] * percent / 100).clamp(max=BINS // 2 - 1))
        return min((at + 1) * self.width, max(-self.lowest, self.highest))

    def squared_error(self, steps: Tensor, lowest: int, highest: int) -> Tensor:
        """Of rounding all values to integers from ``lowest`` to ``highest`` times each of ``steps``
        (n,): (n,), float64.
        """
        counts, values = self.counts[self.counts > 0], self.centers[self.counts > 0]
        grid = steps.double().unsqueeze(1)
        return (values - (values / grid).round().clamp(lowest, highest) * grid).square() @ counts
