"""Layers freeze in forward order: each from the inputs that the finished network gives it, and what
stays in float fits."""

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo.network.layer_inputs
from octavo.network.calling import observing
from octavo.network.layers import Layer, calling_modules, channels_first, find_layers
from octavo.network.moments import Moments
from octavo.ptq.sequential import count_calls, freeze_in_forward_order


class Net(nn.Module):
    """Registered in another order than called; a grouped and a transposed convolution among
    them."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6 * 16, 3)
        self.norm, self.norm2 = nn.BatchNorm2d(6), nn.BatchNorm1d(3)
        self.up = nn.ConvTranspose2d(6, 6, 2, stride=2, groups=2)
        self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 6, 3, groups=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.second(self.first(x).relu())).relu()
        return self.norm2(self.last(self.up(x).flatten(1)))  # type: ignore[no-any-return]


CALLED = ["first", "second", "up", "last"]


class Branching(nn.Module):
    """Positive batches go one way, negative ones another, and even these meet again."""

    def __init__(self) -> None:
        super().__init__()
        self.plus, self.minus, self.first, self.last = (nn.Linear(4, 4) for _ in range(4))
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.plus(x) if x.mean() > 0 else self.first(self.minus(x))
        return self.last(self.norm(x))  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    before = threading.active_count()
    with torch.no_grad():
        yield
    assert threading.active_count() == before


def make(kind: Callable[[], nn.Module], seed: int = 0) -> Any:
    """An evaluating model whose norms have something to do."""
    torch.manual_seed(seed)
    model = kind()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.affine:
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean, std=0.3)  # type: ignore[arg-type]
    return model.eval()


def images(count: int = 3) -> list[Tensor]:
    return [
        torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(seed))
        for seed in range(count)
    ]


def sixteenths(weight: Tensor) -> Tensor:
    return (16 * weight).round() / 16


class Freezer:
    """Rounds weights to sixteenths, and keeps what it was given."""

    def __init__(self) -> None:
        self.seen: dict[str, Moments] = {}

    def __call__(self, layer: Layer, moments: Moments) -> None:
        assert layer.name not in self.seen
        self.seen[layer.name] = moments
        layer.weight.copy_(sixteenths(layer.weight))


def frozen(
    model: nn.Module, batches: Sequence[Any], *, correct: bool, only: Sequence[str] = ()
) -> tuple[Any, dict[str, Moments]]:
    """The quantized copy, and what each layer was frozen from, in order."""
    quantized, freezer = copy.deepcopy(model), Freezer()
    layers = [layer for layer in find_layers(quantized)[0] if not only or layer.name in only]
    with observing(model), observing(quantized):
        freeze_in_forward_order(
            model, quantized, calling_modules(quantized, layers), batches, freezer, correct=correct
        )
    assert not any(
        module._forward_hooks or module._forward_pre_hooks
        for m in (model, quantized)
        for module in m.modules()
    )
    return quantized, freezer.seen


def shown(model: nn.Module, batches: Sequence[Any], name: str) -> list[tuple[Tensor, Tensor]]:
    """(input, output) of each call of a module."""
    calls: list[tuple[Tensor, Tensor]] = []
    hook = model.get_submodule(name).register_forward_hook(
        lambda module, args, output: calls.append((args[0], output.clone()))
    )
    for batch in batches:
        model(batch)
    hook.remove()
    return calls


def by_channel(output: Tensor) -> Tensor:
    """(channels, everything else), float64."""
    return output.transpose(0, 1).flatten(1).double()


def patches(module: Any, x: Tensor) -> Tensor:
    """X of a plain convolution or linear layer, (problems, columns, n)."""
    if isinstance(module, nn.Linear):
        return x.T.unsqueeze(0)
    unfolded = nn.functional.unfold(x, module.kernel_size).unflatten(1, (module.groups, -1))
    return unfolded.permute(1, 2, 0, 3).flatten(2)  # type: ignore[no-any-return]


# What layers are frozen from.


@pytest.mark.parametrize("correct", [False, True])
def test_each_layer_is_frozen_once_in_the_order_of_the_calls(correct: bool) -> None:
    _, seen = frozen(make(Net), images(), correct=correct)
    assert list(seen) == CALLED
    assert [moments.seen for moments in seen.values()] == [15 * 16, 15 * 4, 15 * 16, 15]


@pytest.mark.parametrize("correct", [False, True])
def test_each_layer_is_frozen_from_the_inputs_that_it_has_in_the_end(correct: bool) -> None:
    """So all passes wait, and see every layer ahead of it frozen and fitted, norms in the quantized
    network as well."""
    quantized, seen = frozen(make(Net), images(), correct=correct)
    for name in ("first", "second", "last"):
        X = torch.cat(
            [
                patches(quantized.get_submodule(name), x)
                for x, _ in shown(quantized, images(), name)
            ],
            2,
        )
        assert torch.allclose(seen[name].hessian, X @ X.mT, rtol=1e-4, atol=1e-3), name
        assert torch.allclose(seen[name].mean_input, X.mean(2), atol=1e-5), name


@pytest.mark.parametrize(("correct", "chunk"), [(False, 1 << 24), (True, 1 << 24), (False, 1)])
def test_drift_is_what_the_full_precision_outputs_have_beyond_the_layers_own(
    correct: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        octavo.network.layer_inputs, "CHUNK", chunk
    )  # 1: a call's inputs come one by one
    model = make(Net)
    quantized, seen = frozen(model, images(), correct=correct)
    assert float(seen["first"].drift.abs().max()) < 1e-4  # its inputs are the same in both
    for name in ("second", "last"):
        module = model.get_submodule(name)
        full = torch.cat([by_channel(output) for _, output in shown(model, images(), name)], 1)
        now = [x for x, _ in shown(quantized, images(), name)]
        own = torch.cat([by_channel(module(x)) for x in now], 1)
        X = torch.cat([patches(module, x) for x in now], 2)
        D = (full - own).float().unflatten(0, (len(X), -1))
        assert torch.allclose(seen[name].drift, D @ X.mT, rtol=1e-3, atol=1e-4), name
        assert torch.allclose(seen[name].mean_drift, D.mean(2), atol=1e-6), name
        assert float(seen[name].drift.abs().max()) > 0.01


def test_layers_that_are_not_asked_for_stay_as_they_are() -> None:
    model = make(Net)
    quantized, seen = frozen(model, images(), correct=True, only=["second"])
    assert list(seen) == ["second"]
    changed = {
        name
        for name, value in model.state_dict().items()
        if not torch.equal(value, quantized.state_dict()[name])
    }
    assert {"second.weight", "norm.weight", "norm.bias"} <= changed  # norms behind it are fitted
    assert not any(
        name.startswith(("first", "up", "last")) or "running" in name for name in changed
    )


def test_a_module_that_is_called_more_than_once_counts_as_at_its_first_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(self.b(self.a(x)))  # type: ignore[no-any-return]

    x = torch.randn(6, 4)
    _, seen = frozen(make(Twice), [x], correct=True)
    assert list(seen) == ["a", "b"]
    assert torch.allclose(seen["a"].hessian[0], x.T @ x, atol=1e-4)


def test_all_weights_of_an_attention_are_frozen_where_it_is_called() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.attention = (
                nn.Linear(4, 4),
                nn.MultiheadAttention(4, 2, batch_first=True),
            )

        def forward(self, x: Tensor) -> Tensor:
            x = self.before(x)
            return self.attention(x, x, x)[0]  # type: ignore[no-any-return]

    x = torch.randn(3, 5, 4)
    quantized, seen = frozen(make(Attending), [x], correct=False)
    assert list(seen) == ["before", "attention.in_proj_weight", "attention.out_proj"]
    inside = quantized.before(x).flatten(0, 1)
    assert torch.allclose(
        seen["attention.in_proj_weight"].hessian, (inside.T @ inside).expand(3, 4, 4), atol=1e-4
    )


# Biases and norms.


def test_without_correction_nothing_but_weights_changes() -> None:
    model = make(Net)
    quantized, _ = frozen(model, images(), correct=False)
    for name, value in quantized.state_dict().items():
        weight = name in [f"{layer}.weight" for layer in CALLED]
        assert torch.equal(value, model.state_dict()[name]) is not weight, name
        if weight:
            assert torch.equal(value, sixteenths(model.state_dict()[name]))


def test_biases_keep_the_mean_of_every_output_channel() -> None:
    model = make(Net)
    quantized, _ = frozen(model, images(), correct=True)
    plain, _ = frozen(model, images(), correct=False)
    for name in ("first", "up", "last"):
        means = [
            torch.cat([by_channel(output) for _, output in shown(m, images(), name)], 1).mean(1)
            for m in (model, quantized, plain)
        ]
        assert torch.allclose(means[0], means[1], atol=1e-4), name
        assert not torch.allclose(means[0], means[2], atol=1e-3), name
    assert quantized.second.bias is None


@pytest.mark.parametrize("name", ["norm", "norm2"])
def test_norms_are_the_least_squares_fit_to_their_full_precision_outputs(name: str) -> None:
    """That is: no multiple of a channel and no shift would bring it nearer, and the outputs that
    follow are these."""
    model = make(Net)
    quantized, _ = frozen(model, images(), correct=True)
    full, own = (
        torch.cat([by_channel(output) for _, output in shown(m, images(), name)], 1)
        for m in (model, quantized)
    )
    for target, output in zip(full, own, strict=True):
        columns = torch.stack([output, torch.ones_like(output)], 1)
        fit = torch.linalg.lstsq(columns, target.unsqueeze(1)).solution.flatten()
        assert torch.allclose(fit, torch.tensor([1.0, 0.0]).double(), atol=1e-4)


def small_net() -> nn.Module:
    return nn.Sequential(OrderedDict(layer=nn.Linear(4, 3), norm=nn.BatchNorm1d(3)))


def test_norms_of_channels_that_hardly_vary_are_fitted_as_well() -> None:
    """Their variance is the small difference of large sums."""
    model, x = make(small_net), torch.randn(400, 4)
    model.norm.weight.copy_(torch.tensor([1.0, 1e-2, 1e-3]))
    model.norm.bias.copy_(torch.tensor([0.0, 10.0, 10.0]))
    quantized, _ = frozen(model, [x[:250], x[250:]], correct=True)
    full, own = model.double()(x.double()), copy.deepcopy(quantized).double()(x.double())
    for target, output in zip(full.T, own.T, strict=True):
        centred = output - output.mean()
        assert float((centred @ target) / (centred @ centred)) == pytest.approx(1, abs=0.01)


def test_a_channel_that_gives_one_value_is_only_shifted() -> None:
    model, x = make(small_net), torch.randn(9, 4)
    model.layer.weight[1] = 0.01  # will be zero
    quantized, _ = frozen(model, [x], correct=True)
    assert not quantized.layer.weight[1].any()
    assert float(quantized.norm.weight[1]) == pytest.approx(float(model.norm.weight[1]), rel=1e-4)
    assert all(bool(value.isfinite().all()) for value in quantized.state_dict().values())
    assert torch.allclose(quantized(x).mean(0), model(x).mean(0), atol=1e-5)


def test_norms_that_are_called_twice_or_have_no_scale_stay_as_they_are() -> None:
    class Norms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.twice, self.plain = (
                nn.Linear(4, 4),
                nn.Linear(4, 4),
                nn.BatchNorm1d(4),
                nn.BatchNorm1d(4, affine=False),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.plain(self.twice(self.b(self.twice(self.a(x)))))  # type: ignore[no-any-return]

    model = make(Norms)
    quantized, seen = frozen(model, [torch.randn(9, 4)], correct=True)
    assert list(seen) == ["a", "b"]
    assert torch.equal(quantized.twice.weight, model.twice.weight)
    assert torch.equal(quantized.twice.bias, model.twice.bias)


def test_a_layer_that_is_called_without_a_row_is_not_frozen() -> None:
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)[:0])  # type: ignore[no-any-return]

    model = make(Empty)
    quantized, seen = frozen(model, [torch.randn(5, 4)], correct=True)
    assert list(seen) == ["a"]
    assert torch.equal(quantized.b.weight, model.b.weight)
    assert torch.equal(quantized.b.bias, model.b.bias)


# Paths that depend on values.


def branches(signs: Sequence[int]) -> list[Tensor]:
    return [
        sign * (1 + torch.rand(7, 4, generator=torch.Generator().manual_seed(i)))
        for i, sign in enumerate(signs)
    ]


@pytest.mark.parametrize("signs", [[1, -1, 1], [-1, 1, -1, -1], [1, 1, 1, -1], [-1], [1]])
@pytest.mark.parametrize("correct", [False, True])
def test_batches_that_take_different_branches(signs: list[int], correct: bool) -> None:
    """Where these meet, all are waited for, whichever are the most."""
    batches = branches(signs)
    quantized, seen = frozen(make(Branching), batches, correct=correct)
    assert seen["last"].seen == 7 * len(signs)
    hidden = torch.cat([x for x, _ in shown(quantized, batches, "last")])
    assert torch.allclose(seen["last"].hessian[0], hidden.T @ hidden, rtol=1e-3, atol=1e-3)
    expected = {
        "last",
        *(("plus",) if 1 in signs else ()),
        *(("minus", "first") if -1 in signs else ()),
    }
    assert set(seen) == expected
    for name, sign in (("plus", 1), ("minus", -1)):
        if name in seen:
            X = torch.cat([batch for batch in batches if bool((batch > 0).all()) is (sign == 1)])
            assert torch.allclose(seen[name].hessian[0], X.T @ X, rtol=1e-4)


def test_passes_that_come_later_do_not_undo_the_fit_of_a_norm() -> None:
    """Three batches reach the norm, which was registered first, before a fourth has gone through
    its own layers."""

    model = make(Branching)
    model._modules = {"norm": model.norm, **model._modules}
    batches = branches([1, 1, 1, -1])
    quantized, _ = frozen(model, batches, correct=True)
    full, own = (
        torch.cat([by_channel(y) for _, y in shown(m, batches[:3], "norm")], 1)
        for m in (model, quantized)
    )
    for target, output in zip(full, own, strict=True):
        columns = torch.stack([output, torch.ones_like(output)], 1)
        fit = torch.linalg.lstsq(columns, target.unsqueeze(1)).solution.flatten()
        assert torch.allclose(fit, torch.tensor([1.0, 0.0]).double(), atol=1e-3)


def test_networks_that_part_ways_have_no_drift_from_there_on() -> None:
    """The quantized one takes the other branch, where full-precision outputs are those of another
    layer."""

    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.plus, self.minus = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.plus(x) if x.mean() > 0.1 else self.minus(x)  # type: ignore[no-any-return]

    model = make(Fork)
    nn.init.constant_(model.first.weight, 0.03)  # will be zero
    nn.init.constant_(model.first.bias, 0.05)
    _, seen = frozen(model, [torch.ones(5, 4)], correct=False)
    assert list(seen) == ["first", "minus"]
    assert not seen["minus"].drift.any()
    assert seen["minus"].seen == 5


# Errors, and counting.


def test_an_error_while_freezing_ends_all_passes_and_takes_the_hooks_away() -> None:
    def fail(layer: Layer, moments: Moments) -> None:
        raise ArithmeticError(layer.name)

    model = make(Net)
    quantized = copy.deepcopy(model)
    layers = calling_modules(quantized, find_layers(quantized)[0])
    with pytest.raises(ArithmeticError, match="first"):
        freeze_in_forward_order(model, quantized, layers, images(), fail, correct=True)
    assert not any(
        module._forward_hooks or module._forward_pre_hooks
        for m in (model, quantized)
        for module in m.modules()
    )


def test_calls_are_counted_and_the_hooks_taken_away() -> None:
    model = make(Branching)
    counts = count_calls(model, list(model.children()), torch.ones(2, 4))
    assert {name for name, module in model.named_children() if counts[module]} == {
        "plus",
        "norm",
        "last",
    }
    assert set(counts.values()) == {1}
    with pytest.raises(RuntimeError):
        count_calls(model, list(model.children()), torch.ones(2, 5))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_transposed_weights_are_corrected_channel_by_channel() -> None:
    """Their bias is fitted by what each output channel lost, though its weights lie apart."""
    model = make(lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2)))
    x = torch.rand(3, 4, 5, 5)
    quantized, _ = frozen(model, [x], correct=True)
    lost = channels_first(model[0].weight - quantized[0].weight, 2).abs().sum((1, 2, 3))
    moved = (quantized[0].bias - model[0].bias).abs()
    assert bool((moved <= lost + 1e-6).all())
    assert torch.allclose(quantized(x).mean((0, 2, 3)), model(x).mean((0, 2, 3)), atol=1e-5)
