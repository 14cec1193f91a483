"""Matching: a trial network's batch norms see the mean and the deviation of full precision.

A trial puts together candidates that were each quantized from full-precision inputs, so errors of
its layers add up along the network. In the network that ships they do not: ``calibrate`` solves
each layer from the inputs that the quantized layers ahead of it produce, and so makes up for what
they did. A trial would have to solve every layer anew to see that. Most of it is a drift of the
mean and of the scale of each channel, and this is taken back in front of each batch norm at almost
no cost: the trial then loses about as much as the network that ships. How it ranks plans then is
compared in benchmarks/objective.py. Layer norms do without: they take the scale back by themselves.
(Ours.)
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from octavo.network.calls import call_alone, undisturbed
from octavo.network.forward import Inputs, hooked

__all__ = ["Statistics", "matched", "norm_statistics"]

FEWEST = 256  # numbers of a channel in a batch, below which its statistics say too little
CONSTANT = 1e-12  # variance that keeps constant channels from a division by zero

# By the name of the batch norm, for each of its calls: mean and deviation of each channel.
Statistics: TypeAlias = Mapping[str, Sequence[tuple[Tensor, Tensor]]]


def norm_statistics(model: nn.Module, batches: Sequence[Inputs]) -> Statistics:
    """Return the statistics of the inputs of all batch norms, call by call."""
    statistics: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def record(name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        statistics.setdefault(name, []).append(_mean_and_deviation(args[0]))

    hooks = [
        norm.register_forward_pre_hook(functools.partial(record, name))
        for name, norm in _batch_norms(model)
    ]
    with hooked(hooks), undisturbed(model):
        for number, batch in enumerate(batches):
            call_alone(model, batch, number)
    return statistics


@contextlib.contextmanager
def matched(model: nn.Module, statistics: Statistics) -> Iterator[None]:
    """Match the inputs of all batch norms to statistics, for the same batches in the same order."""
    left = {name: iter(calls) for name, calls in statistics.items()}

    def match(name: str, _: nn.Module, args: tuple[Any, ...]) -> Any:
        wanted = next(left[name], None) if name in left else None
        if wanted is None or args[0][:, :1].numel() < FEWEST:
            return None
        mean, deviation = wanted
        normal = functional.batch_norm(
            args[0], None, None, deviation, mean, training=True, eps=CONSTANT
        )
        return (normal, *args[1:])

    hooks = [
        norm.register_forward_pre_hook(functools.partial(match, name))
        for name, norm in _batch_norms(model)
    ]
    with hooked(hooks):
        yield


def _batch_norms(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the batch norms that normalize by running statistics, by name."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]


def _mean_and_deviation(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return both for each channel, (channels,)."""
    others = [dim for dim in range(inputs.dim()) if dim != 1]
    variance, mean = torch.var_mean(inputs, others, correction=0)
    return mean, variance.sqrt()
