"""What the weights of a recurrent module are multiplied with: its inputs, its earlier states, its
states before projection.
"""

import copy
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

__all__ = ["cell_inputs", "recurrent_inputs"]

Sequences: TypeAlias = Tensor | PackedSequence


def cell_inputs(module: nn.RNNCellBase, attribute: str, given: Tensor, state: Any) -> Tensor:
    """Rows that a weight of a cell meets in one call: (n, columns)."""
    if attribute == "weight_ih":
        return given.reshape(-1, given.shape[-1])
    hidden = state[0] if isinstance(state, tuple) else state
    hidden = given.new_zeros(*given.shape[:-1], module.hidden_size) if hidden is None else hidden
    return hidden.reshape(-1, hidden.shape[-1])


def recurrent_inputs(module: nn.RNNBase, attribute: str, given: Sequences, state: Any) -> Tensor:
    """Rows that a weight of an RNN, LSTM or GRU meets in one call, at every step of every sequence
    but padding: (n, columns).

    torch shows the outputs of the last level only, so the levels up to the weight's run again, as a
    smaller module.
    """
    kind, _, place = attribute.removeprefix("weight_").partition("_l")
    level, backward = int(place.removesuffix("_reverse")), place.endswith("_reverse")
    inputs, lengths = _steps_first(module, _run_levels(module, level, given, state))
    valid = (torch.arange(len(inputs)).view(-1, 1) < lengths).to(inputs.device)
    if kind == "ih":
        return inputs[valid]
    both, _ = _steps_first(module, _run_levels(module, level + 1, given, state))
    outputs = both.chunk(2, -1)[backward] if module.bidirectional else both
    index = 2 * level + backward if module.bidirectional else level
    before = _previous(outputs, _first_state(index, state, outputs[0]), lengths, backward=backward)
    if kind == "hh":
        return before[valid]
    own = {
        name: getattr(module, f"{name}_l{place}", None)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    gates = inputs @ own["weight_ih"].T + before @ own["weight_hh"].T  # type: ignore[union-attr]
    gates = gates if own["bias_ih"] is None else gates + own["bias_ih"] + own["bias_hh"]
    cell = _first_state(index, state, gates[0].chunk(4, -1)[0], part=1)
    return _unprojected(gates, cell, lengths, backward=backward)[valid]


def _run_levels(module: nn.RNNBase, levels: int, given: Sequences, state: Any) -> Sequences:
    """The outputs of the first levels."""
    if not levels:
        return given
    directions = 2 if module.bidirectional else 1
    lower = copy.copy(module)
    lower.num_layers = levels
    lower._flat_weights = module._flat_weights[
        : levels * len(module._flat_weights) // module.num_layers
    ]
    if isinstance(state, tuple):
        state = tuple(part[: directions * levels] for part in state)
    elif state is not None:
        state = state[: directions * levels]
    outputs: Sequences = lower.forward(given, state)[0]
    return outputs


def _steps_first(module: nn.RNNBase, sequences: Sequences) -> tuple[Tensor, Tensor]:
    """As (steps, sequences, features), and the length of each sequence."""
    if isinstance(sequences, PackedSequence):
        return pad_packed_sequence(sequences)
    if sequences.dim() == 2:
        sequences = sequences.unsqueeze(1)
    elif module.batch_first:
        sequences = sequences.transpose(0, 1)
    return sequences, torch.full(sequences.shape[1:2], len(sequences))


def _first_state(index: int, state: Any, like: Tensor, part: int = 0) -> Tensor:
    """The state of one level and direction ahead of the first step; ``part`` 1 is an LSTM's
    cell.
    """
    if state is None:
        return torch.zeros_like(like)
    chosen: Tensor = state[part] if isinstance(state, tuple) else state
    return chosen[index].expand_as(like)


def _previous(outputs: Tensor, start: Tensor, lengths: Tensor, *, backward: bool) -> Tensor:
    """The output of the step before each step, in the direction that the steps are taken."""
    if not backward:
        return torch.cat([start.unsqueeze(0), outputs[:-1]])
    before = torch.cat([outputs[1:], start.unsqueeze(0)])
    before[lengths - 1, torch.arange(len(lengths))] = start
    return before


def _unprojected(gates: Tensor, cell: Tensor, lengths: Tensor, *, backward: bool) -> Tensor:
    """An LSTM's states before its projection, from its gates."""
    start, states = cell, torch.empty_like(gates.chunk(4, -1)[0])
    for step in reversed(range(len(gates))) if backward else range(len(gates)):
        enter, forget, new, leave = gates[step].chunk(4, -1)
        if backward:  # sequences end at different steps: that is where they begin
            cell = torch.where((lengths - 1 == step).view(-1, 1).to(cell.device), start, cell)
        cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
        states[step] = leave.sigmoid() * cell.tanh()
    return states
