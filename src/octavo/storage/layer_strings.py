"""The byte strings that have the codes and the exponents of all layers, in one of two codings.

- ``fast``: the codes of each width in a string, by ``octavo.storage.coding.grouped``; all exponents
  of channels in another, and how far those of groups lie below them in a third;
- ``small``: codes, and how far exponents lie below the largest of their layer, in one string, by
  ``octavo.storage.coding.small``; the largest exponent of each layer in another.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from octavo.errors import FormatError, PlanError
from octavo.formats.width import Width
from octavo.storage.coding import grouped
from octavo.storage.coding.small import Run, decode_runs, encode_runs
from octavo.storage.exponents import DROPS, joined, split
from octavo.storage.manifest import LayerRow, raw_bytes
from octavo.storage.quantized import Quantized
from octavo.storage.streams import Stream, as_tensor, expand, squeeze, string

__all__ = ["SMALL", "Coding", "layer_names", "layer_strings", "read_layer_strings"]

Coding = Literal["fast", "small"]
Strings: TypeAlias = Mapping[str, bytes]
Parts: TypeAlias = Iterator[tuple[Tensor, Tensor]]  # the codes and the exponents of each layer

EXPONENTS = "exponents"
GROUPS = "exponents.groups"
SMALL = "codes.small"


def layer_strings(layers: Mapping[str, Quantized], coding: Coding) -> dict[str, bytes]:
    """Return the byte strings of layers, by name."""
    if coding == "small" and layers:
        return _small_strings(layers)
    return {**_fast_codes(layers.values()), **_fast_exponents(layers)}


def layer_names(rows: Sequence[LayerRow], *, small: bool) -> set[str]:
    """Return the names that byte strings of these layers have."""
    if small:
        return {SMALL, EXPONENTS}
    groups = {GROUPS} if any(row.group_size for row in rows) else set()
    return {EXPONENTS, *groups, *(_codes_name(row.width) for row in rows)}


def read_layer_strings(rows: Sequence[LayerRow], blobs: Strings) -> Parts:
    """Yield the codes and the exponents of each layer.

    Raises:
        FormatError: a byte string is missing or damaged; the message has its name.

    """
    return _read_small(rows, blobs) if SMALL in blobs else _read_fast(rows, blobs)


# Fast.


def _fast_codes(layers: Iterable[Quantized]) -> dict[str, bytes]:
    """Return the codes of all layers, one byte string for each width."""
    by_width: dict[Width, list[Tensor]] = {}
    for layer in layers:
        by_width.setdefault(layer.codebook.width, []).append(layer.codes.reshape(-1))
    return {
        _codes_name(width): grouped.encode_codes(torch.cat(by_width[width]), width)
        for width in sorted(by_width)
    }


def _codes_name(width: Width) -> str:
    return f"codes.{width}"


def _fast_exponents(layers: Mapping[str, Quantized]) -> dict[str, bytes]:
    """Return the exponents of all layers, and where there are groups, those of the groups."""
    exponents = []
    groups = []
    for name, layer in layers.items():
        exponent = layer.codebook.max_exponent
        if layer.codebook.group_size:
            exponent, drops = split(exponent, name)
            groups.append(drops.reshape(-1))
        exponents.append(raw_bytes(exponent.to(torch.int16)))
    strings = {EXPONENTS: squeeze(b"".join(exponents))}
    if groups:
        strings[GROUPS] = grouped.encode_codes(torch.cat(groups), DROPS)
    return strings


def _read_fast(rows: Sequence[LayerRow], blobs: Strings) -> Parts:
    """Read the streams, which hand out each layer's codes and exponents in the order of the rows
    and must then be used up.
    """
    counts: Counter[Width] = Counter()
    for row in rows:
        counts[row.width] += row.code_count
    codes = {width: _code_stream(width, counts[width], blobs) for width in sorted(counts)}
    exponents = _exponent_stream(rows, blobs)
    drops = _drop_stream(rows, blobs)
    for row in rows:
        exponent = exponents.take(row.channel_exponents).view(row.exponent_shape[:1])
        if row.group_size:
            exponent = joined(exponent, drops.take(row.exponent_count).view(row.exponent_shape))
        yield codes[row.width].take(row.code_count), exponent
    for stream in (*codes.values(), exponents, drops):
        stream.check_used_up()


def _code_stream(width: Width, count: int, blobs: Strings) -> Stream:
    """Return the codes of all layers of one width."""
    return _decoded_stream(_codes_name(width), blobs, count, width)


def _decoded_stream(name: str, blobs: Strings, count: int, width: Width) -> Stream:
    """Return the codes of a coded stream."""
    data = string(blobs, name)
    try:
        codes = grouped.decode_codes(data, count, width)
    except FormatError as error:
        raise FormatError(f"{name}: {error}") from error
    return Stream(name, codes)


def _exponent_stream(rows: Sequence[LayerRow], blobs: Strings) -> Stream:
    """Return the exponents of all layers, int16."""
    size = sum(row.channel_exponents for row in rows) * torch.int16.itemsize
    data = expand(string(blobs, EXPONENTS), size, EXPONENTS)
    return Stream(EXPONENTS, as_tensor(data, torch.int16))


def _drop_stream(rows: Sequence[LayerRow], blobs: Strings) -> Stream:
    """Return how far the exponents of all groups lie below the largest of their channel."""
    count = sum(row.exponent_count for row in rows if row.group_size)
    if not any(row.group_size for row in rows):
        return Stream(GROUPS, torch.empty(0, dtype=torch.uint8, device="cpu"))
    return _decoded_stream(GROUPS, blobs, count, DROPS)


# Small.


def _small_strings(layers: Mapping[str, Quantized]) -> dict[str, bytes]:
    """Return the codes of all layers, how far the exponents of all channels lie below the largest
    of their layer, and those of all groups below the largest of their channel, as runs of one
    string; and the largest exponent of each layer.
    """
    largest = []
    of_channels = []
    of_groups = [torch.empty(0, dtype=torch.uint8, device="cpu")]
    for name, layer in layers.items():
        exponent = layer.codebook.max_exponent
        if layer.codebook.group_size:
            exponent, drops = split(exponent, name)
            of_groups.append(drops.reshape(-1))
        most = exponent.max()
        if int(most - exponent.min()) >= DROPS.level_count:
            raise PlanError(
                f"{name}: expected the exponents of its channels within {DROPS.level_count - 1} of "
                'each other, got others; the coding "fast" has room for them'
            )
        largest.append(raw_bytes(most.to(torch.int16)))
        of_channels.append((most - exponent).to(torch.uint8).reshape(-1))
    runs = [(layer.codes, layer.codebook.width.level_count) for layer in layers.values()]
    runs += [(torch.cat(drops), DROPS.level_count) for drops in (of_channels, of_groups)]
    return {SMALL: encode_runs(runs), EXPONENTS: squeeze(b"".join(largest))}


def _read_small(rows: Sequence[LayerRow], blobs: Strings) -> Parts:
    data = expand(string(blobs, EXPONENTS), len(rows) * torch.int16.itemsize, EXPONENTS)
    largest = Stream(EXPONENTS, as_tensor(data, torch.int16))
    channels = sum(row.channel_exponents for row in rows)
    groups = sum(row.exponent_count for row in rows if row.group_size)
    runs = [Run(tuple(row.shape), row.width.level_count) for row in rows]
    runs += [Run((count,), DROPS.level_count) for count in (channels, groups)]
    try:
        *codes, of_channels, of_groups = decode_runs(string(blobs, SMALL), runs)
    except FormatError as error:
        raise FormatError(f"{SMALL}: {error}") from error
    channel_drops = Stream(SMALL, of_channels)
    group_drops = Stream(SMALL, of_groups)
    for row, of_row in zip(rows, codes, strict=True):
        drops = channel_drops.take(row.channel_exponents).to(torch.int16)
        exponent = (largest.take(1) - drops).view(row.exponent_shape[:1])
        if row.group_size:
            of_row_groups = group_drops.take(row.exponent_count)
            exponent = joined(exponent, of_row_groups.view(row.exponent_shape))
        yield of_row, exponent
    largest.check_used_up()
