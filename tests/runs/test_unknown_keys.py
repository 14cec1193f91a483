"""An unknown key of a recipe gets the key to write instead."""

import pytest
from pydantic import ValidationError

from octavo.runs.recipe import SECTIONS, Recipe
from octavo.runs.unknown_keys import ALIASES, explain

KNOWN = {"": ("task", "bits", "seed"), "retraining": ("learning_rate", "clip")}


def said(**content: object) -> str:
    with pytest.raises(ValidationError) as raised:
        Recipe.model_validate({"task": "digits", "bits": 3} | content)
    return explain(raised.value, KNOWN | {"ptq": ("order", "damp")})


@pytest.mark.parametrize(
    ("content", "end"),
    [
        ({"retraining": {"lr": 1}}, "'retraining.lr': write retraining.learning_rate"),
        ({"learning_rate": 1}, "'learning_rate': write retraining.learning_rate"),
        ({"ptq": {"percdamp": 1}}, "'ptq.percdamp': write ptq.damp"),
        ({"retraining": {"seed": 1}}, "'retraining.seed': write seed"),
        ({"retraining": {"clipp": 1}}, "'retraining.clipp' (the nearest is 'clip')"),
        ({"retraining": {"q": 1}}, "'retraining.q'; expected one of learning_rate, clip"),
        ({"plan": 1}, "'plan': write bits"),
    ],
)
def test_the_key_to_write(content: dict[str, object], end: str) -> None:
    assert said(**content) == f"unknown key {end}"


def test_every_alias_stands_for_a_key_and_is_none() -> None:
    keys = set(Recipe.model_fields)
    for section in SECTIONS.values():
        keys |= set(section.__dataclass_fields__)
    assert set(ALIASES.values()) <= keys
    assert not set(ALIASES) & keys
