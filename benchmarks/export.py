"""Size, exactness and speed of exported files, with ResNet-20 and a depthwise network.

    python benchmarks/export.py

Both networks have 4 bits a weight. ResNet-20 is benchmarks/results/resnet20-inq-4bit.safetensors.
Its int8 form is scored on CIFAR-10, and so are those of the networks of 2, 3 and 5 bits; the ranges
of their activations come from the task's 1,024 training images. The depthwise network is
MobileNet's (arXiv 1704.04861) on images of 32 x 32 pixels. It is not trained: its batch norms have
the statistics of training images, and its weights are calibrated. Times are processor times of
float32 and int8 files, which take turns: batch 32, one thread, median. Writes
benchmarks/results/export.json.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from octavo import Packed, Plan, calibrate
from octavo.deploy.exporting import export_checked, load_onnx
from octavo.runs.run import environment
from octavo.runs.tasks.cifar10 import Cifar10

RESULTS = Path(__file__).parent / "results"
BATCH = 32
TURNS = 101
WIDTH = {"lut": 4, "fp8": 8, "int8": 8, "float": 32}  # bits of a weight in the file


def mobilenet(images: list[Tensor]) -> nn.Module:
    """Build depthwise and pointwise convolutions in turn, with ReLU6, of 32 to 512 channels."""

    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        return [
            depthwise,
            nn.BatchNorm2d(inputs),
            nn.ReLU6(),
            pointwise,
            nn.BatchNorm2d(outputs),
            nn.ReLU6(),
        ]

    sizes = [
        (32, 64, 1),
        (64, 128, 2),
        (128, 128, 1),
        (128, 256, 2),
        (256, 256, 1),
        (256, 512, 2),
        (512, 512, 1),
    ]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(0)
        first = [nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()]
        last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]
        model = nn.Sequential(*first, *(layer for size in sizes for layer in block(*size)), *last)
        for batch in images:
            model(batch)
    return model.eval()


def timed(sessions: dict[str, onnxruntime.InferenceSession], images: np.ndarray) -> dict[str, Any]:
    """Return the milliseconds of processor time of two sessions that take turns, and how many times
    the second is faster.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(TURNS):
        for name, session in sessions.items():
            start = time.process_time()
            session.run(None, {session.get_inputs()[0].name: images})
            seconds[name].append(time.process_time() - start)
    first, second = (1000 * statistics.median(values[1:]) for values in seconds.values())
    return dict(zip(seconds, (round(first, 2), round(second, 2)), strict=True)) | {
        "ratio": round(first / second, 2)
    }


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def measured(model: nn.Module, packed: Packed, images: list[Tensor]) -> dict[str, Any]:
    """Return size and difference of each form, and the speed of int8 relative to float32."""
    with tempfile.TemporaryDirectory() as folder:
        made = {
            form: export_checked(
                model, packed, Path(folder, f"{form}.onnx"), form=form, example=images
            )
            for form in WIDTH
        }
        speed = timed(
            {form: session(made[form].path) for form in ("float", "int8")},
            images[0][:BATCH].contiguous().numpy(),
        )
    weights = sum(packed.plan.weights.values())
    graph = made["float"].bytes - 4 * weights
    rows = {
        form: {
            "bytes": one.bytes,
            "codes": weights * WIDTH[form] // 8,
            "difference": one.difference,
        }
        for form, one in made.items()
    }
    return {"weights": weights, "graph_bytes": graph, "forms": rows, "speed": speed}


def int8_scores(task: Cifar10, images: list[Tensor]) -> dict[str, Any]:
    scores = {}
    for bits in (2, 3, 4, 5):
        packed = Packed.load(RESULTS / f"resnet20-inq-{bits}bit.safetensors")
        model = task.model()
        with tempfile.TemporaryDirectory() as folder:
            made = export_checked(
                model, packed, Path(folder, "int8.onnx"), form="int8", example=images
            )
            packed.apply(model)
            scores[str(bits)] = {
                "packed": task.score(model),
                "int8": task.score(load_onnx(made.path)),
                "inexact": len(made.inexact),
            }
        print(bits, scores[str(bits)])
    return scores


def integer_unit() -> bool:
    """Tell whether the processor multiplies and adds bytes in one instruction."""
    info = Path("/proc/cpuinfo")
    return info.exists() and bool(
        {"avx512_vnni", "avx_vnni"} & set(info.read_text(encoding="utf-8").split())
    )


def main() -> None:
    task = Cifar10(weights="~/.cache/octavo/resnet20-cifar10.safetensors")
    images = list(task.calibration())
    depthwise = mobilenet(images)
    packed = {"resnet20": Packed.load(RESULTS / "resnet20-inq-4bit.safetensors")}
    packed["mobilenet"] = calibrate(depthwise, Plan.uniform(depthwise, 4), images)
    rows = {
        name: measured(model, packed[name], images)
        for name, model in (("resnet20", task.model()), ("mobilenet", depthwise))
    }
    for name, row in rows.items():
        print(name, json.dumps(row))
    found = environment() | {"onnxruntime": onnxruntime.__version__, "vnni": integer_unit()}
    result = {
        "batch": BATCH,
        "environment": found,
        "networks": rows,
        "int8_scores": int8_scores(task, images),
    }
    (RESULTS / "export.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
