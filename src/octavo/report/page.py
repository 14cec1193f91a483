"""The page of a run and that of a comparison: one HTML file each that needs nothing else.

The templates, the style and the script of the page lie in ``templates/``.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from octavo._io import check_output, write_atomically
from octavo.errors import OctavoError
from octavo.report import drawing
from octavo.report.caveats import caveats
from octavo.report.colours import DARK, LIGHT, variables
from octavo.report.course import plan_words
from octavo.report.record import RunRecord
from octavo.runs.metric import metric_text

__all__ = ["PAGE", "comparison_page", "report_page", "write_page"]

PAGE = "report.html"  # the name of the page in a run's folder


def report_page(record: RunRecord) -> str:
    """Return the page of a run as HTML.

    Without the libraries of the charts, the page has its tables only, and says so.
    """
    figures = drawing.figures_of(record, variables()) if _can_draw() else {}
    sections = {name: [_embedded(each) for each in some] for name, some in figures.items()}
    return _rendered(
        "report.html",
        record=record,
        result=record.result,
        sections=sections,
        caveats=caveats(record),
        plan=plan_words({row.name: row.bits for row in record.layers if row.bits is not None}),
        search=_search(record),
        seconds=record.details.get("seconds", {}),
        skipped=_by_reason(record),
        recipe=yaml.safe_dump(record.recipe, sort_keys=False),
        files=_files(record.folder),
    )


def comparison_page(records: Sequence[RunRecord]) -> str:
    """Return the page that compares runs, as HTML.

    Raises:
        OctavoError: the libraries of the charts are missing; the message says how to install them.

    """
    drawing.require_charts("octavo compare")
    figures = drawing.comparison_figures(records, variables())
    names = list(dict.fromkeys(row.name for record in records for row in record.layers))
    return _rendered(
        "comparison.html",
        records=records,
        sections={"front": [_embedded(figure) for figure in figures]},
        networks=len({record.result.get("float_digest") for record in records}),
        layers=[(name, [_bits_of(record, name) for record in records]) for name in names],
        differences=_differences([record.recipe for record in records]),
    )


def _search(record: RunRecord) -> dict[str, Any] | None:
    """Return what the result says of the search; older versions wrote less."""
    search = record.result.get("search")
    return {"finalists": [], "held_out": 0} | search if search else None


def write_page(page: str, path: Path) -> None:
    """Write a page, whole or not at all."""
    check_output(path)
    write_atomically(path, lambda file: file.write(page.encode()))


def _can_draw() -> bool:
    try:
        drawing.require_charts("the report")
    except OctavoError:
        return False
    return True


def _embedded(figure: Any) -> dict[str, Any]:
    """Return a figure as a template shows it."""
    return {
        "name": figure.name,
        "title": figure.title,
        "caption": figure.caption,
        "height": figure.height,
        "spec": drawing.page_spec(figure),
    }


def _rendered(template: str, **content: Any) -> str:
    drawn = any(content["sections"].values())
    return (
        _environment()
        .get_template(template)
        .render(
            **content,
            light=LIGHT,
            dark=DARK,
            script=drawing.chart_script() if drawn else "",
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("octavo.report"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = lambda value: f"{value:,.0f}"
    environment.filters["metric"] = metric_text
    environment.filters["bits"] = lambda value: f"{value:.2f}"
    environment.filters["percent"] = lambda value: f"{value:.1%}"
    environment.filters["short"] = lambda value: f"{value:.3g}"
    return environment


def _by_reason(record: RunRecord) -> list[dict[str, Any]]:
    """Return what stays in float: one row for each reason."""
    reasons: dict[str, list[dict[str, Any]]] = {}
    for skip in record.details.get("skipped", []):
        reasons.setdefault(skip["reason"], []).append(skip)
    return [
        {
            "reason": reason,
            "parameters": len(skips),
            "weights": sum(skip["weights"] for skip in skips),
            "example": skips[0]["name"],
        }
        for reason, skips in reasons.items()
    ]


def _files(folder: Path) -> list[tuple[str, int]]:
    """Return the files of a run that a user may want, with their bytes."""
    endings = (".safetensors", ".onnx", ".yaml")
    found = [path for path in sorted(folder.glob("*")) if path.suffix in endings]
    return [(path.name, path.stat().st_size) for path in found]


def _bits_of(record: RunRecord, name: str) -> Any:
    """Return the width of a layer in a run, as a table shows it."""
    for row in record.layers:
        if row.name == name:
            return "float" if row.bits is None else row.bits
    return "-"


def _differences(recipes: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return the keys in which recipes differ, each with the value of every recipe."""
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    differing = []
    for key in keys:
        values = [_value(recipe.get(key)) for recipe in recipes]
        if len(set(values)) > 1 and key != "publish":
            differing.append((key, values))
    return differing


def _value(value: Any) -> str:
    """Return a recipe's value on one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")
