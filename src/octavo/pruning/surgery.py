"""Pruning: what of a network is pruned already, and dynamic network surgery, which prunes and
splices while you train.

Surgery is Guo, Yao and Chen's (arXiv 1608.04493): the network sees its weights under a mask,
gradients reach all of them, pruned ones too, and after a step the masks may change, ever more
rarely. A kept weight is pruned under one threshold, a pruned one spliced back above a larger one,
0.9 and 1.1 times the same number (the factors are those of the authors' code). The paper makes that
number of a layer's mean and deviation and a factor set by hand. Ours follows from the sparsity that
is asked for: it is the one that leaves exactly so many weights pruned; that sparsity rises along a
cubic (Zhu and Gupta, arXiv 1710.01878). Where layers reach a sparsity together, a weight counts by
    its square over the sum of those in its layer that are no smaller (LAMP; Lee et al., arXiv
    2010.07611): a layer that has lost much loses less.
"""

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from octavo._seeds import seed_of
from octavo.errors import PlanError, nearest
from octavo.formats.zeros import pruned_mask
from octavo.network.layers import Layer, find_layers
from octavo.network.parametrizations import attach, release

__all__ = ["Surgery", "check_sparsity"]

PRUNE, SPLICE = (
    0.9,
    1.1,
)  # thresholds, in units of the number that divides kept from pruned (the authors' code)
RAMP = 0.5  # share of the steps in which the sparsity rises
# the mask changes after a step with the probability 1 / (1 + RATE * share of the steps that are
# done)
RATE = 9.0


class _Masked(torch.autograd.Function):
    """``where(kept, weight, 0)``; the gradient reaches every weight."""

    @staticmethod
    def forward(_: Any, weight: Tensor, kept: Tensor) -> Tensor:
        return weight.where(kept, 0)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Mask(nn.Module):
    """The parametrization: what is kept of a weight."""

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
        masks = surgery.finish()  # the model is plain again, its pruned weights are zero;
        Incremental keeps them so

    The first half of the steps reaches the sparsity, exactly; in the other half, weights may still
    change places.

    Args:
        model: the trained network; it is changed in place. The parameters stay the same objects.
        sparsity: share of the weights that are pruned, at least 0, below 1: of all layers together,
            each as far as it bears; or by layer name or shell pattern, of each layer that matches
            (the last that does counts; the others stay whole).
        steps: how many calls of ``step`` there will be; after so many the masks stand still.
        seed: of the draw whether the masks change after a step.

    Raises:
        PlanError: a sparsity out of range, a name or pattern that matches no layer, or no layer at
            all.

    """

    def __init__(
        self, model: nn.Module, sparsity: float | Mapping[str, float], *, steps: int, seed: int = 0
    ) -> None:
        check_sparsity(sparsity)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise PlanError(
                f"steps: expected how many steps there will be, at least 1, got {steps!r}"
            )
        self.model, self._done, self._steps, self._seed = model, 0, steps, seed
        given = dict(sparsity) if isinstance(sparsity, Mapping) else sparsity
        self._settings: dict[str, Any] = {"sparsity": given, "steps": steps, "seed": seed}
        self._groups = _groups(model, sparsity)
        self._layers = {layer.name: layer for layers, _ in self._groups for layer in layers}
        self._masks = {name: _Mask(layer.weight) for name, layer in self._layers.items()}
        for name, layer in self._layers.items():
            attach(layer, self._masks[name])

    @property
    def sparsity(self) -> float:
        """Share of the weights of all these layers that is pruned now."""
        kept = [mask.kept for mask in self._masks.values()]
        return 1 - sum(int(one.sum()) for one in kept) / sum(one.numel() for one in kept)

    def step(self) -> None:
        """Count a step of the optimizer, and perhaps change the masks."""
        self._done += 1
        ramp = math.ceil(RAMP * self._steps)
        generator = torch.Generator().manual_seed(seed_of(self._seed, self._done))
        drawn = float(torch.rand((), generator=generator)) < 1 / (
            1 + RATE * self._done / self._steps
        )
        if self._done == ramp or (drawn and self._done <= self._steps):
            self._update(1 - (1 - min(1.0, self._done / ramp)) ** 3)

    def _update(self, share: float) -> None:
        """Prune and splice so that ``share`` of what shall be pruned in the end is pruned now."""
        for layers, sparsity in self._groups:
            masks = [self._masks[layer.name] for layer in layers]
            count = round(share * sparsity * sum(mask.kept.numel() for mask in masks))
            scores = [
                _lamp(_reach(layer.weight, mask.kept))
                for layer, mask in zip(layers, masks, strict=True)
            ]
            lowest = torch.cat(scores).argsort(stable=True)[:count]
            kept = torch.ones(sum(map(len, scores)), dtype=torch.bool, device=lowest.device)
            kept[lowest] = False
            for mask, part in zip(masks, kept.split([len(one) for one in scores]), strict=True):
                mask.kept.copy_(part.view(mask.kept.shape))

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to resume after any step, the model's own state dict included."""
        return {"done": self._done, "settings": self._settings, "model": self.model.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume: the model and its masks take up where ``state`` was taken.

        Raises:
            PlanError: the state comes from other settings; the message names the first that
                differs.

        """
        if not {"done", "settings", "model"} <= set(state):
            raise PlanError(
                f"expected what state_dict() returned, got the keys {', '.join(map(str, state)) or 'none'}"
            )
        for key, mine in self._settings.items():
            if (theirs := state["settings"].get(key)) != mine:
                raise PlanError(
                    f"{key}: expected the state of a run with {mine!r}, got one with {theirs!r}"
                )
        self.model.load_state_dict(state["model"])
        self._done = state["done"]

    def finish(self) -> dict[str, Tensor]:
        """Fold the model back to plain modules, pruned weights at zero; before its time, what is
        missing is pruned now.

        Returns:
            Layer name to mask: bool, the weight's shape, false where pruned.

        Raises:
            PlanError: the surgery was finished before.

        """
        if not self._layers:
            raise PlanError(
                "finish: expected a surgery that goes on, got one that was finished before"
            )
        if self._done < math.ceil(RAMP * self._steps):
            self._update(1.0)
        masks = {name: mask.kept.clone() for name, mask in self._masks.items()}
        release(self._layers.values())
        self._layers = {}
        return masks


def check_sparsity(sparsity: float | Mapping[str, float]) -> None:
    """Raise PlanError unless every sparsity is a number of at least 0, below 1."""
    for name, share in (
        sparsity if isinstance(sparsity, Mapping) else {"sparsity": sparsity}
    ).items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise PlanError(f"{name}: expected a sparsity of at least 0, below 1, got {share!r}")


def _found(layer: Layer) -> Tensor:
    mask, padding = pruned_mask(layer.weight), getattr(layer.module, "padding_idx", None)
    if padding is not None:
        mask[padding] = False
    return mask


def _groups(
    model: nn.Module, sparsity: float | Mapping[str, float]
) -> list[tuple[list[Layer], float]]:
    """The layers that reach a sparsity together, and that sparsity."""
    layers = {layer.name: layer for layer in find_layers(model)[0]}
    if not layers:
        raise PlanError(
            f"{type(model).__name__}: expected a model with layers that can be pruned, found none"
        )
    if not isinstance(sparsity, Mapping):
        return [(list(layers.values()), sparsity)]
    shares = dict[str, float]()
    for pattern, share in sparsity.items():
        matching = [name for name in layers if fnmatchcase(name, pattern)]
        if not matching:
            raise PlanError(
                f"{pattern!r} matches no layer of {type(model).__name__}{nearest(pattern, layers)}"
            )
        shares |= dict.fromkeys(matching, share)
    return [([layers[name]], share) for name, share in shares.items()]


def _reach(weight: Tensor, kept: Tensor) -> Tensor:
    """How large each weight is in units of its own threshold: float32, flat."""
    return (weight.detach().float().abs() / torch.where(kept, PRUNE, SPLICE)).flatten()


def _lamp(size: Tensor) -> Tensor:
    """Each square over the sum of those that are no smaller: the layer's own order, and comparable
    with other layers'.
    """
    squares, order = size.double().square().sort(stable=True)
    left = squares.flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares)
    scores[order] = squares / left.clamp(min=torch.finfo(torch.float64).tiny)
    return scores
