"""Warn when a large part of a model's weights is going to stay in float."""

from collections.abc import Sequence

from torch import nn

from octavo.network.layers import ALWAYS_FLOAT, Skipped, find_layers
from octavo.network.warned import warn

__all__ = ["warn_if_mostly_float"]

MOST = 0.1  # share of the weights that may stay in float without a word
NAMED = 3  # skipped parameters that the warning names


def warn_if_mostly_float(model: nn.Module) -> None:
    """Warn if more than a tenth of the model's weights cannot be quantized.

    Biases, norms and scales of activation quantizers do not count as weights. The warning always
    comes from this module. So Python shows it once for each model in a process by default, even
    where several functions of octavo ask for it.
    """
    layers, skipped = find_layers(model)
    in_float = [skip for skip in skipped if skip.reason not in ALWAYS_FLOAT]
    left = sum(skip.weights for skip in in_float)
    total = left + sum(layer.weight.numel() for layer in layers)
    if left > MOST * total:
        message = (
            f"{type(model).__name__}: {left / total:.0%} of its weights cannot be quantized and "
            f"stay in float: {_largest(in_float)}. octavo.inspect(model) lists them all; "
            "octavo.register_layer makes a layer type of your own quantizable"
        )
        warn(message)


def _largest(skipped: Sequence[Skipped]) -> str:
    """Return the largest of the parameters with their sizes and reasons, in one line."""
    largest = sorted(skipped, key=lambda skip: -skip.weights)[:NAMED]
    named = [f"{skip.name} ({skip.weights:,} weights: {skip.reason})" for skip in largest]
    others = len(skipped) - len(named)
    return ", ".join(named) + (f" and {others} more" if others else "")
