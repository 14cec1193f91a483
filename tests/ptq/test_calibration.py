"""PTQ of whole networks: better than rounding, repeatable, and the model is left as it was."""

import copy
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from octavo.errors import PlanError
from octavo.formats.width import Width
from octavo.inq.incremental import Incremental
from octavo.network.forward import call
from octavo.network.layers import find_layers
from octavo.plan import Plan
from octavo.progress import Event
from octavo.ptq.calibration import calibrate
from octavo.ptq.float_inputs import float_moments
from octavo.ptq.freezer import LayerResult
from octavo.ptq.layer_solver import solve
from octavo.ptq.settings import PtqSettings
from octavo.storage.packed import Packed

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections"),  # oneDNN has none
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, groups: int = 1) -> None:
        super().__init__()
        self.conv, self.norm = (
            nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.norm(self.conv(x)))


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.layer2, self.layer3 = Block(3, 8), Block(8, 8, groups=2), Block(8, 8)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(8 * 9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(x)
        x = x + self.layer3(self.layer2(x))
        return self.fc(self.drop(nn.functional.avg_pool2d(x, 2).flatten(1)))  # type: ignore[no-any-return]


class Up(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = (
            nn.Conv1d(2, 4, 3, stride=2),
            nn.ConvTranspose1d(4, 2, 3, stride=2, groups=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x).relu(), output_size=x.shape[2:])  # type: ignore[no-any-return]


class Reader(nn.Module):
    """Tokens, a recurrent layer, and an output layer that is tied to the embedding."""

    def __init__(self, kind: Any = nn.LSTM) -> None:
        super().__init__()
        self.emb, self.rnn, self.out = (
            nn.Embedding(9, 4),
            kind(4, 4, num_layers=2, batch_first=True),
            nn.Linear(4, 9),
        )
        self.out.weight = self.emb.weight

    def forward(self, tokens: Tensor, *, scale: float = 1.0) -> Tensor:
        return self.out(scale * self.rnn(self.emb(tokens))[0])  # type: ignore[no-any-return]


class Packing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.cell = nn.LSTM(3, 6, bidirectional=True, proj_size=2), nn.GRUCell(4, 5)

    def forward(self, *sequences: Tensor) -> Tensor:
        outputs, _ = self.rnn(pack_sequence(list(sequences), enforce_sorted=False))
        return self.cell(outputs.data)  # type: ignore[no-any-return]


class Translator(nn.Module):
    """Attention to itself and to others, with padding."""

    def __init__(self) -> None:
        super().__init__()
        settings: dict[str, Any] = {"dim_feedforward": 12, "batch_first": True}
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, **settings), 2)
        self.decoder, self.cross = (
            nn.TransformerDecoderLayer(8, 2, **settings),
            nn.MultiheadAttention(8, 2, kdim=8, vdim=3),
        )

    def forward(self, source: Tensor, target: Tensor, padding: Tensor | None = None) -> Tensor:
        memory = self.encoder(source, src_key_padding_mask=padding)
        y = self.decoder(target, memory)
        return self.cross(query=y, key=y, value=y[..., :3])[0]  # type: ignore[no-any-return]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.shared(self.shared(self.first(x).relu()).relu()).relu())  # type: ignore[no-any-return]


class Deciding(nn.Module):
    """Each batch takes one of two branches, of another number of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.plus, self.minus, self.more, self.last = (nn.Linear(5, 5) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.plus(x) if float(x.mean()) > 0 else self.more(self.minus(x).relu())
        return self.last(x)  # type: ignore[no-any-return]


def rows(count: int, *shape: int) -> Tensor:
    return torch.randn(count, *shape)


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], list[Any]]]] = {
    "convolutions": (ConvNet, lambda: [rows(8, 3, 6, 6) for _ in range(3)]),
    "transposed": (Up, lambda: [rows(4, 2, 9) for _ in range(2)]),
    "tied lstm": (
        Reader,
        lambda: [{"tokens": torch.randint(0, 9, (3, 5)), "scale": 2.0} for _ in range(3)],
    ),
    "tied gru": (lambda: Reader(nn.GRU), lambda: [torch.randint(0, 9, (3, n)) for n in (5, 2)]),
    "packed": (Packing, lambda: [(rows(2, 3), rows(5, 3), rows(3, 3)), [rows(4, 3)]]),
    "attention": (
        Translator,
        lambda: [
            (rows(3, 5, 8), rows(3, 4, 8), torch.arange(5).expand(3, 5) > 3),
            (rows(2, 3, 8), rows(2, 6, 8)),
        ],
    ),
    "called twice": (Twice, lambda: [rows(9, 5) for _ in range(2)]),
    "branches": (Deciding, lambda: [rows(6, 5) + sign for sign in (1, -1, -1, 1, -1)]),
    "single layer": (lambda: nn.Linear(6, 3), lambda: [rows(7, 6)]),
}


def make(kind: str, seed: int = 0) -> tuple[nn.Module, list[Any]]:
    """A model whose norms have something to do, in a mixture of modes, and its inputs."""
    torch.manual_seed(seed)
    model = KINDS[kind][0]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.running_mean, std=0.2)  # type: ignore[arg-type]
    for module in list(model.modules())[::3]:
        module.training = False
    next(model.parameters()).requires_grad_(False)
    return model, KINDS[kind][1]()


def outputs_of(model: nn.Module, batches: list[Any]) -> Tensor:
    """All outputs in evaluation mode."""
    with torch.no_grad():
        return torch.cat([call(model.eval(), batch).flatten() for batch in batches])


def snapshot(model: nn.Module) -> list[Any]:
    """Everything that must not change, comparable."""
    state = [
        (name, value.data_ptr(), value.dtype, value.double().flatten().tolist())
        for name, value in model.state_dict().items()
    ]
    modules = [
        (module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
        for module in model.modules()
    ]
    return [
        state,
        modules,
        [(p.requires_grad, p.grad) for p in model.parameters()],
        torch.backends.mha.get_fastpath_enabled(),
    ]


def content(packed: Packed) -> dict[str, Tensor]:
    weights = {name: layer.weight() for layer in packed.layers.values() for name in layer.names}
    return weights | {name: value for names, value in packed.floats for name in names}


def applied(packed: Packed, model: nn.Module) -> nn.Module:
    result = copy.deepcopy(model)
    packed.apply(result)
    return result


def off(packed: Packed, model: nn.Module, batches: list[Any]) -> float:
    """Squared error of the network's outputs."""
    return float(
        (outputs_of(applied(packed, model), batches) - outputs_of(copy.deepcopy(model), batches))
        .square()
        .sum()
    )


def results_of(events: list[Event]) -> list[LayerResult]:
    return [event.detail for event in events if isinstance(event.detail, LayerResult)]


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


# Every kind of network.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{}, {"sequential": False}])
def test_every_kind_of_network(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """All of it is quantized, reported once, saved exactly, the same again, and the model stays as
    it was."""
    model, batches = make(kind)
    before, random, seen = snapshot(model), torch.random.get_rng_state(), list[Event]()
    plan = Plan.uniform(model, 3)
    packed = calibrate(model, plan, (batch for batch in batches), progress=seen.append, **settings)
    assert snapshot(model) == before
    assert torch.equal(torch.random.get_rng_state(), random)
    assert list(packed.layers) == list(plan)
    assert dict(packed.plan) == dict(plan)
    count = len(plan)
    told = [(event.phase, event.done, event.total) for event in seen]
    assert told == [("calibrate", i + 1, count) for i in range(count)]
    results = results_of(seen)
    assert {result.name for result in results} == set(plan)
    assert [(r.done, r.layers, r.bits) for r in results] == [
        (i + 1, count, Width(3)) for i in range(count)
    ]
    assert all(0 <= result.compensated <= result.nearest * (1 + 1e-6) for result in results)
    packed.save(tmp_path / "net.octavo")
    again = calibrate(model, dict(plan), batches, **settings)
    for other in (Packed.load(tmp_path / "net.octavo"), again):
        assert list(content(other)) == list(content(packed))
        assert all(
            torch.equal(value, content(packed)[name]) for name, value in content(other).items()
        )
    quantized = applied(packed, model)
    assert all(
        torch.equal(value, content(packed)[name]) for name, value in quantized.state_dict().items()
    )
    assert bool(outputs_of(quantized, batches).isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_nearer_than_by_rounding_all_weights_at_once(kind: str) -> None:
    closed, rounding = 0.0, 0.0
    for seed in range(2):
        model, batches = make(kind, seed)
        closed += off(calibrate(model, Plan.uniform(model, 3), batches), model, batches)
        rounded = copy.deepcopy(model)
        incremental = Incremental(rounded, Plan.uniform(model, 3), portions=(1.0,))
        list(incremental)
        rounding += off(incremental.finish(), model, batches)
    assert closed < 0.9 * rounding


@pytest.mark.parametrize(
    "settings",
    [
        {"order": "distance"},
        {"order": "magnitude"},
        {"fit": "max", "per": "tensor"},
        {"damp": 0.0},
        {},
    ],
)
def test_settings_reach_every_layer(settings: dict[str, Any]) -> None:
    model, batches = make("convolutions")
    moments = float_moments(model, batches, find_layers(model)[0])
    packed = calibrate(model, Plan.uniform(model, 3), batches, sequential=False, **settings)
    for layer in find_layers(model)[0]:
        expected = solve(layer, moments[layer.name], 3, PtqSettings(**settings))
        assert torch.equal(packed.layers[layer.name].codes, expected.codes)
        assert torch.equal(
            packed.layers[layer.name].codebook.max_exponent, expected.codebook.max_exponent
        )


# In forward order.


def test_layers_that_see_the_quantized_ones_ahead_compensate_for_them() -> None:
    errors = [0.0, 0.0]
    for seed in range(3):
        model, batches = make("convolutions", seed)
        for i, sequential in enumerate((True, False)):
            packed = calibrate(model, Plan.uniform(model, 2), batches, sequential=sequential)
            errors[i] += off(packed, model, batches)
    assert errors[0] < 0.9 * errors[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sequential", [True, False])
def test_every_float_stays_as_it_is(kind: str, sequential: bool) -> None:
    model, batches = make(kind)
    packed = calibrate(model, Plan.uniform(model, 3), batches, sequential=sequential)
    assert packed.floats
    for names, value in packed.floats:
        assert all(torch.equal(value, model.state_dict()[name]) for name in names)


def test_a_branch_counts_the_batches_that_take_it() -> None:
    model, batches = make("branches")
    events: list[Event] = []
    packed = calibrate(model, Plan.uniform(model, 3), batches, progress=events.append)
    seen = {result.name: result for result in results_of(events)}
    for name, some in (("plus", batches[::3]), ("minus", [batches[i] for i in (1, 2, 4)])):
        x, module = torch.cat(some), model.get_submodule(name)
        lost = (module.weight.detach() - packed.layers[name].weight()) @ x.T  # type: ignore[operator]
        whole = module.weight.detach() @ x.T  # type: ignore[operator]
        assert seen[name].compensated == pytest.approx(float(lost.norm() / whole.norm()), rel=1e-3)


def test_full_precision_inputs_are_streamed() -> None:
    """Of six batches, no more than the one at work and the next are ever in memory."""
    model, batches = make("convolutions")
    alive: list[weakref.ref[Tensor]] = []

    def stream() -> Iterator[Tensor]:
        for _ in range(6):
            assert sum(one() is not None for one in alive) <= 1
            batch = batches[0].repeat(32, 1, 1, 1)[:64]  # fewer are gathered first: see deal
            alive.append(weakref.ref(batch))
            yield batch
            del batch

    calibrate(model, Plan.uniform(model, 3), stream(), sequential=False)
    assert len(alive) == 6


# Types and modes.


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_of_floats(dtype: torch.dtype) -> None:
    model, batches = make("convolutions")
    model, batches = model.to(dtype), [batch.to(dtype) for batch in batches]
    seen: list[Event] = []
    packed = calibrate(model, Plan.uniform(model, 3), batches, progress=seen.append)
    quantized = applied(packed, model)
    assert {value.dtype for value in quantized.state_dict().values()} == {dtype, torch.int64}
    assert off(packed, model, batches) < 0.5 * float(outputs_of(model, batches).square().sum())
    assert all(result.compensated < result.nearest for result in results_of(seen))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_whatever_gradients_are_on_outside(mode: Any) -> None:
    model, batches = make("convolutions")
    expected = content(calibrate(model, Plan.uniform(model, 3), batches))
    with mode():
        found = content(calibrate(model, Plan.uniform(model, 3), batches))
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert not any(value.requires_grad for value in found.values())


# Errors: the model stays as it was, and the message names the layer.


def refused(model: nn.Module, plan: Any, batches: Any, message: str, **settings: Any) -> None:
    before = snapshot(model)
    with pytest.raises(PlanError, match=message):
        calibrate(model, plan, batches, **settings)
    assert snapshot(model) == before


@pytest.mark.parametrize("sequential", [True, False])
def test_inputs_that_do_not_fit(sequential: bool) -> None:
    model, batches = make("convolutions")
    plan = Plan.uniform(model, 3)
    takes = ": the model does not take these calibration inputs: "
    wrongs: dict[str, Any] = {
        "layer1.conv": rows(2, 4, 6, 6),
        "fc": rows(2, 3, 8, 8),
        "ConvNet": {"y": 1},
    }
    for place, wrong in wrongs.items():
        refused(
            model, plan, [wrong], f"^{place}{takes}(Runtime|Type)Error: ", sequential=sequential
        )
        refused(model, plan, [*batches, wrong], f"^{place}{takes}", sequential=sequential)
    for value in (torch.nan, torch.inf):
        batches[1][0, 0, 0, 0] = value
        refused(
            model,
            plan,
            batches,
            "^layer1.conv: expected finite calibration inputs",
            sequential=sequential,
        )
        batches[1][0, 0, 0, 0] = 0


@pytest.mark.parametrize("sequential", [True, False])
def test_layers_that_no_input_reaches(sequential: bool) -> None:
    model, batches = make("branches")
    refused(
        model,
        Plan.uniform(model, 3),
        batches[:1],
        "^minus, more: no calibration input reaches these layers",
        sequential=sequential,
    )
    plan = {"plus": 3, "last": 3}
    assert dict(calibrate(model, plan, batches[:1], sequential=sequential).plan) == plan
    other, batches = make("convolutions")
    none = [batch[:0] for batch in batches]
    refused(
        other,
        Plan.uniform(other, 3),
        none,
        "^layer1.conv, layer2.conv, layer3.conv, fc: no calibration input reaches",
        sequential=sequential,
    )


def test_plans_inputs_and_settings_that_are_none() -> None:
    model, batches = make("convolutions")
    refused(model, Plan.uniform(model, 3), [], "inputs: expected at least one batch")
    refused(model, Plan.uniform(model, 3), iter(()), "inputs: expected at least one batch")
    refused(model, Plan.uniform(model, 3), [], "inputs: expected at least one batch", rate=0.01)
    refused(
        model,
        {"layer1.con": 3},
        batches,
        r"'layer1.con' matches no layer of .* \(the nearest is 'layer1.conv'\)",
    )
    refused(
        model,
        {"layer1.conv": 9},
        batches,
        "layer1.conv: expected 2 to 8, apot5 to apot8, fp4, fp6, fp8 or int8, got 9",
    )
    refused(model, {}, batches, "the plan is empty")
    refused(model, {"fc": 3}, batches, "order: expected one of", order="far")
    refused(model, {"fc": 3}, batches, "damp: expected a number", damp=-1)
    refused(model, {"fc": 3}, batches, "rate: expected a number", rate=-1)
    refused(model, {"fc": 3}, batches, "fc: expected fit", fit="best")


@pytest.mark.parametrize("kind", ["convolutions", "tied lstm"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ArithmeticError])
def test_what_progress_raises_is_not_the_inputs_fault(
    kind: str, error: type[BaseException]
) -> None:
    model, batches = make(kind)
    before = snapshot(model)

    def fail(event: Event) -> None:
        raise error(event.done)

    with pytest.raises(error, match=r"^1$"):
        calibrate(model, Plan.uniform(model, 3), batches, progress=fail)
    assert snapshot(model) == before


# Old spellings.


def test_observe_is_told_the_layer_results_and_warns() -> None:
    model, batches = make("single layer")
    seen: list[LayerResult] = []
    with pytest.warns(DeprecationWarning, match=r"calibrate\(observe=\) .* calibrate\(progress=\)"):
        calibrate(model, Plan.uniform(model, 3), batches, observe=seen.append)  # type: ignore[call-arg]
    assert [(result.name, result.done, result.layers) for result in seen] == [("weight", 1, 1)]


@pytest.mark.parametrize("correct", [False, True])
def test_correct_has_no_effect_and_warns(correct: bool) -> None:
    model, batches = make("convolutions")
    plan = Plan.uniform(model, 3)
    expected = content(calibrate(model, plan, batches))
    with pytest.warns(DeprecationWarning, match=r"calibrate\(correct=\) .* no effect"):
        found = content(calibrate(model, plan, batches, correct=correct))  # type: ignore[call-arg]
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_a_rate_takes_bytes_off_the_file_and_none_is_the_same_as_ever() -> None:
    model, batches = make("convolutions")
    plan = Plan.uniform(model, 4)
    plain = calibrate(model, plan, batches)
    none = content(calibrate(model, plan, batches, rate=0))
    assert all(torch.equal(value, none[name]) for name, value in content(plain).items())
    smaller = calibrate(model, plan, batches, rate=2.0)
    stored = [packed.stored_bits for packed in (plain, smaller)]
    assert stored[1] < 0.9 * stored[0]
    assert off(smaller, model, batches) < 3 * off(plain, model, batches)
