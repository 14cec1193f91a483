"""Packed: a quantized network as data, saved and loaded exactly (the file itself:
octavo.storage.container).
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from octavo._io import write_atomically
from octavo.activations.quantizer import (
    InputFormat,
    input_formats,
    install_quantizers,
    scale_key,
    store_effective_scales,
)
from octavo.errors import FormatError, PlanError
from octavo.plan import Plan
from octavo.storage import container
from octavo.storage.manifest import DTYPES
from octavo.storage.quantized import Quantized

__all__ = ["Packed", "check_state", "pack", "verify"]


class Packed:
    """A quantized network as data: codes and exponents of the quantized layers, everything else as
    it was.

    Args:
        layers: layer name to quantized tensor.
        floats: (names that share the tensor, tensor) for every other entry of the model's state
            dict.
        activations: how the inputs of modules are quantized, by the modules' names: see
            ``octavo.activations.quantization``.

    """

    def __init__(
        self,
        layers: Mapping[str, Quantized],
        floats: list[tuple[tuple[str, ...], Tensor]],
        activations: Mapping[str, InputFormat] | None = None,
    ) -> None:
        self.layers = dict(layers)
        self.floats = floats
        self.activations = dict(activations or {})

    @property
    def plan(self) -> Plan:
        """The bits of each quantized layer."""
        weights = {name: layer.codes.numel() for name, layer in self.layers.items()}
        return Plan(
            {name: layer.codebook.width for name, layer in self.layers.items()}, weights=weights
        )

    @property
    def nominal_bits(self) -> float:
        """Average nominal bits per quantized weight."""
        return self.plan.cost().average_bits

    @property
    def stored_bits(self) -> float:
        """Bits that codes and exponents take in the file, per quantized weight."""
        stored = sum(
            len(blob)
            for name, blob in self._contents[0].items()
            if name == "exponents" or name.startswith("codes.")
        )
        return 8 * stored / sum(layer.codes.numel() for layer in self.layers.values())

    @property
    def float_bytes(self) -> int:
        """Bytes of the network's tensors with float32 for every quantized weight."""
        weights = sum(4 * layer.codes.numel() for layer in self.layers.values())
        return weights + sum(value.numel() * value.element_size() for _, value in self.floats)

    @cached_property
    def file_bytes(self) -> int:
        """Bytes of the file that ``save`` writes."""
        return len(container.to_file(*self._contents))

    @property
    def ratio(self) -> float:
        """How many times smaller the file is than the network's float32 tensors."""
        return self.float_bytes / self.file_bytes

    def apply(self, model: nn.Module) -> None:
        """Write the network into ``model``: afterwards every weight equals what was saved, bit for
        bit.

        Where inputs were quantized they are again: a plain model gets the quantizers.

        Raises:
            PlanError: a tensor is missing, unexpected, of another shape, or of a type that cannot
                hold the values; the model is left as it was.

        """
        values = {name: layer.weight() for layer in self.layers.values() for name in layer.names}
        values |= {name: value for names, value in self.floats for name in names}
        state = model.state_dict()
        held: dict[tuple[Any, ...], Tensor] = {}
        to_come = _steps(self, model) - set(state)
        for name in {**values, **state}:
            if name in to_come:
                continue
            if name not in state or name not in values:
                side = "the model" if name in values else "the packed network"
                raise PlanError(
                    f"{name}: missing in {side}; expected the architecture that was packed"
                )
            _check_fits(name, values[name], state[name])
            place = (
                (state[name].data_ptr(), *state[name].stride()) if state[name].numel() else (name,)
            )
            if not _same(held.setdefault(place, values[name]), values[name]):
                raise PlanError(
                    f"{name}: the model shares this tensor with another that was packed with other values"
                )
        install_quantizers(model, self.activations)
        state = model.state_dict()
        with torch.no_grad():
            for name, value in values.items():
                state[name].copy_(value)

    def save(self, path: str | Path) -> None:
        """Write the file, atomically: under ``path`` there is the whole file or what was there
        before.
        """
        content = container.to_file(*self._contents)
        write_atomically(path, lambda file: file.write(content))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file that ``save`` wrote, checking all of it.

        Raises:
            FormatError: not octavo's, from a newer version, or damaged; the message names the
                tensor and the cause.

        """
        try:
            return cls(*container.unpack(Path(path).read_bytes()))
        except (OSError, FormatError) as error:
            raise FormatError(
                f"{path}: {error.strerror if isinstance(error, OSError) else error}"
            ) from error

    @cached_property
    def _contents(self) -> tuple[dict[str, bytes], int]:
        return container.pack(self.layers, self.floats, self.activations)


def _steps(packed: Packed, model: nn.Module) -> set[str]:
    """The names of the steps of inputs, which a model need not have."""
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
    for name in packed.activations:
        if name not in modules:
            raise PlanError(
                f"{name}: missing in the model; expected the architecture that was packed"
            )
    own = set(map(scale_key, packed.activations))
    return {name for names, _ in packed.floats if own & set(names) for name in names}


def _check_fits(name: str, value: Tensor, target: Tensor) -> None:
    if target.shape != value.shape:
        raise PlanError(
            f"{name}: expected shape {tuple(value.shape)} as packed, got {tuple(target.shape)} in the model"
        )
    if target.is_meta:
        raise PlanError(
            f"{name}: expected a model with memory, got one on the meta device: call to_empty() first"
        )
    if not _same(value.to(target.dtype).to(value.dtype), value):
        raise PlanError(
            f"{name}: {target.dtype} cannot hold its packed values exactly; use a float32 model"
        )


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, NaN to NaN."""
    return a is b or (a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all()))


def pack(model: nn.Module, layers: Mapping[str, Quantized]) -> Packed:
    """Pack a plain model, given its quantized layers by name; every other tensor of its state dict
    is copied.

    Raises:
        PlanError: the state dict holds something that is no tensor of a plain type.

    """
    check_state(model)
    store_effective_scales(model)
    quantized = {name for layer in layers.values() for name in layer.names}
    shared: dict[tuple[Any, ...], tuple[list[str], Tensor]] = {}
    for name, value in model.state_dict().items():
        if name in quantized:
            continue
        key = (
            (value.data_ptr(), value.dtype, value.shape, value.stride())
            if value.numel()
            else (name,)
        )
        shared.setdefault(key, ([], value))[0].append(name)
    floats = [(tuple(names), value.detach().cpu().clone()) for names, value in shared.values()]
    return Packed(layers, floats, input_formats(model))


def check_state(model: nn.Module) -> None:
    """Raise PlanError unless a packed file can hold every entry of the model's state dict."""
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor) or value.dtype not in DTYPES.values():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise PlanError(
                f"{name}: expected a tensor of a plain type in the state dict, got {got}"
            )


def verify(path: str | Path) -> None:
    """Check a packed file: all of it is read and every checksum compared.

    Raises:
        FormatError: as ``Packed.load``.

    """
    Packed.load(path)
