"""Widths: values of bits and codebook, which equal plain ints for powers of two only, and the texts
that stand for them."""

import copy
import itertools
import json
import pickle
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import PlanError
from octavo.formats.registry import CODEBOOKS
from octavo.formats.width import (
    BITS,
    Apot,
    Width,
    bits_of,
    check_bits,
    read_width,
    write_width,
    write_widths,
)

FP4, FP6, FP8, INT8 = Width(4, "fp"), Width(6, "fp"), Width(8, "fp"), Width(8, "int")
CHOICES = "expected 2 to 8, apot5 to apot8, fp4, fp6, fp8 or int8"
ALL = [*map(Width, range(2, 9)), *map(Apot, range(5, 9)), FP4, FP6, FP8, INT8]


def test_a_width_equals_itself_on_its_own_codebook_only() -> None:
    for (i, one), (j, other) in itertools.product(enumerate(ALL), repeat=2):
        assert ((one == other), (one != other)) == ((i == j), (i != j))
        assert i != j or hash(one) == hash(other)
    assert len({*ALL, *(read_width(write_width(width)) for width in ALL)}) == len(ALL)
    assert (1, Apot(6)) != (1, 6)  # type: ignore[comparison-overlap]
    assert Apot(6) != "apot6"
    assert Width(3) != "3"
    assert Width(3) != 3.0
    assert Width(3) != (3, "power_of_two")


def test_a_width_of_powers_of_two_equals_its_bits() -> None:
    for bits in range(2, 9):
        assert Width(bits) == bits == Width(bits)
        assert hash(Width(bits)) == hash(bits)
        assert {bits: "found"}[Width(bits)] == "found"  # type: ignore[index]
        assert Width(bits) != bits + 1
    for bits in range(5, 9):
        assert Apot(bits) != bits != Apot(bits)
        assert Apot(bits) == Width(bits, "apot")


def test_it_is_no_int_but_gives_its_bits() -> None:
    assert not isinstance(Width(6), int)
    assert (int(Apot(7)), Apot(7).bits, type(int(Apot(7)))) == (7, 7, int)
    with pytest.raises(TypeError):
        Width(6) + 1  # type: ignore[operator]
    with pytest.raises(FrozenInstanceError):
        Width(6).bits = 7  # type: ignore[misc]


def test_they_are_sorted_by_bits_then_by_codebook() -> None:
    expected = [2, 3, 4, FP4, 5, Apot(5), 6, Apot(6), FP6, 7, Apot(7), 8, Apot(8), FP8, INT8]
    for order in (ALL, ALL[::-1], ALL[5:] + ALL[:5]):
        assert sorted(order) == expected
        assert max(order) == INT8
    mixed: list[Any] = [Apot(6), 8, Width(3), 6, 2]
    assert sorted(mixed) == [2, Width(3), 6, Apot(6), 8]


def test_it_compares_with_plain_ints() -> None:
    assert 5 < Apot(6) < 7
    assert 6 < Apot(6) >= 6
    assert Width(6) <= 6 <= Width(6)
    assert not Width(6) < 6
    with pytest.raises(TypeError):
        assert Width(6) < "7"


@pytest.mark.parametrize("width", ALL, ids=str)
def test_its_text_comes_back(width: Width) -> None:
    written = json.loads(json.dumps(write_width(width)))
    back = read_width(written)
    assert (back, type(back)) == (width, Width)
    assert type(written) is (int if width.codebook == "power_of_two" else str)
    assert f"{width}" == str(width) == str(written)
    assert eval(repr(width), {"Width": Width}) == width
    for copied in (copy.deepcopy(width), pickle.loads(pickle.dumps(width)), read_width(width)):
        assert (copied, type(copied)) == (width, Width)


def test_texts_of_layers() -> None:
    assert write_widths({"a": 3, "b": Apot(6), "c": Width(4)}) == {"a": 3, "b": "apot6", "c": 4}
    assert repr(Apot(6)) == "Width(6, 'apot')"
    assert repr(Width(3)) == "Width(3)"


def test_each_has_its_own_number_of_levels() -> None:
    counts = [width.level_count for width in ALL]
    assert counts == [3, 5, 9, 17, 33, 65, 129, 31, 63, 127, 255, 15, 63, 253, 255]


def test_each_codebook_with_bits_has_a_class_and_the_other_way_round() -> None:
    assert list(BITS) == list(CODEBOOKS)


@given(
    st.from_regex(r"apot[0-9. ]{0,3}|apot\w+", fullmatch=True)
    | st.sampled_from(["apot3", "apot9", "apot", "apot6 ", "apot05", "apot6.0"])
)
def test_a_text_that_is_no_width(text: str) -> None:
    if text in ("apot5", "apot6", "apot7", "apot8"):
        return
    with pytest.raises(PlanError) as caught:
        read_width(text, "conv1")
    assert str(caught.value).startswith(f"conv1: {CHOICES}, got {text!r}")


JUNK = (
    st.integers(max_value=1)
    | st.integers(min_value=9)
    | st.floats()
    | st.booleans()
    | st.none()
    | st.lists(st.integers(2, 8))
    | st.text().filter(lambda text: not text.startswith(("apot", "fp", "int")))
    | st.sampled_from([3.0, 6.0, "3", "6", "Apot6", [3]])  # almost a width
)


@given(JUNK)
def test_what_is_no_width(value: Any) -> None:
    with pytest.raises(PlanError) as caught:
        read_width(value)
    assert str(caught.value).startswith(f"bits: {CHOICES}, got {value!r}")
    with pytest.raises(PlanError) as caught:
        check_bits(value)
    assert str(caught.value) == f"bits: expected an integer from 2 to 8, got {value!r}"


@pytest.mark.parametrize(
    ("value", "end"),
    [
        ("int4", "'int4'; for 4 bits write 4 or fp4"),
        ("4bit", "'4bit'; for 4 bits write 4 or fp4"),
        ("3", "'3'; for 3 bits write 3"),
        ("fp8e4m3", "'fp8e4m3'"),  # whose first number are its bits, whose others are not
        ("four", "'four'"),
        ("apot12", "'apot12'"),
        (1, "1"),
        (True, "True"),
    ],
)
def test_the_widths_of_as_many_bits_are_said(value: object, end: str) -> None:
    with pytest.raises(PlanError) as caught:
        read_width(value, "fc")
    assert str(caught.value) == f"fc: {CHOICES}, got {end}"


@given(JUNK | st.integers(2, 4) | st.just(Width(6)))
def test_bits_that_the_codebook_does_not_have(bits: Any) -> None:
    with pytest.raises(PlanError, match=r"^Apot: expected an integer from 5 to 8, got "):
        Apot(bits)
    with pytest.raises(PlanError, match=r"^bits: expected an integer from 5 to 8, got "):
        bits_of(bits, "apot")
    with pytest.raises(PlanError, match=r"^bits: expected an integer from 5 to 8, got "):
        Width(bits, "apot")


def test_texts_of_floating_point_and_integers() -> None:
    assert [read_width(text) for text in ("fp4", "fp6", "fp8", "int8")] == [FP4, FP6, FP8, INT8]
    with pytest.raises(
        PlanError, match=rf"^fc: {CHOICES}, got 'fp5'; for 5 bits write 5 or apot5$"
    ):
        read_width("fp5", "fc")
    with pytest.raises(PlanError, match=r"^bits: expected an integer among 4, 6, 8, got 5$"):
        Width(5, "fp")


def test_bits_of_a_width_of_the_codebook() -> None:
    assert (bits_of(3, "power_of_two"), bits_of(Width(3), "power_of_two")) == (3, 3)
    assert bits_of(Apot(6), "apot") == 6
    with pytest.raises(PlanError, match=r"^bits: expected an integer from 2 to 8, got Width"):
        bits_of(Apot(6), "power_of_two")


def test_an_unknown_codebook() -> None:
    expected = "^codebook: expected one of power_of_two, apot, fp, int, got 'fp5'$"
    with pytest.raises(PlanError, match=expected):
        Width(5, "fp5")


def test_it_is_formatted_as_its_text() -> None:
    assert f"{Width(3):>3}|{Width(3):d}|{Apot(6):>6}|{Width(3)}" == "  3|3| apot6|3"
