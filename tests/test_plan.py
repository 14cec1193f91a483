"""Plans as data, what they cost, budgets, and what is said about names that a model does not
have."""

import fnmatch
import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from octavo.activations.quantization import quantize_activations
from octavo.activations.quantizer import input_formats
from octavo.dnq.space import layer_widths
from octavo.errors import BudgetError, PlanError
from octavo.formats.width import Apot, Width, WidthLike
from octavo.inq.incremental import Incremental
from octavo.plan import Budget, Cost, Plan, matching, matching_plan, planned_layers
from octavo.pruning.masks import find_kept
from octavo.pruning.surgery import Surgery
from octavo.ptq.calibration import calibrate


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)  # 108 weights
        self.norm = nn.BatchNorm2d(4)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1))  # 16 and 8 weights
        self.lstm = nn.LSTM(2, 2)  # 16 and 16 weights
        self.head = nn.Linear(2, 5)  # 10 weights


WEIGHTS = {
    "stem": 108,
    "block.0": 16,
    "block.1": 8,
    "lstm.weight_ih_l0": 16,
    "lstm.weight_hh_l0": 16,
    "head": 10,
}


def tied() -> nn.Module:
    model = nn.Module()
    model.embed, model.out = nn.Embedding(5, 3), nn.Linear(3, 5)
    model.out.weight = model.embed.weight
    return model


# A plan is a mapping that takes nothing but 2 to 8.


def test_a_plan_is_a_mapping() -> None:
    plan = Plan({"a": 3, "b": 5})
    plan["c"] = 2
    plan.update(b=Width(4))
    del plan["a"]
    assert dict(plan) == {"b": 4, "c": 2}
    assert (len(plan), list(plan), "a" in plan, plan.get("a")) == (2, ["b", "c"], False, None)
    assert plan == {"c": 2, "b": 4}
    assert repr(plan) == "Plan({'b': 4, 'c': 2})"
    with pytest.raises(KeyError):
        plan["a"]


NO_WIDTH = (
    st.integers(max_value=1)
    | st.integers(min_value=9)
    | st.floats()
    | st.booleans()
    | st.none()
    | st.text().filter(lambda text: not text.startswith("apot"))
    | st.lists(st.integers(2, 8), max_size=2)
    | st.sampled_from([3.0, "3", math.nan, [3]])  # almost a width
)


@given(NO_WIDTH)
def test_bits_that_no_plan_takes(bits: Any) -> None:
    plan = Plan({"conv1": 3})
    for attempt in (
        lambda: Plan({"conv1": bits}),
        lambda: plan.__setitem__("conv1", bits),
        lambda: plan.update(conv1=bits),
    ):
        with pytest.raises(
            PlanError, match=r"^conv1: expected 2 to 8, apot5 to apot8, fp4, fp6, fp8 or int8, got "
        ):
            attempt()
    assert plan == {"conv1": 3}


def test_a_plan_holds_widths_whatever_they_were_given_as() -> None:
    plan = Plan({"a": 3, "b": "apot6", "c": Width(4)})
    plan["d"] = Apot(7)
    assert [type(width) for width in plan.values()] == [Width] * 4
    assert dict(plan) == {"a": 3, "b": Apot(6), "c": 4, "d": Apot(7)}
    assert repr(plan) == "Plan({'a': 3, 'b': 'apot6', 'c': 4, 'd': 'apot7'})"
    weights = dict.fromkeys("abcd", 10)
    assert Plan(plan, weights=weights).cost().average_bits == (3 + 6 + 4 + 7) / 4


def test_a_plan_does_not_hold_on_to_what_it_was_made_of() -> None:
    bits, weights = {"a": 3}, {"a": 10}
    plan = Plan(bits, weights=weights)
    bits["a"], weights["a"] = 8, 0
    assert plan["a"] == 3
    assert plan.weights["a"] == 10


def test_uniform() -> None:
    plan = Plan.uniform(Net(), 3)
    assert list(plan.items()) == [(name, Width(3)) for name in WEIGHTS]
    assert plan.weights == WEIGHTS


@pytest.mark.parametrize(
    ("include", "exclude", "names"),
    [
        ("block.*", (), ["block.0", "block.1"]),
        ("*", ("stem", "lstm*"), ["block.0", "block.1", "head"]),
        ("*.weight_?h_l0", ("*hh*",), ["lstm.weight_ih_l0"]),
        ("block.[01]", ["block.0"], ["block.1"]),
        ("head", (), ["head"]),
        ("block.*", "block.0", ["block.1"]),
    ],
)
def test_uniform_with_patterns(include: str, exclude: Any, names: list[str]) -> None:
    assert list(Plan.uniform(Net(), 4, include=include, exclude=exclude)) == names


def test_a_single_name_to_exclude_is_not_read_letter_by_letter() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(11)))
    assert list(Plan.uniform(model, 3, exclude="10")) == [str(number) for number in range(10)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"include": "blocks.*"},
            r"^'blocks\.\*' matches no layer of Net \(the nearest is 'block\.[01]'\)$",
        ),
        ({"exclude": ["heat"]}, r"^'heat' matches no layer of Net \(the nearest is 'head'\)$"),
        ({"include": "HEAD"}, "^'HEAD' matches no layer of Net"),
        ({"include": "norm"}, "^'norm' matches no layer of Net"),
    ],
)
def test_a_pattern_that_matches_nothing(options: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Plan.uniform(Net(), 3, **options)


@pytest.mark.parametrize(
    "call", [lambda m: Plan.uniform(m, 3), lambda m: planned_layers(m, {"a": 3})]
)
def test_a_model_without_layers(call: Callable[[nn.Module], object]) -> None:
    with pytest.raises(
        PlanError,
        match=r"^Sequential: expected a model with layers that can be quantized, found none$",
    ):
        call(nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()))


# What it costs.


def test_cost_by_hand() -> None:
    plan = Plan(
        {"a": 3, "b": 5}, weights={"a": 100, "b": 51, "unplanned": 10**9}, macs={"a": 7, "b": 11}
    )
    assert plan.cost() == Cost(
        average_bits=555 / 151, ratio=32 * 151 / 555, bytes=70, bit_ops=3 * 7 + 5 * 11
    )
    assert Plan(plan, weights=plan.weights, macs={"a": 7}).cost().bit_ops is None
    assert Plan({"a": 2}, weights={"a": 4}).cost() == Cost(2, 16, 1, None)
    assert Plan({"a": 3}, weights={"a": 8}, macs={"a": 0}).cost() == Cost(3, 32 / 3, 3, 0)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan({}), "^the plan is empty$"),
        (Plan({"a": 3, "b": 3}, weights={"a": 1}), "^b: the plan does not know its number"),
    ],
)
def test_a_cost_that_is_not_known(plan: Plan, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan.cost()


# As a file.


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@given(
    st.dictionaries(
        names,
        st.tuples(st.integers(2, 8), st.integers(0, 2**60), st.integers(0, 2**60)),
        min_size=1,
    )
)
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_saved_plan_comes_back_whatever_the_names(
    tmp_path: Path, rows: dict[str, tuple[int, int, int]]
) -> None:
    plan = Plan(
        {name: bits for name, (bits, _, _) in rows.items()},
        weights={name: count for name, (_, count, _) in rows.items()},
        macs={name: count for name, (_, _, count) in rows.items()},
    )
    plan.save(tmp_path / "plan.yaml")
    loaded = Plan.load(str(tmp_path / "plan.yaml"))
    assert (list(loaded.items()), loaded.weights, loaded.macs) == (
        list(plan.items()),
        plan.weights,
        plan.macs,
    )


def test_a_saved_plan_can_be_read_and_edited(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    Plan.uniform(Net(), 3).save(path)
    text = path.read_text()
    assert text.startswith("#")
    assert yaml.safe_load(text) == {"bits": dict.fromkeys(WEIGHTS, 3), "weights": WEIGHTS}
    lines = text.replace("stem: 3", "stem: 8  # the first is special").splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "head: 3" not in line))
    edited = Plan.load(path)
    assert (edited["stem"], edited["block.0"]) == (Width(8), Width(3))
    assert "head" not in edited
    assert edited.cost().average_bits == pytest.approx((108 * 8 + 56 * 3) / 164)
    planned_layers(Net(), edited)


def test_a_plan_that_was_written_by_hand_needs_no_counts(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("bits: {stem: 5, head: 2}\nweights:\n")
    assert dict(Plan.load(path)) == {"stem": 5, "head": 2}


def test_counts_of_layers_that_are_not_planned_are_not_saved(tmp_path: Path) -> None:
    Plan({"a": 3}, weights={"a": 1, "b": 2}, macs={"a": 5, "b": 6}).save(tmp_path / "plan.yaml")
    assert yaml.safe_load((tmp_path / "plan.yaml").read_text()) == {
        "bits": {"a": 3},
        "weights": {"a": 1},
        "macs": {"a": 5},
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected a mapping with the key 'bits'"),
        ("3", "expected a mapping with the key 'bits'"),
        ("- a\n- b", "expected a mapping with the key 'bits'"),
        ("layers: {a: 3}", "expected a mapping with the key 'bits'"),
        ("bits: 3", "expected a mapping with the key 'bits'"),
        ("bits: [a, b]", "expected a mapping with the key 'bits'"),
        (
            "bits: {a: 3}\nbats: {a: 3}",
            "expected mappings named bits, weights, macs and activations, got bits, bats",
        ),
        (
            "bits: {a: 3}\nweights: [1]",
            "expected mappings named bits, weights, macs and activations",
        ),
        ("bits: {a: 3}\nmacs: 7", "expected mappings named bits, weights, macs and activations"),
        (
            "bits: {a: 3, b: 12}",
            "b: expected 2 to 8, apot5 to apot8, fp4, fp6, fp8 or int8, got 12",
        ),
        (
            "bits: {a: three}",
            "a: expected 2 to 8, apot5 to apot8, fp4, fp6, fp8 or int8, got 'three'",
        ),
        ("bits: {a: }", "a: expected 2 to 8, apot5 to apot8, fp4, fp6, fp8 or int8, got None"),
        ("bits: {a: yes}", "a: expected 2 to 8, apot5 to apot8, fp4, fp6, fp8 or int8, got True"),
        ("bits: {a: 3", "not a readable plan"),
        ("a: b: c", "not a readable plan"),
        ("bits: !!python/object/apply:os.getcwd []", "not a readable plan"),
        ("bits: {a: *none}", "not a readable plan"),
        ("bits: &x {a: *x}", "not a readable plan: line 1, column 14: expected the anchor"),
        ("bits: {[1]: 3}", "not a readable plan"),
        ("bits: {a: 3}\x00", "not a readable plan"),
        ("bits: {a: 2001-99-99}", "a: expected 2 to 8, apot5 to apot8, fp4, fp6, fp8 or int8"),
        (
            "bits:\n  a: 3\n  a: 4",
            "not a readable plan: line 3, column 3: the key 'a' comes twice; keep one of the two",
        ),
    ],
)
def test_what_is_no_plan(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(content)
    with pytest.raises(PlanError) as caught:
        Plan.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xfa")
    for path in (tmp_path / "bytes", tmp_path / "none.yaml", tmp_path):
        with pytest.raises(PlanError, match="not a readable plan"):
            Plan.load(path)


def test_a_name_that_yaml_takes_for_a_number(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("bits: {0: 3}\nweights: {0: 4, 1.10: 5}")
    plan = Plan.load(path)
    ((layer, bits),) = planned_layers(nn.Sequential(nn.Linear(2, 2)), plan)
    assert (layer.name, bits, plan.weights) == ("0", Width(3), {"0": 4, "1.10": 5})


@pytest.mark.parametrize("count", ["many", "-1", "0", "1.5", "[1]"])
def test_counts_that_are_none(count: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(f"bits: {{a: 3}}\nweights: {{a: {count}}}")
    with pytest.raises(PlanError, match=r"\ba\b"):
        Plan.load(path).cost()


def test_plans_are_equal_if_the_bits_of_inputs_are_too() -> None:
    widths: dict[str, WidthLike] = {"a": 3, "b": Apot(6)}
    plan = Plan(widths, activations={"a": 4})
    assert plan == Plan(widths, activations={"a": 4}, weights={"a": 7})  # counts say no bits
    assert plan != Plan(widths, activations={"a": 8})
    assert plan != Plan(widths)
    assert Plan(widths) != plan
    assert plan == widths == plan  # a dict knows nothing of inputs
    assert plan != {"a": 3}
    assert plan != 3


# Budgets.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "^expected exactly one of ratio, average_bits, bytes and bit_ops, got none$"),
        ({"ratio": 8, "bytes": 100}, "^expected exactly one of .*'ratio': 8.*'bytes': 100"),
    ],
)
def test_a_budget_has_one_limit(given: Any, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        Budget(**given)


NO_LIMIT = (
    st.integers(max_value=0)
    | st.floats(max_value=0)
    | st.sampled_from([math.nan, math.inf])
    | st.text()
    | st.booleans()
    | st.lists(st.integers())
    | st.just("3")  # almost a number
)


@given(st.sampled_from(["ratio", "average_bits", "bytes", "bit_ops"]), NO_LIMIT)
def test_a_limit_that_is_no_positive_number(name: str, limit: Any) -> None:
    with pytest.raises(BudgetError) as caught:
        Budget(**{name: limit})
    assert str(caught.value) == f"{name}: expected a positive number, got {limit!r}"


def test_a_budget_knows_whether_it_bounds_the_file() -> None:
    assert Budget(ratio=8).of_file
    assert Budget(bytes=500).of_file
    assert not Budget(average_bits=4).of_file
    assert not Budget(bit_ops=77).of_file


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        ({"bytes": 1_234_567}, "bytes=1234567"),
        ({"bit_ops": 3 * 10**16 + 1}, "bit_ops=30000000000000001"),
        ({"bytes": 0.1 * 12_345_678}, "bytes=1234567.8"),
        ({"average_bits": 3.0}, "average_bits=3"),
        ({"ratio": 10.123456}, "ratio=10.123456"),
    ],
)
def test_a_budget_is_written_with_all_of_its_digits(limit: Any, text: str) -> None:
    assert str(Budget(**limit)) == text


# Patterns to bits, and the layers behind the names.


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (5, dict.fromkeys(WEIGHTS, 5)),
        ({"*": 3, "stem": 8}, {**dict.fromkeys(WEIGHTS, 3), "stem": 8}),
        ({"stem": 8, "*": 3}, {**dict.fromkeys(WEIGHTS, 3), "stem": 8}),
        ({"st*": 8, "*": 3}, dict.fromkeys(WEIGHTS, 3)),
        ({"head": 4, "block.*": 2, "block.1": 6}, {"block.0": 2, "block.1": 6, "head": 4}),
    ],
)
def test_a_name_counts_before_patterns_and_of_these_the_last(
    bits: Any, expected: dict[str, int]
) -> None:
    plan = matching_plan(Net(), bits)
    assert dict(plan) == expected
    assert list(plan) == [name for name in WEIGHTS if name in expected]
    assert plan.weights == WEIGHTS


def test_names_and_patterns_mean_the_same_wherever_a_plan_is_taken() -> None:
    names = {"a[1]": nn.Linear(4, 4), "a1": nn.Linear(4, 4), "last": nn.Linear(4, 4)}
    model = nn.Sequential(OrderedDict(names))
    bits = {"a[1]": 2, "la*": 8, "*t": 4}  # a name that as a pattern matches another, and two
    inputs = [torch.randn(8, 4)]
    for layer in names.values():
        nn.init.zeros_(layer.weight[0])  # pruned
    expected = {"a[1]": 2, "last": 4}
    widths = {name: Width(width) for name, width in expected.items()}
    assert matching_plan(model, bits) == expected
    assert calibrate(model, bits, inputs).plan == expected
    assert calibrate(model, bits, inputs, rate=1).plan == expected
    assert list(find_kept(model, bits)) == list(expected)
    free = layer_widths(tuple(names), [3], bits)
    assert free == ((widths["a[1]"],), (Width(3),), (widths["last"],))
    incremental = Incremental(model, bits)
    assert incremental.state_dict()["settings"]["plan"] == expected
    list(incremental)
    assert incremental.finish().plan == expected
    quantize_activations(model, inputs, bits)
    assert {name: form.bits for name, form in input_formats(model).items()} == expected


def test_a_state_belongs_to_the_plan_and_not_to_its_wording() -> None:
    """Else a run that was resumed with the names written out would be refused."""
    state = Incremental(Net(), {"*": 3}).state_dict()
    Incremental(Net(), Plan.uniform(Net(), 3)).load_state_dict(state)


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ({"tail": 3}, "^'tail' matches no layer"),
        ({"norm": 3}, r"^norm is skipped \(norms stay in float\)"),
        ({"*": 9}, "or int8, got 9"),
        (1, "or int8, got 1"),
    ],
)
def test_patterns_that_make_no_plan(bits: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        matching_plan(Net(), bits)


def test_planned_layers_are_the_models_own_in_its_order() -> None:
    model = Net()
    found = planned_layers(model, {"head": 2, "lstm.weight_hh_l0": 4, "stem": 8})
    assert [(layer.name, bits) for layer, bits in found] == [
        ("stem", Width(8)),
        ("lstm.weight_hh_l0", Width(4)),
        ("head", Width(2)),
    ]
    assert found[0][0].weight is model.stem.weight


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            {"haed": 3},
            r"^'haed' matches no layer of Net \(the nearest is 'head'\)$",
        ),
        (
            {"blocks.*": 3},
            r"^'blocks\.\*' matches no layer of Net \(the nearest is 'block\.[01]'\)$",
        ),
        ({"block": 3}, r"^'block' matches no layer of Net \(the nearest is 'block\.[01]'\)$"),
        ({"norm": 3}, r"^norm is skipped \(norms stay in float\): it is no layer of Net$"),
        ({"norm.weight": 3}, r"^norm\.weight is skipped \(norms stay in float\)"),
        ({"head.bias": 3}, r"^head\.bias is skipped \(biases stay in float\)"),
        ({"lstm": 3}, "^'lstm' matches no layer of Net"),
        ({"": 3}, "^'' matches no layer of Net"),
        ({0: 3}, "^expected the name of a layer of Net or a shell pattern, got 0$"),
        ({}, "^the plan is empty: it names no layer to quantize$"),
        (4, r"^plan: expected a Plan or a dict .* got 4; write Plan\.uniform\(model, 4\)"),
        ({"head": 33}, "^head: expected 2 to 8, apot5 to apot8, fp4, fp6, fp8 or int8, got 33$"),
        (
            {"head": 3, "stem": 2.5},
            "^stem: expected 2 to 8, apot5 to apot8, fp4, fp6, fp8 or int8, got 2.5$",
        ),
    ],
)
def test_names_that_are_no_layers(plan: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        planned_layers(Net(), plan)


def test_the_other_name_of_a_tied_weight() -> None:
    with pytest.raises(
        PlanError,
        match=r"^out is tied to embed, plan that one: it is no layer by itself of Module$",
    ):
        planned_layers(tied(), {"out": 3})


def test_a_parametrized_layer_in_a_plan() -> None:
    model = nn.Sequential(nn.Linear(2, 2), parametrizations.weight_norm(nn.Linear(2, 2)))
    with pytest.raises(PlanError, match=r"^1 is skipped \(its module is parametrized already\)"):
        planned_layers(model, {"0": 3, "1": 3})


def test_the_model_is_not_changed_by_planning() -> None:
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    planned_layers(model, matching_plan(model, {"*": 3}))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(
        type(module) is type(other)
        for module, other in zip(model.modules(), Net().modules(), strict=True)
    )


def test_a_layers_own_name_is_no_pattern() -> None:
    """``a[1]`` is a legal name of a module, and as a pattern it would match ``a1``."""
    names = {"a[1]": nn.Linear(4, 4), "a1": nn.Linear(4, 4), "b*": nn.Linear(4, 4)}
    model = nn.Sequential(OrderedDict([*names.items(), ("bb", nn.Linear(4, 4))]))
    assert dict(matching_plan(model, {"a[1]": 4})) == {"a[1]": 4}
    assert dict(matching_plan(model, {"b*": 4})) == {"b*": 4}
    assert dict(matching_plan(model, {"*": 2, "a[1]": 4})) == {"a[1]": 4, "a1": 2, "b*": 2, "bb": 2}
    assert dict(matching_plan(model, {"a[12]": 4})) == {"a1": 4}  # no name, so a pattern
    assert list(Plan.uniform(model, 3, include="a[1]")) == ["a[1]"]
    assert list(Plan.uniform(model, 3, exclude=["b*", "a[1]"])) == ["a1", "bb"]
    surgery = Surgery(model, {"a[1]": 0.5}, steps=1)
    surgery.step()
    assert list(surgery.finish()) == ["a[1]"]
    quantize_activations(model, [torch.randn(8, 4)], {"a[1]": 4})
    assert list(input_formats(model)) == ["a[1]"]


def test_a_key_for_each_layer_is_looked_up_and_not_compared_with_every_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [f"layers.{n}.a[{n}]*" for n in range(100)]
    compared: list[str] = []
    translate = fnmatch.translate

    def noted(pattern: str) -> str:
        compared.append(pattern)
        return translate(pattern)

    monkeypatch.setattr(fnmatch, "translate", noted)
    plan = dict(zip(names, range(100), strict=True))
    matched: dict[str, int] = matching(names, plan, "layer of Net")
    assert matched == plan
    assert compared == []
    matched = matching(["a[*]", "a*"], {"a[[]*[]]*": 1}, "layer of Net")
    assert matched == {"a[*]": 1}
    assert compared == ["a[[]*[]]*"]
