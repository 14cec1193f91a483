"""The colours: every text can be read on both papers."""

import pytest

from octavo.report.colours import DARK, LIGHT, variables


def luminance(colour: str) -> float:
    """The relative luminance of WCAG 2."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("paper", ["paper", "raised"])
def test_texts_and_marks_have_contrast(theme: dict[str, str], paper: str) -> None:
    for text in ("ink", "muted", "link", "first", "second", "third", "fourth"):
        assert contrast(theme[text], theme[paper]) >= 4.5, text
    assert contrast(theme["faint"], theme[paper]) >= 3  # of graphics


def test_both_themes_have_the_same_colours_and_the_page_names_them() -> None:
    assert set(LIGHT) == set(DARK)
    assert variables()["ink"] == "var(--ink)"
