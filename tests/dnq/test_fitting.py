"""A choice is changed until its real file is within the budget and uses it up."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from octavo.dnq.fitting import ROUNDS, SLACK, FileFit
from octavo.dnq.searching import search
from octavo.dnq.space import Action, Choice, Space
from octavo.errors import BudgetError
from octavo.formats.width import WidthLike
from octavo.plan import Budget
from octavo.ptq.calibration import calibrate

WIDTHS = (2, 3, 4, 5)
ROW = tuple(map(Action.parse, WIDTHS))


def space_of(weights: tuple[int, ...], limit: float, budget: int) -> Space:
    names = tuple(map(str, range(len(weights))))
    costs = np.outer(weights, WIDTHS) / 8
    rows = (ROW,) * len(weights)
    return Space(
        names, rows, weights, weights, budget=Budget(bytes=budget), costs=costs, limit=limit
    )


def losses_of(weights: tuple[int, ...]) -> np.ndarray:
    return np.outer(np.sqrt(weights), [4.0**-bits for bits in WIDTHS])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(8, 4000), min_size=1, max_size=6),
    st.floats(0.9, 1.1),
    st.floats(0, 1),
    st.integers(0, 100),
)
def test_the_file_is_never_above_and_at_most_3_percent_below_where_the_options_allow(
    weights: list[int], factor: float, share: float, seed: int
) -> None:
    """The real file differs from the estimate by a factor, and by noise for each action."""
    noise = np.random.default_rng(seed).uniform(0.998, 1.002, (len(weights), 4))
    space = space_of(tuple(weights), 0.0, 1)
    solved: list[Choice] = []

    def file_bytes(choice: Choice) -> int:
        solved.append(choice)
        rows = np.arange(len(choice)), np.array(choice)
        return 300 + int((space.costs * noise * factor)[rows].sum())

    every = {c: file_bytes(c) for c in itertools.product(range(4), repeat=len(weights))}
    least, largest = min(every.values()), max(every.values())
    most = least + int(share * (largest - least))
    space = space_of(tuple(weights), most - 300.0, most)
    fit = FileFit(space, losses_of(tuple(weights)), file_bytes, most)
    for start in (space.cheapest, space.dearest, fit.uniform()):
        solved.clear()
        size = every[fit(start)]
        assert size <= most
        assert len(solved) == len(set(solved)) <= ROUNDS
        near = [real for real in every.values() if 0.98 * most <= real <= 0.99 * most]
        if len(near) > 2 and len(weights) <= 2:  # changes of two layers reach every choice
            assert size >= (1 - SLACK) * most
    uniform = fit.uniform()
    assert every[uniform] <= most
    wider = tuple(action + 1 for action in uniform)
    assert len(set(uniform)) == 1
    assert wider[0] == 4 or every[wider] > most or factor < 0.98


def test_a_choice_whose_file_fits_is_left_as_it_is() -> None:
    space = space_of((800, 800), 700.0, 720)
    fit = FileFit(space, losses_of((800, 800)), lambda _: 710, 720)
    assert fit((0, 3)) == (0, 3)


def test_a_budget_that_no_file_meets_says_the_smallest() -> None:
    space = space_of((800, 800), 700.0, 720)
    fit = FileFit(space, losses_of((800, 800)), lambda choice: 1000 + sum(choice), 720)
    said = r"^bytes=720: expected a file of at most 720 bytes, the smallest .* takes 1,000$"
    with pytest.raises(BudgetError, match=said):
        fit((1, 2))


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.integers(40, 72), min_size=3, max_size=5),
    st.floats(0.1, 0.9),
    st.booleans(),
    st.sampled_from(["exact", "random"]),
)
def test_the_file_of_a_random_model_is_within_the_budget(
    channels: list[int], share: float, as_ratio: bool, method: str
) -> None:
    torch.manual_seed(sum(channels))
    layers = [nn.Linear(*pair) for pair in itertools.pairwise(channels)]
    model = nn.Sequential(*itertools.chain(*zip(layers, [nn.ReLU() for _ in layers], strict=True)))
    inputs = [torch.randn(24, channels[0]) for _ in range(3)]
    sizes = [
        calibrate(model, {name: bits for name, _ in named(model)}, inputs).file_bytes
        for bits in (2, 5)
    ]
    most = sizes[0] + int(share * (sizes[1] - sizes[0])) + 8
    budget = Budget(bytes=most)
    if as_ratio:
        budget = Budget(ratio=float_bytes(model) / most)
    result = search(model, inputs, budget=budget, method=method, trials=40)
    packed = calibrate(model, result.plan, inputs)
    assert packed.file_bytes <= most
    for name, width in result.plan.items():
        if (
            packed.file_bytes < 0.97 * most and width < 5
        ):  # then a bit more in any layer is too much
            wider: dict[str, WidthLike] = {**result.plan, name: int(width) + 1}
            assert calibrate(model, wider, inputs).file_bytes > 0.98 * most
    assert result.objective >= max(result.uniform_objective, result.exact_objective)
    for plan in (result.uniform, result.exact):
        assert calibrate(model, plan, inputs).file_bytes <= most


def named(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [pair for pair in model.named_modules() if isinstance(pair[1], nn.Linear)]


def float_bytes(model: nn.Module) -> int:
    return sum(4 * parameter.numel() for parameter in model.parameters())
