"""The codes of the published retrained networks in nncodec's DeepCABAC, without loss.

    make peers      # its last minute, in an environment of its own

The codes are those of benchmarks/results/*.safetensors as integers with zero in the middle, which
nncodec stores without quantizing; what it decodes to is compared. The bytes are those of its bit
stream, which has names and headers of tensors too: how many, is measured with zeros in place of the
codes. Writes benchmarks/results/cabac.json.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from contenders import nncodec  # type: ignore[import-not-found]  # its neighbour

from octavo import Packed
from octavo.runs.run import environment
from octavo.runs.run_folder import write_json

RESULTS = Path(__file__).parents[1] / "results"


def stream(codes: dict[str, Any]) -> int:
    """Return the bytes of the stream of codes by the names of their layers."""
    coder = nncodec()
    with TemporaryDirectory() as folder:
        data = coder.encode(codes, {"results": folder, "verbose": False})
    again = coder.decode(data)
    if any(not np.array_equal(again[name], one) for name, one in codes.items()):
        raise RuntimeError("nncodec decoded other codes")
    return len(data)


def measured(packed: Packed) -> dict[str, int]:
    codes = {
        name: (one.codes.int() - one.codebook.width.level_count // 2).numpy()
        for name, one in packed.layers.items()
    }
    zeros = {name: np.zeros_like(one) for name, one in codes.items()}
    return {"stream_bytes": stream(codes), "header_bytes": stream(zeros)}


def main() -> None:
    rows: dict[str, Any] = {}
    for path in sorted(RESULTS.glob("resnet20-*.safetensors")):
        rows[path.stem] = measured(Packed.load(path))
        print(path.stem, rows[path.stem], flush=True)
    write_json(RESULTS / "cabac.json", {"environment": environment(), "rows": rows})


if __name__ == "__main__":
    main()
