"""The sections of a recipe, made in Python; tests/runs/test_recipe.py reads them from files."""

import json
from typing import Any

import pytest

from octavo.errors import OctavoError, RecipeError
from octavo.formats.width import Apot, Width
from octavo.plan import Budget
from octavo.ptq.settings import PtqSettings
from octavo.runs.recipe import Recipe, make_recipe
from octavo.runs.sections import Activations, Prune, Ptq, Search


def test_the_defaults_of_ptq_are_those_of_calibrate() -> None:
    settings = PtqSettings()
    assert {name: getattr(settings, name) for name in vars(Ptq())} == vars(Ptq())
    recipe = Recipe(task="digits", bits=Width(3))
    assert (recipe.fit, recipe.per) == (settings.fit, settings.per)
    assert set(vars(Ptq())) | {"fit", "per", "masks"} == set(vars(settings))


def test_ptq_is_the_settings_of_calibrate() -> None:
    changed = Ptq(order="distance", damp=0.5, sequential=False, absorb=True, rate=2.0)
    assert changed.settings("max", "tensor") == PtqSettings(
        order="distance",
        fit="max",
        per="tensor",
        damp=0.5,
        sequential=False,
        absorb=True,
        rate=2.0,
    )


def test_widths_are_read_and_written() -> None:
    search = {"budget": {"average_bits": 5}, "options": [3, "apot6"], "pins": {"a": "apot5"}}
    recipe = make_recipe({"task": "digits", "search": search}, "r")
    assert recipe.search == Search(
        budget=Budget(average_bits=5), options=(Width(3), Apot(6)), pins={"a": Apot(5)}
    )
    written = recipe.model_dump(mode="json")["search"]
    assert (written["options"], written["pins"]) == ([3, "apot6"], {"a": "apot5"})


@pytest.mark.parametrize(
    ("make", "settings"),
    [(Activations, {"bits": 4, "fit": "max"}), (Prune, {"sparsity": 1.0})],
)
def test_settings_that_cannot_be(make: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(OctavoError):
        make(**settings)


@pytest.mark.parametrize("per", ["tensor", "channel", ["group", 32]])
def test_what_shares_an_exponent_is_read_and_comes_back(per: Any) -> None:
    recipe = make_recipe({"task": "digits", "bits": "fp4", "per": per}, "r")
    assert recipe.per == (tuple(per) if isinstance(per, list) else per)
    again = make_recipe(json.loads(recipe.model_dump_json(exclude_defaults=True)), "r")
    assert again == recipe


@pytest.mark.parametrize("per", ["row", ["group", 1], ["group"], 32])
def test_what_shares_no_exponent_is_refused(per: Any) -> None:
    with pytest.raises(RecipeError, match=r'per: expected per "tensor" or "channel", got .*group'):
        make_recipe({"task": "digits", "bits": 3, "per": per}, "r")
