"""Widths: ints that count as their bits and are equal to themselves only, and the texts that stand
for them."""

import copy
import itertools
import json
import pickle
from typing import Any

import pytest

from octavo.errors import PlanError
from octavo.formats.width import (
    WIDTHS,
    Apot,
    by_size,
    level_count,
    read_width,
    width_index,
    write_width,
    write_widths,
)

ALL = [*range(2, 9), *map(Apot, range(5, 9))]


def test_a_width_equals_itself_on_its_own_grid_only() -> None:
    for (i, one), (j, other) in itertools.product(enumerate(ALL), repeat=2):
        assert ((one == other), (one != other)) == ((i == j), (i != j))
        assert i != j or hash(one) == hash(other)
    assert len({*ALL, *(read_width(write_width(width)) for width in ALL)}) == len(ALL)
    assert (1, Apot(6)) != (1, 6)
    assert Apot(6) != "apot6"


def test_it_counts_and_compares_as_its_bits() -> None:
    assert 10 * Apot(6) == 60
    assert sum([Apot(5), 3]) == 8
    assert Apot(6) / 2 == 3.0
    assert 5 < Apot(6) < 7
    assert type(Apot(6) + 0) is int
    assert int(Apot(7)) == 7


def test_they_are_sorted_by_bits_then_by_grid() -> None:
    expected = [2, 3, 4, 5, Apot(5), 6, Apot(6), 7, Apot(7), 8, Apot(8)]
    for order in (ALL, ALL[::-1], ALL[5:] + ALL[:5]):
        assert sorted(order, key=by_size) == expected


@pytest.mark.parametrize("width", ALL)
def test_its_text_comes_back(width: int) -> None:
    written = json.loads(json.dumps(write_width(width)))
    back = read_width(written)
    assert (back, type(back)) == (width, type(width))
    assert type(written) is (str if isinstance(width, Apot) else int)
    assert f"{width}" == str(width) == str(written)
    for copied in (copy.deepcopy(width), pickle.loads(pickle.dumps(width))):
        assert (copied, type(copied)) == (width, type(width))


def test_texts_of_layers() -> None:
    assert write_widths({"a": 3, "b": Apot(6)}) == {"a": 3, "b": "apot6"}
    assert repr(Apot(6)) == "Apot(6)"


def test_each_has_its_own_place_in_a_table_and_its_own_number_of_levels() -> None:
    places = [width_index(width) for width in ALL]
    assert len(set(places)) == len(ALL)
    assert max(places) < WIDTHS
    assert [level_count(width) for width in ALL] == [3, 5, 9, 17, 33, 65, 129, 31, 63, 127, 255]


@pytest.mark.parametrize("text", ["apot3", "apot9", "apot", "apot6 ", "apot05", "apot6.0"])
def test_a_text_that_is_no_width(text: str) -> None:
    with pytest.raises(
        PlanError, match=f"^conv1: expected one of apot5, apot6, apot7, apot8, got '{text}'$"
    ):
        read_width(text, "conv1")


@pytest.mark.parametrize("value", [1, 9, 3.0, "3", "Apot6", None, True, [3]])
def test_what_is_no_width(value: Any) -> None:
    with pytest.raises(PlanError, match=r"^bits: expected an integer from 2 to 8, got "):
        read_width(value)


@pytest.mark.parametrize("bits", [4, 9, 6.0, "6", True, None])
def test_bits_that_the_grid_does_not_have(bits: Any) -> None:
    with pytest.raises(PlanError, match=r"^Apot: expected an integer from 5 to 8, got "):
        Apot(bits)
