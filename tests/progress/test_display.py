"""What is shown while a run lasts: a bar on a terminal, plain lines elsewhere."""

import re
from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from octavo.dnq.evaluator import Trial
from octavo.formats.width import Width
from octavo.plan import Plan
from octavo.progress import Event
from octavo.progress.display import Display
from octavo.ptq.freezer import LayerResult
from octavo.runs.training import StepFigures

STAGE = "quantized, stage 2/4"
LAST_LINE = (
    "quantized, stage 2/4  step 1000/1000  epoch 2.00  loss 0.0010  12.5 steps/s  0:00:00 left\n"
)


def retraining(step: int, *, of: int = 1000, speed: float = 12.5, stage: str = STAGE) -> Event:
    return Event("retrain", step, of, stage, StepFigures(step / 500, 1 / step, speed))


def steps(*numbers: int) -> list[Event]:
    return [retraining(number) for number in numbers]


def note(text: str) -> Event:
    return Event("note", message=text)


def shown(console: Console, seen: list[Event], notes: tuple[str, ...] = ()) -> str:
    with Display(console) as display:
        display(Event("retrain", message=STAGE))
        for event in [*seen, *map(note, notes)]:
            display(event)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.setenv("TERM", "xterm")
    return Console(
        force_terminal=True, force_interactive=True, file=StringIO(), width=80, color_system=None
    )


@pytest.fixture
def pipe() -> Console:
    return Console(force_terminal=False, file=StringIO(), width=80)


@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook_without_widgets_gets_plain_lines(
    widgets: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rich draws a bar there by ipywidgets, and without them only warns."""
    live: list[str] = []
    lines: list[str] = []
    monkeypatch.setattr("octavo.progress.display.find_spec", lambda _: widgets or None)
    monkeypatch.setattr("rich.live.Live.start", lambda *_, **__: live.append("bar"))
    monkeypatch.setattr("rich.jupyter.display", lambda _, text: lines.append(text))
    with Display(Console(force_jupyter=True)) as display:
        for event in [note("calibrating"), *steps(1, 1000)]:
            display(event)
    assert live == ["bar"] * widgets
    assert lines[0] == "calibrating\n"
    assert (LAST_LINE in lines) != widgets


def test_a_terminal_of_80_columns_shows_stage_epoch_loss_speed_and_time_left(
    terminal: Console,
) -> None:
    text = shown(terminal, steps(250))
    assert "quantized, stage 2/4  epoch 0.50  loss 0.0040  12.5 steps/s  0:01:00 left" in text
    assert "━" in text
    assert text.endswith("\x1b[2K")  # the line is drawn over, and gone in the end


def test_the_bar_moves_on_and_starts_anew_with_each_stage(terminal: Console) -> None:
    with Display(terminal) as display:
        for name in ("quantized", "control"):
            display(Event("retrain", message=f"{name}, stage 1/2"))
            display(retraining(500, stage=f"{name}, stage 1/2"))
        assert isinstance(terminal.file, StringIO)
        before = len(terminal.file.getvalue())
    last = terminal.file.getvalue()[before:]
    assert "control, stage 1/2  epoch 1.00" in last
    assert "quantized" not in last


def test_notes_stay_above_the_bar_as_they_are(terminal: Console) -> None:
    text = shown(terminal, steps(1), ("runs/[bold]/[/x] is 5",))
    assert "runs/[bold]/[/x] is 5\n" in text


def test_elsewhere_the_last_step_of_a_stage_is_one_plain_line(pipe: Console) -> None:
    assert shown(pipe, steps(999, 1000)) == (LAST_LINE)


def test_elsewhere_a_line_comes_now_and_then(
    pipe: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("octavo.progress.display.time", SimpleNamespace(monotonic=lambda: now[0]))
    with Display(pipe) as display:
        for event in steps(*range(1, 1001)):  # one a second
            now[0] += 1
            display(event)
    assert isinstance(pipe.file, StringIO)
    lines = [int(step) for step in re.findall(r"step (\d+)/1000", pipe.file.getvalue())]
    assert len(lines) == len(pipe.file.getvalue().splitlines())
    assert lines == [*range(16, 1000, 16), 1000]


def test_elsewhere_a_run_that_fails_adds_no_blank_line(pipe: Console) -> None:
    def fail() -> None:
        with Display(pipe) as display:
            display(note("first"))
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    assert isinstance(pipe.file, StringIO)
    assert pipe.file.getvalue() == "first\n"


def test_notes_are_not_broken_elsewhere(pipe: Console) -> None:
    text = "a folder with a long name: " + 30 * "runs/"
    assert shown(pipe, [], (text, "[red]x[/y]")) == f"{text}\n[red]x[/y]\n"


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    text = shown(Console(force_terminal=True, file=StringIO(), width=80), steps(999, 1000))
    assert text == LAST_LINE


def test_hours_are_hours(pipe: Console) -> None:
    display = Display(pipe)
    display._printed = -1e9  # the last plain line was long ago
    display(retraining(1, of=1001, speed=0.1))
    assert isinstance(pipe.file, StringIO)
    assert pipe.file.getvalue().endswith("0.1 steps/s  2:46:40 left\n")


def test_ptq_shows_each_layer(terminal: Console, pipe: Console) -> None:
    errors = [
        LayerResult(name, Width(3), 0.25, 0.1, i, 2, seconds)
        for i, name, seconds in ((1, "conv1", 12.34), (2, "[a]", 0.0))
    ]
    for console in (terminal, pipe):
        with Display(console) as display:
            for error in errors:
                display(Event("calibrate", error.done, error.layers, detail=error))
    assert isinstance(pipe.file, StringIO)
    assert isinstance(terminal.file, StringIO)
    assert pipe.file.getvalue().splitlines() == [
        "PTQ, layer 1/2  conv1  output error 10.0%, 25.0% at the nearest levels  12.3 s",
        "PTQ, layer 2/2  [a]  output error 10.0%, 25.0% at the nearest levels",
    ]
    for line in pipe.file.getvalue().splitlines():  # they survive where the bar is drawn over
        assert f"{line}\n" in terminal.file.getvalue()


# Phases.


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("octavo.progress.display.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_a_phase_announces_itself_and_counts(terminal: Console, now: list[float]) -> None:
    with Display(terminal) as display:
        display(Event("train", 0, 30, "training the network"))
        now[0] += 4
        display(Event("train", 10, 30, "training the network"))
    assert isinstance(terminal.file, StringIO)
    text = terminal.file.getvalue()
    assert text.index("training the network ") < text.index("training the network  10/30  0:00:08")


def test_elsewhere_a_phase_is_one_line_and_now_and_then_another(
    pipe: Console, now: list[float]
) -> None:
    with Display(pipe) as display:
        display(Event("score", message="measuring the metric"))
        display(Event("survey", 0, 40, "every layer"))
        for done in range(1, 41):
            now[0] += 1
            display(Event("survey", done, 40, "every layer"))
        display(Event("retrain", message="quantized, stage 1/2"))  # it ends in a line of its own
    assert isinstance(pipe.file, StringIO)
    assert pipe.file.getvalue().splitlines() == [
        "every layer",
        "every layer  16/40  0:00:24 left",
        "every layer  32/40  0:00:08 left",
    ]


def test_trials_that_come_together_do_not_count_for_the_speed(
    terminal: Console, now: list[float]
) -> None:
    """They are measured sixteen at a time; the first sixteen were measured before they came."""
    with Display(terminal) as display:
        for done in range(1, 33):
            now[0] += 8 if done == 17 else 0
            detail = Trial(Plan({"a": 2}), (0,), -1.0, 2.5, -1.0)
            display(Event("search", done, 96, detail=detail))
    assert isinstance(terminal.file, StringIO)
    assert "trial 32/96  best -1  2.0 plans/s  0:00:32 left" in terminal.file.getvalue()


# A search for bits.


def searched(
    console: Console, now: list[float], rewards: list[float], trials: int, seconds: float
) -> list[str]:
    """What is shown of a search whose PTQ takes a minute, and each trial so many seconds."""
    with Display(console) as display:
        display(Event("search", total=trials))
        now[0] += 60
        for done, reward in enumerate(rewards, 1):
            now[0] += seconds
            plan = Plan({"a": 2, "b": 3 + round(-reward) % 3})
            display(Event("search", done, trials, detail=Trial(plan, (0, 0), -7.0, 2.5, reward)))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def test_elsewhere_a_search_is_a_line_now_and_then(pipe: Console, now: list[float]) -> None:
    lines = searched(
        pipe, now, [-4, -3, -5, -2.5, -1, -2, -3, -9, -0.5], 100, 5
    )  # speed and time count from the first trial
    assert lines == [
        "trial 5/100  best -1  0.2 plans/s  0:07:55 left  ▁▃▃▅█",  # 95 plans of 5 seconds
        "best so far, bits by layer: 24",
        "trial 9/100  best -0.5  0.2 plans/s  0:07:35 left  ▁▃▃▄▇▇▇▇█",
        "best so far, bits by layer: 23",
    ]


def test_on_a_terminal_the_last_trial_stands_in_the_bar(
    terminal: Console, now: list[float]
) -> None:
    text = "".join(searched(terminal, now, [-4, -1, -2], 5, 2))
    assert "trial 3/5  best -1  0.5 plans/s  0:00:04 left  ▁██" in text
    assert "best so far, bits by layer: 24" in text


def test_a_single_plan_has_no_speed_and_says_nothing_of_the_time_left(
    terminal: Console, now: list[float]
) -> None:
    assert "trial 1/5  best -4  ▁" in "".join(searched(terminal, now, [-4], 5, 2))


def test_a_plan_more_than_was_asked_for_takes_no_time_back(
    terminal: Console, now: list[float]
) -> None:
    """The uniform plan is scored whatever is left."""
    text = "".join(searched(terminal, now, [-4, -4, -4], 2, 40))
    assert "trial 3/2  best -4  0.0 plans/s  0:00:00 left  ▁▁▁" in text


def test_a_long_search_is_a_curve_of_24_characters(
    monkeypatch: pytest.MonkeyPatch, now: list[float]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    wide = Console(
        force_terminal=True, force_interactive=True, file=StringIO(), width=160, color_system=None
    )
    text = "".join(searched(wide, now, [float(score) for score in range(48)], 48, 1))
    (curve,) = re.findall(r"left  ([▁▂▃▄▅▆▇█]+) ", text)
    assert (len(curve), curve[0], curve[-1]) == (24, "▁", "█")
    assert list(curve) == sorted(curve)


def test_a_search_and_then_stages(pipe: Console, now: list[float]) -> None:
    searched(pipe, now, [-1.0], 1, 1)
    assert shown(pipe, steps(1000)).endswith(LAST_LINE)


def test_the_widths_of_inputs_stand_beside_those_of_weights(
    terminal: Console, now: list[float]
) -> None:
    with Display(terminal) as display:
        plan = Plan({"a": "apot6", "b": 3}, activations={"b": 8})
        display(Event("search", 1, 2, detail=Trial(plan, (0, 0), -1.0, 2.5, -1.0)))
    assert isinstance(terminal.file, StringIO)
    assert "best so far, bits by layer: apot6 3x8" in terminal.file.getvalue()
