"""The machinery of a run's steps: what is kept between stages, and whose it is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.runs.tiny import EPOCH, Tiny, recipe
from torch import nn

from octavo.errors import FormatError
from octavo.progress import Event, silent
from octavo.runs.job import Job
from octavo.runs.stage_plan import Step, stage_plans
from octavo.runs.stages import History, resume, train

pytestmark = pytest.mark.usefixtures("folder")


class Counter:
    """A state that is neither a module nor octavo's own."""

    def __init__(self) -> None:
        self.stages = 0
        self.updates = 0

    def state_dict(self) -> dict[str, Any]:
        return {"stages": self.stages, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        self.stages = state["stages"]
        self.updates = state["updates"]

    def count_stage(self, _index: int) -> None:
        self.stages += 1

    def count_update(self) -> None:
        self.updates += 1


def job(folder: Path, *, digest: str = "abc", seen: list[Event] | None = None) -> Job:
    progress = silent if seen is None else seen.append
    return Job(recipe(), Tiny(), folder, digest, progress)


def step(folder: Path, state: Any, stages: int, model: nn.Module | None = None) -> Step:
    plans = stage_plans(recipe(), [(0.0, 0.5)] * stages)
    hooks = (state.count_stage, state.count_update) if isinstance(state, Counter) else ()
    return Step("step", folder / "s.pt", model or Tiny().model(), state, plans, *hooks)


def test_nothing_saved_is_nothing_to_resume(folder: Path) -> None:
    assert resume(step(folder, Counter(), 1), "abc") == History([], 0.0)


def test_any_state_is_kept_after_each_stage_and_comes_back_with_its_time(folder: Path) -> None:
    state = Counter()
    first = train(step(folder, state, 2), job(folder))
    assert (state.stages, state.updates) == (2, 2 * EPOCH // 2)
    assert len(first.stages) == 2
    assert first.seconds_before == 0
    again = Counter()
    second = train(step(folder, again, 3), job(folder))  # a stage more
    assert (again.stages, again.updates) == (3, 3 * EPOCH // 2)
    assert second.stages[:2] == first.stages
    assert second.seconds_before == sum(stage["seconds"] for stage in first.stages)


def test_a_model_is_a_state_too(folder: Path) -> None:
    first = Tiny().model()
    train(step(folder, first, 1, first), job(folder))
    second = Tiny().model()
    resume(step(folder, second, 1, second), "abc")
    for name, value in second.state_dict().items():
        assert torch.equal(value, first.state_dict()[name])
    assert not torch.equal(first[0].weight, Tiny().model()[0].weight)  # type: ignore[index]


@pytest.mark.parametrize(
    ("digest", "width", "cause"),
    [("xyz", 6, "weights have changed since"), ("abc", 7, "size mismatch")],
)
def test_the_stage_of_another_network_is_refused(
    digest: str, width: int, cause: str, folder: Path
) -> None:
    model = Tiny().model()
    train(step(folder, model, 1, model), job(folder))
    other = Tiny(width=width).model()
    with pytest.raises(
        FormatError, match=f"s.pt: expected the last whole stage.*{cause}.*delete it to start over"
    ):
        resume(step(folder, other, 1, other), digest)


def test_each_event_names_its_step_and_stage(folder: Path) -> None:
    seen: list[Event] = []
    train(step(folder, Counter(), 2), job(folder, seen=seen))
    labels = [(event.message, event.done, event.total) for event in seen]
    one, two = "step, stage 1/2", "step, stage 2/2"
    assert labels == [(one, 0, 0), (one, 1, 2), (one, 2, 2), (two, 0, 0), (two, 1, 2), (two, 2, 2)]
