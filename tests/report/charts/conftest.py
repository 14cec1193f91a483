"""The charts need their extra; without it there is nothing to test here."""

from importlib.util import find_spec

import pytest

collect_ignore_glob = [] if find_spec("altair") else ["*.py"]


@pytest.fixture
def colours() -> dict[str, str]:
    return {name: f"the {name}" for name in ("paper", "ink", "muted", "line", "faint")} | {
        name: f"the {name}" for name in ("first", "second", "third", "fourth")
    }
