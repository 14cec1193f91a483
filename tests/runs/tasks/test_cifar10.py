"""The task `cifar10` on a tiny file of its own making: splits, weights, fetching, damage."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from octavo.errors import FormatError, OctavoError, RecipeError
from octavo.runs.task import load_task
from octavo.runs.tasks.cifar10 import Cifar10
from octavo.runs.tasks.resnet import resnet


def arrays(train: int = 40, test: int = 12) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        "x_train": random.integers(0, 256, (train, 32, 32, 3), np.uint8),
        "y_train": random.integers(0, 10, train),
        "x_test": random.integers(0, 256, (test, 32, 32, 3), np.uint8),
        "y_test": random.integers(0, 10, test),
    }


@pytest.fixture
def data(tmp_path: Path) -> str:
    np.savez(tmp_path / "data.npz", **arrays())
    return str(tmp_path / "data.npz")


def task(data: str, **options: Any) -> Cifar10:
    return Cifar10(depth=8, data=data, **options)


def pixels(inputs: Tensor) -> list[bytes]:
    """Back to the images' bytes."""
    scale, shift = torch.tensor([0.229, 0.224, 0.225]), torch.tensor([0.485, 0.456, 0.406])
    restored = (inputs.permute(0, 2, 3, 1) * scale + shift) * 255
    return [image.round().to(torch.uint8).contiguous().numpy().tobytes() for image in restored]


def known(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


def test_normalisation_is_that_of_the_published_networks(data: str) -> None:
    first = next(iter(task(data, calibration_size=1).calibration()))
    assert first.is_contiguous(memory_format=torch.channels_last)
    (image,) = (np.frombuffer(raw, np.uint8).reshape(32, 32, 3) for raw in pixels(first))
    expected = (float(image[3, 5, 1]) / 255 - 0.456) / 0.224
    assert float(first[0, 1, 3, 5]) == pytest.approx(expected, abs=1e-5)


def test_calibration_is_the_same_for_both_splits_and_from_images_trained_on(data: str) -> None:
    test, holdout = (
        torch.cat(list(task(data, split=s, calibration_size=20).calibration()))
        for s in ("test", "holdout")
    )
    assert len(test) == 20
    assert torch.equal(test, holdout)
    assert set(pixels(test)) <= known(arrays()["x_train"])


def scored_images(one: Cifar10) -> list[bytes]:
    """The images that a model is shown when it is scored."""
    seen: list[bytes] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.extend(pixels(x))
            return torch.eye(10)[: len(x)] if len(x) <= 10 else torch.zeros(len(x), 10)

    one.score(Spy())
    return seen


def trained_images(one: Cifar10, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    monkeypatch.setattr(
        "octavo.runs.tasks.cifar10.random_crop", lambda images, padding, flip: images
    )
    return [raw for inputs, _ in one.train_batches() for raw in pixels(inputs)]


def test_split_test(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = task(data, batch=8)
    assert set(trained_images(one, monkeypatch)) == known(arrays()["x_train"])
    assert set(scored_images(one)) == known(arrays()["x_test"])


def test_split_holdout_trains_on_nine_tenths_and_never_sees_the_test(
    data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = task(data, batch=4, split="holdout")
    trained, scored = set(trained_images(one, monkeypatch)), set(scored_images(one))
    assert (len(trained), len(scored)) == (36, 4)
    assert trained | scored == known(arrays()["x_train"])
    assert set(scored_images(task(data, split="holdout"))) == scored


def test_labels_stay_with_their_images(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "octavo.runs.tasks.cifar10.random_crop", lambda images, padding, flip: images
    )
    full = arrays()
    truth = {
        image.tobytes(): label
        for image, label in zip(full["x_train"], full["y_train"], strict=True)
    }
    for inputs, labels in task(data, batch=8).train_batches():
        assert [truth[raw] for raw in pixels(inputs)] == labels.tolist()


def test_augmentation_pads_with_black_pixels(data: str) -> None:
    torch.manual_seed(0)
    inputs, _ = next(iter(task(data, batch=40).train_batches()))
    corners = np.stack([np.frombuffer(raw, np.uint8).reshape(32, 32, 3) for raw in pixels(inputs)])
    edges = [(image[0] == 0).all() or (image[-1] == 0).all() for image in corners]
    assert 20 <= sum(edges) < 40  # 8 of 9 crops leave their row


def test_score_is_a_percentage(data: str) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.eye(10)[torch.full((len(x),), 3)]

    assert task(data).score(Constant()) == pytest.approx(100 * np.mean(arrays()["y_test"] == 3))


def test_the_network_without_weights_is_always_the_same(data: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = task(data).model(), task(data).model()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert first.get_parameter("conv1.weight").is_contiguous(memory_format=torch.channels_last)
    loss = task(data).loss(first, (torch.randn(4, 3, 32, 32), torch.tensor([1, 2, 3, 4])))
    assert loss.requires_grad
    assert loss.shape == ()


def test_weights_are_loaded_strictly(data: str, tmp_path: Path) -> None:
    state: dict[str, Tensor] = resnet(8).state_dict()
    path = tmp_path / "w.safetensors"
    save_file(state, path)
    loaded = task(data, weights=str(path)).model().state_dict()
    assert all(torch.equal(state[key], loaded[key]) for key in state)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"linear.bias": None}, r"'linear.bias': expected shape \(10,\), got nothing"),
        ({"extra": torch.zeros(2)}, r"'extra': expected nothing, got shape \(2,\)"),
        (
            {"linear.bias": torch.zeros(7)},
            r"'linear.bias': expected shape \(10,\), got shape \(7,\)",
        ),
    ]
    for change, cause in changes:
        save_file({key: t for key, t in (state | change).items() if t is not None}, path)
        with pytest.raises(FormatError, match=cause):
            task(data, weights=str(path)).model()
    path.write_bytes(b"not safetensors")
    with pytest.raises(FormatError, match="not a readable safetensors file"):
        task(data, weights=str(path)).model()
    with pytest.raises(RecipeError, match="there is none at"):
        task(data, weights=str(tmp_path / "none")).model()


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"calibration_size": 0}, "calibration_size: expected at least 1"),
        ({"split": "valid"}, "split: expected 'test' or 'holdout'"),
        ({"dept": 20}, r"got 'dept' \(the nearest is 'depth'\)"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], cause: str) -> None:
    with pytest.raises(RecipeError, match=cause):
        load_task("cifar10", options)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"x_test": None}, "KeyError"),
        (
            {"x_test": np.zeros((3, 3, 32, 32), np.uint8)},
            r"x_test: expected .* got \(3, 3, 32, 32\) uint8",
        ),
        ({"x_test": np.zeros((12, 32, 32, 3), np.float32)}, "x_test: expected .* float32"),
        (
            {"y_test": np.zeros(11, np.int64)},
            r"y_test: expected 12 integers from 0 to 9, got \(11,\)",
        ),
        ({"y_test": np.full(12, 10)}, "y_test: expected 12 integers"),
        ({"y_test": np.array([object()] * 12)}, "allow_pickle"),
    ],
)
def test_a_file_that_holds_something_else(
    change: dict[str, Any], cause: str, tmp_path: Path
) -> None:
    path = tmp_path / "data.npz"
    np.savez(
        path, **{key: value for key, value in (arrays() | change).items() if value is not None}
    )
    with pytest.raises(FormatError, match=cause):
        task(str(path)).score(nn.Identity())


def test_a_damaged_file(data: str) -> None:
    path = Path(data)
    whole = path.read_bytes()
    inside = whole.index(arrays()["x_test"][0, :2].tobytes())
    altered = whole[:inside] + bytes([whole[inside] ^ 1]) + whole[inside + 1 :]
    for damaged in (
        b"",
        whole[:-10],
        whole[: len(whole) // 2],
        altered,
        b"\x93NUMPY" + whole,
        b"text",
    ):
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match=r"data\.npz: expected an npz file with x_train"):
            task(data).score(nn.Identity())


def test_missing_data_says_exactly_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nat all")

    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    monkeypatch.setitem(sys.modules, "datasets", library("datasets", load_dataset=offline))
    with pytest.raises(OctavoError) as caught:
        task(str(tmp_path / "new" / "data.npz")).train_batches()
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        str(tmp_path / "new" / "data.npz"),
        "x_train (50000, 32, 32, 3) uint8",
        "pip install datasets",
        "no route at all",
    ):
        assert part in message
    assert "torchvision" in message
    assert list(tmp_path.iterdir()) == []


def library(name: str, **contents: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(contents)
    return module


def test_data_from_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = arrays()

    def double(root: str, train: bool, download: bool) -> SimpleNamespace:
        assert download
        part = "train" if train else "test"
        return SimpleNamespace(data=full[f"x_{part}"], targets=full[f"y_{part}"].tolist())

    monkeypatch.setitem(sys.modules, "torchvision", library("torchvision"))
    monkeypatch.setitem(
        sys.modules, "torchvision.datasets", library("torchvision.datasets", CIFAR10=double)
    )
    check_written(tmp_path, full)


def test_data_from_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = arrays()
    parts = {
        part: {"img": list(full[f"x_{part}"]), "label": full[f"y_{part}"].tolist()}
        for part in ("train", "test")
    }
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    monkeypatch.setitem(
        sys.modules, "datasets", library("datasets", load_dataset=lambda name: parts)
    )
    check_written(tmp_path, full)


def check_written(folder: Path, full: dict[str, Any]) -> None:
    path = folder / "cache" / "data.npz"
    assert len(task(str(path), batch=8).train_batches()) == 5
    assert [p.name for p in path.parent.iterdir()] == ["data.npz"]
    with np.load(path) as file:
        assert set(file) == set(full)
        for key in full:
            assert np.array_equal(file[key], full[key])
            assert file[key].dtype == full[key].dtype
