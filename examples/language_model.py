"""Quantize a language model of characters, and print its perplexity before and after.

    python examples/language_model.py

It takes half a minute. The model is trained here, on Python's own documentation. The example shows
three things: a model that is called with named arguments and returns several tensors, an embedding
that is tied to the output projection, and a search with an objective of one's own.
"""

import copy
import math
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from octavo import Budget, Plan, calibrate, search

WIDTH = 64
HEADS = 4
LAYERS = 2
LENGTH = 48
BATCH = 32
STEPS = 400
TEXT = "\n".join(topics[name] for name in sorted(topics))[:400_000]
LETTERS = sorted(set(TEXT))
CODED = torch.tensor([LETTERS.index(letter) for letter in TEXT])
TRAINED = CODED[:-20_000]
HELD_OUT = CODED[-20_000:]


class LanguageModel(nn.Module):
    """A small transformer over characters. It returns the logits of the next character and the
    last hidden states.
    """

    def __init__(self) -> None:
        super().__init__()
        block = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.letters = nn.Embedding(len(LETTERS), WIDTH)
        self.places = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.TransformerEncoder(block, LAYERS, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, len(LETTERS), bias=False)
        self.head.weight = self.letters.weight  # one layer in a plan

    def forward(self, letters: Tensor) -> dict[str, Tensor]:
        """Take letters as numbers, of shape (batch, length)."""
        length = letters.shape[1]
        x = self.letters(letters) + self.places(torch.arange(length))
        hidden = self.norm(
            self.blocks(x, nn.Transformer.generate_square_subsequent_mask(length), is_causal=True)
        )
        return {"logits": self.head(hidden), "hidden": hidden}


def passages(text: Tensor, count: int) -> Tensor:
    """Draw passages at random, one letter longer than the model's input: it predicts the last."""
    starts = torch.randint(len(text) - LENGTH, (count, 1))
    return text[starts + torch.arange(LENGTH + 1)]


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    logits = model(letters=batch[:, :-1])["logits"]
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def train(model: nn.Module) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(model, passages(TRAINED, BATCH)).backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def perplexity(model: nn.Module, text: Tensor = HELD_OUT) -> float:
    whole = len(text) // (LENGTH + 1) * (LENGTH + 1)
    return math.exp(loss(model.eval(), text[:whole].view(-1, LENGTH + 1)))


def report(name: str, value: float, ratio: float) -> None:
    print(f"{name:30}  perplexity {value:6.3f}, {ratio:4.1f} times smaller")


def main() -> None:
    torch.manual_seed(0)
    model = LanguageModel()
    train(model)
    report("full precision", perplexity(model), 1)

    inputs = [{"letters": passages(TRAINED, BATCH)[:, :-1]} for _ in range(8)]
    for bits in (5, 4, 3):
        quantized = copy.deepcopy(model)
        packed = calibrate(model, Plan.uniform(model, bits), inputs)
        packed.apply(quantized)
        report(f"calibrated, {bits} bits", perplexity(quantized), packed.ratio)

    tuned = TRAINED[:20_000]  # the search must not see the text that is measured in the end
    result = search(
        model,
        inputs,
        budget=Budget(average_bits=3),
        trials=96,
        method="greedy",
        objective=lambda network: -perplexity(network, tuned),
    )
    quantized = copy.deepcopy(model)
    packed = calibrate(model, result.plan, inputs)
    packed.apply(quantized)
    report("bits by perplexity, average 3", perplexity(quantized), packed.ratio)


if __name__ == "__main__":
    main()
