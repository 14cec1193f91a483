"""Which choices to measure next: those near promising ones that are estimated to be the best."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from octavo.dnq.space import Choice, Space

__all__ = ["proposals"]

ROUNDS = 4
PARENTS, CHILDREN = (
    32,
    256,
)  # of a round: how many of the best so far are changed, how many changed ones are estimated
CHANGED = 2.0  # layers that a child draws anew, on average


def proposals(
    space: Space,
    project: Callable[[Choice], Choice],
    rewards: Callable[[Sequence[Choice]], Sequence[float]],
    start: Sequence[Choice],
    generator: torch.Generator,
) -> Iterator[list[Choice]]:
    """Search for choices of high estimated reward, round by round further from those to start from.

    Args:
        space: of the choices.
        project: brings a choice within the budget.
        rewards: estimates, one for each choice.
        start: choices within the budget.
        generator: what is drawn from.

    Yields:
        After each round the choices that it began from and those that it found, the best first.

    """
    known = dict[Choice, float]()

    def best_first(choices: Iterable[Choice]) -> list[Choice]:
        distinct = list(dict.fromkeys(choices))
        if new := [choice for choice in distinct if choice not in known]:
            known.update(zip(new, rewards(new), strict=True))
        return sorted(distinct, key=known.__getitem__, reverse=True)

    found = best_first(start)
    for _ in range(ROUNDS):
        parents = [found[at % min(len(found), PARENTS)] for at in range(CHILDREN)]
        found = best_first([*found[:PARENTS], *map(project, _children(space, parents, generator))])
        yield found


def _children(space: Space, parents: Sequence[Choice], generator: torch.Generator) -> list[Choice]:
    """Each parent with a few layers' options drawn evenly anew."""
    layers = len(space.names)
    anew = torch.rand(len(parents), layers, generator=generator) < CHANGED / layers
    drawn = torch.rand(len(parents), layers, generator=generator)
    return [
        tuple(
            options[int(share * len(options))] if change else bits
            for bits, options, change, share in zip(
                parent, space.options, changes, shares, strict=True
            )
        )
        for parent, changes, shares in zip(parents, anew.tolist(), drawn.tolist(), strict=True)
    ]
