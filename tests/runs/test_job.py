"""What the steps of a run have in common."""

from pathlib import Path

import pytest
import torch
from tests.runs.tiny import Tiny, recipe

from octavo.progress import Event
from octavo.runs.job import Job, teacher_of

pytestmark = pytest.mark.usefixtures("folder")


def test_a_note_is_an_event(folder: Path) -> None:
    seen: list[Event] = []
    Job(recipe(), Tiny(), folder, "abc", seen.append).note("text")
    assert seen == [Event("note", message="text")]


def test_the_teacher_is_the_float_network_unless_only_labels_count(folder: Path) -> None:
    job = Job(recipe(), Tiny(), folder, "abc", lambda _: None)
    teacher = teacher_of(job)
    assert teacher is not None
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    for value, own in zip(
        teacher.state_dict().values(), Tiny().model().state_dict().values(), strict=True
    ):
        assert torch.equal(value, own)
    labels = recipe(retraining={"labels": 1})
    assert teacher_of(Job(labels, Tiny(), folder, "abc", lambda _: None)) is None
