"""The codes of every order, against least squares solved anew after each weight that freezes."""

import itertools
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

import octavo.ptq.obq
import octavo.ptq.pruned_rows
from octavo.errors import PlanError
from octavo.ptq.assignment import Assignment
from octavo.ptq.compensation import compensate
from octavo.ptq.least_squares import damped, output_error
from octavo.ptq.rounding import Rounding
from octavo.ptq.settings import PtqOrder

LEVELS = [-1.0, -0.5, 0.0, 0.5, 1.0]
ORDERS: tuple[PtqOrder, ...] = get_args(PtqOrder)
Choose = Callable[[Tensor, dict[int, float], Tensor, Tensor], int]
"""The column to freeze next, from a row's weights, the frozen ones, ``X`` and the target."""


def assigned(weight: Tensor, hessian: Tensor, levels: Tensor, order: PtqOrder) -> Tensor:
    """Codes, whose errors are as they are said to be."""
    found = compensate(weight, hessian, Rounding(levels), order)
    check_errors(found, weight, hessian, levels)
    return found.codes


def check_errors(found: Assignment, weight: Tensor, hessian: Tensor, levels: Tensor) -> None:
    error = (weight - levels[found.codes.long()]).double()
    of_outputs = torch.einsum("pri,pij,prj->pr", error, hessian.double(), error)
    of_weights = torch.einsum("pri,pri->pr", error, error)
    rtol = 1e-3 if weight.dtype == torch.float32 else 1e-9
    for said, expected in ((found.output_error, of_outputs), (found.weight_error, of_weights)):
        atol = 1e-9 * float(expected.abs().sum())
        torch.testing.assert_close(said, expected, rtol=rtol, atol=atol)


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
    """Each weight by itself, as a problem of one column, where no other compensates."""
    alone = torch.ones(weight.numel(), 1, 1, dtype=torch.float64)
    return assigned(weight.reshape(-1, 1, 1), alone, levels, "gptq").view(weight.shape)


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
    """The weight whose freezing leaves the least error once the others have compensated."""

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


def solved(weight: Tensor, X: Tensor, order: PtqOrder) -> Tensor:
    return levels()[assigned(weight, X @ X.mT, levels(), order).long()]


# All orders.


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
    order: PtqOrder, choose: Any, shape: tuple[int, int, int]
) -> None:
    for seed in range(3):
        weight, X = problems(*shape, seed=seed)
        expected = each_row(weight, X, choose)
        assert torch.allclose(solved(weight, X, order), expected, atol=1e-8, rtol=0)


def test_an_unknown_order_is_named_with_the_known_ones() -> None:
    weight, X = problems(1, 2, 3)
    with pytest.raises(
        PlanError, match=r"order: expected one of gptq, distance, magnitude, got 'far'"
    ):
        assigned(weight, X @ X.mT, levels(), "far")  # type: ignore[arg-type]


def test_codes_are_bytes_in_the_shape_of_the_weights_and_arguments_stay_as_they_are() -> None:
    weight, X = problems(2, 3, 5)
    hessian = X @ X.mT
    before = weight.clone(), hessian.clone()
    for order in ORDERS:
        codes = assigned(weight, hessian, levels(), order)
        assert (codes.dtype, codes.shape) == (torch.uint8, weight.shape)
        assert torch.equal(weight, before[0])
        assert torch.equal(hessian, before[1])


def test_independent_inputs_leave_nothing_to_compensate() -> None:
    weight, _ = problems(2, 3, 70)
    for order in ORDERS:
        codes = assigned(weight, 3 * torch.eye(70).double().expand(2, 70, 70), levels(), order)
        assert torch.equal(codes, rounded(weight, levels()))


def test_float32_weights_with_a_float64_hessian_as_solve_gives_them() -> None:
    weight, X = problems(2, 3, 30)
    hessian = X @ X.mT
    for order in ORDERS:
        codes = assigned(weight.float(), hessian, levels(torch.float32), order)
        same = codes == assigned(weight, hessian, levels(), order)
        assert float(same.double().mean()) > 0.9  # a row goes other ways from its first near tie on
        errors = [
            output_error(weight - levels()[c.long()], hessian).sum()
            for c in (codes, rounded(weight, levels()))
        ]
        assert errors[0] < errors[1]


def test_rounding_inside_compensation_has_the_same_ties() -> None:
    values = torch.tensor([[[-0.75, -0.25, 0.25, 0.75]]], dtype=torch.float64)
    expected = [-1.0, -0.5, 0.5, 1.0]
    for order in ORDERS:
        codes = assigned(values, torch.eye(4).double().unsqueeze(0), levels(), order)
        assert levels()[codes.long()].flatten().tolist() == expected


@pytest.mark.parametrize("order", ORDERS)
def test_inputs_that_others_determine_do_no_harm(order: Any) -> None:
    weight, X = problems(2, 5, 12)
    X = torch.cat([X[:, :6], X[:, :6]], 1)  # every input twice
    X[:, 3] = 0
    codes = assigned(weight, damped(X @ X.mT, 0.0), levels(), order)
    assert int(codes.max()) <= 4
    lost = output_error(weight - levels()[codes.long()], X @ X.mT)
    assert bool(
        (
            lost.sum(1)
            < output_error(weight - levels()[rounded(weight, levels()).long()], X @ X.mT).sum(1)
        ).all()
    )


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
    share a mask, and all rows of a problem do with GPTQ: see ``test_gptq`` for others."""
    monkeypatch.setattr(octavo.ptq.pruned_rows, "CHUNK", 60)  # more than one chunk
    monkeypatch.setattr(octavo.ptq.obq, "CHUNK", 60)
    for seed in range(3):
        weight, X = problems(*shape, seed=seed)
        kept = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6
        if order == "gptq":
            kept[:] = kept[:, :1]
        kept[0, 0] = False  # a row of which nothing is left
        both = torch.cat([weight, 0.7 * weight], 1) * kept.repeat(1, 2, 1)
        assignment = compensate(both, X @ X.mT, Rounding(levels()), order, kept=kept)
        check_errors(assignment, both, X @ X.mT, levels())
        found = levels()[assignment.codes.long()]
        for p, r in itertools.product(range(shape[0]), range(2 * shape[1])):
            left = kept[p, r % shape[1]]
            row, x = both[p, r][left], X[p][left]
            expected = torch.zeros(shape[2], dtype=torch.float64)
            expected[left] = solved_anew(row, x, choose(x))
            assert torch.allclose(found[p, r], expected, atol=1e-8, rtol=0)
