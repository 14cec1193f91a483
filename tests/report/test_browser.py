"""The pages in a real browser: headless Chromium, with the network off.

Screenshots go to ``.screenshots/``, which git ignores. Without a browser the tests are skipped.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from octavo.report.colours import DARK, LIGHT
from octavo.report.page import comparison_page, report_page, write_page
from octavo.report.record import RunRecord

pytest.importorskip("altair", reason="the charts need octavo[report]")
pytest.importorskip("vl_convert", reason="the charts need octavo[report]")
sync_api = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")

SCREENSHOTS = Path(__file__).parents[2] / ".screenshots"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PHONE = 390  # pixels
PATIENCE = 60_000  # milliseconds until a page must have been drawn, on a busy machine


def found_browser() -> str | None:
    """The browser that ``OCTAVO_BROWSER`` names, or the first one that is installed."""
    named = os.environ.get("OCTAVO_BROWSER")
    return named or next((path for path in map(shutil.which, NAMES) if path), None)


BROWSER = found_browser()
pytestmark = pytest.mark.skipif(
    BROWSER is None,
    reason="no browser: apt-get install chromium, or name one in OCTAVO_BROWSER",
)


class Opened(NamedTuple):
    """A page, and what went wrong in it or was asked for so far."""

    page: Any
    complaints: list[str]
    requests: list[str]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # A sandbox needs rights that containers do not have; the pages are our own.
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(
    tmp_path_factory: pytest.TempPathFactory,
    searched: RunRecord,
    plain: RunRecord,
    large_run: Path,
) -> dict[str, Path]:
    """The files of a run's page, of one with 500 trials and 56 layers, and of a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    content = {
        "report": report_page(searched),
        "plain": report_page(plain),
        "large": report_page(RunRecord.load(large_run)),
        "comparison": comparison_page([searched, plain]),
    }
    paths = {name: folder / f"{name}.html" for name in content}
    for name, page in content.items():
        write_page(page, paths[name])
    return paths


@pytest.fixture
def opened(browser: Any, pages: dict[str, Path]) -> Iterator[Any]:
    """Opens a page offline, waits until it is drawn, and takes a picture of it."""
    contexts = []

    def go(name: str, *, width: int = 1200, scheme: str = "light", picture: str = "") -> Opened:
        context = browser.new_context(
            viewport={"width": width, "height": 850}, color_scheme=scheme, offline=True
        )
        contexts.append(context)
        page = context.new_page()
        result = Opened(page, [], [])
        page.on("console", lambda said: result.complaints.append(f"{said.type}: {said.text}"))
        page.on("pageerror", lambda error: result.complaints.append(str(error)))
        page.on("request", lambda request: result.requests.append(request.url))
        page.goto(pages[name].as_uri())
        page.wait_for_function("document.documentElement.dataset.drawn", timeout=PATIENCE)
        SCREENSHOTS.mkdir(exist_ok=True)
        path = SCREENSHOTS / f"{picture or name}-{width}-{scheme}.png"
        page.screenshot(path=path, full_page=True)
        return result

    yield go
    for context in contexts:
        context.close()


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [
        ("report", 1200, "light"),
        ("report", 1200, "dark"),
        ("report", PHONE, "light"),
        ("report", PHONE, "dark"),
        ("comparison", 1200, "light"),
        ("comparison", PHONE, "dark"),
        ("plain", PHONE, "light"),
    ],
)
def test_a_page_opens_offline_without_a_complaint_or_a_request(
    opened: Any, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    seen = opened(name, width=width, scheme=scheme)
    assert seen.complaints == []
    assert seen.requests == [pages[name].as_uri()]
    charts = seen.page.locator("figure.chart")
    assert charts.count() > 0
    for chart in charts.all():
        assert chart.locator(".plot svg .mark-symbol, .plot svg path").count() > 0
    # Nothing is wider than the screen: only the tables scroll, in boxes of their own.
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    for plot in seen.page.locator(".plot svg").all():
        assert plot.bounding_box()["width"] <= width


@pytest.mark.parametrize(("scheme", "theme"), [("light", LIGHT), ("dark", DARK)])
def test_the_page_follows_the_system_and_the_button_turns_it(
    opened: Any, scheme: str, theme: dict[str, str]
) -> None:
    page = opened("report", scheme=scheme).page
    assert paper(page) == theme["paper"]
    assert bar(page) == theme["first"]
    page.get_by_role("button", name="Dark or light").click()
    other = LIGHT if theme is DARK else DARK
    assert (paper(page), bar(page)) == (other["paper"], other["first"])


def paper(page: Any) -> str:
    return hexadecimal(page.evaluate("getComputedStyle(document.body).backgroundColor"))


def bar(page: Any) -> str:
    """The colour of the first bar of the first chart."""
    script = "getComputedStyle(document.querySelector('.plot .mark-rect path')).fill"
    return hexadecimal(page.evaluate(script))


def hexadecimal(colour: str) -> str:
    channels = colour.removeprefix("rgb(").removesuffix(")").split(",")
    return "#" + "".join(f"{int(channel):02x}" for channel in channels)


def test_the_table_sorts_by_mouse_and_by_keyboard(opened: Any, searched: RunRecord) -> None:
    page = opened("report").page
    table = page.locator("#layer-table")
    weights = [str(row.weights) for row in searched.layers]

    def column() -> list[str]:
        return [cell.get_attribute("data-value") for cell in table.locator("td:nth-child(4)").all()]

    assert column() == weights == ["30", "18"]
    heading = table.get_by_role("button", name="weights")
    heading.click()
    assert column() == ["18", "30"]
    assert table.locator("th:nth-child(4)").first.get_attribute("aria-sort") == "ascending"
    heading.press("Enter")
    assert column() == ["30", "18"]
    assert table.locator("th:nth-child(4)").first.get_attribute("aria-sort") == "descending"


def test_pointing_at_a_trial_shows_its_plan(opened: Any, searched: RunRecord) -> None:
    page = opened("report").page
    figure = page.locator("#figure-trials")
    figure.scroll_into_view_if_needed()
    ring = figure.locator(".mark-symbol.role-mark path").last  # around the chosen plan
    box = ring.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for(timeout=PATIENCE)
    plan = ", ".join(f"{name} {bits}" for name, bits in searched.result["search"]["plan"].items())
    assert plan in tooltip.inner_text()
    page.screenshot(path=SCREENSHOTS / "tooltip.png")


def test_the_layer_of_the_histogram_is_chosen_by_keyboard(opened: Any) -> None:
    page = opened("report").page
    figure = page.locator("#figure-weights")
    before = figure.locator("svg").inner_html()
    figure.get_by_role("combobox").select_option("3")
    page.wait_for_function(
        "before => document.querySelector('#figure-weights svg').innerHTML !== before", arg=before
    )


def test_everything_has_a_name_for_those_who_do_not_see_it(opened: Any) -> None:
    page = opened("report").page
    for plot in page.locator(".plot").all():
        assert len(plot.get_attribute("aria-label")) > 40
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator("h1").count() == page.locator("main").count() == 1
    for table in page.locator("table").all():
        assert table.locator("caption").inner_text()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"


def test_on_paper_the_page_is_light_and_whole(opened: Any) -> None:
    page = opened("report", scheme="dark").page
    page.emulate_media(media="print", color_scheme="dark")
    assert paper(page) == LIGHT["paper"]
    assert page.locator("nav").is_hidden()
    assert page.locator("#figure-trials svg").is_visible()
    page.pdf(path=SCREENSHOTS / "report.pdf")


def test_a_large_search_is_drawn_in_time(opened: Any) -> None:
    seen = opened("large")
    assert seen.complaints == []
    milliseconds = int(seen.page.locator("html").get_attribute("data-drawn"))
    assert milliseconds < 10_000, "2 seconds on an idle machine; this one may be busy"
    print(f"a page of 500 trials and 56 layers was drawn in {milliseconds} ms")  # noqa: T201
