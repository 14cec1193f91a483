"""The outputs of an exported file beside those of the network."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from octavo.network.nested import named_tensors

__all__ = ["Comparison", "agreement", "compare", "differences"]


@dataclass(frozen=True)
class Comparison:
    """The outputs of a file beside those of the network, in units of the largest output.

    Attributes:
        largest: the largest difference.
        mean: the mean difference.
        agreement: the share of predicted classes that are the same; None where the first output
            has no classes.

    """

    largest: float
    mean: float
    agreement: float | None


def compare(expected: Any, got: Any) -> Comparison:
    """Compare outputs: tensors, or tuples or dicts of tensors."""
    largest, mean = differences(expected, got)
    return Comparison(largest, mean, agreement(expected, got))


def differences(expected: Any, got: Any) -> tuple[float, float]:
    """Return the largest and the mean difference between outputs, tensors or tuples or dicts of
    tensors, in units of the largest value of each output.
    """
    pairs = [
        (a.detach().cpu().double(), b.double())
        for a, b in zip(_tensors(expected), _tensors(got), strict=True)
        if a.numel()
    ]
    shares = [(a - b).abs() / a.abs().max().clamp(min=1e-30) for a, b in pairs]
    largest = max((float(share.max()) for share in shares), default=0.0)
    mean = max((float(share.mean()) for share in shares), default=0.0)
    return largest, mean


def agreement(expected: Any, got: Any) -> float | None:
    """Return the share of rows of the first output whose largest values have the same index; None
    where it has no rows of several values: a regression has no classes.
    """
    first = next(_tensors(expected))
    second = next(_tensors(got))
    if first.dim() < 2 or first.shape[-1] < 2:
        return None
    return float((first.argmax(-1) == second.argmax(-1)).double().mean())


def _tensors(value: Any) -> Iterator[Tensor]:
    return (tensor for _, tensor in named_tensors(value))
