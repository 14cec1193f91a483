"""Export: a packed network as a file that others run, in one of several forms, checked before it is
handed over.
"""

import copy
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import nn

from octavo._io import write_atomically
from octavo.deploy.mx import to_mx
from octavo.errors import ExportError, FormatError, PlanError, nearest
from octavo.network.calling import Inputs, on_device
from octavo.storage.packed import Packed

__all__ = [
    "FORMS",
    "Exported",
    "Form",
    "Job",
    "check_forms",
    "export",
    "export_checked",
    "load_onnx",
]

Form = Literal["lut", "fp8", "int8", "float", "mx"]
OPSET = 21
TOLERANCE = 1e-4  # of the largest output: more than sums in another order come to
# in the mean, where the network rounds activations: one beside a tie may then fall to either side
ROUNDED = 0.05


@dataclass(frozen=True)
class Job:
    """What a file is made of: the packed network in its module, in evaluation mode, and batches of
    its inputs.
    """

    model: nn.Module
    packed: Packed
    batches: Sequence[Inputs]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: where.
        form: one of ``FORMS``.
        bytes: size of the file.
        difference: the largest difference between the file's outputs, run by ONNX Runtime, and the
            packed network's, in terms of the largest output; None for ``mx``, which does not run.
        agreement: the share of predicted classes that are the same; None for ``mx``.
        inexact: the layers whose weights the file does not hold exactly.

    """

    path: Path
    form: str
    bytes: int
    difference: float | None
    agreement: float | None
    inexact: tuple[str, ...]


def export(
    model: nn.Module,
    packed: Packed,
    path: str | Path,
    *,
    form: Form = "lut",
    example: Inputs | list[Inputs],
) -> Path:
    """Write a packed network as a file for other runtimes, once that file was found to be right.

    ``lut``, ``fp8``, ``int8`` and ``float`` are ONNX files of opset 21, standard operators only,
    any batch size; they need ``octavo[onnx]``. ``mx`` is a safetensors file of MXFP4 and MXFP8
    tensors. docs/export.md has more on each.

    Args:
        model: the network's architecture, in full precision or not; it stays as it is.
        packed: the weights.
        path: the file to write; until it is complete and checked, there is what was there before.
        form: ``lut`` (4-bit codes and a table of levels), ``fp8`` (E4M3 elements), ``int8``
            (quantized activations too), ``float``, or ``mx``.
        example: what the model is called with, several inputs of one batch: a tensor, or a tuple or
            dict of arguments. Or a list of such: ``int8`` takes the ranges of activations from all
            of them.

    Returns:
        The path.

    Raises:
        ExportError: a form that is unknown, that a layer does not fit in, or that lacks a library;
            a model that cannot be exported; a file that came out wrong. The message names the
            layer.
        PlanError: the packed network does not fit the model.

    """
    return export_checked(model, packed, path, form=form, example=example).path


def export_checked(
    model: nn.Module,
    packed: Packed,
    path: str | Path,
    *,
    form: str = "lut",
    example: Inputs | list[Inputs],
) -> Exported:
    """As :func:`export`, with what the check found."""
    check_forms([form])
    batches = [
        on_device(batch, torch.device("cpu"))
        for batch in (example if isinstance(example, list) else [example])
    ]
    if not batches:
        raise PlanError("example: expected at least one batch of inputs, got none")
    network = copy.deepcopy(model).cpu().eval()
    packed.apply(network)
    try:
        data, found, inexact = FORMS[form](Job(network, packed, batches))
    except FormatError as error:  # what was made, nothing that was read
        raise ExportError(f"{type(model).__name__}: {error}; nothing was written") from error
    write_atomically(path, lambda file: file.write(data))
    difference, agreement = found or (None, None)
    return Exported(Path(path), form, len(data), difference, agreement, inexact)


def check_forms(forms: Iterable[str]) -> None:
    """Raise ExportError unless there are forms of these names and the libraries for them are
    installed.
    """
    for form in forms:
        if form not in FORMS:
            raise ExportError(
                f"form: expected one of {', '.join(FORMS)}, got {form!r}{nearest(form, FORMS)}"
            )
        if form != "mx":
            _need("checks")


def load_onnx(path: str | Path) -> nn.Module:
    """An ONNX file as a module that ONNX Runtime runs on the CPU.

    Raises:
        FormatError: the file cannot be read, or holds what this ONNX Runtime does not know.
        ExportError: ONNX Runtime is not installed.

    """
    module: nn.Module = _need("runtime").OnnxModel(path)
    return module


Made = tuple[
    bytes, tuple[float, float] | None, tuple[str, ...]
]  # the file, (difference, agreement), layers not held exactly


def _in_float(maker: str) -> Callable[[Job], Made]:
    """A form that computes in float32, from the function of that name in ``octavo.deploy.onnx``."""

    def make(job: Job) -> Made:
        closed = getattr(_need("onnx"), maker)(job.model, job.packed.layers, job.batches[0], OPSET)
        data, found = _need("checks").checked(closed, job.model, job.packed.layers, job.batches[0])
        what, got, most = (
            ("mean", found.mean, ROUNDED)
            if job.packed.activations
            else ("largest", found.largest, TOLERANCE)
        )
        if not got <= most:
            raise ExportError(
                f"{type(job.model).__name__}: ONNX Runtime's outputs are not PyTorch's: the {what} difference is {got:.1e} of "
                f"the largest output, expected at most {most:.0e}; nothing was written"
            )
        return data, (found.largest, found.agreement), ()

    return make


def _int8(job: Job) -> Made:
    integers = _need("int8")
    closed = integers.int8_graph(job.model, job.packed.layers, job.batches, OPSET)
    data, found = _need("checks").checked(closed, job.model, {}, job.batches[0])
    return (
        data,
        (found.largest, found.agreement),
        tuple(
            name for name, layer in job.packed.layers.items() if not integers.is_exact(name, layer)
        ),
    )


def _mx(job: Job) -> Made:
    return to_mx(job.packed), None, ()


FORMS: Mapping[str, Callable[[Job], Made]] = MappingProxyType(
    {
        "lut": _in_float("lut_graph"),
        "fp8": _in_float("fp8_graph"),
        "int8": _int8,
        "float": _in_float("float_graph"),
        "mx": _mx,
    }
)


def _need(module: str) -> Any:
    """A module of this package that imports the libraries of the extra ``onnx``."""
    try:
        return importlib.import_module(f"octavo.deploy.{module}")
    except ImportError as error:
        raise ExportError(f"ONNX needs {error.name}: pip install 'octavo[onnx]'") from error
