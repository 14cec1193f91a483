"""Choose among solutions of a layer by what they do to the outputs of its module.

The closed form trusts that a layer multiplies its inputs with its weight, that its inputs do not
depend on the weight, and that its drift on other inputs is the same. Where one of these does not
hold, the solution of least error by the closed form may be worse than nearest levels. Here the
outputs are computed, and nearest levels are among the solutions; so a layer is never worse.
"""

from collections.abc import Callable, Iterator

from torch import Tensor

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

    They are measured on the held-out inputs. Where nothing was set aside, only layers are measured
    that the closed form does not describe: see ``Site.multiplies_its_weight``, and recurrent ones.

    Args:
        layer: the layer, with its full-precision weight.
        moments: the moments of its inputs.
        site: all batches at the layer; None where they do not wait at it.
        solve: solves the layer from moments.

    """
    first = solve(moments)
    is_described = layer.form != "recurrent" and (site is None or site.multiplies_its_weight)
    if site is None or (is_described and not site.held_out):
        return first
    best = first
    least = site.error(weight_of(layer, first))
    for other in _others(layer, moments, site, solve, first, least):
        error = site.error(weight_of(layer, other))
        if error < least:
            best = other
            least = error
    return best


def weight_of(layer: Layer, solution: Solution) -> Tensor:
    """Return the weight that a solution gives to a layer, before a batch norm takes its factor."""
    quantized = Quantized.of(layer, solution.codebook, solution.codes.cpu())
    weight = quantized.weight().to(layer.weight.device)
    return rescaled(layer, weight, solution.factor)


def _others(
    layer: Layer, moments: Moments, site: Site, solve: Solve, first: Solution, error: float
) -> Iterator[Solution]:
    """Yield the solutions to compare with the first, whose error was measured."""
    rounding = first.rounding
    if rounding is not None:
        yield rounding
    is_suspect = layer.form == "recurrent" or not site.multiplies_its_weight
    if not is_suspect and rounding is not None:
        is_suspect = site.error(weight_of(layer, rounding)) < error
    if is_suspect and bool(moments.drift.any()):
        yield solve(moments.without_drift())
    if layer.form == "recurrent" and not layer.attribute.startswith("weight_ih"):
        solution = first
        for _ in range(ROUNDS):
            solution = solve(site.moments(weight_of(layer, solution)))
            yield solution
