"""Freezing in closed form against least squares solved anew after every weight, and rounding
against exact fractions."""

import functools
import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

import octavo.ptq.gptq
from octavo.errors import PlanError
from octavo.formats.powers_of_two import PowerOfTwo
from octavo.ptq.gptq import PtqOrder
from octavo.ptq.gptq import compensate as codes_and_errors
from octavo.ptq.least_squares import damped, least_squares_target, output_error, refit

LEVELS = [-1.0, -0.5, 0.0, 0.5, 1.0]
Choose = Callable[
    [Tensor, dict[int, float], Tensor, Tensor], int
]  # the column to freeze, from free weights, frozen, X, v


def compensate(weight: Tensor, hessian: Tensor, levels: Tensor, order: PtqOrder) -> Tensor:
    """Codes whose errors are what they are said to be."""
    codes, of_outputs, of_weights = codes_and_errors(weight, hessian, levels, order)
    lost = (weight - levels[codes.long()]).double()
    tolerance = 1e-3 if weight.dtype == torch.float32 else 1e-9
    for found, expected in (
        (of_outputs, torch.einsum("pri,pij,prj->pr", lost, hessian.double(), lost)),
        (of_weights, torch.einsum("pri,pri->pr", lost, lost)),
    ):
        torch.testing.assert_close(
            found, expected, rtol=tolerance, atol=1e-9 * float(expected.abs().sum())
        )
    return codes


def levels(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(LEVELS, dtype=dtype)


def problems(count: int, rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights (problems, rows, columns) and correlated inputs (problems, columns, n), float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = 0.6 * torch.randn(count, rows, columns, generator=generator, dtype=torch.float64)
    mixing = torch.randn(count, columns, columns, generator=generator, dtype=torch.float64)
    return weight, mixing @ torch.randn(
        count, columns, 2 * columns + 3, generator=generator, dtype=torch.float64
    )


def rounded(weight: Tensor, levels: Tensor) -> Tensor:
    """Each weight by itself, as a problem of one column: no other makes up for it."""
    alone = torch.ones(weight.numel(), 1, 1, dtype=torch.float64)
    return compensate(weight.reshape(-1, 1, 1), alone, levels, "gptq").view(weight.shape)


def nearest(value: float) -> float:
    return min(LEVELS, key=lambda level: (abs(value - level), -abs(level)))


def least_squares(v: Tensor, X: Tensor, frozen: dict[int, float]) -> Tensor:
    """The weights w of least ``|(w - v) X|`` among those with the frozen values."""
    w, free = v.clone(), [j for j in range(len(v)) if j not in frozen]
    for j, value in frozen.items():
        w[j] = value
    lost = (v - w) @ X  # by the frozen ones; the free ones still are as in v
    if free:
        w[free] += torch.linalg.lstsq(X[free].T, lost.unsqueeze(1)).solution.squeeze(1)
    return w


def solved_anew(v: Tensor, X: Tensor, choose: Choose) -> Tensor:
    """The levels of one row, the least-squares weights solved for after each freeze."""
    frozen: dict[int, float] = {}
    for _ in range(len(v)):
        w = least_squares(v, X, frozen)
        j = choose(w, frozen, X, v)
        frozen[j] = nearest(float(w[j]))
    return least_squares(v, X, frozen)


def in_order(columns: Any) -> Choose:
    return lambda w, frozen, X, v: next(int(j) for j in columns if int(j) not in frozen)


def largest(w: Tensor, frozen: dict[int, float], X: Tensor, v: Tensor) -> int:
    return max((j for j in range(len(w)) if j not in frozen), key=lambda j: abs(float(w[j])))


def cheapest(w: Tensor, frozen: dict[int, float], X: Tensor, v: Tensor) -> int:
    """The one whose freezing leaves the least error once the others have made up for it."""

    def error(j: int) -> float:
        after = least_squares(v, X, {**frozen, j: nearest(float(w[j]))})
        return float(((after - v) @ X).square().sum())

    return min((j for j in range(len(w)) if j not in frozen), key=error)


def each_row(weight: Tensor, X: Tensor, choose: Callable[[Tensor], Choose]) -> Tensor:
    rows = [[solved_anew(row, x, choose(x)) for row in w] for w, x in zip(weight, X, strict=True)]
    return torch.stack([torch.stack(some) for some in rows])


def largest_inputs_first(X: Tensor) -> Choose:
    energy = X.square().sum(1).tolist()
    return in_order(sorted(range(len(energy)), key=lambda j: -energy[j]))


def solved(weight: Tensor, X: Tensor, order: Any) -> Tensor:
    return levels()[compensate(weight, X @ X.mT, levels(), order).long()]


# The four orders.


@pytest.mark.parametrize(
    ("order", "choose"),
    [
        ("gptq", largest_inputs_first),
        ("distance", lambda _: cheapest),
        ("magnitude", lambda _: largest),
    ],
)
@pytest.mark.parametrize("shape", [(1, 4, 1), (1, 3, 5), (3, 2, 7)])
def test_orders_against_least_squares_solved_anew(
    order: str, choose: Any, shape: tuple[int, int, int]
) -> None:
    for seed in range(3):
        weight, X = problems(*shape, seed=seed)
        expected = each_row(weight, X, choose)
        assert torch.allclose(solved(weight, X, order), expected, atol=1e-8, rtol=0)


def test_the_random_order_is_one_for_all_rows_and_problems() -> None:
    weight, X = problems(2, 5, 4)
    found = solved(weight, X, "random")
    expected = {
        order: each_row(weight, X, lambda _, order=order: in_order(order))
        for order in itertools.permutations(range(4))
    }  # type: ignore[misc]
    orders = [order for order, codes in expected.items() if torch.allclose(codes, found, atol=1e-8)]
    assert len(orders) == 1


def test_the_random_order_repeats_whatever_torch_was_seeded_with() -> None:
    weight, X = problems(1, 6, 20)
    torch.manual_seed(1)
    first, state = solved(weight, X, "random"), torch.random.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(solved(weight, X, "random"), first)
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(solved(weight, X, "gptq"), first)


def test_an_unknown_order_is_named_with_the_known_ones() -> None:
    weight, X = problems(1, 2, 3)
    with pytest.raises(
        PlanError, match=r"order: expected one of gptq, distance, magnitude, random, got 'far'"
    ):
        compensate(weight, X @ X.mT, levels(), "far")  # type: ignore[arg-type]


def test_codes_are_bytes_in_the_shape_of_the_weights_and_arguments_stay_as_they_are() -> None:
    weight, X = problems(2, 3, 5)
    hessian = X @ X.mT
    before = weight.clone(), hessian.clone()
    for order in ("gptq", "distance", "magnitude", "random"):
        codes = compensate(weight, hessian, levels(), order)
        assert (codes.dtype, codes.shape) == (torch.uint8, weight.shape)
        assert torch.equal(weight, before[0])
        assert torch.equal(hessian, before[1])


def test_independent_inputs_leave_nothing_to_make_up_for() -> None:
    weight, _ = problems(2, 3, 70)
    for order in ("gptq", "distance", "magnitude", "random"):
        codes = compensate(weight, 3 * torch.eye(70).double().expand(2, 70, 70), levels(), order)
        assert torch.equal(codes, rounded(weight, levels()))


# Blocks of columns, chunks of rows.


@functools.cache
def wide() -> tuple[Tensor, Tensor, Tensor]:
    weight, X = problems(2, 2, 70)
    return weight, X, each_row(weight, X, largest_inputs_first)


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_columns_beyond_the_block_are_made_up_for_too(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, X, expected = wide()
    monkeypatch.setattr(octavo.ptq.gptq, "BLOCK", block)
    assert torch.allclose(solved(weight, X, "gptq"), expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("rows_at_once", [0, 1, 3, 100])
@pytest.mark.parametrize("order", ["distance", "magnitude"])
def test_rows_in_chunks(order: str, rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 11 columns a quarter is 3, then 2, 2, 1, 1 and 1: so all of it is gone through."""
    weight, X = problems(2, 4, 11)
    expected = each_row(weight, X, lambda _: cheapest if order == "distance" else largest)
    monkeypatch.setattr(octavo.ptq.gptq, "CHUNK", rows_at_once * 11**2)
    assert torch.allclose(solved(weight, X, order), expected, atol=1e-8, rtol=0)


def test_float32_weights_with_a_float64_hessian_as_solve_gives_them() -> None:
    weight, X = problems(2, 3, 30)
    hessian = X @ X.mT
    for order in ("gptq", "distance", "magnitude", "random"):
        codes = compensate(weight.float(), hessian, levels(torch.float32), order)
        same = codes == compensate(weight, hessian, levels(), order)
        assert float(same.double().mean()) > 0.9  # a row goes other ways from its first near tie on
        errors = [
            output_error(weight - levels()[c.long()], hessian).sum()
            for c in (codes, rounded(weight, levels()))
        ]
        assert errors[0] < errors[1]


# Rounding.


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_equation_4_in_exact_fractions(bits: int, dtype: torch.dtype) -> None:
    unit = PowerOfTwo(bits, torch.tensor(0)).unit_levels().to(dtype)
    middle = ((unit[1:] + unit[:-1]) / 2)[:: max(1, len(unit) // 20)]
    beside = [torch.nextafter(middle, torch.full_like(middle, far)) for far in (-9.0, 9.0)]
    outside = torch.tensor([-3.0, -1.5, -1.0, -0.0, 0.0, 1.0, 1.5, 3.0], dtype=dtype)
    values = torch.cat([middle, *beside, unit[::5], outside, torch.randn(20, dtype=dtype)])
    exact = [Fraction(level) for level in unit.tolist()]
    for value, code in zip(values.tolist(), rounded(values, unit).tolist(), strict=True):
        expected = min(exact, key=lambda level: (abs(Fraction(value) - level), -abs(level)))
        assert exact[code] == expected, value


def test_rounding_inside_compensation_has_the_same_ties() -> None:
    values = torch.tensor([[[-0.75, -0.25, 0.25, 0.75]]], dtype=torch.float64)
    expected = [-1.0, -0.5, 0.5, 1.0]
    for order in ("gptq", "distance", "magnitude", "random"):
        codes = compensate(values, torch.eye(4).double().unsqueeze(0), levels(), order)
        assert levels()[codes.long()].flatten().tolist() == expected


# Damping and error.


def singular(columns: int, *, below: float = 0.0) -> Tensor:
    """A hessian of too few inputs, its least eigenvalues ``below`` zero as rounded sums may leave
    them."""
    _, X = problems(2, 1, columns)
    short = X[:, :, : columns // 2]
    hessian = short @ short.mT
    return hessian - below * hessian.diagonal(dim1=1, dim2=2).mean() * torch.eye(columns).double()


@pytest.mark.parametrize("damp", [0.0, 1e-9, 0.01, 2.0])
@pytest.mark.parametrize(
    "hessian",
    [
        singular(9),
        singular(9, below=1e-8),
        singular(9, below=1e-5),
        torch.zeros(2, 9, 9),
        singular(9).float(),
        torch.zeros(1, 1, 1),
    ],
)
def test_damping_makes_every_hessian_definite_by_as_little_as_it_takes(
    hessian: Tensor, damp: float
) -> None:
    result = damped(hessian, damp)
    assert result.dtype == torch.float64
    assert bool((torch.linalg.eigvalsh(result) > 0).all())
    added = result - hessian.double()
    share = added.diagonal(dim1=1, dim2=2)
    assert torch.allclose(
        added, share[:, :1, None] * torch.eye(hessian.shape[1]).double(), atol=1e-12
    )
    mean = hessian.double().diagonal(dim1=1, dim2=2).mean(1)
    most = max(damp, 2e-3) * torch.where(mean > 0, mean, 1.0)
    assert bool((share[:, 0] <= most * (1 + 1e-9)).all())


def test_a_definite_hessian_gets_the_damping_that_was_asked_for() -> None:
    _, X = problems(2, 1, 6)
    hessian = X @ X.mT * torch.tensor([1.0, 1e6]).view(2, 1, 1)
    assert torch.equal(damped(hessian, 0), hessian)
    for problem, result in zip(hessian, damped(hessian, 0.5), strict=True):
        mean = sum(float(problem[j, j]) for j in range(6)) / 6
        assert torch.allclose(result, problem + 0.5 * mean * torch.eye(6).double())


@pytest.mark.parametrize("order", ["gptq", "distance", "magnitude", "random"])
def test_inputs_that_others_determine_do_no_harm(order: Any) -> None:
    weight, X = problems(2, 5, 12)
    X = torch.cat([X[:, :6], X[:, :6]], 1)  # every input twice
    X[:, 3] = 0
    codes = compensate(weight, damped(X @ X.mT, 0.0), levels(), order)
    assert int(codes.max()) <= 4
    lost = output_error(weight - levels()[codes.long()], X @ X.mT)
    assert bool(
        (
            lost.sum(1)
            < output_error(weight - levels()[rounded(weight, levels()).long()], X @ X.mT).sum(1)
        ).all()
    )


def test_output_error_is_the_squared_length_of_what_the_outputs_lose() -> None:
    weight, X = problems(3, 4, 5)
    expected = [
        [sum(float(row @ column) ** 2 for column in x.T) for row in w]
        for w, x in zip(weight, X, strict=True)
    ]
    assert torch.allclose(
        output_error(weight, X @ X.mT), torch.tensor(expected, dtype=torch.float64)
    )


# Made up for by the weights that are free; what the weights should be where inputs have drifted.


def free_least_squares(weight: Tensor, target: Tensor, X: Tensor, free: Tensor) -> Tensor:
    """Row by row, the free weights w of least ``|(w - target) X|``, float64."""
    result = weight.double().clone()
    rows = itertools.product(range(weight.shape[0]), range(weight.shape[1]))
    for problem, row in rows:
        inputs, own, wished = X[problem], free[problem, row], target[problem, row].double()
        rest = wished @ inputs - result[problem, row, ~own] @ inputs[~own]
        if bool(own.any()):
            result[problem, row, own] = torch.linalg.lstsq(
                inputs[own].T, rest.unsqueeze(1)
            ).solution.squeeze(1)
    return result


def half_frozen(
    count: int, rows: int, columns: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights of which some are frozen at levels, what they were before, inputs, and which are
    free."""
    target, X = problems(count, rows, columns, seed=seed)
    free = torch.rand(target.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    nearest = levels()[rounded(target, levels()).long()]
    return torch.where(free, target, nearest), target, X, free


@pytest.mark.parametrize("shape", [(1, 4, 1), (1, 3, 5), (3, 2, 7), (2, 4, 10)])
def test_making_up_is_least_squares_over_the_free_weights(shape: tuple[int, int, int]) -> None:
    for seed in range(3):
        weight, target, X, free = half_frozen(*shape, seed)
        expected = free_least_squares(weight, target, X, free)
        made_up = refit(weight, target, X @ X.mT, free)
        assert torch.allclose(made_up, expected, atol=1e-6, rtol=0)
        short = refit(weight.float(), target.float(), (X @ X.mT).float(), free)
        assert short.dtype == torch.float32
        best, found = (output_error(w - target, X @ X.mT) for w in (expected, short.double()))
        assert bool((found <= best * (1 + 1e-3) + 1e-6).all())


@pytest.mark.parametrize("columns", [40, 150])
def test_of_many_columns_the_error_comes_near_its_least(columns: int) -> None:
    for seed in range(3):
        weight, target, X, free = half_frozen(2, 6, columns, seed)
        hessian = damped(X @ X.mT, 0.01)
        factor = torch.linalg.cholesky(hessian)
        best = output_error(free_least_squares(weight, target, factor, free) - target, hessian)
        start = output_error(weight - target, hessian)
        for dtype in (torch.float64, torch.float32):
            made_up = refit(weight.to(dtype), target.to(dtype), hessian.to(dtype), free)
            found = output_error(made_up.double() - target, hessian)
            assert bool((found < start).all())
            assert bool((found < 1.02 * best).all())
            assert float(found.sum()) < 1.002 * float(best.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_that_are_not_free_keep_every_bit_and_arguments_stay_as_they_are(
    dtype: torch.dtype,
) -> None:
    weight, target, X, free = half_frozen(2, 5, 30, 0)
    weight, target, hessian = weight.to(dtype), target.to(dtype), damped(X @ X.mT, 0.01).to(dtype)
    before = [value.clone() for value in (weight, target, hessian, free)]
    made_up = refit(weight, target, hessian, free)
    assert torch.equal(made_up[~free], weight[~free])
    assert not bool((made_up == weight)[free].any())
    assert all(
        torch.equal(value, old)
        for value, old in zip((weight, target, hessian, free), before, strict=True)
    )


def test_with_all_weights_free_there_is_nothing_left_to_lose_and_with_none_nothing_moves() -> None:
    weight, target, X, free = half_frozen(2, 4, 8, 0)
    assert not torch.allclose(weight, target, atol=0.1)
    everything = torch.ones_like(free)
    assert torch.allclose(refit(weight, target, X @ X.mT, everything), target, atol=1e-6, rtol=0)
    assert torch.equal(refit(weight, target, X @ X.mT, ~everything), weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_need_no_making_up_stay_and_disturb_no_other(dtype: torch.dtype) -> None:
    """One row is right as it is, one is all zero, one has no free weight, and one is to become
    zero."""
    weight, target, X, free = half_frozen(2, 6, 8, 0)
    target[:, 0] = weight[:, 0]
    weight[:, 1] = target[:, 1] = 0
    free[:, 2] = False
    target[:, 3] = 0
    expected = free_least_squares(weight, target, X, free)
    made_up = refit(weight.to(dtype), target.to(dtype), (X @ X.mT).to(dtype), free)
    assert torch.equal(made_up[:, :3], weight[:, :3].to(dtype))
    assert torch.allclose(
        made_up.double(), expected, atol=1e-6 if dtype == torch.float64 else 1e-2, rtol=0
    )


@pytest.mark.parametrize(
    ("of_weights", "of_inputs"), [(2.0**-20, 2.0**-20), (2.0**-30, 2.0**10), (2.0**20, 2.0**20)]
)
def test_making_up_knows_no_unit(of_weights: float, of_inputs: float) -> None:
    weight, target, X, free = half_frozen(2, 6, 30, 0)
    hessian = damped(X @ X.mT, 0.01)
    plain = refit(weight.float(), target.float(), hessian.float(), free)
    scaled = refit(
        (of_weights * weight).float(),
        (of_weights * target).float(),
        (of_inputs**2 * hessian).float(),
        free,
    )
    assert torch.allclose(scaled / of_weights, plain, atol=1e-4, rtol=0)


def test_what_is_wanted_is_least_squares_to_the_outputs_that_drifted() -> None:
    weight, X = problems(3, 4, 6)
    drift = torch.randn(
        3, 4, X.shape[2], generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    outputs = weight @ X + drift
    expected = torch.linalg.lstsq(X.mT, outputs.mT).solution.mT
    for dtype in (torch.float32, torch.float64):
        found = least_squares_target(weight.to(dtype), X @ X.mT, (drift @ X.mT).to(dtype))
        assert found.dtype == torch.float64
        assert torch.allclose(
            found, expected, atol=1e-9 if dtype == torch.float64 else 1e-3, rtol=0
        )
    assert not torch.allclose(expected, weight, atol=0.1)


def test_without_drift_what_is_wanted_are_the_weights_to_the_bit() -> None:
    weight, X = problems(2, 3, 5)
    for w in (weight, weight.float()):
        found = least_squares_target(w, X @ X.mT, torch.zeros_like(w))
        assert found.dtype == torch.float64
        assert torch.equal(found, w.double())


# Pruned weights.


@pytest.mark.parametrize(
    ("order", "choose"),
    [
        ("gptq", largest_inputs_first),
        ("distance", lambda _: cheapest),
        ("magnitude", lambda _: largest),
    ],
)
@pytest.mark.parametrize("shape", [(1, 4, 5), (3, 2, 7)])
def test_what_is_pruned_freezes_first(
    order: Any, choose: Any, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against least squares solved anew, each row without the columns that it has lost; two rows
    share a mask."""
    monkeypatch.setattr(octavo.ptq.gptq, "CHUNK", 60)  # more than one chunk
    for seed in range(3):
        weight, X = problems(*shape, seed=seed)
        kept = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6
        kept[0, 0] = False  # a row of which nothing is left
        both = torch.cat([weight, 0.7 * weight], 1) * kept.repeat(1, 2, 1)
        codes, of_outputs, _ = codes_and_errors(both, X @ X.mT, levels(), order, kept=kept)
        found = levels()[codes.long()]
        for p, r in itertools.product(range(shape[0]), range(2 * shape[1])):
            left = kept[p, r % shape[1]]
            row, x = both[p, r][left], X[p][left]
            expected = torch.zeros(shape[2], dtype=torch.float64)
            expected[left] = solved_anew(row, x, choose(x))
            assert torch.allclose(found[p, r], expected, atol=1e-8, rtol=0)
            error = float(((both[p, r] - found[p, r]) @ X[p]).square().sum())
            assert float(of_outputs[p, r]) == pytest.approx(error, rel=1e-6, abs=1e-9)
