"""Networks by name, for a look at them without a task: those of libraries, and those of a file."""

from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import signature
from typing import Any, TypeAlias

import torch
from torch import nn

from octavo.errors import OctavoError, RecipeError, brief, install, nearest
from octavo.network.forward import Inputs, device_of, on_device
from octavo.network.samples import rows_of, sample_count
from octavo.runs.task import Task, as_task, make, model_of

__all__ = ["load_model"]

Named: TypeAlias = tuple[nn.Module, Inputs | None]


def load_model(name: str, options: Mapping[str, Any], device: torch.device | None = None) -> Named:
    """Return a network, and one input that it is called with; None where none is known.

    Args:
        name: ``torchvision:resnet18``, ``timm:resnet18``, ``hf:FOLDER_OR_NAME`` (their weights are
            drawn, not downloaded); or a task as for ``load_task``; or ``path/to/file.py:function``,
            a function that returns a network, or a pair of it and an input.
        options: keyword arguments of whatever makes the network.
        device: the device that both are moved to; None leaves them where they are.

    Raises:
        RecipeError: there is no such network, or making it failed.
        OctavoError: the library is not installed.

    """
    model, example = _loaded(name, options)
    if device is None:
        return model, None if example is None else on_device(example, device_of(model))
    return model.to(device), on_device(example, device)


def _loaded(name: str, options: Mapping[str, Any]) -> Named:
    library, colon, model = name.partition(":")
    if colon and library in LIBRARIES:
        try:
            return LIBRARIES[library](model, options)
        except OctavoError:
            raise
        except Exception as error:
            raise RecipeError(f"{name}: making the network failed: {brief(error)}") from error
    made = make(name, options)
    if isinstance(made, nn.Module):
        return made, None
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        return made[0], made[1]
    task = as_task(made, name)
    return model_of(task, name), _first_input(task)


def _first_input(task: Task) -> Inputs | None:
    """Return the first calibration input: costs are those of one. A batch that has no samples of
    its own is an input.
    """
    batch = next(iter(task.calibration()), None)
    if batch is None or not sample_count(batch):
        return batch
    return rows_of(batch, slice(1))


def _torchvision(name: str, options: Mapping[str, Any]) -> Named:
    """Return a network of torchvision with an image of the size that it was trained on."""
    models = _library("torchvision.models", "vision")
    known = models.list_models()
    if name not in known:
        near = nearest(name, known, only_alike=True)
        raise RecipeError(f"torchvision:{name}: there is no such network{near}")
    builder = models.get_model_builder(name)
    parameters = signature(builder).parameters
    # Without a word about them, torchvision downloads the weights of a detector's backbone.
    weightless = dict.fromkeys({"weights", "weights_backbone"} & parameters.keys())
    model = builder(**{**weightless, **options})
    weights = next(iter(models.get_model_weights(name)), None)
    size = getattr(getattr(weights, "transforms", None), "keywords", {}).get("crop_size")
    image = torch.zeros(1, 3, size, size) if isinstance(size, int) else None
    return model, image  # a detector has no size of its own


def _timm(name: str, options: Mapping[str, Any]) -> Named:
    """Return a network of timm with an image of the size that it was trained on."""
    timm = _library("timm", "vision")
    known = timm.list_models()
    if name.partition(".")[0] not in known:
        near = nearest(name, known, only_alike=True)
        raise RecipeError(f"timm:{name}: there is no such network{near}")
    model = timm.create_model(name, pretrained=False, **options)
    return model, torch.zeros(1, *model.default_cfg["input_size"])


def _transformers(name: str, options: Mapping[str, Any]) -> Named:
    """Return a network of transformers, by a folder or a name of the Hugging Face Hub."""
    transformers = _library("transformers", "hf")
    config = transformers.AutoConfig.from_pretrained(name, **options)
    architecture = next(iter(config.architectures or ()), "")
    kind = getattr(transformers, architecture, None)
    model = transformers.AutoModel.from_config(config) if kind is None else kind(config)
    tokens = model.main_input_name == "input_ids"
    return model.eval(), model.dummy_inputs if tokens else None


def _library(module: str, extra: str) -> Any:
    """Import a library that is not installed with octavo.

    Raises:
        OctavoError: it is not installed, or does not fit the torch that is.

    """
    name = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise OctavoError(f"{name}: not installed: {install(extra)}") from error
    except Exception as error:
        raise OctavoError(
            f"{name}: importing it failed ({brief(error)}); expected the {name} that was made for "
            f"torch {torch.__version__}: {install(extra)} into a new environment"
        ) from error


LIBRARIES: dict[str, Callable[[str, Mapping[str, Any]], Named]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "hf": _transformers,
}
