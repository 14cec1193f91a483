"""Count the multiply-accumulates that a model spends on each of its layers."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from octavo.network.forward import first_argument, hooked
from octavo.network.kinds import form_of, kind_of
from octavo.network.layers import Layer
from octavo.network.memory import memory_of

__all__ = ["count_macs"]


def count_macs(layers: list[Layer], run: Callable[[], object]) -> dict[str, int]:
    """Count the multiply-accumulates of each layer in one forward pass, which ``run`` makes; layers
    that the pass does not reach count 0.

    Every weight acts once per output position. The positions of a linear layer are the rows of its
    output, those of a convolution the pixels of its output (of its input if it is transposed), and
    those of a recurrent layer its time steps. Embeddings multiply nothing.
    """
    counts = dict.fromkeys((layer.name for layer in layers), 0)
    names = {memory_of(layer.weight): layer.name for layer in layers}
    modules = {module: None for layer in layers for module, _ in layer.places}

    def count(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        for weight, macs in _macs(module, args, kwargs, output):
            if weight is not None and memory_of(weight) in names:
                counts[names[memory_of(weight)]] += macs

    hooks = (module.register_forward_hook(count, with_kwargs=True) for module in modules)
    with hooked(hooks), torch.no_grad():
        run()
    return counts


def _macs(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Iterator[tuple[Tensor | None, int]]:
    """Yield the weights of a module with the multiply-accumulates of each in one call."""
    form = form_of(module)
    if form == "attention":
        named = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        yield from _attention_macs(module, **named)
    elif form in ("recurrent", "cell"):
        steps = first_argument(args, kwargs)
        steps = steps.data if isinstance(steps, PackedSequence) else steps
        for attribute, weight in module._parameters.items():
            if weight is not None and attribute.startswith("weight_"):
                yield weight, weight.numel() * _rows(steps)
    elif form == "transposed":
        weight = module._parameters["weight"]
        if weight is not None:  # (input channels, output channels, *kernel)
            pixels = first_argument(args, kwargs).numel() // weight.shape[0]
            yield weight, weight.numel() * pixels
    elif form == "product":
        yield from _product_macs(module, output)


def _product_macs(module: nn.Module, output: Tensor) -> Iterator[tuple[Tensor, int]]:
    kind = kind_of(module)
    if kind is None or not isinstance(output, Tensor):
        return
    for attribute, weight in module._parameters.items():
        if weight is not None and kind.is_weight(attribute):
            channels = weight.shape[1] if kind.inputs_first else weight.shape[0]
            yield weight, weight.numel() * (output.numel() // channels)


def _attention_macs(
    module: Any, query: Tensor, key: Tensor, value: Tensor, **_: object
) -> Iterator[tuple[Tensor | None, int]]:
    rows = [_rows(query), _rows(key), _rows(value)]
    yield module.in_proj_weight, module.embed_dim * module.embed_dim * sum(rows)
    projections = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    for weight, count in zip(projections, rows, strict=True):
        yield weight, 0 if weight is None else weight.numel() * count
    # The attention reads the weight of its output projection without calling that module.
    yield module.out_proj.weight, module.out_proj.weight.numel() * rows[0]


def _rows(tensor: Tensor) -> int:
    return tensor.numel() // tensor.shape[-1]
