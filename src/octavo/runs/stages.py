"""The machinery of a run's steps: each is retrained stage by stage, and resumed from its file.

``octavo.runs.steps`` has the steps themselves.
"""

import math
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from octavo._io import write_atomically
from octavo._seeds import seed_of
from octavo.errors import FormatError, RecipeError, TrainingError, brief
from octavo.network.forward import in_mode
from octavo.network.warned import warn
from octavo.progress import Event, Progress
from octavo.runs.recipe import Recipe
from octavo.runs.run_folder import Json
from octavo.runs.task import Task, load_task, metric_of, model_of
from octavo.runs.training import Retraining, retrain
from octavo.runs.watching import LossCurve, diverged

__all__ = [
    "History",
    "Job",
    "Resumable",
    "StagePlan",
    "Step",
    "resume",
    "stage_plans",
    "teacher_of",
    "train",
]

# The errors of reading a file that is damaged, or that has the state of another network.
DAMAGE = (
    RuntimeError,
    OSError,
    EOFError,
    pickle.UnpicklingError,
    LookupError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Job:
    """All that the steps of one run have in common.

    Attributes:
        recipe: the recipe of the run.
        task: the task that the recipe names.
        folder: the folder of the run.
        digest: identifies the weights of the task's float network.
        progress: called while the run goes on.

    """

    recipe: Recipe
    task: Task
    folder: Path
    digest: str
    progress: Progress

    def note(self, text: str) -> None:
        """Report a line of text."""
        self.progress(Event("note", message=text))

    def metric(self, model: nn.Module, network: str) -> float:
        """Return the task's metric of a model; ``network`` says in words what it is, for errors."""
        return metric_of(self.task, self.recipe.task, model, network)

    def new_model(self) -> nn.Module:
        """Return a new copy of the task's float network."""
        return model_of(self.task, self.recipe.task)


class Resumable(Protocol):
    """An object whose state can be saved and put back: a module, ``Surgery``, ``Incremental``."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return all that is needed to go on from here."""

    def load_state_dict(self, state: dict[str, Any], /) -> object:
        """Go on from where ``state`` was taken."""


@dataclass(frozen=True)
class StagePlan:
    """The plan of one stage: freeze up to ``portion`` of the weights, then retrain.

    Attributes:
        portion: accumulated share of frozen weights; 0 where the step freezes none.
        epochs: epochs of retraining after that.
        retraining: its settings.
        seed: the seed of what it draws, such as the order of the batches.

    """

    portion: float
    epochs: float
    retraining: Retraining
    seed: int


def _nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Step:
    """A step of a run that retrains a network in stages.

    Attributes:
        name: the name of the step in messages.
        file: the file that holds the state after the last whole stage.
        model: the network that is retrained.
        state: the object whose state the file holds; it includes that of the model.
        stages: the plans of the stages.
        before_stage: called before each stage; INQ freezes a portion.
        after_update: called after each update of the weights; surgery changes its masks.
        scored: measure the metric after each stage, for the report.

    """

    name: str
    file: Path
    model: nn.Module
    state: Resumable
    stages: Sequence[StagePlan]
    before_stage: Callable[[], object] = _nothing
    after_update: Callable[[], object] = _nothing
    scored: bool = False


@dataclass(frozen=True)
class History:
    """The stages that a step has been through.

    Attributes:
        stages: one entry for each stage, as ``result.json`` has it, with the curve of its loss and,
            where it was measured, the metric after it.
        seconds_before: the time of the stages that an earlier process did.

    """

    stages: list[Json] = field(default_factory=list)
    seconds_before: float = 0.0


def stage_plans(
    recipe: Recipe,
    schedule: Sequence[tuple[float, float]],
    *,
    first: int = 0,
    learning_rate: float | None = None,
) -> list[StagePlan]:
    """Return the plans of a step's stages.

    Args:
        recipe: gives the settings of retraining and the seed.
        schedule: the portion and the epochs of each stage.
        first: the number of the first stage; the seed of a stage follows from its number.
        learning_rate: instead of the recipe's.

    """
    settings = recipe.retraining
    if learning_rate is not None:
        settings = replace(settings, learning_rate=learning_rate)
    return [
        StagePlan(portion, epochs, settings, seed_of(recipe.seed, number))
        for number, (portion, epochs) in enumerate(schedule, first)
    ]


def train(step: Step, job: Job) -> History:
    """Do all stages of a step that are not done yet, and keep the state after each in its file.

    Raises:
        TrainingError: retraining failed; the last whole stage is kept.
        FormatError: the file is damaged, or belongs to another network.

    """
    teacher = teacher_of(job)
    done = resume(step, job.digest)
    entries = list(done.stages)
    for index in range(len(entries), len(step.stages)):
        entries.append(_run_stage(step, index, job, teacher))
        _save(step, entries, job.digest)
    return History(entries, done.seconds_before)


def _run_stage(step: Step, index: int, job: Job, teacher: nn.Module | None) -> Json:
    """Do one stage and return its entry of the history."""
    plan = step.stages[index]
    label = f"{step.name}, stage {index + 1}/{len(step.stages)}"
    curve = LossCurve()

    def after_update(event: Event) -> None:
        step.after_update()
        curve.add(event)
        job.progress(replace(event, message=label))

    torch.manual_seed(plan.seed)
    started = time.monotonic()
    if plan.epochs:
        job.progress(Event("retrain", message=label))
    try:
        step.before_stage()
        loss = retrain(
            step.model,
            job.task,
            plan.epochs,
            plan.retraining,
            teacher=teacher,
            progress=after_update,
        )
    except TrainingError as error:
        kept = f"stage {index} is kept in {step.file}" if index else "no stage was done yet"
        raise TrainingError(f"{step.name}, stage {index + 1}, {error} ({kept})") from error
    _warn_if_diverged(step, label, curve.points(), plan)
    entry = {
        "portion": plan.portion,
        "epochs": plan.epochs,
        "learning_rate": plan.retraining.learning_rate,
        "loss": round(loss, 5),
        "seconds": round(time.monotonic() - started, 1),
        "curve": curve.points(),
    }
    return entry | _metric(step, job) if step.scored else entry


def _warn_if_diverged(
    step: Step, label: str, curve: list[tuple[int, float]], plan: StagePlan
) -> None:
    """Warn if the loss of a stage rose instead of falling."""
    if diverged(curve):
        warn(
            f"{label}: retraining diverged: its loss rose from {curve[0][1]:.3g} to "
            f"{curve[-1][1]:.3g}. Lower the learning rate, as by --set "
            f"retraining.learning_rate={plan.retraining.learning_rate / 10:g}, in another folder, "
            f"or delete {step.file}"
        )


def _metric(step: Step, job: Job) -> Json:
    """Return the metric of the network as it is now; nothing where it is no finite number."""
    with in_mode(step.model, training=False):
        score = float(job.task.score(step.model))
    return {"score": score} if math.isfinite(score) else {}


def resume(step: Step, digest: str) -> History:
    """Put back the state after the last whole stage, where the step's file exists.

    Raises:
        FormatError: the file is damaged, or belongs to another network; the message names it.

    """
    if not step.file.exists():
        return History()
    try:
        saved = torch.load(step.file, weights_only=True)
        if saved["digest"] != digest:
            raise RecipeError("the task's weights have changed since")
        step.state.load_state_dict(saved["state"])
        entries = list(saved["log"])
        return History(entries, sum(entry["seconds"] for entry in entries))
    except DAMAGE as error:
        raise FormatError(
            f"{step.file}: expected the last whole stage of this task's network, got a file that "
            f"is damaged or of another network ({brief(error)}); delete it to start over"
        ) from error


def _save(step: Step, entries: list[Json], digest: str) -> None:
    """Keep the state after the stage that has just ended."""
    content = {"state": step.state.state_dict(), "log": entries, "digest": digest}
    write_atomically(step.file, lambda file: torch.save(content, file))


def teacher_of(job: Job) -> nn.Module | None:
    """Return the network whose outputs retraining imitates; None if only labels count."""
    recipe = job.recipe
    if recipe.retraining.labels == 1:
        return None
    task = job.task
    if recipe.teacher:
        task = load_task(recipe.task, recipe.options | recipe.teacher)
    return model_of(task, recipe.task).eval().requires_grad_(False)
