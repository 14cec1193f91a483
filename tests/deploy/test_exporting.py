"""export: the registry of forms, what it refuses, and that it leaves nothing half-written and
nothing changed."""

import builtins
import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo import calibrate
from octavo.deploy.exporting import export, export_checked, load_onnx
from octavo.deploy.forms import FORMS, check_forms
from octavo.errors import ExportError, PlanError
from octavo.formats.powers_of_two import power_of_two
from octavo.network.layers import find_layers
from octavo.storage.packed import Packed, pack
from octavo.storage.quantized import Quantized

Share = Callable[[str], object]


def network() -> nn.Module:
    """The same network each time."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def quantize(model: nn.Module, bits: int = 4) -> Packed:
    layers = {}
    for layer in find_layers(model)[0]:
        book = power_of_two(layer.weight, bits, per="channel")
        layers[layer.name] = Quantized.of(layer, book, book.encode(layer.weight))
    return pack(model, layers)


OF_TRANSFORMERS = ("hf", "gguf")  # forms of its models alone, which have tests of their own


def test_the_public_function_is_this_one() -> None:
    assert octavo.export is export


@pytest.mark.parametrize("form", [form for form in FORMS if form not in OF_TRANSFORMERS])
def test_each_form_leaves_the_model_as_it_was_and_gives_back_the_path(
    form: Any, share_trace: Share, tmp_path: Path
) -> None:
    share_trace("plain")
    model = network()  # in training mode, in full precision
    packed = quantize(model)
    before = copy.deepcopy(model.state_dict())
    path = export(model, packed, tmp_path / "net", form=form, example=torch.randn(512, 6))
    assert path == tmp_path / "net"
    assert [p.name for p in path.parent.iterdir()] == ["net"]
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    if form != "mx":
        quantized = copy.deepcopy(model).eval()
        packed.apply(quantized)
        x = torch.randn(3, 6)
        torch.testing.assert_close(
            load_onnx(path)(x), quantized(x), rtol=0, atol=1e-5 if form != "int8" else 0.1
        )


def test_the_default_is_lut(share_trace: Share, tmp_path: Path) -> None:
    share_trace("plain")
    model = network()
    made = export_checked(model, quantize(model), tmp_path / "net.onnx", example=torch.randn(4, 6))
    assert (made.form, made.bytes, made.agreement, made.inexact) == (
        "lut",
        made.path.stat().st_size,
        1.0,
        (),
    )


def test_arguments_by_name(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(
            self, x: torch.Tensor, add: torch.Tensor | None = None, times: int = 1
        ) -> dict[str, torch.Tensor]:
            y = self.linear(x) * times
            return {"y": y if add is None else y + add, "x": 2 * x}

    model = Two()
    packed = quantize(model)
    packed.apply(model)
    for example in (
        {"x": torch.randn(4, 6), "add": torch.randn(4, 3)},
        (torch.randn(4, 6), torch.randn(4, 3)),
        {"x": torch.randn(1, 6)},
    ):
        path = export(model, packed, tmp_path / "net.onnx", form="lut", example=example)
        given = (
            example if isinstance(example, dict) else dict(zip(("x", "add"), example, strict=True))
        )
        torch.testing.assert_close(load_onnx(path)(**given)[0], model(**given)["y"])


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (
            {"form": "lutt"},
            ExportError,
            r"^form: expected one .* float, mx, hf, gguf, got 'lutt' \(the nearest is 'lut'\)$",
        ),
        (
            {"form": "onnx"},
            ExportError,
            r"^form: expected one .* gguf, got 'onnx'; for onnx write lut, fp8, int8 or float$",
        ),
        ({"form": "safetensors"}, ExportError, r"got 'safetensors'; for safetensors write mx$"),
        ({"example": []}, PlanError, r"^example: expected at least one batch of inputs, got none$"),
        ({"model": nn.Linear(2, 2)}, PlanError, r"missing in the (model|packed network)"),
        ({"example": torch.randn(4, 7)}, ExportError, r"^0: torch cannot trace it: "),
        (
            {"bits": 6, "form": "int8"},
            ExportError,
            r"^0: int8 does not hold the 33 levels of its width, 6$",
        ),
        (
            {"bits": 8, "form": "fp8"},
            ExportError,
            r"^0: FP8 E4M3 does not hold the 129 levels of its width, 8$",
        ),
    ],
)  # fmt: skip
def test_what_is_refused_leaves_what_was_there(
    change: dict[str, Any], error: type[Exception], said: str, share_trace: Share, tmp_path: Path
) -> None:
    if "bits" in change:
        share_trace("plain")
    model, path = network(), tmp_path / "net.onnx"
    path.write_text("before")
    packed = quantize(model, change.get("bits", 4))
    given: dict[str, Any] = {"model": model, "form": "lut", "example": torch.randn(4, 6)} | {
        k: v for k, v in change.items() if k != "bits"
    }
    with pytest.raises(error, match=said):
        export(packed=packed, path=path, **given)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("net.onnx", "before")]


def test_a_file_that_computes_something_else_is_not_written(
    share_trace: Share, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share_trace("plain")
    from octavo.deploy import comparison

    monkeypatch.setattr(comparison, "differences", lambda *_: (2e-4, 0.0))
    model = network()
    with pytest.raises(
        ExportError,
        match=(
            r"^Sequential: ONNX Runtime's outputs are not PyTorch's: "
            r"the largest difference is 2\.0e-04 of "
        ),
    ):
        export(model, quantize(model), tmp_path / "net.onnx", example=torch.randn(4, 6))
    assert list(tmp_path.iterdir()) == []


class Projected(nn.Module):
    """ONNX Runtime takes the file and cannot run it."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, proj_size=2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.lstm(x)[0]
        return outputs


def test_a_file_that_cannot_be_run_is_not_written(tmp_path: Path) -> None:
    model = Projected().eval()
    with pytest.raises(
        ExportError,
        match=r"^the ONNX model: ONNX Runtime cannot run it on these inputs: .* LSTM node",
    ):
        export(model, quantize(model), tmp_path / "net.onnx", example=torch.randn(2, 3, 4))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_onnx_runtime_does_not_take_is_not_written(
    share_trace: Share, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share_trace("plain")
    from octavo.deploy import runtime

    def refuse(_: bytes) -> None:
        raise RuntimeError("opset 99")

    monkeypatch.setattr(runtime, "_session", refuse)
    model = network()
    with pytest.raises(
        ExportError,
        match=r"^Sequential: the ONNX model: ONNX Runtime .*: opset 99; nothing was written$",
    ):
        export(model, quantize(model), tmp_path / "net.onnx", example=torch.randn(4, 6))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["onnx", "onnx_ir", "onnxruntime"])
def test_without_a_library_the_message_says_what_to_install(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _forget(monkeypatch)
    monkeypatch.setattr(builtins, "__import__", _without(missing))
    model = network()
    packed, said = quantize(model), rf"^ONNX needs {missing}: install octavo with its extra onnx$"
    with pytest.raises(ExportError, match=said):
        export(model, packed, tmp_path / "net.onnx", example=torch.randn(4, 6))
    with pytest.raises(ExportError, match=said):
        check_forms(["mx", "lut"])
    assert list(tmp_path.iterdir()) == []
    export(
        model, packed, tmp_path / "net.safetensors", form="mx", example=()
    )  # which needs none of them


def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("octavo.deploy.")]:
        if name not in ("octavo.deploy.exporting", "octavo.deploy.forms"):
            monkeypatch.delitem(sys.modules, name)


def _without(missing: str) -> Callable[..., Any]:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return real(name, *args, **kwargs)

    return without


def test_only_a_form_that_runs_the_model_needs_an_example(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(32, 4))
    packed = calibrate(model, {"0": 3}, [torch.randn(8, 32)])
    assert export(model, packed, tmp_path / "m.mx", form="mx").is_file()
    for form in ("lut", "int8"):
        with pytest.raises(PlanError, match="example=inputs"):
            export(model, packed, tmp_path / "m.onnx", form=form)
