"""A network for trials: it shares everything with the model but what is exchanged."""

import torch
from torch import Tensor, nn

from octavo.activations.quantization import fitted_quantizers
from octavo.activations.quantizer import InputQuantizer
from octavo.dnq.candidates import Candidate
from octavo.dnq.trial_network import TrialNetwork
from octavo.formats.registry import codebook_at
from octavo.storage.quantized import Quantized


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).train()


X = torch.linspace(-1, 1, 15).view(5, 3)


def candidate_of(weight: Tensor, quantizer: InputQuantizer | None = None) -> Candidate:
    """A candidate whose codes do not matter."""
    codes = torch.zeros(weight.shape, dtype=torch.uint8)
    quantized = Quantized(("weight",), codebook_at(2, torch.tensor(0)), codes)
    return Candidate(weight, quantized, 0.0, quantizer)


@torch.no_grad()
def test_candidates_are_put_in_place_by_reference_and_taken_out_again() -> None:
    model = net()
    expected = model(X)
    network = TrialNetwork(model, ("0", "2"), ())
    candidate = candidate_of(torch.ones(2, 4))
    network.put([None, candidate])
    assert network.model.get_parameter("2.weight").data_ptr() == candidate.weight.data_ptr()
    first = network.model.get_parameter("0.weight")
    assert first.data_ptr() == model.get_parameter("0.weight").data_ptr()
    summed = model[1](model[0](X)).sum(1, keepdim=True)
    assert torch.allclose(network.model(X), summed + model.get_parameter("2.bias"))
    assert torch.equal(model(X), expected)
    network.put([None, None])
    assert torch.equal(network.model(X), expected)


@torch.no_grad()
def test_everything_else_is_shared_and_the_copy_is_in_evaluation_mode() -> None:
    model = net()
    network = TrialNetwork(model, ("0",), ())
    assert network.model.get_parameter("2.weight") is model.get_parameter("2.weight")
    assert network.model.get_parameter("0.bias") is model.get_parameter("0.bias")
    assert not network.model.training
    assert model.training


@torch.no_grad()
def test_inputs_are_rounded_where_the_candidate_says_so() -> None:
    model = net()
    quantizer = fitted_quantizers(model, [X], {"0": [2]})["0"][2]
    network = TrialNetwork(model, ("0", "2"), ("0",))
    full = model.get_parameter("0.weight").detach()
    network.put([candidate_of(full, quantizer), None])
    assert torch.allclose(network.model(X), model(quantizer(X)))
    network.put([candidate_of(full), None])
    assert torch.allclose(network.model(X), model(X))
