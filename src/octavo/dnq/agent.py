"""DNQ: bit-widths by a recurrent controller and policy gradient (arXiv 1812.02375).

The paper's public record says what is learned and how, and nothing of the architecture, the
features, the reward or the quantizer's formula: all of these are our reconstruction. The controller
starts by imitating the exact solution of the additive model, unless it is asked not to, and goes on
learning in a model of the environment, which costs no evaluations. Then it learns from choices that
are measured. Of those near its samples and near the best so far the ones are measured that are
estimated to be the best, by that model, corrected by all that was measured
(octavo.dnq.world_model).
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from octavo.dnq.evaluator import Evaluator
from octavo.dnq.policy import Policy
from octavo.dnq.proposals import proposals
from octavo.dnq.reinforce import Reinforce, imitate, learn
from octavo.dnq.rivals.methods import exact_choice
from octavo.dnq.space import Choice, Space
from octavo.dnq.widths import width_index
from octavo.dnq.world_model import WorldModel

__all__ = ["dnq", "features"]

IMAGINED = 6000  # choices that are estimated before the first of the controller's is measured
# choices that are measured of each round of proposals: what is near is estimated well, what is far
# may be better
MEASURED = 2


def dnq(bench: Evaluator, *, warm: bool = True, settings: Reinforce | None = None) -> None:
    """Score choices near what the controller samples, all within the budget, until the evaluations
    are spent.

    Args:
        bench: where.
        warm: begin by imitating the exact solution of the additive model, then learn in the model
            of the environment; else the model only says what to measure.
        settings: of the policy gradient.

    """
    settings, space, loss = settings or Reinforce(), bench.space, bench.losses()
    width = max(len(bits) for bits in space.options)
    allowed = torch.tensor([[at < len(bits) for at in range(width)] for bits in space.options])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(bench.generator.initial_seed())
        controller = Policy(features(space, loss), allowed)
    estimate = _estimate(bench, loss)
    measured = _Measured(bench, loss, estimate)
    if warm:
        start = exact_choice(bench, loss)
        measured.score([start])
        imitate(controller, _indices(space, start), settings)
        _learn(controller, settings, bench, loss, _Imagined(bench, estimate))
    _learn(controller, settings, bench, loss, measured)


class _Imagined:
    """Rewards of choices as they are estimated, so many times."""

    def __init__(self, bench: Evaluator, estimate: WorldModel) -> None:
        self._bench, self._estimate, self.left = bench, estimate, IMAGINED

    def rewards(self, choices: Sequence[Choice]) -> tuple[Sequence[Choice], list[float]]:
        """The choices with their rewards."""
        self.left = max(0, self.left - len(choices))
        return choices, _estimated(self._bench, self._estimate, choices)


class _Measured:
    """Measured rewards of choices near the given ones and near the best so far: those that promise
    most.
    """

    def __init__(self, bench: Evaluator, loss: np.ndarray, estimate: WorldModel) -> None:
        self._bench, self._loss, self._estimate = bench, loss, estimate

    @property
    def left(self) -> int:
        """How many choices may still be measured."""
        return self._bench.left

    def rewards(self, choices: Sequence[Choice]) -> tuple[Sequence[Choice], list[float]]:
        """The choices that were measured with their rewards; where none of those that are near is
        new, the best of them.
        """
        bench = self._bench
        start = [*choices, bench.best.choice] if bench.trials else choices
        tried: list[Choice] = []
        estimated = functools.partial(_estimated, bench, self._estimate)
        for found in proposals(bench.space, self._project, estimated, start, bench.generator):
            tried += [
                choice for choice in found if choice not in tried and not bench.knows(choice)
            ][:MEASURED]
        tried = tried or found[:MEASURED]
        return tried, bench.rewards_of(tried, self.score(tried))

    def score(self, choices: Sequence[Choice]) -> list[float]:
        """Measured scores, from which the estimate learns."""
        new = [not self._bench.knows(choice) for choice in choices]
        scores = self._bench.score(choices)
        learned = [at for at, score in enumerate(scores) if new[at] and score > -np.inf]
        self._estimate.learn([choices[at] for at in learned], [scores[at] for at in learned])
        return scores

    def _project(self, choice: Choice) -> Choice:
        return self._bench.space.project(choice, self._loss)


def _estimated(bench: Evaluator, estimate: WorldModel, choices: Sequence[Choice]) -> list[float]:
    """Rewards of choices as they are estimated."""
    return bench.rewards_of(choices, estimate.scores(choices).tolist())


def _estimate(bench: Evaluator, loss: np.ndarray) -> WorldModel:
    """It begins from summed outputs; where the score is not of outputs, from summed losses."""
    if outputs := bench.output_sum():
        return WorldModel(bench.space.options, outputs.scores, divergence=True)
    layers = range(len(loss))
    return WorldModel(
        bench.space.options,
        lambda choices: torch.tensor(
            [-loss[layers, list(map(width_index, choice))].sum() for choice in choices],
            dtype=torch.float64,
        ),
        divergence=False,
    )


def _learn(
    controller: Policy,
    settings: Reinforce,
    bench: Evaluator,
    loss: np.ndarray,
    judge: _Imagined | _Measured,
) -> None:
    """Train the controller by the rewards of ``judge``."""
    space = bench.space

    def rewards(sampled: Tensor) -> tuple[Tensor, Tensor]:
        tried, found = judge.rewards(
            [space.project(space.choice(row), loss) for row in sampled.tolist()]
        )
        return torch.tensor([_indices(space, choice) for choice in tried]), torch.tensor(
            found, dtype=torch.float64
        )

    learn(controller, settings, bench.generator, rewards, left=lambda: judge.left)


def features(space: Space, loss: np.ndarray) -> Tensor:
    """What the controller reads of each layer, (layers, features).

    Its traits (log fan-in, kind), depth, log weights, log multiply-accumulates, and the logarithm
    of what the layer alone loses at each of its options.
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
        own = [
            loss[layer, width_index(bits[min(at, len(bits) - 1)])]
            for layer, bits in enumerate(space.options)
        ]
        columns.append(np.log(np.maximum(own, floor)))
    return torch.tensor(np.stack(columns, 1), dtype=torch.float32)


def _indices(space: Space, choice: tuple[int, ...]) -> list[int]:
    return [options.index(bits) for options, bits in zip(space.options, choice, strict=True)]
