"""Packed networks as folders of ``transformers``: the config, the tokenizer and octavo's own file.

Needs the extra ``hf``. ``octavo.export(..., form="hf")`` makes a folder that
``transformers`` and vLLM read by themselves.
"""

from pathlib import Path

import transformers
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from octavo.errors import FormatError, PlanError, brief
from octavo.storage.packed import Packed

__all__ = ["PACKED", "from_pretrained", "save_pretrained"]

PACKED = "octavo.safetensors"
CONFIG = "config.json"
GENERATION = "generation_config.json"


def save_pretrained(
    packed: Packed,
    folder: str | Path,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Write a packed network as a folder that :func:`from_pretrained` loads.

    Args:
        packed: the weights.
        folder: the folder; it is made if it does not exist. Other files in it stay.
        model: a model of the network's architecture, whose configuration is written. None: the
            folder has a ``config.json`` already.
        tokenizer: the network's tokenizer, which is written too.

    Raises:
        PlanError: there is neither a model nor a ``config.json``.

    """
    folder = Path(folder)
    if model is None and not (folder / CONFIG).is_file():
        raise PlanError(
            f"{folder}: expected a {CONFIG} or a model that has the configuration, got neither; "
            "write save_pretrained(packed, folder, model=model)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    packed.save(folder / PACKED)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if model is not None:
        config = model.config
        if not config.architectures:
            config = type(config).from_dict(config.to_dict())
            config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
        if model.can_generate() and model.generation_config is not None:
            model.generation_config.save_pretrained(folder)


def from_pretrained(folder: str | Path) -> PreTrainedModel:
    """Load the network of a folder that :func:`save_pretrained` wrote, without any float weights.

    Returns:
        The network in float32, on the CPU and in evaluation mode; its weights are what was packed,
        bit for bit.

    Raises:
        FormatError: a file is missing or damaged, or names an architecture that this version of
            ``transformers`` does not have.
        PlanError: the packed network does not fit the configuration.

    """
    folder = Path(folder)
    packed = Packed.load(folder / PACKED)
    model = _model(folder)
    packed.apply(model)
    model.eval()
    if (folder / GENERATION).is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


def _model(folder: Path) -> PreTrainedModel:
    """Make the model that ``config.json`` describes; its weights have no values yet."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise FormatError(f"{folder / CONFIG}: {brief(error)}") from error
    name = (config.architectures or [""])[0]
    kind = getattr(transformers, name, None)
    if not isinstance(kind, type) or not issubclass(kind, PreTrainedModel):
        raise FormatError(
            f"{folder / CONFIG}: expected an architecture of transformers "
            f"{transformers.__version__}, got {name!r}"
        )
    with no_init_weights():
        model = kind(config)
    model.tie_weights()
    model.float()
    return model
