"""The inputs that the weights of a recurrent module meet: its inputs (``weight_ih``), its earlier
states (``weight_hh``) and an LSTM's states before their projection (``weight_hr``).
"""

import copy
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

__all__ = ["cell_inputs", "gate_partner", "recurrent_inputs"]

Sequences: TypeAlias = Tensor | PackedSequence


def gate_partner(module: nn.Module, attribute: str) -> str | None:
    """Return the name of the weight whose products are added to those of a recurrent layer's
    ``weight_hh`` in each gate; None for other weights, and for a GRU, one of whose gates multiplies
    them in between.
    """
    if not attribute.startswith("weight_hh") or isinstance(module, nn.GRU | nn.GRUCell):
        return None
    return attribute.replace("weight_hh", "weight_ih")


def cell_inputs(module: nn.RNNCellBase, attribute: str, inputs: Tensor, state: Any) -> Tensor:
    """Return the rows that a weight of a cell meets in one call: (n, columns)."""
    if attribute == "weight_ih":
        return inputs.reshape(-1, inputs.shape[-1])
    hidden: Tensor | None = state[0] if isinstance(state, tuple) else state
    if hidden is None:
        hidden = inputs.new_zeros(*inputs.shape[:-1], module.hidden_size)
    return hidden.reshape(-1, hidden.shape[-1])


@dataclass(frozen=True)
class _Sublayer:
    """One level and direction of a recurrent module.

    Attributes:
        level: from 0.
        backward: True if its sequences are read from their ends.
        suffix: the end of its parameters' names: ``_l0``, ``_l1_reverse``.
        index: its position among the module's states.

    """

    level: int
    backward: bool
    suffix: str
    index: int

    @classmethod
    def of(cls, module: nn.RNNBase, attribute: str) -> Self:
        """Read the level and the direction from a weight's name: ``weight_hh_l1_reverse``."""
        suffix = attribute[attribute.index("_l") :]
        backward = suffix.endswith("_reverse")
        level = int(suffix.removeprefix("_l").removesuffix("_reverse"))
        directions = 2 if module.bidirectional else 1
        return cls(level, backward, suffix, directions * level + backward)


def recurrent_inputs(
    module: nn.RNNBase, attribute: str, sequences: Sequences, state: Any
) -> Tensor:
    """Return the rows that a weight of an RNN, LSTM or GRU meets in one call, at every step of
    every sequence but padding: (n, columns).

    torch shows the outputs of the last level only, so the levels up to the weight's run again, as a
    smaller module.
    """
    sublayer = _Sublayer.of(module, attribute)
    below = _run_levels(module, sublayer.level, sequences, state)
    inputs, lengths = _steps_first(module, below)  # (steps, sequences, features), (sequences,)
    steps = torch.arange(len(inputs), device=lengths.device)
    is_real = (steps.view(-1, 1) < lengths).to(inputs.device)  # (steps, sequences): no padding
    if attribute.startswith("weight_ih"):
        return inputs[is_real]
    both, _ = _steps_first(module, _run_levels(module, sublayer.level + 1, sequences, state))
    outputs = both.chunk(2, -1)[sublayer.backward] if module.bidirectional else both
    first = _first_state(sublayer, state, outputs[0])
    before = _previous(outputs, first, lengths, backward=sublayer.backward)
    if attribute.startswith("weight_hh"):
        return before[is_real]
    gates = _gates(module, sublayer, inputs, before)
    cell = _first_state(sublayer, state, gates[0].chunk(4, -1)[0], part=1)
    return _unprojected(gates, cell, lengths, backward=sublayer.backward)[is_real]


def _run_levels(module: nn.RNNBase, levels: int, inputs: Sequences, state: Any) -> Sequences:
    """Return the outputs of the first levels, both directions side by side; for no level, the
    inputs.
    """
    if not levels:
        return inputs
    weights_per_level = len(module._flat_weights) // module.num_layers
    states_per_level = 2 if module.bidirectional else 1
    lower = copy.copy(module)
    lower.num_layers = levels
    lower._flat_weights = module._flat_weights[: levels * weights_per_level]
    if isinstance(state, tuple):
        state = tuple(part[: levels * states_per_level] for part in state)
    elif state is not None:
        state = state[: levels * states_per_level]
    outputs: Sequences = lower.forward(inputs, state)[0]
    return outputs


def _steps_first(module: nn.RNNBase, sequences: Sequences) -> tuple[Tensor, Tensor]:
    """Return sequences as (steps, sequences, features), and their lengths, on the CPU."""
    if isinstance(sequences, PackedSequence):
        return pad_packed_sequence(sequences)
    if sequences.dim() == 2:
        sequences = sequences.unsqueeze(1)
    elif module.batch_first:
        sequences = sequences.transpose(0, 1)
    steps, count = sequences.shape[:2]
    return sequences, torch.full((count,), steps, dtype=torch.int64, device="cpu")


def _first_state(sublayer: _Sublayer, state: Any, like: Tensor, part: int = 0) -> Tensor:
    """Return the state before the first step, (sequences, features); ``part`` 1: an LSTM's cell."""
    if state is None:
        return torch.zeros_like(like)
    states: Tensor = state[part] if isinstance(state, tuple) else state
    return states[sublayer.index].expand_as(like)


def _previous(outputs: Tensor, first: Tensor, lengths: Tensor, *, backward: bool) -> Tensor:
    """Return the output of the step before each step, in the direction that steps are taken."""
    if not backward:
        return torch.cat([first.unsqueeze(0), outputs[:-1]])
    before = torch.cat([outputs[1:], first.unsqueeze(0)])
    sequence = torch.arange(len(lengths), device=lengths.device)
    before[lengths - 1, sequence] = first  # each sequence begins at its own end
    return before


def _gates(module: nn.RNNBase, sublayer: _Sublayer, inputs: Tensor, before: Tensor) -> Tensor:
    """Return an LSTM's gates before their nonlinearities, ``W_ih x + W_hh h + b_ih + b_hh``:
    (steps, sequences, 4 * features).
    """
    weight_ih = getattr(module, f"weight_ih{sublayer.suffix}")
    weight_hh = getattr(module, f"weight_hh{sublayer.suffix}")
    gates: Tensor = inputs @ weight_ih.T + before @ weight_hh.T
    if not module.bias:
        return gates
    bias_ih = getattr(module, f"bias_ih{sublayer.suffix}")
    bias_hh = getattr(module, f"bias_hh{sublayer.suffix}")
    return gates + bias_ih + bias_hh  # type: ignore[no-any-return]


def _unprojected(gates: Tensor, cell: Tensor, lengths: Tensor, *, backward: bool) -> Tensor:
    """Return an LSTM's states before their projection, from its gates: (steps, sequences,
    features).
    """
    first = cell
    states = torch.empty_like(gates.chunk(4, -1)[0])
    steps = range(len(gates))
    for step in reversed(steps) if backward else steps:
        i, f, g, o = gates[step].chunk(4, -1)  # input, forget, cell and output gate
        if backward:  # a sequence begins at its own end
            begins = (lengths - 1 == step).view(-1, 1).to(cell.device)
            cell = torch.where(begins, first, cell)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()  # c' = s(f) c + s(i) tanh(g)
        states[step] = o.sigmoid() * cell.tanh()  # h' = s(o) tanh(c')
    return states
