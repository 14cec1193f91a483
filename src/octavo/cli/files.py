"""The commands that take a packed file: ``export``, ``evaluate`` and ``verify``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.cli.options import (
    AsJson,
    Device,
    Limit,
    Options,
    PackedFile,
    PlanFile,
    TaskOption,
    print_figures,
    task_network,
    task_options,
)
from octavo.errors import ExportError

if TYPE_CHECKING:
    from torch import nn

    from octavo.network.forward import Inputs
    from octavo.storage.packed import Packed

__all__ = ["evaluate", "export", "verify"]

Form = Annotated[
    str,
    typer.Option(
        help="lut, fp8, int8, float, mx, hf or gguf; the first four are ONNX: docs/export.md."
    ),
]


def export(
    task: TaskOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="A packed network; without one, --plan.", show_default=False
        ),
    ] = None,
    plan: PlanFile = None,
    form: Form = "lut",
    option: Options = None,
    device: Device = "auto",
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Write a packed network as ONNX, MXFP4 tensors, a folder of transformers or GGUF, and check
    it against the network.

    With `--plan`, the task's network is first calibrated on the device, as the plan says.

    Example: `octavo export runs/demo/packed.safetensors --task digits --form lut -o model.onnx`
    """
    from octavo._io import check_folder_of
    from octavo.deploy.exporting import export_checked
    from octavo.report.tables import exported_rows
    from octavo.runs.exports import exported_scores
    from octavo.runs.task import load_task, model_of
    from octavo.storage.packed import Packed

    check_folder_of(output)
    if (file is None) == (plan is None):
        raise ExportError("expected either a packed network or --plan, got both or neither")
    loaded = load_task(task, task_options(option))
    model = model_of(loaded, task)
    batches = list(loaded.calibration())
    if file is not None:
        packed = Packed.load(file, limit=limit, model=model)
    else:
        packed = _calibrated(model, plan or Path(), batches, device)
    exported = export_checked(model, packed, output, form=form, example=batches)
    scores = exported_scores(exported, packed, loaded, task)
    print_figures(exported_rows(exported) | scores, as_json)


def _calibrated(model: "nn.Module", plan: Path, batches: "list[Inputs]", device: str) -> "Packed":
    """Quantize a network by PTQ as the file of a plan says; its inputs too, where it says so."""
    from octavo.activations.quantization import quantize_activations
    from octavo.network.copies import copied
    from octavo.network.devices import device_named
    from octavo.plan import Plan
    from octavo.ptq.calibration import calibrate

    widths = Plan.load(plan)
    model = copied(model).to(device_named(device))
    if widths.activations:
        quantize_activations(model, batches, widths.activations)
    return calibrate(model, widths, batches)


def evaluate(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A packed network, or an ONNX file.", show_default=False
        ),
    ],
    task: TaskOption,
    option: Options = None,
    device: Device = "auto",
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Load a packed network into a task's model, or an ONNX file into ONNX Runtime, and score it.

    Example: `octavo evaluate runs/demo/packed.safetensors --task digits`
    """
    from octavo.deploy.exporting import load_onnx
    from octavo.report.tables import packed_rows
    from octavo.runs.metric import metric_of
    from octavo.runs.task import load_task
    from octavo.storage.file_kind import kind_of_file
    from octavo.storage.packed import Packed

    loaded = load_task(task, task_options(option))
    if file.suffix == ".onnx" or kind_of_file(file) == "onnx":
        score = metric_of(loaded, task, load_onnx(file), f"the network in {file}")
        print_figures({"score": score, "file_bytes": file.stat().st_size}, as_json)
        return
    model = task_network(loaded, task, device)
    packed = Packed.load(file, limit=limit, model=model)
    packed.apply(model)
    score = metric_of(loaded, task, model, f"the network in {file}")
    print_figures({"score": score, **packed_rows(packed)}, as_json)


def verify(file: PackedFile, limit: Limit = None, as_json: AsJson = False) -> None:
    """Check a packed file: its structure, its version and every checksum.

    Example: `octavo verify runs/demo/packed.safetensors`
    """
    from octavo.report.tables import packed_rows
    from octavo.storage.packed import Packed

    packed = Packed.load(file, limit=limit)  # loading checks all of the file, as octavo.verify does
    print_figures({"verified": str(file), **packed_rows(packed)}, as_json)
