"""A stage while it goes on: its state inside is saved now and then, and resumed from there."""

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from octavo._interruption import Interrupted
from octavo.errors import TrainingError
from octavo.network.forward import in_mode
from octavo.network.warned import warn
from octavo.progress import Event
from octavo.runs.checkpoints import (
    Schema,
    check_finite,
    read_checkpoint,
    refusing,
    write_checkpoint,
)
from octavo.runs.job import Job
from octavo.runs.parallel import check_same, even_out
from octavo.runs.run_folder import Json
from octavo.runs.stage_plan import Step
from octavo.runs.training import Training
from octavo.runs.watching import LossCurve, diverged

__all__ = ["RunningStage", "forget"]

# The state inside a stage.
INSIDE: Schema = {
    "index": int,
    "plan": dict,
    "state": Mapping,
    "training": dict,
    "curve": list,
    "seconds": (int, float),
}


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
        forget(self._step, self._job)

    def _trained(self) -> Training:
        """Retrain to the end."""
        step = self._step
        plan = self._plan
        if self._saved is None:
            step.before_stage(self._index)
        else:
            with _refusing_inside(step):
                step.state.load_state_dict(self._saved["state"])
                check_finite(step.model)
        training = Training(
            step.model,
            self._job.task,
            plan.epochs,
            plan.retraining,
            teacher=self._teacher,
            ranks=self._job.ranks,
        )
        if self._saved is not None:
            with _refusing_inside(step):
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


def _inside(step: Step) -> Path:
    """Return the file of the state inside the stage that goes on."""
    return step.file.with_name(f"{step.file.stem}-stage{step.file.suffix}")


def forget(step: Step, job: Job) -> None:
    """Remove that file, where it exists."""
    job.ranks.once(lambda: _inside(step).unlink(missing_ok=True))


def _refusing_inside(step: Step) -> contextlib.AbstractContextManager[None]:
    remedy = "delete it to go on from the last whole stage"
    return refusing(_inside(step), "the state inside a stage", remedy)
