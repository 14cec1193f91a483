"""Scales that batch norms cancel: nothing changes in full precision, and PTQ comes nearer to the
outputs with them."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octavo import Budget, Packed, Plan, calibrate, register_layer, search
from octavo.dnq.environment import Environment
from octavo.dnq.space import Action
from octavo.formats.width import Width
from octavo.network import kinds
from octavo.network.forward import observing
from octavo.network.layers import Layer, find_layers
from octavo.ptq.absorption import absorb_factor, absorbing_norms, rescaled
from octavo.ptq.settings import PtqSettings


class Block(nn.Module):
    """Depthwise and pointwise, each with its norm; the last convolution's output is used ahead of
    its norm, too."""

    def __init__(self, *, peek: bool = False) -> None:
        super().__init__()
        self.peek = peek
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.depth, self.depth_norm = nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8)
        self.up, self.up_norm = (
            nn.ConvTranspose2d(8, 4, 2, groups=2),
            nn.BatchNorm2d(4, affine=False),
        )
        self.plain, self.last = nn.Conv2d(4, 4, 1), nn.Linear(4, 6)
        self.last_norm = nn.BatchNorm1d(6, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(x)).relu()
        x = self.depth_norm(self.depth(x)).relu()
        up = self.up(x)
        x = self.up_norm(up) + (0.1 * up if self.peek else 0)
        return self.last(self.plain(x).mean((2, 3)))  # type: ignore[no-any-return]


ABSORBED = {"stem": "stem_norm", "depth": "depth_norm", "up": "up_norm"}


def block(**settings: Any) -> Block:
    torch.manual_seed(0)
    model = Block(**settings)
    with torch.no_grad():
        for norm in (model.stem_norm, model.depth_norm):
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_()
        for _ in range(20):
            model(torch.randn(16, 3, 8, 8))
    return model.eval()


def layers(model: nn.Module) -> dict[str, Layer]:
    return {layer.name: layer for layer in find_layers(model)[0]}


def images(count: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_images_that_come_without_a_batch_are_taken_whole() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    images = [torch.randn(1, 3, 6, 6)[0] for _ in range(3)]

    class OfOne(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Tensor) -> Tensor:
            return self.model(image.unsqueeze(0))[0]  # type: ignore[no-any-return]

    network = OfOne().eval()
    layers = find_layers(network)[0]
    with observing(network):
        assert list(absorbing_norms(network, layers, images[0])) == ["model.0"]


def test_norms_right_behind_a_layer_are_found() -> None:
    model = block()
    found = absorbing_norms(model, find_layers(model)[0], images())
    assert found == {name: model.get_submodule(norm) for name, norm in ABSORBED.items()}


def test_a_layer_whose_output_goes_elsewhere_too_is_left_out() -> None:
    model = block(peek=True)
    assert set(absorbing_norms(model, find_layers(model)[0], images())) == {"stem", "depth"}


def test_an_infinite_output_hides_no_change_of_the_others() -> None:
    class RuledOut(Block):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.pad(super().forward(x), (0, 1), value=-math.inf)

    model = RuledOut(peek=True).eval()
    assert set(absorbing_norms(model, find_layers(model)[0], images())) == {"stem", "depth"}


def test_norms_in_training_mode_or_called_twice_are_left_out() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.other(self.norm(self.one(x))))  # type: ignore[no-any-return]

    twice, training = Twice().eval(), block()
    training.stem_norm.train()
    assert not absorbing_norms(twice, find_layers(twice)[0], torch.randn(5, 4))
    assert set(absorbing_norms(training, find_layers(training)[0], images())) == {"depth", "up"}


def test_a_layer_type_of_the_user_need_have_no_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.T

    monkeypatch.setattr(kinds, "_KINDS", dict(kinds._KINDS))
    register_layer(Own)
    model = nn.Sequential(Own(), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval()
    assert absorbing_norms(model, find_layers(model)[0], torch.randn(5, 4)) == {"0": model[1]}
    calibrate(model, {"0": "apot6"}, [torch.randn(64, 4)], absorb=True).apply(model)


@pytest.mark.parametrize("training", [False, True])
def test_in_full_precision_nothing_changes(training: bool) -> None:
    """In training mode too, where norms measure their input anew: retraining starts from the same
    network."""
    model, x = block(), images()
    changed, generator = copy.deepcopy(model), torch.Generator().manual_seed(3)
    for name, norm in ABSORBED.items():
        layer = layers(changed)[name]
        factor = 2 ** torch.rand(8 if name != "up" else 4, generator=generator)
        layer.weight.data.copy_(rescaled(layer, layer.weight.detach(), 1 / factor))
        absorb_factor(layer, changed.get_submodule(norm), factor)
        assert not torch.allclose(layer.weight, layers(model)[name].weight, rtol=0.01)
    with torch.no_grad():
        one, other = model.train(training)(x), changed.train(training)(x)
    assert torch.allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bits", [3, 5])
def test_ptq_is_nearer_with_them_and_its_weights_are_powers_of_two(
    bits: int, tmp_path: Path
) -> None:
    model, seen, others = block(), list(images().split(8)), images(64, seed=2)
    lost = {}
    for absorb in (False, True):
        packed = calibrate(model, Plan.uniform(model, bits), seen, absorb=absorb)
        packed.save(tmp_path / "packed.safetensors")
        quantized = block()
        Packed.load(tmp_path / "packed.safetensors").apply(quantized)
        with torch.no_grad():
            lost[absorb] = float((quantized(others) - model(others)).square().mean())
        exponents = (
            torch.cat([layer.weight.detach().flatten() for layer in layers(quantized).values()])
            .abs()
            .log2()
        )
        assert torch.equal(exponents[exponents.isfinite()], exponents[exponents.isfinite()].round())
    assert lost[True] < 0.7 * lost[False]


def test_a_trial_of_the_search_is_the_network_that_calibrate_makes() -> None:
    """With full-precision inputs, layer by layer, the outputs are the same, although the trial
    leaves the batch norms as they are."""
    model = block()
    inputs = [images()]
    names = tuple(layers(model))
    four_bits = ((Action(Width(4)),),) * len(names)
    for absorb in (False, True):
        environment = Environment(
            model, names, inputs, four_bits, settings=PtqSettings(absorb=absorb)
        )
        trial = environment.network((0,) * len(names))
        plan = Plan.uniform(model, 4)
        quantized = copy.deepcopy(model)
        calibrate(model, plan, inputs, sequential=False, absorb=absorb).apply(quantized)
        with torch.no_grad():
            assert torch.allclose(trial(inputs[0]), quantized(inputs[0]), rtol=1e-4, atol=1e-4)


def test_the_search_finds_better_plans_with_them() -> None:
    model = block()
    objectives = [
        search(
            model, [images()], budget=Budget(average_bits=2.5), method="exact", absorb=absorb
        ).objective
        for absorb in (False, True)
    ]
    assert objectives[1] > objectives[0]
