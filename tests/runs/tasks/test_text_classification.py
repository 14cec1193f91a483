"""The task `text_classification`: labels, accuracy by an oracle, its errors."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.language import write_tokenizer
from transformers import BertConfig, BertForSequenceClassification

from octavo.errors import RecipeError
from octavo.runs.task import load_task
from octavo.runs.tasks.text_classification import Text, TextClassification

LABELS = ["good" if row % 3 else "bad" for row in range(40)]
LINES = [f"{label}\tthe ant ran {'and sat ' * (row % 4)}" for row, label in enumerate(LABELS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    write_tokenizer(folder)
    (folder / "texts.tsv").write_text("\n".join(LINES))
    return folder


def task(folder: Path, **options: int | str) -> TextClassification:
    made = load_task("text_classification", {
        "network": str(folder), "train": str(folder / "texts.tsv"), **options,
    })  # fmt: skip
    assert isinstance(made, TextClassification)
    return made


def test_the_metric_is_the_accuracy_on_the_last_tenth(folder: Path) -> None:
    made = task(folder, batch=3)
    model = made.model()
    right = 0
    for line in LINES[-4:]:
        label, content = line.split("\t")
        with torch.no_grad():
            logits = model(**made._tokenizer(content, return_tensors="pt")).logits
        right += int(logits.argmax()) == ["bad", "good"].index(label)
    assert made.score(model) == 100 * right / 4


def test_batches_have_the_labels_of_their_texts(folder: Path) -> None:
    made = task(folder, batch=8)
    labels = torch.cat([labels for _, labels in made.train_batches()])
    assert len(labels) == 36
    assert int(labels.sum()) == sum(line.startswith("good") for line in LINES[:36])
    first: Any = next(iter(made.calibration()))
    assert first["input_ids"].shape[0] == 8
    made.loss(made.model(), next(iter(made.train_batches()))).backward()


def test_only_a_line_feed_ends_a_text_and_a_byte_order_mark_begins_none(
    folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "texts.tsv"
    path.write_text("\ufeffgood\ta\u2028fine\r\nbad\ta\x85bad\x0cfilm\n", "utf-8")
    texts = task(folder, train=str(path))._texts(str(path), "train")
    assert texts == (Text("a\u2028fine", 1), Text("a\x85bad\x0cfilm", 0))


def test_a_line_that_is_not_a_class_and_a_text(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.tsv"
    path.write_text("good\tfine\ngod\tfine\n")
    said = r"texts.tsv, line 2: expected one of the classes bad, good, a tab and a text, got 'god"
    with pytest.raises(RecipeError, match=said + r".*nearest is 'good'"):
        task(folder, train=str(path)).score(torch.nn.Identity())
    path.write_text("1\tfine\n0\tnot fine\n")
    assert [int(labels[0]) for _, labels in task(folder, train=str(path)).train_batches()] == [1]
