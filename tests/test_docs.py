"""README and docs do what they say: code runs, commands work, links lead somewhere.

A block that cannot run has a comment in the line above it: ``<!-- parsed only: reason -->`` for
commands that are then only parsed, ``<!-- not run: reason -->`` for code.
"""

import copy
import importlib.util
import json
import re
import runpy
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from torch import Tensor, nn
from typer.testing import CliRunner

from octavo.cli import app
from octavo.plan import Budget
from octavo.runs.recipe import Recipe, load_recipe, make_recipe
from octavo.runs.recipes import RECIPES
from octavo.runs.sections import Search
from octavo.runs.task import METHODS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
GUIDES = sorted((ROOT / "docs").glob("*.md"))
OTHERS = [ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
PAGES = [README, *GUIDES, *OTHERS]
LANGUAGES = {"python", "sh", "yaml", "json", "diff", "c"}
SLOW = {("demo",), ("run", "my_recipe.yaml")}  # commands with a test of their own, in tests/cli


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        line: the number of its first line.
        note: what the comment above it says, or nothing.

    """

    language: str
    text: str
    line: int
    note: str


def blocks(page: Path, language: str | None = None) -> list[Block]:
    content = page.read_text(encoding="utf-8")
    fence = r"(?:^<!-- (parsed only|not run): .+ -->\n)?^```(.*)\n([\s\S]*?)^```$"
    return [
        Block(found[2], found[3], content[: found.start(3)].count("\n") + 1, found[1] or "")
        for found in re.finditer(fence, content, re.MULTILINE)
        if language in (None, found[2])
    ]


def named(pages: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=lambda page: str(page.relative_to(ROOT)))


class Network(nn.Module):
    """A small convolutional network with the layer names that the pages use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 8, 2)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 3 * 3, 5)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.bn1(self.conv1(images)).relu()
        hidden = self.bn2(self.conv2(hidden)).relu()
        result: Tensor = self.fc(hidden.flatten(1))
        return result


def prepared() -> dict[str, Any]:
    """The names that the code on the pages takes for granted."""
    torch.manual_seed(0)
    model = Network().eval()
    inputs = [torch.randn(16, 1, 6, 6) for _ in range(4)]
    return {
        "model": model,
        "fresh_model": copy.deepcopy(model),
        "inputs": inputs,
        "images": inputs[0].numpy(),
        "held_out": inputs[1],
        "perplexity": lambda network, batch: float(network(batch).exp().mean()),
        "retrain": lambda network: None,
        "train_step": lambda network: None,
        "MyNetwork": Network,
    }


def execute(page: Path, block: Block, namespace: dict[str, Any]) -> None:
    lines = "\n" * (block.line - 1)  # so that a traceback has the line of the page
    exec(compile(lines + block.text, str(page), "exec"), namespace)


@named(PAGES)
def test_every_block_has_a_language_and_every_note_a_block(page: Path) -> None:
    found = blocks(page)
    assert {block.language for block in found} <= LANGUAGES
    content = page.read_text(encoding="utf-8")
    assert content.count("\n```") + content.startswith("```") == 2 * len(found)
    notes = re.findall(r"^<!-- (?:parsed only|not run)", content, re.MULTILINE)
    assert len(notes) == sum(bool(block.note) for block in found)


@named(GUIDES)
def test_the_code_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace = prepared()
    for block in blocks(page, "python"):
        if not block.note:
            execute(page, block, namespace)


# Commands


@pytest.fixture(autouse=True)
def _less_to_compute(brief_practice: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network of the task ``digits`` is trained less, and the policy practises less."""
    monkeypatch.setattr("octavo.runs.tasks.digits.EPOCHS", 1)


def words_of(block: Block) -> Iterator[list[str]]:
    for line in block.text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def parse(words: list[str]) -> None:
    """Parse a command of octavo as the command line does; read the recipe that it names."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    with group.make_context("octavo", list(words)) as context:
        command = group.get_command(context, words[0])
        assert command is not None, f"octavo {words[0]}: no such command"
        with command.make_context(words[0], words[1:], parent=context) as inner:
            parsed = inner.params
    if words[0] == "run":
        recipe = parsed["recipe"]
        places = (Path(recipe), ROOT / recipe, RECIPES / f"{recipe}.yaml")
        load_recipe(next(filter(Path.is_file, places)), parsed["overrides"] or ())


def check_other(words: list[str]) -> None:
    """Check a command that is not octavo's: its target, its script or its extras exist."""
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{re.escape(words[1])}:", makefile, re.MULTILINE), words
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]), words
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file(), words
    else:
        assert words[:2] == ["pip", "install"] or words[0] == "torchrun", words
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for extras in re.findall(r"(?:octavo|\.)\[([a-z,]+)\]", " ".join(words)):
            assert set(extras.split(",")) <= set(project["optional-dependencies"]), words


@named(PAGES)
def test_the_commands_of_a_page(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    for block in blocks(page, "sh"):
        for words in words_of(block):
            if words[0] != "octavo":
                check_other(words)
                continue
            parse(words[1:])
            if not block.note and tuple(words[1:]) not in SLOW:
                done = CliRunner().invoke(app, words[1:])
                assert done.exit_code == 0, f"{shlex.join(words)}: {done.output} {done.exception!r}"


def test_the_page_of_the_command_line_has_every_command() -> None:
    shown = {
        words[1]
        for block in blocks(ROOT / "docs/command-line.md", "sh")
        for words in words_of(block)
        if words[0] == "octavo"
    }
    commands = [command.callback for command in app.registered_commands]
    assert shown == {command.__name__ for command in commands if command}


# Recipes and JSON


@named(PAGES)
def test_every_recipe_of_a_page_is_valid(page: Path) -> None:
    for block in blocks(page, "yaml"):
        make_recipe(yaml.safe_load(block.text), f"{page.name}:{block.line}")
    for block in blocks(page, "json"):
        text = block.text if block.text.startswith("{") else f"{{{block.text}}}"
        assert isinstance(json.loads(text), dict)


def test_the_page_of_recipes_shows_every_key_with_its_default() -> None:
    (block,) = blocks(ROOT / "docs/recipes.md", "yaml")
    content = yaml.safe_load(block.text)
    shown = make_recipe(content, "docs/recipes.md")
    assert shown == Recipe(task=shown.task, bits=shown.bits)
    assert set(content) == set(Recipe.model_fields)
    for section in ("retraining", "ptq"):
        assert set(content[section]) == set(vars(getattr(shown, section)))
    (comment,) = re.findall(r"^search: null +# instead of bits: (.*)$", block.text, re.MULTILINE)
    search = yaml.safe_load(comment)
    assert set(search) == {field.name for field in fields(Search)}
    recipe = make_recipe({"task": "digits", "search": search}, "docs/recipes.md")
    assert recipe.search == Search(budget=Budget(average_bits=3))


def test_the_task_on_the_page_has_the_methods_that_a_task_needs() -> None:
    page = ROOT / "docs/recipes.md"
    (block,) = (block for block in blocks(page, "python") if "class MyTask" in block.text)
    namespace: dict[str, Any] = {}
    execute(page, block, namespace)
    assert set(METHODS) == {name for name in vars(namespace["MyTask"]) if not name.startswith("_")}


# Links


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^```[\s\S]*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@named(PAGES)
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith(("http://", "https://")):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_contributing_names_rooms_and_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    package = ROOT / "src/octavo"
    for path in re.findall(r"`((?:\w+/)+[\w.-]*|\w+\.py)`", text):
        assert any((root / path).exists() for root in (ROOT, package)), path
    rooms = {path.name for path in package.iterdir() if (path / "__init__.py").is_file()}
    assert {f"`{room}/`" for room in rooms} <= set(re.findall(r"`\w+/`", text))


def test_the_tables_are_those_of_the_committed_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = runpy.run_path(str(ROOT / "benchmarks/table.py"))
    for name, table in script["TABLES"].items():
        text = table()
        pages = [page.read_text(encoding="utf-8") for page in script["PAGES"]]
        filled = [script["fill"](page, name, text) for page in pages]
        assert any(filled), name
        assert all(new in (None, page) for page, new in zip(pages, filled, strict=True)), name


# README.md, in more detail


def test_what_the_code_of_the_readme_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    calibrate, inq, within, search, export = blocks(README, "python")
    namespace = prepared()
    namespace["images"] = torch.cat(namespace["inputs"])
    model = namespace["model"]
    before = copy.deepcopy(model.state_dict())
    execute(README, calibrate, namespace)
    assert namespace["packed"].nominal_bits == 4
    assert (tmp_path / "model.safetensors").is_file()
    net = namespace["deployed"]
    levels = torch.cat([layer.weight.flatten() for layer in (net.conv1, net.conv2, net.fc)])
    assert set(torch.frexp(levels[levels != 0].abs()).mantissa.tolist()) == {0.5}

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    calls: list[nn.Module] = []
    execute(README, inq, namespace | {"retrain": calls.append})
    assert calls == [model] * 4

    namespace = namespace | {"model": namespace["fresh_model"]}
    execute(README, within, namespace)
    assert set(map(str, namespace["packed"].plan.values())) == {"apot5"}
    assert namespace["packed"].file_bytes <= 100_000
    execute(README, search, namespace)
    assert namespace["packed"].file_bytes <= 100_000
    execute(README, export, namespace)
    assert (tmp_path / "model.onnx").is_file()


def test_every_message_of_the_troubleshooting_page_is_one_of_octavos() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    joined = [re.sub(r'"\s+f?"', "", source) for source in sources]  # literals of several lines
    messages = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    assert len(messages) > 5
    for message in messages:
        assert any(message in source for source in joined), message
