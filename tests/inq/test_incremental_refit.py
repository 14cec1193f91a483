"""INQ with inputs: the free weights are refitted as each portion freezes."""

import itertools
import math
from typing import Any

import pytest
import torch
from tests.inq.networks import (
    NETWORKS,
    Gated,
    batch,
    disturb,
    far,
    net,
    network,
    outputs,
    train,
    ways,
    weight_of,
)
from torch import Tensor, nn
from torch.nn.utils import parametrize

from octavo.errors import PlanError
from octavo.inq.incremental import Incremental
from octavo.plan import Plan
from octavo.ptq.calibration import calibrate

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")  # oneDNN has none


@pytest.mark.usefixtures("_few_pieces")
@pytest.mark.parametrize("kind", NETWORKS)
def test_every_network_is_refitted_stage_by_stage(kind: str) -> None:
    """Counts are exact, what is frozen stays whatever happens to it, and all but the weights is as
    it was after each stage."""
    model, batches = network(kind)
    for module in list(model.modules())[::3]:
        module.training = False
    next(model.parameters()).requires_grad_(False)
    plan, types, state = (
        Plan.uniform(model, 3),
        [type(module) for module in model.modules()],
        list(model.state_dict()),
    )
    incremental = Incremental(model, plan, portions=(0.5, 1.0), inputs=batches)
    before, values = ways(model), dict[str, tuple[Tensor, Tensor]]()
    for stage in incremental:
        assert ways(model) == before
        assert list(stage.frozen) == list(plan)
        for name, mask in stage.frozen.items():
            assert int(mask.sum()) == round(stage.portion * mask.numel()), name
            weight = weight_of(model, name)
            old, earlier = values.get(name, (weight, torch.zeros_like(mask)))
            assert bool(mask[earlier].all())
            assert torch.equal(weight[earlier], old[earlier])
        disturb(model, stage.index)
        for name, mask in stage.frozen.items():
            values[name] = weight_of(model, name), mask
    packed, last = incremental.finish(), outputs(model, batches)
    assert bool(last.isfinite().all())
    assert [type(module) for module in model.modules()] == types
    assert list(model.state_dict()) == state
    for name, layer in packed.layers.items():
        assert torch.equal(layer.weight(), values[name][0])
    other, _ = network(kind, seed=9)
    packed.apply(other)
    assert torch.allclose(outputs(other, batches), last, atol=1e-5)


@pytest.mark.usefixtures("_few_pieces")
@pytest.mark.parametrize("kind", NETWORKS)
def test_refitted_every_network_is_nearer_to_what_it_was(kind: str) -> None:
    errors = {True: torch.zeros(2), False: torch.zeros(2)}
    for seed, given in itertools.product(range(2), errors):
        model, batches = network(kind, seed)
        whole = outputs(model, batches)
        incremental = Incremental(
            model, Plan.uniform(model, 3), portions=(0.5, 1.0), inputs=batches if given else None
        )
        for stage in incremental:
            errors[given][stage.index] += (outputs(model, batches) - whole).square().sum()
    assert bool((errors[True] < 0.97 * errors[False]).all())


def test_within_one_portion_too_the_last_weights_compensate_for_the_first() -> None:
    """With the paper's n1, the same levels with and without inputs: frozen all at once, it would be
    plain rounding."""
    errors = {True: 0.0, False: 0.0}
    for seed, given in itertools.product(range(3), errors):
        model, batches = network("linear", seed)
        whole = outputs(model, batches)
        incremental = Incremental(
            model, {"weight": 3}, portions=(1.0,), fit="max", inputs=batches if given else None
        )
        assert [stage.last for stage in incremental] == [True]
        errors[given] += float((outputs(model, batches) - whole).square().sum())
    assert errors[True] < 0.8 * errors[False]


@pytest.mark.usefixtures("_few_pieces")
@pytest.mark.parametrize("order", ["magnitude", "distance", "relative", far, "random"])
@pytest.mark.parametrize("portions", [(1.0,), (0.5, 0.75, 0.875, 1.0)])
def test_with_inputs_all_orders_and_portions_finish(
    order: Any, portions: tuple[float, ...]
) -> None:
    model = net()
    incremental = Incremental(
        model, {"first": 3, "last": 2}, portions=portions, order=order, inputs=[batch(0), batch(1)]
    )
    for stage in incremental:
        assert {name: int(mask.sum()) for name, mask in stage.frozen.items()} == {
            "first": round(stage.portion * 97),
            "last": round(stage.portion * 5),
        }
        train(model, seed=stage.index)
    assert dict(incremental.finish().plan) == {"first": 3, "last": 2}


@pytest.mark.usefixtures("_few_pieces")
def test_orders_differ_with_inputs_too_and_a_seed_is_a_seed() -> None:
    def codes(order: Any, seed: int = 0) -> list[int]:
        incremental = Incremental(net(), {"first": 3}, order=order, seed=seed, inputs=[batch(0)])
        list(incremental)
        return incremental.finish().layers["first"].codes.flatten().tolist()

    found = [
        codes("magnitude"),
        codes("distance"),
        codes(far),
        codes("random"),
        codes("random", seed=1),
    ]
    assert all(a != b for a, b in itertools.combinations(found, 2))
    assert codes("random", seed=1) == found[-1]


@pytest.mark.usefixtures("_few_pieces")
def test_with_inputs_each_portion_freezes_by_its_own_order_too() -> None:
    def masks(order: Any) -> list[list[bool]]:
        run = Incremental(
            net(), {"first": 3}, portions=(0.4, 0.8, 1.0), order=order, inputs=[batch(0)]
        )
        return [stage.frozen["first"].flatten().tolist() for stage in run]

    mixed, magnitude, distance = (
        masks(["magnitude", "distance", far]),
        masks("magnitude"),
        masks("distance"),
    )
    assert masks([far, far, far]) == masks(far)
    assert mixed[0] == magnitude[0] != distance[0]
    assert magnitude[1] != mixed[1] != distance[1]


@pytest.mark.usefixtures("_few_pieces")
@pytest.mark.parametrize(
    "settings", [{}, {"fit": "max"}, {"per": "tensor"}, {"fit": "max", "per": "tensor"}]
)
def test_with_inputs_the_exponents_are_those_of_calibrate(settings: dict[str, Any]) -> None:
    model, batches = network("convolutions")
    expected = calibrate(model, Plan.uniform(model, 3), batches, **settings)
    incremental = Incremental(
        model, Plan.uniform(model, 3), portions=(0.5, 1.0), inputs=batches, **settings
    )
    for stage in incremental:
        disturb(model, stage.index)
    for name, layer in incremental.finish().layers.items():
        assert torch.equal(
            layer.codebook.max_exponent, expected.layers[name].codebook.max_exponent
        ), name


@pytest.mark.usefixtures("_few_pieces")
def test_inputs_that_can_be_read_only_once_serve_every_stage() -> None:
    finished = []
    for once in (False, True):
        model, batches = network("convolutions")
        inputs = (one for one in batches) if once else batches
        incremental = Incremental(model, Plan.uniform(model, 3), portions=(0.5, 1.0), inputs=inputs)
        for stage in incremental:
            disturb(model, stage.index)
        finished.append(incremental.finish())
    for name, layer in finished[0].layers.items():
        assert torch.equal(layer.codes, finished[1].layers[name].codes)


@pytest.mark.usefixtures("_few_pieces")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_with_inputs_other_types_of_floats(dtype: torch.dtype) -> None:
    errors = []
    for given in (True, False):
        model, batches = network("convolutions")
        model, batches = model.to(dtype), [b.to(dtype) for b in batches]
        whole = outputs(model, batches)
        incremental = Incremental(
            model, Plan.uniform(model, 3), portions=(0.5, 1.0), inputs=batches if given else None
        )
        list(incremental)
        packed = incremental.finish()
        assert {value.dtype for value in model.state_dict().values()} == {dtype, torch.int64}
        assert torch.equal(packed.layers["0"].weight(), weight_of(model, "0").float())
        errors.append(float((outputs(model, batches) - whole).double().square().sum()))
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.usefixtures("_few_pieces")
def test_layers_outside_the_plan_stay_to_the_bit() -> None:
    model, batches = network("convolutions")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    incremental = Incremental(model, {"3": 3}, inputs=batches)
    list(incremental)
    incremental.finish()
    changed = [
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    ]
    assert changed == ["3.weight"]


def test_a_layer_that_inputs_no_longer_reach_freezes_all_the_same() -> None:
    torch.manual_seed(0)
    model, given = Gated(), [torch.randn(20, 9)]
    incremental = Incremental(model, Plan.uniform(model, 3), inputs=given)
    for stage in incremental:
        model.open = stage.index == 1
        assert all(
            int(mask.sum()) == round(stage.portion * mask.numel()) for mask in stage.frozen.values()
        )
    assert dict(incremental.finish().plan) == {"first": 3, "branch": 3, "last": 3}


def test_inputs_that_do_not_fit_leave_the_model_as_it_was() -> None:
    model, batches = network("convolutions")
    closed = Gated()
    closed.open = False
    spoilt = batches[0].clone()
    spoilt[0, 0, 0, 0] = math.nan
    refused: list[tuple[nn.Module, Any, str]] = [
        (model, [], "^inputs: expected at least one batch of calibration inputs, got none$"),
        (model, iter(()), "^inputs: expected at least one batch"),
        (
            model,
            [torch.randn(2, 4, 7, 7)],
            "^0: the model does not take these calibration inputs: RuntimeError",
        ),
        (
            model,
            [*batches, torch.randn(2, 3, 8, 8, 8)],
            "^0: the model does not take these calibration inputs: RuntimeError",
        ),
        (
            model,
            [torch.randn(2, 3, 2, 2)],
            "^3: the model does not take these calibration inputs: RuntimeError",
        ),
        (
            model,
            [{"y": 1}],
            "^Sequential: the model does not take these calibration inputs: TypeError",
        ),
        (model, [batches[0][:0]], "^0, 3, 6, 9: no calibration input reaches these layers"),
        (model, [spoilt], "^0: expected finite calibration inputs"),
        (closed, [torch.randn(4, 9)], "^branch: no calibration input reaches this layer"),
    ]
    for network_, inputs, message in refused:
        before = (
            {name: value.clone() for name, value in network_.state_dict().items()},
            ways(network_),
        )
        plan = Plan.uniform(network_, 3)
        with pytest.raises(PlanError, match=message):
            Incremental(network_, plan, inputs=inputs)
        assert not any(parametrize.is_parametrized(module) for module in network_.modules())
        torch.testing.assert_close(dict(network_.state_dict()), before[0], rtol=0, atol=0)
        assert ways(network_) == before[1]
