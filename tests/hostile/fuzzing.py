"""Files and texts made of bytes that a fuzzer chooses, and what must hold for each of them.

A packed file is not mutated blindly: its parts are taken apart, changed, and put together again
with the checksums that belong to them, so that the code behind the checksums is reached. The bytes
of the fuzzer are a list of decisions; hypothesis and atheris shorten and mutate them alike.
"""

import copy
import json
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import zstandard
from tests.hostile.forging import DATA, Strings, container, manifest_of, squeeze, strings_of

from octavo._yaml import MOST_VALUES, read_yaml
from octavo.errors import FormatError, RecipeError
from octavo.runs.recipe import Recipe, make_recipe
from octavo.storage.container import pack, to_file, unpack
from octavo.storage.packed import Packed

LIMIT = 1 << 20  # bytes that a file may decode to
GOLDEN = Path(__file__).parent.parent / "storage/data"
BASES = [DATA, *(path.read_bytes() for path in sorted(GOLDEN.glob("golden-v*.safetensors")))]

NUMBERS = (0, 1, 2, 3, 5, 8, 9, 255, -1, 1 << 15, 1 << 31, 1 << 40, 1 << 62, 1 << 64, 10**40)
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    "",
    "a",
    "conv",
    "\x1b[2J\u202e",
    1.5,
    [],
    {},
    [[]],
    [1],
    [0, 2],
    ["a"],
)
WIDTHS = ("3", "5", "4", "apot5", "apot6", "9", "")


@dataclass
class Decisions:
    """Hands out the fuzzer's bytes as decisions; once they are used up, the first choice."""

    data: bytes
    position: int = field(default=0)

    def below(self, count: int) -> int:
        """Return a number from 0 to ``count - 1``."""
        byte = self.data[self.position : self.position + 1]
        self.position += 1
        return byte[0] % count if byte else 0

    def one(self, choices: Any) -> Any:
        """Return one of several."""
        return choices[self.below(len(choices))]

    def changed(self, content: bytes) -> bytes:
        """Return bytes with some replaced, dropped, doubled or added."""
        place = self.below(256) * len(content) // 256
        fresh = bytes(self.below(256) for _ in range(self.below(4)))
        how = self.below(4)
        if how == 0:
            return content[:place] + fresh + content[place + len(fresh) :]
        if how == 1:
            return content[:place] + fresh + content[place:]
        return content[:place] if how == 2 else content + content[place:]


def forged_file(decisions: Decisions) -> tuple[bytes, bool]:
    """Return a packed file with some parts changed, and whether all of its checksums were left as
    they were: such a file is read as it was, or not at all.
    """
    base = decisions.one(BASES)
    strings = strings_of(base)
    head = json.loads(
        json.loads(base[8:][: int.from_bytes(base[:8], "little")])["__metadata__"]["octavo"]
    )
    manifest = manifest_of(strings)
    signs = bool(decisions.below(8))
    for _ in range(1 + decisions.below(4)):
        decisions.one((_change_row, _change_row, _change_stream, _change_string, _change_entry))(
            decisions, manifest, strings
        )
    if not signs:
        return decisions.changed(container(strings, {"octavo": json.dumps(head)})), True
    strings["manifest"] = squeeze(json.dumps(manifest).encode())
    head["manifest_crc32"] = zlib.crc32(strings["manifest"])
    if not decisions.below(8):
        head[decisions.one(("version", "x", "manifest_crc32"))] = decisions.one(NUMBERS + VALUES)
    return container(strings, {"octavo": json.dumps(head)}), False


def _change_row(decisions: Decisions, manifest: Any, strings: Strings) -> None:
    """Change a field of a tensor, or the number of its rows."""
    rows = manifest[decisions.one(("layers", "floats"))]
    if not isinstance(rows, list) or not rows:
        return
    row = decisions.one(rows)
    how = decisions.below(8)
    if how == 0:
        rows.append(decisions.one((row, copy.copy(row), decisions.one(VALUES))))
    elif how == 1:
        rows.remove(row)
    elif isinstance(row, dict):
        key = decisions.one((*row, "x", "grid"))
        row[key] = _changed_value(decisions, row.get(key))


def _changed_value(decisions: Decisions, value: Any) -> Any:
    if isinstance(value, list) and value and decisions.below(2):
        place = decisions.below(len(value))
        return [*value[:place], _changed_value(decisions, value[place]), *value[place + 1 :]]
    if isinstance(value, int) and decisions.below(2):
        return value + decisions.one((1, -1, value, 256))
    return decisions.one(NUMBERS + VALUES)


def _change_stream(decisions: Decisions, manifest: Any, strings: Strings) -> None:
    """Change what is inside of a compressed string, or of its header, and sign it again."""
    name = decisions.one(sorted(strings))
    blob = strings[name]
    if not name.startswith("codes."):
        strings[name] = squeeze(decisions.changed(_unsqueezed(blob)))
        return
    bits, count, rounds = struct.unpack_from("<BQB", blob, 4) if len(blob) > 13 else (3, 1, 0)
    start = 14 + rounds
    dropped, content = blob[14:start], _unsqueezed(blob[start:])
    how = decisions.below(4)
    if how == 0:
        dropped = decisions.changed(dropped)
        rounds = len(dropped)
    elif how == 1:
        count = decisions.one(NUMBERS[:13]) & (1 << 63)
    else:
        content = decisions.changed(content)
    body = struct.pack("<BQB", bits, count, rounds % 256) + dropped + squeeze(content)
    strings[name] = struct.pack("<I", zlib.crc32(body)) + body


def _unsqueezed(blob: bytes) -> bytes:
    try:
        return zstandard.ZstdDecompressor().decompress(blob, max_output_size=LIMIT)
    except zstandard.ZstdError:
        return blob


def _change_string(decisions: Decisions, manifest: Any, strings: Strings) -> None:
    """Change a byte string as it is stored, drop it, or store it under another name."""
    name = decisions.one(sorted(strings))
    how = decisions.below(3)
    if how == 0:
        strings[name] = decisions.changed(strings[name])
    elif how == 1 and name != "manifest":
        del strings[name]
    else:
        strings[f"codes.{decisions.one(WIDTHS)}"] = strings[name]


def _change_entry(decisions: Decisions, manifest: Any, strings: Strings) -> None:
    """Change an entry of the manifest, and let the checksum of floats follow their bytes."""
    if decisions.below(2):
        manifest[decisions.one(("layers", "floats", "activations", "x"))] = decisions.one(VALUES)
        return
    rows, blob = manifest.get("floats"), strings.get("floats", b"")
    if isinstance(rows, list) and rows and isinstance(rows[0], dict):
        rows[0]["crc32"] = zlib.crc32(blob[: decisions.below(64)])


def check_packed(data: bytes) -> None:
    """Check that the file these decisions make is refused by name, or read and written again as the
    same network.
    """
    file, unsigned = forged_file(Decisions(data))
    said = ""
    try:
        layers, floats, activations = unpack(file, LIMIT)
    except FormatError as error:
        said = str(error)
    if said:
        assert said.isprintable()
        return
    packed = Packed(layers, floats, activations)
    assert all(bool(layer.weight().isfinite().all()) for layer in layers.values())
    again = Packed(*unpack(to_file(*pack(layers, floats, activations)), LIMIT))
    assert same(packed, again)
    if unsigned:
        assert any(same(packed, Packed(*unpack(base))) for base in BASES)


def same(one: Packed, other: Packed) -> bool:
    """Tell if two networks are the same, bit for bit."""
    if one.layers.keys() != other.layers.keys() or len(one.floats) != len(other.floats):
        return False
    return (
        all(
            layer.names == other.layers[name].names
            and layer.groups == other.layers[name].groups
            and torch.equal(layer.weight(), other.layers[name].weight())
            for name, layer in one.layers.items()
        )
        and all(
            names == others and value.dtype == values.dtype and _bits(value) == _bits(values)
            for (names, value), (others, values) in zip(one.floats, other.floats, strict=True)
        )
        and dict(one.activations) == dict(other.activations)
    )


def _bits(value: torch.Tensor) -> tuple[torch.Size, bytes]:
    return value.shape, value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def check_yaml(data: bytes) -> None:
    """Check that a text is refused with its place, or is bounded plain data that can be a recipe's,
    which is one or is refused by name.
    """
    text = data.decode(errors="replace")
    said = ""
    try:
        content = read_yaml(text)
    except ValueError as error:
        said = str(error)
    if said:
        assert said.startswith("line ")
        return
    assert _plain_values(content) <= MOST_VALUES
    if isinstance(content, dict):
        _check_recipe(content)


def _check_recipe(content: dict[str, Any]) -> None:
    said = ""
    try:
        recipe = make_recipe({"task": "digits", "bits": 3} | content, "here")
    except RecipeError as error:
        said = str(error)
    if said:
        assert said.startswith("here: ")
        return
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def _plain_values(content: Any) -> int:
    """Count the values in plain data, after a check that it is plain."""
    if isinstance(content, dict):
        assert all(isinstance(key, str) for key in content)
        return 1 + sum(map(_plain_values, content.values()))
    if isinstance(content, list):
        return 1 + sum(map(_plain_values, content))
    assert content is None or isinstance(content, bool | int | float | str)
    return 1
