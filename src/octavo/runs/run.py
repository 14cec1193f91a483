"""One run of a recipe, from the float network to the metric of the reloaded one; resumable."""

import contextlib
import platform
import time
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import nn

from octavo._interruption import Interruption
from octavo._io import finite, write_atomically
from octavo.deploy.forms import check_forms
from octavo.dnq.methods import method_of
from octavo.errors import RecipeError
from octavo.network.devices import device_named
from octavo.network.forward import batches_of
from octavo.network.ranks import Ranks
from octavo.plan import Plan, matching_plan
from octavo.progress import Event, Progress, silent
from octavo.pruning.surgery import sparsity_groups
from octavo.ptq.file_form import FileForm
from octavo.runs.details import DETAILS, network_details, without_curves
from octavo.runs.exports import export_forms, exported_files
from octavo.runs.job import SAVE_EVERY, Job, shared
from octavo.runs.metric import metric_text
from octavo.runs.orders import load_orders
from octavo.runs.quantize import (
    Quantization,
    check_search,
    find_plan,
    quantize_by_inq,
    quantize_by_ptq,
    quantize_inputs,
)
from octavo.runs.recipe import Recipe
from octavo.runs.run_folder import (
    FILES,
    PACKED,
    Json,
    changed_files,
    check_folder,
    digest_of,
    file_digests,
    finished,
    record_recipe,
    working_in,
    write_json,
)
from octavo.runs.steps import control_score, control_stages, prune, warm_up
from octavo.runs.task import Task, load_task, model_of
from octavo.runs.watching import Stopwatch
from octavo.storage.coding import grouped as coding
from octavo.storage.packed import Packed, sizes_of

__all__ = ["environment", "publish", "run"]


def run(
    recipe: Recipe,
    folder: Path,
    progress: Progress = silent,
    *,
    interruption: Interruption | None = None,
    save_every: float = SAVE_EVERY,
) -> Json:
    """Do all that the recipe says into ``folder``.

    A run that was cut off continues where its state was kept last, and ends as if it had not been.
    A complete run does nothing, unless a file that its result promises is gone or changed: then
    that is made again.

    Args:
        recipe: the recipe.
        folder: the folder of the run; one process at a time works in it.
        progress: called with each event of the run.
        interruption: asks the run to stop, when a signal has come.
        save_every: seconds of retraining between two savings of the state inside a stage.

    Returns:
        The content of ``result.json`` in the folder.

    Raises:
        RecipeError: the folder holds the run of another recipe or of other weights, another
            process works in it, or the task cannot be loaded.
        PlanError: the network does not fit the recipe, or the calibration inputs do not fit the
            network.
        TrainingError: retraining failed; the last whole stage is kept.
        ExportError: the network cannot be exported in a form that the recipe lists, or the
            libraries of that form are missing.
        FormatError: a file of the folder is damaged, or belongs to half a run of other weights; or
            the library of the recipe's coding is missing.
        Interrupted: a signal has come; what was done is kept.

    """
    ranks = Ranks.of_process()
    ranks.once(lambda: check_folder(folder, recipe))
    watch = Stopwatch(progress if ranks.leads else silent, time.monotonic)
    job, model, float_model = _load(recipe, folder, watch, ranks)
    job = replace(job, interruption=interruption or job.interruption, save_every=save_every)
    with contextlib.ExitStack() as stack:
        ranks.once(lambda: stack.enter_context(working_in(folder)))
        complete = ranks.once(lambda: _complete(job))
        return _computed(job, model, float_model, watch) if complete is None else complete


def _complete(job: Job) -> Json | None:
    """Return the result of a run that has nothing left to do."""
    result = finished(job.folder, job.recipe, job.digest)
    return result if result is not None and _keeps_promises(job, result) else None


def _keeps_promises(job: Job, result: Json) -> bool:
    """Tell if the files that a result promises are there, and say what follows."""
    changed = changed_files(job.folder, result)
    if not changed:
        job.note(f"{job.folder} is complete: nothing to do; name another --folder to run afresh")
        return True
    names = ", ".join(changed)
    job.note(f"{job.folder}: {names} is gone or not what result.json promises; it is made again")
    return False


def _computed(job: Job, model: nn.Module, float_model: nn.Module, watch: Stopwatch) -> Json:
    """Do what is left to do, and return the result."""
    recipe = job.recipe
    ranks = job.ranks
    ranks.once(lambda: check_search(job, model))  # before scoring and warm-up, which take time
    float_score = ranks.once(lambda: _float_score(job, float_model))
    activation_bits = quantize_inputs(job, model, recipe.activations)
    retrained = _retrain_in_full_precision(job, model)
    plan, search_figures = _plan(job, model)
    quantization = _quantize(job, model, plan, retrained)
    packed = ranks.once(lambda: _as_filed(job, quantization.packed, model))
    score, exports = ranks.once(lambda: _written(job, packed))
    control = {"control_score": control_score(job)} if recipe.controlled else {}
    result = {
        "recipe": recipe.model_dump(mode="json"),
        "environment": environment(),
        "float_digest": job.digest,
        "labels_used": recipe.retrains and recipe.retraining.labels > 0,
        "float_score": float_score,
        **activation_bits,
        **search_figures,
        **_plain(quantization.figures),
        "score": score,
        **exports,
        **control,
        **_sizes(packed, quantization.packed.float_bytes),
    }

    def finish() -> Json:
        watch.count()
        seconds = quantization.seconds_before + sum(watch.seconds.values())
        _write_details(job, float_model, quantization, packed, watch)
        result[FILES] = file_digests(job.folder, [PACKED, *exported_files(job.folder, exports)])
        result["seconds"] = round(seconds, 1)
        return write_json(job.folder / "result.json", finite(result))

    return ranks.once(finish)


def _as_filed(job: Job, packed: Packed, model: nn.Module) -> Packed:
    """Return the packed network in the form that the recipe gives its file."""
    form = job.recipe.file_form
    compared = () if form.floats else batches_of(job.task.calibration())
    return form.of(packed, model, compared)


def _written(job: Job, packed: Packed) -> tuple[float, Json]:
    """Write the packed network and what it is exported to; return its metric when it is loaded
    again, and the figures of the exports.
    """
    packed.save(job.folder / PACKED)
    return _reloaded_score(job), export_forms(job, packed)


def _plain(figures: Json) -> Json:
    """Return the figures of quantization without what ``details.json`` has."""
    if "stages" not in figures:
        return figures
    return figures | {"stages": without_curves(figures["stages"])}


def _write_details(
    job: Job,
    float_model: nn.Module,
    quantization: Quantization,
    packed: Packed,
    watch: Stopwatch,
) -> None:
    """Write what only the report shows."""
    stages = {"quantized": quantization.figures.get("stages", [])}
    if job.recipe.controlled:
        stages["control"] = control_stages(job)
    content = {
        **network_details(float_model, packed, absorbed=job.recipe.ptq.absorb),
        "stages": stages,
        "seconds": {name: round(time, 2) for name, time in watch.seconds.items()},
    }
    write_json(job.folder / DETAILS, content, compact=True)


def publish(recipe: Recipe, recipe_path: Path, folder: Path) -> list[Path]:
    """Copy the result and the packed network to where the recipe publishes them, if it does.

    Returns:
        The copies.

    """
    if recipe.publish is None:
        return []
    stem = recipe_path.parent / recipe.publish
    copies = {
        "result.json": Path(f"{stem}.json"),
        PACKED: Path(f"{stem}.safetensors"),
    }
    for name, copy in copies.items():
        write_atomically(copy, partial(_write_bytes, (folder / name).read_bytes()))
    return list(copies.values())


def _write_bytes(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


def environment() -> Json:
    """Return the versions and the machine, which belong to every committed figure."""
    return {
        "octavo": version("octavo"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": _processor(),
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    """Return the name that the processor gives itself, and its number of cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()


def _load(
    recipe: Recipe, folder: Path, progress: Progress, ranks: Ranks
) -> tuple[Job, nn.Module, nn.Module]:
    """Load all that the recipe names, and make sure that it fits before anything is computed.

    Returns:
        The job, the network to quantize, and a second copy of it to compare with.

    """
    check_forms(recipe.export)
    FileForm(coding=recipe.coding)  # raises where the library of the coding is missing
    load_orders(recipe.order)
    task = load_task(recipe.task, recipe.options)
    if recipe.search is not None:
        method_of(recipe.search.method)  # the task's file may register it
    device = device_named(recipe.device)
    model, float_model = _two_models(task, recipe.task, progress, device)
    shared(model, ranks)
    shared(float_model, ranks)
    if recipe.bits is not None:
        matching_plan(model, recipe.bits)  # raises where a name or pattern matches no layer
    if recipe.prune is not None:
        sparsity_groups(model, recipe.prune.sparsity)  # raises where a name matches no layer
    job = Job(recipe, task, folder, digest_of(float_model), progress, device=device, ranks=ranks)
    return job, model, float_model


def _two_models(
    task: Task, name: str, progress: Progress, device: torch.device | None
) -> tuple[nn.Module, nn.Module]:
    """Return two copies of the task's network."""
    model = model_of(task, name, progress, device)
    copy = model_of(task, name, device=device)
    if copy is model:  # it would be its own teacher and its own control
        raise RecipeError(
            f"task {name!r}: expected a new copy of the network from every call of model(), "
            "got one twice"
        )
    return model, copy


def _float_score(job: Job, model: nn.Module) -> float:
    """Return the metric of the full-precision network."""
    job.progress(Event("score", message="measuring the metric in full precision"))
    score = job.metric(model, "the full-precision network")
    job.note(f"full precision: {metric_text(score)}")
    return score


def _retrain_in_full_precision(job: Job, model: nn.Module) -> list[Json]:
    """Warm up and prune ``model``, in place, where the recipe says so; return the stages."""
    if not job.recipe.retrains:
        return []
    return [*warm_up(model, job).stages, *prune(model, job).stages]


def _plan(job: Job, model: nn.Module) -> tuple[Plan, Json]:
    """Return the plan that the recipe gives or that its search finds, and the search's figures."""
    if job.recipe.search is not None:
        return find_plan(job, job.recipe.search, model)
    return matching_plan(model, job.recipe.bits or {}), {}


def _quantize(job: Job, model: nn.Module, plan: Plan, retrained: list[Json]) -> Quantization:
    """Quantize by the recipe's method.

    The folder gets its ``recipe.json`` once the recipe is known to fit the network.
    """
    quantization = None if job.recipe.retrains else quantize_by_ptq(job, model, plan)
    job.ranks.once(partial(record_recipe, job.folder, job.recipe))
    return quantization or quantize_by_inq(job, model, plan, retrained)


def _reloaded_score(job: Job) -> float:
    """Return the metric of a new network that the packed file was applied to, as its user will."""
    model = job.new_model()
    Packed.load(job.folder / PACKED, model=model).apply(model)
    score = job.metric(model, f"the quantized network, which is kept in {job.folder / PACKED}")
    job.note(f"quantized, packed and loaded again: {metric_text(score)}")
    return score


def _sizes(packed: Packed, float_bytes: int) -> Json:
    """Return the sizes of the network and of its file.

    Args:
        packed: the network as it is in the file.
        float_bytes: bytes of the network in full precision, before any tensor was folded or rounded
            to float16.

    """
    entropy = 0.0
    zeros = 0
    for layer in packed.layers.values():
        entropy += coding.entropy_bytes(layer.codes, layer.codebook.width)
        zeros += int((layer.codes == layer.codebook.zero).sum())
    weights = sum(packed.plan.weights.values())
    sizes = sizes_of(packed)
    return {
        "weights": weights,
        "nominal_bits": packed.nominal_bits,
        "stored_bits": sizes.stored_bits,
        "sparsity": zeros / weights,
        "entropy_bytes": round(entropy),
        "other_bytes": sizes.float_bytes - 4 * weights,
        "file_bytes": sizes.file_bytes,
        "float_bytes": float_bytes,
        "ratio": float_bytes / sizes.file_bytes,
    }
