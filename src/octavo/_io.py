"""Files that are whole or not there, and YAML as plain data."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import yaml

__all__ = ["read_yaml", "write_atomically"]


def write_atomically(path: str | Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Let ``write`` fill a file that then takes the place of ``path``: there is the whole file, or
    what was there before.
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


def _umask() -> int:
    """The process's mask; there is no way to read it but to set it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


TEXT, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """Takes keys for text, as JSON does: YAML reads a layer's name ``1.10`` as the number 1.1,
    which is another layer.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for index, (key, value) in enumerate(node.value):
            if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
                continue
            if key.value in seen:
                raise ValueError(
                    f"line {key.start_mark.line + 1}: the key {key.value!r} comes twice; keep one of the two"
                )
            seen.add(key.value)
            node.value[index] = (
                yaml.ScalarNode(TEXT, key.value, key.start_mark),
                value,
            )  # an alias may share the old node
        return node


def read_yaml(text: str) -> Any:
    """What ``text`` says; the keys of its mappings are strings.

    Raises:
        ValueError: not YAML, a type that is not plain, or a key that comes twice; the message is
            one line.

    """
    try:
        return yaml.load(text, _Loader)
    except (
        ValueError,
        RecursionError,
        yaml.YAMLError,
    ) as error:  # an impossible date is a ValueError
        raise ValueError(" ".join(str(error).split())) from error
