"""The bits of a recipe come from the file of a plan; what the file says is what is recorded."""

from pathlib import Path
from typing import Any

import pytest

from octavo.errors import RecipeError
from octavo.formats.width import Apot, Width
from octavo.plan import Plan, matching
from octavo.runs.plan_files import with_plan_file
from octavo.runs.recipe import load_recipe, make_recipe, recorded_recipe
from octavo.runs.run import run
from octavo.storage.packed import Packed

PLAN = Plan({"conv1": 3, "fc": "apot6"})


@pytest.fixture
def plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "recipes"


def test_the_bits_are_those_of_the_file(plans: Path) -> None:
    PLAN.save(plans / "plan.yaml")
    (plans / "r.yaml").write_text("task: digits\nbits: plan.yaml\n")
    recipe = load_recipe(plans / "r.yaml")
    assert recipe.bits == {"conv1": Width(3), "fc": Apot(6)}
    assert recipe.activations is None
    recorded = recipe.model_dump(mode="json")
    assert recorded["bits"] == {"conv1": 3, "fc": "apot6"}
    (plans / "plan.yaml").unlink()
    assert recorded_recipe(recorded, "recorded") == recipe


def test_the_recipes_folder_comes_before_the_working_directory(plans: Path) -> None:
    Plan({"a": 2}).save("plan.yml")
    assert with_plan_file({"bits": "plan.yml"}, plans) == {"bits": {"a": 2}}
    Plan({"a": 5}).save(plans / "plan.yml")
    assert with_plan_file({"bits": "plan.yml"}, plans) == {"bits": {"a": 5}}
    whole = str(plans / "plan.yml")
    assert with_plan_file({"bits": whole}, Path("nowhere")) == {"bits": {"a": 5}}


def test_the_bits_of_inputs_come_too(plans: Path) -> None:
    Plan({"a": 3, "b": 2}, activations={"b": 8}).save(plans / "plan.yaml")
    content = {"task": "digits", "bits": "plan.yaml"}
    recipe = make_recipe(content, "test", folder=plans)
    assert recipe.activations is not None
    assert recipe.activations.bits == {"b": 8}
    assert content == {"task": "digits", "bits": "plan.yaml"}
    with pytest.raises(RecipeError, match=r"^test: activations: expected none, because the plan"):
        make_recipe(content | {"activations": {"bits": 4}}, "test", folder=plans)


def test_a_name_with_brackets_is_no_pattern(plans: Path) -> None:
    Plan({"blocks.[0]": 3, "blocks.0": 2}).save(plans / "plan.yaml")
    recipe = make_recipe({"task": "digits", "bits": "plan.yaml"}, "test", folder=plans)
    assert recipe.bits == {"blocks.[0]": 3, "blocks.0": 2}
    names = ("blocks.0", "blocks.[0]")
    assert matching(names, recipe.bits, "layer") == {"blocks.0": 2, "blocks.[0]": 3}


def test_a_pattern_in_the_file_of_a_plan_is_one_in_the_recipe(plans: Path) -> None:
    Plan({"*": 3, "fc": 8}, activations={"*": 4}).save(plans / "plan.yaml")
    recipe = make_recipe({"task": "digits", "bits": "plan.yaml"}, "test", folder=plans)
    assert recipe.bits == {"*": 3, "fc": 8}
    assert recipe.activations is not None
    assert recipe.activations.bits == {"*": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "test: bits: there is no file plan.yaml; expected the bits of every layer"),
        (
            "bits: {a: 9}",
            "plan.yaml: a: expected 2 to 8, apot5 to apot8, fp4, fp6, fp8 or int8, got 9",
        ),
        ("task: digits", "plan.yaml: expected a mapping with the key 'bits'"),
    ],
)
def test_a_file_that_is_no_plan_is_named(plans: Path, text: str | None, message: str) -> None:
    if text is not None:
        (plans / "plan.yaml").write_text(text)
    with pytest.raises(RecipeError) as error:
        make_recipe({"task": "digits", "bits": "plan.yaml"}, "test", folder=plans)
    assert message in str(error.value)
    assert str(error.value).startswith("test: ")


@pytest.mark.parametrize("bits", [3, "apot6", {"plan.yaml": 3}, None])
def test_other_values_stay(bits: Any) -> None:
    assert with_plan_file({"bits": bits}, Path()) == {"bits": bits}


def test_a_run_of_a_plan_and_of_a_plan_that_was_edited(plans: Path) -> None:
    content = {"task": "tests.runs.tiny:Tiny", "bits": "plan.yaml", "method": "ptq"}
    Plan({"0": 3, "3": 5}).save(plans / "plan.yaml")
    run(make_recipe(content, "test", folder=plans), plans / "run")
    assert Packed.load(plans / "run/packed.safetensors").plan == {"0": 3, "3": 5}
    Plan({"0": 4}).save(plans / "plan.yaml")
    edited = make_recipe(content, "test", folder=plans)
    with pytest.raises(RecipeError, match="holds a run with bits"):
        run(edited, plans / "run")
    run(edited, plans / "two")
    assert Packed.load(plans / "two/packed.safetensors").plan == {"0": 4}
