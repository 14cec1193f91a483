"""Matching: the drift that quantized layers cause is taken back in front of each batch norm."""

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octavo import calibrate
from octavo.dnq.environment import Environment
from octavo.dnq.matching import FEWEST, Statistics, matched, norm_statistics
from octavo.dnq.survey import survey
from octavo.network.divergence import Divergence
from octavo.network.forward import observing


class Twice(nn.Module):
    """Its norm is called twice, on inputs of different statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        result: Tensor = self.norm(y) + self.norm(5 * y.relu() + 1)
        return result


class Named(nn.Module):
    """Norms of all kinds; only the batch norms with running statistics are matched."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.batch = nn.BatchNorm2d(4)
        self.untracked = nn.BatchNorm2d(4, track_running_stats=False)
        self.group = nn.GroupNorm(2, 4)
        self.flat = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.group(self.untracked(self.batch(self.conv(x))))
        result: Tensor = self.flat(y.flatten(2))
        return result


def deep() -> nn.Sequential:
    """Convolutions behind each other, each in front of a batch norm that has seen inputs."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise((3, 16, 16, 16, 16, 16)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    with torch.no_grad():
        for _ in range(50):  # running statistics are those of its inputs
            model(torch.randn(32, 3, 8, 8))
    return model.eval()


def images(count: int = 2, size: int = 32) -> list[Tensor]:
    return list(torch.randn(count, size, 3, 8, 8))


def drifted(model: nn.Module) -> None:
    """Change the mean and the scale of what every convolution returns."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(1 + torch.rand(len(module.weight), 1, 1, 1))
                assert module.bias is not None
                module.bias.add_(torch.randn(len(module.weight)))


def numbers_of_channels(values: Tensor) -> Tensor:
    """The numbers of each channel, (channels, numbers)."""
    return values.transpose(0, 1).flatten(1)


class Seen:
    """What the norms of a model normalize, by name and call."""

    def __init__(self, model: nn.Module) -> None:
        self.calls: dict[str, list[Tensor]] = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                # The hook runs behind those of matching, which come before the call.
                module.register_forward_hook(self._recorder(name))

    def _recorder(self, name: str) -> Any:
        def record(_: nn.Module, args: tuple[Tensor, ...], __: Tensor) -> None:
            self.calls.setdefault(name, []).append(args[0].clone())

        return record


def outputs_of(model: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
    with observing(model):
        return [model(batch) for batch in batches]


def statistics_of(model: nn.Module, batches: Sequence[Tensor]) -> Statistics:
    with observing(model):
        return norm_statistics(model, batches)


def test_statistics_are_those_of_each_call() -> None:
    model, batches = Twice().eval(), images()
    statistics = statistics_of(model, batches)
    assert list(statistics) == ["norm"]
    with torch.no_grad():
        convolved = [model.conv(batch) for batch in batches]
    inputs = [given for y in convolved for given in (y, 5 * y.relu() + 1)]
    for (mean, deviation), given in zip(statistics["norm"], inputs, strict=True):
        numbers = numbers_of_channels(given)
        assert mean.shape == deviation.shape == (4,)
        assert torch.allclose(mean, numbers.mean(1), atol=1e-6)
        assert torch.allclose(deviation, numbers.std(1, correction=0), rtol=1e-5)


def test_norms_without_running_statistics_are_left_alone() -> None:
    statistics = statistics_of(Named().eval(), images(1))
    assert sorted(statistics) == ["batch", "flat"]
    assert statistics["flat"][0][0].shape == (4,)


@pytest.mark.parametrize("build", [Twice, deep])
def test_norms_see_the_wanted_mean_and_deviation(build: Any) -> None:
    model, batches = build().eval(), images()
    statistics = statistics_of(model, batches)
    drifted(model)
    seen = Seen(model)
    with matched(model, statistics):
        outputs_of(model, batches)
    assert seen.calls.keys() == statistics.keys()
    for name, calls in statistics.items():
        for (mean, deviation), given in zip(calls, seen.calls[name], strict=True):
            numbers = numbers_of_channels(given)
            assert torch.allclose(numbers.mean(1), mean, atol=1e-5)
            assert torch.allclose(numbers.std(1, correction=0), deviation, rtol=1e-4)


def test_a_drift_of_the_mean_and_the_scale_alone_is_taken_back() -> None:
    model, batches = deep(), images()
    full, statistics = outputs_of(model, batches), statistics_of(model, batches)
    drifted(model)
    with matched(model, statistics):
        outputs = outputs_of(model, batches)
    assert not torch.allclose(outputs_of(model, batches)[0], full[0], atol=0.1)
    assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(outputs, full, strict=True))


@pytest.mark.parametrize("build", [Twice, Named, deep])
def test_full_precision_stays_as_it_is(build: Any) -> None:
    model, batches = build().eval(), images()
    full, statistics = outputs_of(model, batches), statistics_of(model, batches)
    with matched(model, statistics):
        outputs = outputs_of(model, batches)
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(outputs, full, strict=True))


@pytest.mark.parametrize(("numbers", "changed"), [(FEWEST - 1, False), (FEWEST, True)])
def test_small_batches_are_left_alone(numbers: int, *, changed: bool) -> None:
    model, batch = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval(), torch.randn(numbers, 3)
    statistics = statistics_of(model, [batch])
    with torch.no_grad():
        model[0].get_parameter("bias").add_(1)
    plain = outputs_of(model, [batch])[0]
    with matched(model, statistics):
        assert torch.equal(outputs_of(model, [batch])[0], plain) != changed


@pytest.mark.parametrize("constant", ["before", "now", "always"])
def test_constant_channels_make_no_nan(constant: str) -> None:
    """A channel may be constant in full precision, or because its weights are quantized to 0."""
    model, batches = deep(), images()
    bias = model[0].get_parameter("bias")
    weight = model[0].get_parameter("weight")
    varying = weight.detach().clone()
    with torch.no_grad():
        if constant != "now":
            weight[0] = 0
        statistics = statistics_of(model, batches)
        weight.copy_(varying)
        bias.add_(3)
        if constant != "before":
            weight[0] = 0
    seen = Seen(model)
    with matched(model, statistics):
        outputs = outputs_of(model, batches)
    assert all(bool(output.isfinite().all()) for output in outputs)
    for (mean, deviation), given in zip(statistics["1"], seen.calls["1"], strict=True):
        off = (given[:, 0].mean() - mean[0]).abs()
        assert off < 1e-5 + 0.5 * deviation[0]  # the rounding of a constant is scaled up


def hooks_of(model: nn.Module) -> int:
    return sum(
        len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()
    )


def test_hooks_are_gone_afterwards_even_after_an_error() -> None:
    model, batches = deep(), images()
    statistics = statistics_of(model, batches)
    assert hooks_of(model) == 0
    with matched(model, statistics):
        assert hooks_of(model) == len(statistics) == 5
    assert hooks_of(model) == 0
    with pytest.raises(RuntimeError), matched(model, statistics):
        model(torch.zeros(1, 1))
    assert hooks_of(model) == 0
    with pytest.raises(RuntimeError):
        statistics_of(model, [torch.zeros(1, 1)])
    assert hooks_of(model) == 0


def test_trials_are_matched_and_begin_anew_with_each_of_them() -> None:
    model, batches = deep(), images()
    space = survey(model, batches[0], (2, 4), {})
    environment = Environment(model, space.names, batches, space.actions)
    choice = (0,) * len(space.names)
    first, full, second = environment.objectives([choice, (None,) * len(choice), choice])
    assert first == second
    assert full == pytest.approx(0.0, abs=1e-6)
    network = environment.network(choice)
    with matched(network, statistics_of(model, batches)), observing(network):
        expected = Divergence(model, batches).of(network)
    assert first == expected
    assert hooks_of(model) == 0
    own = Environment(
        model, space.names, batches, space.actions, objective=Divergence(model, batches).of
    )
    assert own.objectives([choice]) != [first]  # an objective of the user's own is not matched


def test_several_workers_do_not_disturb_each_other() -> None:
    model, batches = deep(), images()
    space = survey(model, batches[0], (2, 3, 4), {})
    drawn = torch.randint(3, (24, len(space.names))).tolist()
    choices = [tuple(choice) for choice in drawn]
    alone, together = (
        Environment(model, space.names, batches, space.actions, workers=workers)
        for workers in (1, 4)
    )
    assert together.objectives(choices) == alone.objectives(choices)


@pytest.mark.parametrize("seed", range(3))
def test_a_matched_trial_is_nearer_to_the_network_that_ships(seed: int) -> None:
    """The network that ships is solved sequentially, from the same inputs, all layers 2 bits."""
    torch.manual_seed(seed)
    model, batches = deep(), images(4)
    space = survey(model, batches[0], (2,), {})
    choice = (0,) * len(space.names)
    environment = Environment(model, space.names, batches, space.actions)
    divergence = Divergence(model, batches)
    with observing(model):
        unmatched = divergence.of(environment.network(choice))
    (with_matching,) = environment.objectives([choice])
    shipped = copy.deepcopy(model)
    calibrate(model, space.plan(choice), batches).apply(shipped)
    with observing(shipped):
        ships = divergence.of(shipped)
    assert abs(with_matching - ships) < 0.75 * abs(unmatched - ships)
