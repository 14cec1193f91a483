"""INQ with a rate: cheaper levels freeze, the network sees them, and files are smaller."""

import copy
from typing import Any

import pytest
import torch
from tests.inq.networks import batch, net, train
from torch import Tensor, nn

from octavo.errors import PlanError
from octavo.inq.incremental import Incremental
from octavo.plan import Plan
from octavo.ptq.rounding import bits_of_codes
from octavo.storage.coding.small import encode_runs
from octavo.storage.packed import Packed

PLAN = {"first": 3, "last": 4}
RATES = (0.0, 1.0, 3.0)


def gaussian() -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 48))
    for parameter in model.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def inputs() -> list[Tensor]:
    mixing = torch.randn(96, 96, generator=torch.Generator().manual_seed(1))
    return [torch.randn(256, 96, generator=torch.Generator().manual_seed(2)) @ mixing / 10]


def weights() -> list[Tensor]:
    return list(gaussian().parameters())


def quantized(width: Any, rate: float, **options: Any) -> tuple[nn.Module, Packed]:
    model = gaussian()
    incremental = Incremental(model, Plan.uniform(model, width), rate=rate, **options)
    for _ in incremental:
        pass
    return model, incremental.finish()


def small_bytes(packed: Packed) -> int:
    runs = [(layer.codes, layer.codebook.width.level_count) for layer in packed.layers.values()]
    return len(encode_runs(runs))


def test_without_a_rate_nothing_is_priced() -> None:
    packed = [quantized(4, rate, order="distance")[1] for rate in (0.0, 0.0)]
    incremental = Incremental(gaussian(), {"0": 4})
    state = incremental.state_dict()
    assert "worth" not in state
    assert not any(key.endswith("edges") for key in state["model"])
    codebook = packed[0].layers["0"].codebook
    nearest = codebook.encode(weights()[0])
    assert torch.equal(packed[0].layers["0"].codes, nearest)


@pytest.mark.parametrize(
    ("width", "options"), [(4, {}), ("apot5", {}), ("apot5", {"inputs": inputs()})]
)
def test_a_larger_rate_makes_no_larger_file_and_no_smaller_error(
    width: Any, options: dict[str, Any]
) -> None:
    pytest.importorskip("constriction")
    sizes, errors = [], []
    for rate in RATES:
        model, packed = quantized(width, rate, order="distance", **options)
        sizes.append(small_bytes(packed))
        with torch.no_grad():
            change = [new - old for new, old in zip(model.parameters(), weights(), strict=True)]
        errors.append(float(sum(each.square().sum() for each in change)))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.85 * sizes[0]
    if not options:  # a refit moves weights away from where they were
        assert errors == sorted(errors)


def test_the_bits_that_the_last_portion_paid_are_those_that_the_coder_writes() -> None:
    pytest.importorskip("constriction")
    incremental = Incremental(gaussian(), Plan.uniform(gaussian(), "apot5"), rate=4.0)
    layers = list(incremental._layers)
    bits: list[Tensor] = []
    for stage in incremental:
        if not stage.last:
            bits = [bits_of_codes(one._codes(), len(one.codebook.unit_levels())) for one in layers]
    packed = incremental.finish()
    codes = [layer.codes.int() for layer in packed.layers.values()]
    paid = sum(float(each[code].sum()) for each, code in zip(bits, codes, strict=True)) / 8
    assert small_bytes(packed) == pytest.approx(paid, rel=0.02)


def test_what_the_network_saw_straight_through_is_what_freezes() -> None:
    """The levels are the cheaper ones; without its rate, the network would see others."""
    entropies = {}
    for rate in (0.0, 8.0):
        incremental = Incremental(
            net(), PLAN, portions=(0.3, 0.6, 1.0), straight_through=0.6, rate=rate
        )
        outputs = torch.zeros(())
        for stage in incremental:
            if stage.last:
                assert torch.equal(incremental.model.eval()(batch(3)), outputs)
            train(incremental.model.train(), seed=stage.index)
            outputs = incremental.model.eval()(batch(3))
        codes = incremental.finish().layers["first"].codes
        entropies[rate] = float(bits_of_codes(codes, 5)[codes.int()].sum())
    assert entropies[8.0] < entropies[0.0]


def test_the_order_by_distance_is_one_to_the_level_that_a_weight_takes() -> None:
    model = gaussian()
    incremental = Incremental(model, {"0": "apot5"}, portions=(0.5, 1.0), order="distance", rate=8)
    planned = incremental._layers[0]
    weight = weights()[0].detach()
    levels = planned.codebook.decode(planned._codes())
    assert not torch.equal(levels, planned.codebook.project(weight))
    distance = (weight - levels).abs()
    stage = next(iter(incremental))
    frozen = stage.frozen["0"]
    assert distance[frozen].max() <= distance[~frozen].min()
    assert torch.equal(planned.parametrization.value[frozen], levels[frozen])


def test_pruned_weights_stay_zero_and_say_nothing_of_the_error() -> None:
    model = gaussian()
    mask = torch.rand(64, 96, generator=torch.Generator().manual_seed(3)) < 0.3
    incremental = Incremental(model, {"0": 4}, masks={"0": mask}, rate=2.0)
    dense = Incremental(gaussian(), {"0": 4}, masks={}, rate=2.0)
    assert incremental._layers[0].worth == pytest.approx(dense._layers[0].worth, rel=0.2)
    for _ in incremental:
        pass
    assert not incremental.finish().layers["0"].weight()[~mask].any()


def test_a_state_belongs_to_its_rate() -> None:
    state = Incremental(gaussian(), {"0": 4}, rate=2.0).state_dict()
    with pytest.raises(PlanError, match=r"rate: expected the state of a run with 0.0, got .* 2.0"):
        Incremental(gaussian(), {"0": 4}).load_state_dict(state)
    old = Incremental(gaussian(), {"0": 4}).state_dict()
    del old["settings"]["rate"]  # as earlier versions wrote it
    Incremental(gaussian(), {"0": 4}).load_state_dict(old)
    with pytest.raises(PlanError, match="rate: expected a number of at least 0, got -1"):
        Incremental(gaussian(), {"0": 4}, rate=-1.0)


@pytest.mark.parametrize("per", ["tensor", "channel", ("group", 32)])
@pytest.mark.parametrize(
    ("model", "x"),
    [
        (nn.ConvTranspose2d(8, 6, 3, groups=2), torch.randn(4, 8, 5, 5)),
        (
            nn.Conv2d(8, 6, 3).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
            torch.randn(4, 8, 5, 5),
        ),
        (nn.LSTM(8, 6), torch.randn(7, 3, 8)),
        (nn.Embedding(30, 8), torch.arange(6).view(2, 3)),
    ],
    ids=["transposed", "channels last", "recurrent", "embedding"],
)
def test_every_kind_of_layer_takes_a_rate(model: nn.Module, x: Tensor, per: Any) -> None:
    model = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(x)
    plan = Plan.uniform(model, "apot5")
    incremental = Incremental(model, plan, per=per, rate=2.0, straight_through=0.875)
    *_, trained, frozen = [parts(model(x)) for _ in incremental]
    assert all(map(torch.equal, trained, frozen))  # what is seen from 0.875 on is what freezes
    assert all(layer.worth > 0 for layer in incremental._layers)
    with torch.no_grad():
        outputs = zip(parts(model(x)), parts(expected), strict=True)
        assert all(torch.dist(found, full) < 0.3 * full.norm() for found, full in outputs)


def parts(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else [outputs[0], *outputs[1]]
