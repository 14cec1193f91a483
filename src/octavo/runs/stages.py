"""The stages of a run: the network that is quantized, and its control, retrained portion by
portion; resumable.
"""

import hashlib
import json
import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from octavo._io import write_atomically
from octavo._seeds import seed_of
from octavo.activations.quantizer import input_formats
from octavo.dnq.evaluator import Trial
from octavo.errors import FormatError, RecipeError, TrainingError, brief
from octavo.inq.incremental import Incremental
from octavo.pruning.surgery import Surgery
from octavo.ptq.calibration import LayerResult
from octavo.runs.folder import Json, read_json, write_json
from octavo.runs.recipe import Recipe
from octavo.runs.task import Task, load_task, model_of
from octavo.runs.training import Progress, retrain, step_count

__all__ = ["Job", "Observer", "Track", "control_score", "prune", "train", "warm_up"]


class Observer(Protocol):
    """Who watches a run."""

    def note(self, text: str) -> None:
        """Something was done."""

    def stage(self, name: str, index: int, stages: int) -> None:
        """A stage of retraining begins."""

    def step(self, progress: Progress) -> None:
        """A step of it was made."""

    def layer(self, error: LayerResult) -> None:
        """A layer was quantized in closed form."""

    def searching(self, trials: int) -> None:
        """A search for bits begins, of at most so many trials."""

    def trial(self, trial: Trial) -> None:
        """A plan was scored."""


@dataclass(frozen=True)
class Job:
    """What a run is made of."""

    recipe: Recipe
    task: Task
    folder: Path
    digest: str  # of the task's float network
    observer: Observer


@dataclass
class Track:
    """One network on its way through the stages: the one that is quantized, or the control, which
    is not.
    """

    name: str
    model: nn.Module
    incremental: Incremental | None
    path: Path
    digest: str  # of the task's float network
    schedule: Sequence[
        tuple[float, float]
    ]  # of each stage: the portion that is frozen, and the epochs
    log: list[Json] = field(default_factory=list)
    earlier: float = 0.0  # seconds that its stages took before this process
    surgery: Surgery | None = None  # what prunes it on the way
    rate: float | None = None  # the learning rate, where it is not the recipe's
    first: int = 0  # its first stage's number, of which the seed of what it draws is made

    def resume(self) -> None:
        """Take up where the last whole stage was saved."""
        if not self.path.exists():
            return
        try:
            saved = torch.load(self.path, weights_only=True)
            if saved["digest"] != self.digest:
                raise RecipeError("the task's weights have changed since")
            (self.incremental or self.surgery or self.model).load_state_dict(saved["state"])
            self.log = saved["log"]
            self.earlier = sum(entry["seconds"] for entry in self.log)
        except (
            RuntimeError,
            EOFError,
            pickle.UnpicklingError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:
            raise FormatError(
                f"{self.path}: expected the last whole stage of this task's network, got a file that is damaged or of another "
                f"network ({brief(error)}); delete it to start over"
            ) from error

    def save(self) -> None:
        """Keep the stage that has just ended."""
        state = (self.incremental or self.surgery or self.model).state_dict()
        whole = {"state": state, "log": self.log, "digest": self.digest}
        write_atomically(self.path, lambda file: torch.save(whole, file))


def warm_up(model: nn.Module, job: Job) -> list[Json]:
    """Retrain ``model`` before its first weight freezes; recipes that differ in bits share it. What
    it took.
    """
    epochs = job.recipe.warmup
    if not epochs:
        return []
    rounded = (
        job.recipe.model_dump(mode="json", include={"activations"}) if input_formats(model) else {}
    )
    place = _shared_folder("warmup", job.folder, _shared(job) | {"epochs": [epochs]} | rounded)
    track = Track(
        "warm-up", model, None, place / "warmup.pt", job.digest, [(0.0, epochs)], first=-1
    )
    train(track, job)
    return track.log


def prune(model: nn.Module, job: Job) -> list[Json]:
    """Prune ``model`` by dynamic network surgery, if the recipe says so: its zeros are what INQ
    keeps. What it took.
    """
    wanted = job.recipe.prune
    if wanted is None:
        return []
    surgery = Surgery(
        model,
        wanted.sparsity,
        steps=max(1, step_count(job.task, wanted.epochs)),
        seed=job.recipe.seed,
    )
    train(track := _pruning("surgery", model, job, job.folder, surgery), job)
    surgery.finish()
    return track.log


def _pruning(name: str, model: nn.Module, job: Job, folder: Path, surgery: Surgery | None) -> Track:
    """The track of a network that is pruned, or of its control, which is not but trains alike."""
    wanted = job.recipe.prune
    schedule = [(0.0, wanted.epochs)] if wanted else []
    rate = wanted.learning_rate if wanted else None
    return Track(
        name,
        model,
        None,
        folder / f"{name}.pt",
        job.digest,
        schedule,
        surgery=surgery,
        rate=rate,
        first=-2,
    )


def control_score(job: Job) -> float:
    """Score of the full-precision network trained just as long and in the same way; recipes that
    differ in bits share it.
    """
    schedule, wanted = job.recipe.schedule, job.recipe.prune
    same = _shared(job) | {
        "epochs": [job.recipe.warmup, *(epochs for _, epochs in schedule if epochs)]
    }
    if wanted:
        same |= {"pruning": {"epochs": wanted.epochs, "learning_rate": wanted.learning_rate}}
    place = _shared_folder("control", job.folder, same)
    done = place / "result.json"
    if not done.exists():
        model = model_of(job.task, job.recipe.task)
        log = warm_up(model, job)
        pruning = _pruning("unpruned", model, job, place, None)
        track = Track("control", model, None, place / "control.pt", job.digest, schedule)
        for one in (pruning, track):
            train(one, job)
        stages = log + pruning.log + track.log
        write_json(done, same | {"score": float(job.task.score(model)), "stages": stages})
    score = read_json(done).get("score")
    if not isinstance(score, float):
        raise FormatError(f"{done}: damaged, expected a number called score, got {score!r}")
    job.observer.note(f"control, full precision trained equally long: {score:.2f}")
    return score


def train(track: Track, job: Job) -> None:
    """All stages of one track that are not done yet."""
    recipe, observer, teacher = job.recipe, job.observer, _teacher(job.recipe, job.task)
    settings = replace(
        recipe.retraining, learning_rate=track.rate or recipe.retraining.learning_rate
    )

    def after_step(progress: Progress) -> None:
        if track.surgery:
            track.surgery.step()
        observer.step(progress)

    track.resume()
    stages = iter(track.incremental) if track.incremental else repeat(None)
    for index in range(len(track.log), len(track.schedule)):
        portion, epochs = track.schedule[index]
        torch.manual_seed(seed_of(recipe.seed, track.first + index))
        started = time.monotonic()
        if epochs:
            observer.stage(track.name, index, len(track.schedule))
        try:
            next(stages)
            loss = retrain(
                track.model, job.task, epochs, settings, teacher=teacher, observe=after_step
            )
        except TrainingError as error:
            kept = f"stage {index} is kept in {track.path}" if index else "no stage was done yet"
            raise TrainingError(f"{track.name}, stage {index + 1}, {error} ({kept})") from error
        entry = {"portion": portion, "epochs": epochs, "learning_rate": settings.learning_rate}
        track.log.append(
            entry | {"loss": round(loss, 5), "seconds": round(time.monotonic() - started, 1)}
        )
        track.save()


def _shared(job: Job) -> Json:
    """What full-precision retraining depends on."""
    keys = {"task", "options", "teacher", "retraining", "seed"}
    return job.recipe.model_dump(mode="json", include=keys) | {"float_digest": job.digest}


def _shared_folder(name: str, folder: Path, content: Json) -> Path:
    """The folder, beside the run's, of what runs with the same ``content`` share."""
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    return folder.parent / f"{name}-{key}"


def _teacher(recipe: Recipe, task: Task) -> nn.Module | None:
    if recipe.retraining.labels == 1:
        return None
    source = load_task(recipe.task, recipe.options | recipe.teacher) if recipe.teacher else task
    return model_of(source, recipe.task).eval().requires_grad_(False)
