"""Norms folded to float16 where that changes no output by more than a bound."""

from collections.abc import Sequence

from torch import nn

from octavo.errors import PlanError
from octavo.network.conduct import conduct_of
from octavo.network.copies import copied
from octavo.network.divergence import Divergence
from octavo.network.forward import Inputs, observing
from octavo.storage.packed import Packed

__all__ = ["folded_if_near"]

# The most that outputs may diverge from those of the same network with its norms as they were: KL
# divergence of class logits in nats, the mean over rows, or the relative squared error.
BOUND = 1e-4


def folded_if_near(packed: Packed, model: nn.Module, batches: Sequence[Inputs]) -> Packed:
    """Return the network with ``with_floats("folded", model)``, or as it is where outputs diverge
    by more than the bound or cannot be compared.

    Args:
        packed: the quantized network.
        model: a model of its architecture; it is left as it was.
        batches: the inputs that outputs are compared on.

    """
    folded = packed.with_floats("folded", model)
    network = copied(model)
    with observing(network):
        packed.apply(network)
        try:
            conduct = conduct_of(network, batches)
            if not conduct.repeats:
                return packed
            divergence = Divergence(network, batches, conduct, temperature=1.0)
            folded.apply(network)
            return folded if -divergence.of(network) <= BOUND else packed
        except PlanError:  # the network returns nothing to compare
            return packed
