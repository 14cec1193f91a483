"""Errors of recipes in words: an unknown key gets the key to write instead."""

from collections.abc import Collection, Mapping

from pydantic import ValidationError

from octavo.errors import nearest

__all__ = ["explain"]

# Keys with a value of several forms: after such a key, pydantic's errors have the form's name.
UNIONS = ("bits", "epochs")
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # pydantic's names of the error

# The words of other tools for a key.
ALIASES = {
    "batches": "portions", "bit_width": "bits", "bit_widths": "bits", "bitwidth": "bits",
    "damping": "damp", "decay": "weight_decay", "dtype": "floats", "grad_clip": "clip",
    "gradient_clip": "clip", "lr": "learning_rate", "max_norm": "clip", "model": "task",
    "n_bits": "bits", "n_trials": "trials", "network": "task", "num_bits": "bits",
    "num_epochs": "epochs", "percdamp": "damp", "plan": "bits", "random_seed": "seed",
    "schedule": "portions", "wbits": "bits", "wd": "weight_decay",
    "width": "bits", "widths": "bits",
}  # fmt: skip


def explain(error: ValidationError, sections: Mapping[str, Collection[str]]) -> str:
    """Say in one line what is wrong first with a recipe.

    Unknown keys come first, because a key that is misspelt is missing too. A value of several forms
    has an error for each form; the error that lies deepest belongs to the form that it nearly has.

    Args:
        error: the errors that pydantic found.
        sections: the known keys of each section, by its dotted name; those of the recipe itself
            by the empty name.

    """
    errors = sorted(error.errors(), key=lambda one: one["type"] not in UNKNOWN)
    same_key = [one for one in errors if one["loc"][:1] == errors[0]["loc"][:1]]
    first = max(same_key, key=lambda one: len(one["loc"]))
    place = first["loc"]
    before = ("", *place)  # what stands before each part; pydantic's names of forms are left out
    parts = [part for key, part in zip(before, place, strict=False) if key not in UNIONS]
    where = ".".join(map(str, parts))
    if first["type"] in UNKNOWN:
        *section, key = parts
        return f"unknown key {where!r}{_instead('.'.join(map(str, section)), str(key), sections)}"
    message = f"{where}: {first['msg']}".removeprefix(": ").replace("Value error, ", "", 1)
    if first["type"] in ("missing", "value_error"):  # our own messages say what they got
        return message
    return f"{message}, got {first['input']!r}"


def _instead(section: str, key: str, sections: Mapping[str, Collection[str]]) -> str:
    """Return the end of the message about an unknown key: the keys to write instead."""
    word = ALIASES.get(key, key)
    here = word in sections[section]
    places = [section] if here else [name for name, keys in sections.items() if word in keys]
    if places:
        return ": write " + " or ".join(f"{place}.{word}" if place else word for place in places)
    known = sections[section]
    return nearest(key, known, only_alike=True) or f"; expected one of {', '.join(known)}"
