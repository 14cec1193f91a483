"""A file as a module: called as the network is, refused with a cause, compared fairly."""

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from octavo.deploy.runtime import OnnxModel
from octavo.errors import ExportError, FormatError, PlanError


def model(op: str = "Sub", opset: int = 21, outputs: int = 1) -> onnx.ModelProto:
    """``x - y``, by either name, once or twice."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("x", "y")
    ]
    results = [
        helper.make_tensor_value_info(f"out{i}", TensorProto.FLOAT, ["batch", 3])
        for i in range(outputs)
    ]
    nodes = [helper.make_node(op, ["x", "y"], [f"out{i}"]) for i in range(outputs)]
    graph = helper.make_graph(nodes, "g", values, results)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def test_called_like_the_network() -> None:
    x, y = torch.rand(2, 3), torch.rand(2, 3)
    runner = OnnxModel(model().SerializeToString())
    assert torch.equal(runner(x, y), x - y)
    assert torch.equal(runner(y=y, x=x), x - y)
    assert torch.equal(runner(x, y=y), x - y)
    with pytest.raises(PlanError, match=r"^the ONNX model expects inputs called x, y; y missing$"):
        runner(x, z=y)
    twice = OnnxModel(model(outputs=2).SerializeToString())((x, y))
    assert isinstance(twice, tuple)
    assert len(twice) == 2


def test_a_file_that_onnx_runtime_does_not_know_says_what_to_install(tmp_path: Path) -> None:
    path = tmp_path / "new.onnx"
    path.write_bytes(model(opset=99).SerializeToString())
    with pytest.raises(
        FormatError,
        match=rf"^{path}: ONNX Runtime .* does not take it, .* its extra onnx, upgraded: ",
    ):
        OnnxModel(path)
    path.write_bytes(b"no model")
    with pytest.raises(FormatError, match=rf"^{path}: ONNX Runtime "):
        OnnxModel(path)
    with pytest.raises(FormatError, match=r"none.onnx: No such file or directory$"):
        OnnxModel(tmp_path / "none.onnx")


def test_what_onnx_runtime_cannot_run_is_one_line() -> None:
    """It checks shapes only as it runs."""
    said = r"^the ONNX model: ONNX Runtime cannot run it on these inputs: Fail: .* running Sub node"
    with pytest.raises(ExportError, match=said) as raised:
        OnnxModel(model().SerializeToString())(torch.rand(2, 3), torch.rand(5, 3))
    assert "\n" not in str(raised.value)
    with pytest.raises(ExportError, match=r"cannot run it on these inputs: TypeError: "):
        OnnxModel(model().SerializeToString())(torch.rand(2, 3), torch.rand(2, 3).bfloat16())
