"""Progress callbacks that keep what they see, for the report of a run."""

from collections.abc import Callable, Sequence
from pathlib import Path

from octavo.dnq.belief import Belief
from octavo.network.warned import warn
from octavo.progress import Event, Progress
from octavo.runs.training import StepFigures

__all__ = ["LossCurve", "Stopwatch", "diverged", "keeping_beliefs", "warn_if_diverged"]

POINTS = 60  # points of a stage's loss curve
LEAST_POINTS = 4  # a shorter curve says too little
LOST = 1.0  # a loss above it is large
RISEN = 2.0  # a loss so many times the first one has risen
NAMES = {"search": "search", "policy": "search", "calibrate": "post-training quantization"}
OTHER = "scores and files"  # the time that belongs to no long computation


class LossCurve:
    """The loss of a stage of retraining, step by step, from the events of ``retrain``.

    An event has the mean loss since the stage began. The difference of two such sums is the loss
    of the steps between the two events.

    Args:
        means: the curve so far of a stage that goes on.

    Attributes:
        means: for each event, its step and the mean loss up to there.

    """

    def __init__(self, means: Sequence[tuple[int, float]] = ()) -> None:
        self.means = list(means)

    def add(self, event: Event) -> None:
        """Take in an event of retraining."""
        if isinstance(event.detail, StepFigures):
            self.means.append((event.done, event.detail.loss))

    def points(self, most: int = POINTS) -> list[tuple[int, float]]:
        """Return at most so many points: a step, and the mean loss since the point before it."""
        every = -(-len(self.means) // most)  # rounded up
        picked = self.means[::-1][:: max(every, 1)][::-1]  # the last one is always among them
        points = []
        steps = 0
        total = 0.0
        for step, mean in picked:
            since = mean * step - total
            points.append((step, round(since / (step - steps), 6)))
            steps = step
            total = mean * step
        return points


def warn_if_diverged(
    label: str, curve: Sequence[tuple[int, float]], learning_rate: float, file: Path
) -> None:
    """Warn if the loss of a stage rose instead of falling.

    Args:
        label: the stage, in words.
        curve: as :func:`diverged` takes it.
        learning_rate: of the stage.
        file: holds the state after it, from which the same command would go on.

    """
    if diverged(curve):
        warn(
            f"{label}: retraining diverged: its loss rose from {curve[0][1]:.3g} to "
            f"{curve[-1][1]:.3g}. Lower the learning rate, as by --set "
            f"retraining.learning_rate={learning_rate / 10:g}, in another folder, or delete {file}"
        )


def diverged(curve: Sequence[tuple[int, float]]) -> bool:
    """Tell if retraining did harm: at its end the loss is far above what it was at its start.

    The rate of a stage falls to nothing, so that its last steps should be its best. The losses of
    octavo's own retraining are a KL divergence or a relative squared error, which say by themselves
    that an output is lost when they come near 1; a loss of the user's own may begin above that.

    Args:
        curve: pairs of a step and the mean loss since the pair before.

    """
    losses = [loss for _, loss in curve]
    if len(losses) < LEAST_POINTS:
        return False
    last = losses[-max(1, len(losses) // 4) :]
    return sum(last) / len(last) > max(LOST, RISEN * losses[0])


class Stopwatch:
    """A progress callback that counts the seconds of each phase, and passes the events on.

    The time since the event before belongs to the phase of the event that has come. A phase is
    named in the words of the page.

    Attributes:
        seconds: seconds by the name of the phase, in the order in which the phases began.

    """

    def __init__(self, progress: Progress, clock: Callable[[], float]) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._clock = clock
        self._last = clock()

    def __call__(self, event: Event) -> None:
        """Count the time until the event, and pass it on."""
        self.count(self._name(event))
        self._progress(event)

    def count(self, name: str = OTHER) -> None:
        """Add the time since the last event to the phase of this name."""
        now = self._clock()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def _name(self, event: Event) -> str:
        """Return the name of an event's phase; the first event of a phase ends what was before."""
        if event.phase == "retrain" and event.done:
            return f"retraining, {event.message.partition(',')[0]}"
        if event.phase in NAMES and event.detail is not None:
            return NAMES[event.phase]
        return OTHER


def keeping_beliefs(progress: Progress, beliefs: list[Belief]) -> Progress:
    """Return a progress callback that appends what the policy believes to ``beliefs``."""

    def watch(event: Event) -> None:
        if isinstance(event.detail, Belief):
            beliefs.append(event.detail)
        progress(event)

    return watch
