"""Results as tables that a person understands."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from octavo.deploy.exporting import Exported
from octavo.dnq.searching import SearchResult
from octavo.inspection import Inspection
from octavo.plan import Plan
from octavo.storage.packed import Packed

__all__ = [
    "bits_range",
    "exported_rows",
    "inspection_table",
    "layers_table",
    "packed_rows",
    "plan_table",
    "result_table",
    "skipped_table",
]


def result_table(result: Mapping[str, Any]) -> Table:
    """The result of a run: what was reached against what it cost. Only what retrains has a
    control.
    """
    trained, whole = "stages" in result, f"{result['float_bytes']:,}"
    caption = "control: the full-precision network trained equally long" if trained else None
    table = Table(
        title="full precision against powers of two",
        caption=caption,
        title_justify="left",
        caption_justify="left",
    )
    for column in ("", "full precision", *(["control"] if trained else []), "quantized"):
        table.add_column(column, justify="left" if not column else "right")

    def row(name: str, full: str, quantized: str, control: str | None = None) -> None:
        table.add_row(
            name, full, *([full if control is None else control] if trained else []), quantized
        )

    control = f"{result['control_score']:.2f}" if "control_score" in result else "not run"
    row("score", f"{result['float_score']:.2f}", f"[bold]{result['score']:.2f}[/]", control)
    row("nominal bits, a weight", "32", f"{result['nominal_bits']:.2f}")
    if "sparsity" in result:
        row("zero weights", "", f"{result['sparsity']:.1%}")
    row("stored bits, a weight", "32", f"{result['stored_bits']:.2f}")
    if bits := result.get("activation_bits"):
        row("activations, bits", "32", bits_range(bits.values()))
    row("bytes", whole, f"{result['file_bytes']:,}")
    row("times smaller", "1.0", f"[bold]{result['ratio']:.1f}[/]")
    row("time", "", f"{result['seconds']:.0f} s in all")
    return table


def bits_range(bits: Iterable[int]) -> str:
    """``4``, or ``4 to 8`` where they differ."""
    distinct = sorted(set(bits))
    return " to ".join(map(str, dict.fromkeys((distinct[0], distinct[-1]))))


def layers_table(layers: Sequence[Mapping[str, Any]]) -> Table:
    """What the closed form reached, layer by layer."""
    caption = "error of the outputs on the calibration inputs, relative to the outputs"
    table = Table(
        "layer", title="closed form", caption=caption, title_justify="left", caption_justify="left"
    )
    for column in ("bits", "nearest levels", "compensated"):
        table.add_column(column, justify="right")
    for layer in layers:
        table.add_row(
            escape(layer["name"]),
            str(layer["bits"]),
            f"{layer['nearest']:.1%}",
            f"{layer['compensated']:.1%}",
        )
    return table


def plan_table(found: SearchResult) -> Table:
    """The plan that a search found, beside the uniform one."""
    caption = f"{len(found.trials)} plans scored; of the score, higher is better"
    table = Table(
        "layer", title="the plan", caption=caption, title_justify="left", caption_justify="left"
    )
    for column in ("weights", "bits", "uniform"):
        table.add_column(column, justify="right")
    for name in found.plan:
        table.add_row(
            escape(name),
            f"{found.plan.weights[name]:,}",
            *(_bits(plan, name) for plan in (found.plan, found.uniform)),
        )
    costs = found.plan.cost(), found.uniform.cost()
    table.add_section()
    table.add_row("average bits", "", *(f"{cost.average_bits:.3f}" for cost in costs))
    table.add_row("nominal bytes", "", *(f"{cost.bytes:,}" for cost in costs))
    if found.plan.activations:
        table.add_row("bit operations", "", *(f"{cost.bit_ops:,}" for cost in costs))
    table.add_row("score", "", f"[bold]{found.objective:.5g}[/]", f"{found.uniform_objective:.5g}")
    return table


def _bits(plan: Plan, name: str) -> str:
    """Of a layer's weights; where inputs are quantized, ``3x8`` for weights and inputs."""
    return (
        f"{plan[name]}x{plan.activations.get(name, 'float')}"
        if plan.activations
        else str(plan[name])
    )


def inspection_table(inspection: Inspection) -> Table:
    """The layers that can be quantized."""
    table = Table(title="can be quantized", title_justify="left")
    rounded = any(row.activation_bits for row in inspection.rows)
    for column in (
        "layer",
        "kind",
        "shape",
        "weights",
        "multiply-accumulates",
        "tied to",
        *["bits of its inputs"] * rounded,
    ):
        table.add_column(
            column, justify="right" if column in ("weights", "multiply-accumulates") else "left"
        )
    for row in inspection.rows:
        macs = "" if row.macs is None else f"{row.macs:,}"
        name, tied = escape(row.name), escape(", ".join(row.tied))
        inputs = [str(row.activation_bits or "float")] * rounded
        table.add_row(
            name, row.kind, "x".join(map(str, row.shape)), f"{row.weights:,}", macs, tied, *inputs
        )
    return table


def skipped_table(inspection: Inspection) -> Table:
    """The parameters that stay in float, and the inputs that have to, one row for each reason."""
    table = Table(
        "parameters", "weights", "why", "for example", title="stays in float", title_justify="left"
    )
    reasons: dict[str, list[Any]] = {}
    for skip in inspection.skipped:
        reasons.setdefault(skip.reason, []).append(skip)
    for reason, skips in reasons.items():
        table.add_row(
            str(len(skips)),
            f"{sum(skip.weights for skip in skips):,}",
            escape(reason),
            escape(skips[0].name),
        )
    for skip in inspection.float_inputs:
        table.add_row("its inputs", "", escape(skip.reason), escape(skip.name))
    return table


def packed_rows(packed: Packed) -> dict[str, Any]:
    """The figures of a packed file."""
    activations = [form.bits for form in packed.activations.values()]
    return {
        "layers": len(packed.layers),
        "weights": sum(packed.plan.weights.values()),
        "nominal_bits": round(packed.nominal_bits, 3),
        "stored_bits": round(packed.stored_bits, 3),
        **({"activation_bits": bits_range(activations)} if activations else {}),
        "file_bytes": packed.file_bytes,
        "ratio": round(packed.ratio, 2),
    }


def exported_rows(exported: Exported) -> dict[str, Any]:
    """The figures of an exported file; what was not measured is missing."""
    checks = {"largest_difference": exported.difference, "same_class": exported.agreement}
    return {
        "written": str(exported.path),
        "form": exported.form,
        "file_bytes": exported.bytes,
        **{name: figure for name, figure in checks.items() if figure is not None},
        "inexact_layers": list(exported.inexact),
    }
