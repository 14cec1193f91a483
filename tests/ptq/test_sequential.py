"""Layers freeze in forward order: each from the inputs that the finished network gives it."""

import copy
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo.network.layer_inputs
import octavo.ptq.sequential
from octavo.errors import PlanError
from octavo.network.forward import hooked, observing
from octavo.network.layers import Layer, calling_modules, find_layers
from octavo.network.moments import Moments
from octavo.ptq.sequential import Batches, count_calls, freeze_in_forward_order, freeze_sequentially
from octavo.ptq.site import Site


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


def freeze(layer: Layer, moments: Moments, _: Site | None) -> Moments:
    """Round the weights to sixteenths; the outcome is what the layer froze from."""
    layer.weight.copy_(sixteenths(layer.weight))
    return moments


def frozen(
    model: nn.Module, batches: Sequence[Any], *, only: Sequence[str] = ()
) -> tuple[Any, dict[str, Moments]]:
    """The quantized copy, and what each layer was frozen from, in order."""
    quantized = copy.deepcopy(model)
    layers = [layer for layer in find_layers(quantized)[0] if not only or layer.name in only]
    by_module = calling_modules(quantized, layers)
    with observing(model), observing(quantized):
        seen = freeze_in_forward_order(model, quantized, by_module, Batches(batches), freeze)
    assert not hooks_of(model, quantized)
    return quantized, seen


def hooks_of(*models: nn.Module) -> list[nn.Module]:
    """The modules that still have hooks."""
    modules = [module for model in models for module in model.modules()]
    return [module for module in modules if module._forward_hooks or module._forward_pre_hooks]


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


def test_each_layer_is_frozen_once_in_the_order_of_the_calls() -> None:
    _, seen = frozen(make(Net), images())
    assert list(seen) == CALLED
    assert [moments.seen for moments in seen.values()] == [15 * 16, 15 * 4, 15 * 16, 15]


def test_each_layer_is_frozen_from_the_inputs_that_it_has_in_the_end() -> None:
    """So all passes wait at a layer, and see every layer ahead of it frozen."""
    quantized, seen = frozen(make(Net), images())
    for name in ("first", "second", "last"):
        X = torch.cat(
            [
                patches(quantized.get_submodule(name), x)
                for x, _ in shown(quantized, images(), name)
            ],
            2,
        )
        assert torch.allclose(seen[name].hessian, X @ X.mT, rtol=1e-4, atol=1e-3), name


@pytest.mark.parametrize("chunk", [1 << 24, 1])
def test_drift_is_what_the_full_precision_outputs_have_beyond_the_layers_own(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        octavo.network.layer_inputs, "CHUNK", chunk
    )  # 1: a call's inputs come one by one
    model = make(Net)
    quantized, seen = frozen(model, images())
    assert float(seen["first"].drift.abs().max()) < 1e-4  # its inputs are the same in both
    for name in ("second", "last"):
        module = model.get_submodule(name)
        full = torch.cat([by_channel(output) for _, output in shown(model, images(), name)], 1)
        now = [x for x, _ in shown(quantized, images(), name)]
        own = torch.cat([by_channel(module(x)) for x in now], 1)
        X = torch.cat([patches(module, x) for x in now], 2)
        D = (full - own).float().unflatten(0, (len(X), -1))
        assert torch.allclose(seen[name].drift, D @ X.mT, rtol=1e-3, atol=1e-4), name
        assert float(seen[name].drift.abs().max()) > 0.01


def test_batches_are_in_memory_at_one_layer_at_a_time() -> None:
    """Whenever a batch comes to the second layer, its inputs to the first are let go of."""
    model = make(lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)))
    quantized = copy.deepcopy(model)
    at_first: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def reach(module: nn.Module, args: tuple[Tensor]) -> None:
        if module is quantized[1]:
            at_first.append(weakref.ref(args[0]))
        else:
            alive.append(sum(one() is not None for one in at_first))

    hooks = [quantized[i].register_forward_pre_hook(reach) for i in (1, 2)]
    by_module = calling_modules(quantized, find_layers(quantized)[0])
    with observing(model), observing(quantized), hooked(hooks):
        batches = [torch.randn(3, 4) for _ in range(5)]
        freeze_in_forward_order(model, quantized, by_module, Batches(batches), freeze)
    assert alive == [5, 4, 3, 2, 1]


def test_layers_that_are_not_asked_for_stay_as_they_are() -> None:
    model = make(Net)
    quantized, seen = frozen(model, images(), only=["second"])
    assert list(seen) == ["second"]
    for name, value in model.state_dict().items():
        changed = not torch.equal(value, quantized.state_dict()[name])
        assert changed is (name == "second.weight"), name


def test_a_module_that_is_called_more_than_once_counts_as_at_its_first_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(self.b(self.a(x)))  # type: ignore[no-any-return]

    x = torch.randn(6, 4)
    _, seen = frozen(make(Twice), [x])
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
    quantized, seen = frozen(make(Attending), [x])
    assert list(seen) == ["before", "attention.in_proj_weight", "attention.out_proj"]
    inside = quantized.before(x).flatten(0, 1)
    assert torch.allclose(
        seen["attention.in_proj_weight"].hessian, (inside.T @ inside).expand(3, 4, 4), atol=1e-4
    )


# Nothing but weights changes.


def test_nothing_but_weights_changes() -> None:
    model = make(Net)
    quantized, _ = frozen(model, images())
    for name, value in quantized.state_dict().items():
        weight = name in [f"{layer}.weight" for layer in CALLED]
        assert torch.equal(value, model.state_dict()[name]) is not weight, name
        if weight:
            assert torch.equal(value, sixteenths(model.state_dict()[name]))


def test_a_layer_that_is_called_without_a_row_is_not_frozen() -> None:
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)[:0])  # type: ignore[no-any-return]

    model = make(Empty)
    quantized, seen = frozen(model, [torch.randn(5, 4)])
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
def test_batches_that_take_different_branches(signs: list[int]) -> None:
    """Where these meet, all are waited for, whichever are the most."""
    batches = branches(signs)
    quantized, seen = frozen(make(Branching), batches)
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
    _, seen = frozen(model, [torch.ones(5, 4)])
    assert list(seen) == ["first", "minus"]
    assert not seen["minus"].drift.any()
    assert seen["minus"].seen == 5


# Layers that are used more than once.


def test_layers_without_one_place_in_the_order_come_first_from_float_inputs() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shared, self.last = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.shared(self.shared(self.first(x))))  # type: ignore[no-any-return]

    model, x = make(Twice), torch.randn(6, 4)
    quantized = copy.deepcopy(model)
    layers = find_layers(quantized)[0]
    with observing(model), observing(quantized):
        seen = freeze_sequentially(model, quantized, layers, [x], freeze)
    assert list(seen) == ["shared", "first", "last"]
    inputs = torch.cat([x for x, _ in shown(model, [x], "shared")])  # in full precision
    assert torch.allclose(seen["shared"].hessian[0], inputs.T @ inputs, atol=1e-4)
    now = shown(quantized, [x], "last")[0][0]
    assert torch.allclose(seen["last"].hessian[0], now.T @ now, atol=1e-4)
    with pytest.raises(PlanError, match="inputs: expected at least one batch"):
        freeze_sequentially(model, quantized, layers, [], freeze)


# Many batches.


class OfOne(nn.Module):
    """It takes one sample at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(72, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.view(1, 72))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("kind", "most", "passes"), [(Net, 4, 3), (Net, 9, 9), (OfOne, 4, 9)])
def test_beyond_a_bound_passes_take_several_batches_if_the_model_does(
    kind: Any, most: int, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(octavo.ptq.sequential, "MOST_PASSES", most)
    model, batches = make(kind), list(torch.cat(images())[:9].split(1))
    quantized, before, threads = copy.deepcopy(model), threading.active_count(), set()

    def count(layer: Layer, moments: Moments, site: Site | None) -> Moments:
        threads.add(threading.active_count() - before)
        return freeze(layer, moments, site)

    with observing(model), observing(quantized):
        seen = freeze_sequentially(model, quantized, find_layers(quantized)[0], batches, count)
    assert threads == {2 * passes}
    with_all = frozen(model, batches)[1]
    for name, moments in seen.items():
        assert torch.allclose(moments.hessian, with_all[name].hessian, rtol=1e-4, atol=1e-3)


def test_a_system_without_more_threads_asks_for_larger_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if threading.active_count() > before + 3:
            raise RuntimeError("can't start new thread")
        start(thread)

    before = threading.active_count()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(PlanError, match=r"can't start new thread; give the same inputs in fewer"):
        frozen(make(Net), images())


# Errors, and counting.


def test_an_error_while_freezing_ends_all_passes_and_takes_the_hooks_away() -> None:
    def fail(layer: Layer, moments: Moments, _: Site | None) -> None:
        raise ArithmeticError(layer.name)

    model = make(Net)
    quantized = copy.deepcopy(model)
    layers = calling_modules(quantized, find_layers(quantized)[0])
    with pytest.raises(ArithmeticError, match="first"):
        freeze_in_forward_order(model, quantized, layers, Batches(images()), fail)
    assert not hooks_of(model, quantized)


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
