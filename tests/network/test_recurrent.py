"""The inputs that the weights of recurrent modules meet, against the textbook's equations in plain
loops over sequences and steps."""

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)

from octavo.network.layer_inputs import layer_inputs
from octavo.network.layers import find_layers
from octavo.network.moments import Moments
from octavo.network.recurrent import gate_partner, recurrent_inputs

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")  # oneDNN has none

Met = dict[str, list[Tensor]]  # attribute to the vectors that this weight was multiplied with
KINDS: dict[str, Any] = {
    "rnn": nn.RNN,
    "relu": lambda *sizes, **settings: nn.RNN(*sizes, nonlinearity="relu", **settings),
    "lstm": nn.LSTM,
    "projected lstm": lambda *sizes, **settings: nn.LSTM(*sizes, proj_size=2, **settings),
    "gru": nn.GRU,
}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"num_layers": 3, "bidirectional": True, "batch_first": True},
    {"num_layers": 2, "bidirectional": True, "bias": False},
]


def step(
    module: Any, place: str, x: Tensor, h: Tensor, c: Tensor, met: Met
) -> tuple[Tensor, Tensor]:
    """The next state and cell of one level and direction: the equations in the documentation of
    torch.nn."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    get: dict[str, Any] = {name: getattr(module, f"{name}_{place}", None) for name in names}
    met[f"weight_ih_{place}"].append(x)
    met[f"weight_hh_{place}"].append(h)
    zero = torch.zeros(len(get["weight_ih"]))
    own = get["weight_ih"] @ x + (zero if get["bias_ih"] is None else get["bias_ih"])
    past = get["weight_hh"] @ h + (zero if get["bias_hh"] is None else get["bias_hh"])
    if isinstance(module, nn.LSTM):
        i, f, g, o = (own + past).chunk(4)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        if get["weight_hr"] is not None:
            met[f"weight_hr_{place}"].append(h)
            h = get["weight_hr"] @ h
    elif isinstance(module, nn.GRU):
        (r1, z1, n1), (r2, z2, n2) = own.chunk(3), past.chunk(3)
        r, z = torch.sigmoid(r1 + r2), torch.sigmoid(z1 + z2)
        h = (1 - z) * torch.tanh(n1 + r * n2) + z * h
    else:
        h = torch.relu(own + past) if module.nonlinearity == "relu" else torch.tanh(own + past)
    return h, c


def run(module: Any, sequence: Tensor, states: Tensor, cells: Tensor, met: Met) -> Tensor:
    """The outputs for one sequence (steps, features); states and cells: (levels * directions,
    features)."""
    index, steps = 0, list(sequence)
    for level in range(module.num_layers):
        sides = []
        for place in [f"l{level}", f"l{level}_reverse"][: 1 + module.bidirectional]:
            h, c, outputs = states[index], cells[index], []
            for x in reversed(steps) if place.endswith("reverse") else steps:
                h, c = step(module, place, x, h, c, met)
                outputs.append(h)
            sides.append(outputs[::-1] if place.endswith("reverse") else outputs)
            index += 1
        steps = [torch.cat(both) for both in zip(*sides, strict=True)]
    return torch.stack(steps)


def textbook(module: Any, sequences: list[Tensor], state: Any = None) -> tuple[list[Tensor], Met]:
    """The outputs, and what each weight met. ``state`` as the module takes it with a batch."""
    count = module.num_layers * (1 + module.bidirectional)
    zeros = torch.zeros(count, len(sequences), module.hidden_size)
    hidden = state[0] if isinstance(state, tuple) else state
    hidden = zeros[..., : module.proj_size or module.hidden_size] if hidden is None else hidden
    cells = state[1] if isinstance(state, tuple) else zeros
    met: Met = defaultdict(list)
    with torch.no_grad():
        outputs = [
            run(module, one, hidden[:, i], cells[:, i], met) for i, one in enumerate(sequences)
        ]
    return outputs, met


def check(module: nn.Module, met: Met, *args: Any, **kwargs: Any) -> None:
    """Each weight of the module met what the textbook says, in whatever order."""
    layers = find_layers(module)[0]
    assert {layer.attribute for layer in layers} == set(met)
    for layer in layers:
        expected = torch.stack(met[layer.attribute])
        moments = Moments.of(layer)
        total = torch.zeros(expected.shape[1])
        with torch.no_grad():
            for problem, columns in layer_inputs(layer, module, args, kwargs):
                moments.add(problem, columns)
                total += columns.sum((0, 2))
        assert moments.seen == len(expected), layer.name
        assert torch.allclose(total, expected.sum(0), atol=1e-4), layer.name
        assert torch.allclose(moments.hessian[0], expected.T @ expected, rtol=1e-4, atol=1e-4), (
            layer.name
        )


def make(kind: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    module = KINDS[kind](3, 4, **settings)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    return module


def first_state(module: Any, batch: tuple[int, ...]) -> Any:
    count = module.num_layers * (1 + module.bidirectional)
    hidden = torch.randn(count, *batch, getattr(module, "proj_size", 0) or module.hidden_size)
    return (
        (hidden, torch.randn(count, *batch, module.hidden_size))
        if isinstance(module, nn.LSTM)
        else hidden
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("given_state", [False, True])
def test_a_batch_of_sequences(kind: str, settings: dict[str, Any], given_state: bool) -> None:
    module = make(kind, **settings)
    x = torch.randn(2, 4, 3) if module.batch_first else torch.randn(4, 2, 3)
    state = first_state(module, (2,)) if given_state else None
    sequences = list(x) if module.batch_first else list(x.unbind(1))
    outputs, met = textbook(module, sequences, state)
    whole = module(x, state)[0].detach()
    for i, output in enumerate(outputs):
        assert torch.allclose(whole[i] if module.batch_first else whole[:, i], output, atol=1e-5)
    if given_state:
        check(module, met, input=x, hx=state)
    else:
        check(module, met, x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given_state", [False, True])
def test_one_sequence_without_a_batch(kind: str, given_state: bool) -> None:
    module = make(kind, num_layers=2, bidirectional=True, batch_first=True)
    x, state = torch.randn(5, 3), first_state(module, ()) if given_state else None
    batched = tuple(part.unsqueeze(1) for part in state) if isinstance(state, tuple) else state
    batched = batched.unsqueeze(1) if isinstance(batched, Tensor) else batched
    (output,), met = textbook(module, [x], batched)
    assert torch.allclose(module(x, state)[0].detach(), output, atol=1e-5)
    check(module, met, x, state)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("given_state", [False, True])
def test_packed_sequences_of_any_order(
    kind: str, settings: dict[str, Any], given_state: bool
) -> None:
    """Padding is never met, and each sequence starts from its own state, backwards at its own
    end."""
    module, lengths = make(kind, **settings), [2, 4, 3, 1]
    sequences = [torch.randn(length, 3) for length in lengths]
    packed = pack_sequence(sequences, enforce_sorted=False)
    state = first_state(module, (len(lengths),)) if given_state else None
    outputs, met = textbook(module, sequences, state)
    whole, _ = pad_packed_sequence(module(packed, state)[0])
    for i, output in enumerate(outputs):
        assert torch.allclose(whole[: lengths[i], i].detach(), output, atol=1e-5)
    check(module, met, packed, state)


def test_packed_sequences_that_were_sorted_beforehand() -> None:
    module = make("lstm", bidirectional=True, num_layers=2)
    x = torch.randn(2, 5, 3)
    packed = pack_padded_sequence(x, torch.tensor([5, 2]), batch_first=True)
    assert packed.sorted_indices is None
    check(module, textbook(module, [x[0], x[1, :2]])[1], packed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_of_floats(dtype: torch.dtype) -> None:
    module = make("gru", num_layers=2).to(dtype)
    x = torch.randn(4, 2, 3).to(dtype)
    for layer in find_layers(module)[0]:
        for _, columns in layer_inputs(layer, module, (x,), {}):
            assert columns.dtype == torch.float32
            assert columns.shape == (1, layer.weight.shape[1], 8)


@pytest.mark.parametrize("kind", ["projected lstm", "gru"])
def test_looking_leaves_the_module_as_it_is(kind: str) -> None:
    module = make(kind, num_layers=2, bidirectional=True)
    x: PackedSequence = pack_sequence([torch.randn(2, 3), torch.randn(4, 3)], enforce_sorted=False)
    before, state = (
        module(x)[0].data,
        {name: value.clone() for name, value in module.state_dict().items()},
    )
    for layer in find_layers(module)[0]:
        recurrent_inputs(module, layer.attribute, x, None)
    assert (module.num_layers, len(module._flat_weights)) == (2, len(list(module.parameters())))
    assert all(
        weight is parameter
        for weight, parameter in zip(module._flat_weights, module.parameters(), strict=True)
    )
    assert torch.equal(module(x)[0].data, before)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_weights_that_have_changed_since_the_last_call_are_the_ones_that_count() -> None:
    """Calibration freezes a level's weights before it looks at the next level."""
    module, x = make("lstm", num_layers=2), torch.randn(5, 2, 3)
    module(x)
    with torch.no_grad():
        module.weight_ih_l0.mul_(-0.5)
    check(module, textbook(module, list(x.unbind(1)))[1], x)


@pytest.mark.parametrize(
    ("module", "attribute", "partner"),
    [
        (nn.LSTM(2, 3), "weight_hh_l0", "weight_ih_l0"),
        (nn.RNN(2, 3, bidirectional=True), "weight_hh_l0_reverse", "weight_ih_l0_reverse"),
        (nn.LSTM(2, 3), "weight_ih_l0", None),
        (nn.LSTM(2, 3, proj_size=2), "weight_hr_l0", None),
        (nn.GRU(2, 3), "weight_hh_l0", None),
    ],
)
def test_the_weight_whose_products_are_added_in_each_gate(
    module: Any, attribute: str, partner: str | None
) -> None:
    assert gate_partner(module, attribute) == partner
