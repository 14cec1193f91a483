"""The price of a bit in each row of a layer, the bits of each code, and the exponents that are best
once bits count.

At the rate ``lambda`` a layer shall have the codes that minimize, over its rows ``r`` with the
errors ``e_r`` and ``n`` columns::

    sum_r |e_r X|^2 + price_r * sum_i bits(code_ri)          price_r = lambda * E_r / n

``E_r`` is the error of the row at its nearest levels. So a bit less in every weight of a row is
worth ``lambda`` times this error, whatever the scale of the row. ``bits`` is ``-log2 p``, with the
frequencies ``p`` of the layer's own codes. They are estimated from codes, and lead to other codes;
so they are estimated several times.

With a larger exponent the levels are coarser, more weights are zero, and codes take fewer bits. So
exponents are compared at these prices, before anything freezes. A row that GPTQ freezes has the
error ``sum_i M_ii^2 (w'_i - q_i)^2``: see ``octavo.ptq.gptq``. Here the weight ``w_i`` stands in
for ``w'_i``, and so it does in ``E_r``.

While weights freeze, a bit counts only a quarter of its price (``SHARE`` in
``octavo.ptq.layer_problem``). Its full price would be right if nothing but the squared error of the
layer's outputs mattered. But what is rounded towards zero to save bits makes outputs smaller, all
alike, and that does not average out in the layers behind as other errors do. The quarter is our
choice, made on training images of CIFAR-10, with ResNet-20; no committed benchmark compares it with
others. For the same reason each channel gets the factor of least error in the end where a batch
norm cancels it.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.formats.codebook import LARGEST, Codebook
from octavo.formats.fitting import Fit
from octavo.formats.registry import with_exponents
from octavo.ptq.exponents import Start, neighbours
from octavo.ptq.gptq import curvature
from octavo.ptq.level_scale import LevelScale
from octavo.ptq.rounding import Prices, Rounding, bits_of_codes

__all__ = ["at_rate", "codebook_at_rate"]

SAMPLED = 128  # columns of a layer that exponents are compared on
# The least price of a row, as a share of the mean: a row that is on its levels has no error.
LEAST = 1e-9


def at_rate(start: Start, rows: Tensor, rate: float, fit: Fit) -> Start:
    """Return where a layer's solution begins once bits count.

    Args:
        start: the same where bits cost nothing, with the scale of least error.
        rows: the weights of the layer, output channels first.
        rate: see the equation above.
        fit: ``"max"`` leaves the exponents as they are.

    """
    fitted = start.scale
    weight = rows.reshape(start.problem.target.shape)
    curved = curvature(start.problem.damped).unsqueeze(1)
    every = _Rows.of(weight, curved, fitted, start.problem.unit)
    best, price = _best(every, rate, fit, shared=not fitted.max_exponent.dim())
    problem = start.problem.priced(best.codes, price)
    codes = every.rounded(best.step, problem.prices)
    if problem.kept is not None:
        codes.masked_fill_(~problem.kept, problem.unit.zero)
    exponent = _stepped(fitted, best.step, problem.unit)
    tried = neighbours(problem, exponent) if fit == "mse" else [exponent]
    scale = LevelScale.of(exponent, fitted.group_size, fitted.shape)
    return Start(problem.priced(codes, price), scale, codes, tried)


def codebook_at_rate(codebook: Codebook, rows: Tensor, rate: float) -> Codebook:
    """Return the codebook with the exponents that are best once bits count, where every weight is
    rounded by itself.

    Args:
        codebook: the same with the exponents of least error.
        rows: the weights, output channels first.
        rate: see the equation above, with ``X`` the identity.

    """
    weight = rows.flatten(1).unsqueeze(0)  # (1, rows, columns)
    scale = LevelScale.of(codebook.max_exponent, codebook.group_size, weight.shape)
    ones = torch.ones_like(weight[:, :1], dtype=torch.float64)
    every = _Rows.of(weight, ones, scale, codebook)
    best, _ = _best(every, rate, "mse", shared=not scale.max_exponent.dim())
    return with_exponents(codebook, _stepped(scale, best.step, codebook))


def _best(every: "_Rows", rate: float, fit: Fit, *, shared: bool) -> tuple["_Choice", Tensor]:
    """Return the best choice of exponents and the price of a bit in each row."""
    some = every.sampled()
    steps = some.steps() if fit == "mse" else some.steps()[:1]  # which is 0
    nearest = [some.rounded(step, None) for step in steps]
    price = rate * some.error(nearest[0], steps[0]).mean(2, keepdim=True)
    price = price.clamp(min=LEAST * float(price.mean()) + torch.finfo(price.dtype).tiny)
    choices = _Choices(some, price, steps, shared)
    # The nearest levels of any exponent give a first estimate of bits.
    first = min(map(choices.best, nearest), key=lambda choice: choice.total)
    return choices.best(first.codes), price


def _stepped(scale: LevelScale, step: Tensor, codebook: Codebook) -> Tensor:
    """Return the exponents of a scale after the step of each row, within what a codebook allows."""
    exponent = scale.max_exponent + _by_exponent(step, scale)
    return exponent.clamp(codebook.lowest_max_exponent, LARGEST)


def _by_exponent(step: Tensor, scale: LevelScale) -> Tensor:
    """Return steps of rows, (problems, rows, 1), in a shape that broadcasts to the exponents."""
    steps = step.flatten().to(scale.max_exponent.dtype)
    if not scale.max_exponent.dim():
        return steps[0]
    return steps.unsqueeze(1) if scale.group_size else steps


@dataclass(frozen=True, eq=False)
class _Rows:
    """Weights that are rounded each by itself, in units of their scale.

    Attributes:
        weight: float32, (problems, rows, columns).
        curvature: ``M_ii^2`` in the same units, float64, same shape.
        levels: the levels of the scale 1.

    """

    weight: Tensor
    curvature: Tensor
    levels: Tensor

    @classmethod
    def of(cls, weight: Tensor, curved: Tensor, scale: LevelScale, codebook: Codebook) -> "_Rows":
        """Divide weights (problems, rows, columns) by their scale; ``curved`` is ``M_ii^2``."""
        by_weight = torch.ldexp(scale.row_factor(), scale.exponent())  # broadcasts to the weights
        squares = curved * by_weight.square()
        in_units = (weight / by_weight).float()
        levels = codebook.unit_levels().to(weight.device)
        return cls(in_units, squares.expand(in_units.shape), levels)

    def steps(self) -> Tensor:
        """Return what may be added to the exponents of least error; with more than the octaves of
        the number of levels, little but zero would be left.
        """
        most = len(self.levels).bit_length()
        return torch.tensor([*range(most), -1], dtype=torch.int64, device=self.levels.device)

    def sampled(self) -> "_Rows":
        """Return some of the columns, evenly."""
        columns = self.weight.shape[2]
        count = min(columns, SAMPLED)
        some = torch.linspace(0, columns - 1, count, dtype=torch.float32, device="cpu").long()
        return replace(self, weight=self.weight[:, :, some], curvature=self.curvature[:, :, some])

    def rounded(self, step: Tensor, prices: Prices | None) -> Tensor:
        """Round to levels that are ``2^step`` times as large: uint8."""
        larger = _power(step)
        rounding = Rounding(self.levels, prices=prices)
        return rounding.each(self.weight / larger.float(), self.curvature * larger.square())

    def error(self, codes: Tensor, step: Tensor) -> Tensor:
        """Return ``M_ii^2 (w_i - q_i)^2``, float64, (problems, rows, columns)."""
        level = self.levels[codes.int()] * _power(step)
        return (self.weight - level).square() * self.curvature


def _power(step: Tensor) -> Tensor:
    return torch.ldexp(torch.ones_like(step, dtype=torch.float64), step)


@dataclass(frozen=True, eq=False)
class _Choice:
    """Codes, and the steps that they belong to.

    Attributes:
        codes: (problems, rows, columns).
        step: what is added to the exponents of each row, (problems, rows, 1).
        total: the cost of all rows, in bits.

    """

    codes: Tensor
    step: Tensor
    total: float


@dataclass(frozen=True, eq=False)
class _Choices:
    """The steps that rows choose from.

    Attributes:
        rows: the weights.
        price: the squared error that a bit is worth, (problems, rows, 1).
        steps: what may be added to the exponents, (steps,).
        shared: True if all rows have the same step.

    """

    rows: _Rows
    price: Tensor
    steps: Tensor
    shared: bool

    def best(self, codes: Tensor) -> _Choice:
        """Return the best choice if codes take the bits that they take among ``codes``."""
        prices = Prices(bits_of_codes(codes, len(self.rows.levels)), self.price)
        by_step = [self.rows.rounded(step, prices) for step in self.steps]
        costs = [self._in_bits(*one, prices) for one in zip(by_step, self.steps, strict=True)]
        cost = torch.stack(costs)  # (steps, problems, rows)
        if self.shared:
            cost = cost.sum((1, 2), keepdim=True)
        least, index = cost.min(0)
        index = index.expand(costs[0].shape).unsqueeze(2)  # (problems, rows, 1)
        picked = index.expand_as(by_step[0]).unsqueeze(0)
        chosen = torch.stack(by_step).gather(0, picked)[0]
        return _Choice(chosen, self.steps[index], float(least.sum()))

    def _in_bits(self, codes: Tensor, step: Tensor, prices: Prices) -> Tensor:
        """Return what each row costs, in bits: (problems, rows)."""
        return (self.rows.error(codes, step).sum(2) + prices.of(codes)) / self.price.squeeze(2)
