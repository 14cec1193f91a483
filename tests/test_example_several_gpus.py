"""The example for several ranks works with each way to wrap a model."""

import importlib.util
import os
import runpy
from pathlib import Path

import pytest
import torch
from tests.ranks import COUNT
from tests.ranks import Ranks as Processes

from octavo import Packed, Plan

EXAMPLE = Path(__file__).parents[1] / "examples" / "several_gpus.py"


def quantized(number: int, way: str) -> Packed:
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(COUNT), "LOCAL_RANK": str(number)}
    script = runpy.run_path(str(EXAMPLE))
    script["retrain"].__globals__["STEPS"] = 3
    model = script["network"]().to(script["DEVICE"])
    packed: Packed = script[f"by_{way}"](model, Plan.uniform(model, 3))
    return packed


@pytest.mark.parametrize("way", ["ddp", "fsdp2", "fabric"])
def test_all_ranks_return_one_network(way: str, on_two_ranks: Processes) -> None:
    if way == "fabric" and importlib.util.find_spec("lightning_fabric") is None:
        pytest.skip("lightning-fabric is not installed")
    first, second = on_two_ranks(quantized, way)
    assert isinstance(first, Packed), first.__notes__
    for name, layer in first.layers.items():
        assert torch.equal(layer.codes, second.layers[name].codes)
