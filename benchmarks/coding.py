"""Size and speed of the file's entropy coder beside other coders, and its decoding beside loading.

    python benchmarks/coding.py --weights resnet56-cifar10.safetensors

Three sets of weights are coded: every weight of that file with two dimensions or more, 25 M
Gaussian weights, and the same with nine in ten set to zero. All are powers of two, fitted per
channel by squared error.

The coders are octavo's (zstandard), constriction's ANS and range coder (which get the codes' true
frequencies, 4 bytes each, as a header), radix packing (octavo's grouping alone), and fixed-width
packing.

Every decoding takes turns with loading the same weights in float32 from a warm page cache, in two
senses: "load" copies them into memory of their own, as decoding does; "read" leaves them where
`load_file` maps them and adds them up once. `load_file` alone reads nothing at all. One thread.
Writes benchmarks/results/coding.json.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import constriction
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from octavo.formats.powers_of_two import power_of_two
from octavo.runs.run import environment
from octavo.storage.coding import grouped as coding

COUNT = 25_000_000
CHANNELS = 5_000
BITS = (2, 3, 4, 5)
REPEATS = 7
SEED = 0
RESULT = Path(__file__).parent / "results" / "coding.json"
COLUMNS = (
    "weights",
    "bits",
    "coder",
    "bytes",
    "over_entropy_pct",
    "encode_mps",
    "decode_mps",
    "x_load",
    "x_read",
)


class Coder(NamedTuple):
    """A coder: (codes, bits) to an encoding, that and (count, bits) back to codes, and its size in
    bytes.
    """

    encode: Callable[[Tensor, int], Any]
    decode: Callable[[Any, int, int], Tensor]
    size: Callable[[Any], int] = len


def categorical(counts: np.ndarray) -> Any:
    return constriction.stream.model.Categorical(counts.astype(np.float32), perfect=False)


def frequencies(codes: Tensor, bits: int) -> np.ndarray:
    return torch.bincount(codes, minlength=2 ** (bits - 1) + 1).numpy().astype(np.uint32)


def ans_encode(codes: Tensor, bits: int) -> tuple[np.ndarray, np.ndarray]:
    counts = frequencies(codes, bits)
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(codes.numpy().astype(np.int32), categorical(counts))
    return counts, coder.get_compressed()


def ans_decode(data: tuple[np.ndarray, np.ndarray], count: int, _bits: int) -> Tensor:
    coder = constriction.stream.stack.AnsCoder(data[1])
    return torch.from_numpy(coder.decode(categorical(data[0]), count).astype(np.uint8))


def range_encode(codes: Tensor, bits: int) -> tuple[np.ndarray, np.ndarray]:
    counts = frequencies(codes, bits)
    coder = constriction.stream.queue.RangeEncoder()
    coder.encode(codes.numpy().astype(np.int32), categorical(counts))
    return counts, coder.get_compressed()


def range_decode(data: tuple[np.ndarray, np.ndarray], count: int, _bits: int) -> Tensor:
    coder = constriction.stream.queue.RangeDecoder(data[1])
    return torch.from_numpy(coder.decode(categorical(data[0]), count).astype(np.uint8))


def radix_encode(codes: Tensor, bits: int) -> np.ndarray:
    return coding._group(codes.numpy(), 2 ** (bits - 1) + 1)


def radix_decode(data: np.ndarray, count: int, bits: int) -> Tensor:
    return torch.from_numpy(coding._ungroup(data, count, 2 ** (bits - 1) + 1)[0])


def fixed_encode(codes: Tensor, bits: int) -> np.ndarray:
    return np.packbits(np.unpackbits(codes.numpy()[:, None], axis=1)[:, 8 - bits :])


def fixed_decode(data: np.ndarray, count: int, bits: int) -> Tensor:
    flags = np.unpackbits(data, count=count * bits).reshape(count, bits)
    return torch.from_numpy(np.packbits(flags, axis=1)[:, 0] >> (8 - bits))


def bytes_of(arrays: tuple[np.ndarray, np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays)


CODERS = {
    "octavo": Coder(coding.encode_codes, coding.decode_codes),
    "constriction ANS": Coder(ans_encode, ans_decode, bytes_of),
    "constriction range": Coder(range_encode, range_decode, bytes_of),
    "radix": Coder(radix_encode, radix_decode),
    "fixed width": Coder(fixed_encode, fixed_decode),
}


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(coder: Coder, codes: Tensor, bits: int, file: Path) -> dict[str, Any]:
    """Measure one row: medians of REPEATS, decoding and the two ways of loading in turn."""
    encoded = coder.encode(codes, bits)
    count = codes.numel()
    if not torch.equal(coder.decode(encoded, count, bits), codes):
        raise RuntimeError("decoding gave other codes")
    encode = statistics.median(seconds(lambda: coder.encode(codes, bits)) for _ in range(3))
    turns = [
        (
            seconds(lambda: coder.decode(encoded, count, bits)),
            seconds(lambda: [tensor.clone() for tensor in load_file(file).values()]),
            seconds(lambda: [tensor.sum() for tensor in load_file(file).values()]),
        )
        for _ in range(REPEATS)
    ]
    decode, load, read = (statistics.median(column) for column in zip(*turns, strict=True))
    return {
        "bytes": coder.size(encoded),
        "over_entropy_pct": round(
            100 * (coder.size(encoded) / coding.entropy_bytes(codes, bits) - 1), 2
        ),
        "encode_mps": round(count / encode / 1e6),
        "decode_mps": round(count / decode / 1e6),
        "x_load": round(decode / load, 2),
        "x_read": round(decode / read, 2),
        "load_s": round(load, 5),
        "read_s": round(read, 5),
    }


def encoded(weights: list[Tensor], bits: int) -> Tensor:
    return torch.cat(
        [power_of_two(w, bits, fit="mse", per="channel").encode(w).flatten() for w in weights]
    )


def compare(name: str, weights: list[Tensor], folder: Path) -> list[dict[str, Any]]:
    file = folder / "float32.safetensors"
    rows = []
    save_file({"weights": torch.cat([w.flatten() for w in weights])}, file)
    for bits in BITS:
        codes = encoded(weights, bits)
        for label, coder in CODERS.items():
            rows.append(
                {"weights": name, "bits": bits, "coder": label, **measure(coder, codes, bits, file)}
            )
            print(*(f"{rows[-1][column]!s:>18}" for column in COLUMNS), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights", type=Path, required=True, help="a safetensors file of a trained network"
    )
    path = parser.parse_args().weights
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(SEED)
    gaussian = torch.randn(CHANNELS, COUNT // CHANNELS, generator=generator)
    pruned = gaussian * (torch.rand(gaussian.shape, generator=generator) < 0.1)
    network = [w.float() for w in load_file(path).values() if w.dim() >= 2]
    data = {path.stem: network, "Gaussian": [gaussian], "Gaussian, 90 % 0": [pruned]}
    print(*(f"{column:>18}" for column in COLUMNS))
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row for name, weights in data.items() for row in compare(name, weights, Path(folder))
        ]
    about = {
        "environment": environment()
        | {name: version(name) for name in ("zstandard", "constriction", "safetensors")},
        "counts": {name: sum(w.numel() for w in weights) for name, weights in data.items()},
        "seed": SEED,
        "repeats": REPEATS,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(about | {"rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
