"""The forms that a network is exported in at the end of a run, and what they score."""

from dataclasses import asdict
from pathlib import Path

from octavo.deploy.exporting import Exported, export_checked, load_onnx
from octavo.deploy.forms import file_name
from octavo.runs.job import Job
from octavo.runs.metric import metric_of, metric_text
from octavo.runs.run_folder import Json
from octavo.runs.task import Task, model_of
from octavo.storage.packed import Packed

__all__ = ["export_forms", "exported_files", "exported_scores"]


def export_forms(job: Job, packed: Packed) -> Json:
    """Write each form that the recipe lists into the folder, and return their figures."""
    figures: Json = {}
    for form in job.recipe.export:
        path = job.folder / file_name(form)
        example = list(job.task.calibration())
        model = model_of(job.task, job.recipe.task)
        exported = export_checked(model, packed, path, form=form, example=example)
        scores = exported_scores(exported, packed, job.task, job.recipe.task)
        figures[form] = asdict(exported) | {"path": path.name} | scores
        said = f", score {metric_text(scores['score'])}" if scores else ""
        job.note(f"exported: {path}, {exported.bytes:,} bytes{said}")
    return {"exports": figures} if figures else {}


def exported_scores(exported: Exported, packed: Packed, task: Task, name: str) -> Json:
    """Return the metric of an exported network that rounds activations, and that of the packed one.

    The other forms compute the same as the packed network: for them there is nothing to return.
    ``name`` is the name of the task, for errors.
    """
    if exported.form != "int8":
        return {}
    model = model_of(task, name)
    packed.apply(model)
    return {
        "score": metric_of(task, name, load_onnx(exported.path), f"the file {exported.path}"),
        "packed_score": metric_of(task, name, model, "the packed network"),
    }


def exported_files(folder: Path, exports: Json) -> list[str]:
    """Return the names of the exported files; some forms are folders of several."""
    paths = [folder / figures["path"] for figures in exports.get("exports", {}).values()]
    inside = [path.rglob("*") if path.is_dir() else [path] for path in paths]
    files = [path for group in inside for path in group if path.is_file()]
    return [path.relative_to(folder).as_posix() for path in sorted(files)]
