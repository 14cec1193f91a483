"""Losses are read several steps at a time, and an error still names its step."""

import math

import pytest
import torch
from tests.runs.toy_task import Toy, linear, poisoned
from torch import Tensor

from octavo.errors import TrainingError
from octavo.progress import Event
from octavo.runs import training
from octavo.runs.retraining import Retraining
from octavo.runs.step_log import StepLog, steps_between_readings
from octavo.runs.training import StepFigures, retrain


def test_a_cpu_reads_every_step_and_a_gpu_few() -> None:
    assert steps_between_readings(torch.device("cpu")) == 1
    assert steps_between_readings(torch.device("cuda")) == 20


def test_the_sum_is_complete_after_the_last_step() -> None:
    log = StepLog(7, 3)
    was_read = [log.add(torch.tensor(2.0**step), torch.tensor(1.0)) for step in range(7)]
    assert was_read == [False, False, True, False, False, True, True]
    assert (log.read, log.total) == (7, 127.0)


@pytest.mark.parametrize("name", ["loss", "gradient's norm"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_number_that_is_not_finite_is_named(name: str, bad: float) -> None:
    log = StepLog(9, 3)
    for _ in range(4):
        log.add(torch.tensor(1.0), torch.tensor(1.0))
    numbers = [torch.tensor(1.0), torch.tensor(1.0)]
    numbers[name != "loss"] = torch.tensor(bad)
    log.add(*numbers)
    with pytest.raises(TrainingError, match=rf"^step 5 of 9: the {name} is {bad}; lower the"):
        log.add(torch.tensor(math.nan), torch.tensor(math.nan))


@pytest.fixture
def reading_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "steps_between_readings", lambda _device: 4)


def trained(events: list[Event]) -> tuple[float, list[Tensor]]:
    model = linear(1)
    settings = Retraining(learning_rate=0.3)
    mean = retrain(model, Toy(), 2.0, settings, teacher=linear(2), progress=events.append)
    return mean, [parameter.detach() for parameter in model.parameters()]


def losses(events: list[Event]) -> list[float]:
    return [event.detail.loss for event in events if isinstance(event.detail, StepFigures)]


def test_reading_rarely_changes_no_bit(request: pytest.FixtureRequest) -> None:
    events: list[Event] = []
    mean, parameters = trained(events)
    assert len(events) == 10
    request.getfixturevalue("reading_rarely")
    rare: list[Event] = []
    again, others = trained(rare)
    assert again == mean
    assert all(torch.equal(a, b) for a, b in zip(parameters, others, strict=True))
    assert [event.done for event in rare] == [4, 8, 10]
    assert losses(rare) == [losses(events)[done - 1] for done in (4, 8, 10)]


@pytest.mark.usefixtures("reading_rarely")
@pytest.mark.parametrize("bad", range(5))
def test_reading_rarely_the_error_names_the_step(bad: int) -> None:
    with pytest.raises(TrainingError, match=rf"^step {bad + 1} of 10: the loss is nan; lower"):
        retrain(linear(1), Toy(lambda: poisoned(bad)), 2.0, Retraining(), teacher=linear(2))
