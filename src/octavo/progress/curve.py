"""The course of a search in one line of text."""

import itertools
from collections.abc import Sequence
from typing import Any

__all__ = ["best_so_far", "widths"]

BLOCKS = " ▁▂▃▄▅▆▇█"


def widths(plan: Any) -> str:
    """Return the widths of a plan's layers, with spaces only where one is not a single digit.

    Where the bits of inputs are searched for too, ``3x8`` stands for weights and inputs.
    """
    inputs = plan.activations
    written = [
        f"{width}x{inputs[name]}" if name in inputs else str(width) for name, width in plan.items()
    ]
    separator = " " if any(len(width) > 1 for width in written) else ""
    return separator.join(written)


def best_so_far(rewards: Sequence[float], width: int = 24) -> str:
    """Draw the best reward so far as it rose, one block character for each part of the search."""
    best = list(itertools.accumulate(rewards, max))
    picked = best
    if len(best) >= width:
        picked = [best[(part + 1) * len(best) // width - 1] for part in range(width)]
    low = picked[0]
    high = picked[-1]
    if high <= low:
        return BLOCKS[1] * len(picked)
    heights = [1 + round(7 * (value - low) / (high - low)) for value in picked]
    return "".join(BLOCKS[height] for height in heights)
