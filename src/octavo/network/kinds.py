"""The kinds of layers whose weights octavo can quantize, in one registry.

A kind says how a layer type uses its weights. Every decision that depends on the type of a layer
asks :func:`kind_of`, so a type that is registered here is known everywhere.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import nn

from octavo.errors import PlanError

__all__ = ["NORMS", "ONE_WEIGHT", "Form", "Kind", "form_of", "kind_of", "register_layer"]

Form: TypeAlias = Literal["product", "transposed", "embedding", "recurrent", "cell", "attention"]

ONE_WEIGHT: frozenset[Form | None] = frozenset({"product", "transposed", "embedding"})
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Kind:
    """A layer type as octavo sees it.

    Attributes:
        form: how the layer uses its weights. ``"product"`` multiplies one weight with the rows of
            its input (a weight with two dimensions) or with the patches of its input (a
            convolution, whose weight has more). ``"transposed"`` is a transposed convolution.
        weights: names of the parameters that are weights; a ``*`` at the end of a name stands for
            any rest.
        inputs_first: True if the weight is stored as (inputs, outputs), the transpose of a
            linear layer's.

    """

    form: Form
    weights: tuple[str, ...] = ("weight",)
    inputs_first: bool = False

    def is_weight(self, attribute: str) -> bool:
        """Tell whether the parameter of this name is a weight of the layer."""
        # Compared by hand: torch.compile traces the hooks that ask this, and warns of fnmatch.
        return any(
            attribute.startswith(name[:-1]) if name.endswith("*") else attribute == name
            for name in self.weights
        )


def _each(types: Iterable[type[nn.Module]], kind: Kind) -> dict[type[nn.Module] | str, Kind]:
    return dict.fromkeys(types, kind)


# Only register_layer adds to this registry. The keys are types, or dotted names of types whose
# library need not be installed.
_KINDS: dict[type[nn.Module] | str, Kind] = {
    **_each((nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d), Kind("product")),
    **_each(
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        Kind("transposed"),
    ),
    **_each((nn.Embedding, nn.EmbeddingBag), Kind("embedding")),
    nn.RNNBase: Kind("recurrent", ("weight_*",)),
    nn.RNNCellBase: Kind("cell", ("weight_*",)),
    nn.MultiheadAttention: Kind(
        "attention", ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    ),
    "transformers.pytorch_utils.Conv1D": Kind("product", inputs_first=True),  # GPT-2's layer
}


def register_layer(
    layer: type[nn.Module] | str, *, weight: str = "weight", inputs_first: bool = False
) -> None:
    """Make a layer type of your own, or of a library, quantizable; its subclasses are included.

    The layer must return the product of its weight and its first argument, plus a bias if it has
    one. If it changes its argument first, as a convolution that pads by itself does, its
    ``forward`` must call ``torch.nn.functional.linear`` or ``conv1d``, ``conv2d`` or ``conv3d``,
    where octavo sees what the weight is multiplied with.

    Args:
        layer: the type, or its dotted name, such as ``"transformers.pytorch_utils.Conv1D"``. By
            its name a type is known without its library being imported or even installed.
        weight: the name of the parameter that is quantized.
        inputs_first: True if the weight has the shape (inputs, outputs). Otherwise the outputs
            come first, as in ``torch.nn.Linear`` and in convolutions.

    Raises:
        PlanError: ``layer`` is neither a subclass of ``torch.nn.Module`` nor a dotted name.

    """
    is_type = isinstance(layer, type) and issubclass(layer, nn.Module)
    is_name = isinstance(layer, str) and "." in layer
    if not is_type and not is_name:
        raise PlanError(
            "register_layer: expected a subclass of torch.nn.Module or its dotted name, "
            f"package.module.Class, got {layer!r}"
        )
    _KINDS[layer] = Kind("product", (weight,), inputs_first)


def kind_of(module: nn.Module) -> Kind | None:
    """Return the kind of a module's type, or of the nearest type that it inherits from; None if
    octavo does not know any of them.
    """
    for owner in type(module).__mro__:
        for key in (owner, f"{owner.__module__}.{owner.__qualname__}"):
            if key in _KINDS:
                return _KINDS[key]
    return None


def form_of(module: nn.Module) -> Form | None:
    """Return the form of a module's kind; None if octavo does not know its type."""
    kind = kind_of(module)
    return None if kind is None else kind.form
