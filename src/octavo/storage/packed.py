"""Packed: a quantized network as data, which is saved and loaded exactly.

``octavo.storage.container`` writes and reads the bytes of the file.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from octavo._io import check_output, write_atomically
from octavo.activations.quantizer import (
    InputFormat,
    input_formats,
    install_quantizers,
    scale_key,
    store_effective_scales,
)
from octavo.errors import FormatError, PlanError
from octavo.network.distributed import whole
from octavo.network.memory import memory_of
from octavo.network.values import check_values
from octavo.plan import Plan
from octavo.storage import container
from octavo.storage.container import Floats
from octavo.storage.fit import Stored, check_fit
from octavo.storage.float_tensors import folded_norms, rounded_to_float16
from octavo.storage.held_out import HeldOut
from octavo.storage.layer_strings import Coding
from octavo.storage.limits import default_limit
from octavo.storage.manifest import DTYPES
from octavo.storage.quantized import Quantized

__all__ = ["FloatForm", "Packed", "Sizes", "check_state", "pack", "sizes_of", "verify"]

FloatForm = Literal["float32", "float16", "folded"]


@dataclass(frozen=True, eq=False, repr=False)
class Packed:
    """A quantized network as data: codes and exponents of the quantized layers, everything else as
    it was.

    It does not change: the mappings are read-only. All figures are measured on the file that
    ``save`` would write at that moment, so that what is reported and what is written agree.

    Args:
        layers: layer name to quantized tensor.
        floats: (names that share the tensor, tensor) for every other entry of the model's state
            dict.
        activations: the format of quantized inputs, by module name: see
            ``octavo.activations.quantization``.
        held_out: the divergence from full precision that ``calibrate`` measured; None if another
            function made the network, or if it was loaded: no file has it.
        coding: how the file has the codes. ``"fast"`` is decoded by zstandard. ``"small"`` takes 2
            to 7 % fewer bytes for the codes of convolutional networks; to write and to read it, the
            library constriction is needed: the extra ``small``. To change it:
            ``dataclasses.replace(packed, coding="small")``.

    Raises:
        PlanError: an unknown coding.

    """

    layers: Mapping[str, Quantized]
    floats: Floats
    activations: Mapping[str, InputFormat] = field(default_factory=dict)
    held_out: HeldOut | None = None
    coding: Coding = "fast"

    def __post_init__(self) -> None:
        if self.coding not in get_args(Coding):
            raise PlanError(f'coding: expected "fast" or "small", got {self.coding!r}')
        object.__setattr__(self, "layers", MappingProxyType(dict(self.layers)))
        object.__setattr__(self, "floats", tuple(self.floats))
        object.__setattr__(self, "activations", MappingProxyType(dict(self.activations)))

    def __reduce__(self) -> tuple[Any, ...]:  # a read-only mapping cannot be copied or pickled
        return type(self), (
            dict(self.layers),
            self.floats,
            dict(self.activations),
            self.held_out,
            self.coding,
        )

    def __repr__(self) -> str:
        sizes = sizes_of(self)
        size = f"{sizes.file_bytes:,} bytes, {sizes.ratio:.2f} times smaller"
        if sizes.stored_bits is None:
            return f"Packed(no quantized layer, {size})"
        weights = sum(layer.codes.numel() for layer in self.layers.values())
        count = f"{len(self.layers)} layer{'s' if len(self.layers) > 1 else ''}"
        bits = f"{self.nominal_bits:.2f} bits a weight, {sizes.stored_bits:.2f} stored"
        measured = "" if self.held_out is None else f", {self.held_out}"
        return f"Packed({count}, {weights:,} weights, {bits}, {size}{measured})"

    @property
    def plan(self) -> Plan:
        """The width of each quantized layer, and the bits of quantized inputs."""
        weights = {name: layer.codes.numel() for name, layer in self.layers.items()}
        widths = {name: layer.codebook.width for name, layer in self.layers.items()}
        inputs = {name: form.bits for name, form in self.activations.items()}
        return Plan(widths, weights=weights, activations=inputs)

    @property
    def nominal_bits(self) -> float:
        """Average nominal bits per quantized weight; PlanError if no layer is quantized."""
        return self.plan.cost().average_bits

    @property
    def stored_bits(self) -> float:
        """Bits that codes and exponents take in the file, per quantized weight; PlanError if no
        layer is quantized.
        """
        stored = sizes_of(self).stored_bits
        if stored is None:
            raise PlanError("stored_bits: expected a network with quantized layers, got none")
        return stored

    @property
    def float_bytes(self) -> int:
        """Bytes of the network's tensors with float32 for every quantized weight."""
        weights = sum(4 * layer.codes.numel() for layer in self.layers.values())
        return weights + sum(value.numel() * value.element_size() for _, value in self.floats)

    @property
    def file_bytes(self) -> int:
        """Bytes of the file that ``save`` writes."""
        return sizes_of(self).file_bytes

    @property
    def ratio(self) -> float:
        """The network's bytes in float32, divided by the bytes of the file."""
        return sizes_of(self).ratio

    def apply(self, model: nn.Module) -> None:
        """Write the network into ``model``: afterwards every weight equals what was saved, bit for
        bit.

        Where inputs were quantized, they are again: a plain model gets the quantizers.

        Raises:
            PlanError: a tensor is missing, unexpected, of another shape, or of a type that cannot
                hold the values; the model is left as it was.

        """
        check_fit(_stored(self), model, _scale_names(self, model))
        install_quantizers(model, self.activations)
        state = model.state_dict()
        with torch.no_grad():
            for layer in self.layers.values():
                layer.write(*(state[name] for name in layer.names))
            for names, value in self.floats:
                for name in names:
                    state[name].copy_(value)

    def with_floats(self, form: FloatForm, model: nn.Module | None = None) -> Self:
        """Return the same network with its other tensors, biases and norms, in fewer bytes.

        Args:
            form: ``"float16"`` rounds float32 tensors where that is off by no more than a
                thousandth of their largest number. ``"folded"`` also folds the running statistics
                of batch norms into their scales and shifts: in evaluation mode the network is the
                same but for rounding. ``"float32"`` changes nothing.
            model: a model of the network's architecture; ``"folded"`` needs it.

        Raises:
            PlanError: an unknown form, or ``"folded"`` without a model.

        """
        if form == "float32":
            return self
        if form == "float16":
            return replace(self, floats=rounded_to_float16(self.floats))
        if form != "folded":
            raise PlanError(f'floats: expected "float32", "float16" or "folded", got {form!r}')
        if model is None:
            raise PlanError(
                "floats: expected a model of the network's architecture, which tells where its "
                'batch norms are, got none: call with_floats("folded", model)'
            )
        folded = folded_norms(self.floats, model)
        return replace(self, floats=rounded_to_float16(folded))

    def save(self, path: str | Path) -> None:
        """Write the file, atomically: under ``path`` there is the whole file or what was there
        before.

        Raises:
            FileNotFoundError: the folder of ``path`` does not exist.

        """
        check_output(path)
        content = container.to_file(*_encoded(self))
        write_atomically(path, lambda file: file.write(content))

    @classmethod
    def load(
        cls, path: str | Path, *, limit: int | None = None, model: nn.Module | None = None
    ) -> Self:
        """Read a file that ``save`` wrote, and check all of it.

        Args:
            path: the file.
            limit: the most bytes that its tensors may have once they are decoded, where a quantized
                weight counts one; the network in float32 has up to four times as many. None takes
                the largest of 64 times the size of the file, 256 MiB, and the model's bytes.
            model: the model that the file is for, if there is one.

        Raises:
            FormatError: not octavo's, from a newer version, damaged, or beyond the limit; the
                message names the tensor and the cause.

        """
        try:
            data = Path(path).read_bytes()
            most = default_limit(len(data), model) if limit is None else limit
            layers, floats, activations = container.unpack(data, most)
            return cls(layers, floats, activations, coding=container.coding_of(data))
        except (OSError, ValueError) as error:  # a ValueError: a path with a null character
            cause = error.strerror if isinstance(error, OSError) else error
            raise FormatError(f"{path}: {cause}") from error


@dataclass(frozen=True)
class Sizes:
    """The sizes of a packed network.

    Attributes:
        file_bytes: as ``Packed.file_bytes``.
        float_bytes: as ``Packed.float_bytes``.
        stored_bits: as ``Packed.stored_bits``; None if no layer is quantized.

    """

    file_bytes: int
    float_bytes: int
    stored_bits: float | None

    @property
    def ratio(self) -> float:
        """The network's bytes in float32, divided by the bytes of the file."""
        return self.float_bytes / self.file_bytes


def sizes_of(packed: Packed) -> Sizes:
    """Measure all sizes of a network; it is encoded once for them."""
    blobs, version = _encoded(packed)
    parts = ("codes.", "exponents")
    stored = sum(len(blob) for name, blob in blobs.items() if name.startswith(parts))
    weights = sum(layer.codes.numel() for layer in packed.layers.values())
    return Sizes(
        file_bytes=len(container.to_file(blobs, version)),
        float_bytes=packed.float_bytes,
        stored_bits=8 * stored / weights if packed.layers else None,
    )


def _encoded(packed: Packed) -> tuple[dict[str, bytes], int]:
    """Return the byte strings of the file, and its version. Nothing keeps them: a tensor may be
    changed in place until the next call.
    """
    return container.pack(packed.layers, packed.floats, packed.activations, packed.coding)


def _stored(packed: Packed) -> dict[str, Stored]:
    """Return what is stored, by the name of the parameter."""
    quantized = {name: layer for layer in packed.layers.values() for name in layer.names}
    return quantized | {name: value for names, value in packed.floats for name in names}


def _scale_names(packed: Packed, model: nn.Module) -> set[str]:
    """Return the names of the scales of quantized inputs, which a plain model does not have."""
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
    for name in packed.activations:
        if name not in modules:
            raise PlanError(
                f"{name}: missing in the model; expected the architecture that was packed"
            )
    scales = set(map(scale_key, packed.activations))
    return {name for names, _ in packed.floats if scales & set(names) for name in names}


def pack(model: nn.Module, layers: Mapping[str, Quantized]) -> Packed:
    """Pack a plain model, given its quantized layers by name; every other tensor of its state dict
    is copied.

    Raises:
        PlanError: the state dict holds something that is no tensor of a plain type.

    """
    check_state(model)
    store_effective_scales(model)
    quantized = {name for layer in layers.values() for name in layer.names}
    shared: dict[Hashable, tuple[list[str], Tensor]] = {}  # by memory
    for name, entry in model.state_dict().items():
        if name in quantized:
            continue
        value = whole(entry)
        names, _ = shared.setdefault(memory_of(value), ([], value))
        names.append(name)
    floats = [(tuple(names), value.detach().cpu().clone()) for names, value in shared.values()]
    return Packed(layers, floats, input_formats(model))


def check_state(model: nn.Module) -> None:
    """Raise PlanError unless a packed file can hold every entry of the model's state dict."""
    check_values(model)
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor) or value.dtype not in DTYPES.values():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise PlanError(
                f"{name}: expected a tensor of a plain type in the state dict, got {got}"
            )


def verify(path: str | Path, *, limit: int | None = None) -> None:
    """Check a packed file: read all of it, and compare every checksum.

    Args:
        path: the file.
        limit: the most bytes that its tensors may have once they are decoded: see ``Packed.load``.

    Raises:
        FormatError: as ``Packed.load``.

    """
    Packed.load(path, limit=limit)
