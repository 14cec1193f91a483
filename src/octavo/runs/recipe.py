"""A run described as data: the recipe that ``octavo run`` reads."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import to_json

from octavo._yaml import read_yaml_file
from octavo.deploy.exporting import Form
from octavo.errors import OctavoError, RecipeError, brief
from octavo.formats.fitting import Fit
from octavo.inq.partition import (
    ORDER,
    PORTIONS,
    SPARSE_PORTIONS,
    STRAIGHT_THROUGH,
    check_portions,
    check_straight_through,
)
from octavo.network.devices import AUTO
from octavo.plan import Budget
from octavo.ptq.file_form import FileForm
from octavo.ptq.settings import PtqSettings
from octavo.runs.old_words import with_new_words
from octavo.runs.orders import RecipeOrder, check_orders, read_orders, write_orders
from octavo.runs.overrides import override
from octavo.runs.plan_files import with_plan_file
from octavo.runs.retraining import Retraining
from octavo.runs.sections import Activations, Epochs, Prune, Ptq, RecipePer, RecipeWidth, Search
from octavo.runs.unknown_keys import explain
from octavo.storage.layer_strings import Coding
from octavo.storage.packed import FloatForm

__all__ = ["Recipe", "load_recipe", "make_recipe", "recorded_recipe"]

MOST_BASES = 16  # recipes of which each is the base of the one before


def _recordable(options: dict[str, Any]) -> dict[str, Any]:
    """Raise ValueError unless ``recipe.json`` can record the options of a task."""
    try:
        to_json(options)
    except ValueError as error:
        raise ValueError(f"expected data that JSON can hold: {brief(error)}") from error
    return options


TaskOptions = Annotated[dict[str, Any], AfterValidator(_recordable)]
Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
Orders = Annotated[
    RecipeOrder | tuple[RecipeOrder, ...],
    PlainValidator(read_orders),
    PlainSerializer(write_orders, when_used="json"),
]

SECTIONS: dict[str, Any] = {
    "retraining": Retraining,
    "activations": Activations,
    "prune": Prune,
    "ptq": Ptq,
    "ptq.budget": Budget,
    "search": Search,
    "search.budget": Budget,
}


class Recipe(BaseModel):
    """A recipe is one run as data: INQ, or post-training quantization (PTQ) alone.

    Attributes:
        task: the name of a task, see ``octavo.runs.task.load_task``.
        options: the options of the task.
        teacher: the options of the task that differ for the teacher, whose outputs retraining
            imitates. Without any, the teacher is the task's own network in full precision.
        bits: the width of every layer, or the widths by layer name and shell pattern, see
            ``octavo.Plan``; a layer that none matches stays in float. ``apot6`` instead of a number
            stands for sums of two powers of two, ``fp4`` and ``int8`` for the numbers of these
            formats. ``plan.yaml`` is the file of a plan. A recipe has one of ``bits`` and
            ``search``.
        search: the settings of the search for the width of each layer.
        activations: the settings of the quantizers of layer inputs; None quantizes no input.
        method: ``inq`` freezes portion by portion and retrains in between; ``ptq`` is
            post-training quantization, without training.
        warmup: epochs of retraining in full precision before the first weight freezes.
        prune: the settings of dynamic network surgery, which follows the warm-up. INQ keeps the
            zeros.
        start: the weights that INQ starts from. ``ptq`` starts from the result of PTQ. ``float``
            starts from the network as it is. ``refit`` does so too, and as each portion freezes,
            the free weights are refitted to the layer's outputs.
        ptq: the settings of PTQ.
        portions: accumulated shares of frozen weights; with ``prune``, finer ones are the default.
        order: the order in which weights freeze: one for all portions, or one for each portion.
            ``path/to/file.py:function`` is a function of the user's, looked for from the recipe's
            folder and then from the working directory.
        straight_through: the portion from which on the network sees free weights at their levels:
            see ``octavo.Incremental``.
        rate: how much a smaller file is worth to INQ, see ``octavo.Incremental``. None, the
            default, is the rate of ``ptq``; with ``ptq.budget``, the rate that calibration finds.
        fit: the choice of the largest exponent.
        per: one largest exponent per ``tensor``, per ``channel``, or for every 32 inputs of a
            channel, ``[group, 32]``.
        epochs: epochs of retraining after each portion: one number for each portion, or one number
            for all portions but the last, which gets none.
        retraining: the settings of retraining.
        export: the forms to export the network in, see ``octavo.export``.
        control: True trains the full-precision network equally long, for comparison.
        floats: the form in which the file stores the tensors that are not quantized: as they are
            (``float32``), rounded (``float16``), or rounded after batch norms were reduced to a
            scale and a shift (``folded``). None, the default, is ``float32``; with a rate, or a
            budget of ``bytes`` or ``ratio``, it is ``folded``, unless that changes outputs: see
            ``octavo.calibrate``.
        coding: the coding of the file, ``fast`` or ``small``: see ``octavo.Packed``.
        device: the device of the networks: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``. ``auto`` is
            a GPU that CUDA sees, or else where the task puts its network.
        seed: the seed of everything that is drawn.
        publish: the path without an ending for copies of the result (``.json``) and of the network
            (``.safetensors``), relative to the recipe's folder.

    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    options: TaskOptions = {}
    teacher: TaskOptions = {}
    bits: RecipeWidth | dict[str, RecipeWidth] | None = None
    search: Search | None = None
    activations: Activations | None = None
    method: Literal["inq", "ptq"] = "inq"
    warmup: Epochs = 0.0
    prune: Prune | None = None
    start: Literal["refit", "ptq", "float"] = "ptq"
    ptq: Ptq = Ptq()
    portions: tuple[float, ...] = PORTIONS
    order: Orders = ORDER
    straight_through: Annotated[float, Field(gt=0, le=1)] = STRAIGHT_THROUGH
    rate: Annotated[float | None, Field(ge=0, allow_inf_nan=False, validate_default=True)] = None
    fit: Fit = PtqSettings.fit
    per: RecipePer = PtqSettings.per
    epochs: Epochs | tuple[Epochs, ...] = 1.0
    retraining: Retraining = Retraining()
    export: tuple[Form, ...] = ()
    control: bool = True
    floats: Annotated[FloatForm | None, Field(validate_default=True)] = None
    coding: Coding = FileForm.coding
    device: str = AUTO
    seed: Seed = 0
    publish: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _default_portions(cls, content: Any) -> Any:
        """Give a recipe that prunes the finer portions, unless it has portions of its own."""
        sparse = isinstance(content, Mapping) and content.get("prune") is not None
        return {"portions": SPARSE_PORTIONS, **content} if sparse else content

    @field_validator("rate")
    @classmethod
    def _default_rate(cls, rate: float | None, info: ValidationInfo) -> float | None:
        """Say the rate of calibration where INQ has none of its own; with a budget, calibration
        has yet to find it.
        """
        ptq = info.data.get("ptq", Ptq())
        if rate is not None or ptq.budget is not None:
            return rate
        return ptq.rate if info.data.get("method") == "inq" else PtqSettings.rate

    @field_validator("floats")
    @classmethod
    def _default_floats(cls, floats: FloatForm | None, info: ValidationInfo) -> FloatForm | None:
        """Say ``float32`` where nothing asks for a small file."""
        ptq = info.data.get("ptq", Ptq())
        budgets = [ptq.budget, getattr(info.data.get("search"), "budget", None)]
        of_file = next((each for each in budgets if each is not None and each.of_file), None)
        rate = ptq.rate or info.data.get("rate", 0.0)
        return FileForm.asked(floats, None, rate=rate, budget=of_file).floats

    @model_validator(mode="after")
    def _check(self) -> Self:
        portions = len(self.portions)
        check_portions(self.portions)
        check_orders(self.order, portions)
        check_straight_through(self.straight_through, self.portions)
        if (self.bits is None) == (self.search is None):
            got = "neither" if self.bits is None else "both; set one of them to null"
            raise ValueError(f"expected either bits or search, got {got}")
        if self.activations and self.search and self.search.activations:
            raise ValueError("expected either activations or search.activations, got both")
        if self.ptq.budget and self.retrains and self.start != "ptq":
            raise ValueError(f"ptq.budget: expected start ptq, which calibrates, got {self.start}")
        if self.rate and not self.retrains:
            raise ValueError(f"rate: expected method inq, or ptq.rate, got {self.method}")
        if self.prune and not self.retrains:
            raise ValueError(f"prune: expected method inq, which retrains, got {self.method}")
        if self.search and self.search.retrain_steps and not self.retrains:
            raise ValueError(
                f"search.retrain_steps: expected method inq, which retrains, got {self.method}"
            )
        if not (self.publish or "").isprintable():
            raise ValueError(f"publish: expected a path of printable text, got {self.publish!r}")
        if isinstance(self.epochs, tuple) and len(self.epochs) != portions:
            raise ValueError(
                f"epochs: expected one number, or {portions}, one a portion; got {len(self.epochs)}"
            )
        return self

    @property
    def file_form(self) -> FileForm:
        """The form of the packed file."""
        return FileForm(floats=self.floats, coding=self.coding)

    @property
    def retrains(self) -> bool:
        """True if the method retrains."""
        return self.method == "inq"

    @property
    def controlled(self) -> bool:
        """True if there is a control to train."""
        return self.control and self.retrains

    @property
    def schedule(self) -> tuple[tuple[float, float], ...]:
        """One pair for each stage: the accumulated portion, and the epochs of retraining after."""
        if isinstance(self.epochs, tuple):
            epochs = self.epochs
        else:
            epochs = (*[self.epochs] * (len(self.portions) - 1), 0.0)
        return tuple(zip(self.portions, epochs, strict=True))


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; ``base: other.yaml`` in it names a recipe whose keys it takes over.

    Args:
        path: a YAML file; its keys are text, also inside of ``options``.
        overrides: texts of the form ``key=value``, the value in YAML;
            ``retraining.learning_rate=0.02`` reaches inside of a section.

    Raises:
        RecipeError: the file is not readable, a key comes twice, a key is unknown (the message has
            the nearest known one), or a value does not fit.

    """
    path = Path(path)
    content = override(_read(path, ()), overrides)
    return make_recipe(content, str(path), folder=path.parent)


def make_recipe(content: Mapping[str, Any], where: str, *, folder: Path | None = None) -> Recipe:
    """Make a recipe from plain data.

    Args:
        content: the keys and values; old words raise a ``DeprecationWarning``.
        where: the file or the option that the recipe comes from, for errors.
        folder: the folder of the recipe, where ``order: file.py:function`` and ``bits: plan.yaml``
            are looked for first.

    Raises:
        RecipeError: an unknown key, or a value that does not fit.

    """
    new_content = with_new_words(content, where)
    try:
        new_content = with_plan_file(new_content, folder or Path())
    except OctavoError as error:
        raise RecipeError(f"{where}: {error}") from error
    return _validated(new_content, where, folder)


def recorded_recipe(content: Mapping[str, Any], where: str) -> Recipe:
    """Make the recipe that a run folder or a result has recorded; old words raise no warning.

    Raises:
        RecipeError: an unknown key, or a value that does not fit.

    """
    return _validated(with_new_words(content, where, warn=False), where, None)


def _validated(content: Mapping[str, Any], where: str, folder: Path | None) -> Recipe:
    try:
        return Recipe.model_validate(content, context={"folder": folder or Path()})
    except OctavoError as error:
        raise RecipeError(f"{where}: {error}") from error
    except ValidationError as error:
        known = {name: tuple(section.__dataclass_fields__) for name, section in SECTIONS.items()}
        message = explain(error, {"": tuple(Recipe.model_fields), **known})
        raise RecipeError(f"{where}: {message}") from error


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """Return the keys of a recipe and of its bases; ``seen`` are the recipes that led here."""
    try:
        resolved = path.resolve()
        content = read_yaml_file(path)
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        raise RecipeError(f"{path}: not a readable recipe: {cause}") from error
    if resolved in seen:
        raise RecipeError(f"{path}: is its own base")
    if len(seen) == MOST_BASES:
        raise RecipeError(
            f"{path}: expected at most {MOST_BASES} recipes, each the base of another"
        )
    if not isinstance(content, dict):
        got = type(content).__name__
        raise RecipeError(f"{path}: expected a mapping of keys to values, got {got}")
    content = with_new_words(content, str(path))
    base = content.pop("base", None)
    if base is None:
        return content
    return _merge(_read(path.parent / str(base), (*seen, resolved)), content)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay the keys of ``over`` over ``base``, in place, and return it.

    Mappings are merged key by key, but for ``bits``, because a plan is one thing.
    """
    for key, value in over.items():
        deeper = isinstance(value, Mapping) and isinstance(base.get(key), dict) and key != "bits"
        base[key] = _merge(base[key], value) if deeper else value
    return base
