"""Outputs kept from trial to trial: the same results, less computed, and nothing kept that no
longer holds."""

import copy
import itertools
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from octavo import Budget, search
from octavo.dnq.environment import Environment
from octavo.dnq.replay import Replay
from octavo.dnq.survey import survey
from octavo.network.calling import observing

EVERY = 99  # layers will be unchanged the next time


class Counted(nn.Linear):
    """Counts how often it is really computed."""

    def __init__(self) -> None:
        super().__init__(6, 6)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return super().forward(x)


class Residual(nn.Module):
    """Adds in place to what its last layer returned: what is kept of that layer is no longer what
    it returned."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.norm = Counted(), Counted(), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.outer(torch.relu_(self.inner(x))))
        y += x
        return y  # type: ignore[no-any-return]


class Net(nn.Module):
    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(*(Residual() for _ in range(blocks)))
        self.head = Counted()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x))  # type: ignore[no-any-return]


class Shared(nn.Module):
    """One layer called twice, another in between."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.twice, self.between = Counted(), Counted(), Counted()

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(self.between(self.twice(self.first(x)).relu()))  # type: ignore[no-any-return]


class ByTheWay(nn.Module):
    """A module that leaves something behind where it is not returned: it cannot be replayed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = Counted(), Counted()
        self.first.register_forward_hook(lambda module, _, y: None)
        self.left: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.second(Behind.apply(self, x))  # type: ignore[no-any-return]


class Behind:
    @staticmethod
    def apply(net: ByTheWay, x: Tensor) -> Tensor:
        y = net.first(x)
        return y + net.first.runs  # type: ignore[no-any-return]  # what a replayed module did not count  # type: ignore[no-any-return]


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
            found = replayed.outputs(batches, unchanged, EVERY)
            assert all(
                torch.equal(own, plain(batch)) for own, batch in zip(found, batches, strict=True)
            )


def test_layers_ahead_of_the_first_that_changed_do_not_run_again() -> None:
    model, batches = Net().eval(), inputs()
    layers = names(model)
    replayed = Replay(model, layers)
    with torch.no_grad():
        for unchanged in (
            0,
            *range(len(layers) + 1),
        ):  # the first result of each kind is checked: everything runs once more
            replayed.outputs(batches, unchanged, EVERY)
        for unchanged in range(len(layers)):
            before = runs(model)
            replayed.outputs(batches, unchanged, EVERY)
            # a layer that begins a block runs again with the rest of it only if what it returned
            # was changed in place
            assert runs(model) - before <= len(batches) * (len(layers) - unchanged + 1)


def test_a_module_that_is_called_twice_is_computed_each_time() -> None:
    model, batches = Shared().eval(), inputs()
    replayed = Replay(model, names(model))
    with torch.no_grad():
        first, again = (
            torch.stack(replayed.outputs(batches, unchanged, EVERY)) for unchanged in (0, 3)
        )
    assert torch.equal(first, again)


def test_a_model_whose_modules_do_more_than_return_is_computed_anew() -> None:
    model, batches = ByTheWay().eval(), inputs()
    plain, replayed = copy.deepcopy(model), Replay(model, names(model))
    with torch.no_grad():
        for unchanged in (0, 1, 1, 1):
            found = replayed.outputs(batches, unchanged, EVERY)
            plain.first.runs = model.first.runs - len(batches)
            assert all(
                torch.equal(own, plain(batch)) for own, batch in zip(found, batches, strict=True)
            )


def test_no_more_is_kept_than_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[Replay.__module__], "KEPT_BYTES", 5 * 6 * 4 * 7)
    model, batches = Net().eval(), inputs()
    plain, replayed = copy.deepcopy(model), Replay(model, names(model))
    with torch.no_grad():
        for unchanged in itertools.chain([0], range(7)):
            found = replayed.outputs(batches, unchanged, EVERY)
            assert sum(kept.output.nbytes for kept in replayed._kept.values()) <= 5 * 6 * 4 * 7
            assert all(
                torch.equal(own, plain(batch)) for own, batch in zip(found, batches, strict=True)
            )


class Recurrent(nn.Module):
    """Modules that return tuples, and a view of one, which is changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.attention = (
            nn.LSTM(6, 4, 2, batch_first=True),
            nn.MultiheadAttention(4, 2, batch_first=True),
        )
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(self.rnn(x)[0])
        hidden[:, 0].relu_()
        return self.last(self.attention(hidden, hidden, hidden)[0])  # type: ignore[no-any-return]


class Universal(nn.Module):
    """One transformer layer called until a layer's output says that it is enough, then the
    transposed weight of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block = (
            nn.Linear(6, 8),
            nn.TransformerEncoderLayer(8, 2, 8, batch_first=True),
        )
        self.halt = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        for _ in range(4):
            hidden = self.block(hidden)
            if float(self.halt(hidden).mean()) > 0:
                break
        return F.linear(hidden, self.first.weight.T)


class PreActivated(nn.Module):
    """Its activation changes its input, which is then added: not only what it returns is used."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.one, self.two = nn.ReLU(inplace=True), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.one(self.act(x)).relu())  # type: ignore[no-any-return]


class Masking(nn.Module):
    """Ahead of all layers, a module leaves a mask behind that a later one reads."""

    class Pad(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.mask = x[..., :1] > 0
            return x.clone()

    def __init__(self) -> None:
        super().__init__()
        self.pad, self.one, self.two = self.Pad(), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(self.pad(x)).relu() * self.pad.mask)  # type: ignore[no-any-return]


class Reads(nn.Module):
    """Reads the weight of a layer before that layer is called."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two, self.last = (
            nn.Linear(6, 6),
            nn.LayerNorm(6),
            nn.Linear(6, 6),
            nn.Linear(6, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.two(self.norm(F.linear(self.one(x), self.two.weight.T))).relu())  # type: ignore[no-any-return]


class Appending(nn.Module):
    """Modules that append to a list that they are given."""

    class Down(nn.Linear):
        def forward(self, x: Tensor, skips: list[Tensor] | None = None) -> Tensor:
            y = super().forward(x).relu()
            if skips is not None:
                skips.append(y)
            return y

    def __init__(self) -> None:
        super().__init__()
        self.down, self.last = self.Down(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        y = self.down(x, skips)
        return self.last(y + skips.pop())  # type: ignore[no-any-return]


class Sparse(nn.Module):
    """A module that returns a sparse tensor."""

    class ToSparse(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.to_sparse()

    def __init__(self) -> None:
        super().__init__()
        self.one, self.sparse, self.two = nn.Linear(6, 6), self.ToSparse(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.sparse(self.one(x).relu()).to_dense())  # type: ignore[no-any-return]


def check_scores(build: Callable[[], nn.Module], workers: int) -> None:
    """Scores of the environment are those by a score of one's own, for which nothing is kept; the
    model is untouched."""
    torch.manual_seed(0)
    model, batches = build().eval(), list(torch.randn(3, 4, 5, 6))
    forwards = [vars(module).get("forward") for module in model.modules()]
    with observing(model):
        reference = [F.log_softmax(model(batch), -1) for batch in batches]

    def score(candidate: nn.Module) -> float:
        losses = [
            F.kl_div(F.log_softmax(candidate(batch), -1), own, reduction="sum", log_target=True)
            for batch, own in zip(batches, reference, strict=True)
        ]
        return -float(sum(losses)) / (3 * 4 * 5)

    names = survey(model, batches[0], (2, 3), {}, None).names
    options = [(2, 3)] * len(names)
    alone = [
        tuple(bits if at == layer else None for at in range(len(names)))
        for layer in range(len(names))
        for bits in (2, 3)
    ]
    generator = torch.Generator().manual_seed(3)
    random = [
        tuple(2 + torch.randint(2, (len(names),), generator=generator).numpy()) for _ in range(16)
    ]
    found, anew = (
        Environment(model, names, batches, options, workers=workers),
        Environment(model, names, batches, options, score=score),
    )
    for choices in ([(None,) * len(names), *alone], list(dict.fromkeys(random))):
        assert found.scores(choices) == pytest.approx(anew.scores(choices), rel=1e-3, abs=1e-7)
    assert [vars(module).get("forward") for module in model.modules()] == forwards


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("build", [Recurrent, Universal])
def test_scores_are_those_computed_anew(build: Callable[[], nn.Module], workers: int) -> None:
    check_scores(build, workers)


def pre_activated() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), PreActivated(), PreActivated(), nn.Linear(6, 3))


@pytest.mark.parametrize("build", [pre_activated, Masking, Reads])
def test_scores_are_those_computed_anew_where_modules_do_more_than_return(
    build: Callable[[], nn.Module],
) -> None:
    check_scores(build, 1)


@pytest.mark.parametrize("build", [Appending, Sparse])
def test_what_cannot_be_kept_is_no_error(build: Callable[[], nn.Module]) -> None:
    check_scores(build, 1)


def test_a_view_counts_as_what_it_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    class First(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.repeat(1, 50)[:, :6]

    monkeypatch.setattr(sys.modules[Replay.__module__], "KEPT_BYTES", 5 * 6 * 4 * 8)
    replayed = Replay(nn.Sequential(Counted(), First(), Counted()).eval(), ["0", "2"])
    with torch.no_grad():
        replayed.outputs(inputs(), 0, EVERY)
    held = {
        kept.output.untyped_storage().data_ptr(): kept.output.untyped_storage().nbytes()
        for kept in replayed._kept.values()
    }
    assert sum(held.values()) <= 5 * 6 * 4 * 8


def test_only_what_the_next_call_wants_is_kept() -> None:
    model, batches = Net().eval(), inputs()
    layers = names(model)
    replayed = Replay(model, layers)
    with torch.no_grad():
        for wanted in (7, 4, 2, 0):
            replayed.outputs(batches, 0, wanted)
            assert max((kept.layers for kept in replayed._kept.values()), default=0) == wanted
            replayed.outputs(batches, wanted, wanted)  # this one may be checked
            before = runs(model)
            replayed.outputs(batches, wanted, wanted)
            assert runs(model) - before <= len(batches) * (
                len(layers) - wanted + (wanted < len(layers))
            )


def test_a_compiled_model_is_searched_too() -> None:
    model = torch.compile(Net(), backend="eager")
    plain = search(
        Net().eval(),
        inputs(),
        budget=Budget(average_bits=2.6),
        options=(2, 3),
        trials=20,
        method="greedy",
    )
    found = search(
        model, inputs(), budget=Budget(average_bits=2.6), options=(2, 3), trials=20, method="greedy"
    )  # type: ignore[arg-type]
    assert list(found.plan.values()) == list(plain.plan.values())
