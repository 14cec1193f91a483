"""Byte strings: what is squeezed comes back, and nothing may follow or be left over."""

import pytest
import torch
import zstandard

from octavo.errors import FormatError
from octavo.storage.streams import Stream, as_tensor, expand, squeeze


@pytest.mark.parametrize("data", [b"", b"a", bytes(1000)])
def test_squeezed_bytes_come_back(data: bytes) -> None:
    assert expand(squeeze(data), len(data), "x") == data


@pytest.mark.parametrize("data", [b"", b"a", bytes(1000)])
@pytest.mark.parametrize("more", [b"\0", b"more", squeeze(b""), squeeze(b"a")])
def test_nothing_may_follow_a_frame(data: bytes, more: bytes) -> None:
    with pytest.raises(FormatError, match=r"^x: damaged: "):
        expand(squeeze(data) + more, 1 << 20, "x")


def test_a_frame_must_say_its_size_and_keep_to_it() -> None:
    with pytest.raises(FormatError, match="x: expected at most 9 bytes, its header says 10"):
        expand(squeeze(bytes(10)), 9, "x")
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(b"")
    with pytest.raises(FormatError, match="x: expected at most 9 bytes, its header says"):
        expand(unsized, 9, "x")


def test_a_stream_hands_out_each_value_once() -> None:
    stream = Stream("x", as_tensor(bytes([1, 2, 3, 4]), torch.uint8))
    assert stream.take(3).tolist() == [1, 2, 3]
    with pytest.raises(FormatError, match="x: 1 values belong to no tensor"):
        stream.check_used_up()
    with pytest.raises(FormatError, match="x: truncated: expected 2 more values, got 1"):
        stream.take(2)
    assert stream.take(1).tolist() == [4]
    stream.check_used_up()
    assert as_tensor(b"", torch.int16).shape == (0,)
