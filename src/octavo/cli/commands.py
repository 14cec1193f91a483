"""The command line: ``octavo demo | inspect | search | run | quantize | export | evaluate |
verify``.
"""

import hashlib
import json
import sys
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from torch import Tensor

from octavo.deploy.exporting import FORMS, export_checked, load_onnx
from octavo.dnq.searching import METHODS
from octavo.dnq.searching import search as search_bits
from octavo.errors import BudgetError, OctavoError, RecipeError, nearest
from octavo.formats.width import write_widths
from octavo.inspection import inspect as inspect_model
from octavo.plan import Budget
from octavo.report.display import Display
from octavo.report.tables import (
    exported_rows,
    inspection_table,
    layers_table,
    packed_rows,
    plan_table,
    result_table,
    skipped_table,
)
from octavo.runs.recipe import Recipe, key_value, load_recipe, make_recipe, override, yaml_value
from octavo.runs.recipes import RECIPES
from octavo.runs.run import exported_scores, publish
from octavo.runs.run import run as run_recipe
from octavo.runs.task import load_task, model_of
from octavo.storage.packed import Packed

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
out, err = Console(highlight=False), Console(stderr=True, highlight=False)

TaskName = Annotated[
    str,
    typer.Argument(
        help="digits, cifar10, image_folder, package.module:Class or path/to/file.py:Class."
    ),
]
TaskOption = Annotated[
    str, typer.Option("--task", "-t", help="The task, see `octavo inspect --help`.")
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", "-O", help="An option of the task: key=value, value in YAML."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
Folder = Annotated[
    Path | None, typer.Option(help="The run's folder; default: runs/ and the recipe's name.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key of the recipe: key=value, value in YAML."),
]
File = Annotated[Path, typer.Argument(help="A packed network.", show_default=False)]


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"octavo {version('octavo')}")
        raise typer.Exit


@app.callback()
def root(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
         version: Annotated[bool, typer.Option("--version", help="Show the version.", callback=_show_version)] = False,
         ) -> None:  # fmt: skip
    """Octavo folds trained neural networks into powers of two."""


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/demo"),
    as_json: AsJson = False,
) -> None:
    """Train a small network on handwritten digits, learn the bits of its layers, quantize it, and
    show what it cost.

    Example: `octavo demo`
    """
    path = RECIPES / "digits-dnq.yaml"
    _run(path, load_recipe(path), folder, as_json)


@app.command()
def run(recipe: Annotated[Path, typer.Argument(help="A YAML file, or the name of a recipe that comes with octavo.")],
        overrides: Overrides = None, folder: Folder = None, as_json: AsJson = False) -> None:  # fmt: skip
    """Do all that a recipe says; run again, it continues where it stopped.

    Example: `octavo run benchmarks/resnet20-inq.yaml --set seed=1 --folder runs/seed1`
    """
    path = _recipe_path(recipe)
    _run(path, load_recipe(path, overrides or ()), folder or Path("runs") / path.stem, as_json)


@app.command()
def inspect(task: TaskName, option: Options = None, as_json: AsJson = False) -> None:
    """Show what of a network can be quantized, what not and why, and which budgets are feasible.

    Example: `octavo inspect cifar10 -O depth=56`
    """
    loaded = load_task(task, _options(option))
    batch = next(iter(loaded.calibration()), None)
    found = inspect_model(
        model_of(loaded, task), batch[:1] if isinstance(batch, Tensor) else batch
    )  # what one input costs
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
        return
    out.print(
        inspection_table(found) if found.rows else "no layer can be quantized", skipped_table(found)
    )
    if found.cheapest and found.dearest:
        low, high = found.cheapest, found.dearest
        out.print(
            f"feasible: {low.average_bits:g} to {high.average_bits:g} bits, {low.bytes:,} to {high.bytes:,} nominal bytes"
        )


@app.command()
def search(task: TaskName, output: Annotated[Path, typer.Option("--output", "-o", help="The plan to write, YAML.")],
           budget: Annotated[str | None, typer.Option(help="average_bits=3, ratio=10, bytes=100000 or bit_ops=1e9.")] = None,
           trade_off: Annotated[float | None, typer.Option(help="Or: what doubling the ratio is worth in score.")] = None,
           method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "dnq",
           trials: Annotated[int, typer.Option(min=1, help="How many plans may be scored.")] = 512,
           options: Annotated[str, typer.Option(help="What layers may get: bits, 2 to 8, and apot5 to apot8.")] = "2,3,4,5",
           pin: Annotated[list[str] | None, typer.Option(help="The bits of a layer: name=bits.")] = None, seed: int = 0,
           activations: Annotated[str | None, typer.Option(help="Search for the bits of inputs too, of these: 4,8.")] = None,
           workers: Annotated[int, typer.Option(min=1, help="How many plans are scored at a time.")] = 1,
           journal: Annotated[Path | None, typer.Option(help="Append each trial here; go on from what is there.")] = None,
           option: Options = None, as_json: AsJson = False) -> None:  # fmt: skip
    """Learn how many bits each layer of a task's network gets, and write the plan.

    Example: `octavo search digits --budget average_bits=3 --pin conv1=5 -o plan.yaml`
    """
    loaded = load_task(task, _options(option))
    pins = dict(key_value(pair, "--pin") for pair in pin or ())
    limit = None if budget is None else _budget(budget)
    with Display(err if as_json else out) as display:
        display.searching(trials)
        found = search_bits(
            model_of(loaded, task), loaded.calibration(), budget=limit, trade_off=trade_off, method=method, trials=trials,
            options=yaml_value(f"[{options}]", "--options"), pins=pins, seed=seed, workers=workers, journal=journal,
            activations=None if activations is None else yaml_value(f"[{activations}]", "--activations"),
            observe=display.trial,
        )  # fmt: skip
    found.plan.save(output)
    if as_json:
        scores = {"score": found.score, "uniform_score": found.uniform_score}
        inputs = {"activations": found.plan.activations} if found.plan.activations else {}
        typer.echo(
            json.dumps(
                {"plan": write_widths(found.plan), **inputs, **scores, **asdict(found.plan.cost())},
                indent=2,
            )
        )
        return
    out.print(plan_table(found))
    out.print(f"written: {output}", soft_wrap=True, markup=False)


def _budget(pair: str) -> Budget:
    key, value = key_value(pair, "--budget")
    if key not in (known := [field.name for field in fields(Budget)]):
        raise BudgetError(
            f"--budget {pair}: expected one of {', '.join(known)}{nearest(key, known)}"
        )
    return Budget(**{key: value})


@app.command()
def quantize(task: TaskName, output: Annotated[Path, typer.Option("--output", "-o", help="The packed file to write.")],
             bits: Annotated[str, typer.Option(help="Bits of every layer: 2 to 8, or apot5 to apot8.")] = "3",
             method: Annotated[str, typer.Option(help="inq, or oneshot: in closed form, without training.")] = "inq",
             option: Options = None,
             overrides: Overrides = None, as_json: AsJson = False) -> None:  # fmt: skip
    """Quantize a task's network with octavo's default settings and write the packed file.

    Example: `octavo quantize digits --bits 4 --method oneshot -o digits.safetensors`
    """
    content = {
        "task": task,
        "options": _options(option),
        "bits": yaml_value(bits, "--bits"),
        "method": method,
        "control": False,
    }
    recipe = make_recipe(override(content, overrides or ()), "quantize")
    digest = hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:8]
    folder = Path("runs") / f"quantize-{output.stem}-{digest}"  # other settings, another run
    _run(folder, recipe, folder, as_json)
    Packed.load(folder / "packed.safetensors").save(output)
    if not as_json:
        out.print(f"written: {output}", soft_wrap=True, markup=False)


@app.command()
def export(file: File, task: TaskOption, output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
           form: Annotated[str, typer.Option(help=f"One of {', '.join(FORMS)}: docs/export.md.")] = "lut",
           option: Options = None, as_json: AsJson = False) -> None:  # fmt: skip
    """Write a packed network as an ONNX file or as MXFP4 and MXFP8 tensors, checked against the
    network before.

    Example: `octavo export runs/demo/packed.safetensors --task digits --form lut -o model.onnx`
    """
    packed, loaded = Packed.load(file), load_task(task, _options(option))
    made = export_checked(
        model_of(loaded, task), packed, output, form=form, example=list(loaded.calibration())
    )
    _print(exported_rows(made) | exported_scores(made, packed, loaded, task), as_json)


@app.command()
def evaluate(file: Annotated[Path, typer.Argument(help="A packed network, or an ONNX file.", show_default=False)],
             task: TaskOption, option: Options = None, as_json: AsJson = False) -> None:  # fmt: skip
    """Load a packed network into a task's model, or an ONNX file into ONNX Runtime, and score it.

    Example: `octavo evaluate runs/demo/packed.safetensors --task digits`
    """
    loaded = load_task(task, _options(option))
    if file.suffix == ".onnx":
        _print({"score": loaded.score(load_onnx(file)), "file_bytes": file.stat().st_size}, as_json)
        return
    packed, model = Packed.load(file), model_of(loaded, task)
    packed.apply(model)
    _print({"score": loaded.score(model), **packed_rows(packed)}, as_json)


@app.command()
def verify(file: File, as_json: AsJson = False) -> None:
    """Check a packed file: structure, version, every checksum.

    Example: `octavo verify runs/demo/packed.safetensors`
    """
    packed = Packed.load(file)  # which checks all of it, as octavo.verify does
    _print({"verified": str(file), **packed_rows(packed)}, as_json)


def main() -> None:
    """Entry point: what octavo refuses, and a file that cannot be read or written, is one line and
    exit status 2.

    ``--debug``, anywhere, shows where it came from.
    """
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    try:
        app()
    except (OctavoError, OSError) as error:
        if debug:
            raise
        err.print(
            f"octavo: {' '.join(str(error).split())}", style="red", soft_wrap=True, markup=False
        )
        sys.exit(2)


def _recipe_path(recipe: Path) -> Path:
    """Where a recipe is: its own file, or that of the recipe of this name that comes with
    octavo.
    """
    known = {
        path.relative_to(RECIPES).with_suffix("").as_posix(): path
        for path in sorted(RECIPES.rglob("*.yaml"))
    }
    path = recipe if recipe.is_file() else known.get(str(recipe), recipe)
    if not path.exists():
        raise RecipeError(
            f"{recipe}: no such file, nor one of the recipes that come with octavo: {', '.join(known)}"
        )
    return path


def _run(path: Path, recipe: Recipe, folder: Path, as_json: bool) -> None:
    with Display(err if as_json else out) as display:
        result = run_recipe(recipe, folder, display)
    published = publish(recipe, path, folder)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    if "stages" not in result:  # the closed form is the whole story
        out.print(layers_table(result["layers"]))
    out.print(result_table(result))
    files = f"the network: {folder / 'packed.safetensors'}   the figures: {folder / 'result.json'}"
    out.print(
        "\n".join([files, *(f"published: {copy}" for copy in published)]),
        soft_wrap=True,
        markup=False,
    )


def _options(pairs: list[str] | None) -> dict[str, Any]:
    return dict(key_value(pair, "--option") for pair in pairs or ())


def _print(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(figures))
        return
    width = max(14, *map(len, figures))
    for key, value in figures.items():
        out.print(
            f"{key.replace('_', ' '):>{width}}  {_shown(value)}", soft_wrap=True, markup=False
        )


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "none"
    if isinstance(value, int | float):
        return f"{value:.1e}" if 0 < abs(value) < 0.001 else f"{round(value, 3):,}"
    return str(value)
