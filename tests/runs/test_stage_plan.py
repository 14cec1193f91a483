"""The plans of a step's stages."""

from tests.runs.tiny import recipe

from octavo.runs.retraining import Retraining
from octavo.runs.stage_plan import StagePlan, stage_plans


def test_a_stage_has_the_recipes_settings_and_a_seed_of_its_own() -> None:
    settings = recipe(seed=5)
    plans = stage_plans(settings, [(0.5, 1.0), (1.0, 2.0)], first=-2, learning_rate=0.125)
    assert [(plan.portion, plan.epochs) for plan in plans] == [(0.5, 1.0), (1.0, 2.0)]
    assert {plan.retraining for plan in plans} == {Retraining(learning_rate=0.125, labels=0.5)}
    others = stage_plans(settings, [(0.5, 1.0), (1.0, 2.0)])
    assert others[0] == StagePlan(0.5, 1.0, settings.retraining, others[0].seed)
    assert len({plan.seed for plan in [*plans, *others]}) == 4
    assert stage_plans(recipe(seed=6), [(0.5, 1.0)])[0].seed != others[0].seed
