"""A quantized tensor as data: codes, and the codebook that they belong to."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from octavo.formats.codebook import Codebook
from octavo.formats.registry import with_exponents
from octavo.network.layers import Layer, channels_back
from octavo.network.memory import memory_of
from octavo.storage.coding.small import encode_runs

__all__ = ["Quantized"]


@dataclass(frozen=True, eq=False)
class Quantized:
    """One quantized tensor.

    Attributes:
        names: the full names of the parameters that share the tensor.
        codebook: the levels that its codes stand for.
        codes: uint8, output channels first.
        groups: the number of groups where the parameter's own layout has the output channels
            second, as in a transposed convolution; else 0.

    """

    names: tuple[str, ...]
    codebook: Codebook
    codes: Tensor
    groups: int = 0

    @classmethod
    def of(cls, layer: Layer, codebook: Codebook, codes: Tensor) -> Self:
        """Make it from a model's layer and its codes, which have the output channels first."""
        names = (layer.parameter, *(full for full, *_ in layer.tied))
        on_host = with_exponents(codebook, codebook.max_exponent.cpu())
        return cls(names, on_host, codes, layer.groups)

    @property
    def shape(self) -> torch.Size:
        """The shape of the parameter."""
        return channels_back(
            torch.empty(self.codes.shape, dtype=torch.uint8, device="meta"), self.groups
        ).shape

    @property
    def small_bytes(self) -> int:
        """Bytes that the codes take in the coding ``small``, which codes each tensor by itself."""
        return len(encode_runs([(self.codes, self.codebook.width.level_count)]))

    def weight(self) -> Tensor:
        """Return the weights, float32, in the parameter's own layout."""
        return channels_back(self.codebook.decode(self.codes), self.groups)

    def write(self, target: Tensor, *others: Tensor) -> None:
        """Write the weights into tensors of the parameter's shape and of types that hold them,
        where possible straight into the memory of the first.
        """
        plain = type(target) is Tensor and target.is_contiguous() and not self.groups
        if plain and target.dtype == torch.float32 and target.device == self.codes.device:
            self.codebook.decode(self.codes, out=target)
        else:
            target.copy_(self.weight())
        for other in others:
            if memory_of(other) != memory_of(target):
                other.copy_(target)
