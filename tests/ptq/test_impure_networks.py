"""Calibration of networks whose forward pass is not pure, beside twins that compute the same with
pure ones: both are quantized alike, bit for bit."""

import copy
import functools
import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from octavo import Incremental, OctavoError, Packed, Plan, calibrate
from octavo.network.module_state import same
from octavo.ptq import sequential

Forward = Callable[..., Tensor]


class Net(nn.Module):
    """Two layers, and a forward pass that is handed over."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
        self.forward_pass = forward
        self.register_buffer("state", torch.zeros(16))

    def forward(self, *args: Tensor) -> Tensor:
        return self.forward_pass(self, *args)


def net(forward: Forward) -> Net:
    torch.manual_seed(1)
    return Net(forward).eval()


def batches(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(size, 16, generator=generator) for size in sizes]


def keeping(self: Any, x: Tensor) -> Tensor:
    self.skip = x
    return self.b(self.a(x).relu() + self.skip)  # type: ignore[no-any-return]


def in_list(self: Any, x: Tensor) -> Tensor:
    self.cache = getattr(self, "cache", [])
    self.cache.append(x)
    hidden = self.a(x).relu()
    return self.b(hidden + self.cache.pop())  # type: ignore[no-any-return]


def in_buffer(self: Any, x: Tensor) -> Tensor:
    self.state.data.copy_(x[0])
    return self.b(self.a(x).relu() + self.state)  # type: ignore[no-any-return]


def in_place(self: Any, x: Tensor) -> Tensor:
    return self.b(self.a(x.sub_(1)).relu())  # type: ignore[no-any-return]


def dropped(self: Any, x: Tensor) -> Tensor:
    return self.b(F.dropout(self.a(x).relu()))  # type: ignore[no-any-return]


def masked(self: Any, x: Tensor, mask: Tensor) -> Tensor:
    return self.b(self.a(x).relu() * mask)  # type: ignore[no-any-return]


def mask_of(number: int, x: Tensor) -> Tensor:
    """The mask that dropout draws for the batch of this number."""
    with torch.random.fork_rng():
        torch.manual_seed(number)
        return F.dropout(torch.ones_like(x))


SKIPPED: Forward = lambda self, x: self.b(self.a(x).relu() + x)  # noqa: E731
TWINS: dict[str, tuple[Forward, Forward]] = {
    "attribute": (keeping, SKIPPED),
    "list": (in_list, SKIPPED),
    "buffer": (in_buffer, lambda self, x: self.b(self.a(x).relu() + x[0])),
    "inputs": (in_place, lambda self, x: self.b(self.a(x - 1).relu())),
    "dropout": (dropped, masked),
}


def inputs_of(twin: Forward, inputs: list[Tensor]) -> list[Any]:
    if twin is masked:
        return [(x, mask_of(number, x)) for number, x in enumerate(inputs)]
    return inputs


def state_in(packed: Packed) -> Tensor:
    (state,) = (value for names, value in packed.floats if names == ("state",))
    return state


def assert_same(packed: Packed, other: Packed) -> None:
    for name, layer in packed.layers.items():
        assert torch.equal(layer.codes, other.layers[name].codes), name
        assert torch.equal(layer.codebook.max_exponent, other.layers[name].codebook.max_exponent)


@pytest.mark.parametrize("sizes", [(64,), (32, 32, 32), (40, 9, 24)])
@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("sequential", [True, False])
def test_an_impure_network_is_quantized_as_its_pure_twin(
    name: str, sizes: tuple[int, ...], sequential: bool
) -> None:
    impure, pure = TWINS[name]
    if name == "dropout":  # its twin is given the masks of whole batches: none may be set aside
        sizes = tuple(size // 2 for size in sizes)
    model, inputs = net(impure), batches(*sizes)
    if name == "list":
        model(inputs[0])  # the list is there before the calibration, and is changed in place
    before = copy.deepcopy(model)
    kept, random_state = [x.clone() for x in inputs], torch.get_rng_state()
    plan = Plan.uniform(model, 3)
    packed = calibrate(model, plan, inputs, sequential=sequential)
    twin = calibrate(net(pure), plan, inputs_of(pure, inputs), sequential=sequential)
    assert_same(packed, twin)
    assert all(map(torch.equal, inputs, kept))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert same(vars(model), vars(before))
    assert torch.equal(state_in(packed), torch.zeros(16))


@pytest.mark.parametrize("name", ["attribute", "list", "buffer"])
def test_batches_that_mix_are_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above can fail: without worlds of their own, passes write over each other."""
    impure, pure = TWINS[name]
    inputs, plan = batches(20, 20, 20), Plan.uniform(net(pure), 3)
    twin = calibrate(net(pure), plan, inputs)
    monkeypatch.setattr(sequential._Pair, "worlds", lambda _: sequential._Worlds(None, None))
    with pytest.raises(AssertionError, match=r"^[ab]\b"):
        assert_same(calibrate(net(impure), plan, inputs), twin)


@pytest.mark.parametrize("name", TWINS)
def test_inq_refits_an_impure_network_as_its_pure_twin(name: str) -> None:
    impure, pure = TWINS[name]
    sizes = (20, 20) if name == "dropout" else (32, 32)  # of 40, none is set aside
    inputs = batches(*sizes)
    packed = [
        refitted(net(forward), given)
        for forward, given in ((impure, inputs), (pure, inputs_of(pure, inputs)))
    ]
    assert_same(*packed)
    assert all(map(torch.equal, inputs, batches(*sizes)))


def refitted(model: nn.Module, inputs: list[Any]) -> Packed:
    plan = Plan.uniform(model, 3)
    incremental = Incremental(model, plan, portions=(0.5, 1.0), inputs=inputs)
    for _ in incremental:
        model(*copy.deepcopy(inputs[0] if isinstance(inputs[0], tuple) else inputs[:1]))
    return incremental.finish()


# State that goes from batch to batch.


class Streaming(nn.Module):
    """Each chunk goes on from the state that the chunk before it left."""

    state: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.again, self.leave = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.register_buffer("state", torch.zeros(1, 8))

    def forward(self, x: Tensor) -> Tensor:
        self.state = (self.enter(x) + self.again(self.state)).tanh()
        return self.leave(self.state)  # type: ignore[no-any-return]


def test_a_stream_is_calibrated_chunk_after_chunk() -> None:
    """Each layer freezes from the inputs that it has in the quantized stream."""
    torch.manual_seed(3)
    model = Streaming().eval()
    chunks = [torch.randn(1, 8) for _ in range(40)]
    packed = calibrate(model, Plan.uniform(model, 3), chunks)
    assert not model.state.any()
    assert not state_in(packed).any()
    alone = calibrate(model, Plan.uniform(model, 3), chunks, sequential=False)
    assert off(model, packed, chunks) < off(model, alone, chunks)
    assert off(model, packed, chunks) < off(model, from_nothing(model, chunks), chunks)


def from_nothing(model: Streaming, chunks: list[Tensor]) -> Packed:
    """The calibration of the network that forgets its state before each chunk."""

    class Forgetting(Streaming):
        def forward(self, x: Tensor) -> Tensor:
            self.state = torch.zeros(1, 8)
            return super().forward(x)

    forgetting = Forgetting()
    forgetting.load_state_dict(model.state_dict())
    return calibrate(forgetting.eval(), Plan.uniform(model, 3), chunks)


@torch.no_grad()
def off(model: nn.Module, packed: Packed, chunks: list[Tensor]) -> float:
    full, quantized = copy.deepcopy(model), copy.deepcopy(model)
    packed.apply(quantized)
    return sum(float((full(x) - quantized(x)).square().sum()) for x in chunks)


# What cannot be repeated.


def test_a_network_that_never_repeats_is_solved_without_drift_and_the_user_is_told() -> None:
    """Its noise comes from a generator that octavo does not know of."""

    def noisy(self: Any, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu() + random.gauss(0, 1))  # type: ignore[no-any-return]

    model = net(noisy)
    inputs = batches(64, 64)
    with pytest.warns(UserWarning, match="two passes of one batch give different outputs") as told:
        packed = calibrate(model, Plan.uniform(model, 4), inputs)
    assert len(told) == 1
    for name, layer in packed.layers.items():
        weight = model.get_parameter(f"{name}.weight").detach()
        assert 0.95 < float(layer.weight().norm() / weight.norm()) < 1.05, name


def test_dropout_does_not_shrink_the_weights() -> None:
    model = net(lambda self, x: self.b(F.dropout(self.a(x))))
    packed = calibrate(model, Plan.uniform(model, 3), batches(64))
    for name, layer in packed.layers.items():
        weight = model.get_parameter(f"{name}.weight").detach()
        assert float(layer.weight().norm() / weight.norm()) > 0.95, name


# Copies.


def test_a_model_that_keeps_a_tensor_of_a_graph_has_a_copy() -> None:
    def keeps(self: Any, x: Tensor) -> Tensor:
        self.kept = [self.a(x).relu()]
        return self.b(self.kept[0])  # type: ignore[no-any-return]

    model, (x,) = net(keeps), batches(64)
    model(x)
    kept: Any = model.kept
    packed = calibrate(model, Plan.uniform(model, 3), [x])
    twin = net(lambda self, x: self.b(self.a(x).relu()))
    assert_same(packed, calibrate(twin, Plan.uniform(twin, 3), [x]))
    assert model.kept is kept
    assert_same(refitted(model, [x]), refitted(twin, [x]))


def patched_with(hold: Callable[[nn.Module], Callable[[Tensor], Tensor]]) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(16, 8)), nn.Linear(8, 4)).eval()
    model[0].forward = hold(model[0])
    return model


def by_function(module: nn.Module) -> Callable[[Tensor], Tensor]:
    forward = module.forward
    return lambda x: forward(x)


def by_weight(module: nn.Module) -> Callable[[Tensor], Tensor]:
    weight: Any = module[0].weight  # type: ignore[index]
    return lambda x: F.linear(x, weight)


@pytest.mark.parametrize("hold", [by_function, by_weight])
@pytest.mark.parametrize("sequential", [True, False])
def test_a_copy_that_calls_the_original_is_refused(hold: Any, sequential: bool) -> None:
    model = patched_with(hold)
    with pytest.raises(
        OctavoError,
        match=r"^0\.0\.weight: .* the copy of Sequential reads this tensor of the original: "
        "forward was patched on the instance 0",
    ):
        calibrate(model, Plan.uniform(model, 3), batches(64), sequential=sequential)


def test_a_patch_that_is_copied_with_the_module_is_fine() -> None:
    """A method that is bound to the module is bound to the copy in the copy."""
    model = patched_with(lambda module: functools.partial(type(module).forward, module))
    packed = calibrate(model, Plan.uniform(model, 3), batches(64))
    plain = nn.Sequential(nn.Sequential(nn.Linear(16, 8)), nn.Linear(8, 4)).eval()
    plain.load_state_dict(model.state_dict())
    assert_same(packed, calibrate(plain, Plan.uniform(plain, 3), batches(64)))


def test_a_copy_that_computes_something_else_is_refused() -> None:
    class Forgetful(Net):
        def __deepcopy__(self, memo: dict[int, Any]) -> "Forgetful":
            return Forgetful(self.forward_pass).eval()  # with new weights

    torch.manual_seed(0)
    model = Forgetful(SKIPPED).eval()
    with pytest.raises(OctavoError, match=r"^Forgetful: .*its copy returns other outputs"):
        calibrate(model, Plan.uniform(model, 3), batches(64))


def test_a_model_without_a_copy_is_refused() -> None:
    model: Any = net(SKIPPED)
    model.numbers = itertools.takewhile(bool, (n for n in range(3)))
    with pytest.raises(OctavoError, match=r"^Net: octavo works on a copy.*cannot make one"):
        calibrate(model, Plan.uniform(model, 3), batches(64))
