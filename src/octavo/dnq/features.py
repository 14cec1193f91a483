"""Features: what the policy reads of each layer."""

import numpy as np
import torch
from torch import Tensor

from octavo.dnq.space import Space

__all__ = ["allowed_actions", "features_of"]


def features_of(space: Space, losses: np.ndarray) -> Tensor:
    """Return the features of each layer, (layers, features).

    They are its traits (log fan-in, kind), depth, log weights, log multiply-accumulates, and the
    logarithm of what the layer alone loses at each of its actions.

    Args:
        space: the space of the search.
        losses: what each layer alone loses at each action, (layers, actions).

    """
    depth = np.linspace(0, 1, len(space.names))
    log_weights = np.log(np.array(space.weights, float))
    log_macs = np.log1p(np.array(space.macs, float))
    columns = [*zip(*space.traits, strict=True), depth, log_weights, log_macs]
    floor = max(float(np.nanmax(losses)), 1e-12) * 1e-6
    for action in range(losses.shape[1]):
        # A layer with fewer actions repeats its last one.
        column = [
            losses[layer, min(action, len(actions) - 1)]
            for layer, actions in enumerate(space.actions)
        ]
        columns.append(np.log(np.maximum(column, floor)))
    return torch.tensor(np.stack(columns, 1), dtype=torch.float32)


def allowed_actions(space: Space) -> Tensor:
    """Return the actions that each layer has, bool, (layers, actions)."""
    counts = torch.tensor([len(actions) for actions in space.actions])
    return torch.arange(int(counts.max())) < counts.unsqueeze(1)
