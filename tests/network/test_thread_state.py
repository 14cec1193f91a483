"""A stepped forward pass has the settings that torch keeps for the caller's thread."""

import ast
import contextlib
import copy
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo import Budget, Incremental, Plan, calibrate, quantize_activations, search
from octavo.formats.codebook import _pairs
from octavo.inq.cells import _relative_error
from octavo.network.divergence import Divergence
from octavo.network.forward import observing
from octavo.network.stepping import stepwise_forward, stopping
from octavo.network.thread_state import ThreadState, without_autocast
from octavo.pruning.surgery import Surgery
from octavo.ptq import layer_solver
from octavo.storage.packed import Packed


class Reading(nn.Module):
    """Notes the state of the thread that it is called in."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((threading.get_ident(), ThreadState.current(), torch.empty(1).device))
        return x


def seen_in_a_walk() -> tuple[ThreadState, torch.device]:
    model = Reading()
    with stopping(before=[], after=[]):
        list(stepwise_forward(model, torch.ones(1)))
    ((thread, state, device),) = model.seen
    assert thread != threading.get_ident()
    return state, device


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("enabled", [False, True])
def test_autocast_is_that_of_the_caller(enabled: bool, cache: bool) -> None:
    with torch.autocast("cpu", torch.float16, enabled, cache):
        here = ThreadState.current()
        assert seen_in_a_walk()[0] == here
    cpu = next(autocast for autocast in here.autocast if autocast.device_type == "cpu")
    assert cpu.enabled == enabled
    assert cpu.dtype is torch.float16
    assert here.autocast_cache == cache
    assert not next(a for a in seen_in_a_walk()[0].autocast if a.device_type == "cpu").enabled


def test_the_default_device_is_that_of_the_caller() -> None:
    assert seen_in_a_walk()[1].type == "cpu"
    with torch.device("meta"):
        assert seen_in_a_walk()[1].type == "meta"
    torch.set_default_device("meta")
    try:
        assert seen_in_a_walk()[1].type == "meta"
        with torch.device("cpu"):
            assert seen_in_a_walk()[1].type == "cpu"
    finally:
        torch.set_default_device(None)
    assert seen_in_a_walk()[1].type == "cpu"


def test_states_are_left_again() -> None:
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        inside = ThreadState.current()
    before = ThreadState.current()
    with inside.entered():
        assert ThreadState.current() == inside
        with without_autocast():
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")
    with pytest.raises(ArithmeticError), inside.entered(), without_autocast():
        raise ArithmeticError
    assert ThreadState.current() == before


# Calibration.


def mixed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4).bfloat16())


BATCHES = [torch.randn(20, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


@pytest.mark.parametrize("sequential", [True, False])
def test_a_model_that_needs_autocast_is_calibrated_in_it(sequential: bool) -> None:
    model = mixed()
    plan = Plan.uniform(model, 4)
    with pytest.raises(ValueError, match="does not take these calibration inputs"):
        calibrate(model, plan, BATCHES, sequential=sequential)
    with torch.autocast("cpu", torch.bfloat16):
        packed = calibrate(model, plan, BATCHES, sequential=sequential)
        twin = copy.deepcopy(model)
        packed.apply(twin)
        with torch.no_grad():
            full, own = model(BATCHES[0]).float(), twin(BATCHES[0]).float()
    assert float((full - own).square().sum() / full.square().sum()) < 0.1


def test_the_moments_are_those_of_the_autocast_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer is solved without autocast, from inputs that were computed with it and with the
    weights that the layers ahead have by then: autocast keeps old casts of weights otherwise."""
    seen: dict[str, Tensor] = {}
    solve = layer_solver.solve

    def noting(layer: Any, moments: Any, *args: Any, **kwargs: Any) -> Any:
        seen[layer.name] = moments.hessian.clone()
        return solve(layer, moments, *args, **kwargs)

    monkeypatch.setattr("octavo.ptq.freezer.solve", noting)
    model = mixed()
    twin = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        calibrate(model, Plan.uniform(model, 3), BATCHES).apply(twin)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        hidden = torch.cat([twin[0](batch) for batch in BATCHES])
    assert hidden.dtype is torch.bfloat16
    expected = hidden.float().T @ hidden.float()
    assert torch.allclose(seen["1"][0], expected, rtol=1e-4, atol=1e-4)


def test_weights_that_change_are_read_again_under_autocast() -> None:
    model = nn.Linear(2, 2)
    x = torch.ones(1, 2)
    with torch.autocast("cpu", torch.bfloat16), observing(model):
        before = model(x)
        model.weight.data.mul_(2)
        model.bias.data.mul_(2)
        assert torch.equal(model(x), 2 * before)
        assert not torch.is_autocast_cache_enabled()
    assert torch.is_autocast_cache_enabled()


@contextlib.contextmanager
def float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


DEFAULTS = [lambda: torch.device("meta"), float64_by_default]


@pytest.mark.parametrize("others", DEFAULTS)
def test_another_default_device_or_type_changes_no_result(others: Any) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    model.eval()
    inputs = [torch.randn(8, 1, 4, 4)]

    def results() -> tuple[object, ...]:
        quantized = copy.deepcopy(model)
        quantize_activations(quantized, inputs, 8)
        packed = calibrate(quantized, {"0": 3, "3": 3}, inputs, absorb=True)
        searched = search(model, inputs, budget=Budget(average_bits=3), trials=16)
        codes = [layer.codes.tolist() for layer in packed.layers.values()]
        return codes, [value.tolist() for _, value in packed.floats], dict(searched.plan)

    expected = results()
    with others():
        assert results() == expected


@pytest.mark.parametrize("others", DEFAULTS)
def test_another_default_device_or_type_changes_no_retraining(others: Any, tmp_path: Path) -> None:
    words, x = torch.arange(6), torch.randn(6, 5)

    def results() -> tuple[object, ...]:
        for cache in (_pairs, _relative_error):  # as in a new process
            cache.cache_clear()
        model = copy.deepcopy(net)
        surgery = Surgery(model, {"1": 0.5}, steps=20)
        for _ in range(20):
            surgery.step()
        surgery.finish()
        incremental = Incremental(
            model, {"0": 3, "1": 3}, portions=(0.5, 1.0), straight_through=0.5, rate=1.0
        )
        for _ in incremental:
            model(words).square().sum().backward()  # the gradient of the embedding is sparse
        incremental.finish().save(tmp_path / "x")
        packed = Packed.load(tmp_path / "x")
        priced = calibrate(net[1:], {"1": 4}, [x], rate=1.0)
        divergence = Divergence(net[1:], [x]).of_constant
        layers = [*packed.layers.values(), *priced.layers.values()]
        return [layer.codes.tolist() for layer in layers], divergence

    net = nn.Sequential(nn.Embedding(6, 5, sparse=True), nn.Linear(5, 3))
    expected = results()
    with others():
        assert results() == expected


ROOMS = ("formats", "network", "activations", "storage", "ptq", "pruning", "inq")  # not dnq
MAKERS = (
    "tensor as_tensor asarray scalar_tensor sparse_coo_tensor zeros ones full empty eye arange "
    "linspace rand randn randint randperm"
)


def new_tensors_without(keyword: str, makers: str, rooms: Iterable[str]) -> list[str]:
    """The places in these rooms where a tensor is made without a keyword argument."""
    names = {f"torch.{name}" for name in makers.split()}
    package = Path(octavo.__file__).parent
    return [
        f"{path.relative_to(package)}:{node.lineno}"
        for room in rooms
        for path in (package / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names
        if keyword not in {each.arg for each in node.keywords}
    ]


def test_every_new_tensor_says_on_which_device_it_is() -> None:
    """Without a device it follows the caller's default, but the model and the files do not."""
    assert not new_tensors_without("device", MAKERS, ROOMS)


def test_every_new_tensor_of_floats_says_its_type() -> None:
    """Without a type it follows the caller's default, ``torch.set_default_dtype``."""
    of_integers = ("arange", "randint", "randperm", "sparse_coo_tensor")
    makers = " ".join(maker for maker in MAKERS.split() if maker not in of_integers)
    assert not new_tensors_without("dtype", makers, (*ROOMS, "dnq"))
