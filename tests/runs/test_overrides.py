"""Values of a recipe from the command line."""

from typing import Any

import pytest

from octavo.errors import RecipeError
from octavo.runs.overrides import key_value, override, yaml_value


def test_yaml_values() -> None:
    assert [yaml_value(text, "") for text in ("3", "0.5", "a", "[1, x]", "", "true")] == [
        3,
        0.5,
        "a",
        [1, "x"],
        None,
        True,
    ]


def test_a_value_that_is_no_yaml_is_named_with_its_option() -> None:
    with pytest.raises(RecipeError, match=r"^--bits: not a YAML value: "):
        yaml_value("[3", "--bits")


def test_a_pair_is_split_at_its_first_equals_sign() -> None:
    assert key_value("path=a=b", "-O") == ("path", "a=b")
    for pair in ("path", "=3"):
        with pytest.raises(RecipeError, match=rf"^-O {pair}: expected key=value$"):
            key_value(pair, "-O")


def test_a_dotted_key_reaches_inside_and_leaves_what_stands_beside_it() -> None:
    content: dict[str, Any] = {"ptq": {"damp": 0.02, "rate": 1}}
    assert override(content, ["ptq.rate=8", "options.data.size=3", "seed=1"]) is content
    assert content == {
        "ptq": {"damp": 0.02, "rate": 8},
        "options": {"data": {"size": 3}},
        "seed": 1,
    }


def test_a_value_replaces_a_mapping() -> None:
    assert override({"bits": {"*": 3}}, ["bits={a: 4}"]) == {"bits": {"a": 4}}
