"""What a layer's weight is multiplied with, and its second moments, for every kind of layer.

A layer is seen as independent problems ``weight (rows, columns) @ X (columns, n)``: one problem, or
one for each group of a convolution or each third of an attention's fused projection. The ``n``
columns of ``X`` are output positions, time steps, rows.
"""

import copy
import math
from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from octavo.network.layers import EMBEDDINGS, TRANSPOSED, Layer
from octavo.network.recurrent import cell_inputs, recurrent_inputs

__all__ = ["Moments", "layer_inputs", "layer_outputs", "problem_count"]

Pieces: TypeAlias = Iterator[
    tuple[slice, Tensor]
]  # of X: which problems, and their (problems, columns, n)

CHUNK = 1 << 24  # numbers of X that are laid out at a time
PRODUCTS: dict[Any, Any] = {
    F.linear: nn.Linear,
    F.conv1d: nn.Conv1d,
    F.conv2d: nn.Conv2d,
    F.conv3d: nn.Conv3d,
}
ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


class Moments:
    """Sums over a layer's calibration inputs: constant in memory, whatever their number.

    Attributes:
        hessian: ``X X^T``, (problems, columns, columns), float32.
        drift: ``D X^T``, (problems, rows, columns), where ``D`` is what the layer's full-precision
            output has beyond ``W X`` because the layers ahead of it are quantized; zero where the
            inputs are the full-precision ones.
        mean_input: (problems, columns), mean_drift: (problems, rows): the means of ``X`` and ``D``.

    """

    def __init__(self, problems: int, rows: int, columns: int, device: torch.device) -> None:
        self.hessian = torch.zeros(problems, columns, columns, device=device)
        self.drift = torch.zeros(problems, rows, columns, device=device)
        self._inputs = torch.zeros(problems, columns, device=device)
        self._drifts = torch.zeros(problems, rows, device=device)
        self._seen = torch.zeros(problems, 1, device=device)

    @classmethod
    def of(cls, layer: Layer) -> "Moments":
        """None seen yet, in the sizes that ``layer`` takes."""
        problems = problem_count(layer)
        rows = layer.weight.shape[1] * layer.groups if layer.groups else layer.weight.shape[0]
        return cls(problems, rows // problems, layer.weight.numel() // rows, layer.weight.device)

    def add(self, problem: slice, inputs: Tensor, drift: Tensor | None = None) -> None:
        """Add inputs (problems, columns, n), and with them the drift (problems, rows, n), of some
        of the problems.
        """
        self.hessian[problem].baddbmm_(inputs, inputs.mT)
        self._inputs[problem] += inputs.sum(2)
        self._seen[problem] += inputs.shape[2]
        if drift is not None:
            self.drift[problem].baddbmm_(drift, inputs.mT)
            self._drifts[problem] += drift.sum(2)

    @property
    def seen(self) -> int:
        """How many columns of ``X`` every problem has had at least."""
        return int(self._seen.min())

    @property
    def mean_input(self) -> Tensor:
        """Mean of ``X``: (problems, columns)."""
        return self._inputs / self._seen

    @property
    def mean_drift(self) -> Tensor:
        """Mean of ``D``: (problems, rows)."""
        return self._drifts / self._seen


def problem_count(layer: Layer) -> int:
    """How many independent problems a layer is."""
    if isinstance(layer.module, nn.MultiheadAttention) and layer.attribute == "in_proj_weight":
        return 3
    return getattr(layer.module, "groups", 1)


def layer_inputs(
    layer: Layer, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Pieces:
    """``X`` of one call of ``module``, in pieces: (which problems, float32 of shape (problems,
    columns, n)).

    ``module`` is the one whose call shows the layer's inputs: its own, or for an attention's output
    projection the attention.
    """
    everything = slice(None)
    if isinstance(module, nn.MultiheadAttention):
        yield from _attention_inputs(layer, module, args, kwargs)
        return
    given = (
        args[0] if args else kwargs["input"] if "input" in kwargs else next(iter(kwargs.values()))
    )
    state = args[1] if len(args) > 1 else kwargs.get("hx", kwargs.get("output_size"))
    if isinstance(module, nn.RNNBase):
        yield everything, _as_columns(recurrent_inputs(module, layer.attribute, given, state))
    elif isinstance(module, nn.RNNCellBase):
        yield everything, _as_columns(cell_inputs(module, layer.attribute, given, state))
    elif isinstance(module, EMBEDDINGS):
        # A row is looked up and nothing else: every weight of it counts by itself.
        width = module.embedding_dim
        scale = math.sqrt(given.numel() / module.num_embeddings)
        yield everything, scale * torch.eye(width, device=module.weight.device).unsqueeze(0)
    else:
        if not _is_plain(module):
            module, given = _as_multiplied(module, layer.weight, args, kwargs) or (module, given)
        pieces = _convolution_inputs(module, given.float(), output_size=state)
        yield from (
            (everything, piece)
            for piece in ([_as_columns(given)] if isinstance(module, nn.Linear) else pieces)
        )


def layer_outputs(module: nn.Module, output: Any) -> Tensor | None:
    """A layer's outputs as (problems, rows, n), float32, in the order of its inputs; None where
    they are not linear in these.
    """
    if isinstance(module, nn.Linear):
        return _as_columns(output)
    kernel = getattr(module, "kernel_size", None)
    if kernel is None:
        return None
    output = output if output.dim() == len(kernel) + 2 else output.unsqueeze(0)
    return (
        output.float().transpose(0, 1).reshape(module.groups, output.shape[1] // module.groups, -1)
    )  # type: ignore[no-any-return]


class _Products(TorchFunctionMode):
    """Takes down the first product with a weight of the given shape: which function, and its
    arguments by name.
    """

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self._shape = shape
        self.found: tuple[Any, dict[str, Any]] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = dict(zip(ARGUMENTS, args, strict=False)) | (kwargs or {})
        if self.found is None and func in PRODUCTS and given["weight"].shape == self._shape:
            self.found = func, given
        return func(*args, **(kwargs or {}))


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is called as torch's own: a subclass may do something to its input first,
    such as padding it.
    """
    steps = [getattr(module, name, None) for name in ("forward", "_conv_forward")]
    return all(
        step is None or getattr(step, "__module__", "").startswith("torch.nn.modules.")
        for step in steps
    )


def _as_multiplied(
    module: nn.Module, weight: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[nn.Module, Tensor] | None:
    """The input that the weight of a module meets when it is called so, and a plain module that it
    goes through; None without.
    """
    with _Products(weight.shape) as products:
        module.forward(*args, **kwargs)
    if products.found is None:
        return None
    func, given = products.found
    if func is F.linear:
        return nn.Linear(weight.shape[1], weight.shape[0], device="meta"), given["input"]
    settings = {name: given[name] for name in ARGUMENTS[3:] if name in given}
    outputs, inputs, *kernel = weight.shape
    return PRODUCTS[func](
        inputs * settings.get("groups", 1), outputs, kernel, device="meta", **settings
    ), given["input"]


def _as_columns(rows: Tensor) -> Tensor:
    """Rows of whatever leading shape as (1, columns, n), float32."""
    return rows.reshape(1, -1, rows.shape[-1]).float().mT


def _convolution_inputs(module: Any, given: Tensor, output_size: Any) -> Iterator[Tensor]:
    """The patches that the kernel meets; a transposed convolution is a plain one on its input set
    apart by its stride.
    """
    dimensions = len(module.kernel_size)
    given = given if given.dim() == dimensions + 2 else given.unsqueeze(0)
    if isinstance(module, TRANSPOSED):
        given, stride = _set_apart(module, given, output_size), (1,) * dimensions
    else:
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        given, stride = (
            F.pad(given, module._reversed_padding_repeated_twice, mode=mode),
            module.stride,
        )
    positions = [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(
            given.shape[2:], module.kernel_size, stride, module.dilation, strict=True
        )
    ]
    columns = given.shape[1] * math.prod(module.kernel_size)
    given = given.contiguous()  # so that a piece copies whole lines of pixels
    for some in given.split(max(1, CHUNK // (columns * math.prod(positions)))):
        steps = [size * s for size, s in zip(some.stride()[2:], stride, strict=True)]
        reach = [size * d for size, d in zip(some.stride()[2:], module.dilation, strict=True)]
        shape = (some.shape[1], *module.kernel_size, some.shape[0], *positions)
        patches = some.as_strided(
            shape, (some.stride(1), *reach, some.stride(0), *steps), some.storage_offset()
        )
        if isinstance(module, TRANSPOSED):
            patches = patches.flip(tuple(range(1, 1 + dimensions)))
        yield patches.reshape(module.groups, columns // module.groups, -1)


def _set_apart(module: Any, given: Tensor, output_size: Any) -> Tensor:
    """A transposed convolution's input with ``stride - 1`` zeros between its pixels, padded to one
    patch for each output.
    """
    dimensions, added = len(module.kernel_size), module.output_padding
    if output_size is not None:
        names = (module.stride, module.padding, module.kernel_size, dimensions, module.dilation)
        added = module._output_padding(given, list(output_size)[-dimensions:], *names)
    sizes = [(size - 1) * s + 1 for size, s in zip(given.shape[2:], module.stride, strict=True)]
    apart = given.new_zeros(*given.shape[:2], *sizes)
    every: list[Any] = [slice(None, None, s) for s in module.stride]
    apart[(..., *every)] = given
    edges = [
        d * (k - 1) - p
        for d, k, p in zip(module.dilation, module.kernel_size, module.padding, strict=True)
    ]
    pairs = [(edge, edge + more) for edge, more in zip(edges, added, strict=True)]
    return F.pad(apart, [size for pair in reversed(pairs) for size in pair])


def _attention_inputs(
    layer: Layer, module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Pieces:
    given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
    order = ("query", "key", "value")
    if layer.attribute == "in_proj_weight":
        for i, name in enumerate(order):
            yield slice(i, i + 1), _as_columns(given[name])
    elif layer.attribute.endswith("_proj_weight"):
        tensor = given[next(name for name in order if name[0] == layer.attribute[0])]
        yield slice(None), _as_columns(tensor)
    # the output projection, which attention reads without calling it: see what the identity in its
    # place lets through
    else:
        through = copy.copy(module)
        through._modules = {**module._modules, "out_proj": _identity(module.out_proj)}
        heads = through.forward(*args, **kwargs)[0]
        yield slice(None), _as_columns(heads)


def _identity(linear: nn.Linear) -> nn.Linear:
    same = copy.copy(linear)
    same._parameters = {
        "weight": nn.Parameter(torch.eye(linear.in_features).to(linear.weight)),
        "bias": None,
    }
    return same
