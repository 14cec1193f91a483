"""The limits of a packed file: the numbers that docs/format.md and SECURITY.md state."""

import pytest
from torch import nn

from octavo.errors import FormatError
from octavo.storage.limits import check_decoded, default_limit, most_manifest_bytes


def test_a_manifest_may_expand_as_far_as_its_size_lets_it() -> None:
    assert most_manifest_bytes(0) == 1 << 16
    assert most_manifest_bytes(100) == (1 << 16) + 100 * 1024
    assert most_manifest_bytes(1 << 20) == 1 << 24


def test_a_file_may_decode_to_what_is_usual_or_to_what_its_model_has() -> None:
    assert default_limit(100) == 256 << 20
    assert default_limit(10 << 20) == 640 << 20
    large = nn.Linear(1 << 14, 1 << 13, bias=True, device="meta")  # 512 MiB and a bias
    assert default_limit(100, large) == (512 << 20) + 4 * (1 << 13)
    assert default_limit(10 << 20, large) == 640 << 20
    assert default_limit(100, nn.Linear(2, 2)) == 256 << 20


def test_as_much_as_the_limit_is_allowed() -> None:
    check_decoded(10, 10)
    with pytest.raises(FormatError, match=r"^expected at most 10 bytes once decoded, found 11; "):
        check_decoded(11, 10)
