"""The task `causal_lm`: perplexity by an oracle, the division of the text, its errors."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.language import llama, write_tokenizer

from octavo.errors import RecipeError
from octavo.runs.task import load_task
from octavo.runs.tasks.causal_lm import CausalLm

TEXT = "the cat sat and then the ant ran. " * 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    llama().save_pretrained(folder)
    write_tokenizer(folder)
    (folder / "text.txt").write_text(TEXT)
    return folder


def task(folder: Path, **options: int | str) -> CausalLm:
    made = load_task("causal_lm", {
        "network": str(folder), "train": str(folder / "text.txt"), "length": 16, **options,
    })  # fmt: skip
    assert isinstance(made, CausalLm)
    return made


def test_the_metric_is_minus_the_perplexity(folder: Path) -> None:
    made = task(folder, batch=3)
    model = made.model()
    sequences = torch.cat([tokens for _, tokens in made.train_batches()])
    batches: list[Any] = list(made.calibration())
    calibration = torch.cat([inputs["input_ids"] for inputs in batches])
    assert sorted(map(tuple, sequences.tolist())) == sorted(map(tuple, calibration.tolist()))
    ids = made._tokenizer(TEXT)["input_ids"]
    count = len(ids) // 16
    scored = torch.tensor(ids[: count * 16]).view(count, 16)[-(count // 10) :]
    assert len(calibration) + len(scored) == count  # the last tenth is never trained on
    with torch.no_grad():
        logs = model(input_ids=scored).logits.log_softmax(-1)
    places = [(row, place) for row in range(len(scored)) for place in range(1, 16)]
    nats = [-float(logs[row, place - 1, scored[row, place]]) for row, place in places]
    assert made.score(model) == pytest.approx(-math.exp(sum(nats) / len(nats)), rel=1e-5)


def test_the_loss_has_a_gradient_and_each_model_is_a_new_one(folder: Path) -> None:
    made = task(folder)
    model = made.model()
    batches = made.train_batches()
    loss = made.loss(model, next(iter(batches)))
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert len(batches) == len(list(batches))
    assert made.model() is not model
    assert not model.config.use_cache  # type: ignore[union-attr]


def test_another_file_to_score_on(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("and the ants. " * 20)
    made = task(folder, val=str(tmp_path / "val.txt"))
    assert made.score(made.model()) != task(folder).score(made.model())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 1}, "length: expected at least 2, got 1"),
        ({"network": "gpt2"}, "network: expected a folder or hf:NAME, such as hf:gpt2, got 'gpt2'"),
        ({"length": 100_000}, "train: expected at least 100000 tokens"),
        ({"train": "none.txt"}, "train: expected a text file in UTF-8, got none.txt"),
    ],
)
def test_errors(options: dict[str, int | str], message: str, folder: Path) -> None:
    def used() -> None:
        made = task(folder, **options)
        made.model()
        made.train_batches()

    with pytest.raises(RecipeError, match=f"^{message}"):
        used()
