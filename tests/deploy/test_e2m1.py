"""MXFP4 blocks: the numbers of ml_dtypes, and only what is exact."""

import ml_dtypes
import numpy as np
import pytest
import torch

from octavo.deploy.e2m1 import BLOCK, Blocks, exact_blocks, pairs, unpaired

NUMBERS = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def matrix(rows: int, columns: int, lowest: int = -20, highest: int = 20) -> torch.Tensor:
    """Return E2M1 numbers times a power of two for each block."""
    sign = 1 - 2 * torch.randint(0, 2, (rows, columns))
    picked = sign * NUMBERS[torch.randint(8, (rows, columns))]
    exponent = torch.randint(lowest, highest, (rows, columns // BLOCK))
    return picked * torch.exp2(exponent.float()).repeat_interleave(BLOCK, 1)


def read(blocks: Blocks) -> torch.Tensor:
    """Return the matrix that blocks stand for."""
    scales = torch.exp2(blocks.scales.double() - 127).repeat_interleave(BLOCK, 1)
    return (unpaired(blocks.packed).double() * scales).float()


def test_blocks_are_exact_and_read_by_ml_dtypes() -> None:
    weight = matrix(5, 96)
    blocks = exact_blocks(weight)
    assert blocks is not None
    assert torch.equal(read(blocks), weight)
    raw = blocks.packed.numpy()
    nibbles = np.stack([raw & 15, raw >> 4], -1).reshape(5, 96)
    numbers = nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    scales = blocks.scales.numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    expected = weight.view(5, -1, BLOCK).numpy()
    assert np.array_equal(numbers.reshape(expected.shape) * scales[..., None], expected)


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_a_block_without_its_largest_numbers_is_exact_too(factor: float) -> None:
    weight = torch.zeros(1, BLOCK)
    weight[0, 0] = 0.5 * factor
    blocks = exact_blocks(weight)
    assert blocks is not None
    assert torch.equal(read(blocks), weight)


def test_only_what_is_exact() -> None:
    assert exact_blocks(torch.full((1, BLOCK), 5.0) - torch.eye(1, BLOCK)) is None  # 4 and 5
    assert exact_blocks(torch.tensor([[8.0, 0.5] + [0.0] * 30])) is None  # more than 3 bits apart
    assert exact_blocks(torch.ones(2, BLOCK + 1)) is None


def test_zeros_and_the_smallest_and_largest_scales() -> None:
    for value in (0.0, 2.0**-120, 2.0**120):
        weight = torch.full((2, BLOCK), value)
        blocks = exact_blocks(weight)
        assert blocks is not None
        assert torch.equal(read(blocks), weight)
    assert exact_blocks(torch.full((1, BLOCK), 2.0**-149)) is None  # below E8M0's smallest scale


def test_two_numbers_share_a_byte_and_the_even_one_has_its_low_bits() -> None:
    elements = torch.tensor([[0.5, -6.0, 0.0, 1.5]])
    assert pairs(elements).tolist() == [[0xF1, 0x30]]
    assert torch.equal(unpaired(pairs(elements)), elements)
    assert pairs(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[0x42, 0x05]]
