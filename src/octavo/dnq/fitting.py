"""Fitting: a choice is changed until its real file is within the budget and nearly fills it.

The search estimates a file from the codes of candidates. The network that ships is solved
sequentially and has other codes, so that its file differs from the estimate by some per mille. So
the choice is solved, the limit is corrected by the difference, and the choice is brought within the
new limit, until the file fits.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from octavo.dnq.projection import project
from octavo.dnq.rivals.uniform import uniform_choice
from octavo.dnq.space import Choice, Space
from octavo.errors import BudgetError

__all__ = ["SLACK", "FileFit"]

SLACK = 0.03  # share of the budget that a file may leave unused
ROUNDS = 16  # rounds of solving and correcting; 12 doublings of the margin reach the whole budget
LEAST_MARGIN = 1 / 1024  # of the budget: the first margin after a file that was too large
PAIRS = 1000  # changes of single layers, up to which changes of two layers are tried as well


@dataclass(frozen=True, eq=False)
class FileFit:
    """A function that changes a choice until its file is within the budget, and at most ``SLACK``
    below it where the options allow.

    Attributes:
        space: a space whose costs are bytes of the file.
        losses: what each layer alone loses at each action, (layers, actions).
        file_bytes: solves a choice, and returns the bytes of its file.
        most: the most bytes of the file.

    """

    space: Space
    losses: np.ndarray
    file_bytes: Callable[[Choice], int]
    most: int

    def __call__(self, choice: Choice) -> Choice:
        """Return the changed choice, or the same one if its file fits.

        Raises:
            BudgetError: no file that was tried is within the budget.

        """
        tried: dict[Choice, int] = {}
        margin = 0.0
        for _ in range(ROUNDS):
            if choice not in tried:  # a file takes a calibration of the network
                tried[choice] = self.file_bytes(choice)
            room = self.most - tried[choice]
            if 0 <= room <= SLACK * self.most:
                return choice
            margin = 0.0 if room >= 0 else max(2 * margin, LEAST_MARGIN * self.most)
            choice = self._changed(choice, room - margin)
            if choice in tried and (room >= 0 or choice == self.space.cheapest):
                break
        return self._largest(tried)

    def uniform(self) -> Choice:
        """Return the dearest uniform choice whose file is within the budget; the cheapest of all
        where there is none.
        """
        space = replace(self.space, limit=self.space.limit + SLACK * self.most)
        choice = uniform_choice(space)
        while self.file_bytes(choice) > self.most and choice != space.cheapest:
            cheaper = np.nextafter(space.cost(choice) * (1 - 1e-9), 0)
            space = replace(space, limit=float(cheaper))
            choice = uniform_choice(space)
        return choice

    def _largest(self, tried: dict[Choice, int]) -> Choice:
        """Return the choice of the largest file within the budget."""
        fitting = {choice: size for choice, size in tried.items() if size <= self.most}
        if not fitting:
            raise BudgetError(
                f"{self.space.budget}: expected a file of at most {self.most:,} bytes, "
                f"the smallest one within the options takes {min(tried.values()):,}"
            )
        return max(fitting, key=fitting.__getitem__)

    def _changed(self, choice: Choice, room: float) -> Choice:
        """Return the choice with about ``room`` bytes more in its file, by estimate; not above."""
        cheapest = self.space.cost(self.space.cheapest)
        limit = max(self.space.cost(choice) + room, cheapest)
        space = replace(self.space, limit=limit)
        projected = project(space, choice, self.losses)
        most = space.room(projected)
        least = most - SLACK * self.most
        if least <= 0:
            return projected
        return self._finer(projected, least, most)

    def _finer(self, choice: Choice, least: float, most: float) -> Choice:
        """Return the choice with one layer changed, or two, so that this adds from ``least`` to
        ``most`` bytes and the losses grow least. Where there is none, the change of one layer that
        adds most.
        """
        layers, actions = np.nonzero(~np.isnan(self.space.costs))
        now = np.array(choice)[layers]
        added = self.space.costs[layers, actions] - self.space.costs[layers, now]  # (changes,)
        lost = self.losses[layers, actions] - self.losses[layers, now]
        moves = _least_lost(added, lost, least, most)
        if moves is None and len(layers) <= PAIRS:
            moves = _least_lost_pair(layers, added, lost, least, most)
        if moves is None:
            largest = int(np.where(added <= most, added, -np.inf).argmax())
            moves = (largest,)  # a choice that stays as it is adds 0, so there is one
        changed = list(choice)
        for move in moves:
            changed[layers[move]] = int(actions[move])
        return tuple(changed)


def _least_lost(
    added: np.ndarray, lost: np.ndarray, least: float, most: float
) -> tuple[int, ...] | None:
    """Return the change that loses least of those that add from ``least`` to ``most`` bytes."""
    fitting = (least <= added) & (added <= most)
    if not fitting.any():
        return None
    return (int(np.where(fitting, lost, np.inf).argmin()),)


def _least_lost_pair(
    layers: np.ndarray, added: np.ndarray, lost: np.ndarray, least: float, most: float
) -> tuple[int, ...] | None:
    """Return the changes of two layers that together lose least of those that fit."""
    both_added = added[:, None] + added  # (changes, changes)
    both_lost = np.where(layers[:, None] != layers, lost[:, None] + lost, np.inf)
    best = _least_lost(both_added.ravel(), both_lost.ravel(), least, most)
    if best is None or np.isinf(both_lost.flat[best[0]]):
        return None
    return tuple(int(index) for index in divmod(best[0], len(added)))
