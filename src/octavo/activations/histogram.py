"""A histogram of values that come batch by batch, in constant memory and in one pass."""

import math

import torch
from torch import Tensor

__all__ = ["Histogram"]

BINS = 1 << 14
LEAST_REACH = 2.0**-100
# Values that are counted at a time: torch counts in float32, which is exact up to 2^24.
CHUNK = 1 << 22


class Histogram:
    """The counts of values between ``-reach`` and ``reach`` in bins of one width.

    When a value lies outside, the reach doubles until it does not, and each pair of bins becomes
    one bin.

    Attributes:
        lowest: the lowest value so far; infinity before the first.
        highest: the highest value so far; minus infinity before the first.
        counts: the number of values in each bin: (BINS,), float64.
        reach: a power of two, less than twice the largest magnitude.

    """

    def __init__(self) -> None:
        self.lowest = math.inf
        self.highest = -math.inf
        self.reach = LEAST_REACH
        self.counts = torch.zeros(BINS, dtype=torch.float64, device="cpu")

    @property
    def width(self) -> float:
        """Width of one bin."""
        return 2 * self.reach / BINS

    @property
    def centers(self) -> Tensor:
        """The middle of each bin: (BINS,), float64."""
        bins = torch.arange(BINS, dtype=torch.float64, device="cpu")
        return (bins + 0.5) * self.width - self.reach

    def add(self, values: Tensor) -> None:
        """Count finite values; the tensor may have any shape."""
        if not values.numel():
            return
        lowest, highest = (float(value) for value in values.aminmax())
        self.lowest = min(self.lowest, lowest)
        self.highest = max(self.highest, highest)
        while self.reach < max(-lowest, highest):
            self._double_reach()
        for chunk in values.detach().float().flatten().split(CHUNK):
            self.counts += torch.histc(chunk, BINS, -self.reach, self.reach).cpu().double()

    def _double_reach(self) -> None:
        pairs = self.counts.view(-1, 2).sum(1)  # (BINS / 2,), which become the middle half
        empty = torch.zeros(BINS // 4, dtype=torch.float64, device="cpu")
        self.counts = torch.cat([empty, pairs, empty])
        self.reach *= 2

    def percentile(self, percent: float) -> float:
        """Return the magnitude that ``percent`` per cent of the values do not exceed, exact to the
        width of a bin.
        """
        negative = self.counts[: BINS // 2]
        positive = self.counts[BINS // 2 :]
        below = (positive + negative.flip(0)).cumsum(0)  # values of at most each magnitude
        wanted = below[-1] * percent / 100
        index = int(torch.searchsorted(below, wanted).clamp(max=BINS // 2 - 1))
        return min((index + 1) * self.width, max(-self.lowest, self.highest))

    def squared_error(self, scales: Tensor, lowest: int, highest: int) -> Tensor:
        """Return the squared error of rounding all values to ``scale`` times an integer from
        ``lowest`` to ``highest``, for each of ``scales`` (n,): (n,), float64.
        """
        used = self.counts > 0
        counts = self.counts[used]  # (used bins,)
        values = self.centers[used]  # (used bins,)
        scale = scales.double().unsqueeze(1)  # (n, 1)
        rounded = (values / scale).round().clamp(lowest, highest) * scale  # (n, used bins)
        return (values - rounded).square() @ counts
