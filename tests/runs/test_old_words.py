"""Old words of a recipe: they are read, and say so once."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from tests.runs.tiny import files, packed_bytes, recipe

from octavo.errors import RecipeError
from octavo.runs.old_words import with_new_words
from octavo.runs.recipe import Recipe, load_recipe, make_recipe, recorded_recipe
from octavo.runs.run import run
from octavo.runs.run_folder import check_folder
from octavo.runs.sections import Ptq

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"

OLD: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "section": ({"oneshot": {"damp": 0.5}}, {"ptq": {"damp": 0.5}}),
    "method": ({"method": "oneshot"}, {"method": "ptq"}),
    "start": ({"start": "oneshot"}, {"start": "ptq"}),
    "refit": ({"start": "compensated"}, {"start": "refit"}),
    "per": ({"per": "layer"}, {"per": "tensor"}),
    "correct": ({"ptq": {"correct": True, "damp": 0.5}}, {"ptq": {"damp": 0.5}}),
    "order": ({"order": "far"}, {"order": "orders.py:far"}),
    "orders": (
        {"order": ["far", "random", "far", "magnitude"]},
        {"order": ["orders.py:far", "random", "orders.py:far", "magnitude"]},
    ),
}


@pytest.mark.parametrize("name", OLD)
def test_an_old_word_warns_and_means_the_new_one(name: str) -> None:
    old, new = OLD[name]
    content = {"task": "digits", "bits": 3}
    with pytest.warns(
        DeprecationWarning, match=r"^r: .* is deprecated and goes in the next"
    ) as seen:
        assert make_recipe(content | old, "r") == make_recipe(content | new, "r")
    assert len(seen) == (2 if name == "orders" else 1)


@pytest.mark.parametrize("name", OLD)
def test_new_words_pass_as_they_are_and_without_a_warning(name: str) -> None:
    old, new = OLD[name]
    assert with_new_words(new, "r") == new
    assert with_new_words(old, "r", warn=False) == new
    assert OLD[name][0] is old  # nothing was changed in place


def test_words_are_old_at_their_own_place_only() -> None:
    content: dict[Any, Any] = {
        "options": {"per": "layer", "oneshot": 1},
        "teacher": {"start": "oneshot"},
        3: 4,
    }
    assert with_new_words(content, "r") == content


def test_an_old_key_beside_its_new_one() -> None:
    for keys in (("oneshot", "ptq"), ("ptq", "oneshot")):
        with pytest.raises(RecipeError, match=r"^r: expected the key 'ptq' once, got it twice"):
            with_new_words({key: {} for key in keys}, "r")


def test_old_words_in_a_base_and_in_overrides(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "base.yaml").write_text(
        "task: digits\nbits: 3\nmethod: oneshot\noneshot: {damp: 0.5, correct: true}"
    )
    (folder / "r.yaml").write_text("base: base.yaml\nptq: {absorb: true}")
    with pytest.warns(DeprecationWarning, match="is deprecated") as seen:
        loaded = load_recipe(
            folder / "r.yaml", ["oneshot.sequential=false", "per=layer", "oneshot.correct=1"]
        )
    assert loaded.ptq == Ptq(damp=0.5, sequential=False, absorb=True)
    assert (loaded.method, loaded.per) == ("ptq", "tensor")
    said = [str(one.message).partition(" is deprecated")[0] for one in seen]
    assert said == [
        f"{folder / 'base.yaml'}: method: oneshot",
        f"{folder / 'base.yaml'}: the key 'oneshot'",
        f"{folder / 'base.yaml'}: the key 'ptq.correct'",
        "--set: the key 'oneshot'",
        "--set: per: layer",
        "--set: the key 'oneshot'",
        "--set: the key 'ptq.correct'",
    ]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_the_recipe_of_a_committed_result_is_read_in_silence(path: Path) -> None:
    content = json.loads(path.read_text()).get("recipe")
    if content is not None:
        assert isinstance(recorded_recipe(content, path.stem), Recipe)


def test_a_run_folder_of_the_first_edition_is_resumed_in_silence(folder: Path) -> None:
    """Its recipe.json and result.json have the old words."""
    new = recipe(method="ptq", per="tensor", ptq={"damp": 0.1})
    result = run(new, folder)
    old = result["recipe"] | {"method": "oneshot", "start": "compensated", "per": "layer"}
    del old["ptq"]
    old["oneshot"] = {"order": "gptq", "damp": 0.1, "sequential": True, "correct": True}
    now = new.model_copy(update={"start": "refit"})
    older = result | {"recipe": old}
    del older["checksum"], older["files"]  # they had neither
    for name, content in (("recipe.json", old), ("result.json", older)):
        (folder / name).write_text(json.dumps(content))
    before = files(folder)
    network = packed_bytes(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(now, folder) == older  # complete: nothing is done
        assert files(folder) == before
        (folder / "result.json").unlink()
        assert run(now, folder)["recipe"]["ptq"]["damp"] == 0.1
        assert packed_bytes(folder) == network
        with pytest.raises(
            RecipeError, match="holds a run with start 'refit', the recipe says 'fl"
        ):
            check_folder(folder, new)
