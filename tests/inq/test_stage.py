"""The stage that the user's loop gets, and what a run reports on the way."""

import dataclasses

import pytest
import torch
from tests.inq.networks import batch, net

from octavo.inq.incremental import Incremental
from octavo.inq.stage import Stage
from octavo.progress import Event
from octavo.ptq.freezer import LayerResult


def test_a_stage_is_no_handle_on_the_run() -> None:
    model = net()
    incremental = Incremental(model, {"first": 3}, portions=(0.5, 1.0))
    stage = next(iter(incremental))
    stage.frozen["first"].fill_(False)
    assert isinstance(stage, Stage)
    assert sum(int(s.frozen["first"].sum()) for s in incremental) == 97
    incremental.finish()


def test_a_stage_is_a_value_that_later_stages_leave_as_it_is() -> None:
    stages = list(Incremental(net(), {"first": 3, "last": 3}, portions=(0.5, 1.0)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        stages[0].index = 3  # type: ignore[misc]
    assert [stage.last for stage in stages] == [False, True]
    counts = [int(stage.frozen["first"].sum()) for stage in stages]
    assert counts == [48, 97]
    assert len(stages[0].frozen) == 2
    assert dict(stages[0].frozen).keys() == {"first", "last"}
    assert stages[0].frozen["last"].dtype == torch.bool
    masks = stages[0].frozen.values()
    count = sum(int(mask.sum()) for mask in masks)
    total = sum(mask.numel() for mask in masks)
    assert f"frozen=FrozenMasks(2 layers, {count} of {total} weights)" in repr(stages[0])


@pytest.mark.parametrize("given", [False, True])
def test_each_layer_that_freezes_is_reported(given: bool) -> None:
    events: list[Event] = []
    incremental = Incremental(
        net(),
        {"first": 3, "last": 3},
        portions=(0.5, 1.0),
        inputs=[batch(0), batch(1)] if given else None,
        progress=events.append,
    )
    calibrated = [event for event in events if event.phase == "calibrate"]
    assert len(calibrated) == len(events) == (2 if given else 0)
    assert all(isinstance(event.detail, LayerResult) for event in calibrated)
    events.clear()
    for stage in incremental:
        assert len(events) == 2 * (stage.index + 1)
    assert events == [
        Event("freeze", 1, 4, "first: 50 % frozen"),
        Event("freeze", 2, 4, "last: 50 % frozen"),
        Event("freeze", 3, 4, "first: 100 % frozen"),
        Event("freeze", 4, 4, "last: 100 % frozen"),
    ]
