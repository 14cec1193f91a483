"""A look at a model: every layer and every skipped parameter is listed, the costs are right, and
the model is as it was."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octavo.errors import PlanError
from octavo.inspection import inspect
from octavo.network.layers import Skipped
from octavo.plan import Cost


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = (
            nn.Conv2d(3, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.Dropout(),
        )
        self.fc, self.unused = nn.Linear(4, 5), nn.Linear(2, 2, bias=False)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        assert not self.training
        return self.fc(self.drop(self.norm(self.conv(x * scale))).mean((2, 3)))  # type: ignore[no-any-return]


def test_the_rows_tell_each_layer() -> None:
    rows = inspect(Net(), torch.zeros(2, 3, 6, 6)).rows
    assert [(row.name, row.kind, row.shape, row.weights, row.macs, row.tied) for row in rows] == [
        ("conv", "conv2d", (4, 3, 3, 3), 108, 2 * 16 * 108, ()),
        ("fc", "linear", (5, 4), 20, 2 * 20, ()),
        ("unused", "linear", (2, 2), 4, 0, ()),
    ]


def test_what_is_skipped_is_told_with_its_reason() -> None:
    assert inspect(Net()).skipped == (
        Skipped("norm.weight", 4, "norms stay in float"),
        Skipped("norm.bias", 4, "biases stay in float"),
        Skipped("fc.bias", 5, "biases stay in float"),
    )


def test_tied_weights_are_one_row() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    model[1].weight = model[0].weight
    (row,) = inspect(model).rows
    assert (row.name, row.kind, row.weights, row.tied) == ("0", "embedding", 15, ("1.weight",))


def test_the_feasible_budgets() -> None:
    found = inspect(Net())
    assert found.cheapest == Cost(average_bits=2, ratio=16, bytes=33, bit_ops=None)
    assert found.dearest == Cost(average_bits=8, ratio=4, bytes=132, bit_ops=None)
    counted = inspect(Net(), torch.zeros(1, 3, 6, 6))
    macs = 16 * 108 + 20
    assert counted.cheapest is not None
    assert counted.dearest is not None
    assert (counted.cheapest.bit_ops, counted.dearest.bit_ops) == (2 * macs, 8 * macs)


def test_the_plan_knows_what_was_counted() -> None:
    plan = inspect(Net(), torch.zeros(1, 3, 6, 6)).plan(4)
    assert dict(plan) == {"conv": 4, "fc": 4, "unused": 4}
    assert plan.cost() == Cost(4, 8, 66, 4 * (16 * 108 + 20))
    plan["conv"] = 2
    assert plan.cost().bit_ops == 2 * 16 * 108 + 4 * 20
    assert inspect(Net()).plan(3).cost().bit_ops is None


@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: (x,), lambda x: [x, 2.0], lambda x: {"x": x, "scale": 2.0}]
)
def test_an_example_is_what_the_model_is_called_with(wrap: Any) -> None:
    assert inspect(Net(), wrap(torch.zeros(3, 3, 6, 6))).rows[1].macs == 3 * 20


def test_a_model_without_layers_costs_nothing() -> None:
    found = inspect(nn.BatchNorm1d(3))
    assert (found.rows, found.cheapest, found.dearest) == ((), None, None)
    assert [skip.name for skip in found.skipped] == ["weight", "bias"]


def test_the_model_is_as_it_was() -> None:
    model = Net().train()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    inspect(model, torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == [True, True, False, True, True, True]
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_an_example_that_does_not_fit_leaves_the_model_as_it_was() -> None:
    model = Net().train()
    with pytest.raises(PlanError, match="conv: the model does not take these calibration inputs"):
        inspect(model, torch.zeros(1, 7, 6, 6))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_transformers_show_their_layers_though_torch_has_a_faster_path() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    macs = {row.name: row.macs for row in inspect(model, torch.zeros(3, 5, 8)).rows}
    assert (macs["self_attn.in_proj_weight"], macs["linear1"], macs["linear2"]) == (
        15 * 192,
        15 * 128,
        15 * 128,
    )
