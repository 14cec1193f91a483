"""File sizes: the estimate of a packed file's bytes against files that are really packed."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from octavo.dnq.environment import Environment
from octavo.dnq.file_sizes import FileSizes
from octavo.dnq.space import Action, Choice
from octavo.dnq.survey import survey
from octavo.ptq.calibration import calibrate
from octavo.ptq.file_form import FileForm
from octavo.ptq.settings import PtqSettings


def conv_net(channels: int, seed: int) -> nn.Sequential:
    """A convolution and a depthwise one, each before a batch norm, and a linear layer."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, channels, 3),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, groups=channels),
        nn.BatchNorm2d(channels),
        nn.Flatten(),
        nn.Linear(4 * channels, 64),
    )
    model(torch.randn(32, 3, 6, 6))  # running statistics
    return model.eval()


def images(seed: int) -> list[Tensor]:
    return [torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(seed))]


def estimated(sizes: FileSizes, choice: Choice) -> float:
    return sizes.rest + sum(float(sizes.codes[place]) for place in enumerate(choice))


@pytest.mark.parametrize("absorb", [False, True])
@given(channels=st.sampled_from([16, 48]), seed=st.integers(0, 99), data=st.data())
@settings(max_examples=4, deadline=None)
def test_the_estimate_is_near_the_file_that_is_written(
    channels: int, seed: int, data: st.DataObject, absorb: bool
) -> None:
    model = conv_net(channels, seed)
    inputs = images(seed)
    space = survey(model, inputs[0], (2, 3, 4, "apot5"), {})
    environment = Environment(
        model, space.names, inputs, space.actions, settings=PtqSettings(absorb=absorb)
    )
    sizes = environment.file_sizes()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    choices = st.tuples(*[st.integers(0, 3)] * 3)
    for choice in data.draw(st.lists(choices, min_size=2, max_size=2)):
        packed = calibrate(model, space.plan(choice), inputs, absorb=absorb)
        # A stream more or less is some dozen bytes, whatever the size of the network.
        assert estimated(sizes, choice) == pytest.approx(packed.file_bytes, rel=0.01, abs=200)
        assert sizes.float_bytes == packed.float_bytes
    smallest = calibrate(model, space.plan((0, 0, 0)), inputs, absorb=absorb)
    assert sizes.least == pytest.approx(smallest.file_bytes, rel=0.01)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_sizes_have_a_place_for_each_action_and_rise_with_the_bits() -> None:
    model = nn.Sequential(nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 30), nn.Linear(30, 30))
    options = (
        tuple(map(Action.parse, (2, 3, 5))),
        (Action.parse(4),),
        tuple(map(Action.parse, ("3x4", "3x8"))),
    )
    sizes = Environment(model, ("0", "2", "3"), [torch.randn(64, 40)], options).file_sizes()
    assert np.isnan(sizes.codes).tolist() == [
        [False, False, False],
        [False, True, True],
        [False, False, True],
    ]
    assert sizes.codes[0, 0] < sizes.codes[0, 1] < sizes.codes[0, 2]
    assert sizes.codes[2, 0] == sizes.codes[2, 1]  # bits of inputs are no codes
    weights = (2000, 1500, 900)
    for layer, action in itertools.product(range(3), range(3)):
        if action < len(options[layer]):
            bits = 8 * sizes.codes[layer, action] / weights[layer]
            assert 1 < bits < options[layer][action].width.bits + 0.5


def test_codes_that_are_all_the_same_have_a_price() -> None:
    model = nn.Sequential(nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 30))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    options = (tuple(map(Action.parse, (2, 3))),) * 2
    sizes = Environment(model, ("0", "2"), [torch.randn(64, 40)], options).file_sizes()
    assert np.isfinite(sizes.codes).all()
    assert (sizes.codes > 0).all()
    packed = calibrate(model, {"0": 2, "2": 2}, [torch.randn(64, 40)])
    assert estimated(sizes, (0, 0)) == pytest.approx(packed.file_bytes, abs=200)


def test_what_absorbing_does_to_the_floats_is_counted() -> None:
    """Running statistics that were never updated compress to nothing, but not once they have taken
    the factors of their channels."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 256, 3), nn.BatchNorm2d(256), nn.Conv2d(256, 4, 1)).eval()
    options = (tuple(map(Action.parse, (2, 3))),) * 2
    for absorb in (False, True):
        environment = Environment(
            model, ("0", "2"), images(0), options, settings=PtqSettings(absorb=absorb)
        )
        packed = calibrate(model, {"0": 3, "2": 3}, images(0), absorb=absorb)
        found = estimated(environment.file_sizes(), (1, 1))
        assert found == pytest.approx(packed.file_bytes, rel=0.02)


@pytest.mark.parametrize("rate", [0.0, 2.0])
def test_folded_norms_the_small_coding_and_the_rate_are_priced(rate: float) -> None:
    pytest.importorskip("constriction")
    model = conv_net(48, 0)
    inputs = images(0)
    space = survey(model, inputs[0], (3, "apot5"), {})
    at_rate = PtqSettings(rate=rate)
    environment = Environment(model, space.names, inputs, space.actions, settings=at_rate)
    form = FileForm(floats="folded", coding="small")
    sizes = environment.file_sizes(form)
    plain = environment.file_sizes()
    for choice in ((1, 0, 1), (1, 1, 1)):
        plan = space.plan(choice)
        packed = calibrate(model, plan, inputs, rate=rate, floats="folded", coding="small")
        assert estimated(sizes, choice) == pytest.approx(packed.file_bytes, rel=0.01, abs=200)
        assert estimated(plain, choice) > 1.05 * packed.file_bytes
