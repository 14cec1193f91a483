"""Damping, the target of the weights, and refitting, against least squares by factorization."""

import itertools

import pytest
import torch
from torch import Tensor

from octavo.ptq.least_squares import damped, least_squares_target, output_error, refit

LEVELS = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0], dtype=torch.float64)


def problems(count: int, rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights (problems, rows, columns) and correlated inputs (problems, columns, n), float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = 0.6 * torch.randn(count, rows, columns, generator=generator, dtype=torch.float64)
    mixing = torch.randn(count, columns, columns, generator=generator, dtype=torch.float64)
    return weight, mixing @ torch.randn(
        count, columns, 2 * columns + 3, generator=generator, dtype=torch.float64
    )


def rounded(weight: Tensor) -> Tensor:
    """The nearest level of each weight."""
    return LEVELS[(weight.unsqueeze(-1) - LEVELS).abs().argmin(-1)]


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


def test_output_error_is_the_squared_length_of_what_the_outputs_lose() -> None:
    weight, X = problems(3, 4, 5)
    expected = [
        [sum(float(row @ column) ** 2 for column in x.T) for row in w]
        for w, x in zip(weight, X, strict=True)
    ]
    assert torch.allclose(
        output_error(weight, X @ X.mT), torch.tensor(expected, dtype=torch.float64)
    )


# Refitting the free weights.


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
    nearest = rounded(target)
    return torch.where(free, target, nearest), target, X, free


@pytest.mark.parametrize("shape", [(1, 4, 1), (1, 3, 5), (3, 2, 7), (2, 4, 10)])
def test_refitting_is_least_squares_over_the_free_weights(shape: tuple[int, int, int]) -> None:
    for seed in range(3):
        weight, target, X, free = half_frozen(*shape, seed)
        expected = free_least_squares(weight, target, X, free)
        refitted = refit(weight, target, X @ X.mT, free)
        assert torch.allclose(refitted, expected, atol=1e-6, rtol=0)
        short = refit(weight.float(), target.float(), (X @ X.mT).float(), free)
        assert short.dtype == torch.float32
        best, found = (output_error(w - target, X @ X.mT) for w in (expected, short.double()))
        assert bool((found <= best * (1 + 1e-3) + 1e-6).all())


@pytest.mark.parametrize("columns", [40, 150])
def test_with_many_columns_the_error_comes_near_its_least(columns: int) -> None:
    for seed in range(3):
        weight, target, X, free = half_frozen(2, 6, columns, seed)
        hessian = damped(X @ X.mT, 0.01)
        factor = torch.linalg.cholesky(hessian)
        best = output_error(free_least_squares(weight, target, factor, free) - target, hessian)
        start = output_error(weight - target, hessian)
        for dtype in (torch.float64, torch.float32):
            refitted = refit(weight.to(dtype), target.to(dtype), hessian.to(dtype), free)
            found = output_error(refitted.double() - target, hessian)
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
    refitted = refit(weight, target, hessian, free)
    assert torch.equal(refitted[~free], weight[~free])
    assert not bool((refitted == weight)[free].any())
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
def test_rows_that_need_no_refitting_stay_and_disturb_no_other(dtype: torch.dtype) -> None:
    """One row is right as it is, one is all zero, one has no free weight, and one is to become
    zero."""
    weight, target, X, free = half_frozen(2, 6, 8, 0)
    target[:, 0] = weight[:, 0]
    weight[:, 1] = target[:, 1] = 0
    free[:, 2] = False
    target[:, 3] = 0
    expected = free_least_squares(weight, target, X, free)
    refitted = refit(weight.to(dtype), target.to(dtype), (X @ X.mT).to(dtype), free)
    assert torch.equal(refitted[:, :3], weight[:, :3].to(dtype))
    assert torch.allclose(
        refitted.double(), expected, atol=1e-6 if dtype == torch.float64 else 1e-2, rtol=0
    )


@pytest.mark.parametrize(
    ("of_weights", "of_inputs"), [(2.0**-20, 2.0**-20), (2.0**-30, 2.0**10), (2.0**20, 2.0**20)]
)
def test_refitting_knows_no_unit(of_weights: float, of_inputs: float) -> None:
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


# The target, where inputs have drifted.


def test_the_target_is_least_squares_to_the_outputs_that_drifted() -> None:
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


def test_without_drift_the_target_is_the_weights_to_the_bit() -> None:
    weight, X = problems(2, 3, 5)
    for w in (weight, weight.float()):
        found = least_squares_target(w, X @ X.mT, torch.zeros_like(w))
        assert found.dtype == torch.float64
        assert torch.equal(found, w.double())


@pytest.mark.parametrize("columns", [4, 9, 14])
def test_a_damped_hessian_is_definite_in_every_order_of_its_columns(columns: int) -> None:
    """Pruned attention raised torch's raw error, as its columns freeze in another order."""
    generator = torch.Generator().manual_seed(columns)
    for _ in range(100):
        X = torch.randn(1, columns, 2 * columns, generator=generator)
        X[:, 1] = X[:, 0]  # singular but for rounding
        hessian = damped(X @ X.mT, 0.0)
        order = hessian[0].diagonal().argsort()
        torch.linalg.cholesky(hessian[:, order][:, :, order])
