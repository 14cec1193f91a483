"""Choose among solutions of a layer by what they do to the outputs of its module.

The closed form trusts that a layer multiplies its inputs with its weight, that its inputs do not
depend on the weight, and that its drift on other inputs is the same. Where one of these does not
hold, the solution of least error by the closed form may be worse than nearest levels. Here the
outputs are computed, and nearest levels are among the solutions; so a layer is never worse.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from octavo.errors import PlanError
from octavo.network.layers import Layer
from octavo.network.moments import Moments
from octavo.ptq.absorption import rescaled
from octavo.ptq.layer_solver import Solution
from octavo.ptq.site import Site
from octavo.storage.quantized import Quantized

__all__ = ["choose", "weight_of"]

ROUNDS = 3  # times that a recurrent weight is solved from the states that it leads to itself

Solve = Callable[[Moments], Solution]


def choose(layer: Layer, moments: Moments, site: Site | None, solve: Solve) -> Solution:
    """Return the solution of a layer that keeps the outputs of its module best.

    They are measured on the held-out inputs. Where nothing was set aside, and where nearest levels
    are the only solution, only layers are measured that the closed form does not describe: see
    ``Site.is_described``.

    Args:
        layer: the layer, with its full-precision weight.
        moments: the moments of its inputs.
        site: all batches at the layer; None where they do not wait at it.
        solve: solves the layer from moments.

    Raises:
        PlanError: no solution has finite outputs where full precision has.

    """
    first = solve(moments)
    if site is None:
        return first
    has_rival = first.rounding is not None and bool(site.held_out)
    if site.is_described and not has_rival:
        return first
    trials = _Trials(layer, site)
    best = trials.measured(first)
    nearest = best if first.rounding is None else trials.measured(first.rounding)
    if (nearest.error < best.error or not site.is_described) and bool(moments.drift.any()):
        best = trials.better(best, solve(moments.without_drift()))
    best = min(best, nearest, key=_error_of)  # of equals, the first
    if layer.form == "recurrent" and not layer.attribute.startswith("weight_ih"):
        best = _in_rounds(best, trials, solve)
    if math.isinf(best.error):
        raise PlanError(
            f"{layer.name}: with its weight quantized its outputs become NaN or infinite; give it "
            "more bits, or leave it out of the plan"
        )
    return replace(best.solution, measured=best.error)


@dataclass(frozen=True, eq=False)
class _Trial:
    """A solution, and the relative error of the outputs of the layer's module with it."""

    solution: Solution
    error: float


@dataclass(frozen=True, eq=False)
class _Trials:
    """Measures solutions of a layer."""

    layer: Layer
    site: Site

    def measured(self, solution: Solution) -> _Trial:
        """Measure a solution."""
        return _Trial(solution, self.site.error(weight_of(self.layer, solution)))

    def better(self, best: _Trial, solution: Solution) -> _Trial:
        """Measure a solution, and return the better of two; of equals, the first."""
        return min(best, self.measured(solution), key=_error_of)


def _error_of(trial: _Trial) -> float:
    return trial.error


def _in_rounds(best: _Trial, trials: _Trials, solve: Solve) -> _Trial:
    """Solve a recurrent weight again from the states that the best solution leads to, as long as
    that helps.

    The drift of the states is part of the target. It was made by the errors of the earlier steps,
    which other weights would not make; so the target without it is tried as well.
    """
    for _ in range(ROUNDS):
        moments = trials.site.moments(weight_of(trials.layer, best.solution))
        before = best
        for target in (moments, moments.without_drift()):
            best = trials.better(best, solve(target))
        if best is before:
            break
    return best


def weight_of(layer: Layer, solution: Solution) -> Tensor:
    """Return the weight that a solution gives to a layer, before a batch norm takes its factor."""
    quantized = Quantized.of(layer, solution.codebook, solution.codes.cpu())
    weight = quantized.weight().to(layer.weight.device)
    return rescaled(layer, weight, solution.factor)
