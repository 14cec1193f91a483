"""The rival ``uniform``: the same action in every layer that is not pinned."""

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

from octavo.dnq.evaluator import Evaluator
from octavo.dnq.space import Action, Choice, Space
from octavo.formats.width import FLOAT, Width

__all__ = ["uniform", "uniform_choice"]

Bits = TypeVar("Bits", int, Width)


def uniform(evaluator: Evaluator) -> None:
    """Measure the uniform choice alone."""
    evaluator.objectives([uniform_choice(evaluator.space)])


def uniform_choice(space: Space, like: Choice | None = None) -> Choice:
    """Return the dearest uniform choice within the budget, pins kept; without a budget, the dearest
    that costs no more than ``like``.

    A layer that does not have an action gets the nearest below it. Of two choices that cost the
    same, it is the one of more bits, and of as many bits the one of sums of two powers.
    """
    most = math.inf if like is None or space.limit < math.inf else space.cost(like)
    everywhere = {action for actions in space.actions for action in actions}
    input_bits = {action.input_bits for action in everywhere} - {None, FLOAT}
    if input_bits:  # the same width everywhere, and the same bits of all inputs not in float
        widths = {action.width for action in everywhere}
        everywhere = {Action(width, bits) for width in widths for bits in input_bits}
    choices = {
        action: tuple(_at_most(actions, action) for actions in space.actions)
        for action in everywhere
    }
    fitting = [
        action
        for action, choice in choices.items()
        if space.fits(choice) and space.cost(choice) <= most
    ]
    if not fitting:
        return space.cheapest
    return choices[max(fitting, key=lambda action: (space.cost(choices[action]), action.size))]


def _at_most(actions: Sequence[Action], most: Action) -> int:
    """Return the largest action that is above ``most`` in neither of its parts; else the least."""
    width = _largest((action.width for action in actions), most.width)
    if most.input_bits is None:
        return actions.index(Action(width))
    bits = [action.input_bits for action in actions if action.input_bits is not None]
    return actions.index(Action(width, _largest(bits, most.input_bits)))


def _largest(values: Iterable[Bits], most: Bits) -> Bits:
    """Return the largest value that is not above ``most``; else the least."""
    ascending = sorted(values)
    return max((value for value in ascending if value <= most), default=ascending[0])
