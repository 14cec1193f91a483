"""Files that are either whole or not there, and plain data as YAML and as strict JSON."""

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import yaml

__all__ = ["check_output", "json_text", "read_yaml", "write_atomically"]

TEXT = "tag:yaml.org,2002:str"
MERGE = "tag:yaml.org,2002:merge"


def write_atomically(path: str | Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Let ``write`` fill a new file, which then replaces ``path``.

    Under ``path`` there is the whole file or what was there before, even if the process is killed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_output(path: str | Path) -> None:
    """Make sure that a file can be put where a user wants it; call it before the work begins.

    Raises:
        FileNotFoundError: its folder does not exist. A folder that is made in silence hides a
            misspelt one.

    """
    folder = Path(path).parent
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{path}: the folder {folder} does not exist; make it first: mkdir -p {folder}"
        )


def json_text(content: Any, *, indent: int | None = None, compact: bool = False) -> str:
    """Return plain data as strict JSON.

    A number that is not finite becomes null, because JSON has none: other readers than Python's
    refuse ``NaN``.

    Args:
        content: the data.
        indent: spaces of each level; None: all on one line.
        compact: leave out the spaces after commas and colons.

    """
    separators = (",", ":") if compact else None
    return json.dumps(_finite(content), indent=indent, separators=separators, allow_nan=False)


def _finite(value: Any) -> Any:
    """Return plain data with None for each number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


def _umask() -> int:
    """Return the process's mask; there is no way to read it but to set it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


class _Loader(yaml.SafeLoader):
    """The loader of YAML whose keys are texts, as in JSON, and all different.

    Plain YAML reads a layer's name ``1.10`` as the number 1.1, which is another layer, and lets the
    second of two equal keys win.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for index, (key, value) in enumerate(node.value):
            if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
                continue
            if key.value in seen:
                raise ValueError(
                    f"line {key.start_mark.line + 1}: the key {key.value!r} comes twice; "
                    "keep one of the two"
                )
            seen.add(key.value)
            text = yaml.ScalarNode(TEXT, key.value, key.start_mark)  # an alias may share ``key``
            node.value[index] = (text, value)
        return node


def read_yaml(text: str) -> Any:
    """Return the plain data that ``text`` stands for; the keys of its mappings are strings.

    Raises:
        ValueError: not YAML, a type that is not plain, or a key that comes twice; the message is
            one line.

    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - it is a SafeLoader
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # a ValueError: a wrong date
        raise ValueError(" ".join(str(error).split())) from error
