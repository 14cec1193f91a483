"""The bytes of a packed file as an estimate that is linear in the choice of actions.

With the coding ``fast``, the file has one stream of codes for each width, and a stream comes near
the order-0 entropy of its codes. So the estimate gives each candidate its entropy, times what a
stream of all layers at its width takes per byte of entropy. With ``small`` each layer is coded by
itself, and so is its candidate. Everything else in the file is nearly the same for each choice.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from octavo.dnq.candidates import Candidate, Candidates
from octavo.dnq.space import Choice
from octavo.formats.width import Width
from octavo.network.copies import copied
from octavo.network.layers import find_layers
from octavo.ptq.absorption import absorb_factor
from octavo.ptq.file_form import FileForm
from octavo.storage.coding import grouped as coding
from octavo.storage.packed import Packed, pack

__all__ = ["FileSizes", "file_sizes"]

PLANS = 8  # at most so many uniform plans, and as many mixed ones, are packed to measure the rest
LEAST = 1e-6  # bytes of a weight beside its entropy: a stream of equal codes takes bytes as well


@dataclass(frozen=True, eq=False)
class FileSizes:
    """The estimated bytes of a packed file.

    Attributes:
        codes: bytes that the codes of each action take, (layers, actions), NaN where a layer has
            fewer actions.
        rest: bytes of everything else: floats, manifest, exponents and header.
        float_bytes: bytes of the network's tensors in float, as ``Packed.float_bytes``.
        least: bytes of the file with the cheapest candidates, which was really packed.

    """

    codes: np.ndarray
    rest: float
    float_bytes: int
    least: float = math.inf


def file_sizes(
    model: nn.Module, layers: Sequence[str], candidates: Candidates, form: FileForm
) -> FileSizes:
    """Estimate the bytes of the packed file of each choice.

    Args:
        model: the trained network; it is left as it was.
        layers: names of the layers.
        candidates: the candidates of each layer, in the order of ``layers``.
        form: the form of the file. Where it leaves open if norms are folded, they are.

    Raises:
        PlanError: the model's state dict holds something that no packed file can hold.

    """
    codes = np.full((len(candidates), max(map(len, candidates))), np.nan)
    if form.coding == "small":
        _price_alone(codes, candidates)
    else:
        for width in {_width(candidate) for row in candidates for candidate in row}:
            _price(codes, candidates, width)
    floats = form.floats or "folded"

    def packed(choice: Choice) -> Packed:
        as_solved = _packed(model, layers, candidates, choice)
        return replace(as_solved.with_floats(floats, model), coding=form.coding)

    smallest = packed(tuple(np.nanargmin(codes, 1).tolist()))
    rests = [
        packed(choice).file_bytes - codes[range(len(choice)), choice].sum()
        for choice in _sample(candidates)
    ]
    return FileSizes(codes, float(np.mean(rests)), smallest.float_bytes, smallest.file_bytes)


def _sample(candidates: Candidates) -> list[Choice]:
    """Return choices with the same action everywhere, and as many with all actions mixed: a file
    has one stream for each width, so mixed plans have more streams.
    """
    counts = [len(row) for row in candidates]
    firsts = range(min(max(counts), PLANS))
    uniform = [tuple(min(first, count - 1) for count in counts) for first in firsts]
    mixed = [
        tuple((layer + first) % count for layer, count in enumerate(counts)) for first in firsts
    ]
    return uniform + mixed


def _width(candidate: Candidate) -> Width:
    return candidate.quantized.codebook.width


def _price(codes: np.ndarray, candidates: Candidates, width: Width) -> None:
    """Fill in the bytes of all actions of one width: each has its share, by entropy, of the stream
    that has every layer at this width.
    """
    places = [
        (layer, action)
        for layer, row in enumerate(candidates)
        for action, candidate in enumerate(row)
        if _width(candidate) == width
    ]
    of_layer = {layer: candidates[layer][action] for layer, action in places}
    stream = torch.cat([each.quantized.codes.reshape(-1) for each in of_layer.values()])
    entropy = {
        layer: each.stored_bits / 8 + LEAST * each.weight.numel()
        for layer, each in of_layer.items()
    }
    rate = len(coding.encode_codes(stream, width)) / sum(entropy.values())
    for layer, action in places:
        codes[layer, action] = rate * entropy[layer]


def _price_alone(codes: np.ndarray, candidates: Candidates) -> None:
    """Fill in the bytes of all actions where each layer is coded by itself, as ``small`` does."""
    for layer, row in enumerate(candidates):
        for action, candidate in enumerate(row):
            codes[layer, action] = candidate.quantized.small_bytes


def _packed(
    model: nn.Module, layers: Sequence[str], candidates: Candidates, choice: Choice
) -> Packed:
    """Pack the network with the candidates of a choice, as ``calibrate`` would."""
    chosen = [row[action] for row, action in zip(candidates, choice, strict=True)]
    copies = dict[int, Any]()  # the copy of each object, by its id
    network = copied(model, copies)
    candidate_of = dict(zip(layers, chosen, strict=True))
    quantized = {}
    for layer in find_layers(network)[0]:  # in the order in which calibrate packs them
        candidate = candidate_of.get(layer.name)
        if candidate is None:
            continue
        quantized[layer.name] = candidate.quantized
        if candidate.norm is not None and candidate.factor is not None:
            absorb_factor(layer, copies[id(candidate.norm)], candidate.factor)
    return pack(network, quantized)
