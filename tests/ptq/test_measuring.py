"""A network that failed is told apart, and its worst layers and a repair are found by measuring."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octavo.formats.width import Width
from octavo.network.divergence import Divergence
from octavo.network.forward import observing
from octavo.network.layers import find_layers
from octavo.plan import Plan
from octavo.ptq.calibration import calibrate
from octavo.ptq.measuring import Measured, explain, measure, warn_if_large
from octavo.storage.held_out import HeldOut

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))


def classifier() -> Any:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    with torch.no_grad():
        model.get_parameter("2.weight").mul_(20)  # its logits say something
    return model.eval()


def spoiled(model: nn.Sequential, *positions: int) -> Any:
    """The model with a few layers as good as lost."""
    twin: Any = copy.deepcopy(model)
    with torch.no_grad():
        for position in positions:
            twin[position].weight.copy_(twin[position].weight.flip(0))
    return twin


def explained(model: nn.Sequential, twin: nn.Sequential, width: int = 2) -> HeldOut:
    with observing(twin):
        held_out, divergence = measure(model, twin, [X], len(X))
    assert divergence is not None
    planned = [(layer, Width(width)) for layer in find_layers(twin)[0]]
    before = copy.deepcopy(twin.state_dict())
    with observing(twin):
        result = explain(held_out, divergence, Measured(twin, model.state_dict(), {}), planned)
    assert all(torch.equal(value, before[name]) for name, value in twin.state_dict().items())
    return result


def test_the_measurement_is_the_divergence_on_the_batches() -> None:
    model = classifier()
    twin = spoiled(model, 1)
    with observing(twin):
        held_out, _ = measure(model, twin, [X[:40], X[40:]], 64)
    full, own = model(X).log_softmax(1), twin(X).log_softmax(1)
    divergence = (full.exp() * (full - own)).sum(1).mean()
    constant = (full.exp() * (full - full.exp().mean(0).log())).sum(1).mean()
    assert held_out.samples == 64
    assert held_out.divergence == pytest.approx(float(divergence.detach()), rel=1e-4)
    assert held_out.constant == pytest.approx(float(constant.detach()), rel=1e-4)


def test_without_inputs_or_floating_point_outputs_nothing_is_measured() -> None:
    model = classifier()
    assert measure(model, model, [], 0) == (HeldOut(), None)

    class Deciding(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).argmax(1)  # type: ignore[no-any-return]

    deciding = Deciding(*model)
    assert measure(deciding, deciding, [X], 64) == (HeldOut(64), None)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_the_layer_that_is_lost_costs_most_and_is_repaired(position: int) -> None:
    model = classifier()
    held_out = explained(model, spoiled(model, position))
    assert held_out.is_large
    name, in_float = held_out.costly[0]
    assert name == str(position)
    assert in_float == pytest.approx(0, abs=1e-6)  # all the others are as in full precision
    assert held_out.repair is not None
    others = {str(index): 2 for index in range(3) if index != position}
    assert dict(held_out.repair) == others | {str(position): 5}


def test_where_five_bits_do_not_repair_it_other_codebooks_do_and_then_float() -> None:
    model = classifier()
    twin = spoiled(model, 0, 2)
    held_out = explained(model, twin, width=5)
    assert held_out.repair is not None
    assert {str(width) for width in held_out.repair.values()} == {"5", "apot6"}
    planned = [(layer, Width(8, "apot")) for layer in find_layers(twin)[0]]
    with observing(twin):
        held_out, divergence = measure(model, twin, [X], len(X))
        assert divergence is not None
        in_float = explain(held_out, divergence, Measured(twin, model.state_dict(), {}), planned)
    assert in_float.repair is not None
    assert list(in_float.repair) == ["1"]


def test_a_plan_without_a_layer_is_none() -> None:
    model = nn.Sequential(classifier()[2])
    twin = spoiled(model, 0)
    planned = [(layer, Width(8, "apot")) for layer in find_layers(twin)[0]]
    with observing(twin):
        held_out, divergence = measure(model, twin, [X], len(X))
        assert divergence is not None
        result = explain(held_out, divergence, Measured(twin, model.state_dict(), {}), planned)
    assert result.repair is None


def test_the_warning_names_the_layers_and_the_plan() -> None:
    plan = {"a": Width(2), "b": Width(2), "c": Width(3)}
    repair = Plan({"a": 5, "c": 3})
    held_out = HeldOut(8, 1.0, constant=2.0, costly=(("b", 0.1), ("a", 0.2)), repair=repair)
    with pytest.warns(UserWarning, match="far from full precision") as caught:
        warn_if_large(held_out, plan)
    message = str(caught[0].message)
    assert "divergence 1 on 8 held-out samples, 50% of what its outputs say" in message
    assert "b (0.1 with it in float), a (0.2 with it in float)" in message
    assert "gives a the width 5, b in float (in the result: held_out.repair)" in message


def test_what_is_near_full_precision_is_not_worth_a_word() -> None:
    warn_if_large(HeldOut(8, 0.1, constant=2.0), {})
    warn_if_large(HeldOut(), {})


# In calibrate.


def test_calibrate_says_what_it_measured_and_keeps_it_out_of_the_file(tmp_path: Any) -> None:
    model = classifier()
    packed = calibrate(model, Plan.uniform(model, 4), [X])
    assert packed.held_out is not None
    assert packed.held_out.samples == 8
    twin = copy.deepcopy(model)
    packed.apply(twin)
    own = Divergence(model, [X[7::8]], temperature=1.0)
    with observing(twin):
        assert packed.held_out.divergence == pytest.approx(-own.of(twin), rel=1e-4, abs=1e-7)
    assert "on 8 held-out samples" in repr(packed)
    assert copy.deepcopy(packed).held_out == packed.held_out
    packed.save(tmp_path / "model.safetensors")
    assert type(packed).load(tmp_path / "model.safetensors").held_out is None


def test_of_few_inputs_nothing_is_set_aside_and_the_result_says_so() -> None:
    packed = calibrate(model := classifier(), Plan.uniform(model, 2), [X[:63]])
    assert packed.held_out == HeldOut()
    assert "too few inputs" in repr(packed)


def test_a_failed_network_is_told_at_the_line_that_made_it() -> None:
    model = classifier()
    with pytest.warns(UserWarning, match="far from full precision") as caught:
        packed = calibrate(model, Plan.uniform(model, 2), [X])
    assert caught[0].filename == __file__
    assert packed.held_out is not None
    assert packed.held_out.repair is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrate(model, packed.held_out.repair, [X])


@pytest.mark.parametrize("absorb", [False, True])
def test_if_nearest_levels_are_better_end_to_end_they_are_the_result(
    absorb: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).eval()
    plan = Plan.uniform(model, 4)
    x = [torch.randn(64, 8)]
    least = calibrate(model, plan, x, absorb=absorb).held_out
    assert least is not None
    assert least.divergence is not None
    assert least.nearest is not None
    assert least.divergence < least.nearest

    def worst(layer: Any, moments: Any, site: Any, solve: Any) -> Any:
        return solve(moments.__class__.without_drift(_shuffled(moments)))

    monkeypatch.setattr("octavo.ptq.freezer.choose", worst)
    packed = calibrate(model, plan, x, absorb=absorb)
    assert packed.held_out is not None
    assert packed.held_out.divergence == packed.held_out.nearest == least.nearest
    twin = copy.deepcopy(model)
    packed.apply(twin)
    assert torch.equal(twin[1].running_var, model[1].running_var)  # type: ignore[arg-type]


def _shuffled(moments: Any) -> Any:
    """Moments of inputs that are not the layer's."""
    columns = moments.hessian.shape[-1]
    mixed = torch.randn(columns, 2) * 100
    moments.hessian.copy_(mixed @ mixed.T)
    return moments
