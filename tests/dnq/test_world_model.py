"""Estimates of objectives against the Gaussian process by hand, and against what was measured."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.dnq import world_model as module
from octavo.dnq.output_sum import OutputSum
from octavo.dnq.sensitivity import Sensitivity
from octavo.dnq.space import Action, Choice
from octavo.dnq.world_model import NOISE, REACH, WorldModel, world_model_of
from octavo.network.outputs import Part

BITS = ((2, 3), (2, 3, 5), (4,), (2, 3))
ACTIONS = tuple(tuple(map(Action.parse, bits)) for bits in BITS)
EVERY = list(itertools.product(*(range(len(bits)) for bits in BITS)))


def first(choices: Sequence[Choice]) -> Tensor:
    """A model by which every layer loses 2 to the minus bits."""
    bits = [[own[at] for own, at in zip(BITS, choice, strict=True)] for choice in choices]
    return torch.tensor([-sum(2.0**-own for own in row) for row in bits])


def real(choice: Choice) -> float:
    """What the environment says: half as much again, and more where the first two layers are both
    coarse."""
    return 1.5 * float(first([choice])) - 0.3 * (choice[:2] == (0, 0))


def by_hand(measured: Sequence[Choice], wrong_by: Sequence[float], asked: Choice) -> float:
    """The mean of the Gaussian process at a choice, in numpy."""

    def alike(one: Choice, other: Choice) -> float:
        return math.exp(-sum(a != b for a, b in zip(one, other, strict=True)) / REACH)

    covariance = np.array(
        [
            [alike(a, b) + NOISE * (at == by) for by, b in enumerate(measured)]
            for at, a in enumerate(measured)
        ]
    )
    mean = sum(wrong_by) / len(wrong_by)
    shares = np.linalg.inv(covariance) @ (np.array(wrong_by) - mean)
    return mean + float(np.array([alike(asked, one) for one in measured]) @ shares)


def test_before_anything_is_measured_it_is_the_first_model() -> None:
    for divergence in (False, True):
        assert torch.allclose(
            WorldModel(ACTIONS, first, divergence=divergence).objectives(EVERY),
            first(EVERY).double(),
        )


@pytest.mark.parametrize("divergence", [False, True])
def test_it_is_corrected_by_the_mean_of_the_gaussian_process(divergence: bool) -> None:
    estimate, measured = WorldModel(ACTIONS, first, divergence=divergence), EVERY[::3]
    for choice in measured:  # one by one: it is as if all came at once
        estimate.learn([choice], [real(choice)])
    estimates = [float(score) for score in first(EVERY)]
    if divergence:
        wrong_by = [math.log(float(first([choice])) / real(choice)) for choice in measured]
        expected = [
            score * math.exp(-by_hand(measured, wrong_by, at))
            for at, score in zip(EVERY, estimates, strict=True)
        ]
    else:
        wrong_by = [real(choice) - float(first([choice])) for choice in measured]
        expected = [
            score + by_hand(measured, wrong_by, at)
            for at, score in zip(EVERY, estimates, strict=True)
        ]
    assert estimate.objectives(EVERY).tolist() == pytest.approx(expected, rel=1e-6)


def test_what_is_measured_brings_its_neighbours_nearer_too() -> None:
    estimate, known, near = WorldModel(ACTIONS, first, divergence=True), (0, 0, 0, 0), (0, 0, 0, 1)
    far = (1, 2, 0, 1)
    estimate.learn([far, known], [real(far), real(known)])
    for choice, share in ((known, 0.1), (near, 0.3)):
        assert abs(float(estimate.objectives([choice])) - real(choice)) < share * abs(
            float(first([choice])) - real(choice)
        )


def test_a_measured_divergence_of_nothing_is_no_infinity() -> None:
    estimate = WorldModel(ACTIONS, lambda choices: torch.zeros(len(choices)), divergence=True)
    estimate.learn(EVERY[:2], [0.0, -0.5])
    assert bool(estimate.objectives(EVERY).isfinite().all())


def test_only_the_latest_measurements_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 3)
    long, short = (WorldModel(ACTIONS, first, divergence=False) for _ in range(2))
    long.learn(EVERY[:5], [real(choice) - 7 for choice in EVERY[:5]])
    for estimate, some in ((long, EVERY[5:8]), (short, EVERY[5:8])):
        estimate.learn(some, [real(choice) for choice in some])
    assert torch.equal(long.objectives(EVERY), short.objectives(EVERY))


def test_small_differences_of_large_scores_are_learned() -> None:
    estimate = WorldModel(
        ACTIONS,
        lambda choices: torch.full((len(choices),), 1e6, dtype=torch.float64),
        divergence=False,
    )
    estimate.learn([EVERY[0], EVERY[-1]], [1e6 + 0.001, 1e6 + 0.02])
    worse, better = estimate.objectives([EVERY[0], EVERY[-1]]).tolist()
    assert 0.001 < better - worse < 0.019


def test_nothing_measured_teaches_nothing() -> None:
    estimate = WorldModel(ACTIONS, first, divergence=False)
    estimate.learn([], [])
    assert torch.allclose(estimate.objectives(EVERY), first(EVERY).double())


def test_without_outputs_it_begins_from_summed_losses() -> None:
    losses = np.array([[0.5, 0.25], [2.0, np.nan]])
    model = world_model_of(ACTIONS[:1] + ACTIONS[2:3], Sensitivity(losses))
    assert model.objectives([(0, 0), (1, 0)]).tolist() == [-2.5, -2.25]


def test_with_outputs_it_begins_from_their_sum() -> None:
    torch.manual_seed(0)
    full = (Part("", False, torch.randn(4, 3)),)
    changed = {pair: (torch.randn(4, 3),) for pair in ((0, 0), (0, 1), (1, 0))}
    model = world_model_of(ACTIONS[:1] + ACTIONS[2:3], Sensitivity(np.zeros((2, 2)), full, changed))
    expected = OutputSum(full, changed).objectives([(0, 0), (1, 0)])
    assert torch.allclose(model.objectives([(0, 0), (1, 0)]), expected.double())
