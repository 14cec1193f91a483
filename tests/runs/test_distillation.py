"""The distance from the teacher, against its definition in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.runs.toy_task import CLASSES, INPUTS, Returns, Toy, data, linear, softmax
from torch import Tensor, nn

from octavo.runs.distillation import distillation
from octavo.runs.retraining import Retraining


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """The mean over the rows of KL(teacher || student), times the squared temperature, from the
    definition."""
    rows = [
        tensor.double().numpy().reshape(-1, tensor.shape[-1]) / temperature
        for tensor in (student, teacher)
    ]
    q, p = softmax(rows[0]), softmax(rows[1])
    return float((p * np.log(p / q)).sum(1).mean() * temperature**2)


def rows(logits: Tensor) -> Tensor:
    """Logits with the classes last; of images, a row for each pixel, picked one by one."""
    if logits.dim() < 4:
        return logits
    return torch.stack(
        [image[:, *place] for image in logits for place in np.ndindex(*image.shape[1:])]
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("shape", [(7, 3), (2, 5, 4), (2, 3, 4, 5), (2, 3, 4, 5, 2), (2, 3, 4, 1)])
def test_the_divergence_is_its_definition(temperature: float, shape: tuple[int, ...]) -> None:
    student, teacher = (
        3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)
    )
    frozen = linear(0)
    frozen.forward = lambda _: teacher  # type: ignore[method-assign, assignment]
    model = linear(0)
    model.forward = lambda _: student  # type: ignore[method-assign, assignment]
    loss = distillation(model, Toy(), Retraining(temperature=temperature), frozen)((student, None))
    assert loss.item() == pytest.approx(
        divergence(rows(student), rows(teacher), temperature), rel=1e-5
    )


def test_logits_by_name_and_all_else_by_relative_squared_error() -> None:
    """Several outputs: the divergence of what is called logits, at the temperature, and what the
    others lose, added up."""

    def both(seed: int) -> Returns:
        model = Returns(lambda y: {"logits": y, "boxes": [y[:, :1], y.argmax(1)], "value": y[:, 0]})
        model.load_state_dict(linear(seed).state_dict())
        return model

    x, settings = data()[0][0], Retraining(temperature=3.0)
    own, full = (linear(seed)(x).detach() for seed in (1, 2))
    relative = (own - full)[:, 0].square().sum() / full[:, 0].square().sum()
    loss = distillation(both(1), Toy(), settings, both(2))((x, None))
    assert loss.item() == pytest.approx(divergence(own, full, 3.0) + 2 * relative.item(), rel=1e-5)
    alone = distillation(
        Returns(lambda y: y[:, 0]), Toy(), settings, Returns(lambda y: 0 * y[:, 0] + 2)
    )((x, None))
    assert alone.shape == ()


def test_padding_teaches_nothing() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tags = nn.Linear(INPUTS, CLASSES)

        def forward(self, words: Tensor, attention_mask: Tensor) -> Any:
            return {"logits": self.tags(words)}

    x, mask = torch.randn(2, 5, INPUTS), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    student, teacher = (Tagger() for _ in range(2))
    loss = distillation(student, Toy(), Retraining(), teacher)
    batch = {"words": x, "attention_mask": mask}
    rows = [model.tags(x[mask == 1]).detach() for model in (student, teacher)]
    assert loss((batch, None)).item() == pytest.approx(divergence(rows[0], rows[1], 1.0), rel=1e-5)
