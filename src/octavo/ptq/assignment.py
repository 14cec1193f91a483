"""The outcome of freezing: a code for every weight, and the error of every row."""

from dataclasses import dataclass

from torch import Tensor

from octavo.ptq.least_squares import output_error
from octavo.ptq.rounding import Rounding

__all__ = ["Assignment"]


@dataclass(frozen=True)
class Assignment:
    """The codes of the weights of many rows, and the errors that the rows have with them.

    With ``e = weight - levels[codes]``, a row's errors are ``|e X|^2 = e H e^T`` and ``|e|^2``.

    Attributes:
        codes: indices of levels, uint8, (problems, rows, columns).
        output_error: squared error of each row's outputs, float64, (problems, rows).
        weight_error: squared error of each row's weights, float64, (problems, rows).

    """

    codes: Tensor
    output_error: Tensor
    weight_error: Tensor

    @classmethod
    def measured(
        cls, codes: Tensor, weight: Tensor, hessian: Tensor, rounding: Rounding
    ) -> "Assignment":
        """Compute the errors from the codes and the weights themselves."""
        error = (weight - rounding.level(codes.long())).double()  # (problems, rows, columns)
        return cls(codes, output_error(error, hessian.double()), error.square().sum(2))
