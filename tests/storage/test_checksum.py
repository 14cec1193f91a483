"""The checksum of run state."""

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo.storage.checksum import KEY, check, sealed

CONTENT: dict[str, Any] = {
    "done": 2,
    "rate": 0.1,
    "names": ["a", "b"],
    "none": None,
    "on": True,
    "inner": {"weight": torch.tensor([[1.0, 2.0]]), "empty": torch.zeros(0)},
}


def test_what_was_sealed_is_sound_and_the_rest_is_as_it_was() -> None:
    content = sealed(CONTENT)
    check(content, {"done": int, "rate": (int, float), "inner": dict}, old=False)
    assert {key: value for key, value in content.items() if key != KEY} == CONTENT
    assert sealed(content) == content  # once more is the same


@pytest.mark.parametrize(
    "change",
    [
        {"done": 3},
        {"done": 2.0},
        {"done": True},
        {"rate": math.nextafter(0.1, 1)},
        {"names": ["b", "a"]},
        {"names": ["a,b"]},
        {"names": ["a", ["b"]]},
        {"none": 0},
        {"more": 1},
        {"inner": {"weight": torch.tensor([[1.0], [2.0]]), "empty": torch.zeros(0)}},  # its shape
        {"inner": {"weight": torch.tensor([[1.0, 2.0]]).int(), "empty": torch.zeros(0)}},
        {"inner": {"weight": torch.tensor([[1.0, 2.0]]), "empty": torch.zeros(0, 3)}},
        {"inner": {"weight": torch.tensor([[1.0, -2.0]]), "empty": torch.zeros(0)}},
        {"inner": {"empty": torch.tensor([[1.0, 2.0]]), "weight": torch.zeros(0)}},
    ],
)
def test_every_change_is_seen(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^its checksum is not that of its content$"):
        check(sealed(CONTENT) | change, {}, old=True)


@given(
    st.dictionaries(
        st.text() | st.integers(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
            max_leaves=6,
        ),
    )
)
def test_json_that_was_written_and_read_is_sound(content: dict[Any, Any]) -> None:
    if len({str(key) for key in content}) == len(content):
        read = json.loads(json.dumps(sealed(content)))
        check(dict(reversed(read.items())), {}, old=False)


def test_a_content_without_a_checksum_is_one_of_an_earlier_version_or_refused() -> None:
    check(CONTENT, {"done": int}, old=True)
    with pytest.raises(ValueError, match=r"^expected a checksum, found none$"):
        check(CONTENT, {}, old=False)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"done": str}, "expected a text called done, got 2"),
        ({"missing": list}, "expected a list called missing, got None"),
        ({"on": int}, "expected an integer called on, got True"),
        ({"names": (int, float)}, "expected a number called names, got list"),
        ({"inner": list}, "expected a list called inner, got dict"),
    ],
)
def test_the_type_of_a_value_is_checked(schema: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        check(sealed(CONTENT), schema, old=False)


@pytest.mark.parametrize("content", [None, [], "text", 3])
def test_what_is_no_mapping_is_refused(content: object) -> None:
    with pytest.raises(ValueError, match=f"^expected a mapping, got {type(content).__name__}$"):
        check(content, {}, old=True)
