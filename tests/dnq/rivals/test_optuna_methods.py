"""The rivals of Optuna: without it they say what to install, before anything is spent."""

import sys
from collections.abc import Sequence

import pytest

from octavo.dnq.environment import Measurement
from octavo.dnq.evaluator import Evaluator
from octavo.dnq.journal import Journal
from octavo.dnq.rivals.optuna_methods import cmaes, tpe
from octavo.dnq.space import Action, Choice, Partial, Space
from octavo.errors import OctavoError
from octavo.network.outputs import Part

ACTIONS = (tuple(map(Action.parse, (2, 3))),) * 2


class Untouched:
    """Must not be asked for anything."""

    def full_outputs(self) -> tuple[Part, ...]:
        raise AssertionError

    def measure(
        self, choices: Sequence[Partial], *, keep_outputs: bool = False
    ) -> list[Measurement]:
        raise AssertionError

    def stored_bits(self, choice: Choice) -> float:
        raise AssertionError


@pytest.mark.parametrize(
    ("method", "package"), [(tpe, "optuna"), (cmaes, "optuna"), (cmaes, "cmaes")]
)
def test_without_a_package_the_error_names_the_extra(
    method: object, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    space = Space(("a", "b"), ACTIONS, (10, 10), (1, 1))
    evaluator = Evaluator(space, Untouched(), Journal(None, ACTIONS, {}), 100)
    message = rf"{package}: pip install 'octavo\[search\]'"
    with pytest.raises(OctavoError, match=message) as error:
        method(evaluator)  # type: ignore[operator]
    assert "\n" not in str(error.value)
    assert evaluator.left == 100
