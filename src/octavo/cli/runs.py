"""The commands that run a recipe: ``demo``, ``run`` and ``quantize``."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.cli.options import (
    AsJson,
    Options,
    Overrides,
    TaskName,
    err,
    out,
    print_written,
    task_options,
)
from octavo.cli.reports import write_report
from octavo.errors import RecipeError
from octavo.runs.interruption import listening

if TYPE_CHECKING:
    from octavo.runs.recipe import Recipe

__all__ = ["demo", "quantize", "run"]

SAVE_EVERY = 10.0  # minutes between two savings inside a stage

NEXT = """
Three commands to try next:
  octavo evaluate {folder}/packed.safetensors --task digits   load the file and score it
  octavo inspect digits   see which tensors can be quantized, and which cannot
  octavo quantize digits --method ptq --bits 3 -o quick.safetensors   quantize without training"""


def demo(
    folder: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/demo"),
    as_json: AsJson = False,
) -> None:
    """Train a small network on handwritten digits, learn the bits of its layers, quantize it, and
    show what it cost.

    Example: `octavo demo`
    """
    from octavo.runs.recipe import load_recipe
    from octavo.runs.recipes import RECIPES

    path = RECIPES / "digits-dnq.yaml"
    _run(path, load_recipe(path), folder, as_json)
    if not as_json:
        typer.echo(NEXT.format(folder=folder))


def run(
    recipe: Annotated[
        Path,
        typer.Argument(help="A YAML file, or the name of a recipe that comes with octavo."),
    ],
    overrides: Overrides = None,
    folder: Annotated[
        Path | None,
        typer.Option(help="The run's folder; default: runs/ and the recipe's name."),
    ] = None,
    save_every: Annotated[
        float,
        typer.Option(
            min=0, help="Minutes of retraining after which the state inside a stage is saved."
        ),
    ] = SAVE_EVERY,
    no_code: Annotated[
        bool,
        typer.Option(
            "--no-code",
            help="For a recipe that you did not write: refuse code that it names, and publish "
            "inside of the run's folder only. See SECURITY.md.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Do everything that a recipe says. The same command continues a run that was stopped.

    Example: `octavo run digits --set seed=1 --folder runs/seed1`
    """
    from octavo.runs.no_code import check_no_code, published_inside
    from octavo.runs.recipe import load_recipe

    path = _recipe_path(recipe)
    loaded = load_recipe(path, overrides or ())
    place = folder or Path("runs") / path.stem
    if no_code:
        check_no_code(loaded)
    _run(published_inside(place) if no_code else path, loaded, place, as_json, save_every)


def quantize(
    task: TaskName,
    output: Annotated[Path, typer.Option("--output", "-o", help="The packed file to write.")],
    bits: Annotated[
        str,
        typer.Option(
            help="The bits of every layer: 2 to 8, or apot5 to apot8; or the file of a plan, such "
            "as plan.yaml."
        ),
    ] = "3",
    method: Annotated[
        str,
        typer.Option(
            help="inq: retrain while the weights freeze; ptq: calibrate, without training."
        ),
    ] = "inq",
    option: Options = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Quantize a task's network with octavo's default settings and write the packed file.

    `--bits plan.yaml` takes the plan that `octavo search` wrote.

    Example: `octavo quantize digits --bits 4 --method ptq -o digits.safetensors`
    """
    from octavo.runs.recipe import make_recipe, override, yaml_value
    from octavo.storage.packed import Packed

    content = {
        "task": task,
        "options": task_options(option),
        "bits": yaml_value(bits, "--bits"),
        "method": method,
        "control": False,
    }
    recipe = make_recipe(override(content, overrides or ()), "quantize")
    digest = hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:8]
    folder = Path("runs") / f"quantize-{output.stem}-{digest}"  # other settings are another run
    _run(folder, recipe, folder, as_json)
    Packed.load(folder / "packed.safetensors").save(output)
    if not as_json:
        print_written(output)


def _recipe_path(recipe: Path) -> Path:
    """Return the file of a recipe: the file itself, or the shipped recipe of that name."""
    from octavo.runs.recipes import RECIPES

    shipped = {
        path.relative_to(RECIPES).with_suffix("").as_posix(): path
        for path in sorted(RECIPES.rglob("*.yaml"))
    }
    path = recipe if recipe.is_file() else shipped.get(str(recipe), recipe)
    if not path.exists():
        raise RecipeError(
            f"{recipe}: no such file, nor one of the recipes that come with octavo: "
            f"{', '.join(shipped)}"
        )
    return path


def _run(
    path: Path, recipe: "Recipe", folder: Path, as_json: bool, save_every: float = SAVE_EVERY
) -> None:
    """Run a recipe in its folder, publish what it publishes, and print the result."""
    from octavo.report.display import Display
    from octavo.report.tables import layers_table, result_table
    from octavo.runs.run import publish
    from octavo.runs.run import run as run_recipe

    with Display(err if as_json else out) as display, listening() as interruption:
        result = run_recipe(
            recipe, folder, display, interruption=interruption, save_every=60 * save_every
        )
    published = publish(recipe, path, folder)
    page = write_report(folder)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    if "stages" not in result:  # PTQ alone: there is no table of stages, but one of layers
        out.print(layers_table(result["layers"]))
    out.print(result_table(result))
    files = f"the network: {folder / 'packed.safetensors'}   the figures: {folder / 'result.json'}"
    lines = [files, f"the report: {page}", *(f"published: {copy}" for copy in published)]
    out.print("\n".join(lines), soft_wrap=True, markup=False)
