"""The measurement of a quantized network on inputs that it was not solved from."""

from dataclasses import dataclass

from octavo.plan import Plan

__all__ = ["HeldOut"]

# Share of what the outputs say about the inputs that may be lost without a word; our choice.
LARGE = 0.1
NEGLIGIBLE = 0.02  # a divergence, in nats or as a relative squared error, that is never large


@dataclass(frozen=True)
class HeldOut:
    """The divergence from full precision, end to end, on inputs that were set aside.

    Every figure is measured on the network's outputs, for class logits as the KL divergence in nats
    a row, for everything else as relative squared error; several outputs are summed. The inputs
    are not those that layers were solved from; they only decided between a layer's solution and its
    nearest levels, and between the two whole networks.

    Attributes:
        samples: number of samples that were set aside, or number of batches where batches cannot be
            divided; 0 if there were too few inputs, and nothing was measured.
        divergence: the quantized network's divergence; None if nothing was set aside, or if the
            outputs cannot be compared. Infinite if they are not finite where those of full
            precision are, as the other divergences are.
        nearest: the divergence if all weights take their nearest level.
        constant: the divergence of the mean output, which says nothing about the inputs.
        costly: the layers that cost most, the worst first, and the divergence if this layer alone
            is left in float; empty unless the divergence is large.
        repair: a plan whose divergence is not large: it was measured on this network with the
            nearest levels of finer widths in the layers that cost most; None unless the divergence
            is large, and if no plan repairs it.
        lost_states: where nothing could be measured end to end, the recurrent layers whose own
            outputs are far from full precision, with their relative errors.

    """

    samples: int = 0
    divergence: float | None = None
    nearest: float | None = None
    constant: float | None = None
    costly: tuple[tuple[str, float], ...] = ()
    repair: Plan | None = None
    lost_states: tuple[tuple[str, float], ...] = ()

    @property
    def lost(self) -> float | None:
        """Share of what the outputs say about the inputs that was lost: 0 as in full precision, 1
        as bad as a constant output; None where nothing was measured.
        """
        if self.divergence is None or not self.constant:
            return None
        return self.divergence / self.constant

    @property
    def is_large(self) -> bool:
        """True if the divergence is so large that the network has probably failed."""
        return self.divergence is not None and self.is_too_far(self.divergence)

    def is_too_far(self, divergence: float) -> bool:
        """Tell if a divergence on the same inputs is large: more than a tenth of the constant
        output's, and not negligible.
        """
        return divergence > max(NEGLIGIBLE, LARGE * (self.constant or 0.0))

    def __str__(self) -> str:
        if not self.samples:
            return "not measured: too few inputs to set some aside"
        if self.divergence is None:
            return "not measured: the outputs cannot be compared"
        lost = "" if self.lost is None else f" ({self.lost:.1%} of the outputs' information lost)"
        return f"divergence {self.divergence:.3g} on {self.samples} held-out samples{lost}"
