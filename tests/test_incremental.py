"""INQ from the first portion to the packed network: exact counts, no thaw, every kind of layer, resumption."""

import copy
import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from octavo.errors import PlanError, TrainingError
from octavo.incremental import Incremental, Stage
from octavo.packed import Packed
from octavo.plan import Plan

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")  # oneDNN has none


class Net(nn.Module):
    """97 and 5 weights, so that no portion of them is a whole number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(97, 1, bias=False), nn.BatchNorm1d(5), nn.Linear(1, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.last(self.first(x)))  # type: ignore[no-any-return]


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def batch(seed: int) -> Tensor:
    return torch.randn(8, 97, generator=torch.Generator().manual_seed(seed))


def train(model: nn.Module, steps: int = 3, seed: int = 0) -> None:
    """Some steps with a new optimizer, as the paper resets it at each stage."""
    optimizer = torch.optim.AdamW(model.parameters(), 0.02, weight_decay=0.05)
    for step in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(batch(100 * seed + step)), torch.arange(8) % 5).backward()
        optimizer.step()


def seen(model: nn.Module, names: Any = ("first", "last")) -> dict[str, Tensor]:
    return {name: model.get_submodule(name).weight.detach().clone() for name in names}  # type: ignore[operator]


# Each kind of layer.

KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor]]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), lambda m: m(torch.ones(2, 4, 5))),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3), lambda m: m(torch.ones(2, 4, 5, 5))),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), lambda m: m(torch.ones(1, 2, 3, 3, 3))),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), lambda m: m(torch.ones(2, 4, 5, 5))),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), lambda m: m(torch.ones(2, 4, 5, 5))),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 3), lambda m: m(torch.ones(2, 4, 5))),
    "transposed 2d": (lambda: nn.ConvTranspose2d(4, 6, 3), lambda m: m(torch.ones(2, 4, 5, 5))),
    "transposed grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), lambda m: m(torch.ones(2, 4, 5, 5))),
    "transposed depthwise": (lambda: nn.ConvTranspose2d(4, 4, 3, groups=4), lambda m: m(torch.ones(2, 4, 5, 5))),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 3, 2), lambda m: m(torch.ones(1, 2, 3, 3, 3))),
    "linear": (lambda: nn.Linear(9, 4), lambda m: m(torch.ones(2, 9))),
    "embedding": (lambda: nn.Embedding(6, 5, padding_idx=2), lambda m: m(torch.arange(6))),
    "bag": (lambda: nn.EmbeddingBag(6, 5, mode="sum"), lambda m: m(torch.arange(6).view(2, 3))),
    "lstm": (lambda: nn.LSTM(3, 4), lambda m: m(torch.ones(3, 2, 3))[0]),
    "deep lstm": (
        lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2, batch_first=True),
        lambda m: m(torch.ones(2, 3, 3))[0],
    ),
    "gru": (lambda: nn.GRU(3, 4, bidirectional=True), lambda m: m(torch.ones(3, 2, 3))[0]),
    "rnn": (lambda: nn.RNN(3, 4, num_layers=2, bias=False), lambda m: m(torch.ones(3, 2, 3))[0]),
    "lstm cell": (lambda: nn.LSTMCell(3, 4), lambda m: m(torch.ones(2, 3))[0]),
    "gru cell": (lambda: nn.GRUCell(3, 4), lambda m: m(torch.ones(2, 3))),
    "rnn cell": (lambda: nn.RNNCell(3, 4), lambda m: m(torch.ones(2, 3))),
    "fused attention": (lambda: nn.MultiheadAttention(4, 2), lambda m: m(*[torch.ones(3, 2, 4)] * 3)[0]),
    "attention": (
        lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
        lambda m: m(torch.ones(3, 2, 4), torch.ones(6, 2, 3), torch.ones(6, 2, 5))[0],
    ),
    "encoder layer": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True),
        lambda m: m(torch.linspace(-1, 1, 24).view(2, 3, 4)),
    ),
}


def output_channels(module: nn.Module, shape: torch.Size) -> Iterator[tuple[Any, ...]]:
    """The index of the weights that make each output channel."""
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        inputs, outputs = shape[0] // module.groups, shape[1]
        for group, output in itertools.product(range(module.groups), range(outputs)):
            yield slice(group * inputs, (group + 1) * inputs), output
    else:
        yield from ((row,) for row in range(shape[0]))


def inq_at_once(weight: Tensor, bits: int) -> Tensor:
    """Each weight's nearest level in exact fractions, n1 by the paper's formula."""
    values = [Fraction(value) for value in weight.flatten().tolist()]
    largest = max(map(abs, values))
    top = 0
    if largest:
        top = next(n for n in range(40, -60, -1) if Fraction(2) ** n <= 4 * largest / 3)
    powers = [Fraction(2) ** (top - k) for k in range(2 ** (bits - 2))]
    levels = [Fraction(0), *powers, *(-p for p in powers)]
    nearest = [min(levels, key=lambda level: (abs(value - level), -abs(level))) for value in values]
    return torch.tensor([float(level) for level in nearest]).view(weight.shape)


def own_weights(model: nn.Module) -> dict[str, tuple[nn.Module, Tensor]]:
    """Every parameter of the model that is no bias and no norm, and its owner."""
    return {
        f"{prefix}.{name}".lstrip("."): (module, parameter)
        for prefix, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if "bias" not in name and not isinstance(module, nn.LayerNorm)
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 3])
def test_each_kind_takes_the_levels_of_its_output_channels(kind: str, bits: int) -> None:
    torch.manual_seed(0)
    model = KINDS[kind][0]()
    expected = {}
    for name, (module, parameter) in own_weights(model).items():
        expected[name] = torch.empty_like(parameter, requires_grad=False)
        for channel in output_channels(module, parameter.shape):
            expected[name][channel] = inq_at_once(parameter.detach()[channel], bits)
    incremental = Incremental(model, Plan.uniform(model, bits), portions=(1.0,), fit="max", per="channel")
    assert [stage.last for stage in incremental] == [True]
    packed = incremental.finish()
    state = model.state_dict()
    assert {name for layer in packed.layers.values() for name in layer.names} == set(expected)
    for name, weight in expected.items():
        assert torch.equal(state[name], weight), name
    for layer in packed.layers.values():
        assert torch.equal(layer.weight(), expected[layer.names[0]])


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_trains_and_ends_as_it_was_when_all_was_frozen(kind: str) -> None:
    torch.manual_seed(0)
    make, call = KINDS[kind]
    model = nn.ModuleDict({"m": make()})
    initial = {name: parameter.detach().clone() for name, (_, parameter) in own_weights(model).items()}
    plain_types = [type(module) for module in model.modules()]
    incremental = Incremental(model, Plan.uniform(model, 4), portions=(0.5, 1.0))
    for stage in incremental:
        call(model["m"]).pow(2).sum().backward()
        for name, mask in stage.frozen.items():
            assert int(mask.sum()) == round(stage.portion * mask.numel()), name
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.sub_(parameter.grad, alpha=0.1)
    model.eval()
    frozen, inferred = call(model["m"]), torch.no_grad()(call)(model["m"])
    packed = incremental.finish()
    assert torch.equal(call(model["m"]), frozen)
    assert torch.allclose(torch.no_grad()(call)(model["m"]), inferred, atol=1e-6)  # torch may take a faster path
    assert [type(module) for module in model.modules()] == plain_types
    other = nn.ModuleDict({"m": make()}).eval()
    packed.apply(other)
    assert torch.equal(call(other["m"]), frozen)
    moved = [name for name, (_, parameter) in own_weights(model).items() if not torch.equal(parameter, initial[name])]
    assert len(moved) == len(initial)


def test_the_padding_of_an_embedding_stays_zero() -> None:
    model = nn.Embedding(6, 5, padding_idx=2)
    incremental = Incremental(model, {"weight": 2})
    for _ in incremental:
        model(torch.arange(6)).sum().backward()
    incremental.finish()
    assert model.weight[2].tolist() == [0.0] * 5
    assert model.weight[1].any()


def test_an_embedding_with_sparse_gradients() -> None:
    model: Any = nn.Embedding(6, 5, sparse=True)
    for stage in Incremental(model, {"weight": 3}):
        model.zero_grad()
        model(torch.tensor([1, 3])).sum().backward()
        gradient = model.parametrizations.weight.original.grad.to_dense()
        assert not gradient[stage.frozen["weight"]].any()


def test_an_embedding_that_renormalises_its_weights() -> None:
    model = nn.Embedding(6, 5, max_norm=0.5)
    try:
        incremental = Incremental(model, {"weight": 3}, portions=(1.0,))
    except PlanError:
        return  # to skip it with a reason will do as well
    list(incremental)
    packed = incremental.finish()
    model(torch.arange(6))
    assert torch.equal(model.weight, packed.layers["weight"].weight())


# Stages.


@pytest.mark.parametrize("order", ["magnitude", "distance", "far", "random"])
@pytest.mark.parametrize("per", ["layer", "channel"])
@pytest.mark.parametrize("portions", [(0.5, 0.75, 0.875, 1.0), (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)])
def test_counts_are_exact_nothing_thaws_and_nothing_moves(order: Any, per: Any, portions: tuple[float, ...]) -> None:
    model = net()
    incremental = Incremental(model, {"first": 3, "last": 2}, portions=portions, order=order, per=per, fit="max")
    before = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in seen(model).items()}
    values = seen(model)
    for index, stage in enumerate(incremental):
        assert (stage.index, stage.portion, stage.last) == (index, portions[index], index == len(portions) - 1)
        assert list(stage.frozen) == ["first", "last"]
        for name, weight in seen(model).items():
            mask = stage.frozen[name]
            assert (mask.dtype, mask.shape) == (torch.bool, weight.shape)
            assert int(mask.sum()) == round(stage.portion * mask.numel())
            assert bool(mask[before[name]].all())
            assert torch.equal(weight[before[name]], values[name][before[name]])
            mantissa = weight[mask].frexp().mantissa.abs()
            assert bool(((mantissa == 0.5) | (mantissa == 0)).all())
        train(model, seed=index)
        before = dict(stage.frozen)
        values = seen(model)
    assert index == len(portions) - 1
    incremental.finish()


def test_a_frozen_weight_has_the_level_nearest_to_what_it_was_trained_to() -> None:
    model = net()
    bits = 3
    initial = seen(model)
    levels = {}
    for name, weight in initial.items():
        top = math.floor(math.log2(4 * float(weight.abs().max()) / 3))
        levels[name] = [0.0] + [sign * 2.0**e for e in range(top + 1 - 2 ** (bits - 2), top + 1) for sign in (1, -1)]
    incremental = Incremental(model, {"first": bits, "last": bits}, fit="max", per="layer", order="distance")
    free, frozen = initial, {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in initial.items()}
    for stage in incremental:
        for name, weight in seen(model).items():
            new = stage.frozen[name] & ~frozen[name]
            for value, level in zip(free[name][new].tolist(), weight[new].tolist(), strict=True):
                assert level in levels[name]
                assert abs(value - level) == pytest.approx(min(abs(value - other) for other in levels[name]), abs=1e-7)
        train(model)
        free, frozen = seen(model), dict(stage.frozen)


@pytest.mark.parametrize(("order", "largest_first"), [("magnitude", True), ("far", None), ("distance", None), ("random", None)])
def test_what_freezes_first(order: Any, largest_first: bool | None) -> None:
    model = net()
    sizes = model.first.weight.detach().abs().clone()
    stage = next(iter(Incremental(model, {"first": 3}, order=order)))
    frozen = sizes[stage.frozen["first"]], sizes[~stage.frozen["first"]]
    assert (float(frozen[0].min()) >= float(frozen[1].max())) is bool(largest_first)


def test_by_distance_the_first_half_hardly_changes() -> None:
    changes: dict[str, Tensor] = {}
    for order in ("distance", "far", "random"):
        model = net()
        before = model.first.weight.detach().clone()
        stage = next(iter(Incremental(model, {"first": 3}, order=order, fit="max", per="layer")))
        changes[order] = (model.first.weight.detach() - before).abs()[stage.frozen["first"]]
    assert float(changes["distance"].max()) <= float(changes["far"].min())
    assert changes["distance"].sum() < changes["random"].sum() < changes["far"].sum()


def test_portions_count_the_weights_of_each_layer() -> None:
    model = net()
    with torch.no_grad():
        model.first.weight *= 1000
    stage = next(iter(Incremental(model, {"first": 3, "last": 3}, portions=(0.5, 1.0))))
    assert {name: int(mask.sum()) for name, mask in stage.frozen.items()} == {"first": 48, "last": 2}


def test_the_random_order_is_the_seeds_and_each_layers_own() -> None:
    def masks(seed: int, *, disturb: int = 0) -> list[dict[str, Tensor]]:
        model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
        torch.manual_seed(disturb)
        run = Incremental(model, {"0": 3, "1": 3}, order="random", seed=seed, portions=(0.25, 0.5, 1.0))
        return [dict(stage.frozen) for stage in run]

    first, again, other = masks(1), masks(1, disturb=5), masks(2)
    assert all(torch.equal(a[name], b[name]) for a, b in zip(first, again, strict=True) for name in a)
    assert not torch.equal(first[0]["0"], other[0]["0"])
    assert not torch.equal(first[0]["0"], first[0]["1"])
    second = first[1]["0"] & ~first[0]["0"]
    overlap = int((second & first[0]["1"]).sum()) / int(second.sum())  # of another stage and layer: independent
    assert 0.1 < overlap < 0.4


@pytest.mark.parametrize("seed", [2**32, 2**63, -(2**40)])
def test_large_seeds(seed: int) -> None:
    assert len(list(Incremental(net(), {"first": 3}, order="random", seed=seed))) == 4


def test_a_stage_is_no_handle_on_the_run() -> None:
    model = net()
    incremental = Incremental(model, {"first": 3}, portions=(0.5, 1.0))
    stage = next(iter(incremental))
    stage.frozen["first"].fill_(False)
    assert isinstance(stage, Stage)
    assert sum(int(s.frozen["first"].sum()) for s in incremental) == 97
    incremental.finish()


def test_an_iteration_that_is_broken_off_goes_on_where_it_was() -> None:
    incremental = Incremental(net(), {"first": 3}, portions=(0.25, 0.5, 1.0))
    for _ in incremental:
        break
    assert [stage.index for stage in incremental] == [1, 2]
    assert list(incremental) == []


def test_the_default_settings() -> None:
    defaults = {name: p.default for name, p in inspect.signature(Incremental).parameters.items()}
    assert defaults["portions"] == (0.5, 0.75, 0.875, 1.0)
    assert (defaults["fit"], defaults["per"], defaults["seed"]) == ("mse", "channel", 0)


def test_a_plan_of_some_layers_leaves_the_others_in_float() -> None:
    model = net()
    before = seen(model)["last"]
    incremental = Incremental(model, {"first": 3}, portions=[0.5, 1.0])  # type: ignore[arg-type]
    for stage in incremental:
        assert list(stage.frozen) == ["first"]
    packed = incremental.finish()
    assert torch.equal(model.last.weight, before)
    assert dict(packed.plan) == {"first": 3}
    assert ("last.weight",) in [names for names, _ in packed.floats]


# Whole models.


def test_frozen_and_evaluating_models_keep_their_ways() -> None:
    model = net().eval().requires_grad_(False)
    model.last.requires_grad_(True)
    incremental = Incremental(model, Plan.uniform(model, 3), portions=(0.5, 1.0))
    for _ in incremental:
        assert torch.equal(model(batch(0)), model(batch(0)))
        assert not model.norm.training
    incremental.finish()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {"last.weight", "last.bias"}


def test_tied_weights_are_quantized_once_and_stay_tied() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False))
    model[1].weight = model[0].weight
    incremental = Incremental(model, Plan.uniform(model, 3))
    for _ in incremental:
        model(torch.arange(9)).pow(2).sum().backward()
        assert torch.equal(model[0].weight, model[1].weight)
    packed = incremental.finish()
    assert model[0].weight is model[1].weight
    assert [layer.names for layer in packed.layers.values()] == [("0.weight", "1.weight")]
    assert packed.floats == []
    other: Any = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False))
    packed.apply(other)
    assert torch.equal(other[0].weight, model[0].weight)
    assert torch.equal(other[1].weight, model[0].weight)


def test_a_module_that_is_used_under_two_names_is_stored_once() -> None:
    model = nn.Module()
    model.a = model.b = nn.Linear(9, 4, bias=False)
    incremental = Incremental(model, {"a": 3}, portions=(1.0,))
    list(incremental)
    packed = incremental.finish()
    assert [layer.names for layer in packed.layers.values()] == [("a.weight", "b.weight")]
    assert packed.floats == []


def test_parametrized_modules_are_left_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 3)))
    incremental = Incremental(model, Plan.uniform(model, 3), portions=(0.5, 1.0))
    for stage in incremental:
        assert list(stage.frozen) == ["0"]
        model(torch.ones(1, 4)).sum().backward()
    y = model(torch.ones(1, 4))
    incremental.finish()
    assert torch.equal(model(torch.ones(1, 4)), y)
    assert not parametrize.is_parametrized(model[0])
    assert parametrize.is_parametrized(model[1], "weight")


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_modules_that_have_seen_an_input() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
    model(torch.randn(4, 5))
    incremental = Incremental(model, Plan.uniform(model, 3), portions=(1.0,))
    assert [stage.frozen["0"].shape for stage in incremental] == [(3, 5)]
    assert dict(incremental.finish().plan) == {"0": 3}


def test_zero_weights_are_legal() -> None:
    model = net()
    nn.init.zeros_(model.first.weight)
    incremental = Incremental(model, Plan.uniform(model, 3))
    for _ in incremental:
        train(model, 1)
    incremental.finish()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_of_floats(dtype: torch.dtype) -> None:
    model = net().to(dtype)
    incremental = Incremental(model, Plan.uniform(model, 4), portions=(0.5, 1.0))
    for _ in incremental:
        assert model(batch(0).to(dtype)).dtype == dtype
    packed = incremental.finish()
    assert model.first.weight.dtype == dtype
    assert torch.equal(packed.layers["first"].weight(), model.first.weight.float())
    packed.apply(model)


def test_a_deep_copy_of_a_run_goes_its_own_way() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LSTM(3, 4))
    incremental = Incremental(model, Plan.uniform(model, 3), portions=(0.5, 1.0))
    next(iter(incremental))
    model(torch.ones(2, 1, 3))
    other = copy.deepcopy(incremental)
    list(other)
    packed = other.finish()
    assert type(other.model[0]) is nn.LSTM  # type: ignore[index]
    assert parametrize.is_parametrized(model[0])
    assert [stage.index for stage in incremental] == [1]
    mine = incremental.finish()
    assert all(torch.equal(mine.layers[name].codes, layer.codes) for name, layer in packed.layers.items())


# Resumption.


def run(incremental: Incremental, *, stop: int | None = None) -> None:
    for stage in incremental:
        train(incremental.model, seed=stage.index)
        if stage.index == stop:
            return


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
@pytest.mark.parametrize("order", ["distance", "random"])
def test_a_resumed_run_ends_bit_for_bit_as_the_whole_one(stop: int, order: Any, tmp_path: Path) -> None:
    whole = Incremental(net(), {"first": 3, "last": 4}, order=order, seed=7)
    run(whole)
    broken = Incremental(net(), {"first": 3, "last": 4}, order=order, seed=7)
    run(broken, stop=stop)
    torch.save(broken.state_dict(), tmp_path / "state.pt")
    resumed = Incremental(net(seed=99), {"first": 3, "last": 4}, order=order, seed=7)  # of other weights
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    run(resumed)
    a, b = whole.finish(), resumed.finish()
    assert all(torch.equal(a.layers[name].codes, b.layers[name].codes) for name in ("first", "last"))
    assert all(torch.equal(a.layers[name].codebook.top, b.layers[name].codebook.top) for name in ("first", "last"))
    for (name, value), other in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


def test_a_state_can_be_taken_before_the_first_stage_and_after_the_last() -> None:
    incremental = Incremental(net(), {"first": 3})
    start = copy.deepcopy(incremental.state_dict())
    list(incremental)
    end = copy.deepcopy(incremental.state_dict())
    incremental.load_state_dict(start)
    assert [stage.index for stage in incremental] == [0, 1, 2, 3]
    other = Incremental(net(seed=3), {"first": 3})
    other.load_state_dict(end)
    assert list(other) == []
    assert torch.equal(other.finish().layers["first"].codes, incremental.finish().layers["first"].codes)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"plan": {"first": 4}}, "plan: expected the state of a run with {'first': 4}, got one with {'first': 3}"),
        ({"portions": (0.5, 1.0)}, "portions: expected the state of a run with (0.5, 1.0), got one with (0.5, 0.75, 0.875, 1.0)"),
        ({"order": "far"}, "order: expected the state of a run with 'far', got one with 'random'"),
        ({"fit": "max"}, "fit: expected the state of a run with 'max', got one with 'mse'"),
        ({"per": "layer"}, "per: expected the state of a run with 'layer', got one with 'channel'"),
        ({"seed": 1}, "seed: expected the state of a run with 1, got one with 0"),
    ],
)
def test_the_state_of_another_run_is_refused(options: dict[str, Any], named: str) -> None:
    incremental = Incremental(net(), {"first": 3}, order="random")
    next(iter(incremental))
    other = Incremental(net(seed=1), **{"plan": {"first": 3}, "order": "random", **options})
    before = seen(other.model)
    with pytest.raises(PlanError) as caught:
        other.load_state_dict(incremental.state_dict())
    assert str(caught.value) == named
    assert all(torch.equal(value, before[name]) for name, value in seen(other.model).items())
    assert next(stage.index for stage in other) == 0


@pytest.mark.parametrize("state", [{}, {"done": 1}])
def test_a_state_that_is_none(state: Any) -> None:
    with pytest.raises(PlanError):
        Incremental(net(), {"first": 3}).load_state_dict(state)


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plan": {"frist": 3}}, r"^frist is no layer \(the nearest is 'first'\)"),
        ({"plan": {"norm": 3}}, "^norm is skipped"),
        ({"plan": {}}, "^the plan is empty"),
        ({"plan": {"first": 9}}, "^first: expected an integer from 2 to 8, got 9"),
        ({"portions": (0.5, 0.9)}, "^portions: expected shares that rise strictly from above 0 to exactly 1"),
        ({"portions": ()}, "^portions: "),
        ({"order": "size"}, "^order: expected one of magnitude, distance, far, random"),
        ({"fit": "mean"}, '^first: expected fit "max" or "mse"'),
        ({"per": "row"}, '^first: expected fit "max" or "mse" and per "layer" or "channel"'),
    ],
)
def test_impossible_settings_leave_the_model_as_it_was(options: Any, message: str) -> None:
    model = net()
    with pytest.raises(PlanError, match=message):
        Incremental(model, **{"plan": {"first": 3, "last": 3}, **options})
    assert not any(parametrize.is_parametrized(module) for module in model.modules())


@pytest.mark.parametrize("portions", [1.0, (0.5, "1")])
def test_portions_that_are_no_numbers(portions: Any) -> None:
    with pytest.raises(PlanError, match=r"^portions: "):
        Incremental(net(), {"first": 3}, portions=portions)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named_at_the_start(bad: float) -> None:
    model = net()
    with torch.no_grad():
        model.last.weight[0, 0] = bad
    with pytest.raises(PlanError, match=r"^last: expected finite weights, got 1 of 5"):
        Incremental(model, Plan.uniform(model, 3))
    assert not any(parametrize.is_parametrized(module) for module in model.modules())


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


def test_a_model_that_is_held_already() -> None:
    model = net()
    Incremental(model, {"first": 3})
    with pytest.raises(PlanError, match=r"^first is skipped \(its module is parametrized already\)"):
        Incremental(model, {"first": 3})


def test_finishing_too_early_names_the_layer_and_changes_nothing() -> None:
    model = net()
    incremental = Incremental(model, {"first": 3, "last": 3}, portions=(0.5, 1.0))
    with pytest.raises(PlanError, match=r"^first: expected every weight frozen, got 97 of 97 still free$"):
        incremental.finish()
    next(iter(incremental))
    with pytest.raises(PlanError, match=r"^first: expected every weight frozen, got 49 of 97 still free$"):
        incremental.finish()
    assert parametrize.is_parametrized(model.first, "weight")
    list(incremental)
    assert isinstance(incremental.finish(), Packed)


def test_finishing_twice() -> None:
    incremental = Incremental(net(), {"first": 3}, portions=(1.0,))
    list(incremental)
    first = incremental.finish()
    try:
        again = incremental.finish()
    except PlanError:
        return
    assert torch.equal(again.layers["first"].codes, first.layers["first"].codes)


def test_a_state_dict_that_no_file_can_hold_is_found_before_the_training() -> None:
    model = net()
    model.register_buffer("positions", torch.zeros(3, dtype=torch.complex64))
    with pytest.raises(PlanError, match=r"^positions: "):
        Incremental(model, {"first": 3})


# Afterwards.


def test_the_finished_model_is_plain() -> None:
    model, plain = net(), net()
    parameters = [id(p) for p in model.parameters()]
    incremental = Incremental(model, Plan.uniform(model, 3))
    run(incremental)
    held = seen(model)
    incremental.finish()
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert [id(p) for p in model.parameters()] == parameters
    for module, other in zip(model.modules(), plain.modules(), strict=True):
        assert type(module) is type(other)
        assert sorted(vars(module)) == sorted(vars(other))
        assert not (module._forward_hooks)
        assert not (module._forward_pre_hooks)
        assert not (module._backward_hooks)
    assert all(torch.equal(value, held[name]) for name, value in seen(model).items())


def test_the_packed_network_does_not_change_with_the_model() -> None:
    model = net()
    incremental = Incremental(model, Plan.uniform(model, 3), portions=(1.0,))
    list(incremental)
    packed = incremental.finish()
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    train(model)
    assert not torch.equal(model.first.weight, expected["first.weight"])
    packed.apply(model)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_a_finished_model_can_be_quantized_again_at_no_loss() -> None:
    model = net()
    for _ in range(2):
        incremental = Incremental(model, Plan.uniform(model, 3), portions=(1.0,), fit="max")
        before = seen(model)
        list(incremental)
        incremental.finish()
    assert all(torch.equal(value, before[name]) for name, value in seen(model).items())
