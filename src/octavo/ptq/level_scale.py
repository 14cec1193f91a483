"""The scale of the levels of a layer's weights, as its solver tries several of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.formats.codebook import power
from octavo.formats.rows import spread

__all__ = ["LevelScale"]


@dataclass(frozen=True, eq=False)
class LevelScale:
    """The scale of a layer's levels, ``factor * 2^max_exponent``, where the layer consists of
    problems of ``shape``, (problems, rows, columns), and a channel is a row of a problem.

    Attributes:
        max_exponent: one, one per channel, or (channels, groups).
        group_size: the inputs of a channel that share an exponent; 0 if there are no groups.
        factor: float64, one or one per channel.
        shape: the shape of the weights.

    """

    max_exponent: Tensor
    group_size: int
    factor: Tensor
    shape: torch.Size

    @classmethod
    def of(cls, max_exponent: Tensor, group_size: int, shape: torch.Size) -> "LevelScale":
        """Make the scale ``2^max_exponent``."""
        of_channels = max_exponent[:, 0] if group_size else max_exponent
        ones = torch.ones_like(of_channels, dtype=torch.float64)
        return cls(max_exponent, group_size, ones, shape)

    def times(self, factor: float | Tensor) -> "LevelScale":
        """Return the scale times a factor, or times one for each channel."""
        return LevelScale(self.max_exponent, self.group_size, factor * self.factor, self.shape)

    def row_factor(self) -> Tensor:
        """Return the factor of each row, float64, (problems, rows, 1)."""
        return _by_row(self.factor, self.shape)

    def row_exponent(self) -> Tensor:
        """Return the largest exponent of each row, float64, (problems, rows, 1): torch.ldexp may
        compute its power of two in the type of the exponent.
        """
        return _by_row(self._of_channels(), self.shape)

    def exponent(self) -> Tensor:
        """Return the exponent of each weight, float64, broadcastable to ``shape``."""
        if not self.group_size:
            return self.row_exponent()
        return _by_group(self.max_exponent, self.shape, self.group_size)

    @property
    def is_shared(self) -> bool:
        """True if all channels have one exponent."""
        return not self.max_exponent.dim()

    def value(self) -> Tensor:
        """Return the scale of each weight, float64, broadcastable to ``shape``."""
        return torch.ldexp(self.row_factor(), self.exponent())

    def below_row(self) -> Tensor | None:
        """Return the scale of each weight in units of ``2^row_exponent``, float32; None if there
        are no groups, so that all are 1.
        """
        if not self.group_size:
            return None
        below = power(self.max_exponent - self._of_channels().unsqueeze(1))
        return _by_group(below, self.shape, self.group_size).float()

    def where(self, wins: Tensor, other: "LevelScale") -> "LevelScale":
        """Return the scale that has the values of ``other`` in the channels where it wins, bool,
        (channels,).
        """
        of_exponents = wins.unsqueeze(1) if self.group_size else wins
        return LevelScale(
            torch.where(of_exponents, other.max_exponent, self.max_exponent),
            self.group_size,
            torch.where(wins, other.factor, self.factor),
            self.shape,
        )

    def _of_channels(self) -> Tensor:
        return self.max_exponent.amax(1) if self.group_size else self.max_exponent


def _by_row(values: Tensor, shape: torch.Size) -> Tensor:
    """Return one value, or one per channel, as float64, (problems, rows, 1)."""
    problems, rows, _ = shape
    return values.double().expand(problems * rows).view(problems, -1, 1)


def _by_group(values: Tensor, shape: torch.Size, group_size: int) -> Tensor:
    """Return one value per group as one for each weight, float64."""
    problems, rows, columns = shape
    matrix = torch.Size([problems * rows, columns])
    return spread(values.double(), matrix, group_size).view(shape)
