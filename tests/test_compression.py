"""The whole way in one call: each option gets to its place, and the model stays as it was."""

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octavo import (
    Budget,
    BudgetError,
    Incremental,
    Packed,
    PlanError,
    calibrate,
    compress,
    compression,
    search,
)
from octavo.progress import Event, silent
from octavo.ptq import calibration
from octavo.ptq.calibration import Calibrated
from octavo.ptq.file_form import FileForm
from octavo.ptq.settings import PtqSettings

TENSOR: Any = "tensor"
BUDGET = Budget(average_bits=3.2)


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 4))


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(12, 6, generator=generator), torch.randn(5, 6, generator=generator)]


def nudge(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)


def same_weights(packed: Packed, expected: Packed) -> bool:
    return packed.layers.keys() == expected.layers.keys() and all(
        torch.equal(packed.layers[name].weight(), layer.weight())
        for name, layer in expected.layers.items()
    )


def test_without_retraining_it_is_the_search_and_ptq() -> None:
    packed = compress(net(), iter(batches()), budget=BUDGET, method="greedy", seed=2, per=TENSOR)
    plan = search(net(), batches(), budget=BUDGET, method="greedy", seed=2).plan
    assert packed.plan == plan
    assert same_weights(packed, calibrate(net(), plan, batches(), per=TENSOR))
    assert not same_weights(packed, calibrate(net(), plan, batches()))


def test_with_retraining_it_is_incremental_from_ptq_with_the_same_settings() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    seen: list[nn.Module] = []

    def retrain(network: nn.Module) -> None:
        seen.append(network)
        nudge(network)

    both: dict[str, Any] = {"per": TENSOR, "fit": "max"}
    alone: dict[str, Any] = {"portions": (0.3, 0.6, 1.0), "order": "random", "seed": 4}
    packed = compress(
        model, batches(), budget=BUDGET, retrain=retrain, method="exact", damp=0.1, **both, **alone
    )
    assert len(seen) == 2
    assert all(network is not model for network in seen)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    quantized = net()
    calibrate(model, packed.plan, batches(), damp=0.1, **both).apply(quantized)
    incremental = Incremental(quantized, packed.plan, **both, **alone)
    for stage in incremental:
        if not stage.last:
            nudge(quantized)
    assert same_weights(packed, incremental.finish())


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """The settings that search, calibration and Incremental receive in place of the real ones."""
    found = search(net(), batches(), budget=BUDGET, method="exact")
    packed = calibrate(net(), found.plan, batches())
    solved = Calibrated(packed, packed, 0.0, ())
    received: dict[str, dict[str, Any]] = {}

    class Finished:
        def __iter__(self) -> Iterator[None]:
            return iter(())

        def finish(self) -> Packed:
            return packed

    def spy(name: str, result: object) -> Callable[..., object]:
        def call(*args: object, **options: Any) -> object:
            received[name] = options
            return result

        return call

    def calibrated(*args: Any) -> Calibrated:
        _, _, _, settings, form, progress = args
        received["calibrated"] = {"settings": settings, "form": form, "progress": progress}
        return solved

    for name, result in (("search", found), ("Incremental", Finished())):
        monkeypatch.setattr(compression, name, spy(name, result))
    monkeypatch.setattr(compression, "calibrated", calibrated)
    return received


SEARCH = {
    "options", "method", "trials", "refine", "objective", "seed", "journal", "workers", "pins",
    "activations", "retrain_steps", "absorb", "rate", "floats", "coding", "progress",
}  # fmt: skip
START = {"fit", "per", "damp", "absorb", "rate", "masks"}
PTQ = START | {"order", "sequential"}
INQ = {"portions", "order", "fit", "per", "seed", "straight_through", "rate", "masks"}


# Where a value is checked, one that is not the default.
CHECKED: dict[str, Any] = {
    "floats": "float16", "coding": "fast", "order": "magnitude", "fit": "max", "damp": 0.5,
    "per": ("group", 32), "sequential": False, "absorb": True, "rate": 3.0, "masks": {},
    "progress": print,
}  # fmt: skip


def values(names: set[str]) -> dict[str, Any]:
    """A value for each name that no other has, but for those that are checked."""
    return {name: CHECKED.get(name, f"the {name}") for name in names}


def solving(names: set[str]) -> dict[str, Any]:
    """What the calibration receives with these options."""
    form = FileForm(floats="float16", coding="fast")
    settings = PtqSettings(**values(names))
    return {"settings": settings, "form": form, "progress": print}


def test_without_retraining_each_option_arrives(received: dict[str, dict[str, Any]]) -> None:
    compress(net(), batches(), budget=BUDGET, **values(SEARCH | PTQ))
    assert received == {
        "search": {"budget": BUDGET} | values(SEARCH),
        "calibrated": solving(PTQ),
    }


def test_with_retraining_each_option_arrives(received: dict[str, dict[str, Any]]) -> None:
    options = values(SEARCH | START | INQ)
    compress(net(), batches(), budget=BUDGET, retrain=nudge, **options)
    assert received == {
        "search": {"budget": BUDGET} | values(SEARCH),
        "calibrated": solving(START),
        "Incremental": values(INQ),
    }


def test_an_option_that_is_left_out_has_the_default_of_its_function(
    received: dict[str, dict[str, Any]],
) -> None:
    compress(net(), batches(), budget=BUDGET)
    default = {"settings": PtqSettings(), "form": FileForm(), "progress": silent}
    assert received == {"search": {"budget": BUDGET}, "calibrated": default}
    compress(net(), batches(), budget=BUDGET, retrain=nudge, absorb=False)
    assert received["search"]["absorb"] is False  # which is a value like any other
    assert set(received["Incremental"]) == {"masks"}


def test_every_option_is_in_a_test() -> None:
    parameters = set(inspect.signature(compress).parameters)
    assert parameters - SEARCH - PTQ - INQ == {"model", "inputs", "budget", "retrain"}
    assert set(compression.SEARCH) == SEARCH | {"budget"}
    assert (set(compression.START), set(compression.PTQ), set(compression.INQ)) == (START, PTQ, INQ)


@pytest.mark.parametrize("name", sorted(INQ - PTQ - SEARCH))
def test_an_option_of_retraining_needs_retraining(name: str) -> None:
    said = rf"^{name}: has no effect without retrain, it is an option of Incremental; leave it out$"
    options: dict[str, Any] = {name: (0.5, 1.0)}
    with pytest.raises(PlanError, match=said):
        compress(net(), iter(()), budget=BUDGET, **options)


def test_an_option_of_ptq_alone_excludes_retraining() -> None:
    said = r"^sequential: has no effect with retrain, it is an option of calibrate alone;"
    with pytest.raises(PlanError, match=said):
        compress(net(), batches(), budget=BUDGET, retrain=nudge, sequential=False)


def test_old_names_are_read_with_a_warning(received: dict[str, dict[str, Any]]) -> None:
    seen: list[Any] = []
    old: dict[str, Any] = {"score": lambda _: 0.0, "correct": True, "observe": seen.append}
    with pytest.warns(DeprecationWarning, match="deprecated") as warned:
        compress(net(), batches(), budget=BUDGET, **old)
    assert received["search"]["objective"] is old["score"]
    for function in ("search", "calibrated"):
        received[function]["progress"](Event(function, detail=f"of {function}"))
    assert seen == ["of search", "of calibrated"]
    messages = [str(warning.message) for warning in warned]
    assert len(messages) == 3
    for expected in ("compress(objective=)", "compress(progress=)", "no effect"):
        assert sum(expected in message for message in messages) == 1, expected


@pytest.mark.parametrize("retrain", [None, nudge])
def test_the_old_word_for_per_tensor_warns_and_works(retrain: Any) -> None:
    settings: dict[str, Any] = {"method": "exact", "retrain": retrain}
    old_word: Any = "layer"
    with pytest.warns(DeprecationWarning, match='per="layer" is deprecated .* per="tensor"'):
        old = compress(net(), batches(), budget=BUDGET, per=old_word, **settings)
    new = compress(net(), batches(), budget=BUDGET, per=TENSOR, **settings)
    assert same_weights(old, new)


def test_what_no_plan_or_function_takes_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'trails'"):
        compress(net(), batches(), budget=BUDGET, trails=3)  # type: ignore[call-arg]
    with pytest.raises(BudgetError, match="feasible"):
        compress(net(), batches(), budget=Budget(average_bits=1.5))


def test_a_pruned_network_keeps_its_zeros() -> None:
    """The PTQ that INQ starts from leaves powers of two, whose zeros are not pruned by
    themselves."""
    model = net()
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    zeros = [torch.arange(weight.numel()).view(weight.shape) % 3 == 0 for weight in weights]
    for weight, zero in zip(weights, zeros, strict=True):
        weight.data[zero] = 0
    for retrain in (nudge, None):
        packed = compress(model, batches(), budget=BUDGET, retrain=retrain, method="exact")
        assert all(
            bool((layer.weight()[zero] == 0).all())
            for layer, zero in zip(packed.layers.values(), zeros, strict=True)
        )


def wide_net() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 8)
    )


def wide_batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(24, 24, generator=generator) for _ in range(3)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"per": "tensor"},
        {"fit": "max"},
        {"order": "distance"},
        {"sequential": False},
        {"damp": 3.0, "fit": "max", "order": "magnitude"},
    ],
)
def test_the_budget_holds_for_the_file_whatever_the_options_of_ptq(options: Any) -> None:
    above = 0
    for budget in (Budget(bytes=3400), Budget(ratio=5.5)):
        given: dict[str, Any] = {"budget": budget, "method": "exact"}
        packed = compress(wide_net(), wide_batches(), **given, **options)
        assert packed.file_bytes <= (budget.bytes or packed.float_bytes / 5.5)
        plan = search(wide_net(), wide_batches(), **given).plan
        size = calibrate(wide_net(), plan, wide_batches(), **options).file_bytes
        above += size > (budget.bytes or packed.float_bytes / 5.5)
    assert not above or options  # what search fits is fitted for the defaults of calibrate


def test_with_retraining_the_budget_holds_for_the_calibration() -> None:
    seen: list[int] = []

    def calibrated(*args: Any) -> Calibrated:
        solved = calibration.calibrated(*args)
        seen.append(solved.file_bytes)
        return solved

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "calibrated", calibrated)
        budget = Budget(bytes=3400)
        compress(
            wide_net(), wide_batches(), budget=budget, retrain=nudge, method="exact", fit="max"
        )
    assert seen[-1] <= 3400


def test_a_file_that_is_too_large_is_fitted_and_no_plan_is_calibrated_twice() -> None:
    sizes: list[int] = []
    plans: list[tuple[Any, ...]] = []

    def calibrated(*args: Any) -> Calibrated:
        solved = calibration.calibrated(*args)
        sizes.append(solved.file_bytes)
        plans.append(tuple(args[1].items()))
        return solved

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "calibrated", calibrated)
        options: dict[str, Any] = {"method": "exact", "sequential": False}
        packed = compress(wide_net(), wide_batches(), budget=Budget(bytes=2600), **options)
    assert sizes[0] > 2600 >= packed.file_bytes
    assert len(plans) == len(set(plans)) > 1


def normed_net() -> nn.Module:
    torch.manual_seed(6)
    convolutions = [nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 8, 3)]
    model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(32, 4))
    model(torch.randn(64, 3, 6, 6))
    return model.eval()


def images() -> list[Tensor]:
    return [torch.randn(72, 3, 6, 6, generator=torch.Generator().manual_seed(3))]


def test_a_budget_of_the_file_counts_folded_norms_and_the_coding() -> None:
    """Folded norms leave more bytes to the codes. They are folded last: norms train as they are."""
    pytest.importorskip("constriction")
    options: dict[str, Any] = {"budget": Budget(bytes=1700), "options": (2, 4)}
    plain = compress(normed_net(), images(), floats="float32", **options)
    folded = compress(normed_net(), images(), coding="small", **options)
    assert max(plain.file_bytes, folded.file_bytes) <= 1700
    assert folded.coding == "small"
    assert torch.float16 in {value.dtype for _, value in folded.floats}
    assert folded.nominal_bits > plain.nominal_bits

    variances: list[Tensor] = []

    def retrain(network: nn.Module) -> None:
        variances.append(network.get_buffer("1.running_var").clone())

    pins = dict.fromkeys(("0", "3", "5"), 4)  # nothing is left to search for
    packed = compress(
        normed_net(), images(), budget=Budget(bytes=9000), pins=pins, retrain=retrain, rate=1.0
    )
    assert torch.equal(variances[0], normed_net().get_buffer("1.running_var"))
    assert torch.float16 in {value.dtype for _, value in packed.floats}


@pytest.mark.parametrize("budget", [7, "bytes=7", {"bytes": 7}])
def test_a_budget_that_is_no_budget(budget: Any) -> None:
    expected = r"budget: expected one such as Budget\(bytes=100_000\), got "
    with pytest.raises(BudgetError, match=expected):
        compress(net(), batches(), budget=budget)
    with pytest.raises(BudgetError, match=expected):
        calibrate(net(), {"*": 4}, batches(), budget=budget)
