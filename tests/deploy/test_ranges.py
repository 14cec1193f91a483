"""Ranges over all batches, and steps that cover them with zero among the levels."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper

from octavo.deploy.ranges import Range, measure


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 6.0), (-1.0, 3.0), (-2.0, 0.0), (0.0, 0.0), (-1e-20, 1e-20)]
)
def test_codes_cover_the_range_and_zero_is_one_of_them(low: float, high: float) -> None:
    span = Range(low, high)
    levels = (np.arange(256) - span.zero.astype(np.int64)) * span.scale.astype(np.float64)
    assert levels.min() <= low + span.scale / 2
    assert levels.max() >= high - span.scale / 2
    assert 0 in levels
    assert span.scale.shape == ()
    assert span.zero.dtype == np.dtype(np.uint8)


def test_the_extremes_of_all_batches_of_inputs_and_inner_values() -> None:
    info = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch"]) for name in ("x", "y")
    ]
    nodes = [helper.make_node("Neg", ["x"], ["inner"]), helper.make_node("Neg", ["inner"], ["y"])]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:])
    model = ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    )
    found = measure(model, [torch.tensor([1.0, 2.0]), {"x": torch.tensor([-5.0])}], ["inner", "x"])
    assert found == {"inner": Range(-2.0, 5.0), "x": Range(-5.0, 2.0)}
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert measure(model, [torch.tensor([3.0, 4.0])], ["x"]) == {"x": Range(0.0, 4.0)}
