"""Rows with pruned weights, against each row alone without the columns that it has lost."""

import pytest
import torch
from torch import Tensor

import octavo.ptq.pruned_rows
from octavo.ptq.gptq import gptq
from octavo.ptq.pruned_rows import compensate_kept
from octavo.ptq.rounding import Rounding

LEVELS = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0], dtype=torch.float64)
ZERO = 2  # the code of zero


def pruned_problems(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of three problems with two candidates for four rows of seven columns, the hessians,
    and the kept weights.
    """
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(3, 4, 7, generator=generator) < 0.6
    kept[0, 0] = False  # a row that has lost everything
    kept[1, 2] = True  # and one that has lost nothing
    weight = torch.randn(3, 8, 7, generator=generator, dtype=torch.float64)
    X = torch.randn(3, 7, 20, generator=generator, dtype=torch.float64)
    return weight * kept.repeat(1, 2, 1), X @ X.mT, kept


@pytest.mark.parametrize("chunk", [0, 60, 1 << 21])
def test_each_row_is_solved_without_its_pruned_weights(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(octavo.ptq.pruned_rows, "CHUNK", chunk)
    for seed in range(3):
        weight, hessian, kept = pruned_problems(seed)
        found = compensate_kept(weight, hessian, Rounding(LEVELS), kept, gptq)
        assert found.codes.dtype == torch.uint8
        for problem in range(3):
            for row in range(8):
                left = kept[problem, row % 4]
                own = hessian[problem][left][:, left].unsqueeze(0)
                alone = gptq(weight[problem, row, left].view(1, 1, -1), own, Rounding(LEVELS))
                codes = found.codes[problem, row]
                assert (codes[~left] == ZERO).all()
                assert torch.equal(codes[left], alone.codes.flatten())
                for name in ("output_error", "weight_error"):
                    expected = getattr(alone, name).flatten()
                    error = getattr(found, name)[problem, row].view(1)
                    assert torch.allclose(error, expected.sum().view(1)), name


def test_layers_that_have_lost_everything_are_zero() -> None:
    nothing = torch.zeros(2, 3, 5, dtype=torch.float64)
    hessian = torch.eye(5, dtype=torch.float64).expand(2, 5, 5)
    found = compensate_kept(nothing, hessian, Rounding(LEVELS), nothing.bool(), gptq)
    assert (found.codes == ZERO).all()
    assert not found.output_error.any()
