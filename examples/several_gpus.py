"""Quantize a network in your own training loop on several GPUs, or on several processes of a CPU.

    torchrun --nproc-per-node 2 examples/several_gpus.py ddp      # DistributedDataParallel
    torchrun --nproc-per-node 2 examples/several_gpus.py fsdp2    # fully_shard
    torchrun --nproc-per-node 2 examples/several_gpus.py fabric   # pip install lightning-fabric

The order is the same in all three: make `Incremental` on every rank, then wrap the model, then
iterate over the stages on every rank. Each rank trains on its own part of the data.
"""

import os
import sys
from collections.abc import Callable

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from octavo import Incremental, Packed, Plan

RANK = int(os.environ["RANK"])
RANKS = int(os.environ["WORLD_SIZE"])
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if ON_GPU else "cpu")
STEPS = 150
ROWS = 256  # of a batch, of all ranks together
CLASSES = 3


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES)
    )


def spirals(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw points on three spirals."""
    arms = torch.randint(CLASSES, (rows,), generator=generator)
    radii = torch.rand(rows, generator=generator).sqrt()
    angles = 2 * torch.pi * (arms / CLASSES + radii)
    points = torch.stack([radii * angles.cos(), radii * angles.sin()], 1)
    return points.to(DEVICE), arms.to(DEVICE)


def retrain(model: nn.Module, backward: Callable[[Tensor], None] = Tensor.backward) -> None:
    """Train on this rank's part of each batch; the learning rate starts anew at each stage."""
    data = torch.Generator().manual_seed(1000 + RANK)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        points, arms = spirals(ROWS // RANKS, data)
        optimizer.zero_grad()
        backward(F.cross_entropy(model(points), arms))
        optimizer.step()
        schedule.step()


def by_ddp(model: nn.Sequential, plan: Plan) -> Packed:
    incremental = Incremental(model, plan)
    wrapped = DistributedDataParallel(model)
    for stage in incremental:
        if not stage.last:
            retrain(wrapped)
    return incremental.finish()


def by_fsdp2(model: nn.Sequential, plan: Plan) -> Packed:
    from torch.distributed.fsdp import fully_shard

    incremental = Incremental(model, plan)
    for part in model:
        if isinstance(part, nn.Linear):
            fully_shard(part)
    fully_shard(model)
    for stage in incremental:
        if not stage.last:
            retrain(model)
    return incremental.finish()  # the sharded model has done its work: apply the result to another


def by_fabric(model: nn.Sequential, plan: Plan) -> Packed:
    from lightning_fabric import Fabric

    accelerator = "cuda" if ON_GPU else "cpu"
    fabric = Fabric(accelerator=accelerator, devices=RANKS, strategy="ddp")
    fabric.launch()
    incremental = Incremental(model, plan)
    wrapped = fabric.setup(model)
    for stage in incremental:
        if not stage.last:
            retrain(wrapped, fabric.backward)
    return incremental.finish()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    points, arms = spirals(4096, torch.Generator().manual_seed(1))
    return 100 * float((model(points).argmax(1) == arms).float().mean())


def main(way: str) -> None:
    if ON_GPU:
        torch.cuda.set_device(DEVICE)
    if way != "fabric":  # which does so itself
        distributed.init_process_group("cpu:gloo,cuda:nccl" if ON_GPU else "gloo")
    torch.manual_seed(RANK)  # all ranks start from the weights of rank 0 all the same
    model = network().to(DEVICE)
    retrain(model)
    before = accuracy(model)
    packed = {"ddp": by_ddp, "fsdp2": by_fsdp2, "fabric": by_fabric}[way](
        model, Plan.uniform(model, 3)
    )
    if RANK == 0:
        quantized = network().to(DEVICE)
        packed.apply(quantized)
        after = accuracy(quantized)
        print(f"{way}, {RANKS} ranks: accuracy {before:.1f} before, {after:.1f} at 3 bits")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
