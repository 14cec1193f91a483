"""The network sees free weights at their levels, while their trained values move."""

import torch
from tests.inq.networks import batch, net, seen, train
from torch import Tensor, nn

from octavo.inq.incremental import Incremental


def trained(model: nn.Module) -> Tensor:
    """What lies under the weights of the first layer that the network sees."""
    return model.get_parameter("first.parametrizations.weight.original")


def test_straight_through_the_network_sees_levels_and_free_weights_train() -> None:
    plain, through = (
        Incremental(net(), {"first": 3, "last": 4}, straight_through=share) for share in (1.0, 0.75)
    )
    for stage, _ in zip(through, plain, strict=True):
        model, levels = through.model, through._layers[0].codebook.levels()
        weight, frozen = seen(model)["first"], stage.frozen["first"]
        on_a_level = torch.isin(weight, levels)
        assert bool(on_a_level[frozen].all())
        assert bool(on_a_level.all()) == (stage.portion >= 0.75)
        before = trained(model).detach().clone()
        for one in (model, plain.model):
            train(one, seed=stage.index)
        moved = trained(model).detach() != before
        if not stage.last:
            assert bool(moved[~frozen].all())
    assert through.finish().nominal_bits == plain.finish().nominal_bits


def test_what_the_network_saw_straight_through_is_what_freezes() -> None:
    incremental = Incremental(
        net(), {"first": 3, "last": 4}, portions=(0.3, 0.6, 1.0), straight_through=0.6
    )
    outputs = torch.zeros(())
    for stage in incremental:
        if stage.last:
            assert torch.equal(incremental.model.eval()(batch(3)), outputs)
        train(incremental.model.train(), seed=stage.index)
        outputs = incremental.model.eval()(batch(3))


def test_the_gradient_straight_through_is_that_of_the_levels() -> None:
    incremental = Incremental(net(), {"first": 3}, portions=(0.5, 1.0), straight_through=0.5)
    stage, model = next(iter(incremental)), incremental.model
    x = batch(0)
    model.get_submodule("first")(x).sum().backward()
    expected = x.sum(0, keepdim=True).masked_fill(stage.frozen["first"], 0)
    assert torch.allclose(trained(model).grad, expected)  # type: ignore[arg-type]
