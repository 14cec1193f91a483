"""What a choice of bits is scored by: the same as quantizing a copy layer by layer, and nothing of the model changes."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octavo.container import Quantized
from octavo.errors import PlanError
from octavo.layers import find_layers
from octavo.oneshot import float_moments
from octavo.search.environment import Environment, Partial
from octavo.solve import Settings, solve

NAMES = ("conv", "rnn.weight_ih_l0", "rnn.weight_hh_l0", "last")
OPTIONS = ((2, 4), (2, 3), (3,), (2, 3, 5))
CHOICES: tuple[Partial, ...] = (
    (2, 2, 3, 2), (4, 3, 3, 5), (None, None, None, None), (None, 2, None, 3), (2, None, 3, None), (4, 2, 3, 2), (2, 2, 3, 5),
)  # fmt: skip


class Net(nn.Module):
    """A convolution, a batch norm, a recurrent layer with fused weights, dropout, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.rnn = nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.LSTM(4, 3, batch_first=True)
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.rnn(self.norm(self.conv(x)).relu().mT)
        return self.last(self.drop(hidden[:, -1]))  # type: ignore[no-any-return]


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    model = Net()
    with torch.no_grad():
        model.norm(model.conv(torch.randn(64, 2, 7)))  # running statistics that are not those of a new layer
        for parameter in model.parameters():
            parameter.mul_(2)
    return model


def batches(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 2, 7, generator=generator) for size in sizes]


def quantized_copy(model: nn.Module, inputs: Sequence[Tensor], bits: dict[str, int]) -> nn.Module:
    """A copy with the layers of ``bits`` quantized one after the other, each for itself, from the full-precision moments."""
    result = copy.deepcopy(model).eval()
    known = {layer.name: layer for layer in find_layers(model)[0]}
    for name, own in bits.items():
        moments = float_moments(model, inputs, [known[name]])[name]
        solution = solve(known[name], moments, own, Settings())
        with torch.no_grad():
            result.get_parameter(known[name].parameter).copy_(
                Quantized.of(known[name], solution.codebook, solution.codes).weight()
            )
    return result


def divergence(model: nn.Module, other: nn.Module, inputs: Sequence[Tensor]) -> float:
    """Mean over all rows of the KL divergence, by its definition, in double precision."""
    rows = []
    with torch.no_grad():
        for batch in inputs:
            for row, own in zip(model(batch).double(), other(batch).double(), strict=True):
                p, q = row.exp() / row.exp().sum(), own.exp() / own.exp().sum()
                rows.append(sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True)))
    return sum(rows) / len(rows)


def test_scores_are_those_of_a_copy_that_was_quantized_layer_by_layer() -> None:
    model, inputs = net().eval(), batches(6, 3)  # of unlike sizes: the mean is over rows, not over batches
    scores = Environment(model, NAMES, inputs, OPTIONS).scores(CHOICES)
    for choice, score in zip(CHOICES, scores, strict=True):
        bits = {name: own for name, own in zip(NAMES, choice, strict=True) if own is not None}
        assert score == pytest.approx(-divergence(model, quantized_copy(model, inputs, bits), inputs), rel=1e-4, abs=1e-7)
    assert len(set(scores)) == len(scores)  # they are not all alike


def test_the_whole_network_in_full_precision_scores_zero() -> None:
    environment = Environment(net(), NAMES, batches(4), OPTIONS)
    whole = (None,) * 4
    assert environment.scores([whole]) == [0.0]
    assert environment.scores([(2, 2, 3, 2), whole])[1] == 0.0  # also after another choice was in place
    assert environment.scores([(2, 2, 3, 2)])[0] < 0


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    model, inputs = net().train(training), batches(4, 2)
    for parameter in model.conv.parameters():
        parameter.requires_grad_(False)
    before = {name: (tensor, tensor.clone(), tensor.data_ptr()) for name, tensor in model.state_dict(keep_vars=True).items()}
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    untouched = [batch.clone() for batch in inputs]
    Environment(model, NAMES, inputs, OPTIONS, workers=2).scores(CHOICES)
    for name, tensor in model.state_dict(keep_vars=True).items():
        same, values, place = before[name]
        assert tensor is same
        assert torch.equal(tensor, values)
        assert tensor.data_ptr() == place
        assert tensor.grad is None
    assert wanted == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert all(module.training is training for module in model.modules())
    assert all(not module._forward_pre_hooks and not module._forward_hooks for module in model.modules())
    assert all(torch.equal(batch, copied) for batch, copied in zip(inputs, untouched, strict=True))


def test_a_model_in_training_mode_is_scored_as_in_use() -> None:
    inputs = batches(5)
    there, here = (Environment(net().train(training), NAMES, inputs, OPTIONS) for training in (False, True))
    assert here.scores(CHOICES) == there.scores(CHOICES)


def test_more_workers_give_the_same_scores_in_the_same_order() -> None:
    model, inputs = net(), batches(6, 3)
    one = Environment(model, NAMES, inputs, OPTIONS).scores(CHOICES)
    for workers in (2, 4, 16):
        environment = Environment(model, NAMES, inputs, OPTIONS, workers=workers)
        assert environment.scores(CHOICES) == one
        assert environment.scores(CHOICES[::-1]) == one[::-1]
        assert environment.scores(CHOICES[:1]) == one[:1]


def test_a_score_of_ones_own_sees_each_choice_in_place_and_needs_no_logits() -> None:
    class Regression(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv1d(2, 4, 3), nn.Linear(20, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.conv(x).flatten(1)).squeeze(1)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, inputs = Regression(), batches(8)
    with pytest.raises(PlanError, match=r"logits.*shape \(8,\).*score of your own"):
        Environment(model, ("conv", "last"), inputs, ((2,), (2, 5)))
    target = model(inputs[0]).detach()

    def score(candidate: nn.Module) -> float:
        assert not candidate.training
        assert not torch.is_grad_enabled()
        return -float((candidate(inputs[0]) - target).square().mean())

    found = Environment(model, ("conv", "last"), inputs, ((2,), (2, 5)), score=score, workers=2).scores(
        [(2, 2), (2, 5), (None, 5), (None, None)]
    )
    for bits, own in zip(({"conv": 2, "last": 2}, {"conv": 2, "last": 5}, {"last": 5}, {}), found, strict=True):
        with torch.no_grad():
            assert own == pytest.approx(score(quantized_copy(model, inputs, bits)), rel=1e-5)


class Odd(nn.Module):
    def __init__(self, result: Any) -> None:
        super().__init__()
        self.last, self.result = nn.Linear(3, 5), result

    def forward(self, x: Tensor) -> Any:
        return self.result(self.last(x))


@pytest.mark.parametrize(
    ("result", "got"),
    [
        (lambda y: y[:, 0], r"shape \(4,\)"),
        (lambda y: y[:, :1], r"shape \(4, 1\)"),
        (lambda y: y.mean(), r"shape \(\)"),
        (lambda y: (y, y), "tuple"),
        (lambda y: {"logits": y}, "dict"),
    ],
)
def test_outputs_that_are_no_logits_are_refused(result: Any, got: str) -> None:
    with pytest.raises(PlanError, match=f"logits.*{got}.*give a score of your own"):
        Environment(Odd(result), ("last",), [torch.randn(4, 3)], ((2,),))


def test_logits_of_a_sequence_are_rows() -> None:
    torch.manual_seed(0)
    model, inputs = Odd(lambda y: y), [torch.randn(2, 6, 3)]
    (score,) = Environment(model, ("last",), inputs, ((2,),)).scores([(2,)])
    flat = nn.Sequential(model, nn.Flatten(0, 1))
    other = nn.Sequential(quantized_copy(model, inputs, {"last": 2}), nn.Flatten(0, 1))
    assert score == pytest.approx(-divergence(flat, other, inputs), rel=1e-4)


def test_a_class_that_is_ruled_out_does_not_make_scores_nan() -> None:
    model = Odd(lambda y: y.masked_fill(torch.tensor([False, False, True, False, False]), -math.inf))
    scores = Environment(model, ("last",), [torch.randn(4, 3)], ((2, 5),)).scores([(None,), (2,), (5,)])
    assert scores[0] == 0.0
    assert -math.inf < scores[1] < scores[2] < 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_refused(bad: float) -> None:
    environment = Environment(Odd(lambda y: y), ("last",), [torch.randn(4, 3)], ((2,),), score=lambda _: bad)
    with pytest.raises(PlanError, match=f"score: expected a finite number, got {bad}"):
        environment.scores([(2,)])


def test_stored_bits_are_the_entropy_of_the_codes() -> None:
    model, inputs = net(), batches(6)
    environment = Environment(model, NAMES, inputs, OPTIONS)
    known = {layer.name: layer for layer in find_layers(model)[0]}
    total = 0.0
    for name, bits in zip(NAMES, (4, 2, 3, 5), strict=True):
        solution = solve(known[name], float_moments(model, inputs, [known[name]])[name], bits, Settings())
        counts = torch.unique(solution.codes, return_counts=True)[1].double()
        total += float(-(counts * (counts / counts.sum()).log2()).sum())
    assert environment.stored_bits((4, 2, 3, 5)) == pytest.approx(total)


def test_a_weight_that_two_modules_share_is_quantized_in_both() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.second(self.first(x).relu()))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, inputs = Tied(), [torch.randn(8, 4)]
    (score,) = Environment(model, ("first", "last"), inputs, ((2,), (2,))).scores([(2, None)])
    assert score == pytest.approx(-divergence(model, quantized_copy(model, inputs, {"first": 2}), inputs), rel=1e-4)
