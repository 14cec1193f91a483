"""Networks by name, from torchvision, timm or a function of the user, and weights from a file."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from octavo.errors import FormatError, OctavoError, RecipeError, brief, install, nearest
from octavo.runs.task import load_callable

__all__ = ["SOURCES", "build", "load_weights"]

SOURCES = ("auto", "torchvision", "timm")
# Heads that only training from scratch uses, by torchvision's names.
AUXILIARY = ("aux1", "aux2", "AuxLogits")
# The networks that warn unless they are told how to begin.
FRESH = {"googlenet": {"init_weights": True}, "inception_v3": {"init_weights": True}}


def build(
    name: str, classes: int, *, source: str = "auto", weights: str | None = None
) -> nn.Module:
    """Make the network called ``name``, for images of ``classes`` classes; torchvision's auxiliary
    heads are left out.

    Args:
        name: torchvision's or timm's name of a classifier; or ``package.module:function`` or
            ``path/to/file.py:function``, which is called with ``num_classes``.
        classes: how many outputs it gets, unless it comes with weights: then it has as many as
            these were trained for.
        source: ``torchvision``, ``timm``, or ``auto``: the first of them that is installed and has
            it.
        weights: a safetensors file with its state dict; ``default``, those that come with it; the
            name that torchvision gives to some, such as ``IMAGENET1K_V1``, or timm's tag; None
            initialises it from torch's global generator.

    Raises:
        RecipeError: neither library has the network, or not these weights.
        FormatError: the file does not fit the network.
        OctavoError: neither library is installed.

    """
    file = weights if weights is not None and weights.endswith(".safetensors") else None
    pretrained = None if file else weights
    model = (
        _from_function(name, classes, pretrained)
        if ":" in name
        else _from_library(name, classes, source, pretrained)
    )
    if getattr(model, "aux_logits", False):
        for name, nothing in {**dict.fromkeys(AUXILIARY), "aux_logits": False}.items():
            setattr(model, name, nothing)
    if file is not None:
        load_weights(model, Path(file).expanduser())
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill ``model`` from a safetensors file with its state dict, strictly: the same keys and
    shapes.

    Raises:
        RecipeError: there is no such file.
        FormatError: damaged, or a tensor differs; the message names the first.

    """
    if not path.is_file():
        raise RecipeError(f"weights: expected a safetensors file, there is none at {path}")
    try:
        state = load_file(path)
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise FormatError(f"{path}: not a readable safetensors file: {brief(error)}") from error
    expected = model.state_dict()
    for key in sorted(expected.keys() | state.keys()):
        wanted = _shape(expected.get(key))
        got = _shape(state.get(key))
        if wanted != got:
            raise FormatError(f"{path}: tensor {key!r}: expected {wanted}, got {got}")
    model.load_state_dict(state)


def _shape(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else f"shape {tuple(tensor.shape)}"


def _from_function(name: str, classes: int, pretrained: str | None) -> nn.Module:
    """Call the user's function; the weights of its network are its own business."""
    if pretrained not in (None, "default"):
        raise RecipeError(
            f"weights: with {name!r} expected default or a file ending in .safetensors, "
            f"got {pretrained!r}"
        )
    source, _, attribute = name.rpartition(":")
    model = load_callable(source, attribute, f"network {name!r}")(num_classes=classes)
    if not isinstance(model, nn.Module):
        raise RecipeError(
            f"network {name!r}: expected it to return a torch.nn.Module, got {type(model).__name__}"
        )
    return model


def _from_library(name: str, classes: int, source: str, pretrained: str | None) -> nn.Module:
    """Make the network with the first of the libraries that is installed and has it."""
    known: list[str] = []
    causes: list[str] = []
    for library, (names, make) in LIBRARIES.items():
        if source not in ("auto", library):
            continue
        try:
            has = names()
        except (ImportError, RuntimeError) as error:  # a torchvision for another version of torch
            causes.append(f"{library}: {brief(error)}")
            continue
        known += has
        if name in has:
            return make(name, classes, pretrained)
    if known:
        raise RecipeError(
            f"network: expected one that {_either(source)} has, got {name!r}"
            f"{nearest(name, known, only_alike=True)}"
        )
    raise OctavoError(
        f"network {name!r} needs {_either(source)}: {install('vision')} ({'; '.join(causes)})"
    )


def _either(source: str) -> str:
    return "torchvision or timm" if source == "auto" else source


def _torchvision_names() -> list[str]:
    from torchvision import models

    return cast("list[str]", models.list_models(module=models))


def _torchvision(name: str, classes: int, pretrained: str | None) -> nn.Module:
    from torchvision import models

    if pretrained is None:
        return cast(
            "nn.Module",
            models.get_model(name, weights=None, num_classes=classes, **FRESH.get(name, {})),
        )
    wanted = pretrained.upper()
    there = models.get_model_weights(name).__members__
    if wanted not in there:
        raise RecipeError(
            f"weights: of {name} torchvision has {', '.join(there)}, got {pretrained!r}"
        )
    return cast("nn.Module", models.get_model(name, weights=wanted))


def _timm_names() -> list[str]:
    import timm

    return cast("list[str]", timm.list_models())


def _timm(name: str, classes: int, pretrained: str | None) -> nn.Module:
    import timm

    if pretrained is None:
        return cast("nn.Module", timm.create_model(name, num_classes=classes))
    there = timm.list_pretrained(f"{name}.*")
    if pretrained != "default" and f"{name}.{pretrained}" not in there:
        tags = ", ".join(tag.removeprefix(f"{name}.") for tag in there)
        raise RecipeError(f"weights: of {name} timm has {tags}, got {pretrained!r}")
    return cast(
        "nn.Module",
        timm.create_model(
            name if pretrained == "default" else f"{name}.{pretrained}", pretrained=True
        ),
    )


LIBRARIES: dict[
    str, tuple[Callable[[], list[str]], Callable[[str, int, str | None], nn.Module]]
] = {
    "torchvision": (_torchvision_names, _torchvision),
    "timm": (_timm_names, _timm),
}
