"""Orders of freezing that a recipe names, the user's functions among them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.runs.tiny import Tiny, packed_bytes, recipe, stages_by_hand

from octavo.errors import RecipeError
from octavo.formats.powers_of_two import power_of_two
from octavo.inq.incremental import Incremental
from octavo.runs.orders import OrderFunction, load_orders
from octavo.runs.recipe import Recipe, load_recipe, make_recipe, recorded_recipe
from octavo.runs.run import run

pytestmark = pytest.mark.usefixtures("folder")

SMALLEST = "def smallest(weight, codebook): return -weight.detach().float().abs()\n"


def named(folder: Path, order: Any) -> Recipe:
    """The plain recipe, read from a file in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    content = recipe(order=order, control=False).model_dump(mode="json")
    (folder / "r.yaml").write_text(json.dumps(content))
    return load_recipe(folder / "r.yaml")


def test_a_function_is_looked_for_beside_the_recipe_and_then_from_here(tmp_path: Path) -> None:
    weight = torch.randn(3, 4)
    codebook = power_of_two(weight, 3)
    here = tmp_path / "order_here.py"
    here.write_text(SMALLEST)
    loaded = named(tmp_path / "sub", "order_here.py:smallest")
    assert loaded.order == OrderFunction("order_here.py:smallest")
    assert torch.equal(load_orders(loaded.order)(weight, codebook), -weight.abs())
    beside = tmp_path / "sub" / "order_here.py"
    beside.write_text(SMALLEST.replace("-weight", "2 * weight"))
    assert torch.equal(load_orders(loaded.order)(weight, codebook), 2 * weight.abs())
    mixed = load_orders(named(tmp_path, ["magnitude", f"{here}:smallest", "random"]).order)
    assert (mixed[0], mixed[2]) == ("magnitude", "random")
    assert torch.equal(mixed[1](weight, codebook), -weight.abs())


def test_a_run_freezes_by_the_function_and_keeps_its_name(tmp_path: Path, folder: Path) -> None:
    """Against the same by hand; complete, and resumed, it is the same run."""
    (tmp_path / "order_of_mine.py").write_text(SMALLEST)
    settings = named(tmp_path, "order_of_mine.py:smallest")
    result = run(settings, folder)
    model = Tiny().model()
    incremental = Incremental(
        model,
        {"0": 3, "3": 3},
        portions=(0.5, 0.8, 1.0),
        order=lambda weight, codebook: -weight.detach().float().abs(),
    )
    stages_by_hand(incremental, model, settings)
    incremental.finish().save("by-hand")
    assert packed_bytes(folder) == Path("by-hand").read_bytes()
    assert result["recipe"]["order"] == "order_of_mine.py:smallest"
    assert recorded_recipe(json.loads((folder / "recipe.json").read_text()), "r") == settings
    assert run(settings, folder) == result
    (folder / "result.json").unlink()
    run(settings, folder)
    assert packed_bytes(folder) == Path("by-hand").read_bytes()
    with pytest.raises(RecipeError, match="holds a run with order 'order_of_mine.py:smallest'"):
        run(recipe(control=False), folder)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ("none.py:far", "order 'none.py:far': there is no file none.py"),
        (
            "order_of_mine.py:smalest",
            "has no class or function 'smalest' .the nearest is 'smallest'",
        ),
        (["random", "none.py:far", "random"], "order 'none.py:far': there is no file none.py"),
    ],
)
def test_a_function_that_is_not_there_is_known_at_the_start(
    order: Any, said: str, tmp_path: Path, folder: Path
) -> None:
    (tmp_path / "order_of_mine.py").write_text(SMALLEST)
    with pytest.raises(RecipeError, match=said):
        run(recipe(order=order), folder)
    assert not folder.exists()


def test_an_order_that_is_none_is_named() -> None:
    with pytest.raises(RecipeError, match=r"^r: order: expected one of magnitude, .*, or path/to/"):
        make_recipe({"task": "digits", "bits": 3, "order": "sizes"}, "r")
    with pytest.raises(RecipeError, match=r"^r: order.2: expected one of .*, got 3$"):
        make_recipe({"task": "digits", "bits": 3, "order": ["random", "random", 3, "random"]}, "r")
