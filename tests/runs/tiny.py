"""A tiny task and recipes for it, and a progress callback that writes down what it sees."""

import copy
import hashlib
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from octavo.dnq.evaluator import Trial
from octavo.progress import Event
from octavo.ptq.freezer import LayerResult
from octavo.runs.recipe import Recipe, make_recipe
from octavo.runs.task import Batch
from octavo.runs.training import StepFigures, retrain

EPOCH = 4  # batches of an epoch
ROWS = 8  # rows of a batch
INPUTS = 5
CLASSES = 3


class Cut(BaseException):
    """What ends a process from outside; nothing catches it."""


class Tiny:
    """A small network with a norm; counts what is asked of it, and fails where it is told to."""

    made: ClassVar[list[dict[str, Any]]] = []
    losses = 0  # calls of loss since the test began
    fail_at: int | None = None  # the call of loss that raises
    spoil_at: int | None = None  # the call of loss that is NaN

    def __init__(self, width: int = 6, shift: float = 0.0) -> None:
        Tiny.made.append({"width": width, "shift": shift})
        self.width = width
        self.shift = shift

    @classmethod
    def reset(cls) -> None:
        cls.made = []
        cls.losses = 0
        cls.fail_at = None
        cls.spoil_at = None

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            first = nn.Linear(INPUTS, self.width)
            last = nn.Linear(self.width, CLASSES)
        with torch.no_grad():
            last.bias[0] += self.shift
        return nn.Sequential(first, nn.BatchNorm1d(self.width), nn.ReLU(), last).eval()

    def calibration(self) -> list[Tensor]:
        return [inputs for inputs, _ in examples(0)]

    def train_batches(self) -> list[tuple[Tensor, Tensor]]:
        batches = examples(1)
        return [
            (x + 0.1 * torch.randn(x.shape), y)
            for x, y in (batches[i] for i in torch.randperm(EPOCH))
        ]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        Tiny.losses += 1
        if Tiny.losses == Tiny.fail_at:
            raise Cut
        loss = F.cross_entropy(model(batch[0]), batch[1])
        return loss * torch.nan if Tiny.losses == Tiny.spoil_at else loss

    def score(self, model: nn.Module) -> float:
        training = model.training
        model.eval()
        with torch.no_grad():
            score = -sum(F.cross_entropy(model(x), y).item() for x, y in examples(2))
        model.train(training)
        return score


class Rounds(Tiny):
    """Its metric is a tensor, as many people's is."""

    def score(self, model: nn.Module) -> Any:
        return torch.tensor(super().score(model))


class Sparse(Tiny):
    """Its first layer has lost half of its weights."""

    def model(self) -> nn.Module:
        model: Any = super().model()
        model[0].weight.data.view(-1)[::2] = 0
        return model  # type: ignore[no-any-return]


class Normed(Tiny):
    """Its norm does something."""

    def model(self) -> nn.Module:
        model: Any = super().model()
        model[1].running_mean += 0.5
        return model  # type: ignore[no-any-return]


class Recurrent(Tiny):
    """Its first layer is recurrent."""

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return nn.Sequential(nn.RNNCell(INPUTS, 6), nn.Linear(6, CLASSES)).eval()


class Dated(Tiny):
    """It takes options that JSON does not have."""

    def __init__(self, day: object, pair: object) -> None:
        super().__init__()


def examples(seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(EPOCH, ROWS, INPUTS, generator=generator)
    return [(x, x[:, :CLASSES].argmax(1)) for x in inputs]


class Watcher:
    """A progress callback that writes down what it sees."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.stages: list[str] = []
        self.steps: list[Event] = []
        self.layers: list[LayerResult] = []
        self.searches: list[int] = []
        self.trials: list[Trial] = []
        self.beliefs: list[Any] = []

    def __call__(self, event: Event) -> None:
        if event.phase == "note":
            self.notes.append(event.message)
        elif isinstance(event.detail, LayerResult):
            self.layers.append(event.detail)
        elif isinstance(event.detail, StepFigures):
            self.steps.append(event)
        elif isinstance(event.detail, Trial):
            self.trials.append(event.detail)
        elif event.phase == "search":
            self.searches.append(event.total)
        elif event.phase == "policy":
            self.beliefs.append(event.detail)
        elif event.phase == "retrain":
            assert event.done == 0
            self.stages.append(event.message)
        else:
            assert event.message


def recipe(**changes: Any) -> Recipe:
    content: dict[str, Any] = {
        "task": f"{__name__}:Tiny",
        "bits": 3,
        "start": "float",
        "portions": [0.5, 0.8, 1.0],
        "epochs": [1.5, 1, 0.5],
        "retraining": {"learning_rate": 0.05, "labels": 0.5},
    }
    return make_recipe(content | changes, "test")


def searching(by: str = "random", budget: float = 3, **changes: Any) -> Recipe:
    """A recipe that searches for its bits."""
    wanted = {"budget": {"average_bits": budget}, "method": by, "trials": 12}
    return recipe(**{"bits": None, "search": wanted, "control": False} | changes)


def files(folder: Path) -> dict[str, str]:
    """The files below a folder, and a digest of each."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def packed_bytes(folder: Path) -> bytes:
    return (folder / "packed.safetensors").read_bytes()


def warm_up_by_hand(model: nn.Module, epochs: float, settings: Recipe) -> None:
    """Retrain in full precision, as a run's warm-up does."""
    teacher = Tiny().model().requires_grad_(False)
    torch.manual_seed(zlib.crc32(f"{settings.seed} -1".encode()))
    retrain(model, Tiny(), epochs, settings.retraining, teacher=teacher)


def stages_by_hand(stages: Iterable[object], model: nn.Module, settings: Recipe) -> None:
    """Retrain after each stage, as a run does: the same seeds, the float network teaches."""
    teacher = Tiny().model().requires_grad_(False)
    epochs = [epochs for _, epochs in settings.schedule]
    for index, _ in enumerate(stages):
        torch.manual_seed(zlib.crc32(f"{settings.seed} {index}".encode()))
        retrain(model, Tiny(), epochs[index], settings.retraining, teacher=teacher)


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    """A result without what differs between two runs of the same recipe."""
    result = copy.deepcopy(result)
    result.pop("checksum", None)  # the seconds count in it
    for timed in (result, *result["stages"]):
        del timed["seconds"]
    return result
