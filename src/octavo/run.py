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
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from octavo import coding
from octavo.errors import FormatError, RecipeError, TrainingError
from octavo.files import write_atomically
from octavo.incremental import Incremental
from octavo.packed import Packed
from octavo.plan import matching_plan
from octavo.recipe import Recipe, make_recipe
from octavo.seeds import seed_of
from octavo.task import Task, load_task
from octavo.train import Progress, retrain

__all__ = ["Observer", "environment", "publish", "run"]

Json = dict[str, Any]


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
    log: list[Json] = field(default_factory=list)
    earlier: float = 0.0  # seconds that its stages took before this process

    def resume(self) -> None:
        """Take up where the last whole stage was saved."""
        if not self.path.exists():
            return
        try:
            saved = torch.load(self.path, weights_only=True)
            (self.incremental or self.model).load_state_dict(saved["state"])
            self.log = saved["log"]
            self.earlier = sum(entry["seconds"] for entry in self.log)
        except (RuntimeError, EOFError, pickle.UnpicklingError, LookupError, TypeError, ValueError) as error:
            cause = " ".join(str(error).split())[:120]
            raise FormatError(
                f"{self.path}: expected the last whole stage of this task's network, got a file that is damaged or of another "
                f"network ({type(error).__name__}: {cause}); delete it to start over"
            ) from error

    def save(self) -> None:
        """Keep the stage that has just ended."""
        state = (self.incremental or self.model).state_dict()
        write_atomically(self.path, lambda file: torch.save({"state": state, "log": self.log}, file))


def run(recipe: Recipe, folder: Path, observer: Observer) -> Json:
    """Do all that the recipe says into ``folder``; a run that was cut off continues after its last whole stage.

    Returns:
        What ``result.json`` in the folder holds.

    Raises:
        RecipeError: the folder holds the run of another recipe, or the task cannot be loaded.
        TrainingError: retraining failed; the last whole stage is kept.
        FormatError: a file of the folder is damaged.

    """
    _check_folder(folder, recipe)
    if done := _finished(folder, recipe):
        observer.note(f"{folder} is complete: nothing to do")
        return done
    started = time.monotonic()
    task = load_task(recipe.task, recipe.options)
    model, copy = _two_models(task, recipe.task)
    incremental = _incremental(recipe, model)
    _write_json(folder / "recipe.json", recipe.model_dump(mode="json"))  # now that the recipe is known to fit the network
    result: Json = {
        "recipe": recipe.model_dump(mode="json"),
        "environment": environment(),
        "labels_used": recipe.retraining.labels > 0,
        "float_score": float(task.score(copy)),
    }
    observer.note(f"full precision: {result['float_score']:.2f}")
    track = _Track("quantized", incremental.model, incremental, folder / "quantized.pt")
    _train(track, recipe, task, observer)
    packed, result["stages"] = incremental.finish(), track.log
    file = folder / "packed.safetensors"
    packed.save(file)
    result["score"] = _score_reloaded(task, file)
    observer.note(f"quantized, packed and loaded again: {result['score']:.2f}")
    if recipe.control:
        result["control_score"] = _control(recipe, task, folder, observer)
    result |= _sizes(packed) | {"seconds": round(track.earlier + time.monotonic() - started, 1)}
    _write_json(folder / "result.json", result)
    return result


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


def _check_folder(folder: Path, recipe: Recipe) -> None:
    """Make sure that the run that is in the folder, if any, is this recipe's.

    How to retrain and where to publish may differ: that is how a run that diverged goes on with a lower learning rate.
    """
    path, free = folder / "recipe.json", {"retraining", "publish", "control"}
    if not path.exists():
        return
    there = make_recipe(_read_json(path), str(path)).model_dump(mode="json")
    for key, now in recipe.model_dump(mode="json").items():
        if key not in free and there[key] != now:
            raise RecipeError(f"{folder} holds a run with {key} {there[key]!r}, the recipe says {now!r}: choose another --folder")


def _finished(folder: Path, recipe: Recipe) -> Json | None:
    """The result of a run that has nothing left to do."""
    path = folder / "result.json"
    if not path.exists():
        return None
    result = _read_json(path)
    was, now = make_recipe(result.get("recipe", {}), str(path)).retraining, recipe.retraining
    if was != now:
        raise RecipeError(f"{folder} holds a complete run with {was}, the recipe says {now}: choose another --folder")
    return result if "control_score" in result or not recipe.control else None


def _read_json(path: Path) -> Json:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: damaged, not JSON: {error}") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path}: damaged, expected a JSON object, got {type(content).__name__}")
    return content


def _write_json(path: Path, content: Json) -> None:
    write_atomically(path, lambda file: file.write(json.dumps(content, indent=2).encode()))


def _two_models(task: Task, name: str) -> tuple[nn.Module, nn.Module]:
    model, copy = task.model(), task.model()
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


def _control(recipe: Recipe, task: Task, folder: Path, observer: Observer) -> float:
    """Score of the full-precision network trained just as long and in the same way; recipes that differ in bits share it."""
    keys = {"task", "options", "teacher", "retraining", "seed"}
    same = recipe.model_dump(mode="json", include=keys) | {"epochs": [epochs for epochs in recipe.stage_epochs if epochs]}
    digest = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:12]
    place = folder.parent / f"control-{digest}"
    done = place / "result.json"
    if not done.exists():
        track = _Track("control", task.model(), None, place / "control.pt")
        _train(track, recipe, task, observer)
        _write_json(done, same | {"score": float(task.score(track.model)), "stages": track.log})
    score = _read_json(done).get("score")
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
    return source.model().eval().requires_grad_(False)


def _score_reloaded(task: Task, file: Path) -> float:
    """Score of a fresh network that the file was applied to: what its user will get."""
    model = task.model()
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
