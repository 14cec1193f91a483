"""Environments without a network, for tests of what asks them."""

from collections.abc import Callable, Sequence

from octavo.dnq.environment import Measurement
from octavo.dnq.space import Choice, Partial
from octavo.network.outputs import Part


class Formula:
    """Objectives from a formula; notes what it is asked."""

    def __init__(self, objective: Callable[[Partial], float]) -> None:
        self.objective = objective
        self.asked: list[Partial] = []

    def full_outputs(self) -> tuple[Part, ...]:
        return ()

    def measure(
        self, choices: Sequence[Partial], *, keep_outputs: bool = False
    ) -> list[Measurement]:
        self.asked += choices
        return [Measurement(self.objective(choice)) for choice in choices]

    def stored_bits(self, choice: Choice) -> float:
        return float(sum(choice))
