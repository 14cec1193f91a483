"""The rows that a chart draws."""

from typing import Any

from octavo.report.charts.theme import Figure


def rows_by_layer(figure: Figure) -> list[list[dict[str, Any]]]:
    """The rows of each layer, whose layers' layers count one by one."""
    chart = figure.chart.to_dict()
    named = chart.get("datasets", {})

    def rows(part: dict[str, Any], above: dict[str, Any]) -> list[list[dict[str, Any]]]:
        source = part.get("data", above)
        if "layer" in part:
            return [found for each in part["layer"] for found in rows(each, source)]
        return [source["values"] if "values" in source else named[source["name"]]]

    return rows(chart, {})
