"""The sections of a recipe: settings of one part of a run each, checked by pydantic."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, PlainSerializer, PlainValidator, SkipValidation

from octavo.activations.quantization import ActivationSettings, ScaleFit, check_fit
from octavo.dnq.settings import METHOD, REFINE, TRIALS
from octavo.errors import PlanError
from octavo.formats.fitting import Fit, Per, read_per
from octavo.formats.width import Width, read_width, write_width
from octavo.plan import Budget
from octavo.pruning.surgery import check_sparsity
from octavo.ptq.settings import PtqOrder, PtqSettings

__all__ = ["Activations", "Epochs", "Prune", "Ptq", "RecipePer", "RecipeWidth", "Search"]

Bits = Annotated[int, Field(ge=2, le=8, strict=True)]
Epochs = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _read_width(value: object) -> Width:
    """Read a width; pydantic puts the key before the message."""
    try:
        return read_width(value)
    except PlanError as error:
        raise ValueError(str(error).removeprefix("bits: ")) from error


def _read_per(value: object) -> Per:
    """Read what shares an exponent; pydantic puts the key before the message."""
    try:
        return read_per(value, "per")
    except PlanError as error:
        raise ValueError(str(error).removeprefix("per: ")) from error


def _write_per(per: Per) -> str | list[str | int]:
    return per if isinstance(per, str) else list(per)


RecipePer = Annotated[  # in YAML, a group is [group, 32]
    Per, PlainValidator(_read_per), PlainSerializer(_write_per)
]
RecipeWidth = Annotated[  # bits, or a text such as apot6
    Width, PlainValidator(_read_width), PlainSerializer(write_width)
]


@dataclass(frozen=True, kw_only=True)
class Ptq:
    """The settings of post-training quantization: see ``octavo.calibrate``.

    Its ``fit`` and ``per`` are keys of the recipe itself, because INQ has them too.

    Attributes:
        order: the order in which weights freeze.
        damp: share of the mean diagonal that is added to the diagonal of the second moment.
        sequential: each layer sees the layers ahead of it quantized.
        absorb: batch norms absorb a scale of the channels ahead of them.
        rate: how much a smaller file is worth.
        budget: instead of a rate, a limit on the file (``bytes``, ``ratio``): the rate is found
            that meets it. With INQ after it, it holds for the calibrated network.

    """

    order: PtqOrder = PtqSettings.order
    damp: Annotated[float, Field(ge=0, allow_inf_nan=False)] = PtqSettings.damp
    sequential: bool = PtqSettings.sequential
    absorb: bool = PtqSettings.absorb
    rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = PtqSettings.rate
    budget: Budget | None = PtqSettings.budget

    def __post_init__(self) -> None:
        self.settings(PtqSettings.fit, PtqSettings.per)  # raises where they do not fit together

    def settings(self, fit: Fit, per: Per) -> PtqSettings:
        """Return the settings of PTQ, with what a recipe has beside them."""
        return PtqSettings(fit=fit, per=per, **vars(self))


@dataclass(frozen=True, kw_only=True)
class Activations:
    """The settings of the quantizers of layer inputs: see ``octavo.quantize_activations``.

    They are calibrated on the task's calibration inputs.
    """

    bits: Bits | dict[str, Bits]
    fit: Annotated[ScaleFit, SkipValidation] = ActivationSettings.fit
    power_of_two: bool = ActivationSettings.power_of_two
    learned: bool = ActivationSettings.learned

    def __post_init__(self) -> None:
        check_fit(self.fit)


@dataclass(frozen=True, kw_only=True)
class Search:
    """The settings of the search for a plan: see ``octavo.search``.

    It uses the task's calibration inputs and the seed of the recipe.

    Attributes:
        budget: the limit on the packed file (``bytes``, ``ratio``) or on the cost of the plan.
        method: the name of a method; the task's file may register methods of its own.
        trials: how many plans may be scored.
        refine: the last share of the trials, which goes to refinement.
        objective: ``divergence`` compares outputs with those in full precision; ``task`` is the
            task's ``score``. The plan is then fitted to the data that ``score`` reads.
        retrain_steps: number of steps of the recipe's own retraining after each portion of INQ,
            after which finalists are compared; None compares them without retraining.
        options: the widths that a layer may get; None for the default of ``octavo.search``.
        pins: layers whose width is given.
        activations: the bits that the inputs of layers may get.

    """

    budget: Budget
    method: str = METHOD
    trials: Annotated[int, Field(ge=1)] = TRIALS
    refine: Annotated[float, Field(ge=0, lt=1)] = REFINE
    objective: Literal["divergence", "task"] = "divergence"
    retrain_steps: Annotated[int, Field(ge=1)] | None = None
    options: tuple[RecipeWidth, ...] | None = None
    pins: Mapping[str, RecipeWidth] = field(default_factory=dict)
    activations: tuple[Bits, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Prune:
    """The settings of pruning by dynamic network surgery: see ``octavo.Surgery``.

    Without a learning rate of its own, that of ``retraining`` counts.
    """

    sparsity: SkipValidation[float | dict[str, float]]  # checked below, with better messages
    epochs: Epochs = 4.0
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
