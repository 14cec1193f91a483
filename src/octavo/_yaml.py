"""YAML as plain data: the one loader for recipes, plans and values of the command line.

A file may come from a stranger, so everything is bounded: its bytes, its depth, and the number of
its values, where an alias counts as much as what it stands for. Only the core tags are read.
"""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeAlias

import yaml

__all__ = ["MOST_BYTES", "MOST_LEVELS", "MOST_VALUES", "read_yaml", "read_yaml_file"]

MOST_BYTES = 4 << 20
MOST_VALUES = 1 << 17
MOST_LEVELS = 32
LONGEST_NUMBER = 80  # characters; 64 binary digits have room
INTEGER_BITS = 64

TAG = "tag:yaml.org,2002:"
MERGE = TAG + "merge"
TEXT = TAG + "str"
FLOAT = TAG + "float"
# A float of YAML 1.2; version 1.1 asks for a dot and a sign: 1.0e+9 instead of 1e9.
EXPONENT = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+")
COLLECTIONS = {yaml.SequenceStartEvent: TAG + "seq", yaml.MappingStartEvent: TAG + "map"}

# libyaml's parser where PyYAML was built with it: the same events, twenty times as fast.
PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
RESOLVER: Any = yaml.resolver.Resolver()
CONSTRUCTOR = yaml.constructor.SafeConstructor()
SCALARS = {
    TAG + "null": CONSTRUCTOR.construct_yaml_null,
    TAG + "bool": CONSTRUCTOR.construct_yaml_bool,
    TAG + "int": CONSTRUCTOR.construct_yaml_int,
    FLOAT: CONSTRUCTOR.construct_yaml_float,
}
NUMBERS = (TAG + "int", FLOAT)

Event: TypeAlias = Any  # PyYAML's events have no types


class _Value(NamedTuple):
    """A value that has an anchor: what it is, how many values are in it, and, for a scalar, its
    text, which is the key where an alias is one.
    """

    content: Any
    size: int
    text: str | None


def read_yaml_file(path: str | Path) -> Any:
    """Return the plain data in a file: see :func:`read_yaml`.

    Raises:
        OSError: the file cannot be read.
        ValueError: as :func:`read_yaml`, or the file is not in UTF-8.

    """
    with Path(path).open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    _check_size(len(content))
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        before = content[: error.start].decode()
        raise ValueError(f"{_place(before)}: expected UTF-8, got another byte") from error
    return read_yaml(text)


def read_yaml(text: str) -> Any:
    """Return the plain data that ``text`` stands for: None, bools, numbers, texts, lists, and dicts
    whose keys are texts, as in JSON, and all different.

    Plain YAML reads a layer's name ``1.10`` as the number 1.1, which is another layer, and lets the
    second of two equal keys win. A date is a text.

    Raises:
        ValueError: not YAML, more than the limits allow, a tag that is not a core one, or a key
            that comes twice; the message is one line, and begins with the line and the column.

    """
    _check_characters(text)
    try:
        return _Reader(yaml.parse(text, PARSER)).read()
    except yaml.MarkedYAMLError as error:
        said = ", ".join(part for part in (error.context, error.problem) if part)
        raise ValueError(f"{_at(error.problem_mark)}: {said}") from error


class _Reader:
    """Makes data of YAML's events, as they come."""

    def __init__(self, events: Iterator[Event]) -> None:
        self._events = events
        self._anchors: dict[str, _Value] = {}
        self._size = 0  # values so far

    def read(self) -> Any:
        """Return the content of the only document; of an empty text, None."""
        next(self._events)  # the stream begins
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        content = self._value(next(self._events), 0)
        next(self._events)  # the document ends
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            _refuse(event, "expected a single document, got another")
        return content

    def _value(self, event: Event, level: int) -> Any:
        """Return the value that begins with an event; it lies inside of ``level`` others."""
        before = self._size
        self._count(event, 1)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if isinstance(event, yaml.ScalarEvent):
            content = _scalar(event)
        else:
            content = self._collection(event, level)
        if event.anchor:
            text = getattr(event, "value", None)
            self._anchors[event.anchor] = _Value(content, self._size - before, text)
        return content

    def _count(self, event: Event, size: int) -> None:
        self._size += size
        if self._size > MOST_VALUES:
            _refuse(event, f"expected at most {MOST_VALUES:,} values, aliases counted in full")

    def _alias(self, event: Event) -> Any:
        known = self._known(event)
        self._count(event, known.size)
        return copy.deepcopy(known.content)

    def _known(self, event: Event) -> _Value:
        """Return the value that an alias stands for. A value is known once it is complete, so none
        contains itself.
        """
        if event.anchor not in self._anchors:
            _refuse(event, f"expected the anchor of a value before it, got {event.anchor[:80]!r}")
        return self._anchors[event.anchor]

    def _collection(self, event: Event, level: int) -> Any:
        """Return a list or a dict."""
        if level == MOST_LEVELS:
            _refuse(event, f"expected at most {MOST_LEVELS} levels, one inside of the other")
        if event.tag not in (None, "!", COLLECTIONS[type(event)]):
            _refuse_tag(event)
        if isinstance(event, yaml.SequenceStartEvent):
            return [self._value(item, level + 1) for item in self._until(yaml.SequenceEndEvent)]
        return self._mapping(level + 1)

    def _mapping(self, level: int) -> dict[str, Any]:
        content: dict[str, Any] = {}
        merged: dict[str, Any] = {}  # by the key <<; a key of the mapping itself goes first
        for event in self._until(yaml.MappingEndEvent):
            key = self._key(event)
            value = self._value(next(self._events), level)
            if _is_merge(event):
                merged = {**_mappings(value, event), **merged}
            elif key in content:
                _refuse(event, f"the key {key[:80]!r} comes twice; keep one of the two")
            else:
                content[key] = value
        return {**merged, **content}

    def _key(self, event: Event) -> str:
        """Return a key, as it is written."""
        self._count(event, 1)
        text: str | None = None
        if isinstance(event, yaml.AliasEvent):
            text = self._known(event).text
        elif isinstance(event, yaml.ScalarEvent):
            text = event.value
            if event.anchor:
                self._anchors[event.anchor] = _Value(_scalar(event), 1, text)
        if text is None:
            _refuse(event, "expected a text as a key, got a list or a mapping")
        return text

    def _until(self, end: type) -> Iterator[Event]:
        """Yield the first event of each item, up to the end of the collection."""
        while not isinstance(event := next(self._events), end):
            yield event


def _scalar(event: Event) -> Any:
    """Return a scalar by its tag, or by what it looks like where it has none and no quotes."""
    tag = event.tag
    if tag is None:
        tag = RESOLVER.resolve(yaml.ScalarNode, event.value, event.implicit)
        is_float = event.implicit[0] and EXPONENT.fullmatch(event.value)
        tag = FLOAT if is_float else tag if tag in SCALARS else TEXT
    if tag in ("!", TEXT):
        return event.value
    if tag not in SCALARS:
        _refuse_tag(event)
    try:
        if tag in NUMBERS and len(event.value) > LONGEST_NUMBER:
            raise ValueError
        value = SCALARS[tag](yaml.ScalarNode(tag, event.value))
        if isinstance(value, int) and value.bit_length() > INTEGER_BITS:
            raise ValueError
    except (ValueError, LookupError):
        kind = tag.removeprefix(TAG)
        limit = f" of at most {INTEGER_BITS} bits" if kind == "int" else ""
        _refuse(event, f"expected a value of the type {kind}{limit}, got {event.value[:80]!r}")
    return value


def _is_merge(event: Event) -> bool:
    """Tell if a key stands for the keys of other mappings."""
    if not isinstance(event, yaml.ScalarEvent) or event.tag not in (None, MERGE):
        return False
    return event.tag == MERGE or bool(event.implicit[0] and event.value == "<<")


def _mappings(value: Any, event: Event) -> dict[str, Any]:
    """Return the keys of one mapping or of several, the first of which goes first."""
    content: dict[str, Any] = {}
    for mapping in reversed(value if isinstance(value, list) else [value]):
        if not isinstance(mapping, dict):
            _refuse(event, "expected a mapping, or a list of mappings, after <<")
        content |= mapping
    return content


def _check_size(size: int) -> None:
    if size > MOST_BYTES:
        raise ValueError(f"expected at most {MOST_BYTES >> 20} MiB of YAML, got more")


def _check_characters(text: str) -> None:
    """Raise ValueError where a text is too long, or has what no YAML has."""
    _check_size(len(text))
    if bad := yaml.reader.Reader.NON_PRINTABLE.search(text):
        what = f"the character U+{ord(bad[0]):04X}"
        raise ValueError(f"{_place(text[: bad.start()])}: expected printable text, got {what}")
    # Directives give tags other names, one by one in a time that grows with their square.
    if bad := re.search("^%", text, re.MULTILINE):
        raise ValueError(f"{_place(text[: bad.start()])}: expected no directive, got one after %")


def _refuse_tag(event: Event) -> NoReturn:
    known = "str, int, float, bool, null, seq and map"
    _refuse(
        event, f"expected one of the tags {known} on a value of its kind, got {event.tag[:80]!r}"
    )


def _refuse(event: Event, said: str) -> NoReturn:
    raise ValueError(f"{_at(event.start_mark)}: {said}")


def _at(mark: Any) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _place(before: str) -> str:
    """Return the line and the column behind a text."""
    lines = before.split("\n")
    return f"line {len(lines)}, column {len(lines[-1]) + 1}"
