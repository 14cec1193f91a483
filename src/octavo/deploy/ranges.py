"""The ranges of activations, measured by ONNX Runtime over batches, and the 8-bit codes that cover
them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import Tensor

from octavo.deploy.runtime import OnnxModel
from octavo.network.forward import Inputs, arguments

__all__ = ["Range", "measure"]


@dataclass(frozen=True)
class Range:
    """The values from ``low`` to ``high``, zero among them, in 255 equal intervals."""

    low: float
    high: float

    @property
    def scale(self) -> NDArray[Any]:
        """The distance between two codes, float32."""
        return np.asarray(max(self.high - self.low, 1e-12) / 255, dtype=np.float32)

    @property
    def zero(self) -> NDArray[Any]:
        """The code of zero, uint8."""
        return np.asarray(round(-self.low / float(self.scale)), dtype=np.uint8)


def measure(model: ir.Model, batches: Sequence[Inputs], names: Sequence[str]) -> dict[str, Range]:
    """Return the range of each named value over all batches."""
    proto = ir.to_proto(model)
    known = {value.name for value in proto.graph.input}
    proto.graph.output.extend(
        type(proto.graph.output[0])(name=name) for name in names if name not in known
    )
    runner = OnnxModel(proto.SerializeToString())
    spans = dict.fromkeys(names, (0.0, 0.0))
    for batch in batches:
        for name, value in _values(runner, batch, names, known).items():
            low, high = spans[name]
            spans[name] = min(low, float(value.min())), max(high, float(value.max()))
    return {name: Range(*span) for name, span in spans.items()}


def _values(
    runner: OnnxModel, batch: Inputs, names: Sequence[str], known: set[str]
) -> dict[str, Tensor]:
    """Compute the named values of a batch; those in ``known`` are inputs of the graph."""
    args, kwargs = arguments(batch)
    inputs = runner.feed(args, kwargs)
    values = {name: value for name, value in inputs.items() if name in names}
    inner = [name for name in names if name not in known]
    if inner:
        values |= zip(inner, runner.run(args, kwargs, inner), strict=True)
    return values
