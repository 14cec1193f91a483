"""The steps of a run that retrain: warm-up, surgery, the stages of INQ, and the control.

Each is a list of stages over one object whose state can be saved, and is resumed from its file.
"""

import hashlib
import json
from pathlib import Path

from torch import nn

from octavo.activations.quantizer import input_formats
from octavo.errors import FormatError
from octavo.inq.incremental import Incremental
from octavo.pruning.surgery import Surgery
from octavo.runs.job import Job
from octavo.runs.metric import metric_text
from octavo.runs.run_folder import Json, read_json, write_json
from octavo.runs.stage_plan import Step, stage_plans
from octavo.runs.stages import History, train
from octavo.runs.training import step_count

__all__ = ["control_score", "control_stages", "freeze", "prune", "warm_up"]

# The numbers of the first stages, from which the seeds follow: each step draws its own numbers.
WARM_UP = -1
SURGERY = -2
INQ = 0


def warm_up(model: nn.Module, job: Job) -> History:
    """Retrain ``model`` before its first weight freezes; recipes that differ in bits share it."""
    recipe = job.recipe
    if not recipe.warmup:
        return History()
    shared = _float_settings(job) | {"epochs": [recipe.warmup]}
    if input_formats(model):
        shared |= recipe.model_dump(mode="json", include={"activations"})
    file = _shared_folder("warmup", job.folder, shared) / "warmup.pt"
    stages = stage_plans(recipe, [(0.0, recipe.warmup)], first=WARM_UP)
    return train(Step("warm-up", file, model, model, stages), job)


def prune(model: nn.Module, job: Job) -> History:
    """Prune ``model`` by dynamic network surgery, if the recipe says so; INQ keeps its zeros."""
    settings = job.recipe.prune
    if settings is None:
        return History()
    updates = max(1, step_count(job.task, settings.epochs))
    surgery = Surgery(model, settings.sparsity, steps=updates, seed=job.recipe.seed)
    step = Step(
        name="surgery",
        file=job.folder / "surgery.pt",
        model=model,
        state=surgery,
        stages=stage_plans(
            job.recipe,
            [(0.0, settings.epochs)],
            first=SURGERY,
            learning_rate=settings.learning_rate,
        ),
        after_update=surgery.step,
    )
    history = train(step, job)
    surgery.finish()
    return history


def freeze(incremental: Incremental, job: Job) -> History:
    """Freeze and retrain a network portion by portion, by INQ."""
    stages = iter(incremental)
    file = job.folder / "quantized.pt"

    def freeze_portion(index: int) -> None:
        stage = next(stages, None)
        if stage is None or stage.index != index:
            raise FormatError(
                f"{file}: expected the state after {index} stages, as its log has them, got "
                "another one; delete it to start over"
            )

    step = Step(
        name="quantized",
        file=file,
        model=incremental.model,
        state=incremental,
        stages=stage_plans(job.recipe, job.recipe.schedule, first=INQ),
        before_stage=freeze_portion,
        scored=True,
    )
    return train(step, job)


def control_score(job: Job) -> float:
    """Return the metric of the full-precision network, trained equally long and in the same way.

    Recipes that differ in bits share it.

    Raises:
        FormatError: the file of an earlier control is damaged.

    """
    folder = _control_folder(job)
    done = folder / "result.json"
    if not job.ranks.once(done.exists):
        model = job.new_shared_model()
        content = _control_settings(job) | {"stages": _train_control(model, folder, job)}
        metric = job.ranks.once(lambda: job.metric(model, "the control"))
        job.ranks.once(lambda: write_json(done, content | {"score": metric}))
    score = job.ranks.once(lambda: read_json(done)).get("score")
    if not isinstance(score, float):
        raise FormatError(f"{done}: damaged, expected a number called score, got {score!r}")
    job.note(f"control, full precision trained equally long: {metric_text(score)}")
    return score


def control_stages(job: Job) -> list[Json]:
    """Return the stages of the control, which has been trained, with their loss curves."""
    stages = read_json(_control_folder(job) / "result.json").get("stages")
    return list(stages) if isinstance(stages, list) else []


def _control_folder(job: Job) -> Path:
    return _shared_folder("control", job.folder, _control_settings(job))


def _train_control(model: nn.Module, folder: Path, job: Job) -> list[Json]:
    """Train ``model`` as the network that is quantized, without freezing or pruning a weight."""
    recipe = job.recipe
    entries = list(warm_up(model, job).stages)
    if recipe.prune:
        pruning = stage_plans(
            recipe,
            [(0.0, recipe.prune.epochs)],
            first=SURGERY,
            learning_rate=recipe.prune.learning_rate,
        )
        step = Step("unpruned", folder / "unpruned.pt", model, model, pruning)
        entries += train(step, job).stages
    freezing = stage_plans(recipe, recipe.schedule, first=INQ)
    step = Step("control", folder / "control.pt", model, model, freezing)
    return entries + train(step, job).stages


def _float_settings(job: Job) -> Json:
    """Return the settings that retraining in full precision depends on."""
    keys = {"task", "options", "teacher", "retraining", "seed"}
    settings: Json = job.recipe.model_dump(mode="json", include=keys)
    if job.recipe.retraining.accumulate == 1:
        del settings["retraining"]["accumulate"]  # earlier versions have shared without this key
    return settings | {"float_digest": job.digest}


def _control_settings(job: Job) -> Json:
    """Return the settings that the control depends on."""
    recipe = job.recipe
    epochs = [recipe.warmup, *(epochs for _, epochs in recipe.schedule if epochs)]
    settings = _float_settings(job) | {"epochs": epochs}
    if recipe.prune:
        pruning = {"epochs": recipe.prune.epochs, "learning_rate": recipe.prune.learning_rate}
        settings |= {"pruning": pruning}
    return settings


def _shared_folder(name: str, folder: Path, settings: Json) -> Path:
    """Return the folder, beside the run's, that runs with the same ``settings`` share."""
    text = json.dumps(settings, sort_keys=True, allow_nan=False)
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    return folder.parent / f"{name}-{key}"
