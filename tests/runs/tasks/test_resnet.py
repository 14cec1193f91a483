"""The residual network against a plain second writing of it, and against published counts."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.errors import RecipeError
from octavo.runs.tasks.resnet import ResNet, resnet


def published(depth: int) -> int:
    """Parameters from the paper's table: 2n layers at each of 16, 32, 64 channels, 3x3, each with a
    norm."""
    n, total = (depth - 2) // 6, 3 * 16 * 9 + 2 * 16 + 64 * 10 + 10
    for inputs, outputs in ((16, 16), (16, 32), (32, 64)):
        total += 9 * inputs * outputs + (2 * n - 1) * 9 * outputs * outputs + 2 * n * 2 * outputs
    return total


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_the_number_of_parameters(depth: int, millions: float) -> None:
    count = sum(p.numel() for p in resnet(depth).parameters())
    assert count == published(depth)
    assert round(count / 1e6, 2) == millions


def test_resnet20_has_the_size_that_is_known() -> None:
    parameters = list(resnet(20).parameters())
    assert sum(p.numel() for p in parameters) == 269_722
    assert sum(p.numel() for p in parameters if p.dim() > 1) == 268_336


def test_state_dict_keys() -> None:
    keys = {key.rpartition(".")[0] for key in resnet(20).state_dict()}
    blocks = {
        f"layer{g}.{i}.{part}"
        for g in (1, 2, 3)
        for i in (0, 1, 2)
        for part in ("conv1", "bn1", "conv2", "bn2")
    }
    assert keys == {"conv1", "bn1", "linear"} | blocks


@pytest.mark.parametrize("depth", [0, 2, 21, -4])
def test_an_impossible_depth(depth: int) -> None:
    with pytest.raises(RecipeError, match=rf"depth: expected 6n \+ 2.*got {depth}"):
        resnet(depth)


def by_hand(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network from its state dict alone, with the shortcut's zeros joined on rather than
    padded."""

    def norm(name: str, y: Tensor) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{k}"].view(1, -1, 1, 1)
            for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (y - mean) / torch.sqrt(var + 1e-5) * weight + bias

    x = norm("bn1", F.conv2d(x, state["conv1.weight"], padding=1)).clamp(min=0)
    for name in (f"layer{group}.{i}" for group in (1, 2, 3) for i in (0, 1)):
        weight = state[f"{name}.conv1.weight"]
        stride = weight.shape[0] // weight.shape[1]
        y = norm(f"{name}.bn1", F.conv2d(x, weight, stride=stride, padding=1)).clamp(min=0)
        y = norm(f"{name}.bn2", F.conv2d(y, state[f"{name}.conv2.weight"], padding=1))
        if stride == 2:
            x = x[..., ::2, ::2]
            half = torch.zeros(x.shape[0], x.shape[1] // 2, *x.shape[2:])
            x = torch.cat([half, x, half], dim=1)
        x = (x + y).clamp(min=0)
    return x.flatten(2).mean(2) @ state["linear.weight"].T + state["linear.bias"]


def test_forward_against_a_second_writing() -> None:
    torch.manual_seed(0)
    model = ResNet(2)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.3)
            torch.nn.init.normal_(module.running_mean, std=0.3)  # type: ignore[arg-type]
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            model.eval()(x), by_hand(model.state_dict(), x), rtol=1e-4, atol=1e-4
        )
