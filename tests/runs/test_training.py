"""The retraining loop, against a plain float64 computation of every step, and what it does where it
cannot go on."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tests.runs.toy_task import (
    BATCHES,
    CLASSES,
    INPUTS,
    ROWS,
    Array,
    Returns,
    Toy,
    data,
    linear,
    poisoned,
    softmax,
)
from torch import Tensor, nn
from torch.nn import functional as F

from octavo.activations.quantizer import InputFormat, InputQuantizer, attach_quantizer, scales
from octavo.errors import TrainingError
from octavo.inq.incremental import Incremental
from octavo.progress import Event
from octavo.runs.retraining import Retraining
from octavo.runs.task import Batch
from octavo.runs.training import StepFigures, retrain


class Student(nn.Module):
    """Counts its forward passes, and has a part whose mode is not the whole's."""

    def __init__(self, seed: int = 1) -> None:
        super().__init__()
        self.norm, self.drop, self.layer = nn.BatchNorm1d(INPUTS), nn.Dropout(0.1), linear(seed)
        self.passes, self.kinds = 0, set[torch.dtype]()

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        y: Tensor = self.layer(self.drop(self.norm(x)))
        self.kinds.add(y.dtype)
        return y


def reference(
    settings: Retraining, steps: int, student: nn.Linear, teacher: nn.Linear
) -> list[Array]:
    """The weights after ``steps``, by hand: gradients from the formulas, clipped; decay, Nesterov's
    momentum, a half cosine."""
    parameters = [p.detach().double().numpy().copy() for p in student.parameters()]
    taught = [p.detach().double().numpy() for p in teacher.parameters()]
    velocity: list[Array] = [np.zeros_like(p) for p in parameters]
    batches = data()
    for step in range(steps):
        x, labels = batches[step % BATCHES][0].double().numpy(), batches[step % BATCHES][1].numpy()
        logits, goal, t = (
            x @ parameters[0].T + parameters[1],
            x @ taught[0].T + taught[1],
            settings.temperature,
        )
        slope = settings.labels * (softmax(logits) - np.eye(CLASSES)[labels])
        slope += (1 - settings.labels) * t * (softmax(logits / t) - softmax(goal / t))
        gradients = [slope.T @ x / ROWS, slope.sum(0) / ROWS]
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        rate = settings.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
        for i, gradient in enumerate(gradients):
            down = gradient * min(1.0, settings.clip / norm) + settings.weight_decay * parameters[i]
            velocity[i] = settings.momentum * velocity[i] + down
            parameters[i] = parameters[i] - rate * (down + settings.momentum * velocity[i])
    return parameters


@pytest.mark.parametrize(
    "settings",
    [
        Retraining(learning_rate=0.3, momentum=0.9),
        Retraining(learning_rate=0.3, momentum=0.0, temperature=3.0),
        Retraining(learning_rate=0.3, momentum=0.9, weight_decay=0.05, clip=0.1),
        Retraining(learning_rate=0.3, momentum=0.5, temperature=2.0, labels=0.3),
        Retraining(learning_rate=0.3, momentum=0.5, labels=1.0),
    ],
    ids=["momentum", "temperature", "decay and clipping", "mixed", "labels"],
)
@pytest.mark.parametrize("epochs", [0.6, 2.4])
def test_every_step_is_the_one_computed_by_hand(settings: Retraining, epochs: float) -> None:
    model, teacher = linear(1), linear(2)
    expected = reference(settings, round(epochs * BATCHES), model, teacher)
    retrain(model, Toy(), epochs, settings, teacher=None if settings.labels == 1 else teacher)
    for mine, right in zip(model.parameters(), expected, strict=True):
        np.testing.assert_allclose(mine.detach().numpy(), right, rtol=1e-4, atol=1e-5)


def test_each_call_starts_with_a_fresh_optimizer() -> None:
    settings = Retraining(learning_rate=0.3)
    model, teacher = linear(1), linear(2)
    retrain(model, Toy(), 1.0, settings, teacher=teacher)
    expected = reference(
        settings, BATCHES, copy.deepcopy(model), teacher
    )  # no velocity left over, the whole rate again
    retrain(model, Toy(), 1.0, settings, teacher=teacher)
    np.testing.assert_allclose(model.weight.detach().numpy(), expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("epochs", "steps"), [(0.5, 2), (0.6, 3), (1.0, 5), (2.4, 12)])
def test_progress_counts_every_step_of_a_part_of_an_epoch(epochs: float, steps: int) -> None:
    seen: list[Event] = []
    values: list[float] = []

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        value = F.cross_entropy(model(batch[0]), batch[1])
        values.append(value.item())
        return value

    mean = retrain(linear(1), Toy(loss=loss), epochs, Retraining(labels=1.0), progress=seen.append)
    assert [event.done for event in seen] == list(range(1, steps + 1))
    assert {(event.phase, event.total) for event in seen} == {("retrain", steps)}
    figures = [event.detail for event in seen if isinstance(event.detail, StepFigures)]
    assert [step.epoch for step in figures] == pytest.approx(
        [step / BATCHES for step in range(1, steps + 1)]
    )
    assert [step.loss for step in figures] == pytest.approx(
        [np.mean(values[:n]) for n in range(1, steps + 1)]
    )
    assert mean == pytest.approx(np.mean(values))
    assert all(step.speed > 0 for step in figures)


def test_no_epochs_change_nothing() -> None:
    model = linear(1)
    assert retrain(model, Toy(), 0.0, Retraining(), teacher=linear(2)) == 0.0
    assert torch.equal(model.weight, linear(1).weight)


@pytest.mark.parametrize(("labels", "taught"), [(0.0, 5), (0.3, 5), (1.0, 0)])
def test_one_student_pass_a_step_serves_both_losses(labels: float, taught: int) -> None:
    model, teacher = Student(), Student(2).eval()
    retrain(model, Toy(), 1.0, Retraining(labels=labels), teacher=teacher)
    assert (model.passes, teacher.passes) == (BATCHES, taught)
    assert not model._forward_hooks


def test_without_labels_the_tasks_loss_is_not_called_and_targets_may_be_missing() -> None:
    def refuse(model: nn.Module, batch: Batch) -> Tensor:
        raise AssertionError("labels were used")

    unlabelled = [(x, None) for x, _ in data()]
    assert (
        retrain(linear(1), Toy(lambda: unlabelled, refuse), 1.0, Retraining(), teacher=linear(2))
        > 0
    )


def test_frozen_weights_do_not_move_and_the_others_do() -> None:
    model = nn.Sequential(nn.Linear(INPUTS, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    settings = Retraining(learning_rate=0.1, weight_decay=0.1, clip=0.5)
    stages = iter(Incremental(model, {"0": 3, "2": 4}, portions=(0.5, 1.0)))
    frozen = next(stages).frozen
    layers: dict[str, Any] = {name: model.get_submodule(name) for name in frozen}
    before = {name: layer.weight.clone() for name, layer in layers.items()}
    retrain(model, Toy(), 4.0, settings, teacher=nn.Sequential(linear(2)))
    for name, mask in frozen.items():
        assert 0 < int(mask.sum()) < mask.numel()
        assert torch.equal(layers[name].weight[mask], before[name][mask])
        assert bool((layers[name].weight[~mask] != before[name][~mask]).all())


def test_the_teacher_is_left_as_it_was() -> None:
    teacher = Student(2).eval()
    before = copy.deepcopy(teacher.state_dict())
    retrain(Student(), Toy(), 1.0, Retraining(labels=0.5), teacher=teacher)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())


@pytest.mark.parametrize("bfloat16", [True, False])
def test_bfloat16_is_for_the_forward_pass_only(bfloat16: bool) -> None:
    model, teacher = Student(), Student(2).eval()
    mean = retrain(model, Toy(), 1.0, Retraining(bfloat16=bfloat16, labels=0.5), teacher=teacher)
    assert math.isfinite(mean)
    assert model.kinds == teacher.kinds == {torch.bfloat16 if bfloat16 else torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_steps_of_activations_learn_ten_times_as_fast() -> None:
    """One step of SGD without momentum, whose gradients are taken by hand."""
    layer, batch = linear(1), data()[0]
    attach_quantizer(layer, InputQuantizer(InputFormat(4, signed=True), 0.25))
    by_hand = copy.deepcopy(layer)
    F.cross_entropy(by_hand(batch[0]), batch[1]).backward()
    settings = Retraining(labels=1.0, learning_rate=0.001, momentum=0.0, clip=100)
    retrain(nn.Sequential(layer), Toy(lambda: [batch]), 1.0, settings)
    (step,), (slope,) = scales(layer), [step.grad for step in scales(by_hand)]
    assert slope is not None
    assert step.item() == pytest.approx(0.25 - 0.01 * slope.item(), rel=1e-5)
    assert step.item() != pytest.approx(0.25, rel=1e-5)
    assert torch.allclose(layer.weight, by_hand.weight - 0.001 * by_hand.weight.grad, atol=1e-6)  # type: ignore[operator]


@pytest.mark.parametrize(("pull", "end"), [(1.0, 0.125), (-1.0, 0.5)])
def test_a_step_of_activations_stays_within_an_octave(pull: float, end: float) -> None:
    """However hard the loss pulls at it; else one that runs away takes the network with it."""
    layer = linear(1)
    attach_quantizer(layer, InputQuantizer(InputFormat(4, signed=True), 0.25))

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        pulled: Tensor = pull * scales(model)[0]
        return pulled

    retrain(nn.Sequential(layer), Toy(loss=loss), 1.0, Retraining(labels=1.0, learning_rate=1.0))
    assert scales(layer)[0].item() == end


def test_weight_decay_spares_the_steps_of_activations() -> None:
    """No loss at all: only the decay moves anything."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        zero: Tensor = 0 * model(batch[0]).sum()
        return zero

    layer = linear(1)
    model = nn.Sequential(layer)
    attach_quantizer(layer, InputQuantizer(InputFormat(4, signed=True), 0.25))
    before = layer.weight.detach().clone()
    retrain(model, Toy(loss=loss), 1.0, Retraining(labels=1.0, weight_decay=0.5))
    assert scales(model)[0].item() == 0.25
    assert float((layer.weight.abs() < before.abs()).float().mean()) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_every_module_gets_its_mode_back(fails: bool) -> None:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        assert all(module.training for module in model.modules())
        if fails:
            raise ArithmeticError("inside")
        return F.cross_entropy(model(batch[0]), batch[1])

    model = Student()
    model.norm.eval()
    before = [module.training for module in model.modules()]
    assert set(before) == {True, False}
    if fails:
        with pytest.raises(ArithmeticError, match="inside"):
            retrain(model, Toy(loss=loss), 1.0, Retraining(labels=1.0))
    else:
        retrain(model, Toy(loss=loss), 1.0, Retraining(labels=1.0))
    assert [module.training for module in model.modules()] == before
    assert not model._forward_hooks


class Forms(NamedTuple):
    inputs: Tensor
    labels: Tensor


def test_batches_may_come_without_a_length_and_as_named_tuples() -> None:
    def batches() -> Iterator[Forms]:
        yield from (Forms(*batch) for batch in data())

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch.inputs), batch.labels)

    one, two, seen = linear(1), linear(1), list[Event]()
    retrain(one, Toy(batches, loss), 1.4, Retraining(labels=1.0), progress=seen.append)
    retrain(two, Toy(), 1.4, Retraining(labels=1.0))
    assert len(seen) == seen[-1].total == 7
    assert torch.equal(one.weight, two.weight)


def test_every_epoch_is_asked_for_anew() -> None:
    calls: list[int] = []

    def batches() -> list[tuple[Tensor, Tensor]]:
        calls.append(len(calls))
        return data(seed=len(calls))

    retrain(linear(1), Toy(batches), 3.0, Retraining(), teacher=linear(2))
    assert len(calls) == 4  # one for the length


def test_a_loss_that_is_not_finite_stops_at_its_step_with_the_weights_of_the_step_before() -> None:
    model, seen = linear(1), list[Event]()
    with pytest.raises(
        TrainingError, match=r"^step 4 of 10: the loss is nan; lower the learning rate"
    ):
        retrain(
            model,
            Toy(lambda: poisoned(3)),
            2.0,
            Retraining(),
            teacher=linear(2),
            progress=seen.append,
        )
    assert [event.done for event in seen] == [1, 2, 3]
    assert bool(torch.isfinite(model.weight).all())


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_spoiled() -> None:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return torch.sqrt(0 * model(batch[0]).square().sum())  # 0, with the slope 0 * inf

    model = linear(1)
    with pytest.raises(TrainingError, match=r"^step 1 of 5: the gradient's norm is nan"):
        retrain(model, Toy(loss=loss), 1.0, Retraining(labels=1.0))
    assert torch.equal(model.weight, linear(1).weight)


def refused(
    cause: str, task: Toy, settings: Retraining, model: nn.Module | None = None, **rest: Any
) -> None:
    with pytest.raises(TrainingError, match=cause) as caught:
        retrain(model or linear(1), task, 1.0, settings, **rest)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batches", [list, lambda: iter(())], ids=["list", "iterator"])
def test_no_batches_at_all(batches: Callable[[], Iterable[Batch]]) -> None:
    refused(r"at least one training batch, got none", Toy(batches), Retraining(), teacher=linear(2))


def test_batches_that_can_be_read_only_once() -> None:
    once, calls = iter(data()), list[int]()

    def batches() -> Iterable[Batch]:
        calls.append(1)
        assert len(calls) < 9, "asks for ever"
        return once

    refused("gave nothing when asked again", Toy(batches), Retraining(), teacher=linear(2))


@pytest.mark.parametrize(
    ("model", "teacher", "got"),
    [
        (Returns(lambda y: {"logits": y}), linear(2), r"got logits \(6, 3\) and \(6, 3\)"),
        (
            Returns(lambda y: [y, y]),
            Returns(lambda y: [y]),
            r"got 0 \(6, 3\), 1 \(6, 3\) and 0 \(6, 3\)",
        ),
        (linear(1), nn.Linear(INPUTS, 2), r"got \(6, 3\) and \(6, 2\)"),
        (
            Returns(lambda y: y.argmax(1)),
            Returns(lambda y: y.argmax(1)),
            "got no floating-point tensor and no .*",
        ),
    ],
    ids=["names", "parts", "shapes", "nothing"],
)
@pytest.mark.parametrize("labels", [0.0, 0.5])
def test_outputs_that_cannot_be_compared(
    model: nn.Module, teacher: nn.Module, got: str, labels: float
) -> None:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        model(batch[0])
        return torch.zeros(())

    refused(
        f"return the same floating-point tensors, {got}; set labels: 1",
        Toy(loss=loss),
        Retraining(labels=labels),
        model,
        teacher=teacher,
    )


@pytest.mark.parametrize(
    ("value", "got"), [(0.5, "float"), (None, "NoneType"), (torch.zeros(6), r"shape \(6,\)")]
)
def test_a_loss_that_is_no_scalar_tensor(value: Any, got: str) -> None:
    refused(
        f"task's loss to be a scalar tensor, got {got}",
        Toy(loss=lambda *_: value),
        Retraining(labels=1.0),
    )


def test_no_teacher_or_nothing_to_train() -> None:
    refused("expected a teacher network, or labels: 1", Toy(), Retraining(labels=0.5))
    model = linear(1).requires_grad_(False)
    refused(
        "Linear to have parameters that require gradients, found none",
        Toy(),
        Retraining(),
        model,
        teacher=linear(2),
    )
