"""Untrusted recipes: with ``--no-code``, none runs its own code or writes where it likes."""

from pathlib import Path
from typing import Any

import pytest

from octavo.errors import RecipeError
from octavo.runs.no_code import check_no_code, published_inside
from octavo.runs.recipe import load_recipe, make_recipe
from octavo.runs.recipes import RECIPES
from octavo.runs.run import publish

CODE = [
    ({"task": "evil.py:Evil"}, "task: expected one of digits, cifar10, image_folder, causal_lm"),
    ({"task": "os:system"}, "task: expected one of"),
    ({"task": "octavo.runs.tasks.digits:Digits"}, "task: expected one of"),
    ({"task": "Digits"}, "task: expected one of"),
    ({"options": {"network": "evil.py:net"}}, "options.network: expected the name of a library's"),
    ({"options": {"network": "os:system"}}, "options.network: expected the name of a library's"),
    ({"options": {"network": ["os:system"]}}, "options.network: expected the name of a library's"),
    ({"options": {"network": "hf:someone/net"}}, "options.network: expected the name of a library"),
    ({"teacher": {"network": "evil.py:net"}}, "teacher.network: expected the name of a library's"),
    ({"order": "evil.py:far"}, "order: expected the name of an order, got 'evil.py:far'"),
    ({"order": ["random"] * 3 + ["evil.py:far"]}, "order: expected the name of an order"),
    ({"publish": "/etc/cron.d/x"}, "publish: expected a path that stays in the run's folder, got"),
    ({"publish": "../x"}, "publish: expected a path that stays in the run's folder"),
    ({"publish": "a/../../../x"}, "publish: expected a path that stays in the run's folder"),
]


@pytest.mark.parametrize(("keys", "said"), CODE, ids=[str(keys) for keys, _ in CODE])
def test_code_and_places_are_refused(keys: dict[str, Any], said: str) -> None:
    recipe = make_recipe({"task": "digits", "bits": 3} | keys, "here")
    with pytest.raises(RecipeError) as caught:
        check_no_code(recipe)
    assert str(caught.value).startswith(f"--no-code: {said}")


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_that_come_with_octavo_need_no_code(path: Path) -> None:
    check_no_code(load_recipe(path))


def test_what_is_published_stays_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("result.json", "packed.safetensors"):
        (folder / name).write_bytes(name.encode())
    recipe = make_recipe({"task": "digits", "bits": 3, "publish": "a/b"}, "here")
    check_no_code(recipe)
    copies = publish(recipe, published_inside(folder), folder)
    assert copies == [folder / "published/a/b.json", folder / "published/a/b.safetensors"]
    assert [copy.read_bytes() for copy in copies] == [b"result.json", b"packed.safetensors"]


@pytest.mark.parametrize("path", ["a\0b", "\x1b[m"])
def test_a_path_to_publish_to_is_printable(path: str) -> None:
    with pytest.raises(RecipeError, match="publish: expected a path of printable text"):
        make_recipe({"task": "digits", "bits": 3, "publish": path}, "here")
