"""Estimates of scores against the Gaussian process by hand, and against what was measured."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.dnq import world_model as module
from octavo.dnq.space import Choice
from octavo.dnq.world_model import NOISE, REACH, WorldModel

OPTIONS = ((2, 3), (2, 3, 5), (4,), (2, 3))
EVERY = list(itertools.product(*OPTIONS))


def first(choices: Sequence[Choice]) -> Tensor:
    """A model by which every layer loses 2 to the minus bits."""
    return torch.tensor([-sum(2.0**-bits for bits in choice) for choice in choices])


def real(choice: Choice) -> float:
    """What the environment says: half as much again, and more where the first two layers are both
    coarse."""
    return 1.5 * float(first([choice])) - 0.3 * (choice[:2] == (2, 2))


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
            WorldModel(OPTIONS, first, divergence=divergence).scores(EVERY), first(EVERY).double()
        )


@pytest.mark.parametrize("divergence", [False, True])
def test_it_is_corrected_by_the_mean_of_the_gaussian_process(divergence: bool) -> None:
    estimate, measured = WorldModel(OPTIONS, first, divergence=divergence), EVERY[::3]
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
    assert estimate.scores(EVERY).tolist() == pytest.approx(expected, rel=1e-6)


def test_what_is_measured_brings_its_neighbours_nearer_too() -> None:
    estimate, known, near = WorldModel(OPTIONS, first, divergence=True), (2, 2, 4, 2), (2, 2, 4, 3)
    far = (3, 5, 4, 3)
    estimate.learn([far, known], [real(far), real(known)])
    for choice, share in ((known, 0.1), (near, 0.3)):
        assert abs(float(estimate.scores([choice])) - real(choice)) < share * abs(
            float(first([choice])) - real(choice)
        )


def test_a_measured_divergence_of_nothing_is_no_infinity() -> None:
    estimate = WorldModel(OPTIONS, lambda choices: torch.zeros(len(choices)), divergence=True)
    estimate.learn(EVERY[:2], [0.0, -0.5])
    assert bool(estimate.scores(EVERY).isfinite().all())


def test_only_the_latest_measurements_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 3)
    long, short = (WorldModel(OPTIONS, first, divergence=False) for _ in range(2))
    long.learn(EVERY[:5], [real(choice) - 7 for choice in EVERY[:5]])
    for estimate, some in ((long, EVERY[5:8]), (short, EVERY[5:8])):
        estimate.learn(some, [real(choice) for choice in some])
    assert torch.equal(long.scores(EVERY), short.scores(EVERY))


def test_small_differences_of_large_scores_are_learned() -> None:
    estimate = WorldModel(
        OPTIONS,
        lambda choices: torch.full((len(choices),), 1e6, dtype=torch.float64),
        divergence=False,
    )
    estimate.learn([EVERY[0], EVERY[-1]], [1e6 + 0.001, 1e6 + 0.02])
    worse, better = estimate.scores([EVERY[0], EVERY[-1]]).tolist()
    assert 0.001 < better - worse < 0.019


def test_nothing_measured_teaches_nothing() -> None:
    estimate = WorldModel(OPTIONS, first, divergence=False)
    estimate.learn([], [])
    assert torch.allclose(estimate.scores(EVERY), first(EVERY).double())
