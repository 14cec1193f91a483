"""The machinery of a run's steps: each is retrained stage by stage, and resumed from its file.

``octavo.runs.steps`` has the steps themselves.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from octavo._interruption import Interrupted, keeping
from octavo._seeds import seed_of
from octavo.errors import TrainingError
from octavo.network.forward import in_mode
from octavo.network.ranks import ALONE, Ranks
from octavo.network.warned import warn
from octavo.progress import Event
from octavo.runs.checkpoints import Schema, read_checkpoint, refusing, write_checkpoint
from octavo.runs.job import Job, shared, teacher_of
from octavo.runs.parallel import check_same, even_out
from octavo.runs.recipe import Recipe
from octavo.runs.run_folder import Json
from octavo.runs.training import Retraining, Training
from octavo.runs.watching import LossCurve, diverged
from octavo.storage.checksum import check

__all__ = [
    "History",
    "Resumable",
    "RunningStage",
    "StagePlan",
    "Step",
    "resume",
    "stage_plans",
    "train",
]

# The entry of a stage in the log of a step.
ENTRY: Schema = {
    "portion": (int, float),
    "epochs": (int, float),
    "learning_rate": (int, float),
    "loss": (int, float),
    "seconds": (int, float),
    "curve": list,
}
# The state inside a stage.
INSIDE: Schema = {
    "index": int,
    "plan": dict,
    "state": Mapping,
    "training": dict,
    "curve": list,
    "seconds": (int, float),
}


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


def _nothing(*_: object) -> None:
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
        before_stage: called with the index of each stage before it; INQ freezes a portion.
        after_update: called after each update of the weights; surgery changes its masks.
        scored: measure the metric after each stage, for the report.

    """

    name: str
    file: Path
    model: nn.Module
    state: Resumable
    stages: Sequence[StagePlan]
    before_stage: Callable[[int], object] = _nothing
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
        Interrupted: a signal asked to stop; what was done is kept.

    """
    teacher = teacher_of(job)
    if teacher is not None:
        shared(teacher, job.ranks)
    done = resume(step, job.digest, job.ranks)
    entries = list(done.stages)
    if 0 < len(entries) < len(step.stages):
        whole = f"{len(entries)} of {len(step.stages)} stages"
        job.note(f"{step.name}: {whole} are done, from {step.file}; going on with the next")
    seconds = done.seconds_before
    for index in range(len(entries), len(step.stages)):
        stage = RunningStage(step, index, job, teacher)
        seconds += stage.seconds_before
        with keeping(f"the stages before are kept in {step.file}" if index else ""):
            entries.append(stage.run())
        content = {"state": step.state.state_dict(), "log": entries, "digest": job.digest}
        with job.interruption.deferred():
            job.ranks.once(partial(write_checkpoint, step.file, content))
            stage.forget()
        _stop_if_asked(job, f"{step.name}, stage {index + 1} is kept in {step.file}")
    _forget(step, job)  # a process may have been killed before it could
    return History(entries, seconds)


def _stop_if_asked(job: Job, kept: str) -> None:
    """Raise Interrupted if a signal has asked any rank to stop; ``kept`` says what is kept."""
    (signal,) = job.ranks.most(job.interruption.requested or 0)
    if signal:
        raise Interrupted(int(signal), kept)


def resume(step: Step, digest: str, ranks: Ranks = ALONE) -> History:
    """Put back the state after the last whole stage, where the step's file exists.

    Raises:
        FormatError: the file is damaged, or belongs to another network; the message names it.

    """
    if not ranks.once(step.file.exists):
        return History()
    with refusing(step.file, "the last whole stage", "delete it to start over"):
        schema = {"state": Mapping, "log": list}
        saved = ranks.once(lambda: read_checkpoint(step.file, schema, digest))
        entries = saved["log"]
        for entry in entries:
            check(entry, ENTRY, old=True)
        if not 0 < len(entries) <= len(step.stages):
            raise ValueError(f"it has {len(entries)} of {len(step.stages)} stages")
        step.state.load_state_dict(saved["state"])
        _check_finite(step.model)
        return History(entries, sum(entry["seconds"] for entry in entries))


class RunningStage:
    """A stage of a step while it goes on. Its state inside is kept in a file of its own, now and
    then and when the run is interrupted; the next process goes on from there.

    Attributes:
        seconds_before: the time that an earlier process spent on the stage.

    """

    def __init__(self, step: Step, index: int, job: Job, teacher: nn.Module | None) -> None:
        self._step = step
        self._index = index
        self._job = job
        self._teacher = teacher
        self._plan = step.stages[index]
        self._label = f"{step.name}, stage {index + 1}/{len(step.stages)}"
        self._saved = job.ranks.once(self._read)
        saved = self._saved or {"seconds": 0.0, "curve": []}
        self.seconds_before = float(saved["seconds"])
        self._curve = LossCurve(saved["curve"])
        self._started = time.monotonic()
        self._kept = self._started

    def run(self) -> Json:
        """Do the stage, or the rest of it, and return its entry of the history."""
        plan = self._plan
        if self._saved is None:
            torch.manual_seed(plan.seed)
        if plan.epochs:
            self._job.progress(Event("retrain", message=self._label))
        try:
            training = self._trained()
        except TrainingError as error:
            self.forget()
            index = self._index
            kept = (
                f"stage {index} is kept in {self._step.file}" if index else "no stage was done yet"
            )
            raise TrainingError(
                f"{self._step.name}, stage {index + 1}, {error} ({kept})"
            ) from error
        self._warn_if_diverged()
        entry = {
            "portion": plan.portion,
            "epochs": plan.epochs,
            "learning_rate": plan.retraining.learning_rate,
            "loss": round(training.mean_loss, 5),
            "seconds": round(self._seconds(), 1),
            "curve": self._curve.points(),
        }
        return entry | self._metric(training) if self._step.scored else entry

    def _warn_if_diverged(self) -> None:
        """Warn if the loss rose instead of falling."""
        curve = self._curve.points()
        if diverged(curve):
            rate = self._plan.retraining.learning_rate / 10
            warn(
                f"{self._label}: retraining diverged: its loss rose from {curve[0][1]:.3g} to "
                f"{curve[-1][1]:.3g}. Lower the learning rate, as by --set "
                f"retraining.learning_rate={rate:g}, in another folder, or delete {self._step.file}"
            )

    def forget(self) -> None:
        """Remove the file of the state inside the stage."""
        _forget(self._step, self._job)

    def _trained(self) -> Training:
        """Retrain to the end."""
        step = self._step
        if self._saved is None:
            step.before_stage(self._index)
            training = self._training()
        else:
            with _refusing_inside(step):
                step.state.load_state_dict(self._saved["state"])
                _check_finite(step.model)
                training = self._training()
                training.load_state_dict(self._saved["training"])
            done = f"{training.done} of {training.steps} steps"
            self._job.note(f"{self._label}: {done} are done, from {_inside(step)}; going on")
        with self._job.interruption.deferred(), in_mode(step.model, training=True):
            while training.done < training.steps:
                event = training.step()
                step.after_update()
                if event is None:
                    continue
                self._curve.add(event)
                self._job.progress(replace(event, message=self._label))
                if training.done < training.steps:
                    self._save_if_due(training)
        even_out(step.model, self._job.ranks)
        check_same(step.model, self._job.ranks, "after retraining")
        return training

    def _metric(self, training: Training) -> Json:
        """Return the metric of the network as it is now; nothing where it is no finite number."""
        step = self._step
        try:
            with in_mode(step.model, training=False):
                score = self._job.ranks.once(lambda: float(self._job.task.score(step.model)))
        except Interrupted as stop:
            if not training.steps:
                raise
            self._save(training)
            raise Interrupted(stop.signal, self._kept_in_words(training)) from None
        return {"score": score} if math.isfinite(score) else {}

    def _training(self) -> Training:
        plan = self._plan
        return Training(
            self._step.model,
            self._job.task,
            plan.epochs,
            plan.retraining,
            teacher=self._teacher,
            ranks=self._job.ranks,
        )

    def _save_if_due(self, training: Training) -> None:
        """Keep the state inside the stage if it was kept long ago, or if the run shall stop, on any
        of the ranks.

        Raises:
            Interrupted: the run shall stop.

        """
        requested = self._job.interruption.requested or 0
        since = abs(time.monotonic() - self._kept)  # a clock may go backwards
        signal, since = self._job.ranks.most(requested, since)
        if not signal and since < self._job.save_every:
            return
        self._save(training)
        if signal:
            raise Interrupted(int(signal), self._kept_in_words(training))

    def _save(self, training: Training) -> None:
        """Keep the state inside the stage; rank 0 may be alone in doing so."""
        content = {
            "index": self._index,
            "plan": asdict(self._plan),
            "state": self._step.state.state_dict(),
            "training": training.state_dict(),
            "curve": self._curve.means,
            "seconds": self._seconds(),
            "digest": self._job.digest,
        }
        if self._job.ranks.leads:
            write_checkpoint(_inside(self._step), content)
        self._kept = time.monotonic()

    def _kept_in_words(self, training: Training) -> str:
        done = f"{self._label}, step {training.done} of {training.steps}"
        return f"{done} is kept in {_inside(self._step)}"

    def _read(self) -> Json | None:
        """Return the state inside this stage, where an earlier process has kept it; that of a stage
        with other settings of retraining does not count.
        """
        if not _inside(self._step).exists():
            return None
        with _refusing_inside(self._step):
            saved = read_checkpoint(_inside(self._step), INSIDE, self._job.digest)
        of_this = (saved["index"], saved["plan"]) == (self._index, asdict(self._plan))
        return saved if of_this else None

    def _seconds(self) -> float:
        """Return the time that the stage has taken, in all processes."""
        return self.seconds_before + max(0.0, time.monotonic() - self._started)


def _check_finite(model: nn.Module) -> None:
    """Raise ValueError unless every parameter is finite."""
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise ValueError(f"{name} has numbers that are not finite")


def _inside(step: Step) -> Path:
    """Return the file of the state inside the stage that goes on."""
    return step.file.with_name(f"{step.file.stem}-stage{step.file.suffix}")


def _forget(step: Step, job: Job) -> None:
    """Remove that file, where it exists."""
    job.ranks.once(lambda: _inside(step).unlink(missing_ok=True))


def _refusing_inside(step: Step) -> contextlib.AbstractContextManager[None]:
    remedy = "delete it to go on from the last whole stage"
    return refusing(_inside(step), "the state inside a stage", remedy)
