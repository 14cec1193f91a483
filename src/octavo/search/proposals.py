"""Which choices to measure next: those near promising ones that are estimated to be the best."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from octavo.search.space import Choice, Space

__all__ = ["proposals"]

ROUNDS = 4
PARENTS, CHILDREN = 32, 256  # of a round: how many of the best so far are changed, how many changed ones are estimated
CHANGED = 2.0  # layers that a child draws anew, on average


def proposals(
    space: Space,
    project: Callable[[Choice], Choice],
    rewards: Callable[[Sequence[Choice]], Tensor],
    start: Sequence[Choice],
    generator: torch.Generator,
) -> Iterator[list[Choice]]:
    """Search for choices of high estimated reward, round by round further from those to start from.

    Args:
        space: of the choices.
        project: brings a choice within the budget.
        rewards: estimates, (choices,).
        start: choices within the budget.
        generator: what is drawn from.

    Yields:
        After each round the choices that it began from and those that it found, the best first.

    """
    found = _best_first(list(dict.fromkeys(start)), rewards)
    for _ in range(ROUNDS):
        parents = [found[at % min(len(found), PARENTS)] for at in range(CHILDREN)]
        children = map(project, _children(space, parents, generator))
        found = _best_first(list(dict.fromkeys([*found[:PARENTS], *children])), rewards)
        yield found


def _best_first(choices: list[Choice], rewards: Callable[[Sequence[Choice]], Tensor]) -> list[Choice]:
    order = rewards(choices).argsort(descending=True, stable=True)
    return [choices[at] for at in order.tolist()]


def _children(space: Space, parents: Sequence[Choice], generator: torch.Generator) -> list[Choice]:
    """Each parent with a few layers' options drawn evenly anew."""
    layers = len(space.names)
    anew = torch.rand(len(parents), layers, generator=generator) < CHANGED / layers
    drawn = torch.rand(len(parents), layers, generator=generator)
    return [
        tuple(
            options[int(share * len(options))] if change else bits
            for bits, options, change, share in zip(parent, space.options, changes, shares, strict=True)
        )
        for parent, changes, shares in zip(parents, anew.tolist(), drawn.tolist(), strict=True)
    ]
