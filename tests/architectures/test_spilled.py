"""Networks whose every value goes to disk while they wait: nothing changes but its place."""

from collections.abc import Callable

import pytest
import torch
from tests.architectures.journey import correlated
from tests.architectures.test_calls import Forces, Routed
from tests.architectures.test_inputs_and_noise import Centring, Dropping
from tests.architectures.test_sequences import Stepping, Tagger
from tests.architectures.test_state import Attending, UNet
from torch import nn

from octavo import Plan, calibrate
from octavo.network import spilling
from octavo.ptq import sequential

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "skips in a list": (UNet, (2, 6, 6)),
    "attention": (Attending, (6, 8)),
    "inputs that are written into": (Centring, (8,)),
    "dropout": (Dropping, (8,)),
    "experts": (Routed, (16,)),
    "gradients": (Forces, (16,)),
    "recurrent": (Tagger, (6, 12)),
    "a cell in a loop": (Stepping, (5, 12)),
}


@pytest.mark.skipif(
    not hasattr(torch.UntypedStorage, "_swap_data_ptr_"), reason="torch before 2.12 cannot spill"
)
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_on_disk_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = build().eval()
    batches = correlated(*[(40, *shape)] * 3)
    plan = Plan.uniform(model, "apot6")
    in_memory = calibrate(model, plan, batches)

    moved: list[int] = []
    take = spilling._File.take

    def noted(file: spilling._File, storage: torch.UntypedStorage) -> spilling._Piece:
        moved.append(storage.nbytes())
        return take(file, storage)

    monkeypatch.setattr(spilling, "SMALL", 1)
    monkeypatch.setattr(spilling._File, "take", noted)
    monkeypatch.setattr(sequential, "Spill", lambda: spilling.Spill(bound=0))
    on_disk = calibrate(model, plan, batches)
    assert moved
    assert on_disk.held_out == in_memory.held_out
    for layer, quantized in on_disk.layers.items():
        assert torch.equal(quantized.weight(), in_memory.layers[layer].weight())
