"""The command that learns the bits of layers: ``search``."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo._io import check_output
from octavo.cli.options import (
    FAST,
    AsJson,
    Device,
    FileCoding,
    Options,
    Quiet,
    TaskName,
    out,
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
    from octavo.progress import Progress
    from octavo.runs.task import Task

__all__ = ["search"]

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
PricedFloats = Annotated[
    str | None,
    typer.Option(
        "--floats",
        help="How the file that is priced stores biases and norms: float32, float16 or folded. "
        "Default: float32.",
        show_default=False,
    ),
]
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
    floats: PricedFloats = None,
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
    else:
        _print_search(result, objective, covered=budget is None and trade_off is None)
        _print_next(task, option, output, floats, coding)


def _task(name: str, option: list[str] | None) -> "Task":
    """Load a task with the options of the command line."""
    from octavo.runs.task import load_task

    return load_task(name, task_options(option))


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


def _print_search(result: "SearchResult", objective: str, *, covered: bool) -> None:
    """Print the plan of a search; where the search ``covered`` the whole range, its front too."""
    from octavo.report.search_tables import (
        finalists_table,
        front_table,
        plan_table,
        refinement_line,
    )

    if covered:
        print_tables(front_table(result, objective))
    print_tables(plan_table(result), finalists_table(result, objective))
    if result.refinement is not None:
        out.print(refinement_line(result.refinement), soft_wrap=True, markup=False)


def _print_next(
    task: str, task_options: list[str] | None, plan: Path, floats: str | None, coding: str
) -> None:
    """Say where the plan is, and the command that writes the file that was searched for."""
    options = [word for pair in task_options or () for word in ("--option", pair)]
    form = [] if floats is None else ["--floats", floats]
    form += [] if coding == FAST else ["--coding", coding]
    print_written(plan)
    files = ["--plan", str(plan), *form, "-o", f"{plan.stem}.safetensors"]
    print_next(["octavo", "quantize", task, *options, *files])


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
