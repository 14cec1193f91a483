"""INQ on each kind of layer: it freezes at the levels of its output channels, trains, and is plain
again."""

import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octavo.errors import PlanError
from octavo.inq.incremental import Incremental
from octavo.plan import Plan

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")  # oneDNN has none

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
