"""The command that looks at a network, a plan or a packed file: ``inspect``."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from octavo.cli.options import (
    AsJson,
    Device,
    NetworkName,
    Options,
    out,
    print_figures,
    print_tables,
    task_options,
)

if TYPE_CHECKING:
    from octavo.inspection import Inspection

__all__ = ["inspect"]

PACKED_ENDING = ".safetensors"


def inspect(
    network: NetworkName, option: Options = None, device: Device = "auto", as_json: AsJson = False
) -> None:
    """Show which layers of a network can be quantized, which cannot and why, and which budgets are
    feasible. The file of a plan, and the layers of a packed file, are shown as a table.

    Example: `octavo inspect digits`
    """
    from octavo._io import json_text
    from octavo.inspection import inspect as inspect_model
    from octavo.network.devices import device_named
    from octavo.runs.models import load_model

    if print_file := _printer_of(network):
        print_file(network, as_json)
        return
    model, example = load_model(network, task_options(option), device_named(device))
    inspection = inspect_model(model, example)
    if as_json:
        typer.echo(json_text(asdict(inspection), indent=2))
    else:
        _print_inspection(inspection)


def _printer_of(name: str) -> Callable[[str, bool], None] | None:
    """Return the function that prints a file, told by its first bytes, or by its ending where there
    is no such file: then the function says so. None if the name is that of a network.
    """
    from octavo.runs.plan_files import ENDINGS
    from octavo.storage.file_kind import kind_of_file

    kind = None if name.endswith(".py") else kind_of_file(name)
    if kind == "other" or (kind is None and name.endswith(ENDINGS)):
        return _print_plan
    if kind is not None or name.endswith(PACKED_ENDING):
        return _print_packed
    return None


def _print_plan(path: str, as_json: bool) -> None:
    """Print the file of a plan."""
    from octavo._io import json_text
    from octavo.formats.width import write_widths
    from octavo.plan import Plan

    plan = Plan.load(path)
    figures = {"bits": write_widths(plan), "activations": plan.activations}
    typer.echo(json_text(figures, indent=2) if as_json else str(plan))


def _print_packed(path: str, as_json: bool) -> None:
    """Print the layers of a packed file and its figures."""
    from octavo._io import json_text
    from octavo.report.tables import packed_layers_table, packed_rows
    from octavo.runs.details import packed_layers
    from octavo.storage.packed import Packed

    packed = Packed.load(path)
    if as_json:
        figures = packed_rows(packed) | {"layers": packed_layers(packed)}
        typer.echo(json_text(figures, indent=2))
        return
    print_tables(packed_layers_table(packed))
    print_figures(packed_rows(packed), as_json=False)


def _print_inspection(inspection: "Inspection") -> None:
    """Print the layers, what stays in float, and the feasible budgets."""
    from octavo.report.tables import inspection_table, skipped_table

    layers = [inspection_table(inspection)] if inspection.rows else []
    if not layers:
        out.print("no layer can be quantized")
    print_tables(*layers, skipped_table(inspection))
    if inspection.cheapest and inspection.dearest:
        low = inspection.cheapest
        high = inspection.dearest
        out.print(
            f"feasible: {low.average_bits:g} to {high.average_bits:g} bits, "
            f"{low.bytes:,} to {high.bytes:,} nominal bytes"
        )
