"""The journey of a network through octavo: every public step, and what must hold after each."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from octavo import (
    Budget,
    ExportError,
    Incremental,
    Packed,
    Plan,
    calibrate,
    export,
    inspect,
    search,
)
from octavo.deploy.exporting import load_onnx
from octavo.network.calls import call_alone, undisturbed
from octavo.network.copies import copied, fresh
from octavo.network.forward import Inputs, observing
from octavo.network.module_state import ModuleState, same
from octavo.network.nested import leaves, named_tensors


@dataclass(frozen=True, eq=False)
class Journey:
    """What a network became on its way.

    Attributes:
        packed: what ``calibrate`` returned.
        refitted: what ``Incremental`` returned.
        plan: the plan that ``search`` found.
        network: the network that the saved file was applied to.
        refusal: the line that refused the float export; empty if there is a file.

    """

    packed: Packed
    refitted: Packed
    plan: Plan
    network: nn.Module
    refusal: str = ""


def travel(model: nn.Module, batches: Sequence[Inputs], folder: Path, bits: int = 4) -> Journey:
    """Take a network through inspect, calibrate, Incremental, search, save, load, apply and the
    float export; the model, the batches and torch's random state must be as they were after each.
    """
    model.eval()
    watch = _Watch(model, batches)
    assert inspect(model, batches[0]).rows
    watch.check("inspect")
    plan = Plan.uniform(model, bits)
    packed = calibrate(model, plan, batches)
    watch.check("calibrate")
    refitted = _refitted(model, plan, batches)
    watch.check("Incremental")
    found = search(
        model, batches, budget=Budget(average_bits=bits - 0.5), options=(bits - 1, bits),
        trials=32, method="greedy",
    )  # fmt: skip
    watch.check("search")
    packed.save(folder / "packed.safetensors")
    network = copied(model)
    Packed.load(folder / "packed.safetensors").apply(network)
    twin = copied(model)
    packed.apply(twin)
    assert same(outputs(network, batches), outputs(twin, batches))
    refusal = _exported(model, packed, batches[0], folder / "float.onnx")
    watch.check("export")
    return Journey(packed, refitted, found.plan, network, refusal)


def travel_well(model: nn.Module, batches: Sequence[Inputs], folder: Path) -> Journey:
    """Take a network on its journey, and check that there is a file of ONNX, and that the results
    are nearer to full precision than nearest levels are.
    """
    journey = travel(model, batches, folder)
    assert not journey.refusal
    nearest = off(model, rounded(model, journey.packed.plan), batches)
    assert off(model, journey.network, batches) < nearest
    assert off(model, applied(model, journey.refitted), batches) < nearest
    return journey


def correlated(*shapes: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    """Return inputs whose last dimension has as many directions as half of its size: so weights can
    make up for each other, as they can for natural inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    width = shapes[0][-1]
    mixing = torch.randn(width // 2, width, generator=generator) / (width // 2) ** 0.5
    return [torch.randn(*shape[:-1], width // 2, generator=generator) @ mixing for shape in shapes]


def outputs(model: nn.Module, batches: Sequence[Inputs]) -> list[dict[str, torch.Tensor]]:
    """Return the tensors that a network returns for batches one after another."""
    random.seed(0)
    with observing(model), undisturbed(model):
        return [
            {name: tensor.clone() for name, tensor in named_tensors(call_alone(model, batch, n))}
            for n, batch in enumerate(batches)
        ]


def off(model: nn.Module, network: nn.Module, batches: Sequence[Inputs]) -> float:
    """Return the relative squared error of a network's outputs."""
    error = 0.0
    whole = 0.0
    for full, own in zip(outputs(model, batches), outputs(network, batches), strict=True):
        for name, tensor in full.items():
            if tensor.is_floating_point():
                error += float((tensor - own[name]).square().sum())
                whole += float(tensor.square().sum())
    return error / whole


def applied(model: nn.Module, packed: Packed) -> nn.Module:
    """Return a copy of the model with packed weights."""
    network = copied(model)
    packed.apply(network)
    return network


def rounded(model: nn.Module, plan: Plan) -> nn.Module:
    """Return a copy of the model with every weight at its nearest level."""
    network = copied(model)
    incremental = Incremental(network, plan, portions=(1.0,))
    for _ in incremental:
        pass
    incremental.finish()
    return network


def _refitted(model: nn.Module, plan: Plan, batches: Sequence[Inputs]) -> Packed:
    network = copied(model)
    incremental = Incremental(network, plan, portions=(0.5, 1.0), inputs=batches)
    for stage in incremental:
        if not stage.last:  # retraining calls the network, and keeps its graph
            with torch.random.fork_rng():
                call_alone(network, batches[0])
    return incremental.finish()


def _exported(model: nn.Module, packed: Packed, batch: Inputs, path: Path) -> str:
    """Export a network, and check the file; return the line of a refusal."""
    try:
        export(model, packed, path, form="float", example=batch)
    except ExportError as error:
        refusal = str(error)
    else:
        refusal = ""
    assert path.exists() == (not refusal)
    assert "\n" not in refusal
    if refusal:
        return refusal
    (expected,) = outputs(applied(model, packed), [batch])
    args = fresh(batch)
    computed: Any = load_onnx(path)
    computed = computed(**args) if isinstance(args, dict) else computed(*_positional(args))
    for full, own in zip(expected.values(), dict(named_tensors(computed)).values(), strict=True):
        assert torch.allclose(full, own, rtol=1e-3, atol=1e-4 * float(full.abs().max()))
    return ""


def _positional(args: Any) -> tuple[Any, ...]:
    return tuple(args) if isinstance(args, tuple | list) else (args,)


class _Watch:
    """Notes how a model, its batches and torch's random state are, and checks that they stay."""

    def __init__(self, model: nn.Module, batches: Sequence[Inputs]) -> None:
        self._model = model
        self._batches = batches
        self._weights = copied(model.state_dict())
        self._attributes = ModuleState(model).read()
        self._copies = ModuleState(model).copied(self._attributes)
        self._inputs = [fresh(batch) for batch in batches]
        self._random = torch.get_rng_state()
        self._modes = [module.training for module in model.modules()]

    def check(self, step: str) -> None:
        assert same(self._model.state_dict(), self._weights), f"{step} changed weights"
        now = ModuleState(self._model).read()
        assert now.keys() == self._attributes.keys(), f"{step} left attributes"
        for slot, value in now.items():
            assert value is self._attributes[slot], f"{step} replaced {slot}"
            assert same(value, self._copies[slot]), f"{step} changed {slot}"
        assert same(list(leaves(self._batches)), list(leaves(self._inputs))), f"{step} wrote inputs"
        assert torch.equal(torch.get_rng_state(), self._random), f"{step} drew random numbers"
        assert [module.training for module in self._model.modules()] == self._modes
        hooks = [module._forward_pre_hooks for module in self._model.modules()]
        assert not any(hooks), f"{step} left hooks"
