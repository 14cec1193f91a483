"""The charts of the layers: a bar for each, and every weight in the histograms."""

from dataclasses import replace
from typing import Any

import pytest
from tests.report.charts.drawn import rows_by_layer

from octavo.report.charts.layers import layer_figures, weights_figure
from octavo.report.charts.theme import Figure
from octavo.report.record import RunRecord


def first_rows(figure: Figure) -> list[dict[str, Any]]:
    return rows_by_layer(figure)[0]


def test_each_measure_has_a_bar_for_each_quantized_layer(
    searched: RunRecord, colours: dict[str, str]
) -> None:
    bits, stored, weights, *_ = layer_figures(searched, colours)
    assert [row["value"] for row in first_rows(bits)] == [row.bits for row in searched.layers]
    assert [row["value"] for row in first_rows(stored)] == [
        row.stored_bytes for row in searched.layers
    ]
    assert [row["value"] for row in first_rows(weights)] == [30, 18]


def test_what_the_run_did_not_write_down_has_no_chart(
    plain: RunRecord, colours: dict[str, str]
) -> None:
    names = [figure.name for figure in layer_figures(plain, colours)]
    assert "layers-sensitivity" not in names
    assert [row["layer"] for row in first_rows(layer_figures(plain, colours)[0])] == ["0"]
    assert layer_figures(replace(plain, layers=()), colours) == []
    assert weights_figure(replace(plain, details={}), colours) is None


def test_the_shares_of_a_histogram_add_up_to_one(
    searched: RunRecord, colours: dict[str, str]
) -> None:
    figure = weights_figure(searched, colours)
    assert figure is not None
    rows = first_rows(figure)
    assert [row["layer"] for row in rows] == ["0", "3"]
    for row in rows:
        assert sum(row["share"]) == pytest.approx(1, abs=1e-3)
        assert row["x"][1:] == row["to"][:-1]
