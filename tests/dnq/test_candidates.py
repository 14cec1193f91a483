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
    found = quantize_all(model, ("0", "2"), X, options, PtqSettings())
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
            assert torch.equal(candidate.quantized.codes.view(-1), solution.codes.view(-1))
            assert torch.equal(candidate.quantized.weight(), levels)
            assert candidate.quantizer is None
            assert candidate.factor is None


def test_actions_of_one_width_share_its_weight_and_differ_in_their_quantizer() -> None:
    model = net()
    options = (actions("3x4", "3x8"), actions("3x32"))
    (four, eight), (in_float,) = quantize_all(model, ("0", "2"), X, options, PtqSettings())
    assert four.weight is eight.weight
    assert in_float.quantizer is None
    expected = fitted_quantizers(model, X, {"0": [4, 8]})["0"]
    for candidate, bits in ((four, 4), (eight, 8)):
        assert candidate.quantizer is not None
        assert torch.equal(candidate.quantizer(X[0]), expected[bits](X[0]))
    assert Width(3) == options[0][0].width


def test_a_candidate_ahead_of_a_batch_norm_keeps_the_norm_and_the_factor_that_it_cancels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 3)).eval()
    inputs = [torch.randn(8, 4, 7, 7)]
    options = (actions(3), actions(3))
    (first,), (last,) = quantize_all(model, ("0", "2"), inputs, options, PtqSettings(absorb=True))
    assert first.norm is model[1]
    assert first.factor is not None
    by_channel = first.factor.float().view(6, 1, 1, 1)
    assert torch.allclose(first.weight, first.quantized.weight() * by_channel)
    assert (last.norm, last.factor) == (None, None)


def test_candidates_take_little_more_than_five_bytes_a_weight() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    found = quantize_all(
        model, ("0", "1"), [torch.randn(9, 64)], (actions(2, 4),) * 2, PtqSettings()
    )
    for candidate in (each for row in found for each in row):
        exponents = candidate.quantized.codebook.max_exponent
        tensors = (candidate.weight, candidate.quantized.codes, exponents)
        size = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
        assert size <= 5.3 * candidate.weight.numel()
