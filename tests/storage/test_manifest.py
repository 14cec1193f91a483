"""The manifest: what a row may say, and that what is wrong with it is named."""

import json
import zlib
from typing import Any

import pytest
import torch

from octavo.errors import FormatError
from octavo.storage.manifest import checksum, read_manifest

LAYER = {
    "name": "up",
    "names": ["up.weight"],
    "shape": [4, 2, 3],
    "bits": 3,
    "groups": 2,
    "exponents": 4,
    "crc32": 7,
}
FLOAT = {"names": ["norm.bias"], "shape": [], "dtype": "float32", "crc32": 9}


def text(**changes: Any) -> bytes:
    return json.dumps({"layers": [LAYER], "floats": [FLOAT], **changes}).encode()


def test_what_is_written_is_what_is_read() -> None:
    manifest = read_manifest(text())
    assert manifest.model_dump(exclude_defaults=True) == {"layers": [LAYER], "floats": [FLOAT]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layers": [{**LAYER, "bits": 9}]},
            r"^manifest: up, layers\.0\.bits: .*less than or equal to 8",
        ),
        (
            {"layers": [{**LAYER, "groups": 3}]},
            r"^manifest: up, layers\.0: up: 3 groups do not divide the shape \[4, 2, 3\]$",
        ),
        (
            {"layers": [{**LAYER, "exponents": 2}]},
            r"^manifest: up, layers\.0: up: expected 0 or 4 exponents, got 2$",
        ),
        (
            {"layers": [{**LAYER, "grid": "apot", "bits": 4}]},
            r"up: expected 5 to 8 bits on the grid apot, got 4$",
        ),
        (
            {"layers": [{**LAYER, "grid": "fp", "bits": 5}]},
            r"up: expected 4, 6, 8 bits on the grid fp, got 5$",
        ),
        ({"layers": [{**LAYER, "name": 5}]}, r"^manifest: 5, layers\.0\.name: "),
        ({"layers": [LAYER, LAYER]}, r"^manifest: up: two tensors have this name$"),
        (
            {"floats": [{**FLOAT, "names": ["up.weight"]}]},
            r"up\.weight: two tensors have this name$",
        ),
        ({"floats": [{**FLOAT, "dtype": "float31"}]}, r"^manifest: norm\.bias, floats\.0\.dtype: "),
        ({"floats": [{**FLOAT, "shape": [-1]}]}, r"^manifest: norm\.bias, floats\.0\.shape\.0: "),
        ({"floats": None}, r"^manifest: floats: "),
    ],
)
def test_what_is_wrong_is_named(changes: Any, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        read_manifest(text(**changes))
    assert "\n" not in str(caught.value)


def test_the_checksum_is_that_of_the_bytes_in_their_order() -> None:
    a, b = torch.tensor([1, 2], dtype=torch.uint8), torch.tensor([[-2], [3]], dtype=torch.int16)
    assert checksum(a, b) == zlib.crc32(b"\x01\x02\xfe\xff\x03\x00")
    assert checksum(b.T) == zlib.crc32(b"\xfe\xff\x03\x00")
