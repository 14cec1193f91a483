"""Sums over the inputs of a layer: their second moments, and the drift of its outputs.

``octavo.network.layer_inputs`` says what the problems of a layer and their matrices are.
"""

import copy
import functools
import itertools
import math

import torch
from torch import Tensor

from octavo.network.layer_inputs import problem_count
from octavo.network.layers import Layer

__all__ = ["Moments"]

BLOCK = 384  # columns of X whose products with those ahead of them are added at once


class Moments:
    """The sums over a layer's calibration inputs ``X``: constant in memory, however many there are.

    Attributes:
        drift: ``D X^T``, (problems, rows, columns). ``D`` is the layer's full-precision output
            minus ``W X``; the two differ because the layers ahead of it are quantized. Zero if the
            inputs are the full-precision ones.
        too_large: the largest input, where inputs are finite and the sums of their squares are not;
            0 where all of it is finite, infinity where inputs are not.

    """

    def __init__(self, problems: int, rows: int, columns: int, device: torch.device) -> None:
        zeros = functools.partial(torch.zeros, dtype=torch.float32, device=device)
        self._products = zeros(problems, columns, columns)  # X X^T
        self.drift = zeros(problems, rows, columns)
        self.too_large = 0.0
        self._seen = zeros(problems, 1)

    @classmethod
    def of(cls, layer: Layer) -> "Moments":
        """Make the sums over no inputs yet, in the sizes of ``layer``."""
        problems = problem_count(layer)
        shape = layer.weight.shape  # (outputs, ...), or with groups (inputs, outputs / groups, ...)
        rows = shape[1] * layer.groups if layer.groups else shape[0]
        columns = layer.weight.numel() // rows
        return cls(problems, rows // problems, columns, layer.weight.device)

    def add(self, problem: slice, inputs: Tensor, drift: Tensor | None = None) -> None:
        """Add inputs of some of the problems.

        Args:
            problem: a slice of the problems.
            inputs: ``X``, (problems, columns, n).
            drift: ``D``, (problems, rows, n); None adds zero.

        """
        products = self._products[problem]
        for start, end in self._blocks():  # H <- H + X X^T, on and above the diagonal
            products[:, :end, start:end].baddbmm_(inputs[:, :end], inputs[:, start:end].mT)
        self._seen[problem] += inputs.shape[2]
        squares = products.diagonal(dim1=1, dim2=2)
        if not math.isfinite(float(squares.sum())) and inputs.numel():
            largest = float(inputs.abs().max())
            self.too_large = max(self.too_large, math.inf if math.isnan(largest) else largest)
        if drift is not None:
            self.drift[problem].baddbmm_(drift, inputs.mT)  # D X^T

    @property
    def hessian(self) -> Tensor:
        """``X X^T``, (problems, columns, columns), float32."""
        for start, end in self._blocks():  # what is below the diagonal is what is above it
            self._products[:, start:end, :start] = self._products[:, :start, start:end].mT
        return self._products

    def _blocks(self) -> list[tuple[int, int]]:
        """Return the first column of each block, and the one behind its last. Fewer than two whole
        blocks are one: half of a product that is small would take as long as all of it.
        """
        columns = self._products.shape[2]
        count = max(1, columns // BLOCK)
        edges = [columns * index // count for index in range(count + 1)]
        return list(itertools.pairwise(edges))

    def without_drift(self) -> "Moments":
        """Return the same sums as if the outputs had not drifted."""
        same = copy.copy(self)
        same.drift = torch.zeros_like(self.drift)
        return same

    @property
    def seen(self) -> int:
        """The number of columns of ``X`` that every problem has had at least."""
        return int(self._seen.min())
