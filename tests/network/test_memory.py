"""Tied tensors are told by memory and strides, wherever octavo asks."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from octavo.dnq.candidates import Candidate
from octavo.dnq.searching import search
from octavo.dnq.trial_network import TrialNetwork
from octavo.errors import PlanError
from octavo.formats.powers_of_two import power_of_two
from octavo.inq.incremental import Incremental
from octavo.network.copies import copied
from octavo.network.layers import find_layers
from octavo.network.memory import memory_of, overlapping, sharing
from octavo.plan import Budget, Plan
from octavo.ptq.calibration import calibrate
from octavo.storage.packed import Packed
from octavo.storage.quantized import Quantized


def tied() -> nn.Sequential:
    """Two layers whose parameters are two objects over one piece of memory."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    model[1].weight.data = model[0].weight.data
    return model


def inputs() -> Tensor:
    return torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


def replace_weight(weight: Tensor) -> Candidate:
    codes = power_of_two(weight, 2).encode(weight)
    quantized = Quantized(("0.weight",), power_of_two(weight, 2), codes)
    return Candidate(weight, quantized, 0.0)


def check_round_trip(packed: Packed, path: Path) -> None:
    """The file can be applied to a model that is tied in the same way, and to one that is not."""
    packed.save(path)
    for model in (tied(), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4))):
        Packed.load(path).apply(model)
        assert torch.equal(model.get_parameter("0.weight"), packed.layers["0"].weight())
        assert torch.equal(model.get_parameter("1.weight"), packed.layers["0"].weight())


def test_memory_and_strides_make_tensors_tied() -> None:
    one = torch.zeros(4, 4)
    assert memory_of(one) == memory_of(one.view(4, 4))
    for other in (one.clone(), one.T, one[:2], one.view(2, 8), one.view(torch.int32)):
        assert memory_of(one) != memory_of(other)
    empty = torch.empty(0)
    assert memory_of(empty) == memory_of(empty) != memory_of(torch.empty(0))
    meta = torch.empty(2, device="meta")
    assert memory_of(meta) == memory_of(meta) != memory_of(torch.empty(2, device="meta"))


def test_tensors_that_overlap_without_being_tied_are_found() -> None:
    one = torch.zeros(6, 6)
    assert overlapping([one, one.T, torch.zeros(6, 6), one.view(6, 6)]) == {0, 1, 3}
    assert overlapping([one[:3], one[3:], one[1:4]]) == {0, 1, 2}
    assert overlapping([one[:3], one[3:]]) == set()
    assert overlapping([one[:, :3], one[:, 3:]]) == set()  # interleaved, and no number in common


def test_layers_that_are_tied_in_memory_are_one_layer() -> None:
    model = tied()
    layers, skipped = find_layers(model)
    assert [layer.name for layer in layers] == ["0", "2"]
    assert [full for full, *_ in layers[0].tied] == ["1.weight"]
    with pytest.raises(PlanError, match=r"^1 is tied to 0, plan that one"):
        calibrate(model, {"1": 3}, [inputs()])
    assert all("bias" in skip.reason for skip in skipped)


def test_a_copy_is_tied_as_the_original() -> None:
    model = tied()
    twin = copied(model)
    assert (
        memory_of(twin.get_parameter("0.weight"))
        == memory_of(twin.get_parameter("1.weight"))
        != memory_of(model.get_parameter("0.weight"))
    )
    assert twin.get_parameter("0.weight") is not twin.get_parameter("1.weight")
    assert [[id(one) for one in group] for group in sharing(twin.parameters())] == [
        [id(twin.get_parameter("0.weight")), id(twin.get_parameter("1.weight"))]
    ]


def test_what_is_tied_in_memory_gives_a_file_that_can_be_applied(tmp_path: Path) -> None:
    check_round_trip(calibrate(tied(), {"0": 3, "2": 3}, [inputs()]), tmp_path / "packed")


def test_incremental_freezes_what_is_tied_in_memory_once(tmp_path: Path) -> None:
    model = tied()
    incremental = Incremental(model, {"0": 3, "2": 3}, inputs=[inputs()])
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in incremental:
        optimizer.zero_grad()
        model(inputs()).square().mean().backward()
        optimizer.step()
    packed = incremental.finish()
    assert torch.equal(model.get_parameter("0.weight"), packed.layers["0"].weight())
    assert memory_of(model.get_parameter("0.weight")) == memory_of(model.get_parameter("1.weight"))
    check_round_trip(packed, tmp_path / "packed")


def test_a_search_has_one_layer_for_what_is_tied_in_memory() -> None:
    result = search(tied(), [inputs()], budget=Budget(average_bits=3), options=(2, 4), trials=20)
    assert list(result.plan) == ["0", "2"]
    trial = TrialNetwork(tied(), ["0"], [])
    trial.put([replace_weight(torch.ones(8, 8))])
    assert bool((trial.model[1].weight == 1).all())  # type: ignore[index]


def test_a_transpose_in_the_same_memory_stays_in_float() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1024))
    model[1].weight.data = model[0].weight.data.T
    layers, skipped = find_layers(model)
    assert [layer.name for layer in layers] == ["2"]
    reasons = {skip.name: skip.reason for skip in skipped}
    assert "shares memory with another parameter" in reasons["0.weight"]
    assert "shares memory with another parameter" in reasons["1.weight"]
    packed = calibrate(model, Plan.uniform(model, 3), [inputs()])
    packed.apply(model)
    assert torch.equal(model.get_parameter("2.weight"), packed.layers["2"].weight())
