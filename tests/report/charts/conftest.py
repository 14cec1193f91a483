"""The charts need their extra; without it there is nothing to test here."""

import pytest

collect_ignore_glob: list[str] = []
try:
    import altair  # noqa: F401
except ImportError:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def colours() -> dict[str, str]:
    return {name: f"the {name}" for name in ("paper", "ink", "muted", "line", "faint")} | {
        name: f"the {name}" for name in ("first", "second", "third", "fourth")
    }
