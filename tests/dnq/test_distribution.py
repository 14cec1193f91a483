"""The policy's distribution against the enumeration of all choices."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.dnq.distribution import UNITS, UNITS_PER_LAYER, Ledger, WithinBudget
from octavo.dnq.space import Choice

NONE = math.nan


def allowed_choices(costs: np.ndarray) -> list[Choice]:
    """All choices of actions that the layers have."""
    return list(itertools.product(*[np.flatnonzero(row == row).tolist() for row in costs]))


def probabilities_of(
    ledger: Ledger, costs: np.ndarray, logits: Tensor, room: int
) -> dict[Choice, float]:
    """The definition, by enumeration: the policy's own probability of each choice that fits in
    whole units, times what the unspent units take away, as a share of the sum over all of them."""
    own = np.where(np.isnan(costs), -np.inf, logits.numpy())
    own = own - np.logaddexp.reduce(own, 1, keepdims=True)
    weights = {}
    for choice in allowed_choices(costs):
        unspent = room - sum(int(ledger.units[pair]) for pair in enumerate(choice))
        if unspent >= 0:
            summed = sum(own[pair] for pair in enumerate(choice))
            weights[choice] = math.exp(summed - unspent / ledger.step)
    total = sum(weights.values())
    return {choice: weight / total for choice, weight in weights.items()}


def cost_of(costs: np.ndarray, choice: Choice) -> float:
    return float(sum(costs[pair] for pair in enumerate(choice)))


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, list[float], int]:
    """Costs of at most three layers, up to three limits that some choice meets, and a seed."""
    layer = st.lists(st.integers(1, 60), min_size=1, max_size=4)
    rows = draw(st.lists(layer, min_size=1, max_size=3))
    costs = np.full((len(rows), max(map(len, rows))), np.nan)
    for row, drawn in zip(costs, rows, strict=True):
        row[: len(drawn)] = drawn
    low = float(np.nanmin(costs, 1).sum())
    high = float(np.nanmax(costs, 1).sum())
    shares = draw(st.lists(st.floats(0, 1.1), min_size=1, max_size=3))
    limits = [low + (high - low) * share for share in shares]
    return costs, limits, draw(st.integers(0, 1000))


def distribution_of(
    costs: np.ndarray, limits: list[float], seed: int
) -> tuple[Ledger, Tensor, Tensor, WithinBudget]:
    ledger = Ledger(costs, max(limits))
    generator = torch.Generator().manual_seed(seed)
    shape = (len(limits), *costs.shape)
    logits = 1.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
    rooms = ledger.rooms(torch.tensor(limits, dtype=torch.float64))
    return ledger, logits, rooms, WithinBudget(ledger, logits, rooms)


@settings(max_examples=40, deadline=None)
@given(problems())
def test_probabilities_mode_and_entropy_are_those_of_the_enumeration(
    problem: tuple[np.ndarray, list[float], int],
) -> None:
    costs, limits, seed = problem
    ledger, logits, rooms, within = distribution_of(costs, limits, seed)
    every = allowed_choices(costs)
    asked = torch.tensor(every).expand(len(limits), -1, -1)
    computed = within.log_probability(asked).exp()
    modes = within.mode()
    for at, room in enumerate(rooms.tolist()):
        expected = probabilities_of(ledger, costs, logits[at], room)
        assert [expected.get(choice, 0.0) for choice in every] == pytest.approx(
            computed[at].tolist(), abs=1e-12
        )
        assert float(computed[at].sum()) == pytest.approx(1)
        mode = tuple(modes[at].tolist())
        assert expected[mode] == pytest.approx(max(expected.values()))
        entropy = -sum(p * math.log(p) for p in expected.values() if p)
        assert float(within.entropy()[at]) == pytest.approx(entropy, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(problems())
def test_samples_fit_the_true_limits_and_are_of_actions_that_there_are(
    problem: tuple[np.ndarray, list[float], int],
) -> None:
    costs, limits, seed = problem
    _, _, _, within = distribution_of(costs, limits, seed)
    sampled = within.sample(20, torch.Generator().manual_seed(seed))
    assert sampled.shape == (len(limits), 20, len(costs))
    choices = torch.cat([sampled, within.mode().unsqueeze(1)], 1).tolist()
    for limit, under in zip(limits, choices, strict=True):
        for choice in under:
            assert cost_of(costs, choice) <= limit * (1 + 1e-12)  # False for an action of no cost


@settings(max_examples=40, deadline=None)
@given(problems())
def test_no_choice_is_lost_that_leaves_a_unit_for_each_layer(
    problem: tuple[np.ndarray, list[float], int],
) -> None:
    """Costs are rounded up to whole units, so only those at the very limit may be lost."""
    costs, limits, seed = problem
    _, _, _, within = distribution_of(costs, limits, seed)
    low = float(np.nanmin(costs, 1).sum())
    unit = (max(limits) - low) / max(UNITS, UNITS_PER_LAYER * len(costs))
    for at, limit in enumerate(limits):
        safe = [
            choice
            for choice in allowed_choices(costs)
            if cost_of(costs, choice) <= limit - (len(costs) + 1) * unit
        ]
        if safe:
            asked = torch.tensor(safe).expand(len(limits), -1, -1)
            assert bool(within.log_probability(asked)[at].isfinite().all())


COSTS = np.array([[1.0, 2, 4, NONE], [3, 5, NONE, NONE], [2, 3, 4, 7]])


def test_samples_have_the_stated_frequencies_under_each_of_several_budgets() -> None:
    count = 20_000
    ledger, logits, rooms, within = distribution_of(COSTS, [13.0, 9.0], 0)
    sampled = within.sample(count, torch.Generator().manual_seed(1))
    for at, room in enumerate(rooms.tolist()):
        expected = probabilities_of(ledger, COSTS, logits[at], room)
        drawn = [tuple(choice) for choice in sampled[at].tolist()]
        assert set(drawn) <= set(expected)
        assert len(expected) > 5
        for choice, probability in expected.items():
            deviation = math.sqrt(probability * (1 - probability) / count)
            assert drawn.count(choice) / count == pytest.approx(probability, abs=4 * deviation)


def test_without_a_limit_layers_are_independent() -> None:
    _, logits, _, within = distribution_of(COSTS, [math.inf], 3)
    own = logits[0].masked_fill(torch.from_numpy(np.isnan(COSTS)), -torch.inf).log_softmax(1)
    every = allowed_choices(COSTS)
    expected = [float(sum(own[pair] for pair in enumerate(choice))) for choice in every]
    computed = within.log_probability(torch.tensor([every]))[0]
    assert computed.tolist() == pytest.approx(expected)
    assert within.mode()[0].tolist() == own.argmax(1).tolist()
    plogp = own.exp() * own.clamp(min=-1e6)
    assert float(within.entropy()) == pytest.approx(-float(plogp.sum()))


def test_a_limit_that_leaves_the_cheapest_choice_alone_gives_it() -> None:
    _, _, _, within = distribution_of(1e6 * COSTS, [6e6], 0)
    generator = torch.Generator().manual_seed(0)
    assert within.sample(50, generator).unique(dim=1).tolist() == [[[0, 0, 0]]]
    assert within.mode().tolist() == [[0, 0, 0]]
    assert float(within.entropy()) == pytest.approx(0, abs=1e-9)


def test_what_is_left_of_a_budget_counts_in_steps_between_actions() -> None:
    """Two layers of two actions of equal logits: the dearer action takes one step more, so that it
    is e times as probable."""
    costs = np.array([[1.0, 2.0], [1.0, 2.0]])
    ledger = Ledger(costs, 4.0)
    within = WithinBudget(
        ledger,
        torch.zeros(1, 2, 2, dtype=torch.float64),
        ledger.rooms(torch.tensor([4.0], dtype=torch.float64)),
    )
    cheap, middle, dear = within.log_probability(torch.tensor([[[0, 0], [0, 1], [1, 1]]]))[0].exp()
    assert float(middle / cheap) == pytest.approx(math.e)
    assert float(dear / middle) == pytest.approx(math.e)


def test_the_log_probability_has_the_gradient_of_the_enumeration() -> None:
    """By finite differences of the enumerated probabilities, in each logit."""
    ledger, logits, rooms, _ = distribution_of(COSTS, [9.0], 5)
    choice = (1, 0, 1)
    own = logits.clone().requires_grad_()
    WithinBudget(ledger, own, rooms).log_probability(torch.tensor([[choice]])).sum().backward()
    assert own.grad is not None
    step = 1e-6
    for layer, action in itertools.product(range(3), range(4)):
        moved = []
        for sign in (1, -1):
            changed = logits[0].clone()
            changed[layer, action] += sign * step
            moved.append(math.log(probabilities_of(ledger, COSTS, changed, int(rooms[0]))[choice]))
        slope = (moved[0] - moved[1]) / (2 * step)
        assert float(own.grad[0, layer, action]) == pytest.approx(slope, abs=1e-7)


def test_marginals_are_those_of_the_enumeration() -> None:
    ledger, logits, rooms, within = distribution_of(COSTS, [13.0, 9.0], 0)
    for at, room in enumerate(rooms.tolist()):
        expected = np.zeros(COSTS.shape)
        for choice, probability in probabilities_of(ledger, COSTS, logits[at], room).items():
            expected[range(len(choice)), choice] += probability
        assert within.marginals()[at].numpy() == pytest.approx(expected, abs=1e-9)
