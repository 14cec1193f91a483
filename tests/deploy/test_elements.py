"""Powers of two as small numbers times a scale: exact in every format that holds them, against the
formats' own types."""

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.deploy.elements import E2M1, E2M3, E4M3, INT8, Format, elements, integers
from octavo.errors import ExportError
from octavo.formats.powers_of_two import PowerOfTwo
from octavo.formats.registry import codebook_at
from octavo.formats.width import Apot, read_width

TYPES = {
    E2M1: ml_dtypes.float4_e2m1fn,
    E2M3: ml_dtypes.float6_e2m3fn,
    E4M3: ml_dtypes.float8_e4m3fn,
    INT8: np.int8,
}


EXACT = [
    *((E2M1, bits) for bits in (2, 3, 4)),
    *((E4M3, bits) for bits in (2, 3, 4, 5, 6)),
    *((INT8, bits) for bits in (2, 3, 4)),
]


def all_codes(bits: int, channels: int) -> Tensor:
    return torch.arange(2 ** (bits - 1) + 1, dtype=torch.uint8).repeat(channels, 1)


def codebook(bits: int, per: str) -> PowerOfTwo:
    return PowerOfTwo(bits, torch.tensor([-3, 0, 5] if per == "channel" else -3))


@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize(("form", "bits"), EXACT)
def test_every_level_is_held_exactly(form: Format, bits: int, per: str) -> None:
    book, codes = codebook(bits, per), all_codes(bits, 3)
    element, scale = elements(book, codes, form, "conv1")
    assert scale.shape == book.max_exponent.shape
    assert set(torch.frexp(scale).mantissa.flatten().tolist()) == {0.5}
    stored = element.numpy().astype(TYPES[form])
    assert np.array_equal(stored.astype(np.float32), element.numpy())
    top: list[int] = book.max_exponent.expand(3).tolist()
    powers = [[math.ldexp(1.0, t - k) for k in range(book.zero)] for t in top]
    levels = [[-p for p in row] + [0.0] + row[::-1] for row in powers]
    assert torch.equal(
        torch.from_numpy(stored.astype(np.float32)) * scale.view(-1, 1), torch.tensor(levels)
    )


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_int8_is_exact_up_to_four_bits(bits: int, per: str) -> None:
    book, codes = codebook(bits, per), all_codes(bits, 3)
    element, scale, exact = integers(book, codes, "conv1")
    assert exact
    assert (element.dtype, scale.shape) == (torch.int8, (3,))
    assert torch.equal(element * scale[:, None], book.decode(codes))


def test_int8_at_five_bits_lifts_the_smallest_level_where_the_largest_is_used() -> None:
    book, codes = PowerOfTwo(5, torch.tensor([0, 3])), all_codes(5, 2)
    codes[1, -1] = 0  # the second channel uses no +128
    element, scale, exact = integers(book, codes, "conv1")
    assert not exact
    got, expected = element * scale[:, None], book.decode(codes)
    assert torch.equal(got[1], expected[1])
    assert (got[0] != expected[0]).nonzero().flatten().tolist() == [7, 9]
    assert torch.equal(got[0, [7, 9]], 2 * expected[0, [7, 9]])


def test_int8_at_five_bits_is_exact_without_the_smallest_level() -> None:
    book = PowerOfTwo(5, torch.tensor(0))
    codes = torch.tensor([[0, 8, 16]], dtype=torch.uint8)
    element, scale, exact = integers(book, codes, "conv1")
    assert exact
    assert torch.equal(element * scale[:, None], torch.tensor([[-1.0, 0.0, 1.0]]))


@pytest.mark.parametrize(("form", "bits"), [(E4M3, 5), (E4M3, 6), (INT8, 5), (INT8, 6)])
def test_sums_of_two_powers_are_held_too(form: Format, bits: int) -> None:
    book = codebook_at(Apot(bits), torch.tensor([-3, 0, 5]))
    codes = torch.arange(2**bits - 1, dtype=torch.uint8).repeat(3, 1)
    element, scale = elements(book, codes, form, "conv1")
    assert np.array_equal(element.numpy().astype(TYPES[form]).astype(np.float32), element.numpy())
    assert torch.equal(element * scale[:, None], book.levels())
    if form is INT8:
        assert integers(book, codes, "conv1")[2]


NEW = [(E2M1, "fp4"), (E2M3, "fp6"), (E2M3, "fp4"), (INT8, "fp4"), (INT8, "fp6"), (INT8, "int8")]
NEW += [(E4M3, "fp4"), (E4M3, "fp6"), (E4M3, "fp8")]


@pytest.mark.parametrize(("form", "width"), NEW)
def test_floating_point_and_integers_are_held_where_they_fit(form: Format, width: str) -> None:
    count = read_width(width).level_count
    book = codebook_at(width, torch.tensor([[-3, 0], [5, 2], [-1, -1]]), count)
    codes = torch.arange(count, dtype=torch.uint8).repeat(3, 2)  # two groups
    element, scale = elements(book, codes, form, "conv1")
    assert scale.shape == (3, 2)
    stored = element.numpy().astype(TYPES[form]).astype(np.float32)
    weight = torch.from_numpy(stored).view(3, 2, count) * scale.unsqueeze(2)
    assert torch.equal(weight.flatten(1), book.decode(codes))


@pytest.mark.parametrize("width", ["fp8", "apot7"])
def test_int8_does_not_hold_what_spans_more_octaves(width: str) -> None:
    with pytest.raises(ExportError, match=rf"^fc: int8 does not hold the .* its width, {width}$"):
        integers(codebook_at(width, torch.tensor(0)), torch.zeros(1, 4, dtype=torch.uint8), "fc")


def test_groups_get_the_scale_of_their_channel_in_int8() -> None:
    """FP4 takes 12 units, so int8 has room for three octaves between groups, and a rest for a
    fourth."""
    codes = torch.tensor([[0, 8, 14, 8, 10, 14]], dtype=torch.uint8).repeat(3, 1)
    book = codebook_at("fp4", torch.tensor([[3, 0], [0, 3], [4, 0]]), 3)
    number, scale, exact = integers(book, codes, "fc")
    weight = book.decode(codes)
    found = number * scale.unsqueeze(1)
    assert torch.equal(found[:2], weight[:2])
    assert not exact
    assert torch.equal(found[2, :3], weight[2, :3])
    off = (found - weight)[2, 3:].abs()
    assert (off <= scale[2] / 2).all()
    assert off.any()
    assert integers(codebook_at("fp4", torch.tensor([[3, 0]]), 3), codes[:1], "fc")[2]


@pytest.mark.parametrize(("form", "bits"), [(E2M1, 5), (E4M3, 7), (INT8, 6)])
def test_levels_that_a_format_does_not_hold_are_refused_by_name(form: Format, bits: int) -> None:
    said = (
        rf"^conv1: {form.name} does not hold the {2 ** (bits - 1) + 1} levels of its width, {bits}$"
    )
    with pytest.raises(ExportError, match=said):
        elements(codebook(bits, "tensor"), all_codes(bits, 1), form, "conv1")
    with pytest.raises(
        ExportError, match=r"^conv1: FP8 E4M3 does not hold the 127 levels of its width, apot7$"
    ):
        elements(
            codebook_at(Apot(7), torch.tensor(0)),
            torch.zeros(1, 4, dtype=torch.uint8),
            E4M3,
            "conv1",
        )


def test_a_scale_that_no_float_holds_is_refused() -> None:
    with pytest.raises(
        ExportError, match=r"^conv1: its exponent -149 is too small for a scale of FP8 E4M3$"
    ):
        elements(PowerOfTwo(2, torch.tensor([0, -149])), all_codes(2, 2), E4M3, "conv1")
