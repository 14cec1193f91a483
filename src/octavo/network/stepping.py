"""Forward passes that stop at modules and go on: in step, they let a layer be changed between its
inputs and its outputs.

A pass runs in a thread of its own, of which only one moves at a time; so the model's code is as it
is, traced by nobody.
"""

import contextlib
import contextvars
import threading
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import torch
from torch import nn

from octavo.network.calling import Inputs, call, hooked

__all__ = ["Stop", "stopping", "walk"]

_thread = threading.local()  # .pause is set in the threads that walk


@dataclass(frozen=True)
class Stop:
    """A forward pass stands before a module's call, or after it, where ``output`` may still be
    replaced.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None


class _Ended(BaseException):
    """Unwinds a forward pass that nobody waits for any more; user code that catches exceptions must
    not catch it.
    """


def stopping(
    before: Iterable[nn.Module], after: Iterable[nn.Module]
) -> contextlib.AbstractContextManager[None]:
    """While this lasts, every walk stops before and after calls of these modules."""
    first = [module.register_forward_pre_hook(_stop_before, with_kwargs=True) for module in before]
    return hooked(
        first + [module.register_forward_hook(_stop_after, with_kwargs=True) for module in after]
    )


def walk(model: nn.Module, inputs: Inputs) -> Generator[Stop, Any, None]:
    """One forward pass without gradients: yields where it stops; what is sent in replaces the
    output there, unless None.

    Closing it ends the pass where it stands. What the model raises is raised here.
    """
    stops: SimpleQueue[Stop | BaseException | None] = SimpleQueue()
    answers: SimpleQueue[Any] = SimpleQueue()
    inference = torch.is_inference_mode_enabled()  # each thread has its own

    def pause(stop: Stop) -> Any:
        stops.put(stop)
        answer = answers.get()
        if answer is _Ended:
            answers.put(_Ended)  # for the next stop: what unwinds may call modules too
            raise _Ended
        return answer

    def run() -> None:
        _thread.pause = pause
        try:
            if answers.get() is not _Ended:
                with torch.inference_mode(inference), torch.no_grad():
                    call(model, inputs)
            stops.put(None)
        except BaseException as error:
            stops.put(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True)
    thread.start()
    answer = None
    try:
        while True:
            answers.put(answer)
            stop = stops.get()
            if isinstance(stop, BaseException):
                raise stop
            if stop is None:
                return
            answer = yield stop
    finally:
        answers.put(_Ended)
        thread.join()


def _stop_before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if pause := getattr(_thread, "pause", None):
        pause(Stop(module, args, kwargs))


def _stop_after(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> Any:
    pause = getattr(_thread, "pause", None)
    return pause(Stop(module, args, kwargs, output)) if pause else None
