"""Networks that are no classifiers of images: calibration, INQ, searching, retraining and the file
work for each of them."""

import copy
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from octavo import Budget, Incremental, Packed, Plan, calibrate, inspect, search
from octavo.network.forward import Inputs, call
from octavo.network.nested import named_tensors
from octavo.runs.retraining import Retraining
from octavo.runs.training import retrain

pytestmark = pytest.mark.filterwarnings(
    "ignore:The PyTorch API of nested tensors"
)  # torch's own, in its TransformerEncoder

WORDS, WIDTH, TAGS = 12, 8, 5


class Tagger(nn.Module):
    """A tag for each step of a sequence; with a packed sequence given, packed tags."""

    def __init__(self, kind: Any, **settings: Any) -> None:
        super().__init__()
        self.rnn = kind(WIDTH, WIDTH, batch_first=True, **settings)
        self.tags = nn.Linear(WIDTH * (1 + bool(settings)), TAGS)

    def forward(self, x: Any) -> Any:
        hidden, state = self.rnn(x)
        if isinstance(hidden, PackedSequence):
            return hidden._replace(data=self.tags(hidden.data))
        return self.tags(hidden), state


class Encoder(nn.Module):
    """A classifier of padded sequences, called by name."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True)
        self.words, self.encoder = nn.Embedding(WORDS, WIDTH), nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(WIDTH, TAGS)

    def forward(self, words: Tensor, padding_mask: Tensor) -> dict[str, Tensor]:
        hidden = self.encoder(self.words(words), src_key_padding_mask=padding_mask)
        kept = hidden.masked_fill(padding_mask.unsqueeze(2), 0)
        return {"logits": self.head(kept.sum(1) / (~padding_mask).sum(1, keepdim=True))}


class Output(OrderedDict[str, Any]):
    """As transformers have it: an ordered dict whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Causal(nn.Module):
    """A language model whose output projection is its embedding, with a cache among its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(10, WIDTH)
        self.norm, self.attention = (
            nn.LayerNorm(WIDTH),
            nn.MultiheadAttention(WIDTH, 2, batch_first=True),
        )
        self.feed = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH)
        )
        self.logits = nn.Linear(WIDTH, WORDS, bias=False)
        self.logits.weight = self.words.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Output:
        length = input_ids.shape[1]
        x = self.words(input_ids) + self.places(torch.arange(length))
        causal = torch.ones(length, length, dtype=torch.bool).triu(1)
        given = self.norm(x)
        x = x + self.attention(given, given, given, attn_mask=causal, need_weights=False)[0]
        return Output(logits=self.logits(x + self.feed(x)), past=[(given,)])


class Detector(nn.Module):
    """Boxes and scores for each of a few anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU6()
        )
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.boxes, self.scores = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 3, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.depthwise(self.stem(images))
        boxes, scores = (head(features).flatten(2).mT for head in (self.boxes, self.scores))
        return {"boxes": 100 * boxes.exp(), "scores": scores.sigmoid(), "labels": scores.argmax(2)}


class Pyramid(nn.Module):
    """Feature maps of several sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList([nn.Conv2d(3, 4, 3, stride=2), nn.ConvTranspose2d(4, 6, 2)])

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [images]
        for level in self.levels:
            maps.append(level(maps[-1]).relu())
        return maps[1:]


@dataclass
class Embedded:
    embedding: Tensor
    words: int


class Embedder(nn.Module):
    """An embedding of unit length, in a dataclass; its first argument is a bag of words."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.last = nn.EmbeddingBag(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, words: Tensor, offsets: Tensor) -> Embedded:
        return Embedded(F.normalize(self.last(self.bag(words, offsets)), dim=1), len(words))


def words(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(WORDS, shape, generator=torch.Generator().manual_seed(seed))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def padded(seed: int) -> dict[str, Tensor]:
    mask = torch.arange(6) >= torch.tensor([[6], [3], [5], [2]])
    return {"words": words(4, 6, seed=seed).masked_fill(mask, 0), "padding_mask": mask}


def told(seed: int) -> dict[str, Tensor]:
    return {
        "input_ids": words(4, 10, seed=seed),
        "attention_mask": (torch.arange(10) < torch.tensor([[10], [7], [10], [4]])).long(),
    }


def sequences(seed: int) -> PackedSequence:
    return pack_sequence(
        [normal(length, WIDTH, seed=seed + length) for length in (3, 6, 1)], enforce_sorted=False
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Inputs]]] = {
    "lstm": (
        lambda: Tagger(nn.LSTM, num_layers=2, bidirectional=True),
        lambda seed: normal(3, 5, WIDTH, seed=seed),
    ),
    "lstm, packed": (lambda: Tagger(nn.LSTM, num_layers=2, bidirectional=True), sequences),
    "gru": (lambda: Tagger(nn.GRU), lambda seed: (normal(3, 5, WIDTH, seed=seed),)),
    "gru, packed": (lambda: Tagger(nn.GRU), sequences),
    "encoder": (Encoder, padded),
    "causal": (Causal, told),
    "detector": (Detector, lambda seed: normal(4, 3, 12, 12, seed=seed)),
    "pyramid": (Pyramid, lambda seed: normal(4, 3, 9, 9, seed=seed)),
    "embedder": (Embedder, lambda seed: (words(20, seed=seed), torch.tensor([0, 3, 4, 11]))),
}


@pytest.fixture(params=NETWORKS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, list[Inputs]]:
    torch.manual_seed(0)
    make, inputs = NETWORKS[request.param]
    return make().eval(), [inputs(seed) for seed in range(0, 30, 10)]


def tensors(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    with torch.no_grad():
        return dict(named_tensors(call(model, inputs)))


def check_quantized(model: nn.Module, packed: Packed, batch: Inputs, path: Path) -> nn.Module:
    """Loaded from its file, it gives what it gave before, bit for bit, and every weight is zero or
    a power of two of its plan."""
    packed.save(path)
    first, second = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    packed.apply(first)
    loaded = Packed.load(path)
    loaded.apply(second)
    assert loaded.plan == packed.plan
    here, there = tensors(first, batch), tensors(second, batch)
    assert here
    assert all(torch.equal(tensor, there[name]) for name, tensor in here.items())
    for row in inspect(first).rows:
        weight = next(
            p for name, p in first.named_parameters() if name in (row.name, f"{row.name}.weight")
        )
        exponents = weight.detach().abs().log2()[weight != 0]
        assert torch.equal(exponents, exponents.round())
        assert torch.unique(weight.detach()[0]).numel() <= 2 ** (packed.plan[row.name].bits - 1) + 1
    return first


def lost(model: nn.Module, other: nn.Module, batches: list[Inputs]) -> float:
    """Relative squared error over all floating-point outputs."""
    error = whole = 0.0
    for batch in batches:
        full, own = tensors(model, batch), tensors(other, batch)
        for name, tensor in full.items():
            if tensor.is_floating_point():
                error += float((tensor - own[name]).square().sum() / tensor.square().sum())
                whole += 1
    return error / whole


def test_inspect_counts_every_layer_that_is_reached(case: tuple[nn.Module, list[Inputs]]) -> None:
    model, batches = case
    found = inspect(model, batches[0])
    assert len(found.rows) >= 2
    for row in found.rows:
        assert row.macs is not None
        assert (row.macs == 0) == (row.kind in ("embedding", "embeddingbag") and not row.tied), row


def test_calibration_beats_the_nearest_levels_and_survives_its_file(
    case: tuple[nn.Module, list[Inputs]], tmp_path: Path
) -> None:
    model, batches = case
    before = copy.deepcopy(model.state_dict())
    plan = Plan.uniform(model, 4)
    quantized = check_quantized(
        model, calibrate(model, plan, batches), batches[0], tmp_path / "packed.safetensors"
    )
    nearest = copy.deepcopy(model)
    incremental = Incremental(nearest, plan, portions=(1.0,))
    next(iter(incremental))
    incremental.finish()
    assert lost(model, quantized, batches) < lost(model, nearest, batches)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def unlabelled(batches: list[Inputs]) -> Any:
    """A task of inputs alone."""
    return SimpleNamespace(train_batches=lambda: [(batch, None) for batch in batches])


def test_inq_with_the_default_loss(case: tuple[nn.Module, list[Inputs]], tmp_path: Path) -> None:
    """Retraining towards the full-precision outputs, whatever their form, brings the network nearer
    to them."""
    model, batches = case
    losses, settings = list[float](), Retraining(learning_rate=1e-3)
    student = copy.deepcopy(model)
    incremental = Incremental(student, Plan.uniform(model, 3), portions=(0.5, 0.75, 1.0))
    for stage in incremental:
        if not stage.last:
            losses += [
                retrain(student, unlabelled(batches), 1, settings, teacher=model) for _ in range(8)
            ]
    check_quantized(model, incremental.finish(), batches[0], tmp_path / "packed.safetensors")
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert losses[7] < losses[0]


def test_the_free_weights_are_refitted(
    case: tuple[nn.Module, list[Inputs]], tmp_path: Path
) -> None:
    model, batches = case
    incremental = Incremental(
        copy.deepcopy(model), Plan.uniform(model, 4), portions=(0.5, 1.0), inputs=batches
    )
    for _ in incremental:
        pass
    check_quantized(model, incremental.finish(), batches[0], tmp_path / "packed.safetensors")


@pytest.mark.usefixtures("brief_practice")
def test_a_search_with_the_default_objective(case: tuple[nn.Module, list[Inputs]]) -> None:
    """The plan is within its budget, and never worse than uniform bits."""
    model, batches = case
    trials = 2 * len(inspect(model).rows) + 8  # each layer alone, then plans
    found = search(model, batches, budget=Budget(average_bits=3.5), trials=trials, options=(3, 4))
    assert found.plan.cost().average_bits <= 3.5
    assert found.uniform_objective <= found.objective < 0


@pytest.mark.usefixtures("brief_practice")
def test_perplexity_as_the_objective() -> None:
    """A language model has an objective of its own; tied weights have one entry in the plan."""
    torch.manual_seed(0)
    model, text = Causal().eval(), words(8, 10, seed=3)

    @torch.no_grad()
    def perplexity(candidate: nn.Module) -> float:
        logits = candidate(text).logits[:, :-1]
        return -math.exp(F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten()))

    budget = Budget(average_bits=3)
    found = search(model, [text], budget=budget, options=(2, 4), trials=16, objective=perplexity)
    assert "words" in found.plan
    assert "logits" not in found.plan
    quantized = copy.deepcopy(model)
    calibrate(model, found.plan, [text]).apply(quantized)
    assert quantized.logits.weight is quantized.words.weight
    assert found.objective >= found.uniform_objective
