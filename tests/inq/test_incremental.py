"""INQ from the first portion to the packed network: exact counts, whole models, refusals."""

import copy
import inspect
import math
import warnings
from typing import Any

import pytest
import torch
from tests.inq.networks import batch, far, net, run, seen, train
from tests.ptq.networks_of_others import Masked, Standardized, made
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from octavo.errors import PlanError
from octavo.inq.incremental import Incremental
from octavo.plan import Plan
from octavo.storage.packed import Packed


@pytest.mark.parametrize("order", ["magnitude", "distance", "relative", far, "random"])
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


def test_portions_count_the_weights_of_each_layer() -> None:
    model = net()
    with torch.no_grad():
        model.first.weight *= 1000
    stage = next(iter(Incremental(model, {"first": 3, "last": 3}, portions=(0.5, 1.0))))
    assert {name: int(mask.sum()) for name, mask in stage.frozen.items()} == {
        "first": 48,
        "last": 2,
    }


def test_an_iteration_that_is_broken_off_goes_on_where_it_was() -> None:
    incremental = Incremental(net(), {"first": 3}, portions=(0.25, 0.5, 1.0))
    for _ in incremental:
        break
    assert [stage.index for stage in incremental] == [1, 2]
    assert list(incremental) == []


def test_the_default_settings() -> None:
    defaults = {name: p.default for name, p in inspect.signature(Incremental).parameters.items()}
    assert Incremental(net(), {"first": 3}).portions == (0.5, 0.75, 0.875, 1.0)
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
    assert packed.floats == ()
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
    assert packed.floats == ()


def test_parametrized_modules_are_left_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), parametrizations.weight_norm(nn.Linear(4, 3)))
    with pytest.warns(UserWarning, match="1.weight.*parametrized already"):
        incremental = Incremental(model, {"0": 3}, portions=(0.5, 1.0))
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plan": {"frist": 3}}, r"^'frist' matches no layer of Net \(the nearest is 'first'\)"),
        ({"plan": {"norm": 3}}, "^norm is skipped"),
        ({"plan": {}}, "^the plan is empty"),
        (
            {"plan": {"first": 9}},
            "^first: expected 2 to 8, apot5 to apot8, fp4, fp6, fp8 or int8, got 9",
        ),
        (
            {"portions": (0.5, 0.9)},
            "^portions: expected shares that rise strictly from above 0 to exactly 1",
        ),
        ({"portions": ()}, "^portions: "),
        (
            {"order": "size"},
            "^order: expected one of magnitude, distance, relative, random, or a ",
        ),
        (
            {"order": None},
            "^order: expected one of magnitude, .*, random, or a function .*, got None",
        ),
        (
            {"order": [far, far, "size", far]},
            "^order: expected one of magnitude, .*, random, .*, got 'size'",
        ),
        ({"order": [far, "distance"]}, "^order: expected one, or 4, one for each portion; got 2"),
        (
            {"straight_through": 0.0},
            r"^straight_through: expected 1, .* or at most one of \(0.5, .*\) before 1, got 0.0",
        ),
        ({"straight_through": 0.9}, "^straight_through: expected 1, .*, got 0.9"),
        ({"straight_through": 1.5}, "^straight_through: expected 1, .*, got 1.5"),
        ({"fit": "mean"}, '^first: expected fit "max" or "mse"'),
        ({"per": "row"}, '^first: expected per "tensor" or "channel", got .row.'),
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


def test_a_model_that_is_in_a_run_already() -> None:
    model = net()
    incremental = Incremental(model, {"first": 3})
    for again in (
        lambda: Incremental(model, {"first": 3}),
        lambda: Incremental(model, {"*": 3}),  # and not the other layers alone
        lambda: Plan.uniform(model, 3, exclude=["first"]),
        lambda: Plan.uniform(copy.deepcopy(model), 3),
    ):
        with pytest.raises(
            PlanError, match=r"^first\.weight: this model is in an unfinished Incre"
        ):
            again()
    for _ in incremental:
        pass
    incremental.finish()
    assert Incremental(model, {"*": 3}).portions


def test_finishing_too_early_names_the_layer_and_changes_nothing() -> None:
    model = net()
    incremental = Incremental(model, {"first": 3, "last": 3}, portions=(0.5, 1.0))
    with pytest.raises(
        PlanError, match=r"^first: expected every weight frozen, got 97 of 97 still free; "
    ):
        incremental.finish()
    next(iter(incremental))
    with pytest.raises(
        PlanError, match=r"^first: expected every weight frozen, got 49 of 97 still free; "
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


def test_the_finished_model_is_plain() -> None:
    model, plain = net(), net()
    parameters = [id(p) for p in model.parameters()]
    incremental = Incremental(model, Plan.uniform(model, 3))
    run(incremental)
    seen_before = seen(model)
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
    assert all(torch.equal(value, seen_before[name]) for name, value in seen(model).items())


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


@pytest.mark.parametrize("kind", [Standardized, Masked, nn.Linear])
def test_refitting_a_weight_that_is_not_what_is_multiplied_is_not_worse_than_not_refitting(
    kind: type[nn.Linear],
) -> None:
    """Refitting trusts that a layer multiplies its inputs with its weight."""
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(1))
    fresh = torch.randn(500, 16, generator=torch.Generator().manual_seed(2))
    errors = []
    for inputs in ([x], None):
        model = made(kind)
        full = model(fresh).detach()
        plan = Plan.uniform(model, 4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            incremental = Incremental(model, plan, portions=(0.5, 1), inputs=inputs)
            for _ in incremental:
                pass
        incremental.finish()
        errors.append(float((model(fresh) - full).detach().norm() / full.norm()))
    refitted, rounded = errors
    assert refitted < rounded
