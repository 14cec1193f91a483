"""Sums of two powers of two and powers of two in one network: trained, packed, searched for,
written down and read again."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from octavo.dnq.search_result import SearchResult
from octavo.dnq.searching import search
from octavo.errors import PlanError, RecipeError
from octavo.formats.level_table import TableCodebook
from octavo.formats.powers_of_two import PowerOfTwo
from octavo.formats.registry import codebook_at
from octavo.formats.width import Apot, Width, WidthLike
from octavo.formats.zeros import pruned_mask
from octavo.inq.incremental import Incremental
from octavo.inq.parametrization import attach_frozen_weights
from octavo.network.layers import find_layers
from octavo.plan import Budget, Plan, matching_plan, planned_layers
from octavo.ptq.calibration import calibrate
from octavo.ptq.settings import PtqSettings
from octavo.runs.recipe import load_recipe, make_recipe
from octavo.runs.run import run
from octavo.runs.sections import Search
from octavo.storage.packed import Packed

MIXED: dict[str, WidthLike] = {"conv": Apot(6), "up": 3, "fc": Apot(8)}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up, self.norm = (
            nn.Conv2d(2, 4, 3),
            nn.ConvTranspose2d(4, 4, 2, groups=2),
            nn.BatchNorm2d(4),
        )
        self.fc = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.up(self.conv(x)))).flatten(1))  # type: ignore[no-any-return]


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def images(seed: int = 0) -> Tensor:
    return torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(seed))


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(images(step)), torch.arange(6) % 5).backward()
        optimizer.step()


def seen(model: nn.Module) -> dict[str, Tensor]:
    return {name: model.get_submodule(name).weight.detach().clone() for name in MIXED}  # type: ignore[operator]


# Frozen weights.


@pytest.mark.parametrize("bits", range(5, 9))
def test_every_code_is_held_at_its_level(bits: int) -> None:
    count = 2**bits - 1
    module = nn.Linear(count, 2, bias=False)
    codes = torch.arange(count, dtype=torch.uint8).repeat(2, 1)
    codebook = codebook_at(Apot(bits), torch.tensor([0, 5]))
    held = attach_frozen_weights(find_layers(module)[0][0], codebook)
    before = module.weight.detach().clone()
    mask = torch.arange(count).repeat(2, 1) % 3 > 0
    held.freeze(codes, mask)
    assert torch.equal(held.frozen, mask)
    assert torch.equal(module.weight[mask], codebook.decode(codes)[mask])
    assert torch.equal(module.weight[~mask], before[~mask])
    held.freeze(torch.zeros_like(codes), torch.ones_like(mask))
    assert torch.equal(module.weight[mask], codebook.decode(codes)[mask])  # what is frozen stays
    assert bool((module.weight[~mask] < 0).all())


def test_the_reach_of_free_weights_closes_on_the_cells_of_the_levels() -> None:
    module = nn.Linear(64, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(1000.0)
    held = attach_frozen_weights(find_layers(module)[0][0], codebook_at(Apot(5), torch.tensor(0)))
    mask = torch.arange(64).unsqueeze(0) < 63
    held.freeze(torch.full_like(held.frozen, 15, dtype=torch.uint8), mask)
    assert (
        1.875 <= float(module.weight.detach()[0, 63]) < 2
    )  # 28/16 is the largest level, 32/16 would come next


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_weights_hold_under_any_optimizer_and_end_in_the_file(
    name: str, tmp_path: Path
) -> None:
    model = net().train()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, 3)  # so that it has momentum for the weights that will be frozen
    incremental = Incremental(model, MIXED, portions=(0.5, 0.8, 1.0))
    for stage in incremental:
        before = seen(model)
        train(model, optimizer, 25)
        for layer, weight in seen(model).items():
            mask = stage.frozen[layer]
            assert torch.equal(weight[mask], before[layer][mask])
            assert stage.last or not torch.equal(weight, before[layer])
    last = seen(model)
    packed = incremental.finish()
    packed.save(tmp_path / "net.safetensors")
    loaded, fresh = Packed.load(tmp_path / "net.safetensors"), net()
    assert dict(loaded.plan) == dict(packed.plan) == MIXED
    loaded.apply(fresh)
    assert all(
        torch.equal(weight.view(torch.int32), last[layer].view(torch.int32))
        for layer, weight in seen(fresh).items()
    )
    kinds = {layer: type(quantized.codebook) for layer, quantized in loaded.layers.items()}
    assert kinds == {"conv": TableCodebook, "up": PowerOfTwo, "fc": TableCodebook}


@pytest.mark.parametrize(
    "options",
    [{}, {"straight_through": 0.5}, {"inputs": [images()]}, {"per": "tensor", "fit": "max"}],
)
def test_a_resumed_run_ends_the_same(options: dict[str, Any], tmp_path: Path) -> None:
    def go_on(incremental: Incremental, save: bool) -> Packed:
        for stage in incremental:
            if not stage.last:
                train(incremental.model, torch.optim.SGD(incremental.model.parameters(), 0.01), 3)
            if save and stage.index == 0:
                torch.save(incremental.state_dict(), tmp_path / "state.pt")
        return incremental.finish()

    whole = go_on(Incremental(net(), MIXED, portions=(0.5, 0.8, 1.0), **options), True)
    resumed = Incremental(net(), MIXED, portions=(0.5, 0.8, 1.0), **options)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    again = go_on(resumed, False)
    assert all(
        torch.equal(again.layers[name].weight(), whole.layers[name].weight()) for name in MIXED
    )
    other = Incremental(net(), {**MIXED, "conv": 6}, portions=(0.5, 0.8, 1.0), **options)
    with pytest.raises(
        PlanError,
        match=r"^plan: expected the state of a run with .*'conv': 6.*, got one with .*'apot6'",
    ):
        other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))


# The closed form.


@pytest.mark.parametrize("order", ["gptq", "distance", "magnitude"])
def test_the_closed_form_is_nearer_than_powers_of_two_and_than_rounding(order: Any) -> None:
    errors: dict[WidthLike, list[Any]] = {5: [], Apot(5): [], Apot(7): []}
    for width, found in errors.items():
        packed = calibrate(
            net(),
            dict.fromkeys(MIXED, width),
            [images()],
            order=order,
            progress=lambda event, found=found: found.append(event.detail),  # type: ignore[misc]
        )
        assert {layer.codebook.width for layer in packed.layers.values()} == {width}
        assert all(error.compensated <= error.nearest * (1 + 1e-6) for error in found)
    totals = [sum(error.compensated**2 for error in found) for found in errors.values()]
    assert totals[0] > 2 * totals[1] > 2 * totals[2]


def test_a_mixed_plan_is_quantized_layer_by_layer(tmp_path: Path) -> None:
    model = net()
    packed = calibrate(model, MIXED, [images()], fit=PtqSettings.fit)
    packed.save(tmp_path / "net.safetensors")
    fresh = net()
    Packed.load(tmp_path / "net.safetensors").apply(fresh)
    for name, weight in seen(fresh).items():
        quantized = packed.layers[name]
        assert torch.equal(weight.view(torch.int32), quantized.weight().view(torch.int32))
    assert packed.nominal_bits == pytest.approx((72 * 6 + 32 * 3 + 320 * 8) / (72 + 32 + 320))


# Plans and recipes.


def test_a_plan_is_saved_and_loaded_with_its_grids(tmp_path: Path) -> None:
    plan = Plan({**MIXED, "other": "apot5"}, weights={"conv": 72, "up": 32, "fc": 320, "other": 1})
    plan.save(tmp_path / "plan.yaml")
    text = (tmp_path / "plan.yaml").read_text(encoding="utf-8")
    assert "\n  conv: apot6\n  up: 3\n  fc: apot8\n  other: apot5\n" in text
    loaded = Plan.load(tmp_path / "plan.yaml")
    assert dict(loaded) == dict(plan) == {**MIXED, "other": Apot(5)}
    assert loaded.cost() == plan.cost()
    assert loaded.cost().average_bits == (72 * 6 + 32 * 3 + 320 * 8 + 5) / 425
    (tmp_path / "plan.yaml").write_text("bits: {conv: apot3}")
    with pytest.raises(
        PlanError, match=r"plan.yaml: conv: expected 2 to 8, apot5 to apot8, .*, got 'apot3'"
    ):
        Plan.load(tmp_path / "plan.yaml")


def test_plans_from_patterns_and_texts() -> None:
    assert dict(matching_plan(net(), Apot(6))) == dict.fromkeys(MIXED, Apot(6))
    assert dict(matching_plan(net(), {"*": 4, "c*": Apot(6)})) == {
        "conv": Apot(6),
        "up": 4,
        "fc": 4,
    }
    texts: Any = {"conv": "apot6", "fc": 3}
    assert [(layer.name, width) for layer, width in planned_layers(net(), texts)] == [
        ("conv", Apot(6)),
        ("fc", 3),
    ]
    with pytest.raises(
        PlanError,
        match=r"^conv: expected 2 to 8, apot5 to apot8, .*, got 'apot3'; for 3 bits write 3$",
    ):
        planned_layers(net(), {"conv": "apot3"})


def test_recipes_have_widths_as_texts_and_write_them_so(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("task: digits\nbits: {'*': 4, conv1: apot6}")
    recipe = load_recipe(path)
    assert recipe.bits == {"*": 4, "conv1": Apot(6)}
    assert recipe.model_dump(mode="json")["bits"] == {"*": 4, "conv1": "apot6"}
    assert make_recipe(recipe.model_dump(mode="json"), "again") == recipe
    assert make_recipe({"task": "digits", "bits": "apot5"}, "r").bits == Apot(5)
    searched = {
        "budget": {"average_bits": 5},
        "options": [4, 5, "apot6"],
        "pins": {"conv1": "apot8"},
    }
    recipe = make_recipe({"task": "digits", "search": searched}, "r")
    assert recipe.search == Search(
        budget=Budget(average_bits=5),
        options=(Width(4), Width(5), Apot(6)),
        pins={"conv1": Apot(8)},
    )
    written = json.loads(recipe.model_dump_json())
    assert (written["search"]["options"], written["search"]["pins"]) == (
        [4, 5, "apot6"],
        {"conv1": "apot8"},
    )
    assert make_recipe(written, "again") == recipe


@pytest.mark.parametrize(
    ("content", "place"),
    [({"bits": "apot3"}, "bits"), ({"bits": {"a": "apot3"}}, "bits.a"),
     ({"search": {"budget": {"ratio": 9}, "options": [3, "apot3"]}}, "search.options.1")],
)  # fmt: skip
def test_a_recipe_with_a_width_that_is_none(content: dict[str, Any], place: str) -> None:
    with pytest.raises(
        RecipeError,
        match=rf"^r: {place}: .*expected 2 to 8, apot5 to apot8, .*, got 'apot3'",
    ):
        make_recipe({"task": "digits", **content}, "r")


TASK = """
import torch
from test_mixed_codebooks import images, net

class Task:
    def model(self): return net()
    def calibration(self): return [images(0), images(1)]
    def train_batches(self): return [images(0)]
    def loss(self, model, batch): return model(batch).square().mean()
    def score(self, model): return 50.0
"""


def test_a_run_searches_over_both_grids_and_can_be_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    (tmp_path / "task.py").write_text(TASK)
    found = {
        "budget": {"average_bits": 6},
        "options": [3, 5, "apot6"],
        "pins": {"conv": "apot7"},
        "trials": 20,
        "method": "greedy",
    }
    recipe = make_recipe(
        {"task": f"{tmp_path}/task.py:Task", "search": found, "method": "ptq"}, "r"
    )
    result = run(recipe, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == json.loads(
        json.dumps(result)
    )
    assert result["search"]["plan"]["conv"] == "apot7"
    plan = Plan.load(tmp_path / "run" / "plan.yaml")
    assert {"conv": Apot(7)}.items() <= dict(plan).items()
    assert dict(Packed.load(tmp_path / "run" / "packed.safetensors").plan) == dict(plan)
    assert [row["bits"] for row in result["layers"]] == [
        result["search"]["plan"][row["name"]] for row in result["layers"]
    ]
    assert run(recipe, tmp_path / "run") == json.loads(json.dumps(result))


# The search.


def found(**changes: Any) -> SearchResult:
    settings: dict[str, Any] = {
        "budget": Budget(average_bits=5.2),
        "options": (4, 5, Apot(5), Apot(6)),
        "trials": 20,
    }
    return search(net(), [images(0), images(1)], **(settings | changes))


@pytest.mark.usefixtures("brief_practice")
@pytest.mark.parametrize("method", ["dnq", "exact", "greedy", "random", "uniform"])
def test_every_method_chooses_among_both_grids(method: str) -> None:
    result = found(method=method)
    assert set(result.plan.values()) <= {4, 5, Apot(5), Apot(6)}
    assert result.plan.cost().average_bits <= 5.2
    assert dict(result.uniform) == dict.fromkeys(MIXED, Apot(5))  # of two at as many bits, the sums
    assert result.objective >= result.uniform_objective


def test_the_other_grid_is_scored_as_what_it_is() -> None:
    """All eight plans cost as much, and all of them are trials."""
    result = found(method="exact", options=(5, Apot(5)), budget=Budget(average_bits=5))
    objectives = {tuple(trial.plan.values()): trial.objective for trial in result.trials}
    assert len(objectives) == 8
    assert objectives[(Apot(5),) * 3] > objectives[(Width(5),) * 3] / 5  # sums lose much less
    for plan, objective in objectives.items():
        if plan[0] == 5:
            assert objectives[Apot(5), *plan[1:]] > objective
    assert dict(result.uniform) == dict.fromkeys(MIXED, Apot(5))
    assert result.objective >= result.uniform_objective
    assert Apot(5) in result.plan.values()


def test_options_and_pins_are_read_from_texts() -> None:
    texts = found(options=[4, 5, "apot6"], pins={"up": "apot7"}, method="exact")
    widths = found(options=[4, 5, Apot(6)], pins={"up": Apot(7)}, method="exact")
    assert dict(texts.plan) == dict(widths.plan)
    assert texts.plan["up"] == Apot(7)
    for changes in ({"options": [4, "apot3"]}, {"pins": {"up": "apot3"}}):
        with pytest.raises(PlanError, match=r"expected 2 to 8, apot5 to apot8, .*, got 'apot3'"):
            found(**changes)


def test_a_search_goes_on_from_its_journal(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def kill(event: Any) -> None:
        raise KilledError

    whole = found(journal=tmp_path / "whole", method="greedy")
    with pytest.raises(KilledError):
        found(journal=tmp_path / "killed", method="greedy", progress=kill)
    again = found(journal=tmp_path / "killed", method="greedy")
    assert (dict(again.plan), again.trials) == (dict(whole.plan), whole.trials)
    lines = [json.loads(line) for line in (tmp_path / "killed").read_text().splitlines()]
    assert lines[0]["settings"]["options"] == [[4, 5, "apot5", "apot6"]] * 3
    assert {bits for line in lines[1:] for bits in line["bits"]} == {None, 4, 5, "apot5", "apot6"}
    with pytest.raises(RecipeError, match="the journal of a search with options"):
        found(options=(4, 5, 6), journal=tmp_path / "killed")


def test_a_copy_of_a_model_with_a_table_is_a_model_of_its_own() -> None:
    model = net()
    incremental = Incremental(model, MIXED, portions=(0.5, 1.0))
    next(iter(incremental))
    other = copy.deepcopy(model)
    assert torch.equal(other(images()), model(images()))
    assert not any("table" in name for name in model.state_dict())


# Pruned networks.


def test_zeros_that_are_levels_of_either_grid_are_not_taken_for_pruned() -> None:
    packed = calibrate(net(), MIXED, [images()])
    for name, layer in packed.layers.items():
        weight = layer.weight()
        weight.flatten()[0] = 0
        assert not pruned_mask(weight).any(), name
        weight.flatten()[1] = 129 / 128  # eight significant bits: a weight that was trained
        assert torch.equal(pruned_mask(weight), weight == 0), name


def test_what_is_pruned_stays_zero_and_the_others_find_their_levels(tmp_path: Path) -> None:
    model, generator = net().train(), torch.Generator().manual_seed(1)
    masks = {
        name: torch.rand(weight.shape, generator=generator) < 0.4
        for name, weight in seen(model).items()
    }
    with torch.no_grad():
        for name, kept in masks.items():
            model.get_submodule(name).weight.mul_(kept)  # type: ignore[operator]
    closed = calibrate(model, MIXED, [images()])
    incremental = Incremental(model, MIXED, portions=(0.5, 1.0))
    for _ in incremental:
        train(model, torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1), 10)
    for packed in (closed, incremental.finish()):
        packed.save(tmp_path / "net.safetensors")
        fresh = net()
        Packed.load(tmp_path / "net.safetensors").apply(fresh)
        assert all(not weight[~masks[name]].any() for name, weight in seen(fresh).items())
        assert all(bool((weight != 0).any()) for weight in seen(fresh).values())
