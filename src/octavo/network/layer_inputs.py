"""The inputs and outputs of a layer as matrices, for every kind of layer.

A layer is seen as independent problems ``W X`` with a weight ``W`` (rows, columns) and inputs ``X``
(columns, n): one problem, or one for each group of a convolution or each third of an attention's
fused projection. The ``n`` columns of ``X`` are output positions, time steps or rows.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from octavo.errors import PlanError
from octavo.network.calls import undisturbed
from octavo.network.copies import fresh
from octavo.network.forward import first_argument
from octavo.network.kinds import form_of, kind_of
from octavo.network.layers import Layer, channels_first
from octavo.network.recurrent import cell_inputs, recurrent_inputs

__all__ = ["called_again", "is_plain", "layer_inputs", "layer_outputs", "problem_count"]

# Pieces of X: a slice of the problems, and the inputs of these, (problems, columns, n).
Pieces: TypeAlias = Iterator[tuple[slice, Tensor]]

ALL = slice(None)
CHUNK = 1 << 20  # numbers of X that are laid out at a time: they stay in the caches
PRODUCTS: dict[Any, Any] = {
    F.linear: nn.Linear,
    F.conv1d: nn.Conv1d,
    F.conv2d: nn.Conv2d,
    F.conv3d: nn.Conv3d,
}
ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
QUERY_KEY_VALUE = ("query", "key", "value")


def problem_count(layer: Layer) -> int:
    """Return the number of independent problems that a layer consists of."""
    if layer.form == "attention":
        return 3 if layer.attribute == "in_proj_weight" else 1
    is_convolution = layer.form in ("product", "transposed") and layer.weight.dim() > 2
    return int(getattr(layer.module, "groups", 1)) if is_convolution else 1


def layer_inputs(
    layer: Layer, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Pieces:
    """Yield ``X`` of one call of ``module`` in pieces: a slice of the problems, and their inputs,
    float32, (problems, columns, n).

    Args:
        layer: one that ``module`` shows.
        module: the module whose call shows the layer's inputs: its own, or the attention for an
            attention's output projection.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.

    Raises:
        PlanError: a registered layer whose inputs do not fit its weight.

    """
    form = form_of(module)
    if form == "attention":
        yield from _attention_inputs(layer, module, args, kwargs)
        return
    argument = first_argument(args, kwargs)
    second = args[1] if len(args) > 1 else kwargs.get("hx", kwargs.get("output_size"))
    if form == "recurrent":
        rows = recurrent_inputs(cast("nn.RNNBase", module), layer.attribute, argument, second)
        yield ALL, _as_columns(rows)
    elif form == "cell":
        rows = cell_inputs(cast("nn.RNNCellBase", module), layer.attribute, argument, second)
        yield ALL, _as_columns(rows)
    elif form == "embedding":
        yield ALL, _embedding_inputs(layer.weight, argument)
    elif form == "transposed":
        yield from ((ALL, piece) for piece in _transposed_inputs(module, argument.float(), second))
    else:
        yield from ((ALL, piece) for piece in _product_inputs(layer, module, args, kwargs))


def layer_outputs(module: nn.Module, output: Any) -> Tensor | None:
    """Return a layer's outputs as (problems, rows, n), float32, in the order of its inputs; None if
    they are not linear in these.
    """
    kind = kind_of(module)
    if kind is None or kind.form not in ("product", "transposed") or not isinstance(output, Tensor):
        return None
    dimensions: int = getattr(module, kind.weights[0]).dim()
    if dimensions == 2:
        return _as_columns(output)
    images = output if output.dim() == dimensions else output.unsqueeze(0)  # (n, channels, ...)
    groups = int(getattr(module, "groups", 1))
    channels_of_group = images.shape[1] // groups
    return images.float().transpose(0, 1).reshape(groups, channels_of_group, -1)


def called_again(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call the forward of a layer once more, without hooks, and return its outputs; nothing stays
    of the call.
    """
    if is_plain(module):
        return module.forward(*args, **kwargs)
    with undisturbed(module):  # a layer of the user's own may do anything
        own_args, own_kwargs = fresh((args, kwargs))
        return module.forward(*own_args, **own_kwargs)


def _as_columns(rows: Tensor) -> Tensor:
    """Return rows of any leading shape as (1, columns, n), float32."""
    return rows.reshape(1, -1, rows.shape[-1]).float().mT


def _embedding_inputs(weight: Tensor, indices: Tensor) -> Tensor:
    """Return an identity, (1, columns, columns), scaled by the lookups of a row.

    A row is looked up and nothing else, so every weight of it counts by itself: ``X X^T`` is the
    mean number of lookups times the identity.
    """
    rows, columns = weight.shape
    scale = math.sqrt(indices.numel() / rows)
    return scale * torch.eye(columns, dtype=torch.float32, device=weight.device).unsqueeze(0)


# Linear layers and convolutions.


def _product_inputs(
    layer: Layer, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[Tensor]:
    argument = first_argument(args, kwargs)
    weight = channels_first(layer.weight, layer.groups)
    if not is_plain(module):
        module, argument = _as_multiplied(module, weight, args, kwargs) or (module, argument)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        yield from _convolution_inputs(module, argument.float())
    elif isinstance(module, nn.Linear) or (
        weight.dim() == 2 and argument.shape[-1] == weight.shape[1]
    ):
        yield _as_columns(argument)
    else:
        raise PlanError(
            f"{layer.name}: expected inputs for a weight of shape {tuple(weight.shape)}, outputs "
            f"first, got an argument of shape {tuple(argument.shape)}; see octavo.register_layer"
        )


class _Products(TorchFunctionMode):
    """A mode that notes the first product with a weight of a certain shape: its function, and its
    arguments by name.
    """

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self._shape = shape
        self.first: tuple[Any, dict[str, Any]] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = dict(zip(ARGUMENTS, args, strict=False)) | (kwargs or {})
        if self.first is None and func in PRODUCTS and named["weight"].shape == self._shape:
            self.first = func, named
        return func(*args, **(kwargs or {}))


def is_plain(module: nn.Module) -> bool:
    """Tell whether a module is called as torch's own; a subclass may change its input first, for
    example pad it.
    """
    steps = [getattr(module, name, None) for name in ("forward", "_conv_forward")]
    sources = [getattr(step, "__module__", "") for step in steps if step is not None]
    return all(source.startswith("torch.nn.modules.") for source in sources)


def _as_multiplied(
    module: nn.Module, weight: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[nn.Module, Tensor] | None:
    """Call a module's forward, and find the product that it computes with its weight (outputs
    first).

    Returns:
        A plain module of torch that computes the same product, and its input; None if there is no
        such product.

    """
    with _Products(weight.shape) as products:
        called_again(module, args, kwargs)
    if products.first is None:
        return None
    func, named = products.first
    outputs, inputs, *kernel = weight.shape
    if func is F.linear:
        return nn.Linear(inputs, outputs, device="meta"), named["input"]
    settings = {name: named[name] for name in ARGUMENTS[3:] if name in named}
    inputs *= settings.get("groups", 1)
    plain = PRODUCTS[func](inputs, outputs, kernel, device="meta", **settings)
    return plain, named["input"]


def _convolution_inputs(module: Any, inputs: Tensor) -> Iterator[Tensor]:
    """Yield the patches that the kernel of a convolution meets, (groups, columns, n)."""
    images = _batched(inputs, len(module.kernel_size))
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(images, module._reversed_padding_repeated_twice, mode=mode)
    for patches in _patches(padded, module.kernel_size, module.stride, module.dilation):
        yield _by_group(patches, module)


def _transposed_inputs(module: Any, inputs: Tensor, output_size: Any) -> Iterator[Tensor]:
    """Yield the patches that the kernel of a transposed convolution meets, (groups, columns, n).

    It is a plain convolution of stride 1, with its kernel turned round, on the input that is spread
    by its stride.
    """
    dimensions = len(module.kernel_size)
    images = _batched(inputs, dimensions)
    spread = _spread(module, images, output_size)
    stride = (1,) * dimensions
    kernel_dimensions = tuple(range(1, 1 + dimensions))
    for patches in _patches(spread, module.kernel_size, stride, module.dilation):
        yield _by_group(patches.flip(kernel_dimensions), module)


def _batched(inputs: Tensor, dimensions: int) -> Tensor:
    """Return images as (images, channels, *size), also one image without the first dimension."""
    return inputs if inputs.dim() == dimensions + 2 else inputs.unsqueeze(0)


def _by_group(patches: Tensor, module: Any) -> Tensor:
    """Return patches (channels, *kernel, images, *positions) as (groups, columns, n)."""
    columns = patches.shape[0] * math.prod(module.kernel_size)
    return patches.reshape(module.groups, columns // module.groups, -1)


def _patches(
    padded: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Iterator[Tensor]:
    """Yield views of the patches of images (images, channels, *size), for a few images at a time:
    (channels, *kernel, images, *positions).

    The kernel's weight ``k`` at the output position ``p`` meets the pixel ``p * stride +
    k * dilation``; so a step along either is a fixed distance in memory.
    """
    positions = [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(padded.shape[2:], kernel, stride, dilation, strict=True)
    ]
    channels = padded.shape[1]
    numbers = channels * math.prod(kernel) * math.prod(positions)  # of one image's patches
    padded = padded.contiguous()  # so that a copy of a view moves whole lines of pixels
    for images in padded.split(max(1, CHUNK // numbers)):
        image_step, channel_step, *pixel_steps = images.stride()
        position_steps = [step * s for step, s in zip(pixel_steps, stride, strict=True)]
        kernel_steps = [step * d for step, d in zip(pixel_steps, dilation, strict=True)]
        yield images.as_strided(
            (channels, *kernel, len(images), *positions),
            (channel_step, *kernel_steps, image_step, *position_steps),
            images.storage_offset(),
        )


def _spread(module: Any, images: Tensor, output_size: Any) -> Tensor:
    """Return a transposed convolution's input with ``stride - 1`` zeros between its pixels, padded
    so that there is one patch for each output.
    """
    dimensions = len(module.kernel_size)
    extra = module.output_padding  # pixels that are added at the end only
    if output_size is not None:
        extra = module._output_padding(
            images, list(output_size)[-dimensions:],
            module.stride, module.padding, module.kernel_size, dimensions, module.dilation,
        )  # fmt: skip
    # (size - 1) * stride + 1 pixels, of which every stride-th is one of the input's
    sizes = [(n - 1) * s + 1 for n, s in zip(images.shape[2:], module.stride, strict=True)]
    spread = images.new_zeros(*images.shape[:2], *sizes)
    every_stride: list[Any] = [slice(None, None, s) for s in module.stride]
    spread[(..., *every_stride)] = images
    # The kernel reaches dilation * (kernel - 1) pixels beyond its first; `padding` cuts outputs.
    edges = [
        d * (k - 1) - p
        for d, k, p in zip(module.dilation, module.kernel_size, module.padding, strict=True)
    ]
    pairs = [(edge, edge + more) for edge, more in zip(edges, extra, strict=True)]
    return F.pad(spread, [size for pair in reversed(pairs) for size in pair])


# Attention.


def _attention_inputs(
    layer: Layer, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Pieces:
    named = dict(zip(QUERY_KEY_VALUE, args, strict=False)) | kwargs
    if layer.attribute == "in_proj_weight":
        for problem, name in enumerate(QUERY_KEY_VALUE):
            yield slice(problem, problem + 1), _as_columns(named[name])
    elif layer.attribute.endswith("_proj_weight"):  # q_proj_weight, k_..., v_...
        (name,) = (name for name in QUERY_KEY_VALUE if name[0] == layer.attribute[0])
        yield ALL, _as_columns(named[name])
    else:
        yield ALL, _as_columns(_before_projection(module, args, kwargs))


def _before_projection(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the input of an attention's output projection.

    The attention reads the projection's weight without calling it. So it runs with an identity
    instead of the projection, and its output is the projection's input.
    """
    through = copy.copy(module)
    through._modules = {**module._modules, "out_proj": _identity(module.out_proj)}
    heads: Tensor = through.forward(*args, **kwargs)[0]
    return heads


def _identity(linear: nn.Linear) -> nn.Linear:
    """Return a copy of a square linear layer that returns its input."""
    weight = linear.weight
    same = copy.copy(linear)
    identity = torch.eye(linear.in_features, dtype=weight.dtype, device=weight.device)
    same._parameters = {"weight": nn.Parameter(identity), "bias": None}
    return same
