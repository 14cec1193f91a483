"""Forward passes that stop at modules and go on when they are told to. Several of them run in step,
and a layer can be changed after its inputs have arrived and before its outputs are computed.

Each pass runs in a thread of its own, and only one thread moves at a time. So the model's code runs
as it is, and nothing needs to trace it.
"""

import contextlib
import contextvars
import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch
from torch import nn

from octavo.errors import PlanError, brief
from octavo.network.forward import Inputs, call, hooked
from octavo.network.thread_state import ThreadState

__all__ = ["Stop", "stepwise_forward", "stopping"]

_thread = threading.local()  # .pause is set in the threads of passes, and nowhere else


@dataclass(frozen=True)
class Stop:
    """A forward pass stands before a call of ``module``, or after it, with the call's ``output``,
    which may still be replaced.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None


class _Ended(BaseException):
    """The exception that unwinds a forward pass that nobody waits for any more. It is no
    ``Exception``, so that user code which catches exceptions does not catch it.
    """


def stopping(
    before: Iterable[nn.Module], after: Iterable[nn.Module]
) -> contextlib.AbstractContextManager[None]:
    """Stop every pass before calls of some modules and after calls of others, while this lasts."""
    hooks = [module.register_forward_pre_hook(_stop_before, with_kwargs=True) for module in before]
    hooks += [module.register_forward_hook(_stop_after, with_kwargs=True) for module in after]
    return hooked(hooks)


def stepwise_forward(
    model: nn.Module,
    inputs: Inputs,
    world: contextlib.AbstractContextManager[None] | None = None,
    watch: contextlib.AbstractContextManager[Any] | None = None,
) -> Generator[Stop, Any, None]:
    """Run one forward pass without gradients, and yield where it stops. What is sent into the
    generator replaces the output there, unless it is None.

    Closing it ends the pass where it stands. What the model raises is raised here. The pass has the
    settings of the thread that starts it, such as autocast and the default device.

    Args:
        model: the model.
        inputs: the inputs of the pass, which it may write into.
        world: entered whenever the pass moves: see ``octavo.network.world``.
        watch: entered in the thread of the pass, for as long as it lasts.

    Raises:
        PlanError: the system gives no more threads.

    """
    world = world or contextlib.nullcontext()
    passing = _Pass()
    state = ThreadState.current()

    def run() -> None:
        with state.entered(), torch.no_grad(), watch or contextlib.nullcontext():
            call(model, inputs)

    target = contextvars.copy_context().run
    thread = threading.Thread(target=target, args=(passing.run, run), daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise PlanError(
            "calibration inputs: expected as many batches as the system has threads for, got "
            f"{brief(error)}; give the same inputs in fewer and larger batches"
        ) from error
    answer = None
    try:
        while (stop := _in_world(world, passing, answer)) is not None:
            answer = yield stop
    finally:
        with world:  # the model's code may catch the end
            passing.end()
            thread.join()


def _in_world(
    world: contextlib.AbstractContextManager[None], passing: "_Pass", answer: Any
) -> Stop | None:
    with world:
        return passing.resume(answer)


class _Pass:
    """The two ends of a forward pass: ``run`` and ``pause`` belong to its own thread, ``resume``
    and ``end`` to the thread that drives it.
    """

    def __init__(self) -> None:
        self._stops: SimpleQueue[Stop | BaseException | None] = SimpleQueue()
        self._answers: SimpleQueue[Any] = SimpleQueue()

    def run(self, forward: Callable[[], None]) -> None:
        """Wait for the first answer, then run the whole pass."""
        _thread.pause = self.pause
        try:
            if self._answers.get() is not _Ended:
                forward()
            self._stops.put(None)
        except BaseException as error:  # noqa: BLE001  # resume raises it in the other thread
            self._stops.put(error)

    def pause(self, stop: Stop) -> Any:
        """Report a stop and wait for what is sent in."""
        self._stops.put(stop)
        answer = self._answers.get()
        if answer is _Ended:
            self._answers.put(_Ended)  # for the next stop: what unwinds may call modules too
            raise _Ended
        return answer

    def resume(self, answer: Any) -> Stop | None:
        """Go on to the next stop; None at the end of the pass."""
        self._answers.put(answer)
        stop = self._stops.get()
        if isinstance(stop, BaseException):
            raise stop
        return stop

    def end(self) -> None:
        """End the pass where it stands."""
        self._answers.put(_Ended)


def _stop_before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    pause = getattr(_thread, "pause", None)
    if pause:
        pause(Stop(module, args, kwargs))


def _stop_after(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Any:
    pause = getattr(_thread, "pause", None)
    return pause(Stop(module, args, kwargs, output)) if pause else None
