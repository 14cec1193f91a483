"""What a choice of bits is scored by: the same as quantizing a copy layer by layer, and nothing of
the model changes."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octavo.dnq.environment import Environment
from octavo.dnq.output_sum import OutputSum
from octavo.dnq.space import Action, Partial
from octavo.errors import PlanError
from octavo.formats.width import WidthLike, read_width
from octavo.network.divergence import TEMPERATURE
from octavo.network.layers import find_layers
from octavo.ptq.float_inputs import float_moments
from octavo.ptq.layer_solver import solve
from octavo.ptq.settings import PtqSettings
from octavo.storage.quantized import Quantized


def actions(*widths: WidthLike) -> tuple[Action, ...]:
    return tuple(Action(read_width(width)) for width in widths)


NAMES = ("conv", "rnn.weight_ih_l0", "rnn.weight_hh_l0", "last")
OPTIONS = (actions(2, 4), actions(2, 3), actions(3), actions(2, 3, 5))
CHOICES: tuple[Partial, ...] = (
    (0, 0, 0, 0), (1, 1, 0, 2), (None, None, None, None), (None, 0, None, 1),
    (0, None, 0, None), (1, 0, 0, 0), (0, 0, 0, 2),
)  # fmt: skip
ONE = (actions(2),)


class Net(nn.Module):
    """A convolution, a batch norm, a recurrent layer with fused weights, dropout, and a linear
    layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.rnn = (
            nn.Conv1d(2, 4, 3),
            nn.BatchNorm1d(4),
            nn.LSTM(4, 3, batch_first=True),
        )
        self.drop, self.last = nn.Dropout(0.5), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.rnn(self.norm(self.conv(x)).relu().mT)
        return self.last(self.drop(hidden[:, -1]))  # type: ignore[no-any-return]


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    model = Net()
    with torch.no_grad():
        model.norm(
            model.conv(torch.randn(64, 2, 7))
        )  # running statistics that are not those of a new layer
        for parameter in model.parameters():
            parameter.mul_(2)
    return model


def batches(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 2, 7, generator=generator) for size in sizes]


def quantized_copy(
    model: nn.Module, inputs: Sequence[Tensor], bits: Mapping[str, WidthLike]
) -> nn.Module:
    """A copy with the layers of ``bits`` quantized one after the other, each for itself, from the
    full-precision moments."""
    result = copy.deepcopy(model).eval()
    known = {layer.name: layer for layer in find_layers(model)[0]}
    for name, own in bits.items():
        moments = float_moments(model, inputs, [known[name]])[name]
        solution = solve(known[name], moments, read_width(own), PtqSettings())
        with torch.no_grad():
            result.get_parameter(known[name].parameter).copy_(
                Quantized.of(known[name], solution.codebook, solution.codes).weight()
            )
    return result


def divergence(model: nn.Module, other: nn.Module, inputs: Sequence[Tensor]) -> float:
    """Mean over all rows of the KL divergence, by its definition, in double precision."""
    with torch.no_grad():
        return kl(
            torch.cat([model(batch) for batch in inputs]),
            torch.cat([other(batch) for batch in inputs]),
        )


def kl(full: Tensor, own: Tensor) -> float:
    rows = []
    rescaled = (full.double() / TEMPERATURE, own.double() / TEMPERATURE)
    for one, other in zip(*rescaled, strict=True):
        p, q = one.exp() / one.exp().sum(), other.exp() / other.exp().sum()
        rows.append(
            sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True))
        )
    return TEMPERATURE**2 * sum(rows) / len(rows)


def test_objectives_are_those_of_a_copy_that_was_quantized_layer_by_layer() -> None:
    model, inputs = (
        net().eval(),
        batches(6, 3),
    )  # of unlike sizes: the mean is over rows, not over batches
    scores = Environment(model, NAMES, inputs, OPTIONS).objectives(CHOICES)
    for choice, score in zip(CHOICES, scores, strict=True):
        chosen = zip(NAMES, OPTIONS, choice, strict=True)
        bits = {name: some[at].width for name, some, at in chosen if at is not None}
        assert score == pytest.approx(
            -divergence(model, quantized_copy(model, inputs, bits), inputs), rel=1e-4, abs=1e-7
        )
    assert len(set(scores)) == len(scores)  # they are not all alike


def test_the_whole_network_in_full_precision_scores_zero() -> None:
    environment = Environment(net(), NAMES, batches(4), OPTIONS)
    whole = (None,) * 4
    assert environment.objectives([whole]) == [0.0]
    assert (
        environment.objectives([(0, 0, 0, 0), whole])[1] == 0.0
    )  # also after another choice was in place
    assert environment.objectives([(0, 0, 0, 0)])[0] < 0


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    model, inputs = net().train(training), batches(4, 2)
    for parameter in model.conv.parameters():
        parameter.requires_grad_(False)
    before = {
        name: (tensor, tensor.clone(), tensor.data_ptr())
        for name, tensor in model.state_dict(keep_vars=True).items()
    }
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    untouched = [batch.clone() for batch in inputs]
    Environment(model, NAMES, inputs, OPTIONS, workers=2).objectives(CHOICES)
    for name, tensor in model.state_dict(keep_vars=True).items():
        same, values, place = before[name]
        assert tensor is same
        assert torch.equal(tensor, values)
        assert tensor.data_ptr() == place
        assert tensor.grad is None
    assert wanted == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert all(module.training is training for module in model.modules())
    assert all(
        not module._forward_pre_hooks and not module._forward_hooks for module in model.modules()
    )
    assert all(torch.equal(batch, copied) for batch, copied in zip(inputs, untouched, strict=True))


def test_a_model_in_training_mode_is_scored_as_in_use() -> None:
    inputs = batches(5)
    there, here = (
        Environment(net().train(training), NAMES, inputs, OPTIONS) for training in (False, True)
    )
    assert here.objectives(CHOICES) == there.objectives(CHOICES)


def test_more_workers_give_the_same_objectives_in_the_same_order() -> None:
    model, inputs = net(), batches(6, 3)
    one = Environment(model, NAMES, inputs, OPTIONS).objectives(CHOICES)
    for workers in (2, 4, 16):
        environment = Environment(model, NAMES, inputs, OPTIONS, workers=workers)
        assert environment.objectives(CHOICES) == one
        assert environment.objectives(CHOICES[::-1]) == one[::-1]
        assert environment.objectives(CHOICES[:1]) == one[:1]


def test_an_objective_of_ones_own_sees_each_choice_in_place() -> None:
    class Regression(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv1d(2, 4, 3), nn.Linear(20, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.conv(x).flatten(1)).squeeze(1)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, inputs = Regression(), batches(8)
    target = model(inputs[0]).detach()

    def objective(candidate: nn.Module) -> float:
        assert not candidate.training
        assert not torch.is_grad_enabled()
        return -float((candidate(inputs[0]) - target).square().mean())

    found = Environment(
        model, ("conv", "last"), inputs, (actions(2), actions(2, 5)), objective=objective, workers=2
    ).objectives([(0, 0), (0, 1), (None, 1), (None, None)])
    for bits, own in zip(
        ({"conv": 2, "last": 2}, {"conv": 2, "last": 5}, {"last": 5}, {}), found, strict=True
    ):
        with torch.no_grad():
            assert own == pytest.approx(objective(quantized_copy(model, inputs, bits)), rel=1e-5)


class Odd(nn.Module):
    def __init__(self, result: Any) -> None:
        super().__init__()
        self.last, self.result = nn.Linear(3, 5), result

    def forward(self, x: Tensor) -> Any:
        return self.result(self.last(x))


@pytest.mark.parametrize(
    "result",
    [
        lambda y: y[:, 0],
        lambda y: y[:, :1],
        lambda y: y.mean(),
        lambda y: {"boxes": y, "labels": y.argmax(1)},
        lambda y: [y, {"more": (y.unsqueeze(1),)}],
    ],
    ids=["numbers", "one column", "scalar", "named", "nested"],
)
def test_what_is_no_logits_scores_minus_its_relative_squared_error(result: Any) -> None:
    """Each tensor over all batches, in units of its own; several are added up."""
    torch.manual_seed(0)
    model, inputs = Odd(result), [torch.randn(4, 3), torch.randn(2, 3)]
    other = quantized_copy(model, inputs, {"last": 2})
    with torch.no_grad():
        rows = [[float_tensors(net(batch)) for batch in inputs] for net in (model, other)]
    expected = 0.0
    for full, own in zip(*(zip(*some, strict=True) for some in rows), strict=True):
        lost = sum(float((a - b).double().square().sum()) for a, b in zip(full, own, strict=True))
        expected -= lost / sum(float(a.double().square().sum()) for a in full)
    environment = Environment(model, ("last",), inputs, ONE)
    assert environment.objectives([(0,), (None,)]) == [pytest.approx(expected, rel=1e-4), 0.0]
    (measured,) = environment.measure([(0,)], keep_outputs=True)
    estimate = OutputSum(environment.full_outputs(), {(0, 0): measured.outputs})
    assert estimate.objectives([(0,)]).item() == pytest.approx(
        expected, rel=1e-4
    )  # one layer alone: no sum, the thing itself


def float_tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    return [
        tensor
        for item in (value.values() if isinstance(value, dict) else value)
        for tensor in float_tensors(item)
    ]


def test_logits_count_the_same_whatever_they_are_wrapped_in() -> None:
    @dataclass
    class Output:
        logits: Tensor

    torch.manual_seed(0)
    bare, inputs = Odd(lambda y: y), [torch.randn(4, 3)]
    expected = Environment(bare, ("last",), inputs, ONE).objectives([(0,)])
    for wrap in (
        lambda y: (y,),
        lambda y: [y],
        lambda y: {"logits": y},
        lambda y: {"head": {"mask_logits": y}},
        Output,
    ):
        model = Odd(wrap)
        model.load_state_dict(bare.state_dict())
        assert Environment(model, ("last",), inputs, ONE).objectives([(0,)]) == expected


def test_logits_of_images_have_their_classes_second() -> None:
    torch.manual_seed(0)
    model, inputs = Odd(lambda y: y.view(2, 5, 2, 2)), [torch.randn(8, 3)]
    model.last = nn.Linear(3, 5)
    (score,) = Environment(model, ("last",), inputs, ONE).objectives([(0,)])

    class Pixels(nn.Module):
        def __init__(self, whole: nn.Module) -> None:
            super().__init__()
            self.whole = whole

        def forward(self, x: Tensor) -> Tensor:
            images = self.whole(x)
            return torch.stack(
                [images[i, :, j, k] for i in range(2) for j in range(2) for k in range(2)]
            )

    other = quantized_copy(model, inputs, {"last": 2})
    assert score == pytest.approx(-divergence(Pixels(model), Pixels(other), inputs), rel=1e-4)


def test_rows_that_are_padding_do_not_count() -> None:
    class Masked(Odd):
        def forward(self, x: Tensor, src_key_padding_mask: Tensor | None = None) -> Any:
            return {"logits": self.last(x)}

    torch.manual_seed(0)
    model, x, padding = Masked(None), torch.randn(2, 4, 3), torch.zeros(2, 4, dtype=torch.bool)
    padding[1, 2:] = True
    inputs = [{"x": x, "src_key_padding_mask": padding}]
    masked, none = Environment(model, ("last",), inputs, ONE).objectives([(0,), (None,)])
    weights = Environment(model, ("last",), inputs, ONE).network((0,))
    with torch.no_grad():
        full, own = (net(x)["logits"][~padding] for net in (model, weights))
    assert masked == pytest.approx(-kl(full, own), rel=1e-4)
    assert none == 0.0


@pytest.mark.parametrize(
    ("result", "got"),
    [(lambda y: y.argmax(1), "Tensor"), (lambda y: {"n": 3}, "dict"), (str, "str")],
)
def test_nothing_to_compare_is_refused(result: Any, got: str) -> None:
    with pytest.raises(
        PlanError, match=f"floating-point tensors, got {got}; give an objective of your own"
    ):
        Environment(Odd(result), ("last",), [torch.randn(4, 3)], ONE)


def test_outputs_whose_form_depends_on_the_weights_are_refused() -> None:
    x, seen = torch.randn(4, 3), list[Tensor]()

    def boxes(y: Tensor) -> dict[str, Tensor]:
        seen.append(y)
        return {"boxes": y[: 1 + int(torch.equal(y, seen[0]))]}

    model = Odd(boxes)
    with pytest.raises(
        PlanError,
        match=(
            r"got boxes \(1, 5\) where full precision gave boxes \(2, 5\); "
            r"give an objective of your own"
        ),
    ):
        Environment(model, ("last",), [x], ONE).objectives([(0,)])


def test_logits_of_a_sequence_are_rows() -> None:
    torch.manual_seed(0)
    model, inputs = Odd(lambda y: y), [torch.randn(2, 6, 3)]
    (score,) = Environment(model, ("last",), inputs, ONE).objectives([(0,)])
    flat = nn.Sequential(model, nn.Flatten(0, 1))
    other = nn.Sequential(quantized_copy(model, inputs, {"last": 2}), nn.Flatten(0, 1))
    assert score == pytest.approx(-divergence(flat, other, inputs), rel=1e-4)


def test_a_class_that_is_ruled_out_does_not_make_scores_nan() -> None:
    model = Odd(
        lambda y: y.masked_fill(torch.tensor([False, False, True, False, False]), -math.inf)
    )
    scores = Environment(model, ("last",), [torch.randn(4, 3)], (actions(2, 5),)).objectives(
        [(None,), (0,), (1,)]
    )
    assert scores[0] == 0.0
    assert -math.inf < scores[1] < scores[2] < 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_objective_that_is_no_number_is_refused(bad: float) -> None:
    environment = Environment(
        Odd(lambda y: y), ("last",), [torch.randn(4, 3)], ONE, objective=lambda _: bad
    )
    message = f"objective: expected a finite number, got {bad} for the plan with last 2$"
    with pytest.raises(PlanError, match=message):
        environment.objectives([(0,)])


def test_stored_bits_are_the_entropy_of_the_codes() -> None:
    model, inputs = net(), batches(6)
    environment = Environment(model, NAMES, inputs, OPTIONS)
    known = {layer.name: layer for layer in find_layers(model)[0]}
    total = 0.0
    for name, bits in zip(NAMES, (4, 2, 3, 5), strict=True):
        moments = float_moments(model, inputs, [known[name]])[name]
        solution = solve(known[name], moments, read_width(bits), PtqSettings())
        counts = torch.unique(solution.codes, return_counts=True)[1].double()
        total += float(-(counts * (counts / counts.sum()).log2()).sum())
    assert environment.stored_bits((1, 0, 0, 2)) == pytest.approx(total)


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
    (score,) = Environment(model, ("first", "last"), inputs, ONE * 2).objectives([(0, None)])
    assert score == pytest.approx(
        -divergence(model, quantized_copy(model, inputs, {"first": 2}), inputs), rel=1e-4
    )


def test_outputs_are_kept_on_request_only() -> None:
    environment = Environment(net(), NAMES, batches(4, 2), OPTIONS)
    (plain,) = environment.measure(CHOICES[:1])
    (kept,) = environment.measure(CHOICES[:1], keep_outputs=True)
    (full,) = environment.full_outputs()
    assert plain.outputs == ()
    assert plain.objective == kept.objective
    with torch.no_grad():
        own = environment.network(CHOICES[0])
        logits = torch.cat([own(batch) for batch in batches(4, 2)])
    assert torch.allclose(kept.outputs[0], (logits / TEMPERATURE).log_softmax(1), atol=1e-6)
    assert full.rows.shape == kept.outputs[0].shape == (6, 5)


def test_an_objective_of_ones_own_keeps_no_outputs() -> None:
    environment = Environment(net(), NAMES, batches(4), OPTIONS, objective=lambda _: 1.0)
    (measured,) = environment.measure(CHOICES[:1], keep_outputs=True)
    assert (measured.outputs, environment.full_outputs()) == ((), ())


@pytest.mark.parametrize("workers", [1, 3])
def test_trials_run_under_the_autocast_and_default_device_of_whoever_made_the_environment(
    workers: int,
) -> None:
    seen = []
    model = net()
    inputs = batches(4)

    def objective(model: nn.Module) -> float:
        seen.append((torch.is_autocast_enabled("cpu"), torch.get_default_device().type))
        return 0.0

    with torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
        environment = Environment(
            model, NAMES, inputs, OPTIONS, objective=objective, workers=workers
        )
    environment.objectives(CHOICES)
    assert set(seen) == {(True, "meta")}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        odd = Odd(lambda y: y)
        environment = Environment(odd, ("last",), [torch.randn(4, 3)], ONE, workers=workers)
        assert environment.objectives([(None,), (None,)]) == [0.0, 0.0]
