"""A model takes a packed network only where it holds every value; other misfits are in
test_packed.py, with a network that has one of everything."""

from typing import Any

import pytest
import torch
from torch import nn

from octavo.errors import PlanError
from octavo.formats.powers_of_two import PowerOfTwo
from octavo.storage.packed import Packed, pack
from octavo.storage.quantized import Quantized


def test_a_narrower_model_will_do_where_it_holds_every_value() -> None:
    book = PowerOfTwo(4, torch.tensor([0, -10]))
    layers = {"m": Quantized(("weight",), book, torch.arange(6, dtype=torch.uint8).view(2, 3))}
    network = Packed(layers, [(("bias",), torch.tensor([0.5, -2.0]))])
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        model = nn.Linear(3, 2, dtype=dtype)
        network.apply(model)
        assert torch.equal(model.weight.float(), layers["m"].weight())
    layers["m"] = Quantized(("weight",), PowerOfTwo(4, torch.tensor([0, -30])), layers["m"].codes)
    with pytest.raises(PlanError, match=r"^weight: torch.float16 cannot hold"):
        Packed(layers, network.floats).apply(nn.Linear(3, 2, dtype=torch.float16))


def test_a_buffer_that_holds_nan() -> None:
    model: Any = nn.Linear(3, 2)
    model.register_buffer("seen", torch.tensor([float("nan"), -0.0, float("-inf")]))
    network = pack(model, {})
    other: Any = nn.Linear(3, 2)
    other.register_buffer("seen", torch.zeros(3))
    network.apply(other)
    assert torch.equal(other.seen.view(torch.int32), model.seen.view(torch.int32))


def test_a_model_that_ties_what_was_not_tied() -> None:
    book = PowerOfTwo(3, torch.tensor(0))
    layers = {
        n: Quantized((f"{n}.weight",), book, torch.full((4, 4), k, dtype=torch.uint8))
        for k, n in enumerate("ab")
    }
    model: Any = nn.ModuleDict({n: nn.Linear(4, 4, bias=False) for n in "ab"})
    model["b"].weight = model["a"].weight
    before = model["a"].weight.clone()
    with pytest.raises(PlanError, match=r"[ab]\.weight"):
        Packed(layers, []).apply(model)
    assert torch.equal(model["a"].weight, before)
