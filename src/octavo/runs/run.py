"""One run of a recipe, resumable: float score, quantization, control, packed file, score of the
reloaded network.
"""

import platform
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn

from octavo._io import write_atomically
from octavo.activations.quantization import quantize_activations
from octavo.activations.quantizer import input_formats
from octavo.deploy.exporting import Exported, check_forms, export_checked, load_onnx
from octavo.dnq.searching import search
from octavo.dnq.survey import survey
from octavo.errors import RecipeError
from octavo.formats.width import write_width, write_widths
from octavo.inq.incremental import Incremental
from octavo.network.calling import device_of, on_device
from octavo.plan import Plan, matching_plan, planned_layers
from octavo.progress import Event
from octavo.pruning.masks import kept_masks
from octavo.ptq.calibration import LayerResult, calibrate
from octavo.runs.folder import Json, check_folder, digest_of, finished, write_json
from octavo.runs.recipe import Activations, Recipe, Search
from octavo.runs.stages import Job, Observer, Track, control_score, prune, train, warm_up
from octavo.runs.task import Task, load_task, model_of
from octavo.storage.coding import grouped as coding
from octavo.storage.float_tensors import with_float16, with_folded_norms
from octavo.storage.packed import Packed, check_state

__all__ = ["environment", "exported_scores", "publish", "run"]


def run(recipe: Recipe, folder: Path, observer: Observer) -> Json:
    """Do all that the recipe says into ``folder``; a run that was cut off continues after its last
    whole stage.

    Returns:
        What ``result.json`` in the folder holds.

    Raises:
        RecipeError: the folder holds the run of another recipe or of other weights, or the task
            cannot be loaded.
        PlanError: the network does not fit the recipe, or the calibration inputs do not fit the
            network.
        TrainingError: retraining failed; the last whole stage is kept.
        ExportError: the network cannot be exported in a form that the recipe lists, or that form's
            libraries are missing.
        FormatError: a file of the folder is damaged, or half a run of other weights.

    """
    check_folder(folder, recipe)
    check_forms(recipe.export)
    started, task = time.monotonic(), load_task(recipe.task, recipe.options)
    model, copy = _two_models(task, recipe.task)
    given, digest = matching_plan(model, recipe.bits or {}), digest_of(copy)
    check_state(model)
    if recipe.search is None:
        planned_layers(model, given)
    if done := finished(folder, recipe, digest):
        observer.note(f"{folder} is complete: nothing to do")
        return done
    result: Json = {
        "recipe": recipe.model_dump(mode="json"),
        "environment": environment(),
        "float_digest": digest,
        "labels_used": recipe.retrains and recipe.retraining.labels > 0,
        "float_score": float(task.score(copy)),
    }
    observer.note(f"full precision: {result['float_score']:.2f}")
    job = Job(recipe, task, folder, digest, observer)
    if recipe.search is not None:  # what does not fit is found before the warm-up
        _survey(job, recipe.search, model)
    rounded = _quantize_inputs(job, model, recipe.activations)
    log = warm_up(model, job) + prune(model, job) if recipe.retrains else []
    plan, searched = _search(job, recipe.search, model) if recipe.search else (given, {})
    packed, how = (
        _by_retraining(job, model, plan, log)
        if recipe.retrains
        else _in_closed_form(job, model, plan)
    )
    _begin(job)
    file = folder / "packed.safetensors"
    float_bytes = packed.float_bytes
    packed = _slim(packed, model, recipe)
    packed.save(file)
    result |= (
        rounded
        | searched
        | how
        | {"score": _score_reloaded(recipe, task, file)}
        | _exports(job, packed)
    )
    observer.note(f"quantized, packed and loaded again: {result['score']:.2f}")
    if recipe.controlled:
        result["control_score"] = control_score(job)
    earlier = result.pop("earlier", 0.0)
    result |= _sizes(packed, float_bytes) | {
        "seconds": round(earlier + time.monotonic() - started, 1)
    }
    write_json(folder / "result.json", result)
    return result


def publish(recipe: Recipe, recipe_path: Path, folder: Path) -> list[Path]:
    """Copy the result and the packed network to where the recipe publishes them, if it does."""
    if recipe.publish is None:
        return []
    stem = recipe_path.parent / recipe.publish
    pairs = [
        (folder / "result.json", Path(f"{stem}.json")),
        (folder / "packed.safetensors", Path(f"{stem}.safetensors")),
    ]
    for source, target in pairs:
        content = source.read_bytes()
        write_atomically(target, lambda file, content=content: file.write(content))  # type: ignore[misc]
    return [target for _, target in pairs]


def exported_scores(exported: Exported, packed: Packed, task: Task, name: str) -> Json:
    """What rounded activations make of the score; nothing for the forms that compute what the
    network does.
    """
    if exported.form != "int8":
        return {}
    model = model_of(task, name)
    packed.apply(model)
    return {
        "score": float(task.score(load_onnx(exported.path))),
        "packed_score": float(task.score(model)),
    }


def _exports(job: Job, packed: Packed) -> Json:
    """Every form that the recipe lists, in the run's folder."""
    found = Json()
    for form in job.recipe.export:
        model = model_of(job.task, job.recipe.task)
        path = job.folder / (f"{form}.safetensors" if form == "mx" else f"{form}.onnx")
        made = export_checked(model, packed, path, form=form, example=list(job.task.calibration()))
        scores = exported_scores(made, packed, job.task, job.recipe.task)
        found[form] = asdict(made) | {"path": path.name} | scores
        job.observer.note(
            f"exported: {path}, {made.bytes:,} bytes"
            + (f", score {scores['score']:.2f}" if scores else "")
        )
    return {"exports": found} if found else {}


def _two_models(task: Task, name: str) -> tuple[nn.Module, nn.Module]:
    model, copy = model_of(task, name), model_of(task, name)
    if copy is model:  # it would be its own teacher and its own control
        raise RecipeError(
            f"task {name!r}: expected a new copy of the network from every call of model(), got one twice"
        )
    return model, copy


def _begin(job: Job) -> None:
    """Note down in the folder whose run this is, once the recipe is known to fit the network."""
    write_json(job.folder / "recipe.json", job.recipe.model_dump(mode="json"))


def _quantize_inputs(job: Job, model: nn.Module, activations: Activations | None) -> Json:
    """Quantize the inputs of layers as the recipe or the search says, and what came of it."""
    if activations is None:
        return {}
    wanted = asdict(activations)
    skipped = quantize_activations(model, job.task.calibration(), wanted.pop("bits"), **wanted)
    for skip in skipped:
        job.observer.note(f"{skip.name}: its inputs stay in float: {skip.reason}")
    bits = {name: form.bits for name, form in input_formats(model).items()}
    job.observer.note(
        f"inputs of {len(bits)} layers quantized, {min(bits.values())} to {max(bits.values())} bits"
    )
    return {"activation_bits": bits}


def _survey(job: Job, wanted: Search, model: nn.Module) -> None:
    """Raise PlanError or BudgetError unless the search fits the network."""
    batch = next(iter(job.task.calibration()), None)
    if batch is not None:
        batch = on_device(batch, device_of(model))
        survey(model, batch, wanted.options, wanted.pins, wanted.budget, wanted.activations)


def _search(job: Job, wanted: Search, model: nn.Module) -> tuple[Plan, Json]:
    """The bits of each layer that a search finds, and what else it found; the inputs' bits are put
    into effect.
    """
    job.observer.searching(wanted.trials)
    found = search(
        model,
        job.task.calibration(),
        budget=wanted.budget,
        options=wanted.options,
        activations=wanted.activations,
        method=wanted.method,
        trials=wanted.trials,
        pins=wanted.pins,
        absorb=job.recipe.oneshot.absorb,
        seed=job.recipe.seed,
        journal=job.folder / "search.jsonl",
        progress=lambda event: job.observer.trial(event.detail),
    )
    found.plan.save(job.folder / "plan.yaml")
    plans = {"plan": write_widths(found.plan), "uniform": write_widths(found.uniform)}
    about = plans | {"score": found.objective, "uniform_score": found.uniform_objective}
    bits = ", ".join(f"{name} {count}" for name, count in found.plan.items())
    job.observer.note(
        f"search: {found.objective:.5g}, the uniform plan {found.uniform_objective:.5g}; bits: {bits}"
    )
    activations = Activations(bits=found.plan.activations) if found.plan.activations else None
    return found.plan, {"search": about} | _quantize_inputs(job, model, activations)


def _by_retraining(job: Job, model: nn.Module, plan: Plan, log: list[Json]) -> tuple[Packed, Json]:
    """INQ's stages after those in ``log``, from the network as it is or as the closed form leaves
    it.
    """
    recipe, how = job.recipe, Json()
    _begin(job)
    masks = kept_masks(model, plan)
    if recipe.start == "oneshot":
        packed, how = _in_closed_form(job, model, plan)
        packed.apply(model)
    incremental = Incremental(
        model,
        plan,
        portions=recipe.portions,
        order=recipe.order,
        fit=recipe.fit,
        per=recipe.per,
        seed=recipe.seed,
        straight_through=recipe.straight_through,
        inputs=job.task.calibration() if recipe.start == "compensated" else None,
        masks=masks,
    )
    track = Track(
        "quantized",
        incremental.model,
        incremental,
        job.folder / "quantized.pt",
        job.digest,
        recipe.schedule,
    )
    train(track, job)
    return incremental.finish(), how | {"stages": log + track.log, "earlier": track.earlier}


def _in_closed_form(job: Job, model: nn.Module, plan: Plan) -> tuple[Packed, Json]:
    """Layer by layer, from the task's calibration inputs."""
    recipe, errors = job.recipe, list[LayerResult]()

    def progress(event: Event) -> None:
        if isinstance(event.detail, LayerResult):
            errors.append(event.detail)
            job.observer.layer(event.detail)

    inputs, settings = job.task.calibration(), asdict(recipe.oneshot)
    del settings["correct"]  # it has no effect any more
    packed = calibrate(
        model, plan, inputs, fit=recipe.fit, per=recipe.per, progress=progress, **settings
    )
    shown = ("nearest", "compensated")
    rows = [
        {"name": e.name, "bits": write_width(e.bits), **{key: getattr(e, key) for key in shown}}
        for e in errors
    ]
    return packed, {"layers": rows}


def _score_reloaded(recipe: Recipe, task: Task, file: Path) -> float:
    """Score of a fresh network that the file was applied to: what its user will get."""
    model = model_of(task, recipe.task)
    Packed.load(file).apply(model)
    return float(task.score(model))


def _slim(packed: Packed, model: nn.Module, recipe: Recipe) -> Packed:
    """With what is not quantized as the recipe wants it stored."""
    packed = with_folded_norms(packed, model) if recipe.floats == "folded" else packed
    return packed if recipe.floats == "float32" else with_float16(packed)


def _sizes(packed: Packed, float_bytes: int) -> Json:
    entropy = sum(
        coding.entropy_bytes(layer.codes, layer.codebook.width) for layer in packed.layers.values()
    )
    weights = sum(packed.plan.weights.values())
    zeros = sum(int((layer.codes == layer.codebook.zero).sum()) for layer in packed.layers.values())
    return {
        "weights": weights,
        "nominal_bits": packed.nominal_bits,
        "stored_bits": packed.stored_bits,
        "sparsity": zeros / weights,
        "entropy_bytes": round(entropy),
        "other_bytes": packed.float_bytes - 4 * weights,
        "file_bytes": packed.file_bytes,
        "float_bytes": float_bytes,  # before any was folded or rounded to float16
        "ratio": float_bytes / packed.file_bytes,
    }


def environment() -> Json:
    """Versions and machine, for every committed figure."""
    return {
        "octavo": version("octavo"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": _processor(),
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    """What the processor calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()
