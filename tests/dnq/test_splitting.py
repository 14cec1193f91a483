"""The parts of the inputs: nothing is lost, nothing is in two parts, batches stay batches."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from octavo.dnq.splitting import Parts, split
from octavo.network.nested import leaves
from octavo.network.samples import LEAST_SAMPLES


def numbered(*sizes: int) -> list[Tensor]:
    """Batches whose samples are numbered from 0 on; each is a row (number, number)."""
    rows = torch.arange(sum(sizes))[:, None].repeat(1, 2)
    return list(rows.split(list(sizes)))


def numbers(batches: Iterable[Any]) -> list[int]:
    return [int(row[0]) for batch in batches for row in next(iter(leaves(batch)))]


def parts_by_hand(count: int) -> tuple[list[int], list[int], list[int]]:
    every = range(count)
    return [i for i in every if i % 4 < 2], list(every[2::4]), list(every[3::4])


def three(parts: Parts) -> tuple[list[int], list[int], list[int]]:
    return numbers(parts.calibrating), numbers(parts.scoring), numbers(parts.confirming)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=9).filter(lambda s: sum(s) >= 64))
def test_every_sample_is_in_exactly_one_part_and_batches_are_about_as_large(
    sizes: list[int],
) -> None:
    parts = split(numbered(*sizes))
    assert three(parts) == parts_by_hand(sum(sizes))
    assert numbers(parts.solving) == numbers(parts.calibrating) + numbers(parts.scoring)
    assert parts.held_out == len(numbers(parts.confirming))
    for part in (parts.calibrating, parts.scoring, parts.confirming):
        lengths = [len(batch) for batch in part]
        assert max(lengths) <= max(sizes)
        assert len(part) == -(-sum(lengths) // max(sizes))  # no more forward passes than needed
        assert max(lengths) - min(lengths) <= 1


def test_inputs_ordered_by_class_have_every_class_in_every_part() -> None:
    classes = torch.arange(10).repeat_interleave(40)[:, None]
    parts: Any = split(list(classes.split(50)))
    for part, share in ((parts.calibrating, 20), (parts.scoring, 10), (parts.confirming, 10)):
        assert torch.bincount(torch.cat(part)[:, 0]).tolist() == [share] * 10


def test_batches_of_one_sample_are_counted_over_all_batches() -> None:
    parts = split(numbered(*[1] * 80))
    assert three(parts) == parts_by_hand(80)
    assert all(len(batch) == 1 for batch in parts.solving)


class Pair(NamedTuple):
    image: Tensor
    mask: Tensor


def test_tuples_and_dicts_keep_their_form_and_their_samples_stay_together() -> None:
    x = torch.arange(80)[:, None]
    forms: list[Any] = [
        [(x[i : i + 20], x[i : i + 20] + 100) for i in range(0, 80, 20)],
        [[x[i : i + 20], x[i : i + 20] + 100] for i in range(0, 80, 20)],
        [Pair(x[i : i + 20], x[i : i + 20] + 100) for i in range(0, 80, 20)],
        [{"a": x[i : i + 20], "b": (x[i : i + 20] + 100, None, True)} for i in range(0, 80, 20)],
    ]
    for batches in forms:
        parts = split(batches)
        assert three(parts) == parts_by_hand(80)
        for batch in (*parts.solving, *parts.confirming):
            assert type(batch) is type(batches[0])
            first, second, *others = leaves(batch)
            assert torch.equal(first + 100, second)
            assert others == list(leaves(batches[0]))[2:]


def test_samples_of_other_shapes_and_types_are_not_joined() -> None:
    wide = [torch.zeros(16, 3), torch.zeros(16, 3)]
    batches = [*wide, torch.zeros(16, 5), torch.zeros(16, 5).double(), *wide]
    parts: Any = split(batches)
    forms = [(batch.dtype, batch.shape[1]) for batch in parts.calibrating if len(batch) == 16]
    assert forms == [(torch.float32, 3)] * 2
    assert sum(len(batch) for batch in parts.calibrating if batch.shape[1] == 5) == 16
    assert sum(map(len, (*parts.solving, *parts.confirming))) == 96


def test_other_options_of_the_model_are_not_joined() -> None:
    batches: list[Any] = [(x, flag) for x in numbered(40, 40) for flag in (True, False)]
    parts = split(batches)
    assert [flag for _, flag in parts.scoring] == [True, False, True, False]


@pytest.mark.parametrize("sizes", [(63,), (20, 20, 23), (1,) * 10])
def test_with_few_samples_nothing_is_set_aside(sizes: tuple[int, ...]) -> None:
    batches = numbered(*sizes)
    parts = split(batches)
    assert sum(sizes) < LEAST_SAMPLES
    assert parts.held_out == 0
    for part in (parts.calibrating, parts.scoring, parts.confirming, parts.solving):
        assert all(part[i] is batch for i, batch in enumerate(batches))
        assert len(part) == len(batches)


def unlike(count: int) -> list[Any]:
    """Batches whose tensors have no common dimension 0."""
    return [(torch.full((30, 2), i), torch.zeros(2, 30)) for i in range(count)]


def packed_sequences(count: int) -> list[Any]:
    return [pack_sequence([torch.ones(3, 2), torch.ones(2, 2)]) for _ in range(count)]


def counted(count: int) -> list[Any]:
    """The number may be that of the samples: what it says would no longer hold."""
    return [(torch.ones(30, 2), 30) for _ in range(count)]


@pytest.mark.parametrize("make", [unlike, packed_sequences, counted])
def test_what_has_no_samples_is_divided_by_batch(make: Any) -> None:
    batches = make(10)
    parts = split(batches)
    for part, indices in (
        (parts.calibrating, (0, 1, 4, 5, 8, 9)),
        (parts.scoring, (2, 6)),
        (parts.confirming, (3, 7)),
    ):
        assert [id(batch) for batch in part] == [id(batches[i]) for i in indices]
    assert parts.held_out == 2
    assert split(make(3)).held_out == 0
    assert len(split(make(3)).scoring) == 3
