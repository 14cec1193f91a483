"""The search for the bits of weights and inputs together: what it chooses, what that costs, and
that it is what is then used."""

import copy
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from octavo.activations.quantization import quantize_activations
from octavo.activations.quantizer import input_formats, input_quantizers
from octavo.compression import compress
from octavo.dnq import searching
from octavo.dnq.environment import Environment
from octavo.dnq.prices import within
from octavo.dnq.rivals.exact import summed_loss
from octavo.dnq.search_result import SearchResult
from octavo.dnq.searching import search
from octavo.dnq.sensitivity import loss_table, single_layer_choices
from octavo.dnq.settings import METHODS
from octavo.dnq.space import Action, Choice, Partial
from octavo.dnq.survey import survey
from octavo.errors import BudgetError, PlanError
from octavo.formats.width import FLOAT, WidthLike, read_width
from octavo.inq.incremental import Incremental
from octavo.network.divergence import TEMPERATURE
from octavo.network.layers import find_layers
from octavo.plan import Budget, Cost, Plan
from octavo.ptq.calibration import calibrate
from octavo.ptq.float_inputs import float_moments
from octavo.ptq.layer_solver import solve
from octavo.ptq.settings import PtqSettings
from octavo.storage.packed import Packed

MACS = {"0": 54, "2": 45, "4": 20}
WEIGHTS, INPUTS = (2, 3, 4), (2, 4, 8)
LIMIT = 16 * sum(MACS.values())


def actions(*texts: str) -> tuple[Action, ...]:
    return tuple(map(Action.parse, texts))


def every_choice(some: Sequence[Sequence[Action]]) -> list[Choice]:
    return list(itertools.product(*(range(len(own)) for own in some)))


def net() -> nn.Sequential:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


class Words(nn.Module):
    """An embedding and a recurrent layer, whose inputs stay in float, two linear layers of one
    weight, and one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(7, 5), nn.RNN(5, 5, batch_first=True)
        self.one, self.other, self.last = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 4)
        self.other.weight = self.one.weight

    def forward(self, words: Tensor) -> Tensor:
        hidden = self.rnn(self.embedding(words))[0][:, -1]
        return self.last(self.other(self.one(hidden).relu()).relu())  # type: ignore[no-any-return]


def words() -> Words:
    torch.manual_seed(0)
    return Words()


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(12, 6, generator=generator), torch.randn(5, 6, generator=generator)]


def found(**changes: Any) -> SearchResult:
    settings: dict[str, Any] = {
        "budget": Budget(bit_ops=LIMIT),
        "options": WEIGHTS,
        "activations": INPUTS,
        "trials": 80,
        "seed": 2,
    }
    return search(net(), batches(), **settings | {"method": "greedy"} | changes)


def same(one: SearchResult, other: SearchResult) -> bool:
    return (one.trials, dict(one.plan), one.plan.activations, one.objective) == (
        other.trials, dict(other.plan), other.plan.activations, other.objective
    )  # fmt: skip


def quantized(bits: Mapping[str, WidthLike], inputs: Mapping[str, int]) -> nn.Module:
    """A copy with each layer's weights from full-precision moments, and inputs as the public
    function rounds them."""
    model, result = net(), net()
    if inputs:
        quantize_activations(result, batches(), inputs)
    for layer in find_layers(model)[0]:
        if layer.name in bits:
            moments = float_moments(model, batches(), [layer])[layer.name]
            solution = solve(layer, moments, read_width(bits[layer.name]), PtqSettings())
            levels = solution.codebook.decode(solution.codes)
            result.get_parameter(layer.parameter).data.copy_(levels.view_as(layer.weight))
    return result


def score(model: nn.Module) -> float:
    """Minus the mean divergence from full precision."""
    with torch.no_grad():
        own, full = (
            (torch.cat([each(batch) for batch in batches()]).double() / TEMPERATURE).log_softmax(1)
            for each in (model, net())
        )
    return -(TEMPERATURE**2) * float((full.exp() * (full - own)).sum(1).mean())


# What is searched.


def test_each_layer_gets_the_bits_of_inputs_that_it_can_have() -> None:
    space = survey(
        words(),
        torch.zeros(2, 3, dtype=torch.int64),
        (2, 3),
        {"one": 5},
        (8, 4),
    )
    plain = ["2x32", "3x32"]
    texts = [[str(action) for action in actions] for actions in space.actions]
    assert dict(zip(space.names, texts, strict=True)) == {
        "embedding": plain,
        "rnn.weight_ih_l0": plain,
        "rnn.weight_hh_l0": plain,
        "one": ["5x32"],  # its weight stands in two places
        "last": ["2x4", "3x4", "2x8", "3x8"],
    }
    top = space.plan(space.dearest)
    assert top == dict.fromkeys(space.names, 3) | {"one": 5}
    assert top.activations == {"last": 8}


def test_what_a_plan_costs_by_hand() -> None:
    plan = Plan(
        {"a": 3, "b": 5}, weights={"a": 100, "b": 60}, macs={"a": 7, "b": 11}, activations={"a": 4}
    )
    assert plan.cost() == Cost(3.75, 32 / 3.75, 75, 3 * 4 * 7 + 5 * 32 * 11)
    assert Plan(plan, weights=plan.weights, macs=plan.macs).cost().bit_ops == 3 * 7 + 5 * 11
    assert repr(Plan({"a": 3}, activations={"a": 4})) == "Plan({'a': 3}, activations={'a': 4})"


def test_costs_are_those_of_the_plan() -> None:
    model, batch = words(), torch.zeros(2, 3, dtype=torch.int64)
    surveyed = survey(model, batch, (2, 3), {}, (4, 8))
    space = within(surveyed, Budget(bit_ops=10**9))
    for choice in itertools.islice(every_choice(space.actions), 64):
        assert space.cost(choice) == space.plan(choice).cost().bit_ops


@pytest.mark.parametrize("wrong", [{"a": 1}, {"a": 9}, {"a": "x"}, {"a": None}])
def test_activations_that_are_no_bits_are_refused(wrong: Any) -> None:
    with pytest.raises(PlanError, match=r"^activations, a: "):
        Plan({"a": 3}, activations=wrong)


def test_a_plan_with_activations_comes_back_from_its_file(tmp_path: Path) -> None:
    path, plan = tmp_path / "plan.yaml", found(method="exact").plan
    plan.save(path)
    back = Plan.load(path)
    assert (back, back.activations, back.cost()) == (plan, plan.activations, plan.cost())
    path.write_text(path.read_text().replace("activations:", "activation:"))
    with pytest.raises(
        PlanError, match="expected mappings named bits, weights, macs and activations"
    ):
        Plan.load(path)


# The environment.


def test_scores_are_those_of_a_copy_whose_weights_and_inputs_are_quantized() -> None:
    names, options = (
        tuple(MACS),
        (actions("2x4", "3x8"), actions("2x2", "2x8"), actions("4x32", "4x4")),
    )
    choices: list[Partial] = [*every_choice(options), (None, 0, None), (None, None, None)]
    for workers in (1, 2):
        environment = Environment(net(), names, batches(), options, workers=workers)
        for choice, own in zip(choices, environment.objectives(choices), strict=True):
            chosen = {
                name: some[at]
                for name, some, at in zip(names, options, choice, strict=True)
                if at is not None
            }
            inputs = {
                name: action.input_bits
                for name, action in chosen.items()
                if action.input_bits not in (None, FLOAT)
            }
            expected = quantized({name: action.width for name, action in chosen.items()}, inputs)
            assert own == pytest.approx(score(expected), rel=1e-4, abs=1e-7)
            assert score(environment.network(choice)) == pytest.approx(own, rel=1e-4, abs=1e-7)


def test_together_and_one_by_one_give_the_same_objectives() -> None:
    names = tuple(MACS)
    options = (actions("2x2", "2x8", "3x2", "3x8"),) * 3
    choices = every_choice(options)
    together = Environment(net(), names, batches(), options).objectives(choices)
    environment = Environment(net(), names, batches(), options)
    alone = [environment.objectives([choice])[0] for choice in choices[::7]]
    assert together[::7] == alone  # bit for bit
    assert len(set(together)) == len(choices)  # each layer's inputs and weights count


def test_the_model_stays_as_it_was() -> None:
    model = net()
    before, keys = (
        copy.deepcopy(model.state_dict()),
        [(name, type(module)) for name, module in model.named_modules()],
    )
    search(
        model,
        batches(),
        budget=Budget(bit_ops=LIMIT),
        activations=(4, 8),
        trials=40,
        method="random",
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [(name, type(module)) for name, module in model.named_modules()] == keys
    assert not any(module._forward_pre_hooks for module in model.modules())


# The search.


def best_of_all(weights: tuple[int, ...], inputs: tuple[int, ...]) -> float:
    """The best score within the budget, of all choices, by brute force through the public
    functions."""
    best = -np.inf
    solved = {w: quantized(dict.fromkeys(MACS, w), {}) for w in weights}
    for choice in itertools.product(itertools.product(weights, inputs), repeat=len(MACS)):
        if sum(w * a * macs for (w, a), macs in zip(choice, MACS.values(), strict=True)) <= LIMIT:
            model = net()
            quantize_activations(
                model, batches(), {name: a for name, (_, a) in zip(MACS, choice, strict=True)}
            )
            for name, (w, _) in zip(MACS, choice, strict=True):
                model.get_parameter(f"{name}.weight").data = (
                    solved[w].get_parameter(f"{name}.weight").data
                )
            best = max(best, score(model))
    return best


@pytest.fixture
def _no_enumeration(monkeypatch: pytest.MonkeyPatch) -> None:
    """The method is run although the trials suffice to measure all plans."""
    monkeypatch.setattr(searching, "all_choices", lambda *_: None)


@pytest.mark.usefixtures("_no_enumeration")
def test_dnq_finds_the_best_plan_of_all_in_few_trials() -> None:
    result = found(method="dnq", trials=13 + 12, options=(2, 4), activations=(4, 8))  # of 64 plans
    best = max(trial.objective for trial in result.trials)
    assert best == pytest.approx(best_of_all((2, 4), (4, 8)), rel=1e-4)


@pytest.mark.usefixtures("_no_enumeration")
@pytest.mark.parametrize("limit", [5, 14, 27])
def test_the_exact_solution_is_that_of_brute_force(limit: int) -> None:
    """Of summed losses, which the evaluator measures of single layers."""
    result = found(method="exact", budget=Budget(bit_ops=limit * sum(MACS.values())))
    space = result.space
    environment = Environment(net(), tuple(MACS), batches(), space.actions)
    single = single_layer_choices(space.actions)
    objectives = environment.objectives(list(single.values()))
    losses = loss_table(space.actions, [-objective for objective in objectives])
    fitting = [choice for choice in every_choice(space.actions) if space.fits(choice)]
    assert result.trials[0].choice == min(fitting, key=lambda c: summed_loss(losses, c))
    assert result.exact == result.trials[0].plan


@pytest.mark.parametrize("method", sorted({*METHODS} - {"dnq"}))
def test_every_method_keeps_to_the_budget(method: str) -> None:
    if method in ("tpe", "cmaes"):
        pytest.importorskip("cmaes")
    result = found(method=method, trials=50)
    for trial in result.trials:
        assert trial.plan.cost().bit_ops <= LIMIT  # type: ignore[operator]
    assert set(result.plan.activations) == set(MACS)
    assert len(set(result.uniform.values())) == len(set(result.uniform.activations.values())) == 1
    assert result.uniform.cost().bit_ops == LIMIT  # 4x4, or 2x8
    assert result.objective >= result.uniform_objective


def test_the_same_whatever_the_number_of_workers() -> None:
    assert same(found(workers=1), found(workers=3))


def test_a_search_that_was_killed_goes_on_from_its_journal(tmp_path: Path) -> None:
    path, whole = tmp_path / "search.jsonl", found()
    assert same(found(journal=path), whole)
    lines = path.read_text().splitlines(keepends=True)
    assert json.loads(lines[-1])["bits"][0] in {f"{w}x{a}" for w in WEIGHTS for a in INPUTS}
    path.write_text("".join(lines[: len(lines) // 2]))
    assert same(found(journal=path), whole)
    assert path.read_text().splitlines(keepends=True) == lines


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"budget": Budget(average_bits=3)},
            "^activations: expected a budget of bit_ops, which counts them, got average_bits=3$",
        ),
        (
            {"budget": None, "trade_off": 0.1},
            "^activations: expected a budget of bit_ops, which counts them, got none$",
        ),
        (
            {"budget": Budget(bit_ops=100)},
            "no plan within the options costs so little; .* 476 to 3,808 bit operations",
        ),
        ({"activations": ()}, "^activations: expected at least one number of bits, got none$"),
        ({"activations": (4, 9)}, "^activations: expected"),
    ],
)
def test_what_cannot_be_searched_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((BudgetError, PlanError), match=message):
        found(**changes)


def test_inputs_that_are_quantized_already_are_refused() -> None:
    model = net()
    quantize_activations(model, batches(), {"2": 4})
    with pytest.raises(PlanError, match=r"^2: its inputs are quantized already"):
        search(model, batches(), budget=Budget(bit_ops=LIMIT), activations=(4, 8))


def test_a_network_without_inputs_to_quantize_is_refused() -> None:
    model = nn.Sequential(nn.Embedding(5, 4))
    with pytest.raises(
        PlanError, match=r"^activations: expected layers whose inputs can be quantized, found none$"
    ):
        search(
            model, [torch.zeros(3, dtype=torch.int64)], budget=Budget(bit_ops=1), activations=(4,)
        )


# What is done with the plan.


def test_the_plan_from_the_search_to_the_file(tmp_path: Path) -> None:
    result, model = found(), net()
    quantize_activations(model, batches(), result.plan.activations)
    packed = calibrate(model, result.plan, batches())
    packed.save(tmp_path / "packed.safetensors")
    fresh = net()
    back = Packed.load(tmp_path / "packed.safetensors")
    back.apply(fresh)
    assert {
        name: form.bits for name, form in input_formats(fresh).items()
    } == result.plan.activations
    assert back.plan == result.plan
    assert (
        score(fresh) > 10 * result.objective
    )  # the closed form makes up for what it can: not much worse than the search's estimate
    for name, quantizer in input_quantizers(fresh).items():
        assert torch.equal(
            quantizer.effective_scale(), input_quantizers(model)[name].effective_scale()
        )


def test_the_plan_with_retraining() -> None:
    result, model = found(method="exact"), net()
    quantize_activations(model, batches(), result.plan.activations)
    incremental = Incremental(model, result.plan)
    for _ in incremental:
        pass
    packed = incremental.finish()
    assert {name: form.bits for name, form in packed.activations.items()} == result.plan.activations


def test_all_in_one_call() -> None:
    model = net()
    packed = compress(
        model,
        batches(),
        budget=Budget(bit_ops=LIMIT),
        options=WEIGHTS,
        activations=INPUTS,
        method="exact",
        trials=80,
    )
    result = found(method="exact")
    assert packed.plan == result.plan
    assert packed.plan.activations == result.plan.activations
    assert not input_quantizers(model)
