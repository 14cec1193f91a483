"""The parts that the image tasks share, against slow loops over single images."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from octavo.errors import RecipeError
from octavo.network.forward import device_of
from octavo.runs.tasks.images import Epoch, accuracy, check_options, normalise, random_crop


def images(n: int, size: int = 6, channels: int = 3) -> Tensor:
    return torch.randint(
        1,
        256,
        (n, size, size, channels),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(n),
    )


def slow_crops(image: Tensor, padding: int) -> dict[bytes, tuple[int, int, bool]]:
    """Every crop that an image can become, by numpy: its bytes -> (top, left, mirrored)."""
    pixels = image.numpy()
    size = len(pixels)
    padded = np.pad(pixels, ((padding, padding), (padding, padding), (0, 0)))
    crops = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[top : top + size, left : left + size]
            crops[crop.tobytes()] = (top, left, False)
            crops[np.fliplr(crop).tobytes()] = (top, left, True)
    return crops


def test_random_crop_makes_every_crop_and_no_other() -> None:
    torch.manual_seed(0)
    image = images(1)[0]
    possible = slow_crops(image, 2)
    assert len(possible) == 2 * 25
    crops = random_crop(image.expand(3000, -1, -1, -1), 2, flip=True)
    seen = [possible[crop.numpy().tobytes()] for crop in crops]  # KeyError: a crop that cannot be
    assert set(seen) == set(possible.values())
    assert 0.45 < sum(mirrored for *_, mirrored in seen) / len(seen) < 0.55


def test_random_crop_treats_each_image_by_itself() -> None:
    torch.manual_seed(1)
    batch = images(64)
    places = [
        slow_crops(image, 1)[crop.numpy().tobytes()]
        for image, crop in zip(batch, random_crop(batch, 1), strict=True)
    ]
    assert len(set(places)) == 9
    assert not any(mirrored for *_, mirrored in places)


def test_random_crop_of_no_padding_is_the_image() -> None:
    batch = images(4)
    assert torch.equal(random_crop(batch, 0), batch)


def test_normalise() -> None:
    batch, mean, std = (
        images(2),
        torch.tensor([100.0, 120.0, 140.0]),
        torch.tensor([50.0, 60.0, 70.0]),
    )
    out = normalise(batch, mean, std)
    assert out.shape == (2, 3, 6, 6)
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    for n, c, y, x in [(0, 0, 0, 0), (1, 2, 3, 4), (0, 1, 5, 2)]:
        expected = (float(batch[n, y, x, c]) - float(mean[c])) / float(std[c])
        assert float(out[n, c, y, x]) == pytest.approx(expected, rel=1e-6)


def test_an_epoch_gives_each_image_once_with_its_label() -> None:
    torch.manual_seed(2)
    labels = torch.arange(10)
    pixels = labels.to(torch.uint8).view(10, 1, 1, 1)
    epoch = Epoch(pixels, labels, 5, lambda some: some.float())
    first, second = list(epoch), list(epoch)
    assert len(epoch) == len(first) == 2
    for inputs, truth in first + second:
        assert torch.equal(inputs.flatten(), truth.float())
    orders = [torch.cat([truth for _, truth in batches]).tolist() for batches in (first, second)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(10))
    assert orders[0] != orders[1]


@pytest.mark.parametrize(("batch", "sizes"), [(4, [4, 4]), (3, [3, 3, 3]), (10, [10]), (64, [10])])
def test_an_epoch_leaves_out_what_fills_no_batch(batch: int, sizes: list[int]) -> None:
    epoch = Epoch(images(10), torch.arange(10), batch, lambda some: some)
    assert [len(truth) for _, truth in epoch] == sizes
    assert len(epoch) == len(sizes)


def test_an_epoch_is_repeatable_from_the_global_generator() -> None:
    epoch = Epoch(images(20), torch.arange(20), 5, lambda some: random_crop(some, 2, flip=True))
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = list(epoch)
    torch.set_rng_state(state)
    for (a, x), (b, y) in zip(first, epoch, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(x, y)


class Brightness(nn.Module):
    """Says class 1 where an image is bright; refuses to be scored in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        bright = x.mean((1, 2, 3))
        return torch.stack([-bright, bright], dim=1)


def test_accuracy_counts_and_leaves_the_model_as_it_was() -> None:
    pixels = torch.tensor([1, 200, 1, 200, 200, 1, 200], dtype=torch.uint8).view(7, 1, 1, 1)
    labels = torch.tensor([0, 1, 1, 1, 0, 0, 1])
    model = Brightness()
    model.inner.eval()
    for batch in (1, 3, 7, 500):
        assert accuracy(
            model, pixels, labels, lambda x: x.float() - 100, batch=batch
        ) == pytest.approx(100 * 5 / 7)
    assert model.training
    assert not model.inner.training


def test_device_of() -> None:
    assert device_of(nn.ReLU()) == torch.device("cpu")
    assert device_of(nn.Linear(1, 1, device="meta")) == torch.device("meta")
    assert device_of(nn.BatchNorm1d(1, affine=False, device="meta")) == torch.device("meta")


def test_options_that_cannot_be() -> None:
    check_options(batch=1, split="holdout")
    with pytest.raises(RecipeError, match="batch: expected at least 1, got 0"):
        check_options(batch=0, split="test")
    with pytest.raises(RecipeError, match="split: expected 'test' or 'holdout', got 'tset'"):
        check_options(batch=1, split="tset")
