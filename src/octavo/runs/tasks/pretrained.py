"""Networks and tokenizers of Hugging Face, from the hub or from a local folder."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from octavo.errors import RecipeError, brief, install

__all__ = ["load_network", "load_tokenizer", "read_text"]

HUB = "hf:"


def load_network(kind: str, name: str, **options: Any) -> nn.Module:
    """Load a network in float32 and evaluation mode.

    Args:
        kind: the class of ``transformers`` that loads it, such as ``AutoModelForCausalLM``.
        name: ``hf:NAME`` on the hub, or a folder.
        options: what else ``from_pretrained`` takes.

    Raises:
        RecipeError: ``transformers`` is not installed, or there is no such network.

    """
    model = _load(kind, "network", name, dtype=torch.float32, **options)
    # A cache of keys and values is an output that nothing here uses.
    model.config.use_cache = False
    network: nn.Module = model.eval()
    return network


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer that belongs to a network, named as for :func:`load_network`."""
    return _load("AutoTokenizer", "tokenizer", name)


def read_text(path: str, option: str) -> str:
    """Return the content of a text file that an option of a task names, without the byte order mark
    that some editors write ahead of it.

    Raises:
        RecipeError: it cannot be read, or is not UTF-8.

    """
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{option}: expected a text file in UTF-8, got {path}: {error}"
        ) from error


def _load(kind: str, option: str, name: str, **options: Any) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise RecipeError(f"{option}: needs transformers: {install('hf')}") from error
    from_hub = name.startswith(HUB)
    source = name.removeprefix(HUB) if from_hub else str(Path(name).expanduser())
    if not from_hub and not Path(source).is_dir():
        raise RecipeError(f"{option}: expected a folder or hf:NAME, such as hf:gpt2, got {name!r}")
    try:
        return getattr(transformers, kind).from_pretrained(
            source, local_files_only=not from_hub, trust_remote_code=False, **options
        )
    except (OSError, ValueError, ImportError) as error:
        raise RecipeError(f"{option}: loading {name!r} failed: {brief(error)}") from error
