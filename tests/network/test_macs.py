"""The multiply-accumulates of a forward pass, layer by layer."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from octavo.network.layers import find_layers
from octavo.network.macs import count_macs

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")  # oneDNN has none


def holder(**modules: nn.Module) -> nn.Module:
    model = nn.Module()
    for name, module in modules.items():
        model.add_module(name, module)
    return model


def tied_language_model() -> nn.Module:
    model = holder(wte=nn.Embedding(10, 4), mid=nn.Linear(4, 4), head=nn.Linear(4, 10, bias=False))
    model.head.weight = model.wte.weight  # type: ignore[union-attr]
    return model


def macs(model: nn.Module, *inputs: Any) -> dict[str, int]:
    return count_macs(find_layers(model)[0], lambda: model(*inputs))


def counted_by_torch(model: nn.Module, *inputs: Tensor) -> int:
    """torch counts floating-point operations of each kernel: two for a multiply-accumulate."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs)
    total: int = counter.get_total_flops()
    assert total
    return total // 2


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv1d(4, 6, 3, stride=2), (2, 4, 9)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 8, 7)),
        (nn.Conv3d(2, 3, 2, dilation=2), (2, 2, 4, 5, 6)),
        (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 8, 8)),
        (nn.Conv2d(4, 4, 3, groups=4), (3, 4, 8, 8)),
        (nn.ConvTranspose1d(4, 6, 3), (2, 4, 5)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1), (2, 4, 5, 6)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 5, 6)),
        (nn.Linear(4, 3), (2, 5, 4)),
        (nn.Linear(4, 3), (4,)),
        (
            nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1), nn.Flatten(), nn.Linear(72, 10)
            ),
            (2, 3, 8, 8),
        ),
    ],
)
def test_multiply_accumulates_as_torch_counts_them(
    module: nn.Module, shape: tuple[int, ...]
) -> None:
    x = torch.zeros(shape)
    assert sum(macs(module, x).values()) == counted_by_torch(module, x)


@pytest.mark.parametrize(
    ("module", "inputs", "expected"),
    [
        (
            nn.LSTM(3, 4, proj_size=2),
            (5, 2, 3),
            {"ih_l0": 10 * 48, "hh_l0": 10 * 32, "hr_l0": 10 * 8},
        ),
        (nn.GRU(3, 4), (5, 2, 3), {"ih_l0": 10 * 36, "hh_l0": 10 * 48}),
        (nn.RNN(3, 4, batch_first=True), (5, 2, 3), {"ih_l0": 10 * 12, "hh_l0": 10 * 16}),
        (nn.LSTMCell(3, 4), (2, 3), {"ih": 2 * 48, "hh": 2 * 64}),
        (nn.GRUCell(3, 4), (2, 3), {"ih": 2 * 36, "hh": 2 * 48}),
        (nn.RNNCell(3, 4), (2, 3), {"ih": 2 * 12, "hh": 2 * 16}),
    ],
)
def test_a_recurrent_layer_acts_at_every_time_step(
    module: nn.Module, inputs: tuple[int, ...], expected: dict[str, int]
) -> None:
    assert macs(module, torch.zeros(inputs)) == {
        f"weight_{name}": count for name, count in expected.items()
    }


def test_embeddings_multiply_nothing_and_unreached_layers_do_nothing() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.bag = nn.Embedding(5, 4), nn.EmbeddingBag(5, 4)
            self.used, self.unused = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(self.embed(x).mean(1) + self.bag(x))  # type: ignore[no-any-return]

    assert macs(Model(), torch.zeros(3, 2, dtype=torch.long)) == {
        "embed": 0,
        "bag": 0,
        "used": 3 * 8,
        "unused": 0,
    }


def test_a_layer_that_is_called_twice_counts_twice() -> None:
    layer = nn.Linear(4, 4)
    assert macs(nn.Sequential(layer, nn.ReLU(), layer), torch.zeros(3, 4)) == {"0": 2 * 3 * 16}


def test_a_tied_output_layer_counts_though_the_embedding_does_not() -> None:
    model = tied_language_model()
    run = nn.Sequential(*model.children())
    assert count_macs(find_layers(model)[0], lambda: run(torch.zeros(2, 3, dtype=torch.long))) == {
        "wte": 6 * 40,
        "mid": 6 * 16,
    }


class Attends(nn.Module):
    def __init__(self, *, by_name: bool = False, **options: Any) -> None:
        super().__init__()
        self.attn, self.by_name = nn.MultiheadAttention(8, 2, **options), by_name

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        if self.by_name:
            return self.attn(query=x, key=memory, value=memory)[0]  # type: ignore[no-any-return]
        return self.attn(x, memory, memory)[0]  # type: ignore[no-any-return]


def test_the_fused_projection_of_attention_acts_at_every_position() -> None:
    x = torch.zeros(5, 3, 8)
    assert macs(Attends(), x, x)["attn.in_proj_weight"] == 15 * 3 * 64


def test_the_output_projection_of_attention_acts_too() -> None:
    x = torch.zeros(5, 3, 8)
    assert macs(Attends(), x, x)["attn.out_proj"] == 15 * 64


def test_attention_that_is_called_by_name() -> None:
    x = torch.zeros(5, 3, 8)
    assert macs(Attends(by_name=True), x, x)["attn.in_proj_weight"] == 15 * 3 * 64


def test_keys_and_values_have_positions_of_their_own() -> None:
    counts = macs(Attends(kdim=4, vdim=4), torch.zeros(5, 3, 8), torch.zeros(7, 3, 4))
    assert counts["attn.q_proj_weight"] == 15 * 64
    assert counts["attn.k_proj_weight"] == counts["attn.v_proj_weight"] == 21 * 32


def test_packed_sequences() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(nn.utils.rnn.pack_padded_sequence(x, [4, 2]))[0].data  # type: ignore[no-any-return]

    assert macs(Model(), torch.zeros(4, 2, 3)) == {
        "lstm.weight_ih_l0": 6 * 48,
        "lstm.weight_hh_l0": 6 * 64,
    }


def test_counting_leaves_no_hook_even_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(3, 3))
    with pytest.raises(RuntimeError):
        macs(model, torch.zeros(2, 4))
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.is_grad_enabled()
