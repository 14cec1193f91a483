"""Untrusted recipes: a recipe names code, so that to run it is to run a program.

``octavo run --no-code`` refuses whatever a recipe can name that is not octavo's own. SECURITY.md
says what that leaves.
"""

from pathlib import Path
from typing import NoReturn

from octavo.errors import RecipeError
from octavo.runs.orders import OrderFunction
from octavo.runs.recipe import Recipe
from octavo.runs.task import BUILT_IN

__all__ = ["check_no_code", "published_inside"]


def check_no_code(recipe: Recipe) -> None:
    """Check that a recipe names no code, and no place outside of the run's folder to publish to.

    Raises:
        RecipeError: it does; the message names the key.

    """
    if recipe.task not in BUILT_IN:
        _refuse("task", f"one of {', '.join(BUILT_IN)}", recipe.task)
    for section, options in (("options", recipe.options), ("teacher", recipe.teacher)):
        network = options.get("network")
        if network is not None and ":" in str(network):
            _refuse(f"{section}.network", "the name of a library's network or a folder", network)
    orders = recipe.order if isinstance(recipe.order, tuple) else (recipe.order,)
    for order in orders:
        if isinstance(order, OrderFunction):
            _refuse("order", "the name of an order", order.name)
    if recipe.publish is not None:
        path = Path(recipe.publish)
        if path.is_absolute() or ".." in path.parts:
            _refuse("publish", "a path that stays in the run's folder", recipe.publish)


def published_inside(folder: Path) -> Path:
    """Return the place that stands for the recipe's own, so that what it publishes stays in the
    run's folder.
    """
    return folder / "published" / "recipe.yaml"


def _refuse(key: str, expected: str, got: object) -> NoReturn:
    raise RecipeError(f"--no-code: {key}: expected {expected}, got {got!r}")
