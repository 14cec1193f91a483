"""The form float: the weights as they are."""

from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import nn

from octavo.deploy.exporting import export_checked
from octavo.storage.packed import Packed


def test_the_float_form_holds_the_weights_as_they_are(
    tmp_path: Path, codes_of_all_levels: Callable[..., Packed]
) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.ConvTranspose2d(5, 4, 2, groups=1)
    ).eval()
    packed = codes_of_all_levels(network, cycle([3]), "channel")
    made = export_checked(
        network, packed, tmp_path / "net.onnx", form="float", example=torch.randn(2, 3, 6, 6)
    )
    held = {
        tensor.name: ir.from_proto(tensor).numpy()
        for tensor in onnx.load(made.path).graph.initializer
    }
    for name, layer in packed.layers.items():
        assert np.array_equal(held[f"{name}.weight"], layer.weight().numpy())
