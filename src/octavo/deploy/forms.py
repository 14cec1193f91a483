"""The registry of forms: a form is a name and the function that makes its file.

octavo's own forms and those of a user are registered in the same way, by :func:`register_form`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias, cast

from torch import nn

from octavo.deploy.comparison import Comparison
from octavo.errors import ExportError, PlanError, either, install, nearest
from octavo.network.forward import Inputs
from octavo.storage.packed import Packed

__all__ = [
    "FORMS",
    "FormFile",
    "Job",
    "Make",
    "check_forms",
    "check_plain_inputs",
    "file_name",
    "maker",
    "missing_library",
    "register_form",
]


@dataclass(frozen=True)
class Job:
    """The network that a file is made from.

    Attributes:
        model: the network on the CPU, in evaluation mode, with the packed weights in it.
        packed: the packed weights.
        batches: batches of inputs that the model is called with; none if there is no example.

    """

    model: nn.Module
    packed: Packed
    batches: Sequence[Inputs]

    def first_batch(self) -> Inputs:
        """Return the first batch.

        Raises:
            PlanError: there is no example.

        """
        if not self.batches:
            raise PlanError(
                "example: this form runs the model, expected inputs that it is called with, got "
                "none; write example=inputs"
            )
        return self.batches[0]


def check_plain_inputs(job: Job, form: str) -> None:
    """Raise ExportError, for a form that holds weights alone, if layers round their inputs."""
    for name in job.packed.activations:
        raise ExportError(
            f"{name}: its inputs are quantized, which the form {form} does not hold; quantize the "
            "weights alone"
        )


@dataclass(frozen=True)
class FormFile:
    """The content of a file or folder of a form, after its checks.

    Attributes:
        data: the content of the file; of a form that is a folder, the content of each of its files
            by its name.
        comparison: its outputs beside the network's; None for a form that does not run.
        inexact: the layers whose weights the file does not store exactly.
        wider: the quantized layers that the file stores as numbers of 16 bits, because its small
            formats do not hold them.

    """

    data: bytes | Mapping[str, bytes]
    comparison: Comparison | None = None
    inexact: tuple[str, ...] = ()
    wider: tuple[str, ...] = ()

    def files(self, path: Path) -> dict[Path, bytes]:
        """Return the content of each file that is written under the path of the export."""
        if isinstance(self.data, bytes):
            return {path: self.data}
        return {path / name: content for name, content in self.data.items()}


Make: TypeAlias = Callable[[Job], FormFile]

SUFFIXES = {"mx": ".safetensors", "hf": "", "gguf": ".gguf"}  # of the forms that are not ONNX
ONNX_LIBRARIES = {"onnx", "onnx_ir", "onnxscript", "onnxruntime", "ml_dtypes"}
HF_LIBRARIES = {"transformers": "hf", "compressed_tensors": "hf", "gguf": "gguf"}  # their extras

_makers: dict[str, Make | str] = {}
FORMS: Mapping[str, Make | str] = MappingProxyType(_makers)  # by name, in order of registration


def register_form(name: str, make: Make | str) -> None:
    """Add a form of export.

    Args:
        name: the name of the form, for ``export`` and ``octavo export --form``.
        make: the function that makes the file of a :class:`Job`, or its dotted name
            ``"package.module:function"``, which is imported when the form is first used. The
            function raises ExportError, and names the layer, where a layer does not fit.

    Raises:
        ExportError: another form has this name.

    """
    if name in _makers:
        raise ExportError(f"register_form: there is a form {name!r} already; choose another name")
    _makers[name] = make


register_form("lut", "octavo.deploy.lut:make")
register_form("fp8", "octavo.deploy.fp8:make")
register_form("int8", "octavo.deploy.int8:make")
register_form("float", "octavo.deploy.float32:make")
register_form("mx", "octavo.deploy.mx:make")
register_form("hf", "octavo.deploy.hf:make")
register_form("gguf", "octavo.deploy.gguf:make")


def file_name(form: str) -> str:
    """Return the name that a file, or a folder, of a form gets in the folder of a run."""
    return form + SUFFIXES.get(form, ".onnx")


def maker(name: str) -> Make:
    """Return the function that makes files of a form.

    Raises:
        ExportError: there is no form of this name, or a library that it needs is not installed.

    """
    if name not in _makers:
        raise ExportError(
            f"form: expected one of {', '.join(_makers)}, got {name!r}{_instead(name)}"
        )
    make = _makers[name]
    if not isinstance(make, str):
        return make
    module, _, function = make.partition(":")
    try:
        return cast("Make", getattr(import_module(module), function))
    except ImportError as error:
        raise ExportError(missing_library(error, f"form {name}")) from error


def _instead(name: str) -> str:
    """Return the end of the message about an unknown form, which may be the ending of a file."""
    forms = [form for form in _makers if file_name(form) == f"{form}.{name}"]
    if forms:
        return f"; for {name} write {either(forms)}"
    return nearest(name, _makers, only_alike=True)


def missing_library(error: ImportError, user: str) -> str:
    """Return the message about a library that ``user`` needs and that could not be imported."""
    library = (error.name or "").partition(".")[0]
    if library in ONNX_LIBRARIES:
        return f"ONNX needs {library}: {install('onnx')}"
    if library in HF_LIBRARIES:
        return f"{user} needs {library}: {install(HF_LIBRARIES[library])}"
    return f"{user} needs {error.name}, which is not installed"


def check_forms(names: Iterable[str]) -> None:
    """Raise ExportError unless there are forms of these names and their libraries are installed."""
    for name in names:
        maker(name)
