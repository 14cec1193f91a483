"""One run of a recipe, resumable: float score, INQ's stages, control, packed file, score of the reloaded network."""

import hashlib
import json
import pickle
import platform
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from octavo import coding
from octavo.errors import FormatError, OctavoError, RecipeError, TrainingError
from octavo.files import write_atomically
from octavo.folder import Json, check_folder, digest_of, finished, read_json, write_json
from octavo.incremental import Incremental
from octavo.packed import Packed
from octavo.plan import matching_plan
from octavo.recipe import Recipe
from octavo.seeds import seed_of
from octavo.task import Task, load_task
from octavo.train import Progress, retrain

__all__ = ["Observer", "environment", "model_of", "publish", "run"]


class Observer(Protocol):
    """Who watches a run."""

    def note(self, text: str) -> None:
        """Something was done."""

    def stage(self, name: str, index: int, stages: int) -> None:
        """A stage of retraining begins."""

    def step(self, progress: Progress) -> None:
        """A step of it was made."""


@dataclass
class _Track:
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
                f"network ({_cause(error)}); delete it to start over"
            ) from error

    def save(self) -> None:
        """Keep the stage that has just ended."""
        state = (self.incremental or self.model).state_dict()
        whole = {"state": state, "log": self.log, "digest": self.digest}
        write_atomically(self.path, lambda file: torch.save(whole, file))


def run(recipe: Recipe, folder: Path, observer: Observer) -> Json:
    """Do all that the recipe says into ``folder``; a run that was cut off continues after its last whole stage.

    Returns:
        What ``result.json`` in the folder holds.

    Raises:
        RecipeError: the folder holds the run of another recipe or of other weights, or the task cannot be loaded.
        TrainingError: retraining failed; the last whole stage is kept.
        FormatError: a file of the folder is damaged, or half a run of other weights.

    """
    check_folder(folder, recipe)
    started = time.monotonic()
    task = load_task(recipe.task, recipe.options)
    model, copy = _two_models(task, recipe.task)
    incremental, digest = _incremental(recipe, model), digest_of(copy)
    if done := finished(folder, recipe, digest):
        observer.note(f"{folder} is complete: nothing to do")
        return done
    write_json(folder / "recipe.json", recipe.model_dump(mode="json"))  # now that the recipe is known to fit the network
    result: Json = {
        "recipe": recipe.model_dump(mode="json"),
        "environment": environment(),
        "float_digest": digest,
        "labels_used": recipe.retraining.labels > 0,
        "float_score": float(task.score(copy)),
    }
    observer.note(f"full precision: {result['float_score']:.2f}")
    track = _Track("quantized", incremental.model, incremental, folder / "quantized.pt", digest)
    _train(track, recipe, task, observer)
    packed, result["stages"] = incremental.finish(), track.log
    file = folder / "packed.safetensors"
    packed.save(file)
    result["score"] = _score_reloaded(recipe, task, file)
    observer.note(f"quantized, packed and loaded again: {result['score']:.2f}")
    if recipe.control:
        result["control_score"] = _control(recipe, task, folder, digest, observer)
    result |= _sizes(packed) | {"seconds": round(track.earlier + time.monotonic() - started, 1)}
    write_json(folder / "result.json", result)
    return result


def model_of(task: Task, name: str) -> nn.Module:
    """A new copy of a task's network; ``name`` is what the task is called.

    Raises:
        RecipeError: the task failed to make it.
        OctavoError: what the task itself raises, such as missing data.

    """
    try:
        return task.model()
    except OctavoError:
        raise
    except Exception as error:
        raise RecipeError(f"task {name!r}: its model() failed: {_cause(error)}") from error


def publish(recipe: Recipe, recipe_path: Path, folder: Path) -> list[Path]:
    """Copy the result and the packed network to where the recipe publishes them, if it does."""
    if recipe.publish is None:
        return []
    stem = recipe_path.parent / recipe.publish
    pairs = [
        (folder / "result.json", Path(f"{stem}.json")),
        (folder / "packed.safetensors", Path(f"{stem}.safetensors")),
    ]
    for source, target in pairs:
        content = source.read_bytes()
        write_atomically(target, lambda file, content=content: file.write(content))  # type: ignore[misc]
    return [target for _, target in pairs]


def _two_models(task: Task, name: str) -> tuple[nn.Module, nn.Module]:
    model, copy = model_of(task, name), model_of(task, name)
    if copy is model:  # it would be its own teacher and its own control
        raise RecipeError(f"task {name!r}: expected a new copy of the network from every call of model(), got one twice")
    return model, copy


def _incremental(recipe: Recipe, model: nn.Module) -> Incremental:
    return Incremental(
        model,
        matching_plan(model, recipe.bits),
        portions=recipe.portions,
        order=recipe.order,
        fit=recipe.fit,
        per=recipe.per,
        seed=recipe.seed,
    )


def _control(recipe: Recipe, task: Task, folder: Path, digest: str, observer: Observer) -> float:
    """Score of the full-precision network trained just as long and in the same way; recipes that differ in bits share it."""
    keys = {"task", "options", "teacher", "retraining", "seed"}
    same = recipe.model_dump(mode="json", include=keys) | {"float_digest": digest}
    same["epochs"] = [epochs for epochs in recipe.stage_epochs if epochs]
    key = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:12]
    place = folder.parent / f"control-{key}"
    done = place / "result.json"
    if not done.exists():
        track = _Track("control", model_of(task, recipe.task), None, place / "control.pt", digest)
        _train(track, recipe, task, observer)
        write_json(done, same | {"score": float(task.score(track.model)), "stages": track.log})
    score = read_json(done).get("score")
    if not isinstance(score, float):
        raise FormatError(f"{done}: damaged, expected a number called score, got {score!r}")
    observer.note(f"control, full precision trained equally long: {score:.2f}")
    return score


def _train(track: _Track, recipe: Recipe, task: Task, observer: Observer) -> None:
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


def _score_reloaded(recipe: Recipe, task: Task, file: Path) -> float:
    """Score of a fresh network that the file was applied to: what its user will get."""
    model = model_of(task, recipe.task)
    Packed.load(file).apply(model)
    return float(task.score(model))


def _sizes(packed: Packed) -> Json:
    entropy = sum(coding.entropy_bytes(layer.codes, layer.codebook.bits) for layer in packed.layers.values())
    weights = sum(packed.plan.weights.values())
    return {
        "weights": weights,
        "nominal_bits": packed.nominal_bits,
        "stored_bits": packed.stored_bits,
        "entropy_bytes": round(entropy),
        "other_bytes": packed.float_bytes - 4 * weights,
        "file_bytes": packed.file_bytes,
        "float_bytes": packed.float_bytes,
        "ratio": packed.ratio,
    }


def _cause(error: Exception) -> str:
    """The kind of error and what it says, in one line that is not too long."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def environment() -> Json:
    """Versions and machine, for every committed figure."""
    return {
        "octavo": version("octavo"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": _processor(),
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    """What the processor calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()
