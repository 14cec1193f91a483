"""The table of a GPU: steps with frozen weights, rounding, calibration, search, in eight minutes.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --dry-run    # every row in tiny sizes, on a CPU

It needs the source tree alone: all networks are written here or in octavo, and their weights and
inputs are random, on which no time depends. Prints each row as it is measured. Rows that would
begin after the deadline are left out. Writes benchmarks/results/gpu.json with the card's name; a
dry run writes nothing. A ratio is that of medians over `--rounds` rounds, in which the variants
take turns.
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_networks import ResNet50, ViT, ViTSize  # type: ignore[import-not-found]  # its neighbour
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from octavo import Budget, Incremental, Plan, calibrate, power_of_two, search
from octavo.runs.run import environment
from octavo.runs.run_folder import write_json
from octavo.runs.tasks.resnet import resnet

SEED = 0
RESULT = Path(__file__).parent / "results" / "gpu.json"
GIB = 1 << 30


@dataclass(frozen=True)
class Sizes:
    """What is measured, in the sizes of the table or in tiny ones."""

    depth: int = 20
    batch: int = 128
    width: int = 64  # of ResNet-50
    image: int = 224
    vit: ViTSize = field(default_factory=ViTSize)
    images: int = 128  # of calibration
    weights: tuple[int, ...] = (1 << 22, 1 << 28)
    fitted: int = 1 << 24
    searched: int = 512  # images of the search
    trials: int = 200
    rounds: int = 20
    backend: str = "inductor"


TINY = Sizes(
    depth=8,
    batch=2,
    width=4,
    image=32,
    vit=ViTSize(width=16, layers=2, heads=2, patch=8, image=32),
    images=8,
    weights=(1 << 12,),
    fitted=1 << 12,
    searched=64,
    trials=40,
    rounds=1,
    backend="eager",
)


class Bench:
    """The device, and the clock of work on it."""

    def __init__(self, device: torch.device, sizes: Sizes) -> None:
        self.device = device
        self.sizes = sizes

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object]) -> float:
        """Return the seconds of some work."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def medians(self, works: Sequence[Callable[[], object]]) -> list[float]:
        """Return the median milliseconds of several works, which take turns."""
        for work in works:
            for _ in range(3):
                work()
        rounds = [[self.seconds(work) for work in works] for _ in range(self.sizes.rounds)]
        return [1e3 * statistics.median(of_one) for of_one in zip(*rounds, strict=True)]

    def measured(self, work: Callable[[], object]) -> dict[str, float]:
        """Return the seconds of some work, and the memory that it had at most."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        took = {"seconds": round(self.seconds(work), 2)}
        if self.device.type == "cuda":
            took["peak_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 2)
        return took


# The variants of a training step.


class Where(nn.Module):
    """The least that freezing can cost: `where(frozen, value, weight)`."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("frozen", torch.rand_like(weight) < 0.5)
        self.register_buffer("value", torch.zeros_like(weight))

    def forward(self, weight: Tensor) -> Tensor:
        """Replace frozen weights."""
        return torch.where(self.frozen, self.value, weight)  # type: ignore[arg-type]


def bare_where(model: nn.Module) -> nn.Module:
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            parametrize.register_parametrization(module, "weight", Where(module.weight))
    return model


def frozen(model: nn.Module, straight_through: float = 1.0) -> nn.Module:
    """Return a network with half of its weights frozen by octavo."""
    plan = Plan.uniform(model, 4)
    portions = (0.5, 1.0)
    incremental = Incremental(model, plan, portions=portions, straight_through=straight_through)
    next(iter(incremental))
    return model


def stepper(model: nn.Module, images: Tensor, *, bfloat16: bool) -> Callable[[], None]:
    """Return the function that makes one training step."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, 0.9)
    labels = torch.arange(len(images), device=images.device) % 10
    kind = images.device.type

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(kind, torch.bfloat16, enabled=bfloat16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return step


def steps(
    bench: Bench, plain: nn.Module, images: Tensor, *, bfloat16: bool = False, compiled: str = ""
) -> dict[str, Any]:
    """Measure a step of a plain network, and of its copies with frozen weights."""
    variants = {
        "plain": plain,
        "bare where": bare_where(copy.deepcopy(plain)),
        "half frozen": frozen(copy.deepcopy(plain)),
        "straight through": frozen(copy.deepcopy(plain), 0.5),
    }
    if compiled:
        del variants["bare where"]
        variants = {
            name: torch.compile(one, fullgraph=True, backend=compiled)  # type: ignore[misc]
            for name, one in variants.items()
        }
    works = [stepper(one.train(), images, bfloat16=bfloat16) for one in variants.values()]
    took = dict(zip(variants, bench.medians(works), strict=True))
    row: dict[str, Any] = {f"{name}, ms": round(ms, 3) for name, ms in took.items()}
    for name in variants:
        row[f"{name}, ratio"] = round(took[name] / took["plain"], 3)
    return row


def small_images(bench: Bench, count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, device=bench.device)


def large_images(bench: Bench, count: int) -> Tensor:
    images = torch.randn(count, 3, bench.sizes.image, bench.sizes.image, device=bench.device)
    return images.to(memory_format=torch.channels_last)


def resnet20_step(bench: Bench) -> dict[str, Any]:
    model = resnet(bench.sizes.depth).to(bench.device)
    return steps(bench, model, small_images(bench, bench.sizes.batch))


def resnet20_compiled(bench: Bench) -> dict[str, Any]:
    model = resnet(bench.sizes.depth).to(bench.device)
    images = small_images(bench, bench.sizes.batch)
    return steps(bench, model, images, compiled=bench.sizes.backend)


def resnet50_step(bench: Bench) -> dict[str, Any]:
    model = ResNet50(bench.sizes.width).to(bench.device, memory_format=torch.channels_last)
    return steps(bench, model, large_images(bench, bench.sizes.batch), bfloat16=True)


def no_waiting(bench: Bench) -> dict[str, Any]:
    """Make steps during which an operation that waits for the device is an error."""
    model = frozen(resnet(bench.sizes.depth).to(bench.device), 0.5)
    step = stepper(model.train(), small_images(bench, bench.sizes.batch), bfloat16=False)
    step()
    if bench.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step()
    finally:
        if bench.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return {"stops in three steps": 0}


# Rounding, calibration and search.


def rounding(bench: Bench) -> dict[str, Any]:
    row = {}
    for weights in bench.sizes.weights:
        weight = torch.randn(1024, weights // 1024, device=bench.device)
        codebook = power_of_two(weight, 4, fit="max", per="channel")
        works: list[Callable[[], object]] = [
            weight.clone, partial(codebook.project, weight), partial(codebook.encode, weight),
        ]  # fmt: skip
        clone, project, encode = bench.medians(works)
        row[f"{weights:,}: clone, ms"] = round(clone, 4)
        row[f"{weights:,}: project / clone"] = round(project / clone, 1)
        row[f"{weights:,}: encode / clone"] = round(encode / clone, 1)
    return row


def fit(bench: Bench) -> dict[str, Any]:
    weight = torch.randn(1024, bench.sizes.fitted // 1024, device=bench.device)
    clone, fitted = bench.medians([weight.clone, lambda: power_of_two(weight, 4, fit="mse")])
    return {"ms": round(fitted, 2), "clones": round(fitted / clone, 1)}


def calibration(bench: Bench, model: nn.Module, bits: int = 4) -> dict[str, Any]:
    """Calibrate a network; its batches wait in host memory."""
    model = model.to(bench.device).eval()
    batches = list(large_images(bench, bench.sizes.images).cpu().split(32))
    return bench.measured(lambda: calibrate(model, Plan.uniform(model, bits), batches))


def calibrated_resnet50(bench: Bench) -> dict[str, Any]:
    return calibration(bench, ResNet50(bench.sizes.width))


def calibrated_vit(bench: Bench) -> dict[str, Any]:
    return calibration(bench, ViT(bench.sizes.vit))


def searching(bench: Bench) -> dict[str, Any]:
    model = resnet(bench.sizes.depth).to(bench.device).eval()
    images = list(small_images(bench, bench.sizes.searched).split(128))
    budget = Budget(average_bits=3.0)
    trials = bench.sizes.trials
    return bench.measured(lambda: search(model, images, budget=budget, trials=trials, seed=SEED))


def llama(bench: Bench) -> dict[str, Any]:
    """Calibrate a Llama of a billion parameters with random weights; needs `transformers`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=32000,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    model = model.to(bench.device).eval()
    inputs = [{"input_ids": torch.randint(32000, (1, 512))} for _ in range(16)]
    plan = Plan.uniform(model, 4, exclude=("lm_head", "model.embed_tokens"))
    return bench.measured(lambda: calibrate(model, plan, inputs))


ROWS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "step, ResNet-20, batch 128": resnet20_step,
    "step, ResNet-50, batch 128, bfloat16, channels last": resnet50_step,
    "step, ResNet-20, torch.compile": resnet20_compiled,
    "stops for the device": no_waiting,
    "project and encode": rounding,
    "fit by squared error, 16.8 M weights": fit,
    "search, ResNet-20, 512 images, 200 trials": searching,
    "calibrate, ResNet-50, 128 images, 4 bits": calibrated_resnet50,
    "calibrate, ViT-B/16, 128 images, 4 bits": calibrated_vit,
}


def measured_rows(
    bench: Bench, chosen: dict[str, Callable[[Bench], dict[str, Any]]], minutes: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows, as long as there is time to begin one."""
    deadline = time.monotonic() + 60 * minutes
    for name, measure in chosen.items():
        if time.monotonic() > deadline:
            yield name, {"left out": "the deadline has passed"}
            continue
        torch.manual_seed(SEED)
        yield name, measure(bench)
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on a CPU")
    parser.add_argument("--minutes", type=float, default=6.0, help="no row begins later")
    parser.add_argument("--only", default="", help="the rows whose names have this text")
    parser.add_argument("--llama", action="store_true", help="the row of the Llama, alone")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    given = arguments(words)
    if not given.dry_run and not torch.cuda.is_available():
        sys.exit(
            "gpu.py: expected a GPU that CUDA sees, found none; --dry-run runs every row in tiny "
            "sizes on the CPU"
        )
    device = torch.device("cpu" if given.dry_run else "cuda")
    bench = Bench(device, TINY if given.dry_run else Sizes())
    chosen = {"calibrate, Llama of 1 B, 16 x 512 tokens, 4 bits": llama} if given.llama else ROWS
    chosen = {name: row for name, row in chosen.items() if given.only in name}
    content: dict[str, Any] = {
        "card": "none" if given.dry_run else torch.cuda.get_device_name(),
        "seed": SEED,
        "environment": environment(),
        "rows": {},
    }
    for name, row in measured_rows(bench, chosen, given.minutes):
        print(f"{name}: {row}", flush=True)
        content["rows"][name] = row
        if not given.dry_run:
            write_json(RESULT.with_stem("gpu-llama") if given.llama else RESULT, content)


if __name__ == "__main__":
    main()
