"""The form ``hf``: a folder that ``transformers`` and vLLM load; linear layers have MXFP4 weights.

Its layout is compressed-tensors' ``mxfp4-pack-quantized``. The weight of a linear layer ``L``
becomes ``L.weight_packed``, uint8 ``(rows, columns / 2)``, two E2M1 numbers in a byte and the even
one in its low bits; and ``L.weight_scale``, uint8 ``(rows, columns / 32)``, the ``e`` of the scale
``2^(e - 127)`` of 32 numbers. All else is bfloat16. ``config.json`` says which layers are packed.
"""

import contextlib
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import CompressedTensorsConfig, PreTrainedModel
from transformers.utils import logging

from octavo.deploy.comparison import Comparison, compare
from octavo.deploy.e2m1 import BLOCK, Blocks, exact_blocks
from octavo.deploy.forms import FormFile, Job, check_plain_inputs
from octavo.errors import ExportError
from octavo.network.calls import call_alone, undisturbed
from octavo.network.copies import copied
from octavo.network.forward import observing
from octavo.storage.packed import Packed

__all__ = ["make", "quiet"]

FORMAT = "mxfp4-pack-quantized"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
ONE_FILE = "1000TB"  # the weights are not split
WEIGHT = ".weight"


def make(job: Job) -> FormFile:
    """Make the files of the folder, and check that ``transformers`` loads exactly these weights.

    Raises:
        ExportError: the model is not one of ``transformers``, no layer fits, or other weights are
            loaded.

    """
    model = _checked_model(job)
    rounded = copied(model)
    rounded.bfloat16()
    blocks = _blocks(rounded, job.packed)
    with tempfile.TemporaryDirectory() as name, quiet():
        folder = Path(name)
        _save(rounded, blocks, folder)
        loaded = _loaded(rounded, folder)
        files = sorted(folder.iterdir(), key=lambda file: file.name == CONFIG)  # the last one
        data = {file.name: file.read_bytes() for file in files}
    _check_weights(loaded, rounded)
    comparison = _comparison(model, loaded, job) if job.batches else None
    wider = tuple(name for name in job.packed.layers if name not in blocks)
    return FormFile(data, comparison, _inexact(job.packed), wider)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let ``transformers`` save and load without progress bars, remarks and warnings."""
    verbosity = logging.get_verbosity()
    with_bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if with_bars:
            logging.enable_progress_bar()


def _checked_model(job: Job) -> PreTrainedModel:
    if not isinstance(job.model, PreTrainedModel):
        raise ExportError(
            "form hf: expected a model of transformers, whose config.json the folder gets, "
            f"got {type(job.model).__name__}; the form mx holds any network"
        )
    check_plain_inputs(job, "hf")
    return job.model


def _blocks(model: nn.Module, packed: Packed) -> dict[str, Blocks]:
    """Return the MXFP4 blocks of each linear layer that has an exact representation, by its name.

    Raises:
        ExportError: no layer has one.

    """
    linear = {name for name, module in model.named_modules() if type(module) is nn.Linear}
    blocks = {}
    for name, layer in packed.layers.items():
        alone = name in linear and layer.names == (name + WEIGHT,)  # not tied to an embedding
        block = exact_blocks(layer.weight()) if alone else None
        if block is not None:
            blocks[name] = block
    if not blocks:
        raise ExportError(
            "form hf: expected linear layers of fp4, or of 2 to 4 bits, whose inputs are a "
            f"multiple of {BLOCK}, got none that MXFP4 holds exactly; the form float holds all"
        )
    return blocks


def _save(model: PreTrainedModel, blocks: Mapping[str, Blocks], folder: Path) -> None:
    """Let ``transformers`` save the model, then replace the weights that are packed."""
    model.save_pretrained(folder, max_shard_size=ONE_FILE)
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    for name, block in blocks.items():
        if name + WEIGHT not in tensors:
            raise ExportError(
                f"{name}: transformers saves its weight under another name; leave it in float"
            )
        del tensors[name + WEIGHT]
        tensors[f"{name}.weight_packed"] = block.packed
        tensors[f"{name}.weight_scale"] = block.scales
    safetensors.torch.save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    config = json.loads((folder / CONFIG).read_text())
    config["quantization_config"] = _quantization_config(model, blocks)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, allow_nan=False) + "\n")


def _quantization_config(model: nn.Module, blocks: Mapping[str, Blocks]) -> dict[str, Any]:
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    weights = {
        "num_bits": 4,
        "type": "float",
        "strategy": "group",
        "group_size": BLOCK,
        "symmetric": True,
        "dynamic": False,
        "scale_dtype": "torch.uint8",
        "zp_dtype": "torch.uint8",
    }
    return {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
        "quantization_status": "compressed",
        "ignore": [name for name in linear if name not in blocks],
        "config_groups": {"group_0": {"targets": ["Linear"], "format": FORMAT, "weights": weights}},
    }


def _loaded(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Load the folder as its users do, in float32."""
    config = CompressedTensorsConfig(dequantize=True)
    loaded: PreTrainedModel = type(model).from_pretrained(
        folder, quantization_config=config, dtype=torch.float32, local_files_only=True
    )
    loaded.eval()
    return loaded


def _check_weights(loaded: nn.Module, expected: nn.Module) -> None:
    """Raise ExportError unless the loaded network has the tensors that were saved, bit for bit."""
    tensors: dict[str, Tensor] = loaded.state_dict()
    for name, value in expected.state_dict().items():
        if name not in tensors or not torch.equal(tensors[name].float(), value.float()):
            raise ExportError(
                f"{name}: transformers loads another tensor than was saved; nothing was written"
            )


def _comparison(model: nn.Module, loaded: nn.Module, job: Job) -> Comparison:
    outputs = []
    for network in (model, loaded):
        with observing(network), undisturbed(network):
            outputs.append(call_alone(network, job.first_batch()))
    return compare(*outputs)


def _inexact(packed: Packed) -> tuple[str, ...]:
    """Return the layers whose weights bfloat16 does not hold."""
    return tuple(
        name
        for name, layer in packed.layers.items()
        if not torch.equal(layer.weight().bfloat16().float(), layer.weight())
    )
