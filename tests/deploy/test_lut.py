"""The form lut: every kind of layer at every number of bits; small codes in four bits."""

from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pytest
import torch
from torch import nn

from octavo.deploy.exporting import export_checked
from octavo.storage.packed import Packed


@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("shift", range(4))
def test_every_kind_of_layer_at_every_number_of_bits(
    shift: int, per: str, check_zoo: Callable[..., None]
) -> None:
    """Over the shifts, each layer has each of 2 to 5 bits. The export itself compares all weights,
    bit for bit."""
    check_zoo("lut", shift, per)


def test_other_codebooks_and_groups_of_inputs(check_zoo: Callable[..., None]) -> None:
    """Groups of 5, of which the last of a channel is shorter, in every kind of layer."""
    check_zoo("lut", 0, ("group", 5), ("fp4", "fp6", 3, "fp8", "int8"))
    check_zoo("lut", 0, "channel", ("fp4", "int8", "apot6"))


def test_codes_are_packed_in_four_bits(
    share_trace: Callable[[str], object],
    codes_of_all_levels: Callable[..., Packed],
    tmp_path: Path,
) -> None:
    share_trace("two layers of 64")
    network = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).eval()
    for bits, size in ((4, 2 * 64 * 64 / 2), (5, 2 * 64 * 64)):
        packed = codes_of_all_levels(network, cycle([bits]), "channel")
        made = export_checked(network, packed, tmp_path / "net.onnx", example=torch.randn(2, 64))
        assert size < made.bytes < size + 3500
