"""What waiting passes hold is moved to files, and nothing that is computed changes."""

import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from octavo.network.spilling import PassMemory, Spill, addresses
from octavo.network.stepping import stepwise_forward, stopping

pytestmark = pytest.mark.skipif(
    not hasattr(torch.UntypedStorage, "_swap_data_ptr_"), reason="torch before 2.12 cannot spill"
)
ROWS = 1 << 12  # of 16 numbers, so that a tensor is larger than what stays where it is


def open_files() -> int:
    files = Path("/proc/self/fd")
    return len(list(files.iterdir())) if files.exists() else 0


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of temporary files; nothing stays there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = open_files()
    yield tmp_path
    gc.collect()
    assert not list(tmp_path.iterdir())
    assert open_files() <= before


def made(memory: PassMemory, seed: int = 0) -> Tensor:
    """A tensor that a pass has made."""
    with memory.watching():
        return torch.randn(ROWS, 16, generator=torch.Generator().manual_seed(seed))


def test_what_is_beyond_the_bound_moves_with_its_values() -> None:
    spill = Spill(bound=3 * ROWS * 16 * 4)
    memories = [PassMemory() for _ in range(5)]
    tensors = [made(memory, seed) for seed, memory in enumerate(memories)]
    values = [tensor.clone() for tensor in tensors]
    addresses = [tensor.data_ptr() for tensor in tensors]
    for memory in memories:
        spill.settle(memory)
    stayed = [
        tensor.data_ptr() == address for tensor, address in zip(tensors, addresses, strict=True)
    ]
    assert stayed == [True, True, True, False, False]
    assert all(map(torch.equal, tensors, values))


def test_what_a_pass_has_let_go_of_makes_room() -> None:
    spill = Spill(bound=2 * ROWS * 16 * 4)
    first, second = PassMemory(), PassMemory()
    held = [made(first), made(first)]
    spill.settle(first)
    del held[0]
    spill.settle(first)
    tensor = made(second)
    address = tensor.data_ptr()
    spill.settle(second)
    assert tensor.data_ptr() == address


def test_views_stay_views_and_what_is_written_stays() -> None:
    memory = PassMemory()
    tensor = made(memory)
    view = tensor[7:]  # nobody has noted it
    expected = tensor.clone()
    expected[8] = 3.0
    Spill(bound=0).settle(memory)
    view[1] = 3.0
    memory.give_back()
    assert torch.equal(tensor, expected)
    assert view.data_ptr() == tensor[7:].data_ptr()


def test_memory_that_numpy_or_the_caller_looks_at_stays() -> None:
    weight, shared = nn.Parameter(torch.randn(ROWS, 16)), np.ones((ROWS, 16), np.float32)
    memory = PassMemory(addresses([weight]))
    with memory.watching():
        turned, tensor, own = weight.t(), torch.from_numpy(shared), torch.ones(ROWS, 16)
        array = own.numpy()
    before = [one.data_ptr() for one in (turned, tensor, own)]
    Spill(bound=0).settle(memory)
    assert [one.data_ptr() for one in (turned, tensor, own)] == before
    own += 1
    assert array.max() == 2


def test_a_full_disk_leaves_everything_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    spill, memory = Spill(bound=0), PassMemory()
    tensor = made(memory)
    values = tensor.clone()
    with pytest.warns(UserWarning, match="No space left on device; TMPDIR names another folder"):
        spill.settle(memory)
    spill.settle(memory)  # and says so once
    assert torch.equal(tensor, values)


class Residual(nn.Module):
    """It holds two inputs of layers while a third one is computed, and changes one in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        kept, half = self.first(x), x[: ROWS // 2]
        x.mul_(2)
        return self.second(kept.relu_()) + torch.cat([half, half])  # type: ignore[no-any-return]


@torch.no_grad()
def test_a_pass_that_waits_goes_on_from_the_file() -> None:
    torch.manual_seed(0)
    model, x = Residual(), torch.randn(ROWS, 16)
    memory, spill = PassMemory(addresses([x])), Spill(bound=0)
    expected = model(x)
    outputs = []
    with stopping(before=[model.first, model.second], after=[model]):
        for stop in stepwise_forward(model, x, watch=memory.watching()):
            spill.settle(memory)
            assert not memory.held()
            outputs.append(stop.output)
    assert torch.equal(outputs[-1], expected)
