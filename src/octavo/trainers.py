"""INQ inside of another loop: a callback for Hugging Face's ``Trainer`` and one for Lightning's.

The steps of the training are divided into as many equal parts as there are portions but the last;
a portion freezes at the beginning of each part, and the last one at the end. There is one schedule
of the learning rate over all of it: INQ's paper (arXiv 1702.03044, section 2.2) begins it anew with
each portion, which takes a training for each, as in ``examples/``.
"""

import math
from importlib import import_module
from typing import Any

from octavo.errors import OctavoError, PlanError, brief, install
from octavo.inq.incremental import Incremental

__all__ = ["Portions", "for_lightning", "for_transformers"]


def for_transformers(incremental: Incremental) -> Any:
    """Return a callback for Hugging Face's ``Trainer`` that freezes the portions while it trains.

    Make ``Incremental`` on the trainer's model before the trainer, and call its ``finish()`` after
    ``train()``. The training is not to be resumed in the middle.

    Raises:
        OctavoError: transformers is not installed.

    """
    base = _callback("transformers", "TrainerCallback", extra="hf")

    class Freezing(base):  # type: ignore[misc,valid-type]
        portions = Portions(incremental)

        def on_train_begin(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
            self.portions.begin(state.max_steps)

        def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
            self.portions.after(state.global_step)

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.portions.end()

    return Freezing()


def for_lightning(incremental: Incremental) -> Any:
    """Return a callback for Lightning's ``Trainer`` that freezes the portions while it trains.

    Make ``Incremental`` on the module before the trainer fits it, and call its ``finish()`` after
    ``fit()``. The training is not to be resumed in the middle.

    Raises:
        OctavoError: Lightning is not installed.

    """
    base = _callback("lightning.pytorch", "Callback", extra="lightning")

    class Freezing(base):  # type: ignore[misc,valid-type]
        portions = Portions(incremental)

        def on_train_start(self, trainer: Any, *_: Any) -> None:
            self.portions.begin(trainer.estimated_stepping_batches)

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            self.portions.after(trainer.global_step)

        def on_train_end(self, *_: Any) -> None:
            self.portions.end()

    return Freezing()


class Portions:
    """The portions of INQ, spread over the steps of a training.

    Args:
        incremental: freezes them; no portion is frozen yet.

    """

    def __init__(self, incremental: Incremental) -> None:
        self._stages = iter(incremental)
        self._parts = len(incremental.portions) - 1  # the last portion freezes at the end
        self._frozen = 0
        self._steps = 1.0

    def begin(self, steps: float) -> None:
        """Begin a training of so many steps: the first portion freezes.

        Raises:
            PlanError: the number of steps is not known; nothing is frozen.

        """
        if not 1 <= steps < math.inf:  # Lightning says inf, and -1 for data without a length
            raise PlanError(
                "the steps of the training, over which the portions are spread: expected a number "
                f"from 1 on that is known ahead, got {steps}; give the trainer max_steps"
            )
        self._steps = steps
        self.after(0)

    def after(self, step: int) -> None:
        """Freeze the portions that are due after so many steps."""
        while self._frozen < self._parts and step * self._parts >= self._frozen * self._steps:
            self._freeze()

    def end(self) -> None:
        """Freeze all that is left; a training may have been stopped early."""
        while self._frozen <= self._parts:
            self._freeze()

    def _freeze(self) -> None:
        next(self._stages)
        self._frozen += 1


def _callback(library: str, name: str, *, extra: str) -> Any:
    """Return a class of a library, from which its callbacks inherit."""
    try:
        return getattr(import_module(library), name)
    except ImportError as error:
        raise OctavoError(
            f"{library}: importing it failed ({brief(error)}): {install(extra)}"
        ) from error
