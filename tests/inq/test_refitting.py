"""The pieces in which a layer freezes while its free weights are refitted."""

from octavo.inq.refitting import PIECES, Freezing


def test_a_portion_freezes_in_equal_pieces_and_ends_exactly() -> None:
    steps = Freezing(1, 0.5, 0.75, "magnitude", 0).steps
    assert len(steps) == PIECES
    assert steps[-1] == 0.75
    assert steps[0] == 0.5 + 0.25 / PIECES
