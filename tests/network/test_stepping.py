"""Forward passes in step: they stop where they should, take what is sent in, end when they are told
to, and leave nothing behind."""

import contextlib
import contextvars
import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octavo.network.stepping import Stop, stepwise_forward, stopping


class Net(nn.Module):
    """``10 * (2x + 1)``, then another 100 times as often as ``times`` says."""

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        self.twice, self.plus, self.ten, self.hundred = Times(2), Plus(1), Times(10), Times(100)
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        x = self.ten(x=self.plus(self.twice(x)))
        for _ in range(self.times):
            x = self.hundred(x)
        return x


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(float(factor)))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class Plus(Times):
    def forward(self, x: Tensor) -> Tensor:
        return self.factor + x


class Kept(nn.Module):
    """Keeps what its module gave, if it gave anything."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner: Any = inner
        self.output: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> None:
        self.output = self.inner(*args, **kwargs)


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def names(model: nn.Module) -> dict[nn.Module, str]:
    return {module: name for name, module in model.named_modules()}


def hooks(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def test_stops_come_in_order_before_and_after_with_what_was_given() -> None:
    model = Net(times=2)
    with stopping(
        before=[model.hundred, model.ten, model.twice],
        after=[model.twice, model.plus, model.hundred],
    ):
        stops = list(stepwise_forward(model, torch.tensor(3.0)))
    found = [
        (names(model)[s.module], s.args, s.kwargs, None if s.output is None else float(s.output))
        for s in stops
    ]
    assert found == [
        ("twice", (3.0,), {}, None),
        ("twice", (3.0,), {}, 6.0),
        ("plus", (6.0,), {}, 7.0),
        ("ten", (), {"x": 7.0}, None),
        ("hundred", (70.0,), {}, None),
        ("hundred", (70.0,), {}, 7000.0),
        ("hundred", (7000.0,), {}, None),
        ("hundred", (7000.0,), {}, 700000.0),
    ]


def test_what_is_sent_replaces_the_output_and_none_keeps_it() -> None:
    model = Kept(Net())
    inner = model.inner
    with stopping(before=[], after=[inner.twice, inner.plus, inner.hundred]):
        passing = stepwise_forward(model, torch.tensor(3.0))
        assert float(next(passing).output) == 6
        assert float(passing.send(torch.tensor(5.0)).output) == 6  # 5 + 1
        assert float(passing.send(None).output) == 6000
        with pytest.raises(StopIteration):
            passing.send(torch.tensor(-1.0))
    assert float(model.output) == -1


def test_what_is_sent_at_a_stop_before_a_call_changes_nothing() -> None:
    model = Kept(Net())
    with stopping(before=[model.inner.ten], after=[]):
        passing = stepwise_forward(model, (torch.tensor(3.0),))
        next(passing)
        with pytest.raises(StopIteration):
            passing.send(torch.tensor(99.0))
    assert float(model.output) == 7000


def test_a_module_may_be_changed_between_its_inputs_and_its_outputs() -> None:
    model = Net()
    with stopping(before=[model.ten], after=[model.ten]):
        passing = stepwise_forward(model, {"x": torch.tensor(3.0)})
        stop = next(passing)
        with torch.no_grad():
            model.ten.factor.fill_(1000)
        assert float(stop.kwargs["x"]) == 7
        assert float(next(passing).output) == 7000
        passing.close()


def test_a_pass_moves_only_when_it_is_asked_to() -> None:
    model = Kept(Net())
    passing = stepwise_forward(model, torch.tensor(3.0))
    outputs = [model.output]
    assert list(passing) == []
    assert [*outputs, float(model.output)] == [None, 7000]
    never_started = stepwise_forward(model, torch.tensor(3.0))
    never_started.close()


@pytest.mark.parametrize("ends", ["close", "forgotten", "interrupted"])
def test_a_pass_that_ends_early_unwinds_at_once(ends: str) -> None:
    unwound = []

    class Model(Net):
        def forward(self, x: Tensor) -> Tensor:
            try:
                return super().forward(x)
            finally:
                unwound.append(threading.current_thread())

    model = Kept(Model())
    before = threading.active_count()
    with stopping(before=[model.inner.ten], after=[]):
        passing: Any = stepwise_forward(model, torch.tensor(3.0))
        next(passing)
        assert threading.active_count() == before + 1
        if ends == "close":
            passing.close()
        elif ends == "forgotten":
            del passing
        else:
            with pytest.raises(KeyboardInterrupt):
                passing.throw(KeyboardInterrupt)
        assert threading.active_count() == before
    assert len(unwound) == 1
    assert model.output is None


def test_exceptions_of_the_model_are_raised_at_the_driver() -> None:
    class Failing(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.twice(x)
            raise ArithmeticError("inside")

    model = Failing()
    with stopping(before=[model.twice], after=[]):
        passing = stepwise_forward(model, torch.tensor(3.0))
        next(passing)
        with pytest.raises(ArithmeticError, match="inside") as caught:
            next(passing)
        assert any(entry.name == "forward" for entry in caught.traceback)  # where it came from
        assert list(passing) == []
    with pytest.raises(TypeError, match="positional argument"):
        list(stepwise_forward(model, (1, 2, 3)))


def test_user_code_that_catches_exceptions_does_not_swallow_the_end() -> None:
    went_on = []

    class Careless(Net):
        def forward(self, x: Tensor) -> Tensor:
            with contextlib.suppress(Exception):
                self.twice(x)
            went_on.append(True)
            return self.ten(x)  # type: ignore[no-any-return]

    model = Careless()
    with stopping(before=[model.twice, model.ten], after=[]):
        passing = stepwise_forward(model, torch.tensor(3.0))
        next(passing)
        passing.close()
    assert went_on == []


@pytest.mark.parametrize("stage", ["before", "after"])
def test_modules_that_are_called_while_unwinding_do_not_stop_the_end(stage: str) -> None:
    class Tidy(Net):
        def forward(self, x: Tensor) -> Tensor:
            try:
                x = self.twice(x)
            finally:
                x = self.ten(x)
            return x

    model = Tidy()
    with stopping(before=[model.twice, model.ten], after=[model.ten] if stage == "after" else []):
        passing = stepwise_forward(model, torch.tensor(3.0))
        next(passing)
        closing = threading.Thread(target=passing.close, daemon=True)
        closing.start()
        closing.join(20)
        assert not closing.is_alive()


def test_walks_in_step_do_not_mix() -> None:
    model = Net()
    with stopping(before=[model.plus], after=[model.plus, model.hundred]):
        passes = [stepwise_forward(model, torch.tensor(float(i))) for i in range(5)]
        assert [float(next(passing).args[0]) for passing in passes] == [0, 2, 4, 6, 8]
        assert [float(next(passing).output) for passing in reversed(passes)] == [9, 7, 5, 3, 1]
        passes[3].close()
        answers = [
            passing.send(torch.tensor(100.0 + i)) for i, passing in enumerate(passes) if i != 3
        ]
        assert [float(stop.output) for stop in answers] == [1000 * (100 + i) for i in (0, 1, 2, 4)]
        assert [list(passing) for passing in passes] == [[], [], [], [], []]


def test_gradients_are_off_within_and_as_they_were_without() -> None:
    modes = []

    class Watching(Net):
        def forward(self, x: Tensor) -> Tensor:
            modes.append(torch.is_grad_enabled())
            return super().forward(x)

    model = Watching()
    with stopping(before=[], after=[model.hundred]):
        for stop in stepwise_forward(model, torch.tensor(3.0, requires_grad=True)):
            assert not stop.output.requires_grad
            assert torch.is_grad_enabled()
    assert modes == [False]


def test_a_walk_within_inference_mode_is_in_it_too() -> None:
    """Else what is sent in could not be changed in place, as a ReLU may."""
    model = nn.Sequential(Times(2), nn.ReLU(inplace=True))
    with torch.inference_mode(), stopping(before=[], after=model):
        passing = stepwise_forward(model, torch.tensor(-3.0))
        next(passing)
        assert float(passing.send(torch.tensor(-2.0)).output) == 0
        passing.close()
    with stopping(before=[], after=model):
        assert not any(
            stop.output.is_inference() for stop in stepwise_forward(model, torch.tensor(-3.0))
        )


def test_context_variables_are_those_of_the_driver() -> None:
    variable = contextvars.ContextVar("variable", default=0)

    class Reading(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + variable.get()

    model = Kept(Reading())
    variable.set(5)
    list(stepwise_forward(model, torch.tensor(3.0)))
    assert float(model.output) == 8


def test_calls_outside_of_a_walk_do_not_stop() -> None:
    model = Net().requires_grad_(False)
    with stopping(before=model.children(), after=model.children()):
        assert float(model(torch.tensor(3.0))) == 7000
        passing = stepwise_forward(model, torch.tensor(1.0))
        next(passing)
        assert float(model(torch.tensor(3.0))) == 7000  # while a walk stands
        passing.close()
        assert float(model(torch.tensor(3.0))) == 7000


def test_hooks_are_gone_afterwards_even_after_an_error() -> None:
    model = Net()
    own = model.ten.register_forward_hook(lambda module, args, output: output + 1)
    assert hooks(model) == 1
    with stopping(before=[model.ten, model.plus], after=[model.ten]):
        assert hooks(model) == 4
        assert [
            float(s.output)
            for s in stepwise_forward(model, torch.tensor(3.0))
            if s.output is not None
        ] == [71]
    assert hooks(model) == 1
    with pytest.raises(ArithmeticError), stopping(before=[model.ten], after=[model.plus]):
        raise ArithmeticError
    assert hooks(model) == 1
    assert list(stepwise_forward(model, torch.tensor(3.0))) == []
    own.remove()


def test_a_pass_that_is_over_holds_on_to_nothing() -> None:
    model, x = Net(), torch.tensor(3.0)
    seen = weakref.ref(x)
    with stopping(before=[model.twice], after=[]):
        passing = stepwise_forward(model, x)
        stop = next(passing)
        assert isinstance(stop, Stop)
        passing.close()
    del passing, stop, x
    gc.collect()
    assert seen() is None
