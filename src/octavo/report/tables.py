"""Results as tables that a person understands."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from octavo.deploy.exporting import Exported
from octavo.errors import printable
from octavo.inspection import Inspection
from octavo.report.record import RunRecord
from octavo.runs.details import packed_layers
from octavo.runs.metric import metric_text
from octavo.storage.packed import Packed, sizes_of

__all__ = [
    "add_columns",
    "bits_range",
    "cell",
    "exported_rows",
    "inspection_table",
    "packed_layers_table",
    "packed_rows",
    "result_table",
    "runs_table",
    "skipped_table",
    "titled_table",
    "uncut",
]

NUMBERS: Final = "right"  # the alignment of a column of numbers
FOLDED = 16  # characters of a word up to which it is not folded
COSTS = "MACs: multiply-accumulates for one input"
METRIC = "metric: the score of the task, higher is better"
CONTROL = "control: the full-precision network, trained equally long and in the same way"


def result_table(result: Mapping[str, Any]) -> Table:
    """Return the result of a run as a table: the metric that was reached, and what it cost.

    Only a run that retrains has a column for the control.
    """
    trained = "stages" in result
    caption = f"{METRIC}; {CONTROL}" if trained else METRIC
    table = titled_table("full precision against quantized", caption)
    columns = ["full precision", "control", "quantized"]
    add_columns(table, texts=[""], numbers=columns if trained else [columns[0], columns[2]])
    for name, full, control, quantized in _result_rows(result):
        cells = (full, control, quantized) if trained else (full, quantized)
        table.add_row(name, *cells)
    return table


def _result_rows(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return the rows: a name, and the figures of full precision, control and quantized network."""
    control = metric_text(result["control_score"]) if "control_score" in result else "not run"
    before = metric_text(result["float_score"])
    after = metric_text(result["score"])
    whole = f"{result['float_bytes']:,}"
    nominal = f"{result['nominal_bits']:.2f}"
    stored = f"{result['stored_bits']:.2f}"
    packed = f"{result['file_bytes']:,}"
    rows = [
        ("metric", before, control, f"[bold]{after}[/]"),
        ("nominal bits per weight", "32", "32", nominal),
        ("stored bits per weight", "32", "32", stored),
        ("bytes", whole, whole, packed),
        ("times smaller", "1.0", "1.0", f"[bold]{result['ratio']:.1f}[/]"),
        ("time", "", "", f"{result['seconds']:.0f} s in all"),
    ]
    if bits := result.get("activation_bits"):
        rows.insert(3, ("bits of activations", "32", "32", bits_range(bits.values())))
    if "sparsity" in result:
        rows.insert(2, ("weights that are zero", "", "", f"{result['sparsity']:.1%}"))
    return rows


def bits_range(bits: Iterable[int]) -> str:
    """Return ``4``, or ``4 to 8`` where they differ."""
    low, *others = sorted(set(bits))
    return f"{low} to {others[-1]}" if others else str(low)


def runs_table(records: Iterable[RunRecord]) -> Table:
    """Return the figures of several runs, a row each."""
    table = titled_table("runs", CONTROL)
    numbers = ["before", "control", "after", "bytes", "times smaller"]
    add_columns(table, texts=["run", "how"], numbers=numbers)
    for record in records:
        result = record.result
        table.add_row(
            cell(record.name),
            cell(record.method),
            metric_text(result["float_score"]),
            "not run" if record.control is None else metric_text(record.control),
            metric_text(result["score"]),
            f"{result['file_bytes']:,}",
            f"{result['ratio']:.1f}",
        )
    return table


def inspection_table(inspection: Inspection) -> Table:
    """Return the layers that can be quantized."""
    quantized_inputs = any(row.activation_bits for row in inspection.rows)
    tied = any(row.tied for row in inspection.rows)
    table = titled_table("can be quantized", COSTS)
    numbers = ["weights", "MACs"]
    add_columns(table, texts=["layer", "kind", "shape"], numbers=numbers)
    others = {"tied to": tied, "bits of its inputs": quantized_inputs}
    add_columns(table, texts=[name for name, there in others.items() if there])
    for row in inspection.rows:
        cells = [
            cell(row.name),
            row.kind,
            "x".join(map(str, row.shape)),
            f"{row.weights:,}",
            "" if row.macs is None else f"{row.macs:,}",
        ]
        if tied:
            cells.append(cell(", ".join(row.tied)))
        if quantized_inputs:
            cells.append(str(row.activation_bits or "float"))
        table.add_row(*cells)
    return table


def skipped_table(inspection: Inspection) -> Table:
    """Return the parameters that stay in float, and the inputs that have to.

    Each reason has one row, with the first of its parameters as an example.
    """
    table = titled_table("stays in float")
    add_columns(table, texts=["parameters", "weights", "why", "for example"])
    reasons: dict[str, list[Any]] = {}
    for skip in inspection.skipped:
        reasons.setdefault(skip.reason, []).append(skip)
    for reason, skips in reasons.items():
        weights = sum(skip.weights for skip in skips)
        table.add_row(str(len(skips)), f"{weights:,}", cell(reason), cell(skips[0].name))
    for skip in inspection.float_inputs:
        table.add_row("its inputs", "", cell(skip.reason), cell(skip.name))
    return table


def cell(name: str) -> str:
    """Return a name for a cell of a table: its brackets are no markup, and nothing in it steers the
    terminal.
    """
    return escape(printable(name))


def titled_table(title: str, caption: str | None = None) -> Table:
    """Return an empty table with its title and caption on the left."""
    return Table(title=title, caption=caption, title_justify="left", caption_justify="left")


def add_columns(table: Table, *, texts: Iterable[str] = (), numbers: Iterable[str] = ()) -> None:
    """Add columns of texts, and then columns of numbers on the right. Nothing in them is cut on a
    narrow terminal, because names that are cut look alike: see :func:`uncut`.
    """
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify=NUMBERS, overflow="fold")


def uncut(table: Table) -> Table:
    """Return a table that is complete, with the least width of each column: numbers stay whole, and
    a word in a column of texts is folded where it is longer than 16 characters. On a terminal that
    is narrower still, print it without cropping: its lines run over.
    """
    for column in table.columns:
        texts = [column.header, *column.cells]
        words = [word for text in texts for word in Text.from_markup(str(text)).plain.split()]
        longest = max(map(cell_len, words), default=0)
        column.min_width = longest if column.justify == NUMBERS else min(longest, FOLDED)
    return table


def packed_rows(packed: Packed) -> dict[str, Any]:
    """Return the figures of a packed file."""
    sizes = sizes_of(packed)
    rows: dict[str, Any] = {
        "layers": len(packed.layers),
        "weights": sum(packed.plan.weights.values()),
        "nominal_bits": round(packed.nominal_bits, 3),
        "stored_bits": round(sizes.stored_bits or 0, 3),
    }
    if packed.activations:
        rows["activation_bits"] = bits_range(form.bits for form in packed.activations.values())
    return rows | {"file_bytes": sizes.file_bytes, "ratio": round(sizes.ratio, 2)}


def packed_layers_table(packed: Packed) -> Table:
    """Return the layers of a packed file."""
    table = titled_table("quantized layers", "bytes: of the layer's codes in the file")
    numbers = ["weights", "bits", "bytes", "zeros"]
    add_columns(table, texts=["layer", "shape"], numbers=numbers)
    if packed.activations:
        add_columns(table, texts=["bits of its inputs"])
    for row in packed_layers(packed):
        cells = [
            cell(row["name"]),
            "x".join(map(str, row["shape"])),
            f"{row['weights']:,}",
            str(row["bits"]),
            f"{row['stored_bytes']:,.0f}",
            f"{row['zeros']:.1%}",
        ]
        if packed.activations:
            cells.append(str(row["activation_bits"] or "float"))
        table.add_row(*cells)
    return table


def exported_rows(exported: Exported) -> dict[str, Any]:
    """Return the figures of an exported file; a figure that was not measured is missing."""
    rows: dict[str, Any] = {
        "written": str(exported.path),
        "form": exported.form,
        "file_bytes": exported.bytes,
    }
    if exported.difference is not None:
        rows["largest_difference"] = exported.difference
    if exported.agreement is not None:
        rows["same_class"] = exported.agreement
    if exported.wider:
        rows["16_bit_layers"] = list(exported.wider)
    return rows | {"inexact_layers": list(exported.inexact)}
