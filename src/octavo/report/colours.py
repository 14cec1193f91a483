"""The colours of the page and of its charts: the only place where they are written down.

The series are those of Okabe and Ito, which people with colour blindness can tell apart; no chart
says anything by colour alone.
"""

from typing import Final

__all__ = ["DARK", "LIGHT", "variables"]

LIGHT: Final = {
    "paper": "#ffffff",
    "raised": "#f6f7f9",
    "ink": "#1b1f24",
    "muted": "#57606a",
    "line": "#d0d7de",
    "link": "#0a58ca",
    "first": "#0072b2",
    "second": "#b34700",
    "third": "#00704f",
    "fourth": "#a0387a",
    "faint": "#6f8aa1",
}
DARK: Final = {
    "paper": "#14171b",
    "raised": "#1d2127",
    "ink": "#e8eaed",
    "muted": "#a3abb5",
    "line": "#3a414a",
    "link": "#7ab8ff",
    "first": "#56b4e9",
    "second": "#ff9b54",
    "third": "#2fc79a",
    "fourth": "#e794c4",
    "faint": "#8496a6",
}


def variables() -> dict[str, str]:
    """Return the colours as references to the style sheet's variables: they follow its theme."""
    return {name: f"var(--{name})" for name in LIGHT}
