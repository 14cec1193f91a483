"""The start of INQ: the codebook of each layer, and its rate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from octavo.formats.codebook import Codebook
from octavo.formats.registry import fitted_codebook
from octavo.formats.width import Width
from octavo.inq.planned_layer import PlannedLayer
from octavo.network.forward import Inputs
from octavo.network.layers import Layer, channels_first
from octavo.progress import ProgressLike, showing
from octavo.ptq.network_solver import rate_factors, solve_network
from octavo.ptq.pricing import codebook_at_rate
from octavo.ptq.settings import PtqSettings

__all__ = ["LayerStart", "choose_starts", "started"]

Planned = Sequence[tuple[Layer, Width]]


@dataclass(frozen=True, eq=False)
class LayerStart:
    """The choice for a layer before its first weight freezes.

    Attributes:
        codebook: its levels.
        rate: its rate.

    """

    codebook: Codebook
    rate: float


def choose_starts(
    model: nn.Module,
    planned: Planned,
    inputs: list[Inputs] | None,
    settings: PtqSettings,
    progress: ProgressLike,
) -> list[LayerStart]:
    """Choose the codebook and the rate of each layer: from its weights alone or, with inputs, by
    PTQ.
    """
    if inputs is None:  # then layers cannot be compared
        return [
            LayerStart(_codebook(layer, width, settings), settings.rate) for layer, width in planned
        ]
    plan = {layer.name: width for layer, width in planned}
    factors = rate_factors(model, plan, inputs, settings) if settings.rate else {}
    with showing(progress) as callback:
        packed = solve_network(model, plan, inputs, settings, callback, factors).checked()
    return [
        LayerStart(packed.layers[name].codebook, settings.rate * factors.get(name, 0.0))
        for name in plan
    ]


def _codebook(layer: Layer, width: Width, settings: PtqSettings) -> Codebook:
    """Choose the codebook of a layer from its weights."""
    weight = channels_first(layer.weight.detach(), layer.groups)
    codebook = fitted_codebook(weight, width, fit=settings.fit, per=settings.per, name=layer.name)
    if not settings.rate or settings.fit == "max":
        return codebook
    return codebook_at_rate(codebook, weight.float(), settings.rate)


def started(
    layers: Sequence[Layer], starts: Sequence[LayerStart], pruned: Mapping[str, Tensor]
) -> list[PlannedLayer]:
    """Put a parametrization on each layer."""
    return [
        PlannedLayer.start(number, layer, start.codebook, pruned.get(layer.name), start.rate)
        for number, (layer, start) in enumerate(zip(layers, starts, strict=True))
    ]
