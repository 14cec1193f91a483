"""The words of earlier recipes, and the words that replaced them.

Old words are read for one version. A recipe that uses one gets a ``DeprecationWarning`` that names
the new word; what an earlier run left behind (``recipe.json``, ``result.json``) is read in silence.
"""

from collections.abc import Mapping
from typing import Any

from octavo._deprecated import warn_renamed
from octavo.errors import RecipeError

__all__ = ["with_new_words"]

KEYS = {"oneshot": "ptq"}
VALUES: dict[str, dict[str, str]] = {
    "method": {"oneshot": "ptq"},
    "start": {"oneshot": "ptq", "compensated": "refit"},
    "per": {"layer": "tensor"},
    "order": {"far": "orders.py:far"},  # it left the package: benchmarks/orders.py has it now
}
IGNORED = {"ptq": ("correct",)}  # section to its keys that have no effect any more


def with_new_words(content: Mapping[str, Any], where: str, *, warn: bool = True) -> dict[str, Any]:
    """Return ``content``, the keys and values of a recipe, with each old word replaced.

    Args:
        content: plain data; it is left as it was.
        where: the file or the option that ``content`` comes from, for warnings and errors.
        warn: True if an old word raises a ``DeprecationWarning``.

    Raises:
        RecipeError: a key comes under its old name and under its new one.

    """
    new_content: dict[str, Any] = {}
    for old_key, old_value in content.items():
        key = KEYS.get(old_key, old_key)
        if key in new_content or (key != old_key and key in content):
            raise RecipeError(
                f"{where}: expected the key {key!r} once, got it twice, the other time under its "
                f"old name; keep {key!r} alone"
            )
        if key != old_key and warn:
            warn_renamed(f"{where}: the key {old_key!r}", repr(key))
        new_content[key] = _new_value(key, old_value, where, warn=warn)
    return new_content


def _new_value(key: str, value: Any, where: str, *, warn: bool) -> Any:
    """Return the value of a key with its old words replaced, inside of a list or section too."""
    if key in IGNORED and isinstance(value, Mapping):
        return _without_ignored(key, value, where, warn=warn)
    if key in VALUES and isinstance(value, list | tuple):
        return [_new_value(key, one, where, warn=warn) for one in value]
    if not isinstance(value, str) or value not in VALUES.get(key, {}):
        return value
    new_value = VALUES[key][value]
    if warn:
        warn_renamed(f"{where}: {key}: {value}", f"{key}: {new_value}")
    return new_value


def _without_ignored(
    section: str, content: Mapping[str, Any], where: str, *, warn: bool
) -> dict[str, Any]:
    """Return a section without its keys that have no effect any more."""
    for key in IGNORED[section]:
        if key in content and warn:
            warn_renamed(f"{where}: the key '{section}.{key}'", "")
    return {key: value for key, value in content.items() if key not in IGNORED[section]}
