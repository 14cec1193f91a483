"""The first model of the environment against networks in which it is exact, and against divergences
summed up by hand."""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from octavo import Budget, search
from octavo.dnq import output_sum
from octavo.dnq.environment import Environment
from octavo.dnq.output_sum import OutputSum
from octavo.dnq.sensitivity import single_layer_choices
from octavo.dnq.space import Action, Choice
from octavo.network.outputs import Part


class Parallel(nn.Module):
    """Layers whose outputs are summed: what they change adds up exactly, up to the normalisation of
    the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([layer(x) for layer in self.layers]).sum(0)


ACTIONS = [tuple(map(Action.parse, (2, 3, 5)))] * 3
EVERY = list(itertools.product(range(3), repeat=3))


def environment(model: nn.Module, batches: list[Tensor]) -> Environment:
    return Environment(model, ["layers.0", "layers.1", "layers.2"], batches, ACTIONS)


def output_sum_of(real: Environment) -> OutputSum:
    single = single_layer_choices(ACTIONS)
    measured = real.measure(list(single.values()), keep_outputs=True)
    changed = {pair: each.outputs for pair, each in zip(single, measured, strict=True)}
    return OutputSum(real.full_outputs(), changed)


def inputs() -> list[Tensor]:
    torch.manual_seed(0)
    return list(torch.randn(3, 6, 5))


def test_it_is_exact_where_outputs_add_up() -> None:
    batches = inputs()
    model = Parallel()
    real = environment(model, batches)
    estimates = output_sum_of(real).objectives(EVERY)
    assert torch.allclose(estimates, torch.tensor(real.objectives(EVERY)), atol=1e-5)
    assert float(estimates.std()) > 1e-4


def test_many_choices_are_estimated_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    estimates = output_sum_of(environment(Parallel(), inputs()))
    whole = estimates.objectives(EVERY)
    monkeypatch.setattr(output_sum, "AT_ONCE", 18 * 4 * 2)  # rows, classes, choices
    sizes, part = list[int](), OutputSum._objectives

    def noted(self: OutputSum, some: Sequence[Choice]) -> Tensor:
        sizes.append(len(some))
        return part(self, some)

    monkeypatch.setattr(OutputSum, "_objectives", noted)
    assert torch.allclose(estimates.objectives(EVERY), whole)
    assert sizes == [2] * 13 + [1]


def test_the_model_is_left_in_full_precision_and_in_its_mode() -> None:
    model, batches = Parallel().train(), inputs()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    output_sum_of(environment(model, batches))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_divergence_of_summed_outputs_by_hand() -> None:
    full = torch.tensor(
        [[0.5, 0.3, 0.2], [0.1, 0.9, 0.0]]
    ).log()  # a class is ruled out in the second row
    changes = {
        (0, 0): torch.tensor([[0.3, -0.1, 0.0], [0.2, 0.0, 0.0]]),
        (1, 0): torch.tensor([[-0.3, 0.4, 0.0], [0.0, 0.1, 0.0]]),
    }
    expected = 0.0
    for row in range(2):
        p = full[row].exp().tolist()
        shifted = [
            x * math.exp(sum(float(change[row, at]) for change in changes.values()))
            for at, x in enumerate(p)
        ]
        expected -= (
            sum(x * math.log(x * sum(shifted) / y) for x, y in zip(p, shifted, strict=True) if x)
            / 2
        )
    changed = {pair: [full + change] for pair, change in changes.items()}
    (found,) = OutputSum([Part("", True, full)], changed).objectives([(0, 0)]).tolist()
    assert math.isclose(found, expected, rel_tol=1e-5)


def test_values_that_add_up_are_estimated_exactly() -> None:
    """Errors that cancel are told from errors that reinforce each other, for several outputs at
    once."""
    torch.manual_seed(0)
    full = [Part("boxes", False, torch.randn(3, 4)), Part("value", False, torch.randn(5, 1))]
    changes = {(layer, 0): [torch.randn_like(part.rows) for part in full] for layer in range(2)}
    changed = {
        pair: [part.rows + change for part, change in zip(full, some, strict=True)]
        for pair, some in changes.items()
    }
    expected = 0.0
    for part, one, other in zip(full, *changes.values(), strict=True):
        expected -= float((one + other).square().sum() / part.rows.square().sum())
    assert math.isclose(
        OutputSum(full, changed).objectives([(0, 0)]).item(), expected, rel_tol=1e-5
    )


@pytest.mark.usefixtures("brief_practice")
def test_an_objective_of_ones_own_is_not_modelled() -> None:
    """The policy falls back on summed losses, and the search still ends within its budget."""
    model, batches = Parallel(), inputs()
    found = search(
        model,
        batches,
        budget=Budget(average_bits=3),
        trials=24,
        objective=lambda net: -float(net(batches[0]).std()),
    )
    assert found.plan.cost().average_bits <= 3


def test_the_search_begins_where_the_model_ends() -> None:
    """The first choices that are measured after the exact one are already the model's best: in this
    network, the best of all."""
    model, batches = Parallel(), inputs()
    found = search(
        model, batches, budget=Budget(average_bits=3), trials=9 + 4 * 3 + 6, options=(2, 3, 5)
    )
    real = environment(model, batches)
    fitting = [c for c in EVERY if sum((2, 3, 5)[at] for at in c) <= 9]
    assert math.isclose(found.objective, max(real.objectives(fitting)), rel_tol=1e-5)
