"""Norms are folded where outputs stay near, by default only where the file shall be small."""

import pytest
import torch
from torch import Tensor, nn

import octavo.ptq.folding
from octavo.network.copies import copied
from octavo.plan import Plan
from octavo.ptq.calibration import calibrate
from octavo.ptq.folding import folded_if_near


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3))
    nn.init.normal_(model[1].running_mean)  # type: ignore[arg-type]
    nn.init.uniform_(model[1].running_var, 0.5, 2)  # type: ignore[arg-type]
    return model.eval()


def inputs() -> list[Tensor]:
    return [torch.randn(70, 3, 8, 8, generator=torch.Generator().manual_seed(1))]


def types(packed: object) -> set[torch.dtype]:
    return {value.dtype for _, value in packed.floats}  # type: ignore[attr-defined]


def test_norms_are_folded_where_outputs_stay_near(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    packed = calibrate(model, Plan.uniform(model, 4), inputs())
    folded = folded_if_near(packed, model, inputs())
    assert torch.float16 in types(folded)
    assert folded.file_bytes < packed.file_bytes
    twins = []
    for one in (packed, folded):
        twin = copied(model)
        one.apply(twin)
        twins.append(twin(inputs()[0]).detach())
    error = (twins[0] - twins[1]).square().sum() / twins[0].square().sum()
    assert 0 < error < 1e-4
    monkeypatch.setattr(octavo.ptq.folding, "BOUND", 0.0)
    assert folded_if_near(packed, model, inputs()) is packed


def test_the_model_is_left_as_it_was() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded_if_near(calibrate(model, Plan.uniform(model, 4), inputs()), model, inputs())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_calibrate_folds_with_a_rate_only() -> None:
    model = network()
    plan = Plan.uniform(model, 4)
    assert torch.float16 not in types(calibrate(model, plan, inputs()))
    assert torch.float16 in types(calibrate(model, plan, inputs(), rate=1.0))
    assert torch.float16 not in types(calibrate(model, plan, inputs(), rate=1.0, floats="float32"))
    assert torch.float16 in types(calibrate(model, plan, inputs(), floats="folded"))


def test_outputs_that_cannot_be_compared_leave_norms_as_they_are() -> None:
    class Text(nn.Sequential):
        def forward(self, x: Tensor) -> str:
            super().forward(x)
            return "a text"

    model = Text(*network().children()).eval()
    packed = calibrate(model, Plan.uniform(model, 4), inputs())
    assert folded_if_near(packed, model, inputs()) is packed
