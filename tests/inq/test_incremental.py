"""INQ from the first portion to the packed network: exact counts, no thaw, every kind of layer,
resumption."""

import copy
import inspect
import itertools
import math
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

import octavo.inq.incremental
from octavo.errors import PlanError, TrainingError
from octavo.formats.powers_of_two import power_of_two
from octavo.inq.incremental import Incremental, Stage
from octavo.inq.parametrization import FrozenWeights
from octavo.inq.partition import grow, score
from octavo.network.calling import call, observing
from octavo.plan import Plan
from octavo.ptq.calibration import calibrate
from octavo.storage.packed import Packed

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")  # oneDNN has none


class Net(nn.Module):
    """97 and 5 weights, so that no portion of them is a whole number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = (
            nn.Linear(97, 1, bias=False),
            nn.BatchNorm1d(5),
            nn.Linear(1, 5),
        )

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
    "transposed grouped": (
        lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
        lambda m: m(torch.ones(2, 4, 5, 5)),
    ),
    "transposed depthwise": (
        lambda: nn.ConvTranspose2d(4, 4, 3, groups=4),
        lambda m: m(torch.ones(2, 4, 5, 5)),
    ),
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
    "fused attention": (
        lambda: nn.MultiheadAttention(4, 2),
        lambda m: m(*[torch.ones(3, 2, 4)] * 3)[0],
    ),
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
    incremental = Incremental(
        model, Plan.uniform(model, bits), portions=(1.0,), fit="max", per="channel"
    )
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
    initial = {
        name: parameter.detach().clone() for name, (_, parameter) in own_weights(model).items()
    }
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
    assert torch.allclose(
        torch.no_grad()(call)(model["m"]), inferred, atol=1e-6
    )  # torch may take a faster path
    assert [type(module) for module in model.modules()] == plain_types
    other = nn.ModuleDict({"m": make()}).eval()
    packed.apply(other)
    assert torch.equal(call(other["m"]), frozen)
    moved = [
        name
        for name, (_, parameter) in own_weights(model).items()
        if not torch.equal(parameter, initial[name])
    ]
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


@pytest.mark.parametrize("order", ["magnitude", "distance", "relative", "far", "random"])
@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize(
    "portions", [(0.5, 0.75, 0.875, 1.0), (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)]
)
def test_counts_are_exact_nothing_thaws_and_nothing_moves(
    order: Any, per: Any, portions: tuple[float, ...]
) -> None:
    model = net()
    incremental = Incremental(
        model, {"first": 3, "last": 2}, portions=portions, order=order, per=per, fit="max"
    )
    before = {
        name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in seen(model).items()
    }
    values = seen(model)
    for index, stage in enumerate(incremental):
        assert (stage.index, stage.portion, stage.last) == (
            index,
            portions[index],
            index == len(portions) - 1,
        )
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
        levels[name] = [0.0] + [
            sign * 2.0**e for e in range(top + 1 - 2 ** (bits - 2), top + 1) for sign in (1, -1)
        ]
    incremental = Incremental(
        model, {"first": bits, "last": bits}, fit="max", per="tensor", order="distance"
    )
    free, frozen = (
        initial,
        {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in initial.items()},
    )
    for stage in incremental:
        for name, weight in seen(model).items():
            new = stage.frozen[name] & ~frozen[name]
            for value, level in zip(free[name][new].tolist(), weight[new].tolist(), strict=True):
                assert level in levels[name]
                assert abs(value - level) == pytest.approx(
                    min(abs(value - other) for other in levels[name]), abs=1e-7
                )
        train(model)
        free, frozen = seen(model), dict(stage.frozen)


@pytest.mark.parametrize(
    ("order", "largest_first"),
    [("magnitude", True), ("far", None), ("distance", None), ("random", None)],
)
def test_what_freezes_first(order: Any, largest_first: bool | None) -> None:
    model = net()
    sizes = model.first.weight.detach().abs().clone()
    stage = next(iter(Incremental(model, {"first": 3}, order=order)))
    frozen = sizes[stage.frozen["first"]], sizes[~stage.frozen["first"]]
    assert (float(frozen[0].min()) >= float(frozen[1].max())) is bool(largest_first)


def test_each_portion_freezes_by_its_own_order() -> None:
    """The largest first, then by distance: as growing the frozen set by hand does."""
    model, bits = net(), 3
    weight = model.first.weight.detach().clone()
    codebook, frozen = (
        power_of_two(weight, bits, fit="mse"),
        torch.zeros_like(weight, dtype=torch.bool),
    )
    run = Incremental(
        model,
        {"first": bits},
        portions=(0.4, 0.8, 1.0),
        order=["magnitude", "distance", "far"],
        per="tensor",
    )
    stages, expected = list(run), list[Tensor]()
    for portion, order in ((0.4, "magnitude"), (0.8, "distance"), (1.0, "far")):
        frozen = grow(frozen, score(weight, codebook, order), portion)  # type: ignore[arg-type]
        expected.append(frozen)
    assert all(
        torch.equal(stage.frozen["first"], mask)
        for stage, mask in zip(stages, expected, strict=True)
    )
    for order in ("magnitude", "distance"):
        alone = list(
            Incremental(net(), {"first": bits}, portions=(0.4, 0.8, 1.0), order=order, per="tensor")
        )  # type: ignore[arg-type]
        assert not torch.equal(alone[1].frozen["first"], expected[1])


def test_by_distance_the_first_half_hardly_changes() -> None:
    changes: dict[str, Tensor] = {}
    for order in ("distance", "far", "random"):
        model = net()
        before = model.first.weight.detach().clone()
        stage = next(iter(Incremental(model, {"first": 3}, order=order, fit="max", per="tensor")))
        changes[order] = (model.first.weight.detach() - before).abs()[stage.frozen["first"]]
    assert float(changes["distance"].max()) <= float(changes["far"].min())
    assert changes["distance"].sum() < changes["random"].sum() < changes["far"].sum()


def test_portions_count_the_weights_of_each_layer() -> None:
    model = net()
    with torch.no_grad():
        model.first.weight *= 1000
    stage = next(iter(Incremental(model, {"first": 3, "last": 3}, portions=(0.5, 1.0))))
    assert {name: int(mask.sum()) for name, mask in stage.frozen.items()} == {
        "first": 48,
        "last": 2,
    }


def test_the_random_order_is_the_seeds_and_each_layers_own() -> None:
    def masks(seed: int, *, disturb: int = 0) -> list[dict[str, Tensor]]:
        model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
        torch.manual_seed(disturb)
        run = Incremental(
            model, {"0": 3, "1": 3}, order="random", seed=seed, portions=(0.25, 0.5, 1.0)
        )
        return [dict(stage.frozen) for stage in run]

    first, again, other = masks(1), masks(1, disturb=5), masks(2)
    assert all(
        torch.equal(a[name], b[name]) for a, b in zip(first, again, strict=True) for name in a
    )
    assert not torch.equal(first[0]["0"], other[0]["0"])
    assert not torch.equal(first[0]["0"], first[0]["1"])
    second = first[1]["0"] & ~first[0]["0"]
    overlap = int((second & first[0]["1"]).sum()) / int(
        second.sum()
    )  # of another stage and layer: independent
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
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "last.weight",
        "last.bias",
    }


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
    assert all(
        torch.equal(mine.layers[name].codes, layer.codes) for name, layer in packed.layers.items()
    )


# Free weights at their levels.


def trained(model: nn.Module) -> Tensor:
    """What lies under the weights of the first layer that the network sees."""
    return model.get_parameter("first.parametrizations.weight.original")


def test_straight_through_the_network_sees_levels_and_free_weights_train() -> None:
    plain, through = (
        Incremental(net(), {"first": 3, "last": 4}, straight_through=share) for share in (1.0, 0.75)
    )
    for stage, _ in zip(through, plain, strict=True):
        model, levels = through.model, through._slots[0].codebook.levels()
        weight, frozen = seen(model)["first"], stage.frozen["first"]
        on_a_level = torch.isin(weight, levels)
        assert bool(on_a_level[frozen].all())
        assert bool(on_a_level.all()) == (stage.portion >= 0.75)
        before = trained(model).detach().clone()
        for one in (model, plain.model):
            train(one, seed=stage.index)
        moved = trained(model).detach() != before
        if not stage.last:
            assert bool(moved[~frozen].all())
    assert through.finish().nominal_bits == plain.finish().nominal_bits


def test_what_the_network_saw_straight_through_is_what_freezes() -> None:
    incremental = Incremental(
        net(), {"first": 3, "last": 4}, portions=(0.3, 0.6, 1.0), straight_through=0.6
    )
    outputs = torch.zeros(())
    for stage in incremental:
        if stage.last:
            assert torch.equal(incremental.model.eval()(batch(3)), outputs)
        train(incremental.model.train(), seed=stage.index)
        outputs = incremental.model.eval()(batch(3))


def test_the_gradient_straight_through_is_that_of_the_levels() -> None:
    incremental = Incremental(net(), {"first": 3}, portions=(0.5, 1.0), straight_through=0.5)
    stage, model = next(iter(incremental)), incremental.model
    x = batch(0)
    model.get_submodule("first")(x).sum().backward()
    expected = x.sum(0, keepdim=True).masked_fill(stage.frozen["first"], 0)
    assert torch.allclose(trained(model).grad, expected)  # type: ignore[arg-type]


# Resumption.


def run(incremental: Incremental, *, stop: int | None = None) -> None:
    for stage in incremental:
        train(incremental.model, seed=stage.index)
        if stage.index == stop:
            return


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"order": "distance"},
        {"order": "random"},
        {"order": ["far", "random", "distance", "magnitude"]},
        {"straight_through": 0.75},
    ],
)
def test_a_resumed_run_ends_bit_for_bit_as_the_whole_one(
    stop: int, options: dict[str, Any], tmp_path: Path
) -> None:
    whole = Incremental(net(), {"first": 3, "last": 4}, seed=7, **options)
    run(whole)
    broken = Incremental(net(), {"first": 3, "last": 4}, seed=7, **options)
    run(broken, stop=stop)
    torch.save(broken.state_dict(), tmp_path / "state.pt")
    resumed = Incremental(
        net(seed=99), {"first": 3, "last": 4}, seed=7, **options
    )  # of other weights
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    run(resumed)
    a, b = whole.finish(), resumed.finish()
    assert all(
        torch.equal(a.layers[name].codes, b.layers[name].codes) for name in ("first", "last")
    )
    assert all(
        torch.equal(a.layers[name].codebook.max_exponent, b.layers[name].codebook.max_exponent)
        for name in ("first", "last")
    )
    for (name, value), other in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
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
    assert torch.equal(
        other.finish().layers["first"].codes, incremental.finish().layers["first"].codes
    )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (
            {"plan": {"first": 4}},
            "plan: expected the state of a run with {'first': 4}, got one with {'first': 3}",
        ),
        (
            {"portions": (0.5, 1.0)},
            "portions: expected the state of a run with (0.5, 1.0), got one with (0.5, 0.75, 0.875, 1.0)",
        ),
        ({"order": "far"}, "order: expected the state of a run with 'far', got one with 'random'"),
        (
            {"order": ["random", "random", "random", "far"]},
            "order: expected the state of a run with ('random', 'random', 'random', 'far'), got one with 'random'",
        ),
        ({"fit": "max"}, "fit: expected the state of a run with 'max', got one with 'mse'"),
        ({"per": "tensor"}, "per: expected the state of a run with 'tensor', got one with 'channel'"),
        ({"seed": 1}, "seed: expected the state of a run with 1, got one with 0"),
        (
            {"inputs": [torch.ones(2, 97)]},
            "inputs: expected the state of a run with True, got one with False",
        ),
        (
            {"straight_through": 0.5},
            "straight_through: expected the state of a run with 0.5, got one with 1.0",
        ),
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
        (
            {"portions": (0.5, 0.9)},
            "^portions: expected shares that rise strictly from above 0 to exactly 1",
        ),
        ({"portions": ()}, "^portions: "),
        ({"order": "size"}, "^order: expected one of magnitude, distance, relative, far, random"),
        (
            {"order": None},
            "^order: expected one of magnitude, distance, relative, far, random, got None",
        ),
        (
            {"order": ["far", "far", "size", "far"]},
            "^order: expected one of magnitude, .*, random, got 'size'",
        ),
        ({"order": ["far", "distance"]}, "^order: expected one, or 4, one a portion; got 2"),
        (
            {"straight_through": 0.0},
            r"^straight_through: expected 1, .* or at most one of \(0.5, .*\) before 1, got 0.0",
        ),
        ({"straight_through": 0.9}, "^straight_through: expected 1, .*, got 0.9"),
        ({"straight_through": 1.5}, "^straight_through: expected 1, .*, got 1.5"),
        ({"fit": "mean"}, '^first: expected fit "max" or "mse"'),
        ({"per": "row"}, '^first: expected per "tensor" or "channel"'),
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
    with pytest.raises(
        PlanError, match=r"^first is skipped \(its module is parametrized already\)"
    ):
        Incremental(model, {"first": 3})


def test_finishing_too_early_names_the_layer_and_changes_nothing() -> None:
    model = net()
    incremental = Incremental(model, {"first": 3, "last": 3}, portions=(0.5, 1.0))
    with pytest.raises(
        PlanError, match=r"^first: expected every weight frozen, got 97 of 97 still free$"
    ):
        incremental.finish()
    next(iter(incremental))
    with pytest.raises(
        PlanError, match=r"^first: expected every weight frozen, got 49 of 97 still free$"
    ):
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
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in plain.named_parameters()
    ]
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


# Made up for by the weights that stay free.


class First(nn.Module):
    """Of what a recurrent layer or an attention returns, the outputs."""

    def forward(self, outputs: tuple[Tensor, ...]) -> Tensor:
        return outputs[0]


class Attending(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.attention, self.last = (
            nn.MultiheadAttention(8, 2, batch_first=True, **settings),
            nn.Linear(8, 4),
        )

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.last(self.attention(query, key, value, need_weights=False)[0])  # type: ignore[no-any-return]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(9, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.shared(self.shared(self.first(x)).relu()))  # type: ignore[no-any-return]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb, self.mid, self.out = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9)
        self.out.weight = self.emb.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.mid(self.emb(tokens)).relu())  # type: ignore[no-any-return]


class Gated(nn.Module):
    """The branch is taken only while the gate, which no optimizer moves, is open."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.branch, self.last = nn.Linear(9, 9), nn.Linear(9, 9), nn.Linear(9, 4)
        self.open = True

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.branch(x) if self.open else x)  # type: ignore[no-any-return]


def convolutions() -> nn.Module:
    return nn.Sequential(
        *(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2, groups=2),
        ),
        *(
            nn.Dropout(0.5),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 6, 2, groups=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        nn.Linear(6, 4),
    )


def transposed() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose1d(4, 6, 3, stride=2), nn.ReLU(), nn.ConvTranspose1d(6, 4, 3, groups=2)
    )


def correlated(*shape: int) -> Tensor:
    """Inputs of which each tells something about the next, or no weight could make up for
    another."""
    independent = torch.randn(shape)
    return independent + 0.7 * independent.roll(1, -1)


def recurrent(kind: Any, **settings: Any) -> nn.Module:
    width = (settings.get("proj_size") or 8) * (2 if settings.get("bidirectional") else 1)
    return nn.Sequential(kind(5, 8, **settings), First(), nn.Linear(width, 4))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "linear": (lambda: nn.Linear(9, 4), lambda: correlated(20, 9)),
    "convolutions": (convolutions, lambda: correlated(8, 3, 7, 7)),
    "transposed": (transposed, lambda: correlated(8, 4, 7)),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(9, 8, padding_idx=2), nn.Linear(8, 4)),
        lambda: torch.randint(9, (6, 5)),
    ),
    "lstm": (lambda: recurrent(nn.LSTM), lambda: correlated(6, 5, 5)),
    "deep lstm": (
        lambda: recurrent(nn.LSTM, num_layers=2, proj_size=6),
        lambda: correlated(6, 5, 5),
    ),
    "gru": (lambda: recurrent(nn.GRU), lambda: correlated(6, 5, 5)),
    "cell": (lambda: nn.Sequential(nn.GRUCell(9, 8), nn.Linear(8, 4)), lambda: correlated(20, 9)),
    "attention": (Attending, lambda: dict.fromkeys(("query", "key", "value"), correlated(4, 5, 8))),
    "cross attention": (
        lambda: Attending(kdim=6, vdim=7),
        lambda: (correlated(4, 5, 8), correlated(4, 6, 6), correlated(4, 6, 7)),
    ),
    "encoder": (
        lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True),
        lambda: correlated(4, 6, 8),
    ),
    "tied": (Tied, lambda: torch.randint(9, (6, 5))),
    "called twice": (Twice, lambda: correlated(20, 9)),
}


def network(kind: str, seed: int = 0) -> tuple[nn.Module, list[Any]]:
    """A network whose norms have something to do, and three batches of its inputs."""
    torch.manual_seed(seed)
    model, give = NETWORKS[kind]
    made = model()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.running_mean, std=0.2)  # type: ignore[arg-type]
    return made, [give() for _ in range(3)]


def outputs(model: nn.Module, batches: list[Any]) -> Tensor:
    """Of every batch, in evaluation mode, which is left again."""
    with observing(model):
        return torch.cat([call(model, batch).flatten() for batch in batches])


def disturb(model: nn.Module, seed: int) -> None:
    """In place of retraining, what an optimizer with weight decay might do: every parameter moves,
    frozen weights or not."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.99).add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)


def weight_of(model: nn.Module, name: str) -> Tensor:
    """A planned layer's weight as the network sees it."""
    owner, _, attribute = name.rpartition(".")
    try:
        value = model.get_submodule(name).weight
    except AttributeError:
        value = getattr(model.get_submodule(owner), attribute)
    assert isinstance(value, Tensor)
    return value.detach().clone()


def ways(model: nn.Module) -> list[Any]:
    """What stages must leave as it is: modes, hooks, flags, gradients, buffers, and torch's own
    switches."""
    modules = [
        module
        for module in model.modules()
        if not isinstance(module, parametrize.ParametrizationList | FrozenWeights)
    ]
    kept = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules]
    buffers = [
        (name, b.tolist()) for name, b in model.named_buffers() if "parametrizations" not in name
    ]
    flags = [(id(p), p.requires_grad, p.grad) for p in model.parameters()]
    switches = [
        torch.is_grad_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.random.get_rng_state().tolist(),
    ]
    return [kept, buffers, flags, switches, threading.active_count()]


@pytest.fixture
def _few_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what does not depend on them: in fewer pieces a stage takes less time."""
    monkeypatch.setattr(octavo.inq.incremental, "PIECES", 2)


@pytest.mark.usefixtures("_few_pieces")
@pytest.mark.parametrize("kind", NETWORKS)
def test_every_network_is_made_up_for_stage_by_stage(kind: str) -> None:
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


@pytest.mark.parametrize("kind", NETWORKS)
def test_made_up_for_every_network_is_nearer_to_what_it_was(kind: str) -> None:
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


def test_within_one_portion_too_the_last_weights_make_up_for_the_first() -> None:
    """With the paper's n1, the same grid with and without inputs: frozen all at once, it would be
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


def test_a_portion_freezes_in_eight_equal_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    freeze, counts = FrozenWeights.freeze, list[int]()

    def count(held: FrozenWeights, codes: Tensor, mask: Tensor) -> None:
        freeze(held, codes, mask)
        counts.append(int(held.frozen.sum()))

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
    monkeypatch.setattr(octavo.inq.incremental, "DAMP", 0.0)
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
def test_the_last_layer_makes_up_for_the_layers_ahead_as_they_are_now(kind: str) -> None:
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


@pytest.mark.usefixtures("_few_pieces")
@pytest.mark.parametrize("order", ["magnitude", "distance", "relative", "far", "random"])
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
        codes("far"),
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
        masks(["magnitude", "distance", "far"]),
        masks("magnitude"),
        masks("distance"),
    )
    assert masks(["far", "far", "far"]) == masks("far")
    assert mixed[0] == magnitude[0] != distance[0]
    assert magnitude[1] != mixed[1] != distance[1]


@pytest.mark.usefixtures("_few_pieces")
@pytest.mark.parametrize(
    "settings", [{}, {"fit": "max"}, {"per": "tensor"}, {"fit": "max", "per": "tensor"}]
)
def test_with_inputs_n1_is_that_of_the_closed_form(settings: dict[str, Any]) -> None:
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
@pytest.mark.parametrize(
    ("kind", "order"), [("convolutions", "random"), ("lstm", "magnitude"), ("tied", "distance")]
)
def test_resumed_with_inputs_a_run_ends_bit_for_bit_as_the_whole_one(
    kind: str, order: Any, tmp_path: Path
) -> None:
    def start(seed: int) -> Incremental:
        model, _ = network(kind, seed)
        plan, inputs = Plan.uniform(model, 3), network(kind)[1]
        return Incremental(
            model, plan, portions=(0.3, 0.6, 1.0), order=order, seed=5, inputs=inputs
        )

    def finished(incremental: Incremental, folder: Path | None = None) -> Packed:
        for stage in incremental:
            disturb(incremental.model, stage.index)
            if folder:
                torch.save(incremental.state_dict(), folder / f"{stage.index}.pt")
        return incremental.finish()

    whole = finished(start(0), tmp_path)
    for stop in (0, 1):
        resumed = start(3)  # of other weights
        resumed.load_state_dict(torch.load(tmp_path / f"{stop}.pt", weights_only=True))
        packed = finished(resumed)
        assert list(packed.layers) == list(whole.layers)
        for name, layer in whole.layers.items():
            assert torch.equal(layer.codes, packed.layers[name].codes)
            assert torch.equal(
                layer.codebook.max_exponent, packed.layers[name].codebook.max_exponent
            )
        for (names, value), (others, other) in zip(whole.floats, packed.floats, strict=True):
            assert names == others
            assert torch.equal(value, other)


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


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (
            "last.bias",
            "^last: its inputs or outputs became NaN or infinite in retraining; lower the learning rate$",
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
        (model, [batches[0][:0]], "^0: no calibration input reaches this layer"),
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


# Pruned networks.


def sparse(share: float = 0.6, seed: int = 0) -> Net:
    """A network with that share of its weights pruned, drawn at random."""
    model, draw = net(seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in (model.first, model.last):
            zeros = torch.rand(layer.weight.shape, generator=draw) < share
            zeros.view(-1)[0] = False
            layer.weight[zeros] = 0
    return model


@pytest.mark.parametrize("order", ["magnitude", "distance", "relative", "far", "random"])
@pytest.mark.parametrize("inputs", [None, [batch(7), batch(8)]])
def test_portions_count_survivors_and_zeros_stay(order: Any, inputs: Any) -> None:
    model = sparse()
    zeros = {name: weight == 0 for name, weight in seen(model).items()}
    portions = (0.3, 0.55, 1.0)
    for stage in (
        incremental := Incremental(
            model, {"first": 3, "last": 2}, portions=portions, order=order, inputs=inputs
        )
    ):
        for name, mask in stage.frozen.items():
            survivors = int((~zeros[name]).sum())
            assert bool(mask[zeros[name]].all())
            assert int(mask[~zeros[name]].sum()) == round(stage.portion * survivors)
        train(model, seed=stage.index)
        assert all(bool((weight[zeros[name]] == 0).all()) for name, weight in seen(model).items())
    incremental.finish()


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=0.01),
        lambda parameters: torch.optim.AdamW(parameters, 0.02, weight_decay=0.05),
    ],
)
def test_zeros_outlast_any_optimizer_and_the_file(make: Any, tmp_path: Path) -> None:
    model = sparse()
    zeros = {name: weight == 0 for name, weight in seen(model).items()}
    optimizer = make(model.parameters())
    incremental = Incremental(model, Plan.uniform(model, 4), portions=(0.5, 1.0))
    for step in range(50):
        if step in (0, 25):
            next(iter(incremental))
        optimizer.zero_grad()
        F.cross_entropy(model(batch(step)), torch.arange(8) % 5).backward()
        optimizer.step()
    incremental.finish().save(tmp_path / "sparse.safetensors")
    again = net(1)
    Packed.load(tmp_path / "sparse.safetensors").apply(again)
    for name, weight in seen(again).items():
        assert bool((weight[zeros[name]] == 0).all())
        assert torch.equal(weight, seen(model)[name])


def test_sparse_networks_get_finer_portions_unless_told_otherwise() -> None:
    assert Incremental(net(), {"first": 3}).portions == (0.5, 0.75, 0.875, 1.0)
    assert Incremental(sparse(0.8), {"first": 3}).portions[:4] == (0.05, 0.1, 0.15, 0.2)
    for given in ((0.5, 1.0), (0.5, 0.75, 0.875, 1.0)):
        assert Incremental(sparse(0.8), {"first": 3}, portions=given).portions == given
    assert Incremental(sparse(0.8), {"first": 3}, masks={}).portions == (0.5, 0.75, 0.875, 1.0)


def test_a_mask_prunes_whatever_the_weights_are() -> None:
    model = net()
    mask = torch.arange(97).view(1, 97) % 3 > 0
    incremental = Incremental(
        model, {"first": 3, "last": 3}, portions=(1.0,), masks={"first": mask}
    )
    assert torch.equal(model.first.weight != 0, mask)
    list(incremental)
    assert bool((incremental.finish().layers["first"].weight()[~mask] == 0).all())


def test_zeros_of_the_closed_form_may_move_again() -> None:
    model = net()
    calibrate(model, {"first": 2}, [batch(0)]).apply(model)
    zeros = int((model.first.weight == 0).sum())
    assert zeros > 10
    stage = next(iter(Incremental(model, {"first": 2}, portions=(0.1, 1.0))))
    assert int(stage.frozen["first"].sum()) == 10  # of all 97


@pytest.mark.parametrize("fit", ["max", "mse"])
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_n1_is_that_of_the_survivors(fit: Any, per: Any) -> None:
    """Zeros add no error, so that of the row without them is the same."""
    weight = torch.randn(1, 60, generator=torch.Generator().manual_seed(3))
    model = nn.Linear(600, 1)
    model.weight.data.zero_()[:, ::10] = weight
    incremental = Incremental(model, {"weight": 3}, portions=(1.0,), fit=fit, per=per)
    list(incremental)
    found = incremental.finish().layers["weight"].codebook.max_exponent
    assert torch.equal(found, power_of_two(weight, 3, fit=fit, per=per).max_exponent)


def test_a_sparse_run_resumes_on_a_network_that_is_not() -> None:
    """The state knows what is pruned, and the portions that followed from it."""
    packed = []
    for cut in (None, 4):
        model = sparse(0.8)
        incremental = Incremental(model, {"first": 3, "last": 3})
        for stage in incremental:
            train(model, seed=stage.index)
            if stage.index == cut:
                break
        if cut is not None:
            state = copy.deepcopy(incremental.state_dict())
            model = net(5)
            incremental = Incremental(model, {"first": 3, "last": 3})
            incremental.load_state_dict(state)
            for stage in incremental:
                train(model, seed=stage.index)
        packed.append(incremental.finish())
    for name in ("first", "last"):
        assert torch.equal(packed[0].layers[name].weight(), packed[1].layers[name].weight())


def test_the_bound_closes_by_the_share_of_survivors_that_is_free() -> None:
    """A pruned network's free weights have as much room as a dense one's."""
    model = sparse(0.8)
    incremental = Incremental(model, {"first": 3}, portions=(0.5, 1.0))
    next(iter(incremental))
    free = 1 - round(0.5 * int((sparse(0.8).first.weight != 0).sum())) / int(
        (sparse(0.8).first.weight != 0).sum()
    )
    held: Any = next(
        module for module in model.first.modules() if isinstance(module, FrozenWeights)
    )
    assert float(held.edge) == pytest.approx(1.5 + 3 * free)


def test_the_padding_of_an_embedding_is_not_pruned() -> None:
    model = nn.Embedding(6, 4, padding_idx=2)
    model.weight.data[4] = 0
    stage = next(iter(Incremental(model, {"weight": 3}, portions=(0.5, 1.0))))
    assert int(stage.frozen["weight"].sum()) == 4 + 10
    assert bool(stage.frozen["weight"][4].all())
