"""Outputs kept from trial to trial: the same results, less computed, and nothing kept that no longer holds."""

import copy
import itertools
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from octavo.search.replay import Replay


class Counted(nn.Linear):
    """Counts how often it is really computed."""

    def __init__(self) -> None:
        super().__init__(6, 6)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return super().forward(x)


class Residual(nn.Module):
    """Adds in place to what its last layer returned: what is kept of that layer is no longer what it returned."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.norm = Counted(), Counted(), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.outer(torch.relu_(self.inner(x))))
        y += x
        return y


class Net(nn.Module):
    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(*(Residual() for _ in range(blocks)))
        self.head = Counted()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x))


class Shared(nn.Module):
    """One layer called twice, another in between."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.twice, self.between = Counted(), Counted(), Counted()

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(self.between(self.twice(self.first(x)).relu()))


class ByTheWay(nn.Module):
    """A module that leaves something behind where it is not returned: it cannot be replayed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = Counted(), Counted()
        self.first.register_forward_hook(lambda module, _, y: None)
        self.left: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.second(Behind.apply(self, x))


class Behind:
    @staticmethod
    def apply(net: ByTheWay, x: Tensor) -> Tensor:
        y = net.first(x)
        return y + net.first.runs  # what a replayed module did not count


def names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Counted)]


def inputs() -> list[Tensor]:
    torch.manual_seed(1)
    return list(torch.randn(3, 5, 6))


def runs(model: nn.Module) -> int:
    return sum(module.runs for module in model.modules() if isinstance(module, Counted))


@pytest.mark.parametrize("build", [Net, Shared])
def test_results_are_those_of_a_model_without_memory(build: Callable[[], nn.Module]) -> None:
    model, batches = build().eval(), inputs()
    layers, plain = names(model), copy.deepcopy(model)
    replayed = Replay(model, layers)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for step in range(30):
            unchanged = int(torch.randint(len(layers) + 1, (), generator=generator)) if step else 0
            for name in layers[unchanged:]:
                weight = torch.randn(6, 6, generator=generator)
                for net in (model, plain):
                    net.get_submodule(name).weight.data = weight
            found = replayed.outputs(batches, unchanged)
            assert all(torch.equal(own, plain(batch)) for own, batch in zip(found, batches, strict=True))


def test_layers_ahead_of_the_first_that_changed_do_not_run_again() -> None:
    model, batches = Net().eval(), inputs()
    layers = names(model)
    replayed = Replay(model, layers)
    with torch.no_grad():
        replayed.outputs(batches, 0)
        replayed.outputs(batches, len(layers))  # the first result from memory is checked: everything runs once more
        for unchanged in range(len(layers)):
            before = runs(model)
            replayed.outputs(batches, unchanged)
            # a layer that begins a block runs again with the rest of it only if what it returned was changed in place
            assert runs(model) - before <= len(batches) * (len(layers) - unchanged + 1)


def test_a_module_that_is_called_twice_is_computed_each_time() -> None:
    model, batches = Shared().eval(), inputs()
    replayed = Replay(model, names(model))
    with torch.no_grad():
        first, again = (torch.stack(replayed.outputs(batches, unchanged)) for unchanged in (0, 3))
    assert torch.equal(first, again)


def test_a_model_whose_modules_do_more_than_return_is_computed_anew() -> None:
    model, batches = ByTheWay().eval(), inputs()
    plain, replayed = copy.deepcopy(model), Replay(model, names(model))
    with torch.no_grad():
        for unchanged in (0, 1, 1, 1):
            found = replayed.outputs(batches, unchanged)
            plain.first.runs = model.first.runs - len(batches)
            assert all(torch.equal(own, plain(batch)) for own, batch in zip(found, batches, strict=True))


def test_no_more_is_kept_than_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[Replay.__module__], "KEPT_BYTES", 5 * 6 * 4 * 7)
    model, batches = Net().eval(), inputs()
    plain, replayed = copy.deepcopy(model), Replay(model, names(model))
    with torch.no_grad():
        for unchanged in itertools.chain([0], range(7)):
            found = replayed.outputs(batches, unchanged)
            assert sum(kept.output.nbytes for kept in replayed._kept.values()) <= 5 * 6 * 4 * 7
            assert all(torch.equal(own, plain(batch)) for own, batch in zip(found, batches, strict=True))
