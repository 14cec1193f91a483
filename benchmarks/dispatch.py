"""What a GPU would launch, counted without one: operations, and stops to read a number.

    python benchmarks/dispatch.py

An operation is one that torch dispatches and that computes something; views and allocations do not
count. A synchronisation is a point where Python waits for a number of the device: `.item()`,
`bool(tensor)`, `nonzero`, an index by a mask, a copy to the host. The counts are taken on a CPU,
where some of the numbers would be on the host on a machine with a GPU too; so that they are the
most that there can be. The training loop reads as seldom as on a GPU, and `project` and `encode`
run on torch's `meta` device, which has shapes but no numbers. Forward passes that calibration runs
in threads of their own are not counted. All counts are the same in every run. Writes
benchmarks/results/dispatch.json.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from octavo import Budget, Incremental, Plan, calibrate, search
from octavo.formats.powers_of_two import PowerOfTwo
from octavo.formats.registry import fitted_codebook
from octavo.runs import descent, training
from octavo.runs.retraining import Retraining
from octavo.runs.run import environment
from octavo.runs.run_folder import write_json
from octavo.runs.step_log import steps_between_readings
from octavo.runs.task import Batch
from octavo.runs.tasks.resnet import resnet
from octavo.runs.training import retrain

SEED = 0
IMAGES = 64
STEPS = 40  # of the training loop: two readings
TRIALS = 90
RESULT = Path(__file__).parent / "results" / "dispatch.json"

# Allocations, and views that are none by their schema.
LAUNCHES_NOTHING = {
    "_unsafe_view",
    "empty",
    "empty_like",
    "empty_strided",
    "lift_fresh",
    "new_empty",
    "new_empty_strided",
}
WAITS = {
    "_linalg_check_errors",
    "_local_scalar_dense",
    "_unique2",
    "equal",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
HOST_COPIES = (Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.__array__)


@dataclass
class Count:
    """The operations and the synchronisations of some work.

    Attributes:
        by_name: how often each operation was dispatched.
        synchronisations: how often Python waited for a number.

    """

    by_name: Counter[str] = field(default_factory=Counter)
    synchronisations: int = 0

    @property
    def operations(self) -> int:
        """The number of all operations."""
        return self.by_name.total()


class Dispatched(TorchDispatchMode):
    """Counts what is dispatched."""

    def __init__(self, count: Count) -> None:
        super().__init__()
        self._count = count

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name == "equal" and args[0].dim() == 1 and args[0].dtype == torch.uint8:
            pass  # random states, which are on the host everywhere
        elif name in WAITS or (name == "index" and _has_mask(args[1])):
            self._count.synchronisations += 1
        elif name not in LAUNCHES_NOTHING and not _is_view(func):
            self._count.by_name[name] += 1
        return func(*args, **kwargs or {})


class HostCopies(TorchFunctionMode):
    """Counts copies to the host, which a CPU does not dispatch."""

    def __init__(self, count: Count) -> None:
        super().__init__()
        self._count = count

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in HOST_COPIES or (func is Tensor.to and args[1:2] == ("cpu",)):
            self._count.synchronisations += 1
        return func(*args, **kwargs or {})


def _has_mask(indices: Iterable[Tensor | None]) -> bool:
    return any(index is not None and index.dtype == torch.bool for index in indices)


def _is_view(func: Any) -> bool:
    returned = [one.alias_info for one in func._schema.returns]
    return bool(returned) and all(one is not None and not one.is_write for one in returned)


def counted(work: Callable[[], object]) -> Count:
    """Run some work and count what it dispatches in this thread."""
    count = Count()
    with HostCopies(count), Dispatched(count):
        work()
    return count


# The training step.


def frozen(model: nn.Module, straight_through: float = 1.0) -> nn.Module:
    """Return a copy of a model with half of each weight frozen."""
    model = copy.deepcopy(model)
    plan = Plan.uniform(model, 3)
    incremental = Incremental(model, plan, portions=(0.5, 1.0), straight_through=straight_through)
    next(iter(incremental))
    return model


def step_count(model: nn.Module, images: Tensor) -> Count:
    """Count one step of SGD, after one that has made its momentum."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, nesterov=True, weight_decay=1e-4)
    labels = torch.arange(len(images)) % 10

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    step()
    return counted(step)


def parametrization(model: nn.Module, images: Tensor) -> dict[str, dict[str, float]]:
    """Count what the parametrization adds to a step, for each layer."""
    layers = len(Plan.uniform(model, 3))
    plain = step_count(copy.deepcopy(model), images)
    rows = {}
    for name, share in (("half frozen", 1.0), ("straight through", 0.5)):
        count = step_count(frozen(model, share), images)
        rows[name] = {
            "operations": (count.operations - plain.operations) / layers,
            "synchronisations": count.synchronisations,
        }
    return rows


class Images:
    """A task with the same batch in every step."""

    def __init__(self, batches: int, images: Tensor) -> None:
        self._batches = [(images, torch.arange(len(images)) % 10)] * batches

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"expected retraining to ask for no {name}")

    def train_batches(self) -> Sequence[Batch]:
        """Return the batches of an epoch."""
        return self._batches


def loop(model: nn.Module, images: Tensor, steps: int = STEPS) -> dict[str, float]:
    """Count the training loop, for each step, with the readings of a GPU."""
    student = frozen(model)
    teacher = copy.deepcopy(model).eval()
    task: Any = Images(steps, images)
    as_on_a_gpu = mock.Mock(return_value=steps_between_readings(torch.device("cuda")))
    with (
        mock.patch.object(training, "steps_between_readings", as_on_a_gpu),
        mock.patch.object(descent, "steps_between_readings", as_on_a_gpu),
    ):
        count = counted(lambda: retrain(student, task, 1.0, Retraining(), teacher=teacher))
    return {
        "operations": count.operations / steps,
        "synchronisations": count.synchronisations / steps,
    }


# Rounding, calibration and search.


def rounding(weights: int) -> dict[str, int]:
    """Count `project` and `encode` of so many weights, per channel."""
    weight = torch.empty(1024, weights // 1024, device="meta")
    codebook = PowerOfTwo(4, torch.zeros(1024, dtype=torch.int32))
    codebook.project(torch.zeros(1024, 1))  # what a codebook keeps is made once
    return {
        "project": counted(lambda: codebook.project(weight)).operations,
        "encode": counted(lambda: codebook.encode(weight)).operations,
    }


def fit(weights: int) -> dict[str, int]:
    """Count the choice of exponents by least squared error, per channel, on a CPU."""
    weight = torch.randn(64, weights // 64, generator=torch.Generator().manual_seed(SEED))
    count = counted(lambda: fitted_codebook(weight, 4, fit="mse", per="channel"))
    return {"operations": count.operations, "synchronisations": count.synchronisations}


def calibration(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Count `calibrate` at 3 bits, for each layer."""
    plan = Plan.uniform(model, 3)
    count = counted(lambda: calibrate(model, plan, [images]))
    return {
        "operations": round(count.operations / len(plan), 1),
        "synchronisations": round(count.synchronisations / len(plan), 1),
    }


def searching(model: nn.Module, images: Tensor, trials: int = TRIALS) -> dict[str, float]:
    """Count `search` within 3 bits on average, for each trial."""
    budget = Budget(average_bits=3.0)
    count = counted(lambda: search(model, [images], budget=budget, trials=trials, seed=SEED))
    return {
        "operations": round(count.operations / trials, 1),
        "synchronisations": round(count.synchronisations / trials, 1),
    }


def main() -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # the sums of several threads differ, and a search with them
    model = resnet(20).train()
    images = torch.randn(IMAGES, 3, 32, 32)
    rows: dict[str, Any] = {
        "parametrization, a layer and step": parametrization(model, images[:4]),
        "training loop, a step": loop(model, images[:4]),
        "rounding of 4 M weights": rounding(1 << 22),
        "rounding of 268 M weights": rounding(1 << 28),
        "fit of 65,536 weights": fit(1 << 16),
        "calibrate, a layer": calibration(model.eval(), images),
        "search, a trial": searching(model, images),
    }
    for name, row in rows.items():
        print(f"{name}: {row}")
    content = {
        "network": "ResNet-20, random weights",
        "images": IMAGES,
        "trials": TRIALS,
        "seed": SEED,
        "environment": environment(),
        "rows": rows,
    }
    write_json(RESULT, content)


if __name__ == "__main__":
    main()
