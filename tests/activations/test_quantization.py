"""Low-precision activations: how they are calibrated, trained and refused, and that all else goes
on beside them."""

import copy
import math
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from octavo.activations.quantization import quantize_activations
from octavo.activations.quantizer import InputFormat, input_formats, input_quantizers, scales
from octavo.dnq.environment import Environment
from octavo.dnq.matching import matched, norm_statistics
from octavo.dnq.space import Action
from octavo.errors import PlanError
from octavo.formats.width import Width
from octavo.inq.incremental import Incremental
from octavo.network.divergence import TEMPERATURE
from octavo.network.layers import find_layers
from octavo.plan import Plan
from octavo.ptq.calibration import calibrate
from octavo.ptq.float_inputs import float_moments
from octavo.storage.packed import Packed


class Net(nn.Module):
    """A signed input, one that is not negative, and a layer that nothing reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = (
            nn.Conv2d(2, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 3, groups=2),
        )
        self.fc, self.unused = nn.Linear(4, 3), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv1(x)))
        return self.fc(self.conv2(x).mean((2, 3)))  # type: ignore[no-any-return]


NAMES = ("conv1", "conv2", "fc")


def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        model.norm.running_mean.uniform_(-0.3, 0.3)  # type: ignore[union-attr]
    return model.eval()


def batches(count: int = 4, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 2, 6, 6, generator=generator) for _ in range(count)]


def given(model: nn.Module, inputs: list[Tensor]) -> dict[str, Tensor]:
    """What the layers of a float model are given."""
    seen: dict[str, list[Tensor]] = {name: [] for name in NAMES}
    hooks = [
        getattr(model, name).register_forward_pre_hook(
            lambda _, args, name=name: seen[name].append(args[0])
        )
        for name in NAMES
    ]
    with torch.no_grad():
        for batch in inputs:
            model(batch)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


BITS = dict.fromkeys(NAMES, 4)


def test_what_is_never_negative_has_no_levels_below_zero() -> None:
    model = net()
    assert quantize_activations(model, batches(), BITS) == []
    assert input_formats(model) == {
        "conv1": InputFormat(4, True),
        "conv2": InputFormat(4, False),
        "fc": InputFormat(4, True),
    }


@pytest.mark.parametrize("percent", [90.0, 99.5, 100])
def test_the_highest_level_lies_at_the_percentile_of_the_magnitudes(percent: float) -> None:
    model, seen = net(), given(net(), batches())
    quantize_activations(model, batches(), BITS, fit=percent)
    for name, quantizer in input_quantizers(model).items():
        expected = np.percentile(seen[name].abs().numpy(), percent, method="inverted_cdf")
        assert quantizer.effective_scale().item() * quantizer.format.highest == pytest.approx(
            float(expected), rel=2e-3
        )


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_scale_of_least_squared_error_beats_all_others_around_it(bits: int) -> None:
    model, seen = net(), given(net(), batches())
    quantize_activations(model, batches(), dict.fromkeys(NAMES, bits))
    for name, quantizer in input_quantizers(model).items():
        scale, input_format = quantizer.effective_scale().item(), quantizer.format

        def error(
            at: float, values: Tensor = seen[name], input_format: InputFormat = input_format
        ) -> float:
            return float(
                (
                    values
                    - (values / at).round().clamp(input_format.lowest, input_format.highest) * at
                )
                .square()
                .mean()
            )

        assert error(scale) <= 1.02 * min(error(scale * 2 ** (i / 8)) for i in range(-24, 25))


def test_scales_that_shall_be_powers_of_two_are_the_best_of_these() -> None:
    model, seen = net(), given(net(), batches())
    quantize_activations(model, batches(), BITS, power_of_two=True)
    for name, quantizer in input_quantizers(model).items():
        scale, input_format, values = quantizer.step.item(), quantizer.format, seen[name]
        assert math.frexp(scale)[0] == 0.5
        errors = {
            i: float(
                (
                    values
                    - (values / (scale * 2**i))
                    .round()
                    .clamp(input_format.lowest, input_format.highest)
                    * scale
                    * 2**i
                )
                .square()
                .mean()
            )
            for i in (-2, -1, 0, 1, 2)
        }
        assert min(errors, key=errors.__getitem__) == 0


def test_the_inputs_are_gone_through_once_and_not_kept() -> None:
    seen = list[weakref.ref[Tensor]]()

    def stream() -> Iterator[Tensor]:
        for seed in range(6):
            batch = batches(1, seed)[0]
            seen.append(weakref.ref(batch))
            yield batch
            del batch
            assert (
                sum(one() is not None for one in seen) <= 1
            )  # the loop that asks for the next may hold the last

    one, other = net(), net()
    quantize_activations(one, stream(), BITS)
    quantize_activations(other, [batches(1, seed)[0] for seed in range(6)], BITS)
    assert len(seen) == 6
    assert [scale.item() for scale in scales(one)] == [scale.item() for scale in scales(other)]


def test_one_batch_or_many_is_all_the_same() -> None:
    one, other = net(), net()
    quantize_activations(one, batches(), BITS)
    quantize_activations(other, [torch.cat(batches())], BITS)
    assert [scale.item() for scale in scales(one)] == pytest.approx(
        [scale.item() for scale in scales(other)], rel=1e-6
    )


def test_the_last_pattern_that_matches_gives_the_bits() -> None:
    model = net()
    quantize_activations(model, batches(), {"conv*": 4, "conv1": 8})
    assert {name: input_format.bits for name, input_format in input_formats(model).items()} == {
        "conv1": 8,
        "conv2": 4,
    }


def test_layers_can_be_added_and_the_mode_stays() -> None:
    model = net()
    model.conv2.train()
    quantize_activations(model, batches(), {"conv1": 8})
    quantize_activations(model, batches(), {"conv2": 4})
    assert list(input_formats(model)) == ["conv1", "conv2"]
    assert [module.training for module in (model.conv1, model.conv2)] == [False, True]
    assert [q.training for q in input_quantizers(model).values()] == [False, True]


def test_inputs_of_zeros_only_stay_zeros() -> None:
    layer = nn.Linear(2, 2)
    quantize_activations(nn.Sequential(layer), [torch.zeros(3, 2)], 4)
    assert torch.equal(layer(torch.zeros(3, 2)), layer.bias.expand(3, 2))


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.lstm, self.cell = (
            nn.Embedding(5, 4),
            nn.LSTM(4, 4, batch_first=True),
            nn.GRUCell(4, 4),
        )
        self.attn, self.fc = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.lstm(self.emb(x))[0]
        y = self.cell(self.attn(y, y, y)[0].flatten(0, 1))
        return self.fc(y)  # type: ignore[no-any-return]


def test_inputs_that_cannot_be_quantized_are_told_with_the_reason() -> None:
    model = Everything()
    skipped = quantize_activations(model, [torch.tensor([[1, 2, 3]])], 4)
    assert list(input_formats(model)) == ["fc"]
    assert {skip.name: skip.reason for skip in skipped} == {
        "emb": "Embedding is given indices",
        "lstm": "LSTM multiplies what it computes inside, which no hook reaches",
        "cell": "GRUCell multiplies what it computes inside, which no hook reaches",
        "attn": "MultiheadAttention multiplies what it computes inside, which no hook reaches",
        "attn.out_proj": "MultiheadAttention reads its weight without calling it",
    }


@pytest.mark.parametrize(
    ("bits", "settings", "message"),
    [
        ({"conv3": 4}, {}, r"'conv3' matches no layer of Net \(the nearest is 'conv[12]'\)"),
        ({"conv1": 9}, {}, "conv1: expected an integer from 2 to 8, got 9"),
        ({"conv1": 1}, {}, "conv1: expected an integer from 2 to 8, got 1"),
        (True, {}, "expected an integer from 2 to 8, got True"),
        (
            BITS,
            {"fit": "max"},
            "fit: expected \"mse\" or a percentile above 0 and up to 100, got 'max'",
        ),
        (BITS, {"fit": 0}, "fit: expected"),
        (BITS, {"fit": 100.5}, "fit: expected"),
        (4, {}, "unused: no calibration input reaches it"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_model_left_as_it_was(
    bits: Any, settings: Any, message: str
) -> None:
    model = net()
    with pytest.raises(PlanError, match=message):
        quantize_activations(model, batches(), bits, **settings)
    assert input_quantizers(model) == {}
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_inputs_that_are_missing_or_wrong_are_refused() -> None:
    model = net()
    with pytest.raises(
        PlanError, match="expected at least one batch of calibration inputs, got none"
    ):
        quantize_activations(model, [], BITS)
    with pytest.raises(PlanError, match="conv1: the model does not take these calibration inputs"):
        quantize_activations(model, [torch.zeros(1, 3, 6, 6)], BITS)
    with pytest.raises(PlanError, match="conv1: expected finite inputs"):
        quantize_activations(model, [torch.full((1, 2, 6, 6), torch.inf)], BITS)
    with pytest.raises(
        PlanError, match="emb: its inputs stay in float: Embedding is given indices"
    ):
        quantize_activations(Everything(), [torch.tensor([[1]])], {"emb": 4})
    with pytest.raises(
        PlanError,
        match="ReLU: expected a model with layers whose inputs can be quantized, found none",
    ):
        quantize_activations(nn.ReLU(), batches(), 4)
    quantize_activations(model, batches(), {"conv1": 4})
    with pytest.raises(PlanError, match="conv1: its inputs are quantized already"):
        quantize_activations(model, batches(), BITS)
    assert input_formats(model) == {"conv1": InputFormat(4, True)}


def test_scales_are_no_weights_to_quantize() -> None:
    model = net()
    before = [layer.name for layer in find_layers(model)[0]]
    quantize_activations(model, batches(), BITS)
    layers, skipped = find_layers(model)
    assert [layer.name for layer in layers] == before
    reasons = {skip.name: skip.reason for skip in skipped if skip.name.endswith("step")}
    assert reasons == {
        f"{name}.input_quantizer.step": "scales of activations stay in float" for name in NAMES
    }


def train(model: nn.Module, passes: int = 3) -> None:
    """A few steps of SGD with all that moves weights that should not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.05, momentum=0.9, weight_decay=1e-3)
    model.train()
    for batch in batches(passes, seed=5):
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
    model.eval()


@pytest.mark.parametrize("learned", [True, False])
def test_training_moves_scales_that_are_learned_and_no_others(learned: bool) -> None:
    model = net()
    quantize_activations(model, batches(), BITS, learned=learned)
    before, weight = [scale.item() for scale in scales(model)], model.conv2.weight.detach().clone()
    train(model)
    assert [scale.item() != old for scale, old in zip(scales(model), before, strict=True)] == [
        learned
    ] * 3
    assert not torch.equal(model.conv2.weight, weight)


def test_inq_freezes_weights_for_good_while_steps_learn() -> None:
    model, plan = net(), {"conv1": 3, "conv2": 2, "fc": 4}
    quantize_activations(model, batches(), BITS)
    before, frozen = [scale.item() for scale in scales(model)], dict[str, Tensor]()
    incremental = Incremental(model, plan, portions=(0.5, 1.0))
    for stage in incremental:
        if stage.index == 0:
            frozen = {
                name: getattr(model, name).weight[stage.frozen[name]].detach().clone()
                for name in plan
            }
            train(model)
            assert all(
                torch.equal(getattr(model, name).weight[stage.frozen[name]], frozen[name])
                for name in plan
            )
    packed = incremental.finish()
    assert all(scale.item() != old for scale, old in zip(scales(model), before, strict=True))
    assert packed.plan == plan
    assert packed.activations == input_formats(model)
    assert all(
        torch.equal(packed.layers[name].weight(), getattr(model, name).weight) for name in plan
    )


def test_a_run_resumes_between_stages_with_its_scales() -> None:
    def start() -> tuple[Net, Incremental]:
        model = net()
        quantize_activations(model, batches(), BITS)
        return model, Incremental(
            model, {"conv1": 3, "fc": 2}, portions=(0.5, 1.0), inputs=batches(1)
        )

    def first(incremental: Incremental, model: Net) -> dict[str, Any]:
        next(iter(incremental))
        train(model)
        return copy.deepcopy(incremental.state_dict())

    model, whole = start()
    state = first(whole, model)
    other, resumed = start()
    resumed.load_state_dict(state)
    for one in (whole, resumed):
        for _ in one:
            pass
        one.finish()
    assert model.state_dict().keys() == other.state_dict().keys()
    assert all(
        torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items()
    )


def test_moments_are_of_the_inputs_as_they_are_multiplied() -> None:
    model = net()
    quantize_activations(model, batches(), BITS)
    rounded = given(model, batches())  # hooked after the quantizers
    assert len(rounded["fc"].unique()) <= 16
    (layer,) = [layer for layer in find_layers(model)[0] if layer.name == "fc"]
    moments = float_moments(model, batches(), [layer])["fc"]
    assert torch.allclose(moments.hessian[0], rounded["fc"].T @ rounded["fc"], rtol=1e-5)


def test_calibrate_compensates_on_quantized_inputs() -> None:
    model, inputs = net(), batches(8)
    quantize_activations(model, inputs, dict.fromkeys(NAMES, 2))
    plain = net()
    plan = {"conv1": 3, "conv2": 3, "fc": 3}
    on_rounded, on_float = calibrate(model, plan, inputs), calibrate(plain, plan, inputs)
    on_float.apply(plain)
    for name in plan:
        getattr(model, name).weight.requires_grad_(False)
    with torch.no_grad():
        target = torch.cat([model(batch) for batch in inputs])
        errors = []
        for packed in (on_rounded, on_float):
            worn = copy.deepcopy(model)
            for name in plan:
                getattr(worn, name).weight.copy_(packed.layers[name].weight())
            errors.append(
                float((torch.cat([worn(batch) for batch in inputs]) - target).square().mean())
            )
    assert errors[0] < errors[1]
    assert on_rounded.activations == input_formats(model)


def test_the_searchs_environment_measures_what_a_network_with_quantizers_does() -> None:
    model, inputs = net(), batches(2)
    quantize_activations(model, inputs, dict.fromkeys(NAMES, 3))
    actions = tuple(Action(Width(bits)) for bits in (2, 3, 4))
    environment = Environment(model, NAMES, inputs, [actions] * 3)
    choices = [
        (0, 1, 2),
        (0, 1, 0),
        (0, 2, 0),
        (0, 2, 1),
        (2, 2, 2),
        (None, None, 0),
        (0, 1, 2),
        (1, 1, 1),
    ]
    with torch.no_grad():
        target = torch.cat([(model(batch) / TEMPERATURE).log_softmax(1) for batch in inputs])
        statistics = norm_statistics(model, inputs)
        expected = []
        for choice in choices:
            network = environment.network(choice)
            with matched(network, statistics):
                outputs = torch.cat(
                    [(network(batch) / TEMPERATURE).log_softmax(1) for batch in inputs]
                )
            divergence = float((target.exp() * (target - outputs)).sum(1).mean())
            expected.append(-(TEMPERATURE**2) * divergence)
    found = [environment.objectives([choice])[0] for choice in choices]
    assert found == pytest.approx(expected, abs=1e-7)
    assert environment.objectives(choices) == pytest.approx(expected, abs=1e-7)
    assert len(set(found)) > 5


@pytest.mark.parametrize("power_of_two", [False, True])
def test_a_packed_network_computes_the_same_in_a_plain_model_bit_for_bit(
    power_of_two: bool, tmp_path: Any
) -> None:
    model, fresh, inputs = net(), net(), batches(1)[0]
    quantize_activations(model, batches(), BITS, power_of_two=power_of_two)
    train(model)
    incremental = Incremental(model, Plan.uniform(model, 3), portions=(0.5, 1.0))
    for _ in incremental:
        train(model)
    incremental.finish().save(tmp_path / "net.safetensors")
    packed = Packed.load(tmp_path / "net.safetensors")
    packed.apply(fresh)
    assert torch.equal(fresh(inputs), model(inputs))
    assert packed.activations == input_formats(fresh) == input_formats(model)
    packed.apply(fresh)  # a model that has them already
    assert torch.equal(fresh(inputs), model(inputs))
    if power_of_two:
        assert {math.frexp(scale.item())[0] for scale in scales(fresh)} == {0.5}
