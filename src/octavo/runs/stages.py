"""The machinery of a run's steps: each is retrained stage by stage, and resumed from its file.

``octavo.runs.steps`` has the steps themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from octavo._interruption import Interrupted, keeping
from octavo.network.ranks import ALONE, Ranks
from octavo.runs.checkpoints import (
    Schema,
    check_finite,
    read_checkpoint,
    refusing,
    write_checkpoint,
)
from octavo.runs.job import Job, shared, teacher_of
from octavo.runs.run_folder import Json
from octavo.runs.running_stage import RunningStage, forget
from octavo.runs.stage_plan import Step
from octavo.storage.checksum import check

__all__ = ["History", "resume", "train"]

# The entry of a stage in the log of a step.
ENTRY: Schema = {
    "portion": (int, float),
    "epochs": (int, float),
    "learning_rate": (int, float),
    "loss": (int, float),
    "seconds": (int, float),
    "curve": list,
}


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
    forget(step, job)  # a process may have been killed before it could
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
        check_finite(step.model)
        return History(entries, sum(entry["seconds"] for entry in entries))
