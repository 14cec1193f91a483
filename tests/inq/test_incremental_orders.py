"""The orders in which weights freeze, as a run of INQ applies them."""

from typing import Any

import pytest
import torch
from tests.inq.networks import far, net
from torch import Tensor, nn

from octavo.formats.powers_of_two import power_of_two
from octavo.inq.incremental import Incremental
from octavo.inq.partition import grow, rank


@pytest.mark.parametrize(
    ("order", "largest_first"),
    [("magnitude", True), (far, None), ("distance", None), ("random", None)],
)
def test_what_freezes_first(order: Any, largest_first: bool | None) -> None:
    model = net()
    sizes = model.first.weight.detach().abs().clone()
    stage = next(iter(Incremental(model, {"first": 3}, order=order)))
    frozen = sizes[stage.frozen["first"]], sizes[~stage.frozen["first"]]
    assert (float(frozen[0].min()) >= float(frozen[1].max())) is bool(largest_first)


def test_each_portion_freezes_by_its_own_order() -> None:
    """The largest first, then by distance: as growing the frozen set by hand does."""
    bits = 3
    model = net()
    weight = model.first.weight.detach().clone()
    codebook = power_of_two(weight, bits, fit="mse")
    frozen = torch.zeros_like(weight, dtype=torch.bool)
    run = Incremental(
        model,
        {"first": bits},
        portions=(0.4, 0.8, 1.0),
        order=["magnitude", "distance", far],
        per="tensor",
    )
    stages, expected = list(run), list[Tensor]()
    for portion, order in ((0.4, "magnitude"), (0.8, "distance"), (1.0, far)):
        frozen = grow(frozen, rank(weight, codebook, order), portion)  # type: ignore[arg-type]
        expected.append(frozen)
    assert all(
        torch.equal(stage.frozen["first"], mask)
        for stage, mask in zip(stages, expected, strict=True)
    )
    alone: Any
    for alone in ("magnitude", "distance"):
        single = Incremental(
            net(), {"first": bits}, portions=(0.4, 0.8, 1.0), order=alone, per="tensor"
        )
        assert not torch.equal(list(single)[1].frozen["first"], expected[1])


def test_by_distance_the_first_half_hardly_changes() -> None:
    changes: dict[str, Tensor] = {}
    for order in ("distance", far, "random"):
        model = net()
        before = model.first.weight.detach().clone()
        stage = next(iter(Incremental(model, {"first": 3}, order=order, fit="max", per="tensor")))
        changes[order] = (model.first.weight.detach() - before).abs()[stage.frozen["first"]]
    assert float(changes["distance"].max()) <= float(changes[far].min())
    assert changes["distance"].sum() < changes["random"].sum() < changes[far].sum()


def test_the_random_order_is_the_seeds_and_each_layers_own() -> None:
    def masks(seed: int, *, disturb: int = 0) -> list[dict[str, Tensor]]:
        model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
        torch.manual_seed(disturb)
        run = Incremental(
            model, {"0": 3, "1": 3}, order="random", seed=seed, portions=(0.25, 0.5, 1.0)
        )
        return [dict(stage.frozen) for stage in run]

    first, again, other = masks(1), masks(1, disturb=5), masks(2)
    assert all(
        torch.equal(a[name], b[name]) for a, b in zip(first, again, strict=True) for name in a
    )
    assert not torch.equal(first[0]["0"], other[0]["0"])
    assert not torch.equal(first[0]["0"], first[0]["1"])
    second = first[1]["0"] & ~first[0]["0"]
    overlap = int((second & first[0]["1"]).sum()) / int(
        second.sum()
    )  # of another stage and layer: independent
    assert 0.1 < overlap < 0.4


@pytest.mark.parametrize("seed", [2**32, 2**63, -(2**40)])
def test_large_seeds(seed: int) -> None:
    assert len(list(Incremental(net(), {"first": 3}, order="random", seed=seed))) == 4
