"""YAML as octavo reads it: plain data, keys as texts, and everything bounded."""

from typing import Any

import pytest

from octavo._yaml import read_yaml


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("", None),
        ("{a: [1, 0.5, yes, ~, x]}", {"a": [1, 0.5, True, None, "x"]}),
        ("[1e9, -2E-3, 1.5e3, .5e1, '1e9', 1e, e9]", [1e9, -2e-3, 1500.0, 5.0, "1e9", "1e", "e9"]),
        (
            "{0: 1, 1.10: 2, no: 3, ~: 4, 010: 5, 2024-01-01: 6}",
            {"0": 1, "1.10": 2, "no": 3, "~": 4, "010": 5, "2024-01-01": 6},
        ),
        ("a: {0: {1: 2}}", {"a": {"0": {"1": 2}}}),
        ("{1.1: 1, 1.10: 2}", {"1.1": 1, "1.10": 2}),
        ("{a: &x 3, *x : 4}", {"a": 3, "3": 4}),  # the value stays a number
        (
            "{a: &x {k: 1, l: 2}, b: {<<: *x, k: 3}}",
            {"a": {"k": 1, "l": 2}, "b": {"k": 3, "l": 2}},
        ),  # over it, not twice
        ("{a: {b: &x {<<: {k: 1}, k: 2}}, c: {<<: *x}}", {"a": {"b": {"k": 2}}, "c": {"k": 2}}),
        ("[{a: 1}, {a: 2}]", [{"a": 1}, {"a": 2}]),
    ],
)
def test_what_is_read(text: str, content: Any) -> None:
    assert read_yaml(text) == content


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' comes twice; keep one of the two"),
        ("x:\n  - {a: 1,\n     'a': 1}", "line 3, column 6: the key 'a' comes twice; keep one"),
        ("{0: 1, '0': 2}", "line 1, column 8: the key '0' comes twice; keep one of the two"),
        ("a: [", r"line \d, column \d: while parsing a flow node"),
        ("[" * 1000, "line 1, column 33: expected at most 32 levels"),
        ("{[1]: 2}", "line 1, column 2: expected a text as a key, got a list or a mapping"),
        ("!!python/object/apply:os.getcwd []", "line 1, column 1: expected one of the tags str"),
    ],
)
def test_what_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}") as caught:
        read_yaml(text)
    assert "\n" not in str(caught.value)
