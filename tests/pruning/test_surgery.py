"""Surgery against its rule in plain Python, splicing, exact sparsity, and resumption."""

import copy
from typing import Any

import pytest
import torch
from tests.pruning.networks import net
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from octavo.errors import PlanError
from octavo.inq.incremental import Incremental
from octavo.network.layers import find_layers
from octavo.plan import Plan
from octavo.pruning.surgery import Surgery


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 2, 5, 5, generator=generator), torch.randint(
        0, 5, (8,), generator=generator
    )


def train(model: nn.Module, steps: range, surgery: Surgery | None = None) -> None:
    optimizer = torch.optim.SGD(
        model.parameters(), 0.05, weight_decay=1e-3
    )  # it has no state that a resumed run would miss
    for step in steps:
        inputs, targets = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        if surgery:
            surgery.step()


def linear(values: list[float]) -> nn.Linear:
    layer = nn.Linear(len(values), 1, bias=False)
    layer.weight.data = torch.tensor([values])
    return layer


def raw(layer: nn.Module) -> Tensor:
    """The weights under the mask."""
    weight: Tensor = layer.parametrizations.weight.original.data  # type: ignore[union-attr, assignment]
    return weight


def kept(layer: nn.Module) -> list[bool]:
    return (layer.weight != 0).flatten().tolist()  # type: ignore[union-attr]


def settle(surgery: Surgery, steps: int = 500) -> None:
    """So many steps that the masks change at least once."""
    for _ in range(steps):
        surgery.step()


# The rule.


def updated(sizes: list[float], kept: list[bool], count: int) -> list[bool]:
    """The paper's rule of one layer, with the one threshold of all that leaves so many pruned."""
    edges = sorted([size / 0.9 for size, keep in zip(sizes, kept, strict=True) if keep])
    edges += sorted([size / 1.1 for size, keep in zip(sizes, kept, strict=True) if not keep])
    for threshold in sorted([0.0, *(edge * (1 + 1e-9) for edge in edges)]):
        new = []
        for size, keep in zip(sizes, kept, strict=True):
            a, b = 0.9 * threshold, 1.1 * threshold
            new.append(False if size < a else True if size >= b else keep)
        if new.count(False) == count:
            return new
    raise AssertionError("no threshold leaves so many")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.77, 0.95])
def test_the_masks_follow_the_papers_rule(share: float) -> None:
    """Over many changes of the weights: every change is that of one threshold a = 0.9 t, b = 1.1
    t."""
    draw = torch.Generator().manual_seed(1)
    layer = linear(torch.randn(40, generator=draw).tolist())
    surgery = Surgery(layer, {"*": share}, steps=6000)
    settle(surgery, 3000)
    count, state = round(share * 40), kept(layer)
    assert state.count(False) == count
    for _ in range(20):
        raw(layer).add_(0.3 * torch.randn(1, 40, generator=draw))
        expected = updated(raw(layer).abs().flatten().tolist(), state, count)
        settle(surgery, 100)
        assert kept(layer) == expected
        state = expected


def test_layers_that_reach_it_together_compare_by_what_is_left_of_their_squares() -> None:
    """Against LAMP's formula, weight by weight, from masks that keep everything."""
    model = net()
    layers = {"conv": model.conv.weight.detach().clone(), "fc": model.fc.weight.detach().clone()}
    scored = []
    for name, weight in layers.items():
        squares = weight.double().square().flatten().tolist()
        scored += [
            (own / sum(other for other in squares if other >= own), name, i)
            for i, own in enumerate(squares)
        ]
    count = round(0.6 * len(scored))
    lowest = {(name, i) for _, name, i in sorted(scored)[:count]}
    masks = Surgery(model, 0.6, steps=9).finish()  # all at once
    found = {
        (name, i)
        for name, mask in masks.items()
        for i, keep in enumerate(mask.flatten().tolist())
        if not keep
    }
    assert found == lowest
    assert float(masks["conv"].float().mean()) != pytest.approx(
        float(masks["fc"].float().mean()), abs=0.02
    )


def test_a_pruned_weight_that_grows_is_spliced_back() -> None:
    layer = linear([1.0, 2.0, 3.0, 4.0])
    surgery = Surgery(layer, 0.5, steps=2000)
    settle(surgery, 1000)
    assert kept(layer) == [False, False, True, True]
    raw(layer)[0, 0] = (
        3.5  # above 3, but between 0.9 and 1.1 times any number that divides it from 3
    )
    settle(surgery)
    assert kept(layer) == [False, False, True, True]
    raw(layer)[0, 0] = -3.8
    settle(surgery)
    assert kept(layer) == [True, False, False, True]
    assert layer.weight.tolist() == [[pytest.approx(-3.8), 0.0, 0.0, 4.0]]


def test_gradients_reach_pruned_weights_through_the_mask() -> None:
    layer = linear([0.1, 5.0])
    surgery = Surgery(layer, 0.5, steps=1)
    surgery.step()
    x = torch.tensor([[3.0, 2.0]])
    assert layer(x).item() == 10.0
    (layer(x) ** 2 / 2).sum().backward()
    (parameter,) = layer.parameters()
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [[30.0, 20.0]]


def test_the_masks_change_ever_more_rarely_and_stand_still_in_the_end() -> None:
    draw, changes = torch.Generator().manual_seed(0), []
    layer = linear(torch.randn(200, generator=draw).tolist())
    surgery = Surgery(layer, 0.5, steps=2000)
    for _ in range(3000):
        before = kept(layer)
        raw(layer).copy_(torch.randn(1, 200, generator=draw))
        surgery.step()
        changes.append(kept(layer) != before)
    first, middle, last, after = (sum(changes[i : i + 200]) for i in (0, 900, 1800, 2000))
    assert first > 2 * middle > 2 * last > after == sum(changes[2000:]) == 0


# Sparsity.


@pytest.mark.parametrize("share", [0, 0.3, 0.8, 0.987])
@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_the_sparsity_is_exact_from_the_middle_on(share: float, steps: int) -> None:
    model = net()
    surgery = Surgery(model, share, steps=steps)
    weights = sum(layer.weight.numel() for layer in find_layers(net())[0])
    reached = []
    for step in range(steps):
        train(model, range(step, step + 1), surgery)
        reached.append(round(surgery.sparsity * weights))
    assert set(reached[(steps + 1) // 2 - 1 :]) == {round(share * weights)}
    assert reached == sorted(reached)
    masks = surgery.finish()
    zeros = sum(int((layer.weight == 0).sum()) for layer in find_layers(model)[0])
    assert zeros == sum(int((~mask).sum()) for mask in masks.values()) == round(share * weights)


def test_each_layer_reaches_its_own_and_the_last_pattern_counts() -> None:
    model = net()
    surgery = Surgery(model, {"*": 0.5, "f?": 0.9}, steps=4)
    train(model, range(4), surgery)
    surgery.finish()
    assert int((model.conv.weight == 0).sum()) == 54
    assert int((model.fc.weight == 0).sum()) == 243
    whole = net()
    assert set(Surgery(whole, {"fc": 0.9}, steps=1).finish()) == {"fc"}
    assert not (whole.conv.weight == 0).any()


def test_finished_before_its_time_it_prunes_what_is_missing() -> None:
    model = net()
    surgery = Surgery(model, 0.75, steps=1000)
    train(model, range(3), surgery)
    assert surgery.sparsity < 0.1
    surgery.finish()
    zeros = sum(int((layer.weight == 0).sum()) for layer in find_layers(model)[0])
    assert zeros == round(0.75 * (108 + 270))


def test_afterwards_the_model_is_plain_with_the_same_parameters() -> None:
    model = net()
    parameters, state = dict(model.named_parameters()), list(model.state_dict())
    surgery = Surgery(model, 0.8, steps=6)
    train(model, range(6), surgery)
    model.eval()
    outputs = model(batch(0)[0])
    masks = surgery.finish()
    assert torch.equal(model(batch(0)[0]), outputs)
    assert list(model.state_dict()) == state
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    assert type(model.conv) is nn.Conv2d
    assert torch.equal(model.conv.weight != 0, masks["conv"])
    with pytest.raises(PlanError, match="finished before"):
        surgery.finish()


@pytest.mark.parametrize("cut", [1, 3, 9])
def test_resumed_it_ends_the_same(cut: int) -> None:
    whole, first, second = net(), net(), net(5)
    surgery = Surgery(whole, 0.8, steps=12, seed=3)
    train(whole, range(12), surgery)
    before = Surgery(first, 0.8, steps=12, seed=3)
    train(first, range(cut), before)
    state = copy.deepcopy(before.state_dict())
    after = Surgery(second, 0.8, steps=12, seed=3)
    after.load_state_dict(state)
    train(second, range(cut, 12), after)
    masks = surgery.finish(), after.finish()
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in ("conv", "fc"))
    assert all(
        torch.equal(whole.state_dict()[name], value) for name, value in second.state_dict().items()
    )


def test_the_state_of_another_surgery_is_refused() -> None:
    state = Surgery(net(), 0.8, steps=12).state_dict()
    with pytest.raises(
        PlanError, match=r"sparsity: expected the state of a run with 0.5, got one with 0.8"
    ):
        Surgery(net(), 0.5, steps=12).load_state_dict(state)
    with pytest.raises(PlanError, match="expected what state_dict"):
        Surgery(net(), 0.5, steps=12).load_state_dict({"done": 3})


def test_tied_weights_and_recurrent_layers() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.rnn, self.out = nn.Embedding(9, 4), nn.LSTM(4, 4), nn.Linear(4, 9)
            self.out.weight = self.emb.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.out(self.rnn(self.emb(tokens))[0])  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Reader()
    surgery = Surgery(model, {"*": 0.5}, steps=2)
    surgery.step()
    model(torch.tensor([[0, 1], [2, 3]])).sum().backward()
    gradient = dict(model.named_parameters())["rnn.parametrizations.weight_hh_l0.original"].grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    surgery.finish()
    assert model.out.weight is model.emb.weight
    assert all(float((layer.weight == 0).float().mean()) == 0.5 for layer in find_layers(model)[0])
    model(torch.tensor([[0, 1]]))


@pytest.mark.parametrize(
    ("sparsity", "steps", "said"),
    [
        (1.2, 5, "sparsity: expected a sparsity of at least 0, below 1, got 1.2"),
        (1.0, 5, "got 1.0"),
        (-0.1, 5, "got -0.1"),
        (True, 5, "got True"),
        (float("nan"), 5, "got nan"),
        ({"conv": 1.2}, 5, "conv: expected a sparsity"),
        ({"cnov": 0.5}, 5, "'cnov' matches no layer of Net .the nearest is 'conv'"),
        (0.5, 0, "steps: .*got 0"),
        (0.5, 2.5, "steps: .*got 2.5"),
    ],
)
def test_what_is_refused(sparsity: Any, steps: Any, said: str) -> None:
    model = net()
    with pytest.raises(PlanError, match=said):
        Surgery(model, sparsity, steps=steps)
    assert type(model.conv) is nn.Conv2d
    with pytest.raises(PlanError, match="layers that can be pruned"):
        Surgery(nn.ReLU(), 0.5, steps=1)


def test_a_network_under_surgery_cannot_be_quantized_yet() -> None:
    model = net()
    plan = Plan.uniform(model, 3)
    Surgery(model, 0.5, steps=5)
    with pytest.raises(PlanError, match="unfinished Incremental or Surgery already"):
        Incremental(model, plan)
    with pytest.raises(PlanError, match="unfinished Incremental or Surgery already"):
        Surgery(model, 0.5, steps=5)


def test_masks_of_torch_are_no_layers_to_leave_whole() -> None:
    model = net()
    prune.l1_unstructured(model.conv, "weight", 0.5)
    with pytest.raises(PlanError, match=r"conv.weight_orig: .*call octavo.fold_masks\(model\)"):
        Surgery(model, 0.5, steps=5)
