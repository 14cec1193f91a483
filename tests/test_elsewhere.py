"""Networks on another device than the CPU: no tensor of the CPU meets theirs, and the codes are
those of the CPU.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.elsewhere import ELSEWHERE, Elsewhere
from torch import Tensor, nn

from octavo import Incremental, Plan, calibrate, quantize_activations
from octavo.storage.packed import Packed


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 5)
        self.lstm = nn.LSTM(5, 4, batch_first=True)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        words = self.embedding(x)
        state = words.new_zeros(1, len(x), 4)  # a pass has a thread, where torch.zeros is torch's
        return self.linear(self.lstm(words, (state, state))[0][:, -1])  # type: ignore[no-any-return]


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )


def calibrated(**options: Any) -> Callable[[nn.Module, Tensor], Packed]:
    return lambda model, x: calibrate(model, Plan.uniform(model, 4), [x], **options)


def frozen(model: nn.Module, x: Tensor, **options: Any) -> Packed:
    incremental = Incremental(model, Plan.uniform(model, 4), portions=(0.5, 1.0), **options)
    for _ in incremental:
        model(x.to(next(model.parameters()).device)).sum().backward()
    return incremental.finish()


def with_activations(model: nn.Module, x: Tensor) -> Packed:
    quantize_activations(model, [x], 8)
    return calibrated()(model, x)


CASES = {
    "rate": (images, calibrated(rate=1.0)),
    "max": (images, calibrated(rate=1.0, fit="max")),
    "group": (images, calibrated(rate=1.0, per=("group", 32), order="distance")),
    "absorb": (images, calibrated(absorb=True, sequential=False)),
    "activations": (images, with_activations),
    "inq": (images, lambda model, x: frozen(model, x, rate=1.0)),
    "refit": (images, lambda model, x: frozen(model, x, rate=1.0, inputs=[x[:8]])),
    "random": (images, lambda model, x: frozen(model, x, order="random", straight_through=0.5)),
    "recurrent": (Words, calibrated()),
}


@pytest.mark.parametrize(("kind", "quantize"), CASES.values(), ids=CASES)
def test_a_network_on_another_device_gets_the_codes_of_a_cpu(
    kind: Callable[[], nn.Module], quantize: Callable[[nn.Module, Tensor], Packed]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 2, 4, 4) if kind is images else torch.randint(9, (8, 3))
    model = kind().eval()
    with Elsewhere():
        there = kind().eval()
        there.load_state_dict(model.state_dict())
        packed = quantize(there.to(ELSEWHERE), x)
    expected = quantize(model, x)
    assert packed.layers.keys() == expected.layers.keys()
    for name, layer in packed.layers.items():
        assert torch.equal(layer.codes, expected.layers[name].codes), name


def test_devices_do_not_mix() -> None:
    with Elsewhere():
        x = torch.ones(2, device=ELSEWHERE)
        assert (x * torch.tensor(2.0)).tolist() == [2, 2]
        assert x.cpu().device.type == "cpu"
        with pytest.raises(RuntimeError, match="expected tensors on one device"):
            x * torch.ones(2)
        with pytest.raises(RuntimeError, match="expected tensors on one device"):
            torch.ones(2)[torch.zeros(2, dtype=torch.int64, device=ELSEWHERE)]
