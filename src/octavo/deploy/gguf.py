"""The form ``gguf``: a file for llama.cpp, with ternary and MXFP4 weights where these are exact.

Each quantized matrix gets the smallest of the types TQ1_0 (1.69 bits a weight), MXFP4 (4.25) and
F16 that holds it exactly. Matrices that are not quantized are F16, vectors F32. The architecture's
figures come from the model's config, the tokenizer from the folder that it was loaded from.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf.constants import MODEL_ARCH, GGMLQuantizationType, LlamaFileType
from torch import Tensor
from transformers import PreTrainedModel

from octavo.deploy.forms import FormFile, Job, check_plain_inputs
from octavo.deploy.gguf_tokenizer import add_tokenizer
from octavo.errors import ExportError

__all__ = ["SMALL_TYPES", "make"]

Array = npt.NDArray[Any]

ARCHITECTURES = {
    "llama": MODEL_ARCH.LLAMA,
    "mistral": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
}
# The smallest first.
SMALL_TYPES = {
    GGMLQuantizationType.TQ1_0: LlamaFileType.MOSTLY_TQ1_0,
    GGMLQuantizationType.MXFP4: LlamaFileType.MOSTLY_MXFP4_MOE,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it is in the file.

    Attributes:
        type: its type.
        data: its bytes, or its numbers if the type is F16 or F32.
        value: the numbers that it stands for, float32.

    """

    type: GGMLQuantizationType
    data: Array
    value: Array


def make(job: Job) -> FormFile:
    """Make the file, read it again, and check every tensor bit for bit.

    Raises:
        ExportError: the architecture is not known, or the file has other tensors than the network.

    """
    model = _checked_model(job)
    quantized = {name for layer in job.packed.layers.values() for name in layer.names}
    sources = {target: (name, value) for target, name, value in _tensors(model)}
    stored = {
        target: _stored(value, small=name in quantized) for target, (name, value) in sources.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        _write(path, model, stored)
        _check(path, stored)
        data = path.read_bytes()
    by_name = {sources[target][0]: target for target in stored}
    targets = {
        name: by_name[next(key for key in layer.names if key in by_name)]
        for name, layer in job.packed.layers.items()
    }
    wider = [name for name, target in targets.items() if stored[target].type not in SMALL_TYPES]
    inexact = [
        name
        for name, target in targets.items()
        if not np.array_equal(stored[target].value, sources[target][1].numpy())
    ]
    return FormFile(data, None, tuple(inexact), tuple(wider))


def _checked_model(job: Job) -> PreTrainedModel:
    model = job.model
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if not isinstance(model, PreTrainedModel) or kind not in ARCHITECTURES:
        raise ExportError(
            "form gguf: expected a language model of transformers of one of the types "
            f"{', '.join(ARCHITECTURES)}, got {kind}"
        )
    rope = getattr(model.config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise ExportError(
            f"form gguf: expected plain rotary embeddings, got {rope['rope_type']!r}, which this "
            "form does not write"
        )
    check_plain_inputs(job, "gguf")
    return model


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, str, Tensor]]:
    """Yield llama.cpp's name, the model's own, and the value of each tensor; tied ones once."""
    architecture = ARCHITECTURES[model.config.model_type]
    names = gguf.get_tensor_name_map(architecture, model.config.num_hidden_layers)
    tied = set(model.all_tied_weights_keys)
    for name, value in model.state_dict().items():
        if name in tied:
            continue  # llama.cpp takes the embedding where there is no output matrix
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ExportError(
                f"{name}: llama.cpp's {architecture.name} has no such tensor; nothing was written"
            )
        heads = _rotary_heads(model, name)
        yield target, name, (_interleaved(value, heads) if heads else value).float()


def _rotary_heads(model: PreTrainedModel, name: str) -> int:
    """Return the number of heads whose halves are interleaved in the file; 0 for none.

    llama.cpp rotates neighbours in the architecture LLAMA, transformers the two halves of a head.
    """
    if ARCHITECTURES[model.config.model_type] is not MODEL_ARCH.LLAMA:
        return 0
    if ".q_proj." in name:
        return int(model.config.num_attention_heads)
    return int(model.config.num_key_value_heads) if ".k_proj." in name else 0


def _interleaved(value: Tensor, heads: int) -> Tensor:
    """Let the two halves of each head's rows alternate."""
    halves = value.reshape(heads, 2, -1, *value.shape[1:])
    return halves.transpose(1, 2).reshape(value.shape)


def _stored(value: Tensor, *, small: bool) -> StoredTensor:
    """Store a tensor: in the smallest type that is exact if ``small``, else in F16 or F32."""
    numbers = value.contiguous().numpy()
    if numbers.ndim == 1:
        return StoredTensor(GGMLQuantizationType.F32, numbers, numbers)
    for kind in SMALL_TYPES if small else ():
        block, _ = gguf.GGML_QUANT_SIZES[kind]
        if numbers.shape[-1] % block:
            continue
        data = gguf.quants.quantize(numbers, kind)
        if np.array_equal(gguf.quants.dequantize(data, kind), numbers):
            return StoredTensor(kind, data, numbers)
    half = value.half().numpy()
    return StoredTensor(GGMLQuantizationType.F16, half, half.astype(np.float32))


def _write(path: Path, model: PreTrainedModel, stored: Mapping[str, StoredTensor]) -> None:
    config = model.config
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config.model_type]])
    head_size = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    source = Path(model.name_or_path) if model.name_or_path else None
    writer.add_name(source.name if source else type(model).__name__)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(head_size)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(_file_type(stored))
    add_tokenizer(writer, source, config)
    for name, tensor in stored.items():
        writer.add_tensor(name, tensor.data, raw_dtype=tensor.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _file_type(stored: Mapping[str, StoredTensor]) -> LlamaFileType:
    """Return the type that most matrices have, as llama.cpp calls such a file."""
    kinds = Counter(tensor.type for tensor in stored.values() if tensor.value.ndim == 2)
    return SMALL_TYPES.get(kinds.most_common(1)[0][0], LlamaFileType.MOSTLY_F16)


def _check(path: Path, stored: Mapping[str, StoredTensor]) -> None:
    """Raise ExportError unless the package ``gguf`` reads every tensor back bit for bit."""
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name, expected in stored.items():
        tensor = read.get(name)
        if tensor is None:
            raise ExportError(f"{name}: missing in the file; nothing was written")
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if not np.array_equal(value.reshape(expected.value.shape), expected.value):
            raise ExportError(
                f"{name}: gguf reads other values than were packed; nothing was written"
            )
