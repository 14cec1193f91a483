"""Candidates: each action of each layer is quantized once."""

import pytest
import torch
from torch import nn

from octavo.activations.quantization import fitted_quantizers
from octavo.dnq.candidates import quantize_all
from octavo.dnq.space import Action
from octavo.formats.width import Width
from octavo.network.layers import find_layers
from octavo.ptq.float_inputs import float_moments
from octavo.ptq.layer_solver import solve
from octavo.ptq.settings import PtqSettings

X = [torch.linspace(-1, 1, 24).view(8, 3)]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def actions(*texts: int | str) -> tuple[Action, ...]:
    return tuple(map(Action.parse, texts))


def test_weights_and_stored_bits_are_those_of_the_solver() -> None:
    model = net()
    options = (actions(2, 3), actions("apot5"))
    found = quantize_all(model, ("0", "2"), X, options, absorb=False)
    assert [len(candidates) for candidates in found] == [2, 1]
    layers = find_layers(model)[0]
    for layer, some, candidates in zip(layers, options, found, strict=True):
        for action, candidate in zip(some, candidates, strict=True):
            moments = float_moments(model, X, [layer])[layer.name]
            solution = solve(layer, moments, action.width, PtqSettings())
            levels = solution.codebook.decode(solution.codes).view_as(layer.weight)
            assert torch.equal(candidate.weight, levels)
            counts = torch.unique(solution.codes, return_counts=True)[1].double()
            entropy = float(-(counts * (counts / counts.sum()).log2()).sum())
            assert candidate.stored_bits == pytest.approx(entropy)
            assert candidate.quantizer is None


def test_actions_of_one_width_share_its_weight_and_differ_in_their_quantizer() -> None:
    model = net()
    options = (actions("3x4", "3x8"), actions("3x32"))
    (four, eight), (in_float,) = quantize_all(model, ("0", "2"), X, options, absorb=False)
    assert four.weight is eight.weight
    assert in_float.quantizer is None
    expected = fitted_quantizers(model, X, {"0": [4, 8]})["0"]
    for candidate, bits in ((four, 4), (eight, 8)):
        assert candidate.quantizer is not None
        assert torch.equal(candidate.quantizer(X[0]), expected[bits](X[0]))
    assert Width(3) == options[0][0].width
