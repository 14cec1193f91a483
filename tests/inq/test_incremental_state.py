"""A run of INQ that is saved and resumed ends bit for bit as the whole one."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.inq.networks import disturb, far, net, network, run, seen

from octavo.errors import PlanError
from octavo.inq.incremental import Incremental
from octavo.plan import Plan
from octavo.storage.packed import Packed

PORTIONS = (0.25, 0.5, 1.0)

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")  # oneDNN has none


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"order": "distance"},
        {"order": "random"},
        {"order": [far, "random", "distance", "magnitude"]},
        {"straight_through": 0.75},
        {"straight_through": 0.75, "rate": 8.0},
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
            (
                "portions: expected the state of a run with (0.5, 1.0), "
                "got one with (0.5, 0.75, 0.875, 1.0)"
            ),
        ),
        ({"order": far}, "order: expected the state of a run with 'far', got one with 'random'"),
        (
            {"order": ["random", "random", "random", far]},
            (
                "order: expected the state of a run with ('random', 'random', 'random', 'far'), "
                "got one with 'random'"
            ),
        ),
        ({"fit": "max"}, "fit: expected the state of a run with 'max', got one with 'mse'"),
        (
            {"per": "tensor"},
            "per: expected the state of a run with 'tensor', got one with 'channel'",
        ),
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


def test_a_state_that_was_saved_when_far_was_the_name_of_an_order() -> None:
    """A run with the function of that name takes it up."""
    incremental = Incremental(net(), {"first": 3}, order=far)
    next(iter(incremental))
    state = copy.deepcopy(incremental.state_dict())
    assert state["settings"]["order"] == "far"
    resumed = Incremental(net(seed=1), {"first": 3}, order=[far, "random", far, far])
    with pytest.raises(PlanError, match=r"^order: expected .* \('far', 'random', 'far', 'far'\)"):
        resumed.load_state_dict(state)
    resumed = Incremental(net(seed=1), {"first": 3}, order=far)
    resumed.load_state_dict(state)
    assert [stage.index for stage in resumed] == [1, 2, 3]


def test_a_state_of_the_first_versions_says_nothing_of_pruning() -> None:
    incremental = Incremental(net(), {"first": 3}, portions=PORTIONS)
    next(iter(incremental))
    state = {
        key: value
        for key, value in copy.deepcopy(incremental.state_dict()).items()
        if key not in ("portions", "pruned")
    }
    resumed = Incremental(net(seed=1), {"first": 3}, portions=PORTIONS)
    resumed.load_state_dict(state)
    assert resumed.portions == PORTIONS
    counts = [int(stage.frozen["first"].sum()) for stage in resumed]
    assert counts == [48, 97]  # of 97 weights, none of which is pruned


def test_a_state_that_was_saved_when_per_tensor_was_called_per_layer() -> None:
    incremental = Incremental(net(), {"first": 3}, per="tensor")
    next(iter(incremental))
    state = copy.deepcopy(incremental.state_dict())
    state["settings"]["per"] = "layer"
    old: Any = "layer"
    with pytest.warns(DeprecationWarning, match='per="layer" is deprecated') as warned:
        again = Incremental(net(seed=1), {"first": 3}, per=old)
    assert [warning.filename for warning in warned] == [__file__]  # the line that has the old word
    for resumed in (again, Incremental(net(seed=1), {"first": 3}, per="tensor")):
        resumed.load_state_dict(state)
        assert [stage.index for stage in resumed] == [1, 2, 3]
    with pytest.raises(PlanError, match=r"^per: expected .* 'channel', got one with 'tensor'"):
        Incremental(net(), {"first": 3}).load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"done": -1}, "^done: expected a number from 0 to 4, got -1$"),
        ({"done": 5}, "^done: expected a number from 0 to 4, got 5$"),
        ({"done": True}, "^done: expected a number from 0 to 4, got True$"),
        ({"tops": {"first": torch.tensor(0)}}, "^first: expected exponents of shape .*, got"),
        ({"tops": {"first": 3}}, "^first: expected exponents of shape .*, got None and int$"),
        ({"tops": {}}, "^first: expected exponents of shape .*, got None and NoneType$"),
    ],
)
def test_a_damaged_state_is_refused_before_anything_changes(
    change: dict[str, Any], said: str
) -> None:
    incremental = Incremental(net(), {"first": 3})
    next(iter(incremental))
    resumed = Incremental(net(seed=1), {"first": 3})
    before = seen(resumed.model)
    with pytest.raises(PlanError, match=said):
        resumed.load_state_dict(incremental.state_dict() | change)
    assert all(torch.equal(value, before[name]) for name, value in seen(resumed.model).items())


def test_the_state_of_another_model_is_refused_by_the_name_of_what_is_missing() -> None:
    incremental = Incremental(net(), {"first": 3})
    state = incremental.state_dict()
    del state["model"]["last.weight"]
    with pytest.raises(PlanError, match=r"^model: RuntimeError: .*last\.weight") as error:
        incremental.load_state_dict(state)
    assert "\n" not in str(error.value)
