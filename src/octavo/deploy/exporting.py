"""Export: a packed network as a file that others run, in one of several forms, checked before it is
handed over.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from octavo._io import check_folder_of, write_atomically
from octavo.deploy.forms import Job, maker, missing_library
from octavo.errors import ExportError, FormatError, PlanError
from octavo.network.copies import copied
from octavo.network.forward import Inputs, on_device
from octavo.storage.packed import Packed

__all__ = ["Exported", "Form", "export", "export_checked", "load_onnx"]

Form = Literal[
    "lut", "fp8", "int8", "float", "mx", "hf", "gguf"
]  # octavo's own; others may be registered


@dataclass(frozen=True)
class Exported:
    """A file that was checked and written.

    Attributes:
        path: the file.
        form: the name of its form.
        bytes: its size.
        difference: the largest difference between the outputs of the file, run by ONNX Runtime, and
            those of the packed network, in units of the largest output. None for a form that does
            not run, such as ``mx``.
        agreement: the share of predicted classes that are the same; None as ``difference``, and
            for a network whose first output has no classes, such as a regression.
        inexact: the layers whose weights the file does not store exactly.
        wider: the quantized layers that the file stores as numbers of 16 bits.

    """

    path: Path
    form: str
    bytes: int
    difference: float | None
    agreement: float | None
    inexact: tuple[str, ...]
    wider: tuple[str, ...] = ()


def export(
    model: nn.Module,
    packed: Packed,
    path: str | Path,
    *,
    form: Form | str = "lut",
    example: Inputs | list[Inputs] | None = None,
) -> Path:
    """Write a packed network as a file for other runtimes, after that file was checked against the
    network.

    ``lut``, ``fp8``, ``int8`` and ``float`` are ONNX files of opset 21 with standard operators only
    and a free batch size; they need the extra ``onnx``. ``mx`` is a safetensors file of MXFP4 and
    MXFP8 tensors. ``hf`` is a folder for ``transformers`` and vLLM, and needs the extra ``hf``;
    ``gguf`` is a file for llama.cpp, and needs the extra ``gguf``. docs/export.md describes each.
    ``octavo.deploy.forms.register_form`` adds others.

    Args:
        model: the network's architecture, in full precision or not; it is not changed.
        packed: the weights.
        path: the file to write, or the folder for ``hf``. Until the new file is complete and
            checked, an older one stays.
        form: ``lut`` (4-bit codes and a table of levels), ``fp8`` (E4M3 elements), ``int8``
            (quantized activations too), ``float``, ``mx``, ``hf`` or ``gguf``.
        example: one batch of several inputs that the model is called with: a tensor, or a tuple or
            dict of arguments. Or a list of batches: ``int8`` takes the ranges of activations from
            all of them. ``mx`` and ``gguf`` do not run the model and need none; ``hf``
            compares its outputs if there is one.

    Returns:
        The path.

    Raises:
        ExportError: the form is unknown, a layer does not fit in it, or a library is missing; the
            model cannot be exported; or the file computes something else. The message names the
            layer.
        PlanError: the packed network does not fit the model, or there is no example for a form that
            needs one.
        FileNotFoundError: the folder of ``path`` does not exist.

    """
    return export_checked(model, packed, path, form=form, example=example).path


def export_checked(
    model: nn.Module,
    packed: Packed,
    path: str | Path,
    *,
    form: str = "lut",
    example: Inputs | list[Inputs] | None = None,
) -> Exported:
    """Export as :func:`export` does, and return the result of the check."""
    make = maker(form)
    check_folder_of(path)
    examples = example if isinstance(example, list) else [example]
    if example is None:
        examples = []
    batches = [on_device(batch, torch.device("cpu")) for batch in examples]
    if not batches and example is not None:
        raise PlanError("example: expected at least one batch of inputs, got none")
    network = copied(model).cpu().eval()
    packed.apply(network)
    try:
        content = make(Job(network, packed, batches))
    except FormatError as error:  # it is about the new file: none was read
        raise ExportError(f"{type(model).__name__}: {error}; nothing was written") from error
    files = content.files(Path(path))
    for name, data in files.items():
        _write(name, data)
    comparison = content.comparison
    return Exported(
        path=Path(path),
        form=form,
        bytes=sum(map(len, files.values())),
        difference=comparison.largest if comparison else None,
        agreement=comparison.agreement if comparison else None,
        inexact=content.inexact,
        wider=content.wider,
    )


def _write(path: Path, data: bytes) -> None:
    write_atomically(path, lambda file: file.write(data))


def load_onnx(path: str | Path) -> nn.Module:
    """Load an ONNX file as a module that ONNX Runtime runs on the CPU.

    Raises:
        FormatError: the file cannot be read, or contains what this ONNX Runtime does not know.
        ExportError: ONNX Runtime is not installed.

    """
    try:
        from octavo.deploy.runtime import OnnxModel
    except ImportError as error:
        raise ExportError(missing_library(error, "load_onnx")) from error
    return OnnxModel(path)
