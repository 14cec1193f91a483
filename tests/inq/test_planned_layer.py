"""A layer that freezes: its free weights against least squares, pieces of a portion, divergence."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.inq.networks import correlated, net, network, outputs, seen, weight_of
from torch import Tensor, nn

import octavo.inq.planned_layer
from octavo.errors import PlanError, TrainingError
from octavo.inq.incremental import Incremental
from octavo.inq.parametrization import FrozenWeights
from octavo.plan import Plan

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")  # oneDNN has none


def test_a_portion_freezes_in_eight_equal_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    freeze, counts = FrozenWeights.freeze, list[int]()

    def count(parametrization: FrozenWeights, codes: Tensor, mask: Tensor) -> None:
        freeze(parametrization, codes, mask)
        counts.append(int(parametrization.frozen.sum()))

    monkeypatch.setattr(FrozenWeights, "freeze", count)
    torch.manual_seed(0)
    list(
        Incremental(
            nn.Linear(16, 8), {"weight": 3}, portions=(0.25, 1.0), inputs=[torch.randn(40, 16)]
        )
    )
    assert counts == [*range(4, 33, 4), *range(44, 129, 12)]


LINEAR: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(9, 4), lambda: correlated(40, 9)),
    "conv1d": (lambda: nn.Conv1d(3, 5, 3, stride=2, padding=1), lambda: correlated(20, 3, 9)),
    "grouped": (lambda: nn.Conv2d(4, 6, 2, groups=2), lambda: correlated(9, 4, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), lambda: correlated(9, 4, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose1d(3, 5, 3, stride=2), lambda: correlated(20, 3, 9)),
    "transposed grouped": (
        lambda: nn.ConvTranspose2d(4, 6, 2, groups=2),
        lambda: correlated(9, 4, 5, 5),
    ),
}


def design(model: nn.Module, batches: list[Tensor], weight: nn.Parameter) -> Tensor:
    """What each weight adds to the outputs: (outputs, weights), float64. A weight at a time,
    everything else zero."""
    alone: Any = copy.deepcopy(model).double()
    columns = []
    for k in range(weight.numel()):
        values = torch.zeros(weight.numel(), dtype=torch.float64)
        values[k] = 1
        alone.weight.data, alone.bias.data = values.view(weight.shape), torch.zeros_like(alone.bias)
        columns.append(outputs(alone, [batch.double() for batch in batches]))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize("order", ["magnitude", "random"])
def test_free_weights_are_the_least_squares_solution_given_the_frozen_ones(
    kind: str, order: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the layer as a linear map of all its weights, found one by one."""
    monkeypatch.setattr(octavo.inq.planned_layer, "DAMP", 0.0)
    torch.manual_seed(0)
    model: Any = LINEAR[kind][0]()
    batches = [LINEAR[kind][1]() for _ in range(2)]
    A = design(model, batches, model.weight)
    before = weight_of(model, "weight").double().flatten()
    for stage in Incremental(
        model, {"weight": 3}, portions=(0.3, 0.6, 1.0), order=order, inputs=batches
    ):
        found, frozen = (
            weight_of(model, "weight").double().flatten(),
            stage.frozen["weight"].flatten(),
        )
        expected = found.clone()
        if not stage.last:
            rest = A @ before - A[:, frozen] @ found[frozen]
            expected[~frozen] = torch.linalg.lstsq(
                A[:, ~frozen], rest.unsqueeze(1)
            ).solution.squeeze(1)
            assert not torch.allclose(expected, before, atol=0.03)
        assert torch.allclose(found, expected, atol=2e-4, rtol=0)
        before = found  # the next stage starts from here, as after retraining


@pytest.mark.parametrize(
    "kind",
    ["convolutions", "embedding", "lstm", "deep lstm", "cell", "attention", "cross attention"],
)
def test_the_last_layer_is_refitted_to_the_layers_ahead_as_they_are_now(kind: str) -> None:
    """Its free weights against least squares to the outputs before the stage, from what now reaches
    it, a little damped."""
    model, batches = network(kind)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    name = next(name for name, module in model.named_modules() if module is last)
    met: list[Tensor] = []
    last.register_forward_pre_hook(
        lambda module, args: met.append(args[0].detach().double().flatten(0, -2))
    )
    before = last.weight.detach().double()
    incremental = Incremental(model, Plan.uniform(model, 3), portions=(0.5, 1.0), inputs=batches)
    met.clear()
    whole = outputs(model, batches).double().view(-1, len(before)) - last.bias.detach().double()
    stage = next(iter(incremental))
    met.clear()
    outputs(model, batches)
    X = torch.cat(met)
    damp = (0.01 * X.square().sum(0).mean()).sqrt() * torch.eye(
        X.shape[1]
    ).double()  # rows that keep the weights as they were
    A, Y = torch.cat([X, damp]), torch.cat([whole, damp @ before.T]).T
    found = weight_of(model, name).double()
    for row, frozen, wished in zip(found, stage.frozen[name], Y, strict=True):
        rest = wished - A[:, frozen] @ row[frozen]
        expected = torch.linalg.lstsq(A[:, ~frozen], rest.unsqueeze(1)).solution.squeeze(1)
        assert torch.allclose(row[~frozen], expected, atol=1e-4, rtol=0)
    assert not torch.allclose(found[~stage.frozen[name]], before[~stage.frozen[name]], atol=0.03)


@pytest.mark.parametrize(
    "bad",
    [
        math.nan,
        math.inf,
    ],
)
def test_weights_that_diverge_are_named_and_nothing_is_frozen_at_them(bad: float) -> None:
    model = net()
    incremental = Incremental(model, Plan.uniform(model, 3))
    stage = next(iter(incremental))
    free = ~stage.frozen["last"]
    original = model.last.parametrizations.weight.original  # type: ignore[union-attr]
    with torch.no_grad():
        original[free] = bad  # type: ignore[operator]
    with pytest.raises(TrainingError, match=r"^last: its weights became NaN or infinite"):
        next(iter(incremental))
    with pytest.raises(PlanError, match="still free"):
        incremental.finish()


def test_what_lies_under_a_frozen_weight_does_not_matter() -> None:
    model = net()
    incremental = Incremental(model, Plan.uniform(model, 3))
    stage = next(iter(incremental))
    with torch.no_grad():
        model.last.parametrizations.weight.original[stage.frozen["last"]] = math.nan  # type: ignore[union-attr, operator]
    list(incremental)
    incremental.finish()
    assert all(bool(value.isfinite().all()) for value in seen(model).values())


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (
            "last.bias",
            (
                "^last: its inputs or outputs became NaN or infinite in retraining; "
                "lower the learning rate$"
            ),
        ),
        ("norm.bias", "^last: its inputs or outputs became NaN"),
        (
            "first.parametrizations.weight.original",
            "^first: its weights became NaN or infinite in retraining",
        ),
    ],
)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_with_inputs_what_diverges_is_named_and_no_layer_takes_it_over(
    spoilt: str, message: str, bad: float
) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential()
    for name, module in (
        ("first", nn.Linear(9, 8)),
        ("norm", nn.BatchNorm1d(8)),
        ("last", nn.Linear(8, 4)),
    ):
        model.add_module(name, module)
    incremental = Incremental(model, Plan.uniform(model, 3), inputs=[torch.randn(20, 9)])
    next(iter(incremental))
    model.get_parameter(spoilt).data.fill_(bad)
    before = {name: value.clone() for name, value in model.last.state_dict().items()}
    with pytest.raises(TrainingError, match=message):
        next(iter(incremental))
    assert all(
        torch.equal(value, before[name]) or "bias" in name
        for name, value in model.last.state_dict().items()
    )
    assert not model.first.parametrizations.weight.original.isnan().any() or spoilt.startswith(
        "first"
    )
    with pytest.raises(PlanError, match="still free"):
        incremental.finish()
