"""What several tests of INQ ask pytest for."""

import pytest

import octavo.inq.refitting


@pytest.fixture
def _few_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what does not depend on them: in fewer pieces a stage takes less time."""
    monkeypatch.setattr(octavo.inq.refitting, "PIECES", 2)
