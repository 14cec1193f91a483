"""A run described as data: what ``octavo run`` reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SkipValidation,
    ValidationError,
    model_validator,
)

from octavo._io import read_yaml
from octavo.activations.quantization import ScaleFit, check_fit
from octavo.deploy.exporting import Form
from octavo.dnq.searching import Method
from octavo.errors import OctavoError, PlanError, RecipeError, nearest
from octavo.formats.codebook import Fit, Per
from octavo.formats.width import Width, read_width, write_width
from octavo.inq.partition import (
    PORTIONS,
    SPARSE_PORTIONS,
    Order,
    check_portions,
    check_straight_through,
    orders_of,
)
from octavo.plan import Budget
from octavo.pruning.surgery import check_sparsity
from octavo.ptq.settings import PtqOrder
from octavo.runs.training import Retraining

__all__ = [
    "Activations", "OneShot", "Prune", "Recipe", "Search", "key_value", "load_recipe", "make_recipe", "override", "yaml_value",
]  # fmt: skip

Bits = Annotated[int, Field(ge=2, le=8, strict=True)]


def _read_width(value: object) -> Width:
    """Read a width; pydantic puts the key before the message."""
    try:
        return read_width(value)
    except PlanError as error:
        raise ValueError(str(error).removeprefix("bits: ")) from error


RecipeWidth = Annotated[  # bits, or a text such as apot6
    Width, PlainValidator(_read_width), PlainSerializer(write_width)
]
Epochs = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=1 << 32)]

UNIONS = (
    "bits",
    "epochs",
    "order",
)  # keys with a value of several forms: pydantic puts the form's name after the key
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # pydantic's names of the error


@dataclass(frozen=True, kw_only=True)
class OneShot:
    """Settings of the closed form: see ``octavo.calibrate``."""

    order: PtqOrder = "gptq"
    damp: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    sequential: bool = True
    correct: bool = False
    absorb: bool = False


@dataclass(frozen=True, kw_only=True)
class Activations:
    """How the inputs of layers are quantized: see ``octavo.quantize_activations``. Inputs are the
    task's calibration.
    """

    bits: Bits | dict[str, Bits]
    fit: Annotated[ScaleFit, SkipValidation] = "mse"
    power_of_two: bool = False
    learned: bool = True

    def __post_init__(self) -> None:
        check_fit(self.fit)


@dataclass(frozen=True, kw_only=True)
class Search:
    """Settings of the search for bits: see ``octavo.search``. Inputs are the task's calibration,
    the seed is the run's.
    """

    budget: Budget
    method: Method = "dnq"
    trials: Annotated[int, Field(ge=1)] = 512
    options: tuple[RecipeWidth, ...] = (Width(2), Width(3), Width(4), Width(5))
    pins: Mapping[str, RecipeWidth] = field(default_factory=dict)
    activations: tuple[Bits, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Settings of pruning: see ``octavo.Surgery``. No learning rate: that of ``retraining``."""

    sparsity: SkipValidation[float | dict[str, float]]  # checked below, with better messages
    epochs: Epochs = 4.0
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)


SECTIONS: dict[Any, Any] = {
    "activations": Activations,
    "prune": Prune,
    "retraining": Retraining,
    "oneshot": OneShot,
    "search": Search,
    "search.budget": Budget,
}


class Recipe(BaseModel):
    """One run: INQ, or the closed form alone.

    Attributes:
        task: name of a task, see ``octavo.runs.task.load_task``.
        options: the task's options.
        teacher: the task's options that differ for the network whose outputs retraining imitates;
            none: the same network.
        bits: bits for every layer, or for layer names and shell patterns; the last that matches
            counts, the others stay in float. ``apot6`` in place of bits: sums of two powers of two.
            Either this or ``search``.
        search: how to search for the bits of each layer.
        activations: how the inputs of layers are quantized; None: not at all.
        method: ``inq`` freezes portion by portion and retrains; ``oneshot`` is the closed form,
            without training.
        warmup: epochs of retraining in full precision before the first weight freezes.
        prune: dynamic network surgery after that: the sparsity it reaches, and its epochs; INQ
            keeps the zeros.
        start: where INQ starts: from the closed form (``oneshot``), from the network as it is
            (``float``), or from the network as it is with every portion made up for in closed form
            by the weights that are still free (``compensated``).
        oneshot: settings of the closed form.
        portions: accumulated shares of frozen weights; with ``prune``, finer ones are the default.
        order: which weights freeze first: one order, or one for each portion.
        straight_through: the portion from which on the network sees free weights at their levels:
            see ``octavo.Incremental``.
        fit: choice of n1.
        per: one n1 for a layer or for each output channel.
        epochs: of retraining after each portion: one number a portion, or one for all but the last,
            which gets none.
        retraining: how to retrain.
        export: the forms to export the network in, see ``octavo.export``.
        control: whether to train the full-precision network equally long, for comparison.
        floats: how the file stores what is not quantized: as it is, rounded to ``float16``, or so
            with norms ``folded`` first.
        seed: of everything that is drawn.
        publish: where to put copies of the result (``.json``) and the network (``.safetensors``),
            from the recipe's folder.

    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    options: dict[str, Any] = {}
    teacher: dict[str, Any] = {}
    bits: RecipeWidth | dict[str, RecipeWidth] | None = None
    search: Search | None = None
    activations: Activations | None = None
    method: Literal["inq", "oneshot"] = "inq"
    warmup: Epochs = 0.0
    prune: Prune | None = None
    start: Literal["compensated", "oneshot", "float"] = "oneshot"
    oneshot: OneShot = OneShot()
    portions: tuple[float, ...] = PORTIONS
    order: Order | tuple[Order, ...] = "magnitude"
    straight_through: Annotated[float, Field(gt=0, le=1)] = 1.0
    fit: Fit = "mse"
    per: Per = "channel"
    epochs: Epochs | tuple[Epochs, ...] = 1.0
    retraining: Retraining = Retraining()
    export: tuple[Form, ...] = ()
    control: bool = True
    floats: Literal["float32", "float16", "folded"] = "float32"
    seed: Seed = 0
    publish: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _finer(cls, content: Any) -> Any:
        sparse = isinstance(content, Mapping) and content.get("prune") is not None
        return {"portions": SPARSE_PORTIONS, **content} if sparse else content

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_portions(self.portions)
        orders_of(self.order, len(self.portions))
        check_straight_through(self.straight_through, self.portions)
        if (self.bits is None) == (self.search is None):
            raise ValueError(
                "expected either bits or search, got "
                + ("neither" if self.bits is None else "both")
            )
        if self.activations and self.search and self.search.activations:
            raise ValueError("expected either activations or search.activations, got both")
        if self.prune and not self.retrains:
            raise ValueError(f"prune: expected method inq, which retrains, got {self.method}")
        if isinstance(self.epochs, tuple) and len(self.epochs) != len(self.portions):
            raise ValueError(
                f"epochs: expected one number, or {len(self.portions)}, one a portion; got {len(self.epochs)}"
            )
        return self

    @property
    def retrains(self) -> bool:
        """Whether the method retrains."""
        return self.method == "inq"

    @property
    def controlled(self) -> bool:
        """Whether there is a control to train."""
        return self.control and self.retrains

    @property
    def schedule(self) -> tuple[tuple[float, float], ...]:
        """Of each stage, the portion that is frozen and the epochs of retraining after that."""
        epochs = (
            self.epochs
            if isinstance(self.epochs, tuple)
            else (*[self.epochs] * (len(self.portions) - 1), 0.0)
        )
        return tuple(zip(self.portions, epochs, strict=True))


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; ``base: other.yaml`` in it names one whose keys it takes over.

    Args:
        path: a YAML file; its keys are text, also inside of ``options``.
        overrides: ``key=value`` each, the value in YAML; ``retraining.learning_rate=0.02`` reaches
            inside.

    Raises:
        RecipeError: not readable, a key that comes twice, an unknown key (with the nearest known
            one), or a value that does not fit.

    """
    return make_recipe(override(_read(Path(path), ()), overrides), str(path))


def make_recipe(content: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from plain data; ``where`` is what errors call it."""
    try:
        return Recipe.model_validate(content)
    except OctavoError as error:
        raise RecipeError(f"{where}: {error}") from error
    except ValidationError as error:
        raise RecipeError(f"{where}: {_explain(error)}") from error


def override(content: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """``content`` with ``key=value`` pairs put in, in place; a dotted key reaches inside.

    Raises:
        RecipeError: not a pair, not YAML, or a key inside of what is no mapping.

    """
    for pair in overrides:
        path, value = key_value(pair, "--set")
        inner: Any = content
        *parents, last = path.split(".")
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise RecipeError(f"--set {pair}: {parent} is not a mapping")
        inner[last] = value
    return content


def key_value(pair: str, flag: str) -> tuple[str, Any]:
    """The two sides of ``key=value``, the value read as YAML; ``flag`` is what errors call its
    place.
    """
    key, equals, text = pair.partition("=")
    if not equals or not key:
        raise RecipeError(f"{flag} {pair}: expected key=value")
    return key, yaml_value(text, f"{flag} {pair}")


def yaml_value(text: str, where: str) -> Any:
    """The value that ``text`` is in YAML; ``where`` is what the error calls it."""
    try:
        return read_yaml(text)
    except ValueError as error:
        raise RecipeError(f"{where}: not a YAML value: {error}") from error


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise RecipeError(f"{path}: is its own base")
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: not a readable recipe: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(
            f"{path}: expected a mapping of keys to values, got {type(content).__name__}"
        )
    base = content.pop("base", None)
    if base is None:
        return content
    return _merge(_read(path.parent / str(base), (*seen, path.resolve())), content)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``over``; mappings are merged key by key, but for ``bits``, which
    is one thing.
    """
    for key, value in over.items():
        deeper = isinstance(value, Mapping) and isinstance(base.get(key), dict) and key != "bits"
        base[key] = _merge(base[key], value) if deeper else value
    return base


def _explain(error: ValidationError) -> str:
    """The first thing that is wrong, in one line; of a value with several forms, where it came
    nearest to one.

    Unknown keys come first: a key that is misspelt is missing too.
    """
    errors = sorted(error.errors(), key=lambda one: one["type"] not in UNKNOWN)
    first = max(
        (one for one in errors if one["loc"][:1] == errors[0]["loc"][:1]),
        key=lambda one: len(one["loc"]),
    )
    loc = first["loc"]
    where = ".".join(
        str(part) for key, part in zip(("", *loc), loc, strict=False) if key not in UNIONS
    )
    if first["type"] in UNKNOWN:
        known = (
            SECTIONS[where.rpartition(".")[0]].__dataclass_fields__
            if loc[1:]
            else Recipe.model_fields
        )
        return f"unknown key {where!r}{nearest(where.rpartition('.')[2], known)}"
    got = (
        "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r}"
    )  # our own say what they got
    return f"{where}: {first['msg']}".removeprefix(": ").replace("Value error, ", "", 1) + got
