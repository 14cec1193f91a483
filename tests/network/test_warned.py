"""Warnings that are given once."""

import warnings

from octavo.network.warned import warn, warning_once


def test_a_warning_is_given_once_within_the_outermost_block() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with warning_once():
            warn("one")
            with warning_once():
                warn("one")
                warn("two")
            warn("two")
        warn("one")
    assert [str(one.message) for one in told] == ["one", "two", "one"]
