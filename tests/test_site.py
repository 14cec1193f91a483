"""The site of docs/ is built strictly, and asks nobody for anything."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import octavo

pytest.importorskip("mkdocs", reason="the site is built by mkdocs-material")
pytest.importorskip("mkdocstrings", reason="the API reference is made by mkdocstrings")

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site. A link that leads nowhere, a page that is missing from the menu and
    a docstring that cannot be read are errors, because the build is strict.
    """
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, check=False, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_of_docs_is_a_page_of_the_site(site: Path) -> None:
    assert {page.stem for page in PAGES} == {page.stem for page in site.glob("*.html")} - {"404"}


def test_every_item_of_a_list_is_one(site: Path) -> None:
    for page in site.glob("*.html"):
        text = re.sub(r"<pre[\s\S]*?</pre>", "", page.read_text(encoding="utf-8"))
        assert not re.findall(r"^(?:\d\.|[*-]) .*", text, re.MULTILINE), page.name


def test_a_reader_asks_nobody_for_anything(site: Path) -> None:
    loaded = r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?([^\"'\s>]+)"
    loaded += r"|<link\b[^>]*rel=[\"']?(?:stylesheet|preconnect|icon)[^>]*href=[\"']?([^\"'\s>]+)"
    for page in site.glob("*.html"):
        for found in re.findall(loaded, page.read_text(encoding="utf-8")):
            assert not "".join(found).startswith(("http", "//")), page.name
    for style in site.rglob("*.css"):
        assert not re.search(r"@import|url\([\"']?(?:https?:)?//", style.read_text("utf-8")), style


def test_the_reference_has_every_public_name_once_with_its_docstring(site: Path) -> None:
    page = (site / "api.html").read_text(encoding="utf-8")
    source = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    shown = re.findall(r"^::: octavo\.(\w+)$", source, re.MULTILINE)
    assert sorted(shown) == sorted(octavo.__all__)
    assert all(f'id="octavo.{name}"' in page for name in shown)
    assert "no layer of the model can be quantized" in page  # Raises of Plan.uniform


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_paragraph_of_a_list_is_indented_so_that_it_stays_in_the_list(page: Path) -> None:
    text = re.sub(r"^```[\s\S]*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert not re.findall(r"\n\n {1,3}\S.*", text), "expected four spaces"
