"""The folder of a run: its JSON files, and the check that its run is the one that is asked for."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from octavo._io import remove_leftovers, write_atomically
from octavo._locks import locked
from octavo.errors import FormatError, RecipeError
from octavo.network.digest import weights_digest
from octavo.runs.recipe import Recipe, recorded_recipe
from octavo.storage.checksum import check, sealed
from octavo.storage.packed import Packed, check_state

__all__ = [
    "FILES",
    "PACKED",
    "Json",
    "changed_files",
    "check_folder",
    "digest_of",
    "file_digests",
    "finished",
    "read_json",
    "record_recipe",
    "working_in",
    "write_json",
]

PACKED = "packed.safetensors"  # the file of the quantized network in a run's folder
# The keys of a recipe that may differ from those of the run that is there.
FREE = frozenset({"retraining", "publish", "control", "export", "device"})
FILES = "files"  # the key of a result that has the digests of the files beside it

Json: TypeAlias = dict[str, Any]


def check_folder(folder: Path, recipe: Recipe) -> None:
    """Make sure that the run in the folder, if any, is this recipe's.

    The settings of retraining, the path to publish to and the device may differ: so a run that
    diverged can go on with a lower learning rate. The control and the exports may too: what is
    missing is made when the run is called again.

    Raises:
        RecipeError: it is not; the message names the first key that differs.
        FormatError: the folder's recipe is damaged.

    """
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"{folder}: expected a folder for the run, or nothing yet, got a file")
    path = folder / "recipe.json"
    if path.exists():
        there = recorded_recipe(read_json(path), str(path))
        _check_same(f"{folder} holds a run", there, recipe, Recipe.model_fields.keys() - FREE)


def _check_same(holds: str, there: Recipe, now: Recipe, keys: set[str]) -> None:
    """Raise RecipeError where recipes differ in one of the keys; ``holds`` begins the message."""
    was = there.model_dump(mode="json", include=keys)
    differing = _difference(was, now.model_dump(mode="json", include=keys))
    if differing is not None:
        raise RecipeError(f"{holds} with {differing}: choose another --folder")


def _difference(there: Json, now: Json, inside: str = "") -> str | None:
    """Return in words the first key in which settings differ; it is a dotted one where sections
    with the same keys differ.
    """
    for key, value in there.items():
        sections = isinstance(value, dict) and isinstance(now[key], dict)
        if sections and value.keys() == now[key].keys():
            deeper = _difference(value, now[key], f"{inside}{key}.")
            if deeper is not None:
                return deeper
        elif value != now[key]:
            return f"{inside}{key} {_in_words(value)}, the recipe says {_in_words(now[key])}"
    return None


def _in_words(value: object) -> str:
    return "null" if value is None else repr(value)


def record_recipe(folder: Path, recipe: Recipe) -> None:
    """Write ``recipe.json``, which :func:`check_folder` reads. It is a recipe that can be run, so
    it has no checksum.
    """
    text = json.dumps(recipe.model_dump(mode="json"), indent=2, allow_nan=False)
    write_atomically(folder / "recipe.json", lambda file: file.write(text.encode()))


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
    there = recorded_recipe(_mapping(result, "recipe", path), str(path))
    _check_same(f"{folder} holds a complete run", there, recipe, {"retraining"})
    if result.get("float_digest") != digest:
        raise RecipeError(
            f"{folder} holds a complete run, the task's weights have changed since: "
            "delete it or choose another --folder"
        )
    controlled = "control_score" in result or not recipe.controlled
    exported = set(recipe.export) <= result.get("exports", {}).keys()
    return result if controlled and exported else None


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Keep other processes away from the folder of a run for a while; it and the folders above it
    are made where they are missing, and removed if they stay empty.

    Raises:
        RecipeError: another process works in it.

    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder, "this run"):
            remove_leftovers(folder)
            yield
    finally:
        with contextlib.suppress(OSError):  # one that is not empty ends it
            for path in new:
                path.rmdir()


def file_digests(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of files in a folder, for the result to promise."""
    return {name: _sha256(folder / name) for name in names}


def changed_files(folder: Path, result: Json) -> list[str]:
    """Return the names of the files that a result promises and that are gone or changed; that of an
    earlier version promises a packed network that loads.
    """
    if FILES not in result:
        return [] if _loads(folder / PACKED) else [PACKED]
    promised = _mapping(result, FILES, folder / "result.json")
    return [name for name, digest in promised.items() if _sha256(folder / name) != digest]


def _loads(path: Path) -> bool:
    """Tell if a packed file is there and whole."""
    try:
        Packed.load(path)
    except (OSError, FormatError):
        return False
    return True


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a file; an empty text if there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mapping(content: Json, key: str, path: Path) -> Json:
    """Return the mapping that a content must have under a key."""
    value = content.get(key)
    if not isinstance(value, dict):
        raise FormatError(
            f"{path}: damaged, expected a mapping called {key}, got {type(value).__name__}"
        )
    return value


def read_json(path: Path) -> Json:
    """Read the JSON object in a file, after a check of its checksum; files of earlier versions have
    none.

    Raises:
        FormatError: the content is no JSON object, or not what was written.

    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: damaged, not JSON: {error}") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path}: damaged, expected a JSON object, got {type(content).__name__}")
    try:
        check(content, {}, old=True)
    except ValueError as error:
        raise FormatError(f"{path}: damaged, {error}; delete it to have it made again") from error
    return content


def write_json(path: Path, content: Json, *, compact: bool = False) -> Json:
    """Write a file that :func:`read_json` reads, whole or not at all; it is strict JSON.

    Args:
        path: the file.
        content: what it shall have.
        compact: write no spaces, for files that nobody reads line by line.

    Returns:
        The content with its checksum, as it was written.

    Raises:
        ValueError: a number is not finite, which JSON does not have.

    """
    written = sealed(content)
    style: Json = {"separators": (",", ":")} if compact else {"indent": 2}
    text = json.dumps(written, allow_nan=False, **style)
    write_atomically(path, lambda file: file.write(text.encode()))
    return written


def digest_of(model: nn.Module) -> str:
    """Return 12 hexadecimal digits that identify a network's weights and buffers.

    Raises:
        PlanError: an entry of its state dict is not a plain tensor.

    """
    check_state(model)
    return weights_digest(model.state_dict())
