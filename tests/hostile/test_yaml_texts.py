"""YAML that means harm, as a text, a recipe, a plan and a value of ``--set``: each is refused with
the error that stands beside it, in no time.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from octavo._yaml import MOST_BYTES, read_yaml, read_yaml_file
from octavo.errors import PlanError, RecipeError
from octavo.plan import Plan
from octavo.runs.overrides import key_value
from octavo.runs.recipe import load_recipe, make_recipe


def bomb(item: str, first: str) -> str:
    """Each line stands for ten of the line before: nine lines are a thousand million."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{n}: &a{n} {item.format(f'*a{n - 1}')}" for n in range(1, 10)]
    return "\n".join(lines)


LISTS = bomb("[" + ", ".join(["{0}"] * 10) + "]", "[x]")
MERGES = bomb("{{k: {0}, <<: [" + ", ".join(["{0}"] * 9) + "]}}", "{k: 1}")
TAGS = (
    "expected one of the tags str, int, float, bool, null, seq and map on a value of its kind, got"
)
VALUES = "expected at most 131,072 values, aliases counted in full"
LEVELS = "expected at most 32 levels, one inside of the other"
KEY = "expected a text as a key, got a list or a mapping"

TEXTS = [
    # text, line, column, error
    (LISTS, 6, 20, VALUES),
    (MERGES, 6, 23, VALUES),
    ("&a [*a]", 1, 5, "expected the anchor of a value before it, got 'a'"),
    ("{x: &a {y: *a}}", 1, 12, "expected the anchor of a value before it, got 'a'"),
    ("{<<: &a {<<: *a}}", 1, 14, "expected the anchor of a value before it, got 'a'"),
    ("*none", 1, 1, "expected the anchor of a value before it, got 'none'"),
    ("[1, *none]", 1, 5, "expected the anchor of a value before it, got 'none'"),
    ("{*none : 1}", 1, 2, "expected the anchor of a value before it, got 'none'"),
    ("[0,\n" * 32 + "[", 33, 1, LEVELS),
    ("[" * 100_000, 1, 33, LEVELS),
    ("{a: " * 50_000, 1, 129, LEVELS),
    ("- " * 50_000, 1, 65, LEVELS),
    ("? " * 50_000, 1, 3, KEY),
    ("[" + "0," * 131_072 + "]", 1, 262_144, VALUES),
    ("{" + "".join(f"{n}: 0, " for n in range(65_536)) + "}", 1, 644_249, VALUES),
    ("!!bool foo", 1, 1, "expected a value of the type bool, got 'foo'"),
    ("a: !!bool ''", 1, 4, "expected a value of the type bool, got ''"),
    ("!!int ''", 1, 1, "expected a value of the type int of at most 64 bits, got ''"),
    ("!!int x", 1, 1, "expected a value of the type int of at most 64 bits, got 'x'"),
    ("!!int 0x", 1, 1, "expected a value of the type int of at most 64 bits, got '0x'"),
    ("!!int 1.5", 1, 1, "expected a value of the type int of at most 64 bits, got '1.5'"),
    ("!!int '-'", 1, 1, "expected a value of the type int of at most 64 bits, got '-'"),
    ("!!float abc", 1, 1, "expected a value of the type float, got 'abc'"),
    ("!!float ''", 1, 1, "expected a value of the type float, got ''"),
    ("a:\n  b: !!timestamp abc", 2, 6, f"{TAGS} 'tag:yaml.org,2002:timestamp'"),
    ("!!timestamp 2001-01-01", 1, 1, f"{TAGS} 'tag:yaml.org,2002:timestamp'"),
    ("!!binary aGk=", 1, 1, f"{TAGS} 'tag:yaml.org,2002:binary'"),
    ("!!set {a}", 1, 1, f"{TAGS} 'tag:yaml.org,2002:set'"),
    ("!!omap [a: 1]", 1, 1, f"{TAGS} 'tag:yaml.org,2002:omap'"),
    ("!!pairs [a: 1]", 1, 1, f"{TAGS} 'tag:yaml.org,2002:pairs'"),
    ("!!map [1]", 1, 1, f"{TAGS} 'tag:yaml.org,2002:map'"),
    ("!!seq {a: 1}", 1, 1, f"{TAGS} 'tag:yaml.org,2002:seq'"),
    ("!!str [1]", 1, 1, f"{TAGS} 'tag:yaml.org,2002:str'"),
    ("!!map x", 1, 1, f"{TAGS} 'tag:yaml.org,2002:map'"),
    ("!mine x", 1, 1, f"{TAGS} '!mine'"),
    ("!<x:y> x", 1, 1, f"{TAGS} 'x:y'"),
    ("!!python/object/apply:os.system ['id']", 1, 1, f"{TAGS} 'tag:yaml.org,2002:python/obj"),
    ("!!python/name:os.system", 1, 1, f"{TAGS} 'tag:yaml.org,2002:python/name:os.system'"),
    ("!!python/module:os", 1, 1, f"{TAGS} 'tag:yaml.org,2002:python/module:os'"),
    ("!!python/tuple [1]", 1, 1, f"{TAGS} 'tag:yaml.org,2002:python/tuple'"),
    ("a: " + "1" * 100_000, 1, 4, "expected a value of the type int of at most 64 bits, got '111"),
    ("a: -" + "1" * 4_000, 1, 4, "expected a value of the type int of at most 64 bits, got '-11"),
    ("0x" + "f" * 100_000, 1, 1, "expected a value of the type int of at most 64 bits, got '0xf"),
    ("0x1" + "0" * 16, 1, 1, "expected a value of the type int of at most 64 bits, got '0x1"),
    ("1" + ":1" * 500_000, 1, 1, "expected a value of the type int of at most 64 bits, got '1:1"),
    ("1." + "1" * 100_000, 1, 1, "expected a value of the type float, got '1.1"),
    ("{a: 1, 'a': 2}", 1, 8, "the key 'a' comes twice; keep one of the two"),
    ("a: 1\n? a\n: 2", 2, 3, "the key 'a' comes twice; keep one of the two"),
    ("{[1]: 2}", 1, 2, KEY),
    ("{{a: 1}: 2}", 1, 2, KEY),
    ("{a: &x [1], *x : 2}", 1, 13, KEY),
    ("{<<: 1}", 1, 2, "expected a mapping, or a list of mappings, after <<"),
    ("{<<: [1]}", 1, 2, "expected a mapping, or a list of mappings, after <<"),
    ("a: 1\n---\nb: 2", 2, 1, "expected a single document, got another"),
    ("a: 1\n...\n---\n", 3, 1, "expected a single document, got another"),
    ("%YAML 1.1\n---\na: 1", 1, 1, "expected no directive, got one after %"),
    ("%TAG ! x:\n" * 50_000 + "---\na", 1, 1, "expected no directive, got one after %"),
    ("# a\n%TAG ! x:\n---\na", 2, 1, "expected no directive, got one after %"),
    ("a\n...\n" + "".join(f"%TAG !{n}! x\n" for n in range(9_000)), 3, 1, "expected no directive"),
    ("a: 1\x00", 1, 5, "expected printable text, got the character U+0000"),
    ("a: \x1b[31m", 1, 4, "expected printable text, got the character U+001B"),
    ("a:\n - \x07", 2, 4, "expected printable text, got the character U+0007"),
    ("a: \ud800", 1, 4, "expected printable text, got the character U+D800"),
    ("a: \ufffe", 1, 4, "expected printable text, got the character U+FFFE"),
    ('a: "\\uD800"', 1, 0, "while parsing a quoted scalar"),
    ("a: [", 0, 0, "while parsing a flow"),
    ("a: b: c", 1, 5, "mapping values are not allowed"),
    ("a: 'x", 0, 0, "while scanning a quoted scalar"),
    ("\t- a", 1, 1, "while scanning for the next token"),
    ("@a", 1, 1, "while scanning for the next token"),
    ("&a &b c", 0, 0, ""),
    ("a: &", 0, 0, "while scanning an anchor"),
    ("a: !<x", 0, 0, ""),
]


@pytest.mark.parametrize(
    ("text", "line", "column", "said"),
    TEXTS,
    ids=[f"{i}-{t[0][:20]!a}" for i, t in enumerate(TEXTS)],
)
def test_texts(text: str, line: int, column: int, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^line \d+, column \d+: ") as caught:
        read_yaml(text)
    message = str(caught.value)
    place, _, rest = message.partition(": ")
    assert rest.startswith(said)
    if column:  # where libyaml and PyYAML's own parser do not agree, none is given here
        assert place == f"line {line}, column {column}"
    assert "\n" not in message
    assert len(message) < 300


@pytest.mark.parametrize("text", [text for text, *_ in TEXTS[::3]], ids=range(len(TEXTS[::3])))
def test_texts_as_recipe_plan_and_setting(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(RecipeError, match=r"x\.yaml: not a readable recipe: line \d+, column \d+"):
        load_recipe(path)
    with pytest.raises(PlanError, match=r"x\.yaml: not a readable plan: line \d+, column \d+"):
        Plan.load(path)
    with pytest.raises(RecipeError, match="not a YAML value: line") as caught:
        key_value(f"options={text}", "--set")
    assert str(caught.value).isprintable()


def test_what_is_honest_is_read() -> None:
    assert read_yaml("{a: &x {k: [1, 2]}, b: *x, c: {<<: *x, m: 2024-01-01, n: =, o: <<}}") == {
        "a": {"k": [1, 2]},
        "b": {"k": [1, 2]},
        "c": {"k": [1, 2], "m": "2024-01-01", "n": "=", "o": "<<"},
    }
    assert read_yaml("!!map {a: !!seq [!!str 1, ! 2, !!int '3', !!float 4, !!null x]}") == {
        "a": ["1", "2", 3, 4.0, None]
    }
    many = read_yaml("bits:\n" + "".join(f"  layers.{n}.weight: 3\n" for n in range(50_000)))
    assert len(many["bits"]) == 50_000


def test_an_alias_is_a_copy() -> None:
    content = read_yaml("{a: &x [1], b: *x}")
    content["a"].append(2)
    assert content["b"] == [1]


FILES = [
    (b"a: \xff", "line 1, column 4: expected UTF-8, got another byte"),
    (b"a: 1\nb: \xc3", "line 2, column 4: expected UTF-8, got another byte"),
    ("a: 1".encode("utf-16"), "line 1, column 1: expected UTF-8, got another byte"),
    (b"a: \xed\xa0\x80", "line 1, column 4: expected UTF-8, got another byte"),
    (b" " * (MOST_BYTES + 1), "expected at most 4 MiB of YAML, got more"),
]


@pytest.mark.parametrize(("content", "said"), FILES, ids=[said for _, said in FILES])
def test_files(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{said}$"):
        read_yaml_file(path)


def test_a_file_without_an_end() -> None:
    with pytest.raises(RecipeError, match=r"^/dev/zero: not a readable recipe: expected at most"):
        load_recipe("/dev/zero")


RECIPE = "task: digits\nbits: 3\n"
RECIPES = [
    ("options: 3", "options: Input should be a valid dictionary, got 3"),
    ("retraining: {a.b: 1}", "unknown key 'retraining.a.b'"),
    ("search: {budget: {a.b.c: 1}}", "unknown key 'search.budget.a.b.c'"),
    ("ptq: {'': 1}", "unknown key 'ptq.'"),
    ("'': 1", "unknown key ''"),
    ("a.b: 1", "unknown key 'a.b'"),
    ("base: [1]", "[1]: not a readable recipe: No such file"),
    ('base: "a\\0b"', "not a readable recipe: embedded null"),
    ('"\\e[31m": 1', "unknown key '\\x1b[31m'"),
    ("seed: " + "9" * 19, "seed: Input should be less than 4294967296, got 9999"),
    ("seed: [" + "1, " * 100_000 + "]", "seed: Input should be a valid integer, got [1, 1"),
    ("bits: {'*': [" + "1, " * 100_000 + "]}", "bits."),
    ("portions: [.nan, 1]", "portions"),
    ("epochs: .inf", "epochs: Input should be a finite number, got inf"),
    ("warmup: -.inf", "warmup: Input should be"),
    ("publish: 3", "publish: Input should be a valid string, got 3"),
    ("task: [digits]", "task: Input should be a valid string, got ['digits']"),
]


@pytest.mark.parametrize(("text", "said"), RECIPES, ids=[said for _, said in RECIPES])
def test_recipes(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    keys = text.partition(":")[0]
    lines = [line for line in RECIPE.splitlines() if not line.startswith(keys)]
    path.write_text("\n".join([*lines, text]))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    message = str(caught.value)
    assert said in message
    assert message.startswith(str(tmp_path))
    assert message.isprintable()
    assert len(message) < 2_100


CIRCLE: dict[str, Any] = {}
CIRCLE["a"] = [CIRCLE]
OPTIONS = [
    (CIRCLE, "Circular reference"),
    ({"a": "\ud800"}, "UnicodeEncodeError"),
    ({"\udcff": 1}, "UnicodeEncodeError"),
    ({"a": object()}, "Unable to serialize unknown type"),
    (json.loads("[" * 500 + "]" * 500), "Input should be a valid dictionary"),
    ({"a": json.loads("[" * 500 + "]" * 500)}, "depth exceeded"),
]


@pytest.mark.parametrize(("options", "said"), OPTIONS, ids=[said for _, said in OPTIONS])
@pytest.mark.parametrize("key", ["options", "teacher"])
def test_options_that_no_file_can_record(key: str, options: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=f"^here: {key}: .*{said}"):
        make_recipe({"task": "digits", "bits": 3, key: options}, "here")


SETTINGS = [
    (".".join(["a"] * 10_000) + "=1", "--set: expected a key of at most 32 parts"),
    ("retraining={a.b: 1}", "unknown key 'retraining.a.b'"),
    ("a\x1b=1", r"--set a\x1b=1: expected a key of printable text"),
    ("a\udcff=1", r"--set a\udcff=1: expected a key of printable text"),
    ("seed=\udcff", r"--set seed=\udcff: not a YAML value: line 1, column 1: expected printable"),
    ("options=&a {x: *a}", "line 1, column 8: expected the anchor of a value before it"),
]


@pytest.mark.parametrize(("pair", "said"), SETTINGS, ids=[said for _, said in SETTINGS])
def test_settings(pair: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "r.yaml", [pair])
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_chain_of_bases(tmp_path: Path) -> None:
    for number in range(2_000):
        (tmp_path / f"{number}.yaml").write_text(f"base: {number + 1}.yaml")
    with pytest.raises(RecipeError, match="expected at most 16 recipes, each the base of another"):
        load_recipe(tmp_path / "0.yaml")


PLANS = [
    ("bits: {a: 9}", "a: expected 2 to 8, apot5 to apot8, fp4, fp6, fp8 or int8"),
    ("bits: {a: .nan}", "a: expected"),
    ("bits: {a: 3}\nweights: {a: -1}", "a: expected a count, got -1"),
    ("bits: {a: 3}\nweights: {a: true}", "a: expected a count, got True"),
    ("bits: {a: 3}\nweights: [1]", "expected mappings named bits, weights"),
    ("bits: {a: 3}\nmacs: {a: 0x" + "f" * 17 + "}", "line 2, column 11: expected a value of the"),
    ("bits: {a: 3}\nactivations: {a: 1}", "activations, a: expected"),
    ('bits: {"\\e[31m": 1}', r"\x1b[31m: expected 2 to 8, apot5 to apot8, fp4, fp6, fp8 or int8"),
    ('bits: {a: 3}\n"\\u202e": 1', r"got bits, \u202e"),
    ("bits: {a: [" + "1, " * 1_000 + "]}", "a: expected"),
]


@pytest.mark.parametrize(("text", "said"), PLANS, ids=[said for _, said in PLANS])
def test_plans(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(PlanError) as caught:
        Plan.load(tmp_path / "p.yaml")
    assert said in str(caught.value)
    assert str(caught.value).isprintable()
