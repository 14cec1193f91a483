"""PTQ of one layer: never worse than rounding, errors as they are on the inputs themselves, and
legal extremes."""

import math
import re
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

import octavo.ptq.layer_problem
from octavo.errors import PlanError
from octavo.formats.powers_of_two import power_of_two
from octavo.formats.registry import fitted_codebook
from octavo.formats.width import Apot, WidthLike, read_width
from octavo.network.layer_inputs import layer_inputs, problem_count
from octavo.network.layers import Layer, channels_first, find_layers
from octavo.network.moments import Moments
from octavo.ptq.layer_solver import Solution, solve
from octavo.ptq.settings import PtqOrder, PtqSettings

ORDERS: tuple[PtqOrder, ...] = get_args(PtqOrder)


def layer_of(module: nn.Module) -> Layer:
    return find_layers(nn.ModuleDict({"m": module}))[0][0]


def inputs_for(layer: Layer, count: int = 40, seed: int = 0) -> Tensor:
    """Inputs (problems, columns, n) that depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    rows = channels_first(layer.weight, layer.groups)
    columns = rows[0].numel()
    mixing = torch.randn(problem_count(layer), columns, columns, generator=generator)
    return mixing @ torch.randn(problem_count(layer), columns, count, generator=generator)


def moments_of(layer: Layer, X: Tensor, drift: Tensor | None = None) -> Moments:
    moments = Moments.of(layer)
    moments.add(slice(None), X, drift)
    return moments


def by_problem(layer: Layer, weight: Tensor) -> Tensor:
    """(problems, rows, columns), float64."""
    return weight.detach().reshape(problem_count(layer), -1, weight[0].numel()).double()


def weights_of(layer: Layer) -> Tensor:
    return by_problem(layer, channels_first(layer.weight, layer.groups))


def levels_of(layer: Layer, solution: Solution) -> Tensor:
    return by_problem(layer, solution.codebook.decode(solution.codes))


def squared(outputs: Tensor) -> float:
    return float(outputs.square().sum())


LAYERS: dict[str, Any] = {
    "linear": lambda: nn.Linear(12, 5),
    "narrow": lambda: nn.Linear(1, 3),
    "grouped": lambda: nn.Conv2d(4, 6, (2, 3), groups=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 2, groups=2),
    "attention": lambda: nn.MultiheadAttention(6, 2),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bits", [2, 3, 4, 5, Apot(5), Apot(7), "fp4", "fp6", "fp8", "int8"])
@pytest.mark.parametrize("fit", ["max", "mse"])
@pytest.mark.parametrize("per", ["tensor", "channel", ("group", 4)])
def test_outputs_are_never_further_off_than_by_rounding(
    kind: str, bits: WidthLike, fit: Any, per: Any
) -> None:
    torch.manual_seed(int(read_width(bits)))
    layer = layer_of(LAYERS[kind]())
    X, rows = inputs_for(layer), channels_first(layer.weight.detach(), layer.groups)
    solution = solve(layer, moments_of(layer, X), bits, PtqSettings(fit=fit, per=per))
    assert (solution.codes.dtype, solution.codes.shape) == (torch.uint8, rows.shape)
    rounding = by_problem(layer, fitted_codebook(rows, bits, fit=fit, per=per).project(rows))
    weight, levels, X = weights_of(layer), levels_of(layer, solution), X.double()
    whole, nearest, found = (squared(w @ X) for w in (weight, weight - rounding, weight - levels))
    assert found <= nearest * (1 + 1e-5)
    assert solution.nearest == pytest.approx(math.sqrt(nearest / whole), rel=1e-3, abs=1e-6)
    assert solution.compensated == pytest.approx(math.sqrt(found / whole), rel=1e-3, abs=1e-6)
    shapes = {"tensor": (), "channel": rows.shape[:1]}
    groups = (len(rows), -(-rows[0].numel() // 4))
    assert solution.codebook.max_exponent.shape == shapes.get(per, groups)


@pytest.mark.parametrize("order", ORDERS)
def test_dependent_inputs_let_weights_compensate_for_each_other(order: Any) -> None:
    torch.manual_seed(0)
    layer = layer_of(nn.Linear(20, 8))
    solution = solve(layer, moments_of(layer, inputs_for(layer, 60)), 3, PtqSettings(order=order))
    assert solution.compensated < 0.95 * solution.nearest


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("per", ["tensor", "channel", ("group", 4)])
def test_no_order_is_worse_than_rounding_row_by_row(order: Any, per: Any) -> None:
    """Even with few inputs, where hardly anything can be compensated."""
    for seed in range(4):
        torch.manual_seed(seed)
        layer = layer_of(nn.Linear(6, 8))
        X = inputs_for(layer, 2, seed).double()
        solution = solve(layer, moments_of(layer, X.float()), 2, PtqSettings(order=order, per=per))
        weight = weights_of(layer)
        rounding = power_of_two(layer.weight, 2, fit="mse", per=per).project(layer.weight).double()
        found, nearest = (
            ((weight - w) @ X).square().sum(-1) for w in (levels_of(layer, solution), rounding)
        )
        if per != "tensor":
            assert bool((found <= nearest * (1 + 1e-5) + 1e-9).all())
        assert float(found.sum()) <= float(nearest.sum()) * (1 + 1e-5) + 1e-9


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("fit", ["max", "mse"])
@pytest.mark.parametrize("per", ["tensor", "channel", ("group", 4)])
@pytest.mark.parametrize("exponent", [0, -20, 90, -140])
def test_weights_that_are_levels_come_back_as_they_are(
    bits: int, fit: Any, per: Any, exponent: int
) -> None:
    """At -140 float32 has subnormal numbers only, as weights have that decay for long."""
    torch.manual_seed(0)
    module, powers = nn.Linear(9, 4, bias=False), 2 ** (bits - 2)
    values = torch.ldexp(
        torch.ones(4, 9).double(), exponent - torch.randint(0, powers, (4, 9)).double()
    ) * (torch.randn(4, 9) > 0)
    values[:, 0] = -(2.0**exponent)
    with torch.no_grad():
        module.weight.copy_(values)
    layer = layer_of(module)
    solution = solve(
        layer, moments_of(layer, inputs_for(layer)), bits, PtqSettings(fit=fit, per=per)
    )
    assert torch.equal(solution.codebook.decode(solution.codes), module.weight)
    assert (solution.nearest, solution.compensated) == (0, 0)


@pytest.mark.parametrize("exponent", [100, -60, -138])
def test_the_size_of_the_weights_makes_no_difference(exponent: int) -> None:
    torch.manual_seed(0)
    small, scaled = nn.Linear(9, 4), nn.Linear(9, 4)
    with torch.no_grad():
        small.weight.copy_(
            (small.weight * 64).round()
        )  # few digits, which subnormal numbers have too
        scaled.weight.copy_(torch.ldexp(small.weight.double(), torch.tensor(exponent).double()))
    solutions = [
        solve(layer, moments_of(layer, inputs_for(layer)), 3, PtqSettings())
        for layer in map(layer_of, (small, scaled))
    ]
    assert torch.equal(solutions[0].codes, solutions[1].codes)
    assert (solutions[1].codebook.max_exponent - solutions[0].codebook.max_exponent).tolist() == [
        exponent
    ] * 4
    assert solutions[1].compensated == pytest.approx(solutions[0].compensated)


# Extremes.


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("damp", [0, 0.01])
def test_inputs_that_are_always_zero_leave_their_weights_at_the_nearest_level(
    order: Any, damp: float
) -> None:
    torch.manual_seed(0)
    layer = layer_of(nn.Linear(8, 6))
    X = inputs_for(layer)
    X[:, [2, 5]] = 0
    solution = solve(layer, moments_of(layer, X), 3, PtqSettings(order=order, damp=damp))
    assert solution.compensated < solution.nearest
    dead = layer.weight.detach()[:, [2, 5]]
    assert torch.equal(
        solution.codebook.decode(solution.codes)[:, [2, 5]], solution.codebook.project(dead)
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_without_any_input_but_zeros_weights_are_rounded(order: Any, per: Any) -> None:
    layer = layer_of(nn.Linear(8, 6))
    solution = solve(
        layer, moments_of(layer, torch.zeros(1, 8, 9)), 3, PtqSettings(order=order, per=per)
    )
    weight = layer.weight.detach()
    assert torch.equal(solution.codes, power_of_two(weight, 3, fit="mse", per=per).encode(weight))
    assert (solution.nearest, solution.compensated) == (0, 0)


def test_weights_that_are_all_zero_stay_so() -> None:
    layer = layer_of(nn.Linear(8, 6))
    nn.init.zeros_(layer.weight)
    for per in ("tensor", "channel"):
        solution = solve(layer, moments_of(layer, inputs_for(layer)), 3, PtqSettings(per=per))
        assert not solution.codebook.decode(solution.codes).any()
        assert (solution.nearest, solution.compensated) == (0, 0)


@pytest.mark.parametrize("order", ORDERS)
def test_fewer_inputs_than_weights_and_no_damping(order: Any) -> None:
    torch.manual_seed(0)
    layer = layer_of(nn.Linear(20, 6))
    solution = solve(
        layer, moments_of(layer, inputs_for(layer, 5)), 3, PtqSettings(order=order, damp=0)
    )
    assert solution.compensated < 0.6 * solution.nearest  # 20 weights for 5 outputs


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["inputs", "drift", "weight"])
def test_what_is_not_finite_is_named_with_its_layer(value: float, where: str) -> None:
    layer = layer_of(nn.Linear(4, 3))
    X, drift = inputs_for(layer), torch.zeros(1, 3, 40)
    with torch.no_grad():
        {"inputs": X, "drift": drift, "weight": layer.weight.unsqueeze(0)}[where][0, 1, 2] = value
    what = "weights, got 1 of 12" if where == "weight" else "calibration inputs, got some"
    with pytest.raises(PlanError, match=f"^m: expected finite {what} that are NaN or infinite"):
        solve(layer, moments_of(layer, X, drift), 3, PtqSettings())


# Drift.


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_drift_moves_the_target_to_the_least_squares_weights(order: Any, per: Any) -> None:
    """If these are levels, they are found, however far they are from the layer's weights."""
    torch.manual_seed(0)
    layer = layer_of(nn.Conv1d(8, 6, 2, groups=2))
    X = inputs_for(layer, 60)
    levels = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])[torch.randint(0, 5, (2, 3, 8))]
    levels[..., 0] = 1.0
    outputs = (
        levels @ X + 1e-3 * torch.linalg.svd(X)[2][:, -3:]
    )  # and something that no weights of these inputs give
    drift = outputs - weights_of(layer).float() @ X
    solution = solve(
        layer, moments_of(layer, X, drift), 3, PtqSettings(order=order, per=per, damp=0)
    )
    assert torch.equal(levels_of(layer, solution), levels.double())
    assert solution.compensated < 1e-3 < solution.nearest


def test_errors_are_relative_to_the_least_squares_outputs() -> None:
    torch.manual_seed(0)
    layer = layer_of(nn.Linear(6, 4))
    now = inputs_for(layer, 50)
    full = now + 0.3 * torch.randn_like(now)
    drift = layer.weight.detach() @ (full - now)
    solution = solve(layer, moments_of(layer, now, drift), 3, PtqSettings(damp=0))
    outputs = (weights_of(layer) @ full.double())[0]
    target = torch.linalg.lstsq(now[0].T.double(), outputs.T).solution.T
    levels, X = levels_of(layer, solution)[0], now[0].double()
    expected = math.sqrt(squared((target - levels) @ X) / squared(target @ X))
    assert solution.compensated == pytest.approx(expected, rel=1e-3)
    rounding = (
        power_of_two(layer.weight, 3, fit="mse", per="channel").project(layer.weight).double()
    )
    assert squared(outputs - levels @ X) < squared(outputs - rounding @ X)


# Settings.


@pytest.mark.parametrize("settings", [{"fit": "best"}, {"per": "row"}])
def test_an_unknown_fit_or_per_is_refused_with_the_layers_name(settings: dict[str, Any]) -> None:
    layer = layer_of(nn.Linear(4, 3))
    with pytest.raises(PlanError, match=f"m: expected {next(iter(settings))} "):
        solve(layer, moments_of(layer, inputs_for(layer)), 3, PtqSettings(**settings))


# Pruned layers.


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_a_pruned_layer_keeps_its_zeros_and_does_not_lose_to_rounding(
    kind: str, order: Any, per: Any
) -> None:
    torch.manual_seed(1)
    layer = layer_of(LAYERS[kind]())
    with torch.no_grad():
        layer.weight[torch.rand_like(layer.weight) < 0.7] = 0
    X, rows = inputs_for(layer), channels_first(layer.weight.detach(), layer.groups)
    drift = 0.1 * torch.randn(problem_count(layer), len(rows) // problem_count(layer), X.shape[2])
    for moments in (moments_of(layer, X), moments_of(layer, X, drift)):
        solution = solve(layer, moments, 3, PtqSettings(order=order, per=per))
        zeros, rounding = (
            weights_of(layer) == 0,
            by_problem(layer, power_of_two(rows, 3, fit="mse", per=per).project(rows)),
        )
        levels = levels_of(layer, solution)
        assert bool((levels[zeros] == 0).all())
        target = weights_of(layer) @ X.double() + (
            0 if moments.drift.eq(0).all() else drift.double()
        )
        found, nearest = (squared(target - w @ X.double()) for w in (levels, rounding))
        assert found <= nearest * (1 + 1e-4) + 1e-9


def test_kept_weights_compensate_for_rounding_and_for_drift() -> None:
    torch.manual_seed(0)
    layer = layer_of(nn.Linear(40, 8))
    with torch.no_grad():
        layer.weight[torch.rand_like(layer.weight) < 0.6] = 0
    X = inputs_for(layer, 120)
    for moments in (moments_of(layer, X), moments_of(layer, X, 0.2 * X[:, :8])):
        solution = solve(layer, moments, 3, PtqSettings())
        assert solution.compensated < 0.95 * solution.nearest


@pytest.mark.parametrize("largest", [3e18, 1e30])
def test_inputs_that_are_finite_and_too_large_are_named(largest: float) -> None:
    layer = layer_of(nn.Linear(6, 3))
    X = inputs_for(layer)
    X[0, 4] = largest
    got = re.escape(f"{largest:.2g}")
    message = rf"^m: expected .* below about 1e18, got {got} in 1 of 6 columns, .* 4;"
    with pytest.raises(PlanError, match=message):
        solve(layer, moments_of(layer, X), 3, PtqSettings())
    X[0, 2, 1] = math.inf
    with pytest.raises(PlanError, match=r"^m: expected finite calibration inputs"):
        solve(layer, moments_of(layer, X), 3, PtqSettings())


@pytest.mark.parametrize("order", ORDERS)
def test_an_embedding_takes_its_nearest_levels_without_being_solved(
    order: PtqOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compensated(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(octavo.ptq.layer_problem, "compensate", compensated)
    torch.manual_seed(0)
    layer = layer_of(nn.Embedding(40, 6, padding_idx=3))
    moments = Moments.of(layer)
    for problem, X in layer_inputs(layer, layer.module, (torch.arange(40),), {}):
        moments.add(problem, X)
    solution = solve(layer, moments, 3, PtqSettings(order=order))
    expected = fitted_codebook(layer.weight.detach(), 3, fit="mse", per="channel", name="m")
    assert torch.equal(solution.codes, expected.encode(layer.weight.detach()))
    weight = layer.weight.detach()
    error = (weight - expected.decode(solution.codes)).norm() / weight.norm()
    assert solution.compensated == solution.nearest == pytest.approx(float(error))
