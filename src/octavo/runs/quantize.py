"""The steps of a run that quantize its network: inputs, the search for a plan, PTQ and INQ."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from torch import nn

from octavo._interruption import keeping
from octavo._seeds import seed_of, seeded
from octavo.activations.quantization import quantize_activations
from octavo.activations.quantizer import input_formats
from octavo.dnq.belief import Belief
from octavo.dnq.prices import check_budget
from octavo.dnq.searching import check_trials, search
from octavo.dnq.survey import survey
from octavo.formats.width import write_width
from octavo.inq.incremental import Incremental
from octavo.network.forward import device_of, on_device
from octavo.plan import Plan
from octavo.progress import Event
from octavo.pruning.masks import find_kept
from octavo.ptq.calibration import calibrated
from octavo.ptq.freezer import LayerResult
from octavo.runs.job import Job, shared, teacher_of
from octavo.runs.orders import load_orders
from octavo.runs.run_folder import Json, write_json
from octavo.runs.search_details import search_details
from octavo.runs.search_figures import search_figures
from octavo.runs.sections import Activations, Search
from octavo.runs.steps import freeze
from octavo.runs.training import retrain, step_count
from octavo.runs.watching import keeping_beliefs
from octavo.storage.packed import Packed

__all__ = [
    "Quantization",
    "check_search",
    "find_plan",
    "quantize_by_inq",
    "quantize_by_ptq",
    "quantize_inputs",
]

FINALISTS = -3  # the number of the retraining of finalists, from which its seed follows


@dataclass(frozen=True)
class Quantization:
    """The quantized network, and how it came about.

    Attributes:
        packed: the quantized network; it has its norms, which may train on, as they are.
        figures: what ``result.json`` says about PTQ (``layers``) and INQ (``stages``).
        seconds_before: the time that an earlier process spent on it.

    """

    packed: Packed
    figures: Json
    seconds_before: float = 0.0


def quantize_inputs(job: Job, model: nn.Module, settings: Activations | None) -> Json:
    """Quantize the inputs of layers, in place, and return the bits of each layer's inputs."""
    if settings is None:
        return {}
    options = asdict(settings)
    bits = options.pop("bits")
    skipped = quantize_activations(model, job.task.calibration(), bits, **options)
    for skip in skipped:
        job.note(f"{skip.name}: its inputs stay in float: {skip.reason}")
    shared(model, job.ranks)
    widths = {name: form.bits for name, form in input_formats(model).items()}
    low = min(widths.values())
    high = max(widths.values())
    layers = "1 layer" if len(widths) == 1 else f"{len(widths)} layers"
    bits = f"{low}" if low == high else f"{low} to {high}"
    job.note(f"the inputs of {layers} are quantized to {bits} bits")
    return {"activation_bits": widths}


def check_search(job: Job, model: nn.Module) -> None:
    """Raise PlanError or BudgetError unless the recipe's search, if any, fits the network."""
    settings = job.recipe.search
    batches = iter(job.task.calibration())
    batch = next(batches, None)
    if settings is None or batch is None:
        return
    batch = on_device(batch, device_of(model))
    space = survey(
        model, batch, settings.options, settings.pins, settings.activations, others=batches
    )
    check_budget(space, settings.budget)
    check_trials(space, settings.method, settings.trials, settings.refine)


def find_plan(job: Job, settings: Search, model: nn.Module) -> tuple[Plan, Json]:
    """Search for the width of each layer; save the plan as ``plan.yaml``, and the course of the
    search as ``search.json``.

    Where the search is for the bits of inputs too, the inputs of ``model`` are quantized.

    Returns:
        The plan, and what ``result.json`` says about the search.

    """
    plan, figures = job.ranks.once(lambda: _searched(job, settings, model))
    activations = Activations(bits=plan.activations) if plan.activations else None
    return plan, {"search": figures} | quantize_inputs(job, model, activations)


def _searched(job: Job, settings: Search, model: nn.Module) -> tuple[Plan, Json]:
    """Search, save what was found, and return the plan and the figures of the search."""
    job.progress(Event("search", total=settings.trials))
    beliefs: list[Belief] = []
    journal = job.folder / "search.jsonl"
    with keeping(f"the trials so far are kept in {journal}"):
        result = search(
            model,
            job.task.calibration(),
            budget=settings.budget,
            options=settings.options,
            activations=settings.activations,
            method=settings.method,
            trials=settings.trials,
            refine=settings.refine,
            objective=job.task.score if settings.objective == "task" else None,
            pins=settings.pins,
            absorb=job.recipe.ptq.absorb,
            rate=job.recipe.ptq.rate,
            floats=job.recipe.floats or "folded",
            coding=job.recipe.coding,
            seed=job.recipe.seed,
            journal=journal,
            progress=keeping_beliefs(job.progress, beliefs),
            retrain_steps=_retraining(job, settings.retrain_steps),
        )
    result.plan.save(job.folder / "plan.yaml")
    write_json(job.folder / "search.json", search_details(result, beliefs), compact=True)
    widths = ", ".join(f"{name} {width}" for name, width in result.plan.items())
    job.note(
        f"search: {result.objective:.5g}, "
        f"the uniform plan {result.uniform_objective:.5g}; bits: {widths}"
    )
    if result.refinement is not None:
        before = result.refinement.before.objective
        after = result.refinement.after.objective
        job.note(f"search: best trial of {settings.method} {before:.5g}, refined {after:.5g}")
    return result.plan, search_figures(result, settings.method)


def _retraining(job: Job, steps: int | None) -> Callable[[nn.Module], object] | None:
    """Return the function that retrains a finalist for so many steps as the recipe retrains; None
    where there are no steps.

    Every call has the same batches.
    """
    if steps is None:
        return None
    teacher = teacher_of(job)
    epochs = steps / step_count(job.task, 1)
    seed = seed_of(job.recipe.seed, FINALISTS)

    def progress(event: Event) -> None:
        job.progress(replace(event, message="finalist"))

    def retrain_finalist(network: nn.Module) -> float:
        with seeded(seed):
            return retrain(
                network, job.task, epochs, job.recipe.retraining, teacher=teacher, progress=progress
            )

    return retrain_finalist


def quantize_by_ptq(job: Job, model: nn.Module, plan: Plan) -> Quantization:
    """Quantize by PTQ, layer by layer, from the task's calibration inputs; ``model`` stays."""
    return job.ranks.once(lambda: _calibrated(job, model, plan))


def _calibrated(job: Job, model: nn.Module, plan: Plan) -> Quantization:
    recipe = job.recipe
    found = calibrated(
        model,
        plan,
        job.task.calibration(),
        recipe.ptq.settings(recipe.fit, recipe.per),
        recipe.file_form,
        job.progress,
    )
    figures: Json = {} if recipe.ptq.budget is None else {"rate": found.rate}
    figures |= {"layers": [_row(layer) for layer in found.layers]}
    return Quantization(found.packed, figures | {"held_out": _held_out(found.packed)})


def _held_out(packed: Packed) -> Json | None:
    """Return what ``result.json`` says about the inputs that were set aside; None if none were."""
    held_out = packed.held_out
    if held_out is None or not held_out.samples:
        return None
    figures = {
        "divergence": held_out.divergence, "nearest": held_out.nearest, "lost": held_out.lost,
    }  # fmt: skip
    finite = {
        name: value if value is not None and math.isfinite(value) else None
        for name, value in figures.items()
    }
    return {"samples": held_out.samples, **finite}


def _row(layer: LayerResult) -> Json:
    """Return what ``result.json`` says about a layer."""
    return {
        "name": layer.name,
        "bits": write_width(layer.bits),
        "nearest": layer.nearest,
        "compensated": layer.compensated,
    }


def quantize_by_inq(job: Job, model: nn.Module, plan: Plan, retrained: list[Json]) -> Quantization:
    """Quantize by INQ from where the recipe says it starts; ``model`` is changed in place.

    ``retrained`` are the stages in full precision before that, for ``result.json``.
    """
    recipe = job.recipe
    masks = find_kept(model, plan)
    figures: Json = {}
    if recipe.start == "ptq":
        start = quantize_by_ptq(job, model, plan)
        start.packed.apply(model)
        figures = start.figures
    incremental = Incremental(
        model,
        plan,
        portions=recipe.portions,
        order=load_orders(recipe.order),
        fit=recipe.fit,
        per=recipe.per,
        seed=recipe.seed,
        straight_through=recipe.straight_through,
        rate=figures["rate"] if recipe.rate is None else recipe.rate,
        inputs=job.task.calibration() if recipe.start == "refit" else None,
        masks=masks,
    )
    history = freeze(incremental, job)
    figures = figures | {"stages": [*retrained, *history.stages]}
    return Quantization(incremental.finish(), figures, history.seconds_before)
