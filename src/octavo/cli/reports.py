"""The commands that make pages and figures of finished runs: ``report`` and ``compare``."""

from pathlib import Path
from typing import Annotated

import typer

from octavo.cli.options import AsJson, print_tables, print_written

__all__ = ["compare", "report", "write_report"]

Runs = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN...",
        help="The folders of finished runs, or their published results (.json).",
        show_default=False,
    ),
]
Page = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="The page to write; default: report.html in the folder."),
]
Figures = Annotated[
    Path | None,
    typer.Option("--figures", help="Write each chart into this folder too, as SVG and PNG."),
]


def report(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="The folder of a finished run, or its published result (.json).",
            show_default=False,
        ),
    ],
    output: Page = None,
    figures: Figures = None,
) -> None:
    """Write the page of a finished run: one HTML file that opens offline, with charts and tables.

    Every run writes it at its end. The charts need octavo's extra `report`.

    Example: `octavo report runs/demo --figures runs/demo/figures`
    """
    from octavo._io import check_output
    from octavo.report.colours import LIGHT
    from octavo.report.drawing import figures_of, require_charts, save_figures
    from octavo.report.page import PAGE, report_page, write_page
    from octavo.report.record import RunRecord

    record = RunRecord.load(run)
    if figures is not None:
        require_charts("octavo report --figures")
    page = record.folder / PAGE if run.is_dir() else run.with_suffix(".html")
    path = output or page
    check_output(path)
    write_page(report_page(record), path)
    print_written(path)
    if figures is not None:
        sections = figures_of(record, LIGHT)
        for file in save_figures([each for some in sections.values() for each in some], figures):
            print_written(file)


def compare(
    runs: Runs,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path(
        "comparison.html"
    ),
    figures: Figures = None,
    as_json: AsJson = False,
) -> None:
    """Compare finished runs: their metric against the size of their files, their bits, their
    recipes. The page is one HTML file that opens offline.

    Example: `octavo compare runs/demo runs/digits -o comparison.html`
    """
    from octavo._io import check_output, json_text
    from octavo.report.colours import LIGHT
    from octavo.report.drawing import comparison_figures, require_charts, save_figures
    from octavo.report.page import comparison_page, write_page
    from octavo.report.record import load_runs
    from octavo.report.tables import runs_table

    records = load_runs(runs)
    if as_json:
        typer.echo(json_text([record.figures for record in records], indent=2))
        return
    require_charts("octavo compare")
    check_output(output)
    print_tables(runs_table(records))
    write_page(comparison_page(records), output)
    print_written(output)
    if figures is not None:
        for file in save_figures(comparison_figures(records, LIGHT), figures):
            print_written(file)


def write_report(folder: Path) -> Path:
    """Write the page of a run into its folder, and return its path."""
    from octavo.report.page import PAGE, report_page, write_page
    from octavo.report.record import RunRecord

    path = folder / PAGE
    write_page(report_page(RunRecord.load(folder)), path)
    return path
