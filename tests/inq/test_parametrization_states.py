"""States of earlier versions load, and what the network sees straight through is the rounding of
its codebook."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octavo.formats.registry import codebook_at
from octavo.formats.width import Width
from octavo.inq.incremental import Incremental
from octavo.inq.parametrization import attach_frozen_weights
from octavo.network.layers import find_layers

# Written by the version that kept a mark for each weight, in the second of three stages, with every
# trained value thirty times too large: the weights that the network then saw stand beside.
STATE = Path(__file__).parent / "data" / "state_of_marks.pt"


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 5),
        nn.ReLU(),
        nn.ConvTranspose1d(5, 4, 1),
        nn.Flatten(),
        nn.Linear(4, 3, bias=False),
    )


def incremental(model: nn.Module) -> Incremental:
    plan: dict[str, Width | int | str] = {"0": 3, "2": "apot5", "4": 8}
    return Incremental(model, plan, per="channel", fit="mse", portions=(0.5, 0.75, 1.0))


def test_a_state_of_the_version_that_kept_marks_loads_bit_for_bit() -> None:
    saved = torch.load(STATE, weights_only=True)
    model = network()
    run = incremental(model)
    run.load_state_dict(saved["state"])
    for name, expected in saved["seen"].items():
        seen: Any = model.get_submodule(name).weight
        assert torch.equal(seen, expected)
    frozen = [layer.parametrization.frozen.clone() for layer in run._layers]
    assert [int(mask.sum()) for mask in frozen] == [22, 15, 9]  # three quarters
    (stage,) = run  # the last one is still to come
    assert stage.index == 2
    run.finish()
    for name, mask in zip("024", frozen, strict=True):
        weight: Any = model.get_submodule(name).weight
        assert torch.equal(weight[mask], saved["seen"][name][mask])


def test_the_state_of_the_marks_is_left_as_it_was() -> None:
    saved = torch.load(STATE, weights_only=True)["state"]
    before = set(saved["model"])
    incremental(network()).load_state_dict(saved)
    assert set(saved["model"]) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("exponents", [[0, 0, 0], [-70, 3, -140], [100, -30, 0]])
@pytest.mark.parametrize("width", [2, 3, 5, 8, "apot5", "apot8"])
def test_straight_through_the_network_sees_the_rounding_of_the_codebook(
    width: Any, exponents: list[int], dtype: torch.dtype
) -> None:
    tiny = str(width).startswith("apot")  # its levels need normal numbers
    top = torch.tensor([max(e, -110) if tiny else e for e in exponents])
    codebook = codebook_at(width, top)
    levels = codebook.levels().double()
    middles = (levels[:, 1:] + levels[:, :-1]) / 2
    edges = middles.float()  # the ties, and their neighbours on either side
    weight = torch.cat(
        [
            levels.float(),
            edges,
            edges.nextafter(torch.tensor(torch.inf)),
            edges.nextafter(torch.tensor(-torch.inf)),
            torch.randn(3, 500) * 2.0 ** top[:, None].float(),
            torch.randn(3, 50) * 2.0 ** (top[:, None].float() + 5),
        ],
        1,
    ).to(dtype)
    weight = weight.masked_fill(~weight.isfinite(), 0)
    module = nn.Linear(weight.shape[1], 3, bias=False, dtype=dtype)
    with torch.no_grad():
        module.weight.copy_(weight)
    parametrization = attach_frozen_weights(find_layers(module)[0][0], codebook)
    parametrization.straight_through = True
    assert torch.equal(module.weight, codebook.project(weight).to(dtype))


@pytest.mark.parametrize("straight_through", [False, True])
def test_a_weight_that_is_not_a_number_is_seen_as_it_is_unless_it_is_frozen(
    straight_through: bool,
) -> None:
    module = nn.Linear(4, 1, bias=False)
    (layer,) = find_layers(module)[0]
    parametrization = attach_frozen_weights(layer, codebook_at(3, torch.tensor(0)))
    mask = torch.tensor([[False, False, True, True]])
    parametrization.freeze(torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8), mask)
    parametrization.straight_through = straight_through
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[torch.nan, 0.5, torch.nan, torch.inf]]))
    seen: Tensor = module.weight.detach()
    assert seen[0].isnan().tolist() == [True, False, False, False]
    assert seen[0, 1:].tolist() == [0.5, 0.0, 0.5]
