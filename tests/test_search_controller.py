"""The learned controller: where it starts, what its gradient is, and what it finds that chance does not."""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.plan import Budget
from octavo.search import reinforce
from octavo.search.bench import Bench
from octavo.search.controller import Controller
from octavo.search.dnq import dnq
from octavo.search.environment import Environment, Partial
from octavo.search.journal import Journal
from octavo.search.reinforce import Reinforce, imitate, learn, surrogate
from octavo.search.rivals import RIVALS
from octavo.search.space import Choice, Space

ALLOWED = torch.arange(4) < torch.tensor([[4], [1], [2], [3]])


def controller_of(allowed: Tensor = ALLOWED, seed: int = 0) -> Controller:
    torch.manual_seed(seed)
    return Controller(torch.randn(len(allowed), 3), allowed)


def test_it_starts_uniform_over_what_each_layer_may_get() -> None:
    for seed in range(3):
        expected = ALLOWED / ALLOWED.sum(1, keepdim=True)
        assert torch.allclose(controller_of(seed=seed)().exp(), expected)


def test_what_a_layer_may_not_get_is_never_proposed() -> None:
    """Not even where all that is learned speaks for it."""
    controller = controller_of()
    with torch.no_grad():
        controller.own.copy_((~ALLOWED) * 1e4)
    proposed = torch.multinomial(controller().exp(), 5000, replacement=True, generator=torch.Generator().manual_seed(0))
    for row, allowed in zip(proposed, ALLOWED, strict=True):
        assert set(row.tolist()) == set(allowed.nonzero().flatten().tolist())
    (-controller()[ALLOWED].sum()).backward()
    assert all(parameter.grad is None or bool(parameter.grad.isfinite().all()) for parameter in controller.parameters())


def test_features_that_are_the_same_in_all_layers_do_no_harm() -> None:
    torch.manual_seed(0)
    controller = Controller(torch.tensor([[1.0, 5.0], [2.0, 5.0]]), torch.ones(2, 3, dtype=torch.bool))
    assert bool(controller.features.isfinite().all())
    assert bool(Controller(torch.ones(1, 2), torch.ones(1, 3, dtype=torch.bool))().isfinite().all())


# The gradient: two layers of 3 and 2 options, so that every sample can be enumerated.

TWO = torch.tensor([[True, True, True], [True, True, False]])
SAMPLES = [(a, b) for a in range(3) for b in range(2)]


def small(seed: int = 0) -> Controller:
    """A controller that is not uniform, in double precision."""
    controller = controller_of(TWO, seed).double()
    with torch.no_grad():
        for parameter in controller.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed + 1)).double())
    return controller


def chances(controller: Controller) -> dict[tuple[int, int], float]:
    with torch.no_grad():
        p = controller().exp()
    return {(a, b): float(p[0, a] * p[1, b]) for a, b in SAMPLES}


def expected(controller: Controller, reward: dict[tuple[int, int], float]) -> float:
    return sum(p * reward[sample] for sample, p in chances(controller).items())


def by_finite_differences(controller: Controller, value: Callable[[], float], step: float = 1e-5) -> list[float]:
    """The slope of ``value`` in some of each parameter's numbers."""
    slopes = []
    for parameter in controller.parameters():
        numbers = parameter.data.view(-1)
        for at in range(0, len(numbers), max(1, len(numbers) // 4)):
            before = float(numbers[at])
            numbers[at] = before + step
            above = value()
            numbers[at] = before - step
            slopes.append((above - value()) / (2 * step))
            numbers[at] = before
    return slopes


def by_autograd(controller: Controller, value: Tensor) -> list[float]:
    slopes: list[float] = []
    for gradient in torch.autograd.grad(value, list(controller.parameters())):
        flat = gradient.flatten()
        slopes += [float(flat[at]) for at in range(0, len(flat), max(1, len(flat) // 4))]
    return slopes


@pytest.mark.parametrize("size", [2, 3])
def test_the_policy_gradient_is_the_slope_of_the_expected_reward(size: int) -> None:
    """Over all batches, each by its chance; a batch's own deviation, by which it is divided, is multiplied back."""
    controller, drawn = small(), np.random.default_rng(0)
    reward = {sample: float(drawn.normal()) for sample in SAMPLES}
    p, log_p, total = chances(controller), controller(), torch.zeros((), dtype=torch.float64)
    for batch in itertools.product(SAMPLES, repeat=size):
        rewards = torch.tensor([reward[sample] for sample in batch], dtype=torch.float64)
        chance = math.prod(p[sample] for sample in batch)
        total = total + chance * rewards.std().clamp(min=1e-9) * surrogate(log_p, torch.tensor(batch), rewards, 0.0)
    slopes = by_finite_differences(controller, lambda: expected(controller, reward))
    assert max(map(abs, slopes)) > 0.01
    assert by_autograd(controller, total) == pytest.approx(slopes, rel=1e-5, abs=1e-8)


def test_dividing_by_the_deviation_keeps_the_direction_where_it_is_the_same_in_all_batches() -> None:
    """Rewards of 0 and 5 in pairs: their deviation is 5 / sqrt 2, or the pair teaches nothing."""
    controller = small(1)
    reward = {sample: 5.0 * (sum(sample) % 2) for sample in SAMPLES}
    p, log_p, total = chances(controller), controller(), torch.zeros((), dtype=torch.float64)
    for batch in itertools.product(SAMPLES, repeat=2):
        rewards = torch.tensor([reward[sample] for sample in batch], dtype=torch.float64)
        total = total + p[batch[0]] * p[batch[1]] * surrogate(log_p, torch.tensor(batch), rewards, 0.0)
    slopes = by_finite_differences(controller, lambda: expected(controller, reward) * math.sqrt(2) / 5)
    assert by_autograd(controller, total) == pytest.approx(slopes, rel=1e-5, abs=1e-8)


def test_the_bonus_is_the_slope_of_the_entropy() -> None:
    def entropy() -> float:
        with torch.no_grad():
            rows = controller().exp().tolist()
        return float(sum(-q * math.log(q) for row in rows for q in row if q) / 2)

    controller = small(2)
    alike = torch.ones(3, dtype=torch.float64)
    value = surrogate(controller(), torch.tensor([(0, 0), (1, 1), (2, 0)]), alike, 0.7)
    slopes = by_finite_differences(controller, lambda: 0.7 * entropy())
    assert max(map(abs, slopes)) > 0.01
    assert by_autograd(controller, value) == pytest.approx(slopes, rel=1e-5, abs=1e-8)


def test_one_sample_alone_teaches_nothing_but_the_bonus() -> None:
    controller = small(3)
    value = surrogate(controller(), torch.tensor([(1, 1)]), torch.tensor([7.0]), 0.0)
    slopes = by_autograd(controller, value)
    assert slopes == pytest.approx([0.0] * len(slopes))


# Imitation, and learning.


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95])
def test_imitation_reaches_about_the_confidence_and_shares_out_the_rest(confidence: float) -> None:
    controller, indices = controller_of(), (3, 0, 1, 0)
    imitate(controller, indices, Reinforce(confidence=confidence))
    p = controller().exp().detach()
    for row, allowed, wanted in zip(p, ALLOWED, indices, strict=True):
        rest = [at for at in allowed.nonzero().flatten().tolist() if at != wanted]
        assert float(row[wanted]) == pytest.approx(confidence if rest else 1.0, abs=0.02)
        assert [float(row[at]) for at in rest] == pytest.approx([(1 - confidence) / max(1, len(rest))] * len(rest), abs=0.02)


def test_learning_raises_what_pays_until_the_evaluations_are_spent() -> None:
    controller, left, entropies = controller_of(TWO), [400], list[float]()

    def rewards(sampled: Tensor) -> tuple[Tensor, Tensor]:
        assert sampled.shape == (8, 2)
        left[0] -= min(left[0], 8)
        with torch.no_grad():
            entropies.append(float(-(controller() * controller().exp()).sum()))
        return sampled, (sampled == torch.tensor([1, 0])).float().sum(1)

    learn(controller, Reinforce(learning_rate=0.05), torch.Generator().manual_seed(0), rewards, lambda: left[0])
    assert left == [0]
    assert len(entropies) == 50
    assert entropies[0] > 1.7
    assert entropies[-1] < 0.7
    p = controller().exp().detach()
    assert float(p[0, 1] * p[1, 0]) > 0.9
    assert float(p[1, 2]) == 0.0


def test_learning_ends_where_nothing_new_is_proposed() -> None:
    calls = []

    def rewards(sampled: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(sampled))
        return sampled, torch.zeros(len(sampled))

    learn(controller_of(TWO), Reinforce(patience=7), torch.Generator().manual_seed(0), rewards, lambda: 100)
    assert calls == [8] * 7


def test_what_could_not_be_scored_any_more_is_not_learned_from() -> None:
    controller, left = controller_of(TWO), [3]

    def rewards(sampled: Tensor) -> tuple[Tensor, Tensor]:
        left[0] = 0
        return sampled, torch.tensor([1.0, 2.0, 3.0] + [-math.inf] * 5)

    learn(controller, Reinforce(), torch.Generator().manual_seed(0), rewards, lambda: left[0])
    assert all(bool(parameter.isfinite().all()) for parameter in controller.parameters())


def collapsed(allowed: Tensor) -> Controller:
    """A controller that is certain of the first option of every layer."""
    controller = controller_of(allowed)
    with torch.no_grad():
        controller.own[:, 0] = 1e4
    return controller


@pytest.mark.parametrize("explore", [0.0, 0.5, 1.5, 4.0, 100.0])
def test_exploring_mixes_in_even_probabilities_of_what_is_allowed(explore: float) -> None:
    mixed = reinforce._exploring(collapsed(ALLOWED), explore).exp().detach()
    assert mixed.sum(1).tolist() == pytest.approx([1.0] * 4)
    assert float(mixed[~ALLOWED].max()) < 1e-29
    share = min(explore / 4, 1)
    for row, allowed in zip(mixed, ALLOWED, strict=True):
        count = int(allowed.sum())
        assert row[:count].tolist() == pytest.approx([1 - share + share / count] + [share / count] * (count - 1))


def spent(settings: Reinforce, evaluations: int) -> int:
    """How many choices a controller tries that has collapsed on the best of 4,096."""
    seen = set[tuple[int, ...]]()

    def rewards(sampled: Tensor) -> tuple[Tensor, Tensor]:
        seen.update([tuple(row) for row in sampled.tolist()])
        return sampled, -sampled.sum(1).float()

    controller = collapsed(torch.ones(6, 4, dtype=torch.bool))
    learn(controller, settings, torch.Generator().manual_seed(0), rewards, lambda: max(0, evaluations - len(seen)))
    return len(seen)


def test_a_collapsed_policy_spends_its_evaluations_all_the_same() -> None:
    assert spent(Reinforce(), 300) >= 300
    assert spent(Reinforce(explore=0.01), 50) >= 50  # the less comes of it, the more it explores
    assert spent(Reinforce(explore=0.0, patience=5), 300) == 1


def test_the_best_choice_so_far_takes_part_in_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    batches, sampled_rows, left = list[tuple[Tensor, Tensor]](), list[list[int]](), [200]

    def climbed(log_probabilities: Tensor, tried: Tensor, reward: Tensor, entropy: float) -> Tensor:
        batches.append((tried, reward))
        return surrogate(log_probabilities, tried, reward, entropy)

    def rewards(sampled: Tensor) -> tuple[Tensor, Tensor]:
        sampled_rows.extend(sampled.tolist())
        left[0] -= 8
        return sampled, worth[tuple(sampled.T)]

    monkeypatch.setattr(reinforce, "surrogate", climbed)
    worth = torch.rand(4, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    learn(
        controller_of(torch.ones(4, 4, dtype=torch.bool)), Reinforce(), torch.Generator().manual_seed(0), rewards, lambda: left[0]
    )
    assert [len(tried) for tried, _ in batches] == [8] + 24 * [9]
    for count, (tried, reward) in enumerate(batches, 1):
        best = max(sampled_rows[: 8 * count], key=lambda row: float(worth[tuple(row)]))
        assert best in tried.tolist()
        assert torch.equal(reward, worth[tuple(tried.T)])
    firsts = [tuple(tried[0].tolist()) for tried, _ in batches[1:]]
    assert 1 < len(set(firsts)) < len(firsts)  # it changes, and is kept


# What it finds: 8 layers of 4 options, 65,536 choices, of which all that fit are enumerated.

LAYERS, BITS = 8, (2, 3, 4, 5)
WEIGHTS = (100, 90, 110, 95, 105, 98, 102, 100)
EVERY = np.array(list(itertools.product(BITS, repeat=LAYERS)))
WITHIN = EVERY[(EVERY * np.array(WEIGHTS)).sum(1) <= 3 * sum(WEIGHTS)]
EVALUATIONS = 240


class Synthetic(Environment):
    """Losses of single layers that add up, and what pairs of coarse layers do to each other."""

    def __init__(self, seed: int, pairs: float) -> None:
        drawn = np.random.default_rng(seed)
        self.loss = drawn.uniform(0.3, 3, (LAYERS, 1)) * 3.0 ** -np.arange(9)[None] * drawn.uniform(0.7, 1.4, (LAYERS, 9))
        self.coarse = np.sqrt(self.loss)
        self.pairs = np.triu(drawn.normal(0, pairs, (LAYERS, LAYERS)), 1)

    def lost(self, choices: np.ndarray) -> np.ndarray:
        """Of whole choices, (choices, layers)."""
        at = np.arange(LAYERS)
        coarse = self.coarse[at, choices]
        return np.asarray(self.loss[at, choices].sum(1) + np.einsum("ni,nj,ij->n", coarse, coarse, self.pairs))

    def output_sum(self) -> None:
        return None

    def scores(self, choices: Sequence[Partial]) -> list[float]:
        found = []
        for choice in choices:
            coarse = np.array([0.0 if bits is None else self.coarse[at, bits] for at, bits in enumerate(choice)])
            single = sum(0.0 if bits is None else float(self.loss[at, bits]) for at, bits in enumerate(choice))
            found.append(-single - float(coarse @ self.pairs @ coarse))
        return found

    def stored_bits(self, choice: Choice) -> float:
        return float(sum(choice))


def gap_of(method: Callable[[Bench], None], environment: Synthetic, seed: int = 0) -> float:
    """How much more the method's choice loses than the best within the budget, in units of what a middling one does."""
    space = Space(tuple("abcdefgh"), (BITS,) * LAYERS, WEIGHTS, (1,) * LAYERS, Budget(average_bits=3))
    bench = Bench(space, environment, Journal(None, {}), EVALUATIONS, seed=seed)
    method(bench)
    lost = environment.lost(WITHIN)
    return (-bench.best.score - float(lost.min())) / (float(np.median(lost)) - float(lost.min()))


def warm(bench: Bench) -> None:
    dnq(bench, settings=Reinforce(patience=5))


def cold(bench: Bench) -> None:
    dnq(bench, warm=False, settings=Reinforce(patience=5))


@pytest.mark.parametrize("start", [warm, cold])
def test_where_losses_add_up_it_finds_the_best_choice_and_chance_does_not(start: Callable[[Bench], None]) -> None:
    environment = Synthetic(0, 0.0)
    assert gap_of(start, environment) == pytest.approx(0, abs=1e-9)
    assert gap_of(RIVALS["random"], environment) > 0.001


@pytest.mark.parametrize(("start", "seed"), [(warm, 0), (cold, 0), (cold, 1)])
def test_where_they_do_not_it_comes_closer_than_chance_and_than_the_additive_model(
    start: Callable[[Bench], None], seed: int
) -> None:
    environment = Synthetic(seed, 0.5)
    found = gap_of(start, environment, seed)
    assert 0 <= found + 1e-9 < 0.06
    assert found < gap_of(RIVALS["random"], environment, seed)
    assert found < gap_of(RIVALS["exact"], environment, seed) / 2


def test_the_same_seed_learns_the_same() -> None:
    def trials(seed: int) -> list[Choice]:
        space = Space(tuple("abcdefgh"), (BITS,) * LAYERS, WEIGHTS, (1,) * LAYERS, Budget(average_bits=3))
        bench = Bench(space, Synthetic(0, 0.5), Journal(None, {}), 60, seed=seed)
        warm(bench)
        return [trial.choice for trial in bench.trials]

    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = trials(4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert trials(4) == first
    assert trials(5) != first
