"""The commands that run a recipe: ``demo``, ``run`` and ``quantize``."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo._interruption import listening
from octavo.cli.options import (
    FAST,
    AsJson,
    Device,
    FileCoding,
    Floats,
    Options,
    Overrides,
    PlanFile,
    Quiet,
    RecipeDevice,
    TaskName,
    TensorBoard,
    out,
    print_tables,
    print_written,
    read_budget,
    task_options,
    watched,
)
from octavo.cli.reports import write_report
from octavo.errors import RecipeError

if TYPE_CHECKING:
    from octavo.runs.recipe import Recipe

__all__ = ["demo", "quantize", "run"]

NoCode = Annotated[
    bool,
    typer.Option(
        "--no-code",
        help="For a recipe that you did not write: refuse code that it names, and publish inside "
        "of the run's folder only. See SECURITY.md.",
    ),
]
EveryWidth = Annotated[
    str | None,
    typer.Option(
        help="The width of every layer: 2 to 8 bits, apot5 to apot8, fp4, fp6, fp8 or int8. "
        "Default: 3, or apot5 with a limit on the file.",
    ),
]
Method = Annotated[
    str,
    typer.Option(help="inq: retrain while the weights freeze; ptq: calibrate, without training."),
]
FileBudget = Annotated[
    str | None,
    typer.Option(
        help="A limit on the file, bytes=60000 or ratio=10: calibration finds the rate that meets "
        "it. Retraining keeps to that rate, and may end some per cent above or below.",
    ),
]
BITS = "3"  # of every layer, where neither bits nor a plan are given
BITS_WITHIN = "apot5"  # the same within a budget: a rate wants levels to spare
SAVE_EVERY = 10.0  # minutes between two savings inside a stage

NEXT = """
Three commands to try next:
  octavo evaluate {folder}/packed.safetensors --task digits   load the file and score it
  octavo inspect digits   see which tensors can be quantized, and which cannot
  octavo quantize digits --method ptq --bits 3 -o quick.safetensors   quantize without training"""


def demo(
    folder: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/demo"),
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train a small network on handwritten digits, learn the bits of its layers, quantize it, and
    show what it cost.

    Example: `octavo demo`
    """
    from octavo.runs.recipes import RECIPES

    path = RECIPES / "digits-dnq.yaml"
    with watched(as_json, quiet):
        from octavo.runs.recipe import load_recipe

        recipe = load_recipe(path, [f"device={device}"])
    if _run(path, recipe, folder, as_json, quiet) and not as_json:
        typer.echo(NEXT.format(folder=folder))


def run(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE", help="A YAML file, or the name of a recipe that comes with octavo."
        ),
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
    device: RecipeDevice = None,
    tensorboard: TensorBoard = False,
    no_code: NoCode = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Do everything that a recipe says. The same command continues a run that was stopped.

    On several GPUs: `torchrun --nproc-per-node 8 -m octavo run recipe.yaml`

    Example: `octavo run digits --set seed=1 --folder runs/seed1`
    """
    path = _recipe_path(recipe)
    folder = folder or Path("runs") / path.stem
    chosen = [] if device is None else [f"device={device}"]
    with watched(as_json, quiet):
        from octavo.runs.no_code import check_no_code, published_inside
        from octavo.runs.recipe import load_recipe

        content = load_recipe(path, [*(overrides or ()), *chosen])
        if no_code:
            check_no_code(content)
            path = published_inside(folder)
    _run(path, content, folder, as_json, quiet, save_every=save_every, tensorboard=tensorboard)


def quantize(
    task: TaskName,
    output: Annotated[Path, typer.Option("--output", "-o", help="The packed file to write.")],
    bits: EveryWidth = None,
    plan: PlanFile = None,
    method: Method = "inq",
    budget: FileBudget = None,
    floats: Floats = None,
    coding: FileCoding = FAST,
    option: Options = None,
    overrides: Overrides = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Quantize a task's network with octavo's default settings and write the packed file.

    `--plan plan.yaml` gives each layer the bits that the plan says; `--budget` limits the file.

    Example: `octavo quantize digits --bits 4 --method ptq -o digits.safetensors`
    """
    from octavo._io import check_output

    check_output(output)
    with watched(as_json, quiet):
        from octavo.runs.overrides import override
        from octavo.runs.recipe import make_recipe
        from octavo.storage.packed import Packed

        content: dict[str, Any] = {"task": task, "options": task_options(option)}
        default = BITS if budget is None else BITS_WITHIN
        content |= _widths(bits, plan, default)
        content |= {"method": method, "control": False, "device": device}
        content |= {"floats": floats, "coding": coding, "ptq": {"budget": read_budget(budget)}}
        recipe = make_recipe(override(content, overrides or ()), "quantize")
    digest = hashlib.sha256(recipe.model_dump_json(exclude={"device"}).encode()).hexdigest()[:8]
    folder = Path("runs") / f"quantize-{output.stem}-{digest}"  # other settings are another run
    if not _run(folder, recipe, folder, as_json, quiet):
        return
    Packed.load(folder / "packed.safetensors").save(output)
    if not as_json:
        print_written(output)


def _widths(bits: str | None, plan: Path | None, default: str) -> dict[str, Any]:
    """Return the keys of a recipe that say the bits, from the options of the command line."""
    from octavo.runs.overrides import yaml_value
    from octavo.runs.plan_files import plan_keys

    if plan is None:
        return {"bits": yaml_value(bits or default, "--bits")}
    if bits is not None:
        raise RecipeError(f"expected one of --bits and --plan, got both: {bits} and {plan}")
    return plan_keys(plan)


def _recipe_path(recipe: Path) -> Path:
    """Return the file of a recipe: the file itself, or the shipped recipe of that name."""
    from octavo.runs.recipes import RECIPES

    shipped = {
        path.relative_to(RECIPES).with_suffix("").as_posix(): path
        for path in sorted(RECIPES.rglob("*.yaml"))
    }
    path = recipe if recipe.is_file() else shipped.get(str(recipe), recipe)
    if path.is_dir() or path.suffix == ".py":
        got = "a folder" if path.is_dir() else "a file of Python"
        raise RecipeError(
            f"{recipe}: expected a recipe, got {got}; a recipe is a YAML file that names a task: "
            "`octavo init` writes one, and the folder of a run has its own, recipe.json"
        )
    if not path.exists():
        raise RecipeError(
            f"{recipe}: no such file, nor one of the recipes that come with octavo: "
            f"{', '.join(shipped)}"
        )
    return path


def _run(
    path: Path,
    recipe: "Recipe",
    folder: Path,
    as_json: bool,
    quiet: bool,
    *,
    save_every: float = SAVE_EVERY,
    tensorboard: bool = False,
) -> bool:
    """Run a recipe in its folder, together with the ranks that torchrun has started. Rank 0
    publishes what the recipe publishes, and prints the result.

    Returns:
        True on rank 0.

    """
    from octavo._io import json_text
    from octavo.progress import Event
    from octavo.report.tables import result_table
    from octavo.runs.launch import launched
    from octavo.runs.run import publish
    from octavo.runs.run import run as run_recipe
    from octavo.runs.tensorboard import scalars_to

    with watched(as_json, quiet) as progress, listening() as interruption:
        with (
            launched(recipe.device) as ranks,
            scalars_to(
                folder / "tensorboard" if tensorboard and ranks.leads else None, progress
            ) as watch,
        ):
            result = run_recipe(
                recipe, folder, watch, interruption=interruption, save_every=60 * save_every
            )
        if not ranks.leads:
            return False
        published = publish(recipe, path, folder)
        progress(Event("report", message="writing the report"))
        page = write_report(folder)
    if as_json:
        typer.echo(json_text(result, indent=2))
        return True
    print_tables(result_table(result))
    _print_files(folder, page, published)
    return True


def _print_files(folder: Path, page: Path, published: list[Path]) -> None:
    """Say which files a run has written."""
    files = f"the network: {folder / 'packed.safetensors'}   the figures: {folder / 'result.json'}"
    lines = [files, f"the report: {page}", *(f"published: {copy}" for copy in published)]
    out.print("\n".join(lines), soft_wrap=True, markup=False)
