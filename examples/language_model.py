"""A language model of characters, trained on Python's own documentation, then quantized: its
perplexity before and after.

    python examples/language_model.py

Half a minute. What is shown: a model that is called by name and returns several things, an
embedding that is tied to the output projection, and a search with a score of one's own.
"""

import copy
import math
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from octavo import Budget, Plan, calibrate, search

WIDTH, HEADS, LAYERS, LENGTH, BATCH, STEPS = 64, 4, 2, 48, 32, 400
TEXT = "\n".join(topics[name] for name in sorted(topics))[:400_000]
LETTERS = sorted(set(TEXT))
CODED = torch.tensor([LETTERS.index(letter) for letter in TEXT])
TRAINED, HELD_OUT = CODED[:-20_000], CODED[-20_000:]


class LanguageModel(nn.Module):
    """A small transformer: characters in, logits of the next character and the last hidden states
    out.
    """

    def __init__(self) -> None:
        super().__init__()
        block = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.letters, self.places = nn.Embedding(len(LETTERS), WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks, self.norm = (
            nn.TransformerEncoder(block, LAYERS, enable_nested_tensor=False),
            nn.LayerNorm(WIDTH),
        )
        self.head = nn.Linear(WIDTH, len(LETTERS), bias=False)
        self.head.weight = self.letters.weight  # one layer in a plan

    def forward(self, letters: Tensor) -> dict[str, Tensor]:
        """Letters as numbers, (batch, length)."""
        length = letters.shape[1]
        x = self.letters(letters) + self.places(torch.arange(length))
        hidden = self.norm(
            self.blocks(x, nn.Transformer.generate_square_subsequent_mask(length), is_causal=True)
        )
        return {"logits": self.head(hidden), "hidden": hidden}


def passages(text: Tensor, count: int) -> Tensor:
    """Drawn at random, one letter longer than what the model is given: it has to tell the next."""
    starts = torch.randint(len(text) - LENGTH, (count, 1))
    return text[starts + torch.arange(LENGTH + 1)]


def loss(model: nn.Module, some: Tensor) -> Tensor:
    return F.cross_entropy(
        model(letters=some[:, :-1])["logits"].flatten(0, 1), some[:, 1:].flatten()
    )


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


def main() -> None:
    torch.manual_seed(0)
    model = LanguageModel()
    train(model)
    print(f"full precision                  perplexity {perplexity(model):6.3f}")

    inputs = [{"letters": passages(TRAINED, BATCH)[:, :-1]} for _ in range(8)]
    for bits in (5, 4, 3):
        quantized = copy.deepcopy(model)
        packed = calibrate(model, Plan.uniform(model, bits), inputs)
        packed.apply(quantized)
        print(
            f"closed form, {bits} bits             perplexity {perplexity(quantized):6.3f}, {packed.ratio:.1f} times smaller"
        )

    tuned = TRAINED[:20_000]  # the search must not see what the last line is measured on
    found = search(
        model,
        inputs,
        budget=Budget(average_bits=3),
        trials=96,
        method="greedy",
        objective=lambda net: -perplexity(net, tuned),
    )
    quantized = copy.deepcopy(model)
    packed = calibrate(model, found.plan, inputs)
    packed.apply(quantized)
    print(
        f"bits by perplexity, average 3   perplexity {perplexity(quantized):6.3f}, {packed.ratio:.1f} times smaller"
    )


if __name__ == "__main__":
    main()
