"""Dynamic network surgery: prune and splice weights while the network trains.

Surgery is Guo, Yao and Chen's (arXiv 1608.04493). The network sees its weights under a mask, while
gradients reach all of them, pruned ones too. After a step of training the masks may change, ever
more rarely. A kept weight is pruned if it is smaller than one threshold; a pruned weight is spliced
back if it is larger than another. The thresholds are 0.9 and 1.1 times one number (the factors of
the authors' code).

The paper computes that number from a layer's mean and deviation and a factor that is set by hand.
Here it follows from the sparsity that is asked for: it is the number that leaves exactly so many
weights pruned. The sparsity rises along a cubic (Zhu and Gupta, arXiv 1710.01878). If layers reach
a sparsity together, a weight is ranked by its square over the sum of the squares in its layer that
are no smaller (LAMP; Lee et al., arXiv 2010.07611). So a layer that has lost much loses less.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from octavo._seeds import seed_of
from octavo.errors import PlanError
from octavo.network.distributed import check_not_distributed
from octavo.network.layers import Layer, free_layers
from octavo.network.parametrizations import attach, release
from octavo.plan import matching

__all__ = ["Surgery", "check_sparsity", "sparsity_groups"]

# Thresholds in units of the number that divides kept weights from pruned ones (the authors' code).
PRUNE = 0.9
SPLICE = 1.1
RAMP = 0.5  # share of the steps in which the sparsity rises
RATE = 9.0  # masks change after a step with the probability 1 / (1 + RATE * share of steps done)


class _Masked(torch.autograd.Function):
    """``where(kept, weight, 0)``; the gradient reaches every weight."""

    @staticmethod
    def forward(_: Any, weight: Tensor, kept: Tensor) -> Tensor:
        return weight.where(kept, 0)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Mask(nn.Module):
    """The parametrization that shows the network a weight under its mask."""

    kept: Tensor  # bool, the weight's own shape

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", torch.ones_like(weight, dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        result: Tensor = _Masked.apply(weight, self.kept)  # type: ignore[no-untyped-call]
        return result


class Surgery:
    """Dynamic network surgery over your own loop: call ``step`` after each step of any optimizer.

    ::

        surgery = Surgery(model, 0.8, steps=epochs * len(batches))
        for inputs, targets in ...:
            ...
            optimizer.step()
            surgery.step()
        masks = surgery.finish()  # the model is plain again, and its pruned weights are zero

    ``Incremental`` keeps these zeros. The sparsity is reached exactly after the first half of the
    steps; in the other half, weights may still change places.

    Args:
        model: the trained network; it is changed in place. The parameters stay the same objects.
        sparsity: share of the weights that are pruned, at least 0, below 1. A number is the
            sparsity of all layers together, to which each contributes as much as it bears. A
            mapping of layer names or shell patterns, as in a ``Plan``, gives each layer that
            matches its own sparsity; layers without a match stay whole.
        steps: how many calls of ``step`` there will be; after so many the masks stand still.
        seed: seed of the draw that decides after each step whether the masks change.

    Raises:
        PlanError: a sparsity out of range, a name or pattern that matches no layer, no layer at
            all, one that ``torch.nn.utils.prune`` masks or that is in a run already, or a model
            that ``DistributedDataParallel`` wraps already.

    """

    def __init__(
        self, model: nn.Module, sparsity: float | Mapping[str, float], *, steps: int, seed: int = 0
    ) -> None:
        check_sparsity(sparsity)
        check_not_distributed(model, "Surgery(model, ...)")
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise PlanError(
                f"steps: expected how many steps there will be, at least 1, got {steps!r}"
            )
        self.model = model
        self._done = 0
        self._steps = steps
        self._seed = seed
        as_given = dict(sparsity) if isinstance(sparsity, Mapping) else sparsity
        self._settings: dict[str, Any] = {"sparsity": as_given, "steps": steps, "seed": seed}
        self._groups = sparsity_groups(model, sparsity)
        self._layers = {layer.name: layer for layers, _ in self._groups for layer in layers}
        self._masks = {name: _Mask(layer.weight) for name, layer in self._layers.items()}
        for name, layer in self._layers.items():
            attach(layer, self._masks[name])

    @property
    def sparsity(self) -> float:
        """Share of the weights of all these layers that is pruned now."""
        masks = [mask.kept for mask in self._masks.values()]
        kept = sum(int(mask.sum()) for mask in masks)
        return 1 - kept / sum(mask.numel() for mask in masks)

    def step(self) -> None:
        """Count a step of the optimizer, and perhaps change the masks."""
        self._done += 1
        generator = torch.Generator().manual_seed(seed_of(self._seed, self._done))
        probability = 1 / (1 + RATE * self._done / self._steps)
        number = torch.rand((), generator=generator, dtype=torch.float32, device="cpu")
        drawn = float(number) < probability
        if self._done == self._ramp or (drawn and self._done <= self._steps):
            risen = min(1.0, self._done / self._ramp)
            self._change_masks(1 - (1 - risen) ** 3)

    @property
    def _ramp(self) -> int:
        """The step after which the full sparsity is reached."""
        return math.ceil(RAMP * self._steps)

    def _change_masks(self, share: float) -> None:
        """Prune and splice so that ``share`` of the final sparsity is reached now."""
        for layers, sparsity in self._groups:
            masks = [self._masks[layer.name] for layer in layers]
            sizes = [mask.kept.numel() for mask in masks]
            count = round(share * sparsity * sum(sizes))  # weights to prune
            ranks = [
                _lamp(_in_thresholds(layer.weight, mask.kept))
                for layer, mask in zip(layers, masks, strict=True)
            ]
            lowest = torch.cat(ranks).argsort(stable=True)[:count]
            kept = torch.ones(sum(sizes), dtype=torch.bool, device=lowest.device)
            kept[lowest] = False
            for mask, part in zip(masks, kept.split(sizes), strict=True):
                mask.kept.copy_(part.view(mask.kept.shape))

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to resume after any step, the model's state dict included."""
        return {"done": self._done, "settings": self._settings, "model": self.model.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the model and its masks where ``state`` was taken.

        Raises:
            PlanError: the state comes from other settings; the message names the first that
                differs.

        """
        if not {"done", "settings", "model"} <= set(state):
            keys = ", ".join(map(str, state)) or "none"
            raise PlanError(f"expected what state_dict() returned, got the keys {keys}")
        for key, expected in self._settings.items():
            saved = state["settings"].get(key)
            if saved != expected:
                raise PlanError(
                    f"{key}: expected the state of a run with {expected!r}, got one with {saved!r}"
                )
        done = state["done"]
        if isinstance(done, bool) or not isinstance(done, int) or done < 0:
            raise PlanError(f"done: expected a number of steps, got {done!r}")
        self.model.load_state_dict(state["model"])
        self._done = done

    def finish(self) -> dict[str, Tensor]:
        """Fold the model back to plain modules with the pruned weights at zero; if the sparsity is
        not reached yet, the missing weights are pruned now.

        Returns:
            Layer name to mask: bool, the weight's shape, false where a weight is pruned.

        Raises:
            PlanError: the surgery was finished before.

        """
        if not self._layers:
            raise PlanError(
                "finish: expected a surgery that goes on, got one that was finished before"
            )
        if self._done < self._ramp:
            self._change_masks(1.0)
        masks = {name: mask.kept.clone() for name, mask in self._masks.items()}
        release(self._layers.values())
        self._layers = {}
        return masks


def check_sparsity(sparsity: float | Mapping[str, float]) -> None:
    """Raise PlanError unless every sparsity is a number of at least 0, below 1."""
    shares = sparsity if isinstance(sparsity, Mapping) else {"sparsity": sparsity}
    for name, share in shares.items():
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if not number or not 0 <= share < 1:
            raise PlanError(f"{name}: expected a sparsity of at least 0, below 1, got {share!r}")


def sparsity_groups(
    model: nn.Module, sparsity: float | Mapping[str, float]
) -> list[tuple[list[Layer], float]]:
    """Return the groups of layers that reach a sparsity together, each with that sparsity.

    Raises:
        PlanError: no layer at all, one that is masked or in a run that is not finished, or a name
            or pattern that matches none.

    """
    layers = {layer.name: layer for layer in free_layers(model, "pruned")[0]}
    if not isinstance(sparsity, Mapping):
        return [(list(layers.values()), sparsity)]
    shares: dict[str, float] = matching(layers, sparsity, f"layer of {type(model).__name__}")
    return [([layers[name]], share) for name, share in shares.items()]


def _in_thresholds(weight: Tensor, kept: Tensor) -> Tensor:
    """Return the size of each weight in units of the threshold that applies to it, flat float32."""
    size = weight.detach().float().abs()
    thresholds = torch.full_like(size, SPLICE).masked_fill_(kept, PRUNE)
    return (size / thresholds).flatten()


def _lamp(size: Tensor) -> Tensor:
    """Return LAMP's rank of each weight: its square over the sum of the squares in its layer that
    are no smaller. It keeps the order within a layer, and compares across layers.
    """
    squares, order = size.double().square().sort(stable=True)
    no_smaller = squares.flip(0).cumsum(0).flip(0)  # for each, the sum from it to the largest
    ranks = torch.empty_like(squares)
    ranks[order] = squares / no_smaller.clamp(min=torch.finfo(torch.float64).tiny)
    return ranks
