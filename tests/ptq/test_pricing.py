"""A layer at a rate: near the true optimum, fewer bits for a larger rate, and prices in units of
each row's own error."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octavo.formats.registry import codebook_at
from octavo.formats.width import Apot, Width
from octavo.network.layers import find_layers
from octavo.network.moments import Moments
from octavo.ptq.compensation import compensate
from octavo.ptq.layer_solver import Solution, solve
from octavo.ptq.rounding import Prices, Rounding, bits_of_codes
from octavo.ptq.settings import PtqOrder, PtqSettings

LEVELS = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
RATES = (0.0, 1.0, 10.0, 3000.0)


def solved(module: nn.Module, inputs: Tensor, width: Any, **settings: Any) -> Solution:
    (layer,) = find_layers(module)[0]
    moments = Moments.of(layer)
    moments.add(slice(None), inputs)
    return solve(layer, moments, width, PtqSettings(**settings))


def bits(solution: Solution) -> float:
    """The order-0 entropy of all codes, counted by itself."""
    counts = torch.bincount(solution.codes.flatten().int()).double()
    counts = counts[counts > 0]
    return float((counts * (counts.sum() / counts).log2()).sum())


def squared_error(solution: Solution, module: nn.Linear, inputs: Tensor) -> float:
    level = solution.codebook.decode(solution.codes)
    return float(((module.weight.detach() - level) @ inputs[0]).square().sum())


def gaussian(seed: int = 0, *, mixed: bool) -> tuple[nn.Linear, Tensor]:
    """A layer whose inputs depend on each other or not, and these, (1, columns, n)."""
    torch.manual_seed(seed)
    module = nn.Linear(60, 40)
    nn.init.normal_(module.weight)
    if not mixed:
        return module, torch.eye(60).unsqueeze(0)
    return module, (torch.randn(60, 60) @ torch.randn(60, 200)).unsqueeze(0)


@pytest.mark.parametrize("order", ["gptq", "distance"])
@pytest.mark.parametrize("price", [0.3, 3.0])
def test_the_recursion_comes_near_the_best_codes_of_all(order: PtqOrder, price: float) -> None:
    """All codes of rows of six weights are tried."""
    every = torch.tensor(list(itertools.product(range(3), repeat=6)), dtype=torch.uint8)
    found = 0.0
    best = 0.0
    blind = 0.0
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        X = torch.randn(1, 6, 20, generator=generator, dtype=torch.float64)
        X[:, 1:] += 0.5 * X[:, :1]
        weight = 0.7 * torch.randn(1, 4, 6, generator=generator, dtype=torch.float64)
        prices = Prices(
            torch.tensor([2.5, 0.5, 2.5], dtype=torch.float64),
            torch.full((1, 4, 1), price, dtype=torch.float64),
        )

        def cost(codes: Tensor, rows: Tensor, X: Tensor = X, prices: Prices = prices) -> Tensor:
            errors = ((rows - LEVELS[codes.long()]) @ X[0]).square().sum(-1)
            return errors + price * prices.bits[codes.long()].sum(-1)

        hessian = X @ X.mT
        priced = compensate(weight, hessian, Rounding(LEVELS, prices=prices), order)
        nearest = compensate(weight, hessian, Rounding(LEVELS), order)
        found += float(cost(priced.codes[0], weight[0]).sum())
        blind += float(cost(nearest.codes[0], weight[0]).sum())
        best += sum(float(cost(every, row).min()) for row in weight[0])
    assert best <= found < 1.12 * best
    assert blind > found


@pytest.mark.parametrize("width", [2, 3, 4, 5, Apot(5), Width(4, "fp"), Width(8, "int")])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_larger_rate_takes_no_more_bits_and_no_less_error(width: Any, mixed: bool) -> None:
    module, inputs = gaussian(mixed=mixed)
    solutions = [solved(module, inputs, width, rate=rate) for rate in RATES]
    taken = [bits(solution) for solution in solutions]
    errors = [squared_error(solution, module, inputs) for solution in solutions]
    slack = 1.06 if mixed else 1.0  # where inputs depend on each other the recursion is greedy
    for (fewer, more), (less, greater) in zip(
        itertools.pairwise(taken[::-1]), itertools.pairwise(errors), strict=True
    ):
        assert fewer <= slack * more
        assert less <= slack * greater
    assert taken[-1] < 0.8 * taken[0]


def test_rounding_alone_at_the_same_rate_is_worse() -> None:
    """The weights that are still free make up for what others have given up for their bits."""
    module, inputs = gaussian(mixed=True)
    solution = solved(module, inputs, 4, rate=1.0)
    assert solution.rounding is not None
    assert solution.compensated < 0.7 * solution.rounding.compensated
    assert bits(solution) < 1.1 * bits(solution.rounding)


def test_a_row_pays_in_units_of_its_own_error() -> None:
    module, inputs = gaussian(mixed=True)
    solution = solved(module, inputs, 4, rate=1.0)
    with torch.no_grad():
        module.weight.mul_(2.0 ** torch.randint(-3, 4, (40, 1)))
    assert torch.equal(solved(module, inputs, 4, rate=1.0).codes, solution.codes)


def test_a_larger_exponent_is_chosen_where_its_codes_take_fewer_bits() -> None:
    module, inputs = gaussian(mixed=True)
    plain = solved(module, inputs, Apot(5)).codebook.max_exponent
    priced = solved(module, inputs, Apot(5), rate=10.0).codebook.max_exponent
    assert bool((priced >= plain).all())
    assert float((priced - plain).float().mean()) > 1


def test_exponents_stay_where_they_follow_from_a_formula() -> None:
    module, inputs = gaussian(mixed=True)
    plain = solved(module, inputs, Apot(5), fit="max").codebook.max_exponent
    priced = solved(module, inputs, Apot(5), fit="max", rate=10.0).codebook.max_exponent
    assert torch.equal(priced, plain)


@pytest.mark.parametrize("per", ["tensor", "channel", ("group", 16)])
@pytest.mark.parametrize("width", [3, Apot(5)])
def test_whatever_shares_an_exponent(per: Any, width: Any) -> None:
    module, inputs = gaussian(mixed=True)
    plain = solved(module, inputs, width, per=per)
    priced = solved(module, inputs, width, per=per, rate=3.0)
    assert priced.codebook.max_exponent.shape == plain.codebook.max_exponent.shape
    assert bits(priced) < 0.97 * bits(plain)


def test_where_a_norm_cancels_the_scale_channels_get_the_factor_of_least_error() -> None:
    module, inputs = gaussian(mixed=True)
    (layer,) = find_layers(module)[0]
    moments = Moments.of(layer)
    moments.add(slice(None), inputs)
    solution = solve(layer, moments, 3, PtqSettings(rate=3.0), scaled=True)
    assert solution.factor is not None
    level = (solution.codebook.decode(solution.codes) * solution.factor.view(-1, 1)).double()
    outputs, target = (
        level @ inputs[0].double(),
        module.weight.detach().double() @ inputs[0].double(),
    )
    gain = (outputs * target).sum(1) / outputs.square().sum(1)
    torch.testing.assert_close(gain, torch.ones_like(gain), rtol=1e-4, atol=1e-4)


def test_pruned_weights_stay_zero_whatever_zero_costs() -> None:
    module, inputs = gaussian(mixed=True)
    with torch.no_grad():
        module.weight[:20, ::6] = 0
        module.weight[20:, 1::6] = 0
        module.weight[5] = 0
    for order in ("gptq", "distance"):
        solution = solved(module, inputs, 3, rate=3.0, order=order)
        for one in (solution, solution.rounding):
            assert one is not None
            assert not one.codebook.decode(one.codes)[module.weight == 0].any()


def test_rows_without_error_or_without_weights() -> None:
    torch.manual_seed(0)
    module = nn.Linear(16, 4)
    with torch.no_grad():
        module.weight[0] = 0
        module.weight[1] = 0.5
        module.weight[2] = torch.where(torch.arange(16) % 2 == 0, 0.25, -1.0)
    solution = solved(module, torch.randn(1, 16, 50), 4, rate=1.0)
    level = solution.codebook.decode(solution.codes)
    assert torch.equal(level[:3], module.weight[:3])
    with torch.no_grad():
        module.weight.zero_()
    solution = solved(module, torch.randn(1, 16, 50), 4, rate=1.0)
    assert not solution.codebook.decode(solution.codes).any()


def test_embeddings_are_rounded_at_the_rate_too() -> None:
    torch.manual_seed(0)
    module = nn.Embedding(50, 24)
    (layer,) = find_layers(module)[0]
    plain, priced = (
        solve(layer, Moments.of(layer), 4, PtqSettings(rate=rate)) for rate in (0.0, 2.0)
    )
    assert bits(priced) < 0.9 * bits(plain)
    assert priced.compensated < 3 * plain.compensated


def test_the_bits_are_those_of_the_codes() -> None:
    codes = torch.tensor([0] * 50 + [1] * 25 + [2] * 25, dtype=torch.uint8)
    assert bits_of_codes(codes, 3).tolist() == pytest.approx([1, 2, 2], abs=0.02)
    assert bits_of_codes(codes, 5)[4] > 7
    solution = solved(*gaussian(mixed=True), 4, rate=1.0)
    model = bits_of_codes(solution.codes, codebook_at(4, torch.tensor(0)).width.level_count)
    assert float(model[solution.codes.long()].sum()) == pytest.approx(bits(solution), rel=0.02)
