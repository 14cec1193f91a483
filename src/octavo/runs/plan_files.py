"""Recipes that take their bits from the file of a plan, as ``octavo search`` writes it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.errors import RecipeError
from octavo.formats.width import write_widths
from octavo.plan import Plan

__all__ = ["ENDINGS", "plan_keys", "with_plan_file"]

ENDINGS = (".yaml", ".yml")


def with_plan_file(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the keys of a recipe with ``bits: plan.yaml`` replaced by the bits in that file.

    The recipe that a run records then has the bits themselves, so that a plan that is edited
    between two calls is another run. Where the plan has bits of inputs, they become the recipe's
    ``activations``.

    Args:
        content: the keys of a recipe; it is left as it was.
        folder: the folder of the recipe. A relative path is looked for there first, and then in the
            working directory.

    Raises:
        RecipeError: there is no such file, or the recipe has activations of its own beside those of
            the plan.
        PlanError: the file is no plan; the message names the file and the key.

    """
    name = content.get("bits")
    if not isinstance(name, str) or not name.endswith(ENDINGS):
        return dict(content)
    keys = plan_keys(_found(name, folder))
    if "activations" in keys and content.get("activations") is not None:
        raise RecipeError(
            f"activations: expected none, because the plan {name} has bits of inputs; "
            "leave the key out, or remove the plan's section activations"
        )
    return {**content, **keys}


def plan_keys(path: Path) -> dict[str, Any]:
    """Return what the file of a plan says as keys of a recipe: its bits, and those of inputs.

    Raises:
        PlanError: the file is no plan; the message names the file and the key.

    """
    plan = Plan.load(path)
    keys: dict[str, Any] = {"bits": write_widths(plan)}
    if plan.activations:
        keys["activations"] = {"bits": dict(plan.activations)}
    return keys


def _found(name: str, folder: Path) -> Path:
    """Return the path of a plan's file."""
    path = Path(name).expanduser()
    for place in (folder / path, path):
        if place.is_file():
            return place
    raise RecipeError(
        f"bits: there is no file {name}; expected the bits of every layer, bits by layer name, "
        "or the file of a plan, as octavo search writes it"
    )
