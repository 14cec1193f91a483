"""The form of a packed file: how it has its floats, and how its codes are coded."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self, get_args

from torch import nn

from octavo.errors import PlanError
from octavo.network.forward import Inputs, device_of, on_device
from octavo.plan import Budget, check_is_budget
from octavo.ptq.folding import folded_if_near
from octavo.ptq.setting_aside import leading
from octavo.storage.coding.small import check_library
from octavo.storage.layer_strings import Coding
from octavo.storage.packed import FloatForm, Packed

__all__ = ["DEFAULT_FORM", "FileForm"]


@dataclass(frozen=True, kw_only=True)
class FileForm:
    """The form of a packed file, apart from its codes and exponents.

    Attributes:
        floats: the form of all tensors that are not quantized: see ``Packed.with_floats``. None
            folds norms where that changes outputs by no more than ``octavo.ptq.folding.BOUND``.
        coding: the coding of the codes: see ``Packed``.

    Raises:
        PlanError: an unknown form or coding.
        FormatError: the library of the coding is missing.

    """

    floats: FloatForm | None = "float32"
    coding: Coding = "fast"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("floats", self.floats, get_args(FloatForm)),
            ("coding", self.coding, get_args(Coding)),
        ):
            if value not in known and not (name == "floats" and value is None):
                expected = ", ".join(map(repr, known))
                raise PlanError(f"{name}: expected one of {expected}, got {value!r}")
        if self.coding == "small":
            check_library()

    @classmethod
    def asked(
        cls,
        floats: FloatForm | None,
        coding: Coding | None,
        *,
        rate: float = 0.0,
        budget: Budget | None = None,
    ) -> Self:
        """Return the form that was asked for. Where nothing is said of floats, norms are folded
        (see ``floats``) if a rate, or a budget for the file, asks for a small file.

        Raises:
            BudgetError: the budget is no ``Budget``.
            PlanError: a form or coding that there is not.

        """
        check_is_budget(budget)
        small = bool(rate) or (budget is not None and budget.of_file)
        if floats is None and not small:
            floats = cls.floats
        return cls(floats=floats, coding=cls.coding if coding is None else coding)

    def of(self, packed: Packed, model: nn.Module, inputs: Iterable[Inputs]) -> Packed:
        """Return a network in this form.

        Args:
            packed: the quantized network.
            model: a model of its architecture; it is left as it was.
            inputs: calibration inputs, on whose first samples outputs are compared.

        """
        if self.floats is not None:
            packed = packed.with_floats(self.floats, model)
        else:
            some = [on_device(one, device_of(model)) for one in leading(iter(inputs))]
            packed = folded_if_near(packed, model, some)
        return replace(packed, coding=self.coding)


DEFAULT_FORM = FileForm()
