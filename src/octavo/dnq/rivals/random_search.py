"""The rival ``random``: choices drawn at random and brought within the budget, at random too."""

import numpy as np
import torch

from octavo.dnq.evaluator import Evaluator
from octavo.dnq.projection import project
from octavo.dnq.space import Action, Space

__all__ = ["random_search"]

DRAWS = 100  # for each evaluation: a small space may have fewer choices than evaluations


def random_search(evaluator: Evaluator) -> None:
    """Measure random choices until the evaluations, or the draws, are spent."""
    space = evaluator.space
    generator = evaluator.generator
    for _ in range(DRAWS * evaluator.left):
        if not evaluator.left:
            return
        drawn = tuple(
            int(torch.randint(len(actions), (), generator=generator)) for actions in space.actions
        )
        evaluator.objectives([project(space, drawn, _random_losses(space, generator))])


def _random_losses(space: Space, generator: torch.Generator) -> np.ndarray:
    """Return losses that fall with the bits in random steps, (layers, actions).

    They serve to project a choice at random.
    """
    layers = len(space.names)
    shape = (layers, 9)  # by bits, 0 to 8

    def drawn() -> np.ndarray:
        return torch.rand(shape, generator=generator, dtype=torch.float64).numpy()

    steps = drawn()
    of_codebook = {"power_of_two": -steps.cumsum(1)}
    of_inputs = -drawn().cumsum(1) if space.actions[0][0].input_bits is not None else steps * 0
    names = {action.width.codebook for actions in space.actions for action in actions}
    for number, name in enumerate(sorted(names - {"power_of_two"})):  # as likely better as worse
        own = drawn() if number else steps
        of_codebook[name] = of_codebook["power_of_two"] + 2 * own - 1

    def loss(layer: int, action: Action) -> float:
        of_width = of_codebook[action.width.codebook]
        bits = action.input_bits or 0
        column = bits if bits <= 8 else 1  # inputs in float take a column that no bits need
        return float(of_width[layer, action.width.bits] + of_inputs[layer, column])

    table = np.full((layers, max(map(len, space.actions))), np.nan)
    for layer, actions in enumerate(space.actions):
        table[layer, : len(actions)] = [loss(layer, action) for action in actions]
    return table
