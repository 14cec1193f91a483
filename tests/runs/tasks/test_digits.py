"""The task `digits`: its parts do not overlap, its network learns, and nobody's random numbers are
touched."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from octavo.errors import OctavoError
from octavo.runs.task import load_task
from octavo.runs.tasks.digits import Digits


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


def test_the_network_learns_without_touching_the_global_generator(digits: Digits) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    model = digits.model()
    assert torch.equal(torch.get_rng_state(), before)
    assert digits.score(model) >= 97
    assert Digits(split="holdout").score(model) >= 96
    assert 20_000 <= sum(p.numel() for p in model.parameters() if p.dim() > 1) <= 40_000


def test_every_call_gives_a_copy_of_the_same_network(digits: Digits) -> None:
    first, second = digits.model(), digits.model()
    with torch.no_grad():
        next(first.parameters()).zero_()
    for a, b in zip(second.parameters(), digits.model().parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(next(first.parameters()), next(second.parameters()))


def test_the_same_seed_gives_the_same_network(
    digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.runs.tasks.digits.EPOCHS", 1)
    one, same, other = (
        Digits(seed=seed).model().state_dict()["conv2.weight"] for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_parts_are_fixed_and_disjoint(digits: Digits) -> None:
    from sklearn.datasets import load_digits

    parts = digits._parts
    assert {name: len(labels) for name, (_, labels) in parts.items()} == {
        "train": 1077,
        "holdout": 360,
        "test": 360,
    }
    everything = [
        (bytes(i.flatten().tolist()), int(y))
        for x, t in parts.values()
        for i, y in zip(x, t, strict=True)
    ]
    data = load_digits()
    original = [
        (bytes(i.astype(int).tolist()), int(y)) for i, y in zip(data.data, data.target, strict=True)
    ]
    assert sorted(everything) == sorted(original)
    again = Digits(seed=5)._parts
    assert all(torch.equal(parts[name][0], again[name][0]) for name in parts)


def test_batches_and_loss(digits: Digits) -> None:
    torch.manual_seed(0)
    epoch = digits.train_batches()
    inputs, labels = next(iter(epoch))
    assert len(epoch) == 1077 // 64
    assert inputs.shape == (64, 1, 8, 8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    expected = -torch.log_softmax(model(inputs), 1)[torch.arange(64), labels].mean()
    torch.testing.assert_close(digits.loss(model, (inputs, labels)), expected)


def test_calibration_is_the_training_images_each_time_the_same(digits: Digits) -> None:
    first, second = torch.cat(list(digits.calibration())), torch.cat(list(digits.calibration()))
    assert first.shape == (1077, 1, 8, 8)
    assert torch.equal(first, second)
    assert abs(float(first.mean())) < 0.01
    assert abs(float(first.std()) - 1) < 0.01


def test_augmentation_shifts_by_at_most_one_pixel(digits: Digits) -> None:
    torch.manual_seed(0)
    blank = float(torch.cat(list(digits.calibration())).min())
    wide = (
        F.pad(torch.cat(list(digits.calibration()))[:, 0], (1, 1, 1, 1), value=blank)
        .unfold(1, 8, 1)
        .unfold(2, 8, 1)
    )
    possible = {
        i.numpy().tobytes() for shifts in wide.reshape(-1, 8, 8) for i in [shifts.contiguous()]
    }
    assert all(
        i[0].contiguous().numpy().tobytes() in possible
        for x, _ in digits.train_batches()
        for i in x
    )


def test_it_is_found_by_its_name() -> None:
    assert isinstance(load_task("digits", {"seed": 3, "split": "holdout"}), Digits)


def test_a_missing_scikit_learn_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(
        OctavoError, match=r"^task .digits. needs scikit-learn: install octavo with its extra demo$"
    ):
        Digits().train_batches()
