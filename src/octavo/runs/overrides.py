"""Values of a recipe from the command line: ``key=value``, the value in YAML."""

from collections.abc import Mapping, Sequence
from typing import Any

from octavo._yaml import MOST_LEVELS, read_yaml
from octavo.errors import RecipeError
from octavo.runs.old_words import with_new_words

__all__ = ["key_value", "override", "yaml_value"]


def override(content: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Put ``key=value`` pairs into ``content``, in place; a dotted key reaches inside.

    Returns:
        ``content``.

    Raises:
        RecipeError: not a pair, not YAML, or a key inside of something that is not a mapping.

    """
    for pair in overrides:
        path, value = key_value(pair, "--set")
        keys = path.split(".")
        if len(keys) > MOST_LEVELS:
            raise RecipeError(f"--set: expected a key of at most {MOST_LEVELS} parts, got {path}")
        for key in reversed(keys):  # a.b=1 becomes {"a": {"b": 1}}
            value = {key: value}
        _put(content, with_new_words(value, "--set"), len(keys), pair)
    return content


def _put(content: dict[str, Any], value: Mapping[str, Any], depth: int, pair: str) -> None:
    """Lay ``value``, nested to ``depth``, over ``content``; replace what lies deeper."""
    for key, inner in value.items():
        if depth == 1:
            content[key] = inner
            continue
        section = content.setdefault(key, {})
        if not isinstance(section, dict):
            raise RecipeError(f"--set {pair}: {key} is not a mapping")
        _put(section, inner, depth - 1, pair)


def key_value(pair: str, flag: str) -> tuple[str, Any]:
    """Split ``key=value`` in two and read the value as YAML.

    Args:
        pair: the text.
        flag: the option of the command line that it comes from, for errors.

    Raises:
        RecipeError: it is not a pair, or the value is not YAML.

    """
    key, equals, text = pair.partition("=")
    if not equals or not key:
        raise RecipeError(f"{flag} {pair}: expected key=value")
    if not key.isprintable():
        raise RecipeError(f"{flag} {pair}: expected a key of printable text")
    return key, yaml_value(text, f"{flag} {pair}")


def yaml_value(text: str, where: str) -> Any:
    """Return the value that ``text`` has in YAML; ``where`` is the option that it comes from, for
    errors.

    Raises:
        RecipeError: it is not YAML.

    """
    try:
        return read_yaml(text)
    except ValueError as error:
        raise RecipeError(f"{where}: not a YAML value: {error}") from error
