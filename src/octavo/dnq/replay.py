"""What need not be computed again: outputs of modules that ran before the first layer whose weights
have changed.

Layers are numbered in forward order. What a module returned depends on the layers that had begun
when it ended, so it still holds if all of these have the weights that they had. It is then returned
from memory, and nothing inside of the module runs.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from octavo.network.calling import Inputs, call
from octavo.network.layers import calling_modules, find_layers
from octavo.network.nested import named_tensors

__all__ = ["Replay"]

KEPT_BYTES = 1 << 30
NOTHING = -1  # layers that are unchanged: not even what rests on none is taken from memory


@dataclass(frozen=True)
class _Kept:
    """What a module returned, and how many of the first layers that rests on."""

    output: Tensor
    version: int  # tells whether it was changed in place since
    layers: int

    @property
    def bytes(self) -> int:
        """What it keeps alive: all of the storage that it may be a view of."""
        return self.output.untyped_storage().nbytes()


class Replay:
    """Runs a model on the same batches again and again, while its layers get other weights.

    Only modules that do what they do by returning a tensor can be replayed. So whenever other
    modules than ever before were, the result is compared to the same computed anew; where they
    differ, all is computed anew from then on.

    Args:
        model: in evaluation mode, and nobody else's: its modules' ``forward`` is replaced.
        layers: names of the layers whose weights change, in forward order.

    """

    def __init__(self, model: nn.Module, layers: Sequence[str]) -> None:
        known = {layer.name: layer for layer in find_layers(model)[0]}
        by_module = calling_modules(model, [known[name] for name in layers])
        numbers = {name: number for number, name in enumerate(layers, 1)}
        self._model, self._kept, self._bytes = model, dict[tuple[int, nn.Module], _Kept](), 0
        self._repeated = set[nn.Module]()  # called more than once: they have more than one output
        self._trusted, self._checked = True, set[frozenset[nn.Module]]()
        # Of the pass that runs:
        self._batch, self._begun, self._wanted, self._called, self._served = (
            0,
            0,
            0,
            set[nn.Module](),
            set[nn.Module](),
        )
        for module in model.modules():
            begins = max((numbers[layer.name] for layer in by_module.get(module, ())), default=0)
            if not isinstance(module, torch.jit.ScriptModule):
                module.forward = functools.partial(self._forward, module, module.forward, begins)

    def outputs(self, batches: Sequence[Inputs], unchanged: int, wanted: int) -> list[Any]:
        """What the model returns for each batch.

        Args:
            batches: always the same.
            unchanged: how many of the first layers have the weights that they had at the last call.
            wanted: how many of them will be unchanged at the next call. What rests on more is not
                kept: memory that is not given back is slow to come by.

        """
        self._wanted = wanted
        try:
            found = self._run(batches, unchanged if self._trusted else NOTHING)
        except Exception:
            if not self._served:
                raise
            self._trusted = False
            return self._run(batches, NOTHING)
        served = frozenset(self._served)
        if not served or served in self._checked:
            return found
        self._checked.add(served)
        anew = self._run(batches, NOTHING)
        self._trusted = all(map(_same, found, anew))
        return anew

    def _run(self, batches: Sequence[Inputs], unchanged: int) -> list[Any]:
        self._kept = {
            place: kept
            for place, kept in self._kept.items()
            if kept.layers <= unchanged
            and kept.output._version == kept.version
            and place[1] not in self._repeated
        }
        self._bytes = sum(kept.bytes for kept in self._kept.values())
        found, self._served = [], set()
        for self._batch, batch in enumerate(batches):
            self._begun, self._called = 0, set()
            found.append(call(self._model, batch))
        return found

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # what it keeps outlives a graph
    def _forward(
        self,
        module: nn.Module,
        forward: Callable[..., Any],
        begins: int,
        *inputs: Any,
        **named: Any,
    ) -> Any:
        place = (self._batch, module)
        if module in self._called:
            self._repeated.add(module)
        elif place in self._kept:
            self._begun = max(self._begun, self._kept[place].layers)
            self._called.update(module.modules())
            self._served.add(module)
            return self._kept[place].output
        self._called.add(module)
        self._begun = max(self._begun, begins)
        given = [
            (tensor, tensor._version)
            for _, tensor in named_tensors((inputs, named))
            if not tensor.is_inference()
        ]
        output = forward(*inputs, **named)
        if module not in self._repeated and all(
            tensor._version == version for tensor, version in given
        ):
            self._keep(place, output)
        return output

    def _keep(self, place: tuple[int, nn.Module], output: Any) -> None:
        if not self._trusted or self._begun > self._wanted or not isinstance(output, Tensor):
            return
        if output.layout is torch.strided and not output.is_inference() and not output.is_nested:
            kept = _Kept(output, output._version, self._begun)
            if self._bytes + kept.bytes <= KEPT_BYTES:
                self._kept[place] = kept
                self._bytes += kept.bytes


def _same(one: Any, other: Any) -> bool:
    """Whether both hold the same tensors in the same places."""
    some, others = list(named_tensors(one)), list(named_tensors(other))
    alike = bool(some) and [name for name, _ in some] == [name for name, _ in others]
    return alike and all(torch.equal(a, b) for (_, a), (_, b) in zip(some, others, strict=True))
