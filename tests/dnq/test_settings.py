"""The defaults of a search: one home, from which the function, the recipe and the CLI take them."""

import inspect
from typing import get_args, get_type_hints

from octavo.cli.searching import search as search_command
from octavo.dnq import methods
from octavo.dnq.searching import search
from octavo.dnq.settings import METHOD, METHODS, OBJECTIVES, REFINE, TRIALS
from octavo.plan import Budget
from octavo.runs.sections import Search


def test_every_name_is_a_method_and_every_method_has_a_name() -> None:
    assert tuple(methods._METHODS) == METHODS
    assert METHOD in METHODS


def test_the_function_the_recipe_and_the_command_have_the_same_defaults() -> None:
    defaults = {"method": METHOD, "trials": TRIALS, "refine": REFINE, "options": None}
    in_function = {name: inspect.signature(search).parameters[name].default for name in defaults}
    assert in_function == defaults
    section = section_of()
    assert {name: getattr(section, name) for name in defaults} == defaults
    in_command = inspect.signature(search_command).parameters
    assert in_command["method"].default == METHOD
    assert in_command["trials"].default == TRIALS
    assert in_command["refine"].default == REFINE
    assert in_command["options"].default is None


def test_the_recipe_and_the_command_have_the_same_objectives() -> None:
    assert get_args(get_type_hints(Search)["objective"]) == OBJECTIVES
    assert section_of().objective == OBJECTIVES[0]
    assert inspect.signature(search_command).parameters["objective"].default == OBJECTIVES[0]


def section_of() -> Search:
    return Search(budget=Budget(average_bits=3))
