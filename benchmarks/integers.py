"""Symmetric integers with float scales, solved as octavo's codebooks are: a rival.

Each output channel, or each group of its inputs, has a float16 scale. It is chosen as octavo's
exponents are: the scale of least squared error, weighted by the second moment of each input, and
with GPTQ its neighbours too, of which each channel takes the one of least output error.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from octavo.formats.registry import codebook_at
from octavo.formats.width import Width
from octavo.network.copies import copied
from octavo.network.layers import Layer, channels_back, channels_first, find_layers
from octavo.network.moments import Moments
from octavo.ptq.compensation import compensate
from octavo.ptq.layer_problem import LayerProblem
from octavo.ptq.rounding import Rounding
from octavo.ptq.sequential import freeze_sequentially
from octavo.ptq.settings import PtqSettings
from octavo.storage.packed import pack
from octavo.storage.quantized import Quantized

__all__ = ["IntegerNetwork", "integer_network"]

INT8 = Width(8, "int")
SHARES = 64  # scales that are tried, from a hundredth to all of the largest weight
NEIGHBOURS = (1.0, 0.9, 1.1)
SCALE_BITS = 16


class IntegerNetwork:
    """A network on integers.

    Attributes:
        model: the network with its quantized weights.
        stored_bits: bits of a weight, its share of the scales included.
        file_bytes: octavo's file with these codes and scales.

    """

    def __init__(self, model: nn.Module, codes: dict[str, Quantized], scales: int) -> None:
        packed = pack(model, codes)
        weights = sum(one.codes.numel() for one in codes.values())
        # In that file every layer has one exponent and no scales.
        self.model = model
        self.stored_bits = packed.stored_bits + SCALE_BITS * scales / weights
        self.file_bytes = packed.file_bytes + SCALE_BITS // 8 * scales


def integer_network(
    model: nn.Module, inputs: Sequence[Any], bits: int, group: int, *, gptq: bool
) -> IntegerNetwork:
    """Quantize a copy of a network to symmetric integers.

    Args:
        model: the network.
        inputs: calibration inputs.
        bits: the bits of an integer.
        group: the inputs of a channel that share a scale; 0 for all of them.
        gptq: whether layers are solved by GPTQ, one after another; else each weight is rounded.

    """
    network = copied(model)
    quantized: dict[str, Quantized] = {}
    scales: dict[str, int] = {}

    def freeze(layer: Layer, moments: Moments, _: object) -> None:
        rows = channels_first(layer.weight.detach().float(), layer.groups)
        problem = LayerProblem.of(rows, moments, INT8, PtqSettings.damp, rows != rows)
        codes, level = _solved(problem, rows, bits, group, gptq=gptq)
        of_int8 = codes + (INT8.level_count // 2 - largest(bits))
        codebook = codebook_at(INT8, torch.tensor(0))
        quantized[layer.name] = Quantized.of(layer, codebook, of_int8.view(rows.shape))
        columns = codes.shape[2]
        scales[layer.name] = len(rows) * -(-columns // (group or columns))
        layer.weight.copy_(channels_back(level.float().view(rows.shape), layer.groups))

    with torch.no_grad():
        freeze_sequentially(copied(model), network, find_layers(network)[0], inputs, freeze)
    return IntegerNetwork(network, quantized, sum(scales.values()))


def largest(bits: int) -> int:
    """Return the largest of the symmetric integers."""
    return (1 << bits - 1) - 1


def _solved(
    problem: LayerProblem, rows: Tensor, bits: int, group: int, *, gptq: bool
) -> tuple[Tensor, Tensor]:
    """Return the codes of a layer, and the weights that they stand for."""
    levels = torch.arange(-largest(bits), largest(bits) + 1.0)
    weight = rows.reshape(problem.target.shape)  # (problems, rows, columns)
    if not gptq:
        rounding = Rounding(levels, _scale(weight, torch.ones_like(weight), levels, group))
        codes = rounding(weight)
        return codes.to(torch.uint8), rounding.level(codes)
    start = problem.start.float()
    energy = problem.hessian.diagonal(dim1=1, dim2=2).unsqueeze(1).expand_as(start)
    scale = _scale(start, energy, levels, group)
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for factor in NEIGHBOURS:
        rounding = Rounding(levels, scale * factor)
        codes = compensate(start, problem.damped, rounding, "gptq").codes
        level = rounding.level(codes.long())
        error = problem.target - level
        cost = ((error @ problem.hessian.double()) * error).sum(2, keepdim=True)
        found = (codes, level, cost)
        best = found if best is None else _better(best, found)
    assert best is not None
    return best[0], best[1]


def _better(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each row what costs less."""
    wins = other[2] < one[2]
    codes, level, cost = (torch.where(wins, b, a) for a, b in zip(one, other, strict=True))
    return codes, level, cost


def _scale(weight: Tensor, importance: Tensor, levels: Tensor, group: int) -> Tensor:
    """Return the scale of least weighted error of each weight's group: the shape of ``weight``."""
    columns = weight.shape[2]
    parts = zip(
        weight.split(group or columns, 2), importance.split(group or columns, 2), strict=True
    )
    return torch.cat([_of_group(*part, levels).expand_as(part[0]) for part in parts], 2)


def _of_group(weight: Tensor, importance: Tensor, levels: Tensor) -> Tensor:
    whole = weight.abs().amax(2, keepdim=True).clamp(min=1e-12) / levels[-1]

    def error(scale: Tensor) -> Tensor:
        rounding = Rounding(levels, scale.expand_as(weight))
        lost = weight - rounding.level(rounding(weight))
        return (importance * lost.square()).sum(2)

    scales = [(whole * share / SHARES).half().float() for share in range(SHARES // 4, SHARES + 1)]
    errors = torch.stack([error(scale) for scale in scales])  # (scales, problems, rows)
    return torch.stack(scales).gather(0, errors.argmin(0)[None, :, :, None]).squeeze(0)
