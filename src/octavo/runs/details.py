"""The details of a run, for its report: ``details.json`` in its folder.

It has the layers with their bytes and their weights before and after, what stays in float and why,
the loss curves of retraining, and the time that each part took.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from octavo.formats.codebook import power
from octavo.formats.rows import spread
from octavo.formats.width import Width, write_width
from octavo.inspection import inspect
from octavo.network.layers import Layer, channels_first, find_layers
from octavo.runs.run_folder import Json
from octavo.storage.coding import grouped as coding
from octavo.storage.packed import Packed
from octavo.storage.quantized import Quantized

__all__ = ["DETAILS", "network_details", "packed_layers", "without_curves"]

DETAILS = "details.json"
BINS = 60  # bins of a histogram of weights
RANGE = 1.5  # the histogram reaches so far beyond the largest level, on both sides


def network_details(float_model: nn.Module, packed: Packed, *, absorbed: bool) -> Json:
    """Return the figures of each layer, and what stays in float.

    Args:
        float_model: the network in full precision.
        packed: the quantized network.
        absorbed: True if the layers may have a scale for each channel that their batch norm
            cancels; their weights are then compared without it.

    """
    inspection = inspect(float_model)
    stored = stored_bytes(packed)
    float_layers = {layer.name: layer for layer in find_layers(float_model)[0]}
    rows = []
    for row in inspection.rows:
        entry: Json = {
            "name": row.name, "kind": row.kind, "shape": list(row.shape), "weights": row.weights,
        }  # fmt: skip
        quantized = packed.layers.get(row.name)
        if quantized is not None:
            entry["bits"] = write_width(quantized.codebook.width)
            entry["stored_bytes"] = stored[row.name]
            layer = float_layers[row.name]
            entry |= _histograms(layer, quantized, absorbed=absorbed)
        rows.append(entry)
    skipped = [
        {"name": skip.name, "weights": skip.weights, "reason": skip.reason}
        for skip in inspection.skipped
    ]
    return {"layers": rows, "skipped": skipped}


def stored_bytes(packed: Packed) -> dict[str, float]:
    """Return the bytes that each layer's codes take in the file.

    With the coding ``fast``, layers of one width share one stream of codes; each has its share of
    it by entropy. With ``small``, each layer is coded by itself.
    """
    layers = packed.layers
    if packed.coding == "small":
        return {name: layer.small_bytes for name, layer in layers.items()}
    streams: dict[Width, list[str]] = {}
    for name, layer in layers.items():
        streams.setdefault(layer.codebook.width, []).append(name)
    stored: dict[str, float] = {}
    for width, names in streams.items():
        codes = torch.cat([layers[name].codes.reshape(-1) for name in names])
        stream = len(coding.encode_codes(codes, width))
        entropy = {name: coding.entropy_bytes(layers[name].codes, width) + 1e-9 for name in names}
        total = sum(entropy.values())
        stored |= {name: round(stream * entropy[name] / total, 1) for name in names}
    return {name: stored[name] for name in layers}


def packed_layers(packed: Packed) -> list[Json]:
    """Return the figures of each layer of a packed file; its bytes are those of its codes."""
    stored = stored_bytes(packed)
    rows: list[Json] = []
    for name, layer in packed.layers.items():
        zeros = int((layer.codes == layer.codebook.zero).sum())
        rows.append(
            {
                "name": name,
                "shape": list(layer.shape),
                "weights": layer.codes.numel(),
                "bits": write_width(layer.codebook.width),
                "stored_bytes": stored[name],
                "zeros": round(zeros / layer.codes.numel(), 4),
            }
        )
        if packed.activations:
            form = packed.activations.get(name)
            rows[-1]["activation_bits"] = None if form is None else form.bits
    return rows


def _histograms(layer: Layer, quantized: Quantized, *, absorbed: bool) -> Json:
    """Return the histogram of a layer's weights in units of their scale, and the count of each of
    its levels.
    """
    codebook = quantized.codebook
    codes = quantized.codes
    before = channels_first(layer.weight.detach().float().cpu(), layer.groups)
    decoded = codebook.decode(codes)
    if absorbed:
        before = before / _channel_factors(before, decoded)
    scale = spread(power(codebook.max_exponent), codes.shape, codebook.group_size)
    units = codebook.unit_levels()
    reach = RANGE * float(units.max())
    relative = (before / scale).clamp(-reach, reach)
    counts = torch.histc(relative, BINS, -reach, reach).long()
    after = torch.bincount(codes.reshape(-1).long(), minlength=len(units))
    return {
        "zeros": round(int(after[codebook.zero]) / codes.numel(), 6),
        "before": {"low": -reach, "high": reach, "counts": counts.tolist()},
        "after": {"levels": units.tolist(), "counts": after.tolist()},
    }


def _channel_factors(before: Tensor, after: Tensor) -> Tensor:
    """Return, for each output channel, the factor that brings ``after`` nearest to ``before``."""
    rows = before.flatten(1)
    levels = after.flatten(1)
    factor = (rows * levels).sum(1) / (levels * levels).sum(1).clamp(min=1e-30)
    factor = torch.where(factor.abs() < 1e-6, torch.ones_like(factor), factor)
    return factor.reshape(-1, *[1] * (before.ndim - 1))


def without_curves(stages: Sequence[Json]) -> list[Json]:
    """Return the stages as ``result.json`` has them: without their loss curves and metrics."""
    hidden = ("curve", "score")
    return [{key: stage[key] for key in stage if key not in hidden} for stage in stages]
