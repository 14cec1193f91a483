"""Charts for the page, and as SVG and PNG for a paper; this is where the extra is needed.

The page embeds Vega, Vega-Lite and Vega-Embed, which vl-convert brings as one script of 0.9 MB.
"""

import json
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from octavo._io import write_atomically
from octavo.errors import OctavoError, install
from octavo.report.colours import LIGHT, variables
from octavo.report.course import Course
from octavo.report.record import RunRecord

if TYPE_CHECKING:
    from octavo.report.charts.theme import Colours, Figure

__all__ = [
    "chart_script",
    "comparison_figures",
    "figures_of",
    "page_spec",
    "require_charts",
    "save_figures",
]

LIBRARIES = ("altair", "vl_convert")
SCRIPT = "window.vegaEmbed = vegaEmbed;"  # what the page calls
WIDTH = 640  # pixels of a figure in a file
PNG_SCALE = 3  # 3 x 72 dots per inch


def require_charts(user: str) -> None:
    """Raise unless the libraries of the charts are installed.

    Args:
        user: what needs them, for the message.

    Raises:
        OctavoError: one is missing; the message says how to install it.

    """
    try:
        for library in LIBRARIES:
            import_module(library)
    except ImportError as error:
        raise OctavoError(
            f"{user} needs {error.name}, which is not installed: {install('report')}"
        ) from error


def figures_of(record: RunRecord, colours: "Colours") -> dict[str, list["Figure"]]:
    """Return the figures of a run's report, by the name of their section."""
    from octavo.report.charts.layers import layer_figures, weights_figure
    from octavo.report.charts.training import training_figures
    from octavo.report.charts.trials import belief_figures, reward_figure, trials_figure

    figures = {
        "layers": layer_figures(record, colours),
        "search": [],
        "policy": [],
        "training": training_figures(record, colours),
        "weights": [figure for figure in [weights_figure(record, colours)] if figure],
    }
    course = Course.of(record)
    if course is not None and course.trials:
        figures["search"] = [trials_figure(course, colours)]
        reward = reward_figure(course, colours)
        figures["policy"] = [*belief_figures(course, colours), *([reward] if reward else [])]
    return figures


def comparison_figures(records: Sequence[RunRecord], colours: "Colours") -> list["Figure"]:
    """Return the figures of a comparison."""
    from octavo.report.charts.comparison import front_figure

    return [front_figure(records, colours)]


def page_spec(figure: "Figure") -> str:
    """Return the specification of a figure as JSON that may stand inside a page."""
    from octavo.report.charts.theme import configured

    spec = configured(figure, variables())
    text = json.dumps(spec, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


@cache
def chart_script() -> str:
    """Return the script that draws charts, ready to stand inside a page."""
    import vl_convert

    return vl_convert.javascript_bundle(SCRIPT).replace("</script", "<\\/script")


def save_figures(figures: Sequence["Figure"], folder: Path) -> list[Path]:
    """Write each figure as SVG and PNG into ``folder``, and return the files.

    The figures must have been made with the colours ``LIGHT``.
    """
    import vl_convert

    from octavo.report.charts.theme import configured

    written = []
    for figure in figures:
        svg = vl_convert.vegalite_to_svg(configured(figure, LIGHT, WIDTH))
        png = vl_convert.svg_to_png(svg, scale=PNG_SCALE)
        for ending, content in (("svg", svg.encode()), ("png", png)):
            path = folder / f"{figure.name}.{ending}"
            _write(path, content)
            written.append(path)
    return written


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))
