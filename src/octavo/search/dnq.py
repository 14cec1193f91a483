"""DNQ: bit-widths by a recurrent controller and policy gradient (arXiv 1812.02375).

The paper's public record says what is learned and how, and nothing of the architecture, the features, the reward or the
quantizer's formula: all of these are our reconstruction. The controller starts by imitating the exact solution of the additive
model, unless it is asked not to. Where the score is the divergence of outputs, it goes on learning in a model of the environment,
which is made of the outputs that the choices of single layers gave and costs no evaluations (octavo.search.output_sum). Then it
learns from measured choices what layers really do to each other.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from octavo.search.bench import Bench
from octavo.search.controller import Controller
from octavo.search.output_sum import OutputSum
from octavo.search.reinforce import Reinforce, imitate, learn
from octavo.search.rivals import exact_choice
from octavo.search.space import Choice, Space

__all__ = ["dnq", "features"]

IMAGINED = 6000  # choices that are estimated before the first one is measured


def dnq(bench: Bench, *, warm: bool = True, settings: Reinforce | None = None) -> None:
    """Score choices that the controller proposes, projected onto the budget, until the evaluations are spent.

    Args:
        bench: where.
        warm: begin by imitating the exact solution of the additive model, and in a model of the environment where there is one.
        settings: of the policy gradient.

    """
    settings, space, loss = settings or Reinforce(), bench.space, bench.losses()
    width = max(len(bits) for bits in space.options)
    allowed = torch.tensor([[at < len(bits) for at in range(width)] for bits in space.options])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(bench.generator.initial_seed())
        controller = Controller(features(space, loss), allowed)
    if warm:
        start = exact_choice(bench, loss)
        bench.score([start])
        imitate(controller, _indices(space, start), settings)
        if model := bench.output_sum():
            _learn(controller, settings, bench, loss, _Imagined(bench, model))
    _learn(controller, settings, bench, loss, bench)


class _Imagined:
    """The bench's rewards as a model of the environment has them, for so many choices."""

    def __init__(self, bench: Bench, model: OutputSum) -> None:
        self._bench, self._model, self.left = bench, model, IMAGINED

    def rewards(self, choices: Sequence[Choice]) -> list[float]:
        """Estimates."""
        self.left = max(0, self.left - len(choices))
        scores = self._model.scores(choices).tolist()
        return [self._bench.reward(choice, score) for choice, score in zip(choices, scores, strict=True)]


def _learn(controller: Controller, settings: Reinforce, bench: Bench, loss: np.ndarray, judge: Bench | _Imagined) -> None:
    """Train the controller by the rewards of ``judge``."""
    space = bench.space

    def rewards(sampled: Tensor) -> tuple[Tensor, Tensor]:
        choices = [space.project(space.choice(row), loss) for row in sampled.tolist()]
        found = judge.rewards(choices)
        return torch.tensor([_indices(space, choice) for choice in choices]), torch.tensor(found, dtype=torch.float64)

    learn(controller, settings, bench.generator, rewards, left=lambda: judge.left)


def features(space: Space, loss: np.ndarray) -> Tensor:
    """What the controller reads of each layer, (layers, features).

    Its traits (log fan-in, kind), depth, log weights, log multiply-accumulates, and the logarithm of what the layer alone loses
    at each of its options.
    """
    layers = len(space.names)
    columns = [
        *zip(*space.traits, strict=True),
        np.linspace(0, 1, layers),
        np.log(np.array(space.weights, float)),
        np.log1p(np.array(space.macs, float)),
    ]
    width = max(len(bits) for bits in space.options)
    floor = max(float(np.nanmax(loss)), 1e-12) * 1e-6
    for at in range(width):
        own = [loss[layer, bits[min(at, len(bits) - 1)]] for layer, bits in enumerate(space.options)]
        columns.append(np.log(np.maximum(own, floor)))
    return torch.tensor(np.stack(columns, 1), dtype=torch.float32)


def _indices(space: Space, choice: tuple[int, ...]) -> list[int]:
    return [options.index(bits) for options, bits in zip(space.options, choice, strict=True)]
