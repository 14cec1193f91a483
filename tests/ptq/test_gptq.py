"""GPTQ against the algorithm as its paper writes it, and rounding against exact fractions."""

from fractions import Fraction

import pytest
import torch
from torch import Tensor

import octavo.ptq.gptq
from octavo.formats.powers_of_two import PowerOfTwo
from octavo.ptq.gptq import column_order, gptq
from octavo.ptq.rounding import Rounding

LEVELS = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0], dtype=torch.float64)


def problems(count: int, rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights (problems, rows, columns) and correlated inputs (problems, columns, n), float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = 0.6 * torch.randn(count, rows, columns, generator=generator, dtype=torch.float64)
    mixing = torch.randn(count, columns, columns, generator=generator, dtype=torch.float64)
    return weight, mixing @ torch.randn(
        count, columns, 2 * columns + 3, generator=generator, dtype=torch.float64
    )


def nearest_level(weight: Tensor) -> Tensor:
    return LEVELS[(weight.unsqueeze(-1) - LEVELS).abs().argmin(-1)]


def as_in_the_paper(weight: Tensor, hessian: Tensor) -> Tensor:
    """Algorithm 1 of arXiv 2210.17323 with a block of one column, columns in activation order:
    the levels of one problem, (rows, columns).
    """
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    W = weight[:, order].clone()
    Q = torch.zeros_like(W)
    # H^-1 = U^T U, U upper triangular
    U = torch.linalg.cholesky(torch.linalg.inv(hessian[order][:, order]), upper=True)
    for i in range(W.shape[1]):
        Q[:, i] = nearest_level(W[:, i])
        error = (W[:, i] - Q[:, i]) / U[i, i]
        W[:, i:] -= error.unsqueeze(1) * U[i, i:].unsqueeze(0)
    return Q[:, torch.argsort(order)]


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
@pytest.mark.parametrize("shape", [(1, 4, 1), (3, 2, 7), (2, 5, 70)])
def test_the_papers_algorithm_finds_the_same_levels(
    shape: tuple[int, int, int], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(octavo.ptq.gptq, "BLOCK", block)
    weight, X = problems(*shape)
    hessian = X @ X.mT
    levels = LEVELS[gptq(weight, hessian, Rounding(LEVELS)).codes.long()]
    for found, w, h in zip(levels, weight, hessian, strict=True):
        assert torch.equal(found, as_in_the_paper(w, h))


def test_the_column_of_the_largest_inputs_freezes_first() -> None:
    hessian = torch.diag(torch.tensor([2.0, 5.0, 2.0, 9.0])).expand(3, 4, 4)
    assert column_order(hessian).tolist() == 3 * [[3, 1, 0, 2]]


def test_the_errors_are_those_of_the_codes() -> None:
    weight, X = problems(2, 3, 70)
    found = gptq(weight, X @ X.mT, Rounding(LEVELS))
    error = weight - LEVELS[found.codes.long()]
    assert torch.allclose(found.output_error, (error @ X).square().sum(2))
    assert torch.allclose(found.weight_error, error.square().sum(2))


# Rounding.


def rounded(weight: Tensor, levels: Tensor) -> Tensor:
    """The code of each weight as a problem of its own, where no other weight compensates."""
    alone = torch.ones(weight.numel(), 1, 1, dtype=torch.float64)
    return gptq(weight.reshape(-1, 1, 1), alone, Rounding(levels)).codes.view(weight.shape)


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


# Pruned weights.


def pruned(
    seed: int, share: float, rows: int = 24, columns: int = 40
) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights, hessian and kept weights: each row has lost other columns, the first rows
    none, and the last row all.
    """
    weight, X = problems(2, rows, columns, seed)
    kept = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) >= share
    kept[:, :3] = True
    kept[:, -1] = False
    return weight * kept, X @ X.mT, kept


def alone(weight: Tensor, hessian: Tensor, kept: Tensor) -> Tensor:
    """The squared output error of each row, solved by itself without the columns it has lost."""
    errors = torch.zeros(weight.shape[:2], dtype=torch.float64)
    for problem in range(len(weight)):
        for row in range(weight.shape[1]):
            left = kept[problem, row]
            if left.any():
                own = hessian[problem][left][:, left].unsqueeze(0)
                assignment = gptq(weight[problem, row, left].view(1, 1, -1), own, Rounding(LEVELS))
                errors[problem, row] = assignment.output_error.sum()
    return errors


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
def test_rows_of_other_patterns_are_about_as_good_together_as_each_alone(share: float) -> None:
    together = 0.0
    apart = 0.0
    for seed in range(4):
        weight, hessian, kept = pruned(seed, share)
        found = gptq(weight, hessian, Rounding(LEVELS), kept)
        assert not LEVELS[found.codes.long()][~kept].any()
        whole = gptq(weight, hessian, Rounding(LEVELS))
        assert torch.equal(found.codes[:, :3], whole.codes[:, :3])  # they have lost nothing
        together += float(found.output_error.sum())
        apart += float(alone(weight, hessian, kept).sum())
    assert together < 1.08 * apart  # 1.33 without descent


def test_a_pruned_layer_takes_one_factorization_whatever_its_patterns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight, hessian, kept = pruned(0, 0.3)
    factorized: list[int] = []
    cholesky = torch.linalg.cholesky

    def counted(matrix: Tensor) -> Tensor:
        factorized.append(len(matrix))
        factor: Tensor = cholesky(matrix)
        return factor

    monkeypatch.setattr(torch.linalg, "cholesky", counted)
    gptq(weight, hessian, Rounding(LEVELS), kept)
    assert factorized == [len(weight)]
