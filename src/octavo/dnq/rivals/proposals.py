"""Proposals: choices near promising ones that are estimated to be the best."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from octavo.dnq.space import Choice, Space

__all__ = ["proposals"]

ROUNDS = 4
PARENTS = 32  # the best so far that a round changes
CHILDREN = 256  # changed choices that a round estimates
CHANGED = 2.0  # layers that a child draws anew, on average


def proposals(
    space: Space,
    within: Callable[[Choice], Choice],
    rewards: Callable[[Sequence[Choice]], Sequence[float]],
    start: Sequence[Choice],
    generator: torch.Generator,
) -> Iterator[list[Choice]]:
    """Search for choices of high estimated reward, round by round further from the start.

    Args:
        space: the space of the choices.
        within: brings a choice within the budget.
        rewards: estimates, one for each choice.
        start: choices within the budget.
        generator: what is drawn from.

    Yields:
        After each round the choices that it began from and those that it found, the best first.

    """
    known: dict[Choice, float] = {}

    def best_first(choices: Iterable[Choice]) -> list[Choice]:
        distinct = list(dict.fromkeys(choices))
        new = [choice for choice in distinct if choice not in known]
        if new:
            known.update(zip(new, rewards(new), strict=True))
        return sorted(distinct, key=known.__getitem__, reverse=True)

    ranked = best_first(start)
    for _ in range(ROUNDS):
        best = ranked[:PARENTS]
        parents = [best[child % len(best)] for child in range(CHILDREN)]
        children = map(within, _children(space, parents, generator))
        ranked = best_first([*best, *children])
        yield ranked


def _children(space: Space, parents: Sequence[Choice], generator: torch.Generator) -> list[Choice]:
    """Return each parent with a few layers' actions drawn evenly anew."""
    shape = (len(parents), len(space.names))
    uniform = functools.partial(torch.rand, shape, generator=generator, dtype=torch.float32)
    changed = uniform() < CHANGED / len(space.names)
    drawn = uniform()
    rows = zip(parents, changed.tolist(), drawn.tolist(), strict=True)
    return [
        tuple(
            int(share * len(actions)) if change else action
            for action, actions, change, share in zip(
                parent, space.actions, changes, shares, strict=True
            )
        )
        for parent, changes, shares in rows
    ]
