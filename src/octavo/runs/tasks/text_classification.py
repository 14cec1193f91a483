"""The task `text_classification`: a classifier of Hugging Face, on files of labelled texts."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.errors import RecipeError, nearest
from octavo.network.forward import Inputs, call, device_of, evaluating, on_device
from octavo.runs.task import Batch
from octavo.runs.tasks.pretrained import load_network, load_tokenizer, read_text
from octavo.runs.tasks.shuffled import Shuffled

__all__ = ["Text", "TextClassification"]


@dataclass(frozen=True)
class Text:
    """A text and the number of its class."""

    content: str
    label: int


@dataclass(frozen=True)
class TextClassification:
    """A network that puts texts into classes; needs the extra ``hf``.

    Args:
        network: ``hf:NAME`` on the hub, or a folder with a network and its tokenizer.
        train: a file with a text in each line: the class, a tab, the text. The class is a name of
            the network's ``id2label`` or its number.
        val: a file like ``train`` to score on. None sets the last tenth of ``train`` aside for it.
        length: tokens of a text at most; the rest is cut off.
        batch: texts in a batch.
        calibration_size: the number of training texts that `calibration` gives.

    """

    network: str
    train: str
    val: str | None = None
    length: int = 256
    batch: int = 32
    calibration_size: int = 512

    def __post_init__(self) -> None:
        for name in ("length", "batch", "calibration_size"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name}: expected at least 1, got {getattr(self, name)}")

    def model(self) -> nn.Module:
        """Return the network: loaded at the first call and copied at every one."""
        return copy.deepcopy(self._network)

    def calibration(self) -> Iterable[Inputs]:
        """Return the first training texts, in their order."""
        trained, _ = self._parts
        texts = trained[: self.calibration_size]
        return [
            self.encoded(texts[start : start + self.batch])[0]
            for start in range(0, len(texts), self.batch)
        ]

    def train_batches(self) -> Shuffled:
        """Return one epoch of ``(inputs, labels)`` in random order."""
        trained, _ = self._parts
        return Shuffled(
            len(trained),
            self.batch,
            lambda picked: self.encoded(tuple(trained[index] for index in picked.tolist())),
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross entropy of a batch."""
        inputs, labels = batch
        return F.cross_entropy(call(model, inputs).logits.float(), labels)

    def score(self, model: nn.Module) -> float:
        """Return the accuracy in per cent."""
        _, texts = self._parts
        device = device_of(model)
        right = 0
        with evaluating(model), torch.no_grad():
            for start in range(0, len(texts), self.batch):
                inputs, labels = self.encoded(texts[start : start + self.batch])
                logits = call(model, on_device(inputs, device)).logits
                right += int((logits.argmax(1).cpu() == labels).sum())
        return 100 * right / len(texts)

    def encoded(self, texts: tuple[Text, ...]) -> tuple[Inputs, Tensor]:
        """Return the tokens of texts, as many as the longest of them has, and their labels."""
        encoded = self._tokenizer(
            [text.content for text in texts],
            padding=True,
            truncation=True,
            max_length=self.length,
            return_tensors="pt",
        )
        return dict(encoded), torch.tensor([text.label for text in texts])

    @cached_property
    def _network(self) -> nn.Module:
        return load_network("AutoModelForSequenceClassification", self.network)

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.network)

    @cached_property
    def _parts(self) -> tuple[tuple[Text, ...], tuple[Text, ...]]:
        """The texts to train on, and those to score on."""
        trained = self._texts(self.train, "train")
        if self.val is not None:
            return trained, self._texts(self.val, "val")
        kept = len(trained) - max(1, len(trained) // 10)
        if not kept:
            raise RecipeError(
                f"train: expected at least 2 texts, got {self.train} with {len(trained)}"
            )
        return trained[:kept], trained[kept:]

    def _texts(self, path: str, option: str) -> tuple[Text, ...]:
        config: Any = self._network.config
        names: dict[int, str] = config.id2label
        numbers = {name: number for number, name in names.items()}
        numbers |= {str(number): number for number in names}
        texts = []
        lines = StringIO(read_text(path, option))  # str.splitlines would split inside of texts too
        for row, line in enumerate((line.removesuffix("\n") for line in lines), 1):
            label, tab, content = line.partition("\t")
            if not tab or label not in numbers:
                raise RecipeError(
                    f"{option}: {path}, line {row}: expected one of the classes "
                    f"{', '.join(names.values())}, a tab and a text, got {line[:40]!r}"
                    f"{nearest(label, numbers, only_alike=True)}"
                )
            texts.append(Text(content, numbers[label]))
        return tuple(texts)
