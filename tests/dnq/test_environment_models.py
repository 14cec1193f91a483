"""Objectives of models that do more than call one layer after another: every trial is a whole pass
through the model, and leaves nothing behind in it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from octavo import Budget, search
from octavo.dnq.environment import Environment
from octavo.dnq.survey import survey
from octavo.network.divergence import TEMPERATURE
from octavo.network.forward import observing


class Residual(nn.Module):
    """Adds in place to what its last layer returned."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.outer = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.outer(torch.relu_(self.inner(x))).mT).mT
        y += x
        result: Tensor = self.head(y)
        return result


class Shared(nn.Module):
    """One layer called twice, another in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.twice = nn.Linear(6, 6)
        self.between = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.twice(self.between(self.twice(self.first(x)).relu()))
        return result


class Recurrent(nn.Module):
    """Modules that return tuples, and a view of one, which is changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 4, 2, batch_first=True)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(self.rnn(x)[0])
        hidden[:, 0].relu_()
        result: Tensor = self.last(self.attention(hidden, hidden, hidden)[0])
        return result


class Universal(nn.Module):
    """One transformer layer, called until a layer's output says that it is enough, then the
    transposed weight of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        self.halt = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        for _ in range(4):
            hidden = self.block(hidden)
            if float(self.halt(hidden).mean()) > 0:
                break
        return F.linear(hidden, self.first.weight.T)


class PreActivated(nn.Module):
    """Its activation changes its input, which is then added."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Linear(6, 6)
        self.act = nn.ReLU(inplace=True)
        self.one = nn.Linear(6, 6)
        self.two = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.zero(x)
        result: Tensor = y + self.two(self.one(self.act(y)).relu())
        return result


class Pad(nn.Module):
    """Leaves a mask behind."""

    mask: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.mask = x[..., :1] > 0
        return x.clone()


class Masking(nn.Module):
    """Ahead of all layers, a module leaves a mask behind that is read later."""

    def __init__(self) -> None:
        super().__init__()
        self.pad = Pad()
        self.one = nn.Linear(6, 6)
        self.two = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.two(self.one(self.pad(x)).relu() * self.pad.mask)
        return result


class Reads(nn.Module):
    """Reads the weight of a layer before that layer is called."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.two = nn.Linear(6, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        early = F.linear(self.one(x), self.two.weight.T)
        result: Tensor = self.last(self.two(self.norm(early)).relu())
        return result


class Down(nn.Linear):
    """Appends what it returns to a list that it is given."""

    def forward(self, x: Tensor, skips: list[Tensor] | None = None) -> Tensor:
        y = super().forward(x).relu()
        if skips is not None:
            skips.append(y)
        return y


class Appending(nn.Module):
    """A module that appends to a list that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.down = Down(6, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        y = self.down(x, skips)
        result: Tensor = self.last(y + skips.pop())
        return result


class ToSparse(nn.Module):
    """Returns a sparse tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return x.to_sparse()


class Sparse(nn.Module):
    """A module that returns a sparse tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 6)
        self.sparse = ToSparse()
        self.two = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.two(self.sparse(self.one(x).relu()).to_dense())
        return result


MODELS = (
    Residual, Shared, Recurrent, Universal, PreActivated, Masking, Reads, Appending, Sparse
)  # fmt: skip


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("build", MODELS)
def test_objectives_are_those_of_each_candidate_alone(
    build: Callable[[], nn.Module], workers: int
) -> None:
    """The default objective is compared with the same divergence as an objective of one's own."""
    torch.manual_seed(0)
    model = build().eval()
    batches = list(torch.randn(3, 4, 6, 6))
    forwards = [vars(module).get("forward") for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with observing(model):
        reference = [F.log_softmax(model(batch) / TEMPERATURE, -1) for batch in batches]

    def negative_divergence(candidate: nn.Module) -> float:
        losses = [
            F.kl_div(
                F.log_softmax(candidate(batch) / TEMPERATURE, -1),
                own,
                reduction="sum",
                log_target=True,
            )
            for batch, own in zip(batches, reference, strict=True)
        ]
        return -(TEMPERATURE**2) * float(sum(losses)) / (3 * 4 * 6)

    space = survey(model, batches[0], (2, 3), {})
    layers = len(space.names)
    alone = [
        tuple(action if at == layer else None for at in range(layers))
        for layer in range(layers)
        for action in (0, 1)
    ]
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randint(2, (16, layers), generator=generator).tolist()
    together = list(dict.fromkeys(map(tuple, drawn)))
    found = Environment(model, space.names, batches, space.actions, workers=workers)
    expected = Environment(
        model, space.names, batches, space.actions, objective=negative_divergence
    )
    for choices in ([(None,) * layers, *alone], together):
        assert found.objectives(choices) == pytest.approx(
            expected.objectives(choices), rel=1e-3, abs=1e-7
        )
    assert [vars(module).get("forward") for module in model.modules()] == forwards
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_compiled_model_is_searched_too() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    inputs = list(torch.randn(3, 4, 6, 6))

    def plan_of(network: nn.Module) -> list[int]:
        budget = Budget(average_bits=2.6)
        options = (2, 3)
        found = search(network, inputs, budget=budget, options=options, trials=20, method="greedy")
        return [int(width) for width in found.plan.values()]

    compiled = torch.compile(model, backend="eager")
    assert plan_of(compiled) == plan_of(model)  # type: ignore[arg-type]
