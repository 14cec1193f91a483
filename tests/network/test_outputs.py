"""The outputs of a model in any container: the tensors in them, and the measure by which each is
compared."""

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from octavo.network.nested import named_tensors
from octavo.network.outputs import Part, alike, described, parts_of


class Pair(NamedTuple):
    logits: Tensor
    state: tuple[Tensor, Tensor]


@dataclass
class Scene:
    boxes: Tensor
    more: dict[str, Any]


A, B, C = torch.randn(4, 3), torch.randn(4, 3), torch.randn(4, 3)


@pytest.mark.parametrize(
    ("outputs", "names", "classes"),
    [
        (A, [""], [True]),
        ((A,), ["0"], [True]),
        ([A, (B, C)], ["0", "1.0", "1.1"], [False] * 3),
        (Pair(A, (B, C)), ["logits", "state.0", "state.1"], [True, False, False]),
        (
            OrderedDict(start_logits=A, end_logits=B, loss=C),
            ["start_logits", "end_logits", "loss"],
            [True, True, False],
        ),
        (
            Scene(A, {"scores": B, "count": 3, "none": None}),
            ["boxes", "more.scores"],
            [False, False],
        ),
        ({"out": A}, ["out"], [False]),
        ({"logits": A, "labels": A.argmax(1)}, ["logits"], [True]),
        ({"logits": [A, B]}, ["logits.0", "logits.1"], [False, False]),
        (A[:, 0], [""], [False]),
        (A[:, :1], [""], [False]),
        (A.sum(), [""], [False]),
        ("text", [], []),
    ],
)
def test_names_and_measures(outputs: Any, names: list[str], classes: list[bool]) -> None:
    found = parts_of(outputs)
    assert [part.name for part in found] == names
    assert [part.classes for part in found] == classes


def test_a_packed_sequence_is_its_data() -> None:
    packed = pack_sequence([torch.randn(3, 5), torch.randn(1, 5)])
    (part,) = parts_of(packed)
    assert torch.equal(part.rows, packed.data) or part.classes
    assert part.rows.shape == (4, 5)
    assert [name for name, _ in named_tensors(packed)] == ["data", "batch_sizes"]


@pytest.mark.parametrize(
    ("shape", "rows"),
    [((4, 3), (4, 3)), ((2, 5, 3), (10, 3)), ((2, 3, 4, 5), (40, 3)), ((5,), (5, 1)), ((), (1, 1))],
)
def test_rows(shape: tuple[int, ...], rows: tuple[int, int]) -> None:
    assert parts_of(torch.randn(shape))[0].rows.shape == rows


@pytest.mark.parametrize("kind", ["attention_mask", "src_key_padding_mask"])
def test_padding_is_left_out_of_sequences_only(kind: str) -> None:
    kept = torch.tensor([[1, 1, 0], [1, 0, 0]])
    mask = kept if kind == "attention_mask" else kept == 0
    outputs = {
        "logits": torch.randn(2, 3, 5),
        "hidden": torch.randn(2, 3, 7),
        "pooled": torch.randn(2, 7),
        "other": torch.randn(3, 2, 1),
    }
    found = {
        part.name: part.rows for part in parts_of(outputs, {kind: mask, "x": torch.zeros(2, 3)})
    }
    assert {name: tuple(rows.shape) for name, rows in found.items()} == {
        "logits": (3, 5), "hidden": (3, 7), "pooled": (2, 7), "other": (6, 1),
    }  # fmt: skip
    assert torch.equal(
        found["hidden"],
        torch.stack([outputs["hidden"][0, 0], outputs["hidden"][0, 1], outputs["hidden"][1, 0]]),
    )
    assert len(parts_of(outputs, (mask,))[0].rows) == 6  # by name only


def test_what_is_lost_by_hand() -> None:
    full, own = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    (logits,), (other,) = parts_of(full), parts_of(own)
    p = 1 / (1 + math.exp(-2))
    assert float(other.lost(logits)) == pytest.approx(
        p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)), rel=1e-5
    )
    assert logits.unit() == 2
    values, others = (Part("x", False, rows) for rows in (full, own))
    assert (float(others.lost(values)), values.unit()) == (6.0, 4.0)
    assert Part("x", False, torch.zeros(3, 2)).unit() == 1.0  # nothing to be relative to


def test_a_class_that_is_ruled_out_loses_nothing_and_teaches_nothing() -> None:
    full = torch.tensor([[1.0, -math.inf, 0.0]])
    own = torch.tensor([[0.0, 3.0, 0.0]], requires_grad=True)
    lost = parts_of(own)[0].lost(parts_of(full)[0])
    lost.backward()
    assert math.isfinite(float(lost.detach()))
    assert own.grad is not None
    assert bool(own.grad.isfinite().all())


def test_alike_are_names_measures_and_shapes() -> None:
    same = parts_of({"logits": A, "boxes": B})
    assert alike(same, parts_of({"logits": C, "boxes": C}))
    for other in (
        {"logits": A},
        {"logits": A, "boxes": B[:3]},
        {"logits": A, "box": B},
        {"logits": A[:, :1], "boxes": B},
    ):
        assert not alike(same, parts_of(other))
    assert not alike([], [])
    assert described(same) == "logits (4, 3), boxes (4, 3)"
    assert described([]) == "no floating-point tensor"
