"""The quantizer of a layer's inputs: exact levels, the paper's gradients, and a part of the model
like any other."""

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.activations.quantizer import (
    InputFormat,
    InputQuantizer,
    attach_quantizer,
    input_formats,
    input_quantizers,
    install_quantizers,
    scale_key,
    scales,
    store_effective_scales,
)


def values(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("input_format", "multiples"),
    [
        (InputFormat(2, signed=False), range(4)),
        (InputFormat(2, signed=True), range(-2, 2)),
        (InputFormat(3, signed=False), range(8)),
        (InputFormat(4, signed=True), range(-8, 8)),
        (InputFormat(8, signed=False), range(256)),
    ],
)
def test_the_levels_are_all_multiples_of_the_scale_in_the_range_and_no_others(
    input_format: InputFormat, multiples: range
) -> None:
    scale = torch.tensor(0.3)
    inputs = torch.linspace(-400, 400, 100_001)
    found = InputQuantizer(input_format, 0.3)(inputs).detach()
    assert found.unique().tolist() == (torch.tensor(list(multiples)) * scale).tolist()
    inner = (inputs > multiples[0] * 0.3) & (inputs < multiples[-1] * 0.3)
    assert float((found - inputs)[inner].abs().max()) <= 0.15 + 1e-5  # the nearest


def test_ties_go_to_the_even_multiple() -> None:
    found = InputQuantizer(InputFormat(4, signed=True), 0.5)(
        torch.tensor([0.25, 0.75, 1.25, -0.25, -0.75])
    )
    assert found.tolist() == [0.0, 1.0, 1.0, 0.0, -1.0]


def lsq(
    inputs: list[float], scale: float, input_format: InputFormat, features: int
) -> tuple[list[float], float]:
    """Gradients of the sum of the outputs, by the paper's equations 3 and 5 and section 2.2, one
    value after the other."""
    by_input, by_scale = [], 0.0
    for value in inputs:
        ratio = value / scale
        inside = input_format.lowest < ratio < input_format.highest
        by_input.append(1.0 if inside else 0.0)
        by_scale += (
            round(ratio) - ratio
            if inside
            else input_format.lowest
            if ratio <= input_format.lowest
            else input_format.highest
        )
    return by_input, by_scale / math.sqrt(features * input_format.highest)


@pytest.mark.parametrize(
    "input_format",
    [InputFormat(2, signed=False), InputFormat(3, signed=True), InputFormat(8, signed=False)],
)
def test_the_gradients_are_the_papers(input_format: InputFormat) -> None:
    inputs, quantizer = values(4, 5, 6).requires_grad_(), InputQuantizer(input_format, 0.7)
    quantizer(inputs).sum().backward()
    by_input, by_scale = lsq(inputs.flatten().tolist(), 0.7, input_format, features=30)
    assert inputs.grad is not None
    assert inputs.grad.flatten().tolist() == by_input
    assert float(quantizer.step.grad) == pytest.approx(by_scale, rel=1e-5)  # type: ignore[arg-type]


def test_the_gradient_of_the_scale_is_the_slope_while_every_value_keeps_its_error() -> None:
    """Finite differences of what LSQ differentiates: the rounding moves a value by so many scales,
    whatever the scale is."""
    input_format, inputs, weights = (
        InputFormat(4, signed=True),
        values(6, 10).double(),
        values(6, 10, seed=1).double(),
    )
    quantizer = InputQuantizer(input_format, 0.8)
    (quantizer(inputs) * weights).sum().backward()
    scale = quantizer.step.item()

    def ratio(at: float) -> Tensor:
        return (inputs / at).clamp(input_format.lowest, input_format.highest)

    moved = ratio(scale).round() - ratio(scale)

    def output(at: float) -> float:
        return float((weights * (ratio(at) + moved) * at).sum())

    slope = (output(scale + 1e-6) - output(scale - 1e-6)) / 2e-6
    expected = slope / math.sqrt(10 * input_format.highest)
    assert float(quantizer.step.grad) == pytest.approx(expected, rel=1e-5)  # type: ignore[arg-type]


def test_training_takes_the_scale_to_where_the_error_is_least() -> None:
    quantizer = InputQuantizer(InputFormat(2, signed=False), 0.2)
    inputs = torch.rand(64, 100, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(quantizer.parameters(), 0.02)
    for _ in range(300):
        optimizer.zero_grad()
        (quantizer(inputs) - inputs).square().sum(1).mean().backward()
        optimizer.step()
    assert quantizer.step.item() == pytest.approx(
        2 / 7, rel=0.05
    )  # levels 0, 1, 2, 3 of cells of one width, but for half ones


def test_a_scale_that_is_not_learned_gets_no_gradient() -> None:
    quantizer, inputs = (
        InputQuantizer(InputFormat(4, signed=False), 0.2, learned=False),
        torch.rand(3, 4, requires_grad=True),
    )
    quantizer(inputs).sum().backward()
    assert quantizer.step.grad is None
    assert inputs.grad is not None


@pytest.mark.parametrize("scale", [0.011, 0.25, 0.3, 0.36, 0.75, 1.0, 1.41, 1.42, 700.0])
def test_scales_that_are_powers_of_two_are_the_nearest_on_a_logarithmic_scale(scale: float) -> None:
    quantizer = InputQuantizer(InputFormat(4, signed=True, power_of_two=True), scale)
    assert quantizer.effective_scale().item() == 2.0 ** round(math.log2(scale))
    quantizer(torch.tensor([[1.0, 2.0]])).sum().backward()
    plain = InputQuantizer(InputFormat(4, signed=True), 2.0 ** round(math.log2(scale)))
    plain(torch.tensor([[1.0, 2.0]])).sum().backward()
    assert torch.equal(quantizer.step.grad, plain.step.grad)  # type: ignore[arg-type]  # straight through


@pytest.mark.parametrize("power_of_two", [False, True])
def test_a_scale_is_never_negative_and_can_come_back(power_of_two: bool) -> None:
    quantizer = InputQuantizer(InputFormat(4, signed=False, power_of_two=power_of_two), -0.3)
    assert 0 < quantizer.effective_scale().item() < 1e-6
    quantizer(torch.ones(2, 3)).sum().backward()
    assert float(quantizer.step.grad) > 0  # type: ignore[arg-type]


@pytest.mark.parametrize("power_of_two", [False, True])
def test_stored_effective_scales_compute_the_same(power_of_two: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    attach_quantizer(
        model[0], InputQuantizer(InputFormat(4, signed=True, power_of_two=power_of_two), 0.3)
    )
    before = model(values(5, 3))
    store_effective_scales(model)
    assert torch.equal(model(values(5, 3)), before)
    assert float(scales(model)[0].detach()) == (0.25 if power_of_two else float(torch.tensor(0.3)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_type_of_the_inputs_is_kept_and_what_is_no_number_too(dtype: torch.dtype) -> None:
    found = InputQuantizer(InputFormat(4, signed=True), 0.5)(
        torch.tensor([0.8, math.nan], dtype=dtype)
    )
    assert found.dtype == dtype
    assert found[0].item() == 1
    assert math.isnan(found[1].item())


def quantized() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(), nn.Linear(4, 3)).eval()
    install_quantizers(model, {"0": InputFormat(3, signed=True), "2": InputFormat(4, signed=False)})
    return model


def test_a_copy_has_quantizers_of_its_own() -> None:
    model, inputs = quantized(), values(6, 2, 5)
    other = copy.deepcopy(model)
    before = model(inputs)
    assert torch.equal(other(inputs), before)
    with torch.no_grad():
        scales(other)[0].mul_(3)
    assert torch.equal(model(inputs), before)
    assert not torch.equal(other(inputs), before)


def test_state_dicts_and_whole_models_are_saved_and_loaded() -> None:
    model, inputs, file = quantized(), values(6, 2, 5), io.BytesIO()
    with torch.no_grad():
        scales(model)[1].fill_(0.125)
    assert {scale_key("0"), scale_key("2")} < set(model.state_dict())
    fresh = quantized()
    fresh.load_state_dict(model.state_dict())
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(fresh(inputs), model(inputs))
    assert torch.equal(loaded(inputs), model(inputs))


def test_an_optimizer_sees_the_scales() -> None:
    model = quantized()
    assert {id(scale) for scale in scales(model)} < {
        id(parameter) for parameter in model.parameters()
    }


class Calls(nn.Module):
    """Calls its layer in one way or another."""

    def __init__(self, call: Any) -> None:
        super().__init__()
        self.fc, self.call = nn.Linear(2, 2), call

    def forward(self, x: Tensor) -> Any:
        return self.call(self.fc, x)


@pytest.mark.parametrize("call", [lambda fc, x: fc(x), lambda fc, x: fc(input=x)])
def test_inputs_are_rounded_however_the_layer_is_called(call: Any) -> None:
    model, inputs = Calls(call), values(4, 2)
    attach_quantizer(model.fc, InputQuantizer(InputFormat(2, signed=True), 1.0))
    assert torch.equal(model(inputs), model.fc.forward(inputs.round().clamp(-2, 1)))


def test_other_arguments_are_passed_on() -> None:
    up = nn.ConvTranspose1d(1, 1, 2, stride=2)
    attach_quantizer(up, InputQuantizer(InputFormat(4, signed=True), 1.0))
    assert up(torch.ones(1, 1, 3), output_size=[7]).shape == (1, 1, 7)


def test_what_is_hooked_later_sees_what_the_layer_sees() -> None:
    model, seen = quantized(), list[Tensor]()
    hook = model[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(values(6, 2, 5))
    hook.remove()
    assert seen[0].unique().tolist() == [-4, -3, -2, -1, 0, 1, 2, 3]


def test_quantizers_that_are_taken_off_leave_nothing_behind() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(), nn.Linear(4, 3)).eval()
    model, inputs = quantized(), values(6, 2, 5)
    own = model[0].register_forward_pre_hook(lambda module, args: None, with_kwargs=False)
    octavo.remove_quantizers(model)
    assert torch.equal(model(inputs), plain(inputs))
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert input_quantizers(model) == {}
    assert [len(module._forward_pre_hooks) for module in model] == [1, 0, 0]  # the user's own stays
    own.remove()
    assert not any(module._forward_pre_hooks_with_kwargs for module in model)


def test_quantizers_of_another_format_take_the_place_of_those_that_are_there() -> None:
    model, inputs = quantized(), values(6, 2, 5)
    kept = scales(model)[1]
    install_quantizers(model, {"0": InputFormat(2, signed=True), "2": InputFormat(4, signed=False)})
    assert {name: input_format.bits for name, input_format in input_formats(model).items()} == {
        "0": 2,
        "2": 4,
    }
    assert scales(model)[1] is kept
    assert len(model[0]._forward_pre_hooks) == 1
    expected = model[2].forward(
        model[0].forward(inputs.round().clamp(-2, 1)).relu().round().clamp(0, 15)
    )
    assert torch.equal(model(inputs), expected)


def test_the_scale_of_a_model_that_is_one_layer_has_no_prefix() -> None:
    model = nn.Linear(2, 2)
    install_quantizers(model, {"": InputFormat(4, signed=True)})
    assert scale_key("") in model.state_dict()
    assert list(input_formats(model)) == [""]
