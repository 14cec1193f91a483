"""What the tests of architectures share."""

import pytest


@pytest.fixture(autouse=True)
def _brief_practice(brief_practice: None) -> None:
    """Their spaces are small."""
