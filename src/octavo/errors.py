"""The exceptions that a user may catch; each is also the built-in exception that it refines."""

import difflib
from collections.abc import Iterable, Sequence

__all__ = [
    "BudgetError",
    "ExportError",
    "FormatError",
    "OctavoError",
    "PlanError",
    "RecipeError",
    "TrainingError",
    "brief",
    "either",
    "install",
    "nearest",
    "printable",
]

LONGEST = 2000  # characters of a message
ALIKE = 0.65  # how alike two words must be, from 0 to 1, for the one to be meant by the other
FEW = 8  # known words that a message lists
COMPILED = "_orig_mod."  # torch.compile puts it before the names of layers


class OctavoError(Exception):
    """The base of all errors of octavo: one line says what was expected, what came, and where."""

    def __str__(self) -> str:
        """Return the message, in which no name out of a file can steer the terminal or fill it."""
        text = super().__str__()
        if len(text) > LONGEST:
            text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
        return printable(text)


class PlanError(OctavoError, ValueError):
    """A plan, or a setting of a method, that does not fit the model it is used on."""


class BudgetError(OctavoError, ValueError):
    """A budget that is not well formed or that no plan can meet."""


class RecipeError(OctavoError, ValueError):
    """A recipe or a task that cannot be run as it is written."""


class FormatError(OctavoError, ValueError):
    """A file that is damaged, altered, too new or not octavo's."""


class TrainingError(OctavoError, RuntimeError):
    """Retraining that cannot go on; the message names the step."""


class ExportError(OctavoError, RuntimeError):
    """A network that a form of export cannot represent, or that the export changed; the message
    names the layer.
    """


def nearest(word: str, known: Iterable[str], *, only_alike: bool = False) -> str:
    """Return the end of a message about an unknown word: `` (the nearest is 'x')``, or the known
    words where none is spelt alike.

    Args:
        word: the unknown word, often the name of a layer.
        known: the words that are known.
        only_alike: True leaves the end empty where none is spelt alike: the message lists the known
            words itself, or they are too many to help.

    """
    words = list(known)
    near = difflib.get_close_matches(word, words, 1, ALIKE)
    if any(each.startswith(COMPILED) for each in words) and not word.startswith(COMPILED):
        return f"; pass the model before torch.compile, which puts {COMPILED!r} before names"
    if near:
        return f" (the nearest is {near[0]!r})"
    if only_alike or not words:
        return ""
    others = len(words) - FEW
    return (
        f"; expected {either(words if others < 2 else [*words[:FEW], f'one of {others} others'])}"
    )


def either(words: Sequence[str]) -> str:
    """Return words as a choice: ``a, b or c``."""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def install(extra: str) -> str:
    """Return the advice to install one of octavo's extras, true in a clone and from an index."""
    return f"install octavo with its extra {extra}"


def brief(error: BaseException) -> str:
    """Return the kind and the message of another library's error, in one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}".removesuffix(": ")


def printable(text: str) -> str:
    """Return a text with its control characters escaped, as ``repr`` does: a name out of a file may
    have some that move the cursor or turn the direction of writing.
    """
    return "".join(
        mark if mark.isprintable() else mark.encode("unicode_escape", "surrogatepass").decode()
        for mark in text
    )
