"""The task `causal_lm`: a language model of Hugging Face, on text files."""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.errors import RecipeError
from octavo.network.forward import Inputs, call, device_of, evaluating
from octavo.runs.task import Batch
from octavo.runs.tasks.pretrained import load_network, load_tokenizer, read_text
from octavo.runs.tasks.shuffled import Shuffled

__all__ = ["CausalLm", "next_token_loss"]


@dataclass(frozen=True)
class CausalLm:
    """A language model that continues texts; needs the extra ``hf``.

    Args:
        network: ``hf:NAME`` on the hub, or a folder with a network and its tokenizer.
        train: a text file, for calibration and retraining.
        val: a text file to score on. None sets the last tenth of ``train`` aside for it.
        length: tokens in a sequence.
        batch: sequences in a batch.
        calibration_size: the number of training sequences that `calibration` gives.

    """

    network: str
    train: str
    val: str | None = None
    length: int = 256
    batch: int = 8
    calibration_size: int = 128

    def __post_init__(self) -> None:
        for name, least in (("length", 2), ("batch", 1), ("calibration_size", 1)):
            if getattr(self, name) < least:
                raise RecipeError(f"{name}: expected at least {least}, got {getattr(self, name)}")

    def model(self) -> nn.Module:
        """Return the network: loaded at the first call and copied at every one."""
        return copy.deepcopy(self._network)

    def calibration(self) -> Iterable[Inputs]:
        """Return the first training sequences, in their order."""
        trained, _ = self._parts
        return [_inputs(part) for part in trained[: self.calibration_size].split(self.batch)]

    def train_batches(self) -> Shuffled:
        """Return one epoch of ``(inputs, tokens)`` in random order."""
        trained, _ = self._parts
        return Shuffled(
            len(trained), self.batch, lambda picked: (_inputs(trained[picked]), trained[picked])
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross entropy of the next tokens."""
        inputs, tokens = batch
        return next_token_loss(call(model, inputs).logits, tokens)

    def score(self, model: nn.Module) -> float:
        """Return minus the perplexity, since a higher metric is better: the exponential of the mean
        cross entropy of a token, given those before it in its sequence.
        """
        total = 0.0
        count = 0
        device = device_of(model)
        with evaluating(model), torch.no_grad():
            for part in self._parts[1].split(self.batch):
                tokens = part.to(device)
                predicted = len(part) * (self.length - 1)
                loss = next_token_loss(call(model, _inputs(tokens)).logits, tokens)
                total += float(loss) * predicted
                count += predicted
        return -math.exp(min(total / count, 700.0))  # an exponential of more is no float

    @cached_property
    def _network(self) -> nn.Module:
        return load_network("AutoModelForCausalLM", self.network)

    @cached_property
    def _parts(self) -> tuple[Tensor, Tensor]:
        """Training sequences and those to score on, int64 ``(sequences, length)``."""
        trained = self._sequences(self.train, "train")
        if self.val is not None:
            return trained, self._sequences(self.val, "val")
        kept = len(trained) - max(1, len(trained) // 10)
        if not kept:
            raise RecipeError(
                f"train: expected at least {2 * self.length} tokens, of which a tenth is set aside "
                f"to score on, got {self.train} with fewer; or name another file as val"
            )
        return trained[:kept], trained[kept:]

    def _sequences(self, path: str, option: str) -> Tensor:
        text = read_text(path, option)
        tokens = torch.tensor(self._tokenizer(text, verbose=False)["input_ids"])
        count = len(tokens) // self.length
        if not count:
            raise RecipeError(
                f"{option}: expected at least {self.length} tokens, got {path} with {len(tokens)}"
            )
        return tokens[: count * self.length].view(count, self.length)

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.network)


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the mean cross entropy of each token given those before it.

    Args:
        logits: ``(sequences, length, vocabulary)``.
        tokens: ``(sequences, length)``.

    """
    predicted = logits[:, :-1].flatten(0, 1)  # (tokens that have one before them, vocabulary)
    return F.cross_entropy(predicted.float(), tokens[:, 1:].flatten())


def _inputs(tokens: Tensor) -> Inputs:
    return {"input_ids": tokens}
