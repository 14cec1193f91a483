"""Networks of sequences: recurrent layers, cells in a loop, tokens, attention over a cache."""

from pathlib import Path
from typing import Any

import torch
from tests.architectures.journey import correlated, travel_well
from torch import Tensor, nn

WORDS, WIDTH = 20, 12


class Tagger(nn.Module):
    """A bidirectional LSTM, whose inputs are its own states."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True, bidirectional=True)
        self.tags = nn.Linear(2 * WIDTH, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden, (state, _) = self.lstm(x)
        return self.tags(hidden), state.transpose(0, 1)


class Stepping(nn.Module):
    """A cell that is called at each step, with a gate of the user's own between."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.gate = nn.GRUCell(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), WIDTH)
        for step in x.unbind(1):
            state = self.cell(step * self.gate(state).sigmoid(), state)
        return self.head(state)  # type: ignore[no-any-return]


class Speaking(nn.Module):
    """A language model with padding, whose output projection is its embedding; it is called by
    name, and returns its keys and values too."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.feed = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 24), nn.GELU())
        self.back = nn.Linear(24, WIDTH)
        self.logits = nn.Linear(WIDTH, WORDS, bias=False)
        self.logits.weight = self.words.weight

    def forward(self, tokens: Tensor, mask: Tensor) -> dict[str, Any]:
        x = self.words(tokens)
        key, value = self.key(x), self.value(x)
        score = self.query(x) @ key.mT / WIDTH**0.5
        x = x + score.masked_fill(~mask.unsqueeze(1), -1e9).softmax(2) @ value
        return {"logits": self.logits(x + self.back(self.feed(x))), "cache": [(key, value)]}


def test_a_recurrent_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    travel_well(Tagger().eval(), correlated((40, 6, WIDTH), (40, 6, WIDTH)), tmp_path)


def test_a_cell_in_a_loop(tmp_path: Path) -> None:
    torch.manual_seed(0)
    travel_well(Stepping().eval(), correlated((40, 5, WIDTH), (40, 5, WIDTH)), tmp_path)


def test_a_language_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    batches = []
    for length in (9, 7):
        mask = torch.arange(length) < torch.randint(3, length, (40, 1))
        batches.append({"tokens": torch.randint(1, WORDS, (40, length)) * mask, "mask": mask})
    journey = travel_well(Speaking().eval(), batches, tmp_path)
    assert "words" in journey.plan
    assert "logits" not in journey.plan  # it is the same tensor
    network = journey.network
    assert network.get_parameter("words.weight") is network.get_parameter("logits.weight")
    assert not network.get_parameter("words.weight")[0].any()  # the padding
