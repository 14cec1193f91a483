"""The stages of a run: the network that is quantized, and its control, retrained portion by portion; resumable."""

import hashlib
import json
import pickle
import time
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from octavo.errors import FormatError, RecipeError, TrainingError, brief
from octavo.files import write_atomically
from octavo.folder import Json, read_json, write_json
from octavo.incremental import Incremental
from octavo.oneshot import LayerError
from octavo.recipe import Recipe
from octavo.seeds import seed_of
from octavo.task import Task, load_task, model_of
from octavo.train import Progress, retrain

__all__ = ["Observer", "Track", "control_score", "train"]


class Observer(Protocol):
    """Who watches a run."""

    def note(self, text: str) -> None:
        """Something was done."""

    def stage(self, name: str, index: int, stages: int) -> None:
        """A stage of retraining begins."""

    def step(self, progress: Progress) -> None:
        """A step of it was made."""

    def layer(self, error: LayerError) -> None:
        """A layer was quantized in closed form."""


@dataclass
class Track:
    """One network on its way through the stages: the one that is quantized, or the control, which is not."""

    name: str
    model: nn.Module
    incremental: Incremental | None
    path: Path
    digest: str  # of the float network that it starts from
    log: list[Json] = field(default_factory=list)
    earlier: float = 0.0  # seconds that its stages took before this process

    def resume(self) -> None:
        """Take up where the last whole stage was saved."""
        if not self.path.exists():
            return
        try:
            saved = torch.load(self.path, weights_only=True)
            if saved["digest"] != self.digest:
                raise RecipeError("the task's weights have changed since")
            (self.incremental or self.model).load_state_dict(saved["state"])
            self.log = saved["log"]
            self.earlier = sum(entry["seconds"] for entry in self.log)
        except (RuntimeError, EOFError, pickle.UnpicklingError, LookupError, TypeError, ValueError) as error:
            raise FormatError(
                f"{self.path}: expected the last whole stage of this task's network, got a file that is damaged or of another "
                f"network ({brief(error)}); delete it to start over"
            ) from error

    def save(self) -> None:
        """Keep the stage that has just ended."""
        state = (self.incremental or self.model).state_dict()
        whole = {"state": state, "log": self.log, "digest": self.digest}
        write_atomically(self.path, lambda file: torch.save(whole, file))


def control_score(recipe: Recipe, task: Task, folder: Path, digest: str, observer: Observer) -> float:
    """Score of the full-precision network trained just as long and in the same way; recipes that differ in bits share it."""
    keys = {"task", "options", "teacher", "retraining", "seed"}
    same = recipe.model_dump(mode="json", include=keys) | {"float_digest": digest}
    same["epochs"] = [epochs for epochs in recipe.stage_epochs if epochs]
    key = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:12]
    place = folder.parent / f"control-{key}"
    done = place / "result.json"
    if not done.exists():
        track = Track("control", model_of(task, recipe.task), None, place / "control.pt", digest)
        train(track, recipe, task, observer)
        write_json(done, same | {"score": float(task.score(track.model)), "stages": track.log})
    score = read_json(done).get("score")
    if not isinstance(score, float):
        raise FormatError(f"{done}: damaged, expected a number called score, got {score!r}")
    observer.note(f"control, full precision trained equally long: {score:.2f}")
    return score


def train(track: Track, recipe: Recipe, task: Task, observer: Observer) -> None:
    """All stages of one track that are not done yet."""
    teacher = _teacher(recipe, task)
    track.resume()
    stages = iter(track.incremental) if track.incremental else repeat(None)
    for index in range(len(track.log), len(recipe.portions)):
        torch.manual_seed(seed_of(recipe.seed, index))
        epochs, started = recipe.stage_epochs[index], time.monotonic()
        if epochs:
            observer.stage(track.name, index, len(recipe.portions))
        try:
            next(stages)
            loss = retrain(track.model, task, epochs, recipe.retraining, teacher=teacher, observe=observer.step)
        except TrainingError as error:
            kept = f"stage {index} is kept in {track.path}" if index else "no stage was done yet"
            raise TrainingError(f"{track.name}, stage {index + 1}, {error} ({kept})") from error
        entry = {"portion": recipe.portions[index], "epochs": epochs, "learning_rate": recipe.retraining.learning_rate}
        track.log.append(entry | {"loss": round(loss, 5), "seconds": round(time.monotonic() - started, 1)})
        track.save()


def _teacher(recipe: Recipe, task: Task) -> nn.Module | None:
    if recipe.retraining.labels == 1:
        return None
    source = load_task(recipe.task, recipe.options | recipe.teacher) if recipe.teacher else task
    return model_of(source, recipe.task).eval().requires_grad_(False)
