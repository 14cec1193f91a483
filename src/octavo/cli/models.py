"""The commands that look at a task's network: ``inspect`` and ``search``."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.cli.options import (
    FAST,
    AsJson,
    Device,
    FileCoding,
    Floats,
    NetworkName,
    Options,
    Quiet,
    TaskName,
    out,
    print_figures,
    print_next,
    print_tables,
    print_written,
    read_budget,
    task_network,
    task_options,
    watched,
)
from octavo.dnq.settings import (
    FINER_OPTIONS,
    METHOD,
    METHODS,
    OBJECTIVES,
    OPTIONS,
    REFINE,
    TRIALS,
)
from octavo.errors import PlanError, nearest

if TYPE_CHECKING:
    from torch import nn

    from octavo.dnq.search_result import SearchResult
    from octavo.inspection import Inspection
    from octavo.progress import Progress
    from octavo.runs.task import Task

__all__ = ["inspect", "search"]

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


Output = Annotated[Path, typer.Option("--output", "-o", help="The plan to write, YAML.")]
Limit = Annotated[
    str | None,
    typer.Option(
        help="The limit: bytes=100000 or ratio=10 of the packed file, average_bits=3 (nominal), or "
        "bit_ops=1e9. Without a limit and a trade-off, the search covers every feasible size."
    ),
]
TradeOff = Annotated[
    float | None,
    typer.Option(
        help="Instead of a budget: the gain in objective that doubling the ratio is worth."
    ),
]
Method = Annotated[
    str, typer.Option(help=f"The method: {', '.join(METHODS[:-1])} or {METHODS[-1]}.")
]
Refine = Annotated[
    float,
    typer.Option(
        help="The share of the trials, from 0 to below 1, with which the method evolution refines "
        "the best plan in the end."
    ),
]
Objective = Annotated[
    str,
    typer.Option(
        help="divergence: compare outputs with those in full precision, without labels. task: the "
        "task's own score, on whatever data that reads: let it read validation data, because the "
        "plan is fitted to them."
    ),
]
Trials = Annotated[int, typer.Option(min=1, help="The number of plans that may be scored.")]
DEFAULT_WIDTHS, FINER_WIDTHS = (",".join(map(str, each)) for each in (OPTIONS, FINER_OPTIONS))
Widths = Annotated[
    str | None,
    typer.Option(
        help="The widths that a layer may get: bits from 2 to 8, apot5 to apot8, fp4, fp6, fp8, "
        f"int8. By default {DEFAULT_WIDTHS}, or {FINER_WIDTHS} where the network has an embedding, "
        "a recurrent layer or an attention."
    ),
]
Pins = Annotated[
    list[str] | None, typer.Option(help="Fix the bits of a layer: name=bits. May be repeated.")
]
Seed = Annotated[int, typer.Option(help="The same seed gives the same plan.")]
InputBits = Annotated[
    str | None,
    typer.Option(help="Search for the bits of layer inputs too, among these, such as 4,8."),
]
Workers = Annotated[int, typer.Option(min=1, help="The number of plans that are scored at a time.")]
JournalFile = Annotated[
    Path | None, typer.Option(help="Append each trial to this file; continue from its trials.")
]


def search(
    task: TaskName,
    output: Output,
    budget: Limit = None,
    trade_off: TradeOff = None,
    method: Method = METHOD,
    trials: Trials = TRIALS,
    refine: Refine = REFINE,
    objective: Objective = OBJECTIVES[0],
    options: Widths = None,
    pin: Pins = None,
    seed: Seed = 0,
    activations: InputBits = None,
    floats: Floats = None,
    coding: FileCoding = FAST,
    workers: Workers = 1,
    journal: JournalFile = None,
    option: Options = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Learn how many bits each layer of a task's network gets, and write the plan.

    Example: `octavo search digits --budget average_bits=3 --pin conv1=5 -o plan.yaml`
    """
    from octavo._io import check_output

    check_output(output)
    with watched(as_json, quiet) as progress:
        loaded = _task(task, option)
        settings = {
            "budget": read_budget(budget), "trade_off": trade_off, "method": method, "seed": seed,
            "trials": trials, "refine": refine, "objective": _objective(loaded, objective),
            "options": _values(options, "--options"), "pins": _pins(pin), "workers": workers,
            "activations": _values(activations, "--activations"), "journal": journal,
            "floats": floats, "coding": coding,
        }  # fmt: skip
        result = _searched(task_network(loaded, task, device, progress), loaded, settings, progress)
    result.plan.save(output)
    if as_json:
        _print_search_figures(result, method)
        return
    _print_search(result, objective, settings, task, output)


def _task(name: str, option: list[str] | None) -> "Task":
    """Load a task with the options of the command line."""
    from octavo.runs.task import load_task

    return load_task(name, task_options(option))


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


def _searched(
    network: "nn.Module", task: "Task", settings: Mapping[str, Any], progress: "Progress"
) -> "SearchResult":
    """Search for a plan of a task's network."""
    from octavo._interruption import keeping
    from octavo.dnq.searching import search as search_bits
    from octavo.progress import Event

    journal = settings["journal"]
    kept = "" if journal is None else f"the trials so far are kept in {journal}"
    with keeping(kept):
        progress(Event("search", total=settings["trials"]))
        return search_bits(network, task.calibration(), progress=progress, **settings)


def _print_search(
    result: "SearchResult", objective: str, settings: Mapping[str, Any], task: str, plan: Path
) -> None:
    """Print the plan of a search, which was written, and the command that may come next; where the
    search covered the whole range, its front too.
    """
    from octavo.report.search_tables import (
        finalists_table,
        front_table,
        plan_table,
        refinement_line,
    )

    if settings["budget"] is None and settings["trade_off"] is None:
        print_tables(front_table(result, objective))
    print_tables(plan_table(result), finalists_table(result, objective))
    if result.refinement is not None:
        out.print(refinement_line(result.refinement), soft_wrap=True, markup=False)
    print_written(plan)
    print_next(_quantizing(task, plan, settings["floats"], settings["coding"]))


def _quantizing(task: str, plan: Path, floats: str | None, coding: str) -> str:
    """Return the command that quantizes by a plan, in the form of file that it was searched for."""
    form = "" if floats is None else f" --floats {floats}"
    form += "" if coding == FAST else f" --coding {coding}"
    return f"octavo quantize {task} --plan {plan}{form} -o {plan.stem}.safetensors"


def _objective(task: "Task", name: str) -> "Callable[[nn.Module], float] | None":
    """Return the objective of a search by its name; None for the divergence."""
    if name not in OBJECTIVES:
        raise PlanError(
            f"--objective: expected one of {', '.join(OBJECTIVES)}, got {name!r}"
            f"{nearest(name, OBJECTIVES, only_alike=True)}"
        )
    return task.score if name == "task" else None


def _pins(pairs: list[str] | None) -> dict[str, Any]:
    """Read the pairs ``name=bits`` of ``--pin``."""
    from octavo.runs.overrides import key_value

    return dict(key_value(pair, "--pin") for pair in pairs or ())


def _values(text: str | None, name: str) -> Any:
    """Read a list such as ``4,8``."""
    from octavo.runs.overrides import yaml_value

    return None if text is None else yaml_value(f"[{text}]", name)


def _print_search_figures(result: "SearchResult", method: str) -> None:
    """Print the result of a search as JSON: the plan, its cost, and what else was measured."""
    from octavo._io import json_text
    from octavo.runs.search_figures import front_figures, search_figures

    figures = search_figures(result, method) | {"front": front_figures(result)}
    if result.plan.activations:
        figures["activations"] = result.plan.activations
    typer.echo(json_text(figures | asdict(result.plan.cost()), indent=2))
