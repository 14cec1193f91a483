"""Code that a user of each package writes: to quantize a network and save it, and to load it again.

Every package is used as its own documentation says, weights only, and at its best settings known to
us. A contender saves into an empty folder; all files there count. ``save`` returns the quantized
network as it is before it is saved, or None where the package has none.
"""

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn

Images = Sequence[Tensor]


@dataclass(frozen=True)
class Contender:
    """A way to a small file.

    Attributes:
        package: its name in the package index.
        save: quantizes a network with the help of images, and saves it into a folder.
        load: loads the file from a folder into a network in full precision.

    """

    package: str
    save: Callable[[nn.Module, Images, Path], nn.Module | None]
    load: Callable[[nn.Module, Path], nn.Module]


def save_octavo(model: nn.Module, images: Images, folder: Path, *, width: Any, rate: float) -> Any:
    from octavo import Plan, calibrate

    plan = Plan.uniform(model, width)
    packed = calibrate(model, plan, images, absorb=True, rate=rate, floats="folded", coding="small")
    packed.save(folder / "model.safetensors")
    packed.apply(model)
    return model


def load_octavo(model: nn.Module, folder: Path) -> nn.Module:
    from octavo import Packed

    Packed.load(folder / "model.safetensors").apply(model)
    return model


def nncodec() -> Any:
    """Return nncodec's coder of networks. It imports torchvision for data sets that nothing here
    uses, and torchvision's wheels load only beside torch's for CUDA: then nothing stands in for it.
    """
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in ("torchvision", "torchvision.transforms", "torchvision.datasets"):
            sys.modules[name] = MagicMock(__path__=[], __spec__=None)
    return importlib.import_module("nncodec.nn")


def save_nncodec(model: nn.Module, _: Images, folder: Path, **settings: Any) -> None:
    encode = nncodec().encode
    state = {name: value.numpy() for name, value in model.state_dict().items() if value.dim()}
    encode(state, args={**settings, "use_dq": True, "results": str(folder), "verbose": False})


def load_nncodec(model: nn.Module, folder: Path) -> nn.Module:
    decode = nncodec().decode
    (path,) = folder.glob("*.nnc")
    state = decode(str(path))
    model.load_state_dict({name: torch.tensor(v) for name, v in state.items()}, strict=False)
    return model


def save_quanto(model: nn.Module, _: Images, folder: Path, *, weights: str, hqq: bool) -> Any:
    from optimum.quanto import HqqOptimizer, freeze, quantization_map, quantize
    from safetensors.torch import save_file

    quantize(model, weights=weights, optimizer=HqqOptimizer() if hqq else None)
    freeze(model)
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "quantization_map.json").write_text(json.dumps(quantization_map(model)))
    return model


def load_quanto(model: nn.Module, folder: Path) -> nn.Module:
    from optimum.quanto import requantize
    from safetensors.torch import load_file

    names = json.loads((folder / "quantization_map.json").read_text())
    requantize(model, load_file(folder / "model.safetensors"), names, device=torch.device("cpu"))
    return model.eval()


def save_torchao(model: nn.Module, _: Images, folder: Path) -> nn.Module:
    from torchao.quantization import IntxWeightOnlyConfig, PerAxis, quantize_

    config = IntxWeightOnlyConfig(
        weight_dtype=torch.int4,  # type: ignore[attr-defined]
        granularity=PerAxis(0),
    )
    layers = (nn.Conv2d, nn.Linear)
    quantize_(model, config, filter_fn=lambda module, _: isinstance(module, layers))
    torch.save(model.state_dict(), folder / "model.pt")
    return model


def load_torchao(model: nn.Module, folder: Path) -> nn.Module:
    import torchao  # noqa: F401  # its tensors load only once it is imported

    model.load_state_dict(torch.load(folder / "model.pt"), assign=True)
    return model


def _brevitas(model: nn.Module) -> nn.Module:
    from brevitas.graph.quantize import layerwise_quantize
    from brevitas.nn import QuantConv2d, QuantLinear
    from brevitas.quant import Int8WeightPerChannelFloatMSE

    weights = {"weight_quant": Int8WeightPerChannelFloatMSE, "weight_bit_width": 4}
    layers = {nn.Conv2d: (QuantConv2d, weights), nn.Linear: (QuantLinear, weights)}
    network: nn.Module = layerwise_quantize(model, compute_layer_map=layers).eval()
    network(torch.zeros(1, 3, 32, 32))  # its quantizers are set up by the first call
    return network


def save_brevitas(model: nn.Module, images: Images, folder: Path) -> nn.Module:
    from brevitas.graph.gptq import gptq_mode

    model = _brevitas(model)
    settings = {"use_quant_activations": False, "act_order": True, "create_weight_orig": False}
    with torch.no_grad(), gptq_mode(model, **settings) as gptq:
        for _ in range(gptq.num_layers):
            for batch in images:
                gptq.model(batch)
            gptq.update()
    torch.save(model.state_dict(), folder / "model.pt")
    return model


def load_brevitas(model: nn.Module, folder: Path) -> nn.Module:
    model = _brevitas(model)
    model.load_state_dict(torch.load(folder / "model.pt"))
    return model


def _octavo(width: Any, rate: float) -> Contender:
    return Contender("octavo", partial(save_octavo, width=width, rate=rate), load_octavo)


def _nncodec(qp: int, *, opt_qp: bool) -> Contender:
    return Contender("nncodec", partial(save_nncodec, qp=qp, opt_qp=opt_qp), load_nncodec)


def _quanto(weights: str, *, hqq: bool) -> Contender:
    save = partial(save_quanto, weights=weights, hqq=hqq)
    return Contender("optimum-quanto", save, load_quanto)


CONTENDERS = {
    "nncodec, qp -20": _nncodec(-20, opt_qp=False),
    "nncodec, qp -24": _nncodec(-24, opt_qp=False),
    "nncodec, qp -28": _nncodec(-28, opt_qp=False),
    "nncodec, qp -24, opt_qp": _nncodec(-24, opt_qp=True),
    "torchao, int4": Contender("torchao", save_torchao, load_torchao),
    "Brevitas, GPTQ, 4 bits": Contender("brevitas", save_brevitas, load_brevitas),
    "optimum-quanto, int4": _quanto("qint4", hqq=False),
    "optimum-quanto, int8": _quanto("qint8", hqq=False),
    "octavo, 4 bits, rate 1.5": _octavo(4, 1.5),
    "nncodec, qp -28, opt_qp": _nncodec(-28, opt_qp=True),
    "optimum-quanto, int2": _quanto("qint2", hqq=False),
    "octavo, apot5, rate 13": _octavo("apot5", 13),
    "optimum-quanto, int4, HQQ": _quanto("qint4", hqq=True),
    "nncodec, qp -16": _nncodec(-16, opt_qp=False),
    "nncodec, qp -20, opt_qp": _nncodec(-20, opt_qp=True),
    "nncodec, qp -32": _nncodec(-32, opt_qp=False),
    "octavo, apot5, rate 40": _octavo("apot5", 40),
    "octavo, fp4": _octavo("fp4", 0),
    "optimum-quanto, int2, HQQ": _quanto("qint2", hqq=True),
}
