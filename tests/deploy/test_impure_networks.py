"""Exports of networks whose outputs are no function of their inputs, or that write into these."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from octavo import ExportError, Plan, calibrate, export
from octavo.deploy.exporting import load_onnx
from octavo.network.copies import copied


class Net(nn.Module):
    """Two layers, and a forward pass that is handed over."""

    def __init__(self, forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)
        self.forward_pass = forward
        self.register_buffer("state", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_pass(self, x)


def in_place(self: Net, x: Tensor) -> Tensor:
    out: Tensor = self.b(self.a(x.sub_(1)))
    return out


def dropped(self: Net, x: Tensor) -> Tensor:
    out: Tensor = self.b(F.dropout(self.a(x)))
    return out


def streaming(self: Net, x: Tensor) -> Tensor:
    self.state.mul_(0.5).add_(x.mean(0))  # type: ignore[operator]
    out: Tensor = self.b(self.a(x) + self.state)
    return out


FORMS = ("float", "lut", "int8")


@pytest.mark.parametrize("form", FORMS)
def test_a_network_that_writes_into_its_inputs_is_exported_right(form: str, tmp_path: Path) -> None:
    model = Net(in_place).eval()
    x = torch.randn(16, 8)
    before = x.clone()
    packed = calibrate(model, Plan.uniform(model, 4), [x])
    path = export(model, packed, tmp_path / "net.onnx", form=form, example=x)
    assert torch.equal(x, before)
    network = copied(model)
    packed.apply(network)
    with torch.no_grad():
        expected = network(x.clone())
    tolerance = 0.1 if form == "int8" else 1e-5
    assert torch.allclose(load_onnx(path)(x), expected, atol=tolerance)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (dropped, "^Net: expected the same outputs .* switch off what draws random numbers"),
        (streaming, "^Net: expected outputs .* depend on the call before, through state; "),
    ],
)
def test_other_networks_are_refused(
    form: str, forward: Callable[..., Tensor], reason: str, tmp_path: Path
) -> None:
    model = Net(forward).eval()
    x = torch.randn(16, 8)
    packed = calibrate(model, Plan.uniform(model, 4), [x])
    with pytest.raises(ExportError, match=reason):
        export(model, packed, tmp_path / "net.onnx", form=form, example=x)
    assert not list(tmp_path.iterdir())
