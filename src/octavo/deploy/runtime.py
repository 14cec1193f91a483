"""ONNX Runtime: a file as a module that is called like the network that it came from."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from octavo.errors import ExportError, FormatError, PlanError, brief, install
from octavo.network.nested import named_tensors

__all__ = ["OnnxModel"]


class OnnxModel(nn.Module):
    """An ONNX file that ONNX Runtime runs on the CPU. It takes and returns tensors as the network
    does that it was exported from.

    Raises:
        FormatError: the file cannot be read, or contains what this ONNX Runtime does not know.

    """

    def __init__(self, source: str | Path | bytes) -> None:
        super().__init__()
        name = "the ONNX model" if isinstance(source, bytes) else source
        try:
            self.session = _session(
                source if isinstance(source, bytes) else Path(source).read_bytes()
            )
        except OSError as error:
            raise FormatError(f"{name}: {error.strerror}") from error
        except Exception as error:  # onnxruntime's own have no common ancestor
            raise FormatError(
                f"{name}: ONNX Runtime {onnxruntime.__version__} does not take it, "
                f"{install('onnx')}, upgraded: {brief(error)}"
            ) from error

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output, or a tuple of the outputs if there are several."""
        outputs = self.run(args, kwargs)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def run(
        self, args: Any, kwargs: Mapping[str, Any], names: Sequence[str] | None = None
    ) -> list[Tensor]:
        """Compute the values called ``names``, or all outputs, from arguments of the network.

        Raises:
            PlanError: an input is missing.
            ExportError: ONNX Runtime cannot run the graph on these inputs.

        """
        inputs = self.feed(args, kwargs)
        try:
            outputs = self.session.run(
                names, {name: value.detach().cpu().numpy() for name, value in inputs.items()}
            )
        except Exception as error:  # onnxruntime's own have no common ancestor
            raise ExportError(
                f"the ONNX model: ONNX Runtime cannot run it on these inputs: {brief(error)}"
            ) from error
        return [torch.from_numpy(np.asarray(output)) for output in outputs]

    def feed(self, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the arguments by the names of the graph's inputs.

        Raises:
            PlanError: an input is missing.

        """
        names = [value.name for value in self.session.get_inputs()]
        inputs = dict(zip(names, _tensors(args), strict=False))
        inputs |= {name: value for name, value in kwargs.items() if name in names}
        missing = [name for name in names if name not in inputs]
        if missing:
            raise PlanError(
                f"the ONNX model expects inputs called {', '.join(names)}; "
                f"{', '.join(missing)} missing"
            )
        return inputs


def _session(data: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _tensors(value: Any) -> Iterator[Tensor]:
    return (tensor for _, tensor in named_tensors(value))
