"""The charts of retraining: the stages stand one behind the other."""

from tests.report.charts.drawn import rows_by_layer

from octavo.report.charts.training import training_figures
from octavo.report.record import RunRecord


def test_steps_go_on_from_stage_to_stage(searched: RunRecord, colours: dict[str, str]) -> None:
    loss, metric = training_figures(searched, colours)
    rows = [row for layer in rows_by_layer(loss) for row in layer]
    steps = [row["step"] for row in rows if row.get("network") == "quantized"]
    assert steps == list(range(1, 13))  # 6 + 4 + 2
    assert [row["step"] for row in rows if row.get("network") == "control"] == steps
    bands = [(row["from"], row["to"], row["share"]) for row in rows if "share" in row]
    assert bands[:3] == [(0, 6, 0.5), (6, 10, 0.8), (10, 12, 1.0)]
    assert metric.name == "metric"


def test_without_retraining_there_is_nothing_to_draw(
    plain: RunRecord, colours: dict[str, str]
) -> None:
    assert training_figures(plain, colours) == []
