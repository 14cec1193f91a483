"""The checksum of run state: checkpoints, the JSON files of a run, and the lines of a journal.

Each of them is a mapping of plain values and tensors. It carries a checksum of all the rest under
the key ``checksum``, which is compared before any of it is used. The checksum tells damage from
what was written; it is no protection against someone who computes it anew.
"""

from collections.abc import Mapping
from typing import Any

from octavo.network.digest import digest

__all__ = ["KEY", "check", "sealed"]

KEY = "checksum"
WORDS: Mapping[type, str] = {
    int: "an integer",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a mapping",
    Mapping: "a mapping",
}


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content with its checksum."""
    return {**content, KEY: _checksum(content)}


def check(content: object, schema: Mapping[str, type | tuple[type, ...]], *, old: bool) -> None:
    """Check a content before it is used: its checksum, and the types of its values.

    Args:
        content: what was read.
        schema: the type of the value of each key that the content must have.
        old: accept a content without a checksum, as earlier versions wrote it.

    Raises:
        ValueError: the content is damaged; the message says what was found.

    """
    if not isinstance(content, Mapping):
        raise ValueError(f"expected a mapping, got {type(content).__name__}")
    if KEY not in content and not old:
        raise ValueError("expected a checksum, found none")
    if KEY in content and content[KEY] != _checksum(content):
        raise ValueError("its checksum is not that of its content")
    for key, types in schema.items():
        value = content.get(key)
        if not isinstance(value, types) or isinstance(value, bool):
            raise ValueError(f"expected {_named(types)} called {key}, got {_shown(value)}")


def _named(types: type | tuple[type, ...]) -> str:
    first = types[-1] if isinstance(types, tuple) else types
    return WORDS.get(first, first.__name__)


def _shown(value: object) -> str:
    """Return a value for a message, or its kind if it is long."""
    text = repr(value) if isinstance(value, str | int | float | None) else ""
    return text if 0 < len(text) < 40 else type(value).__name__


def _checksum(content: Mapping[str, Any]) -> str:
    return digest({key: value for key, value in content.items() if key != KEY})
