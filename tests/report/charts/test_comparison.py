"""The chart of a comparison: all runs are dots, and the line joins those that none beats."""

from dataclasses import replace

from tests.report.charts.drawn import rows_by_layer

from octavo.report.charts.comparison import front_figure
from octavo.report.record import RunRecord


def run(record: RunRecord, name: str, size: int, score: float) -> RunRecord:
    return replace(record, name=name, result=record.result | {"file_bytes": size, "score": score})


def test_the_line_joins_the_runs_that_no_other_beats(
    searched: RunRecord, colours: dict[str, str]
) -> None:
    records = [
        run(searched, "small", 100, 80.0),
        run(searched, "large", 900, 92.0),
        run(searched, "beaten", 500, 79.0),
        run(searched, "middle", 400, 90.0),
        run(searched, "same size, worse", 400, 85.0),
    ]
    line, before, _, dots, *names = rows_by_layer(front_figure(records, colours))
    assert [row["run"] for row in line] == ["small", "middle", "large"]
    assert {row["run"] for row in dots} == {record.name for record in records}
    assert {row["run"] for rows in names for row in rows} == {record.name for record in records}
    assert len(before) == 1  # they all began with one network


def test_no_layer_is_empty_where_one_run_beats_all(
    searched: RunRecord, colours: dict[str, str]
) -> None:
    """Vega would complain of it in the browser's console."""
    records = [run(searched, "best", 100, 90.0), run(searched, "worse", 200, 80.0)]
    assert all(rows_by_layer(front_figure(records, colours)))
