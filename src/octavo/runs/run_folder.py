"""The folder of a run: its JSON files, and the check that its run is the one that is asked for."""

import json
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from octavo._io import json_text, write_atomically
from octavo.errors import FormatError, RecipeError
from octavo.runs.recipe import Recipe, recorded_recipe
from octavo.storage.digest import digest
from octavo.storage.packed import check_state

__all__ = ["Json", "check_folder", "digest_of", "finished", "read_json", "write_json"]

Json: TypeAlias = dict[str, Any]


def check_folder(folder: Path, recipe: Recipe) -> None:
    """Make sure that the run in the folder, if any, is this recipe's.

    The settings of retraining and the path to publish to may differ: so a run that diverged can go
    on with a lower learning rate.

    Raises:
        RecipeError: it is not; the message names the first key that differs.
        FormatError: the folder's recipe is damaged.

    """
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"{folder}: expected a folder for the run, or nothing yet, got a file")
    path = folder / "recipe.json"
    free = {"retraining", "publish", "control"}  # the keys that may differ
    if not path.exists():
        return
    there = recorded_recipe(read_json(path), str(path)).model_dump(mode="json")
    for key, now in recipe.model_dump(mode="json").items():
        if key not in free and there[key] != now:
            raise RecipeError(
                f"{folder} holds a run with {key} {there[key]!r}, the recipe says {now!r}: "
                "choose another --folder"
            )


def finished(folder: Path, recipe: Recipe, digest: str) -> Json | None:
    """Return the result of the folder's run, or None if it has something left to do.

    ``digest`` identifies the weights that the task gives now.

    Raises:
        RecipeError: the run was retrained in another way, or began with other weights.
        FormatError: the result is damaged.

    """
    path = folder / "result.json"
    if not path.exists():
        return None
    result = read_json(path)
    was = recorded_recipe(result.get("recipe", {}), str(path)).retraining
    now = recipe.retraining
    if was != now:
        raise RecipeError(
            f"{folder} holds a complete run with {was}, the recipe says {now}: "
            "choose another --folder"
        )
    if result.get("float_digest") != digest:
        raise RecipeError(
            f"{folder} holds a complete run, the task's weights have changed since: "
            "delete it or choose another --folder"
        )
    return result if "control_score" in result or not recipe.controlled else None


def read_json(path: Path) -> Json:
    """Read the JSON object in a file.

    Raises:
        FormatError: the content is no JSON object.

    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: damaged, not JSON: {error}") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path}: damaged, expected a JSON object, got {type(content).__name__}")
    return content


def write_json(path: Path, content: Json) -> None:
    """Write a file that :func:`read_json` reads, whole or not at all; it is strict JSON."""
    text = json_text(content, indent=2)
    write_atomically(path, lambda file: file.write(text.encode()))


def digest_of(model: nn.Module) -> str:
    """Return 12 hexadecimal digits that identify a network's weights and buffers.

    Raises:
        PlanError: an entry of its state dict is not a plain tensor.

    """
    check_state(model)
    return digest(model.state_dict())
