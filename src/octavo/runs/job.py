"""The job: everything that the steps of one run have in common."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from octavo._interruption import Interruption
from octavo.network.ranks import ALONE, Ranks
from octavo.progress import Event, Progress
from octavo.runs.metric import metric_of
from octavo.runs.recipe import Recipe
from octavo.runs.task import Task, load_task, model_of

__all__ = ["SAVE_EVERY", "Job", "shared", "teacher_of"]

SAVE_EVERY = 600.0  # seconds of retraining between two savings inside a stage


@dataclass(frozen=True)
class Job:
    """All that the steps of one run have in common.

    Attributes:
        recipe: the recipe of the run.
        task: the task that the recipe names.
        folder: the folder of the run.
        digest: identifies the weights of the task's float network.
        progress: called while the run goes on.
        interruption: asks the run to stop.
        save_every: seconds of retraining between two savings inside a stage.
        device: the device that networks are moved to; None leaves them where the task puts them.
        ranks: the ranks that do the run together. Rank 0 alone reads and writes files; where only
            one can compute something, it is the one.

    """

    recipe: Recipe
    task: Task
    folder: Path
    digest: str
    progress: Progress
    interruption: Interruption = field(default_factory=Interruption)
    save_every: float = SAVE_EVERY
    device: torch.device | None = None
    ranks: Ranks = ALONE

    def note(self, text: str) -> None:
        """Report a line of text."""
        self.progress(Event("note", message=text))

    def metric(self, model: nn.Module, network: str) -> float:
        """Return the task's metric of a model; ``network`` says in words what it is, for errors."""
        return metric_of(self.task, self.recipe.task, model, network)

    def new_model(self) -> nn.Module:
        """Return a new copy of the task's float network."""
        return model_of(self.task, self.recipe.task, device=self.device)

    def new_shared_model(self) -> nn.Module:
        """Return a new copy of the task's float network as rank 0 has it; all ranks ask for it."""
        return shared(self.new_model(), self.ranks)


def teacher_of(job: Job) -> nn.Module | None:
    """Return the network whose outputs retraining imitates; None if only labels count."""
    recipe = job.recipe
    if recipe.retraining.labels == 1:
        return None
    task = job.task
    if recipe.teacher:
        task = load_task(recipe.task, recipe.options | recipe.teacher)
    return model_of(task, recipe.task, device=job.device).eval().requires_grad_(False)


def shared(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Give the model of every rank the parameters and buffers of rank 0, and return it."""
    ranks.share([*model.parameters(), *model.buffers()])
    return model
