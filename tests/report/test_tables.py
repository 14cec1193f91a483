"""The tables that people look at, cell by cell."""

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from octavo.activations.quantizer import InputFormat, install_quantizers
from octavo.deploy.exporting import Exported
from octavo.inq.incremental import Incremental
from octavo.inspection import Inspection, Row, inspect
from octavo.plan import Plan
from octavo.report.tables import (
    bits_range,
    exported_rows,
    inspection_table,
    packed_layers_table,
    packed_rows,
    result_table,
    skipped_table,
)
from octavo.runs.details import packed_layers
from octavo.storage.packed import Packed, pack


def cells(table: Table) -> list[list[str]]:
    """The rows of a table as it is printed, the head first."""
    console = Console(file=StringIO(), width=200, color_system=None, legacy_windows=False)
    console.print(table)
    assert isinstance(console.file, StringIO)
    lines = [line.replace("┃", "│") for line in console.file.getvalue().splitlines()]
    return [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in lines
        if line.startswith("│")
    ]


RESULT = {
    "float_score": 91.73,
    "control_score": 92.005,
    "score": 91.5,
    "nominal_bits": 3.0,
    "stored_bits": 2.3149,
    "float_bytes": 1_089_000,
    "file_bytes": 88_123,
    "ratio": 12.3577,
    "seconds": 83.4,
    "stages": [],
}


def test_the_result_beside_what_it_started_from_and_its_control() -> None:
    assert cells(result_table(RESULT)) == [
        ["", "full precision", "control", "quantized"],
        ["metric", "91.73", "92.00", "91.50"],
        ["nominal bits per weight", "32", "32", "3.00"],
        ["stored bits per weight", "32", "32", "2.31"],
        ["bytes", "1,089,000", "1,089,000", "88,123"],
        ["times smaller", "1.0", "1.0", "12.4"],
        ["time", "", "", "83 s in all"],
    ]


def test_a_control_that_was_not_run_is_not_a_zero() -> None:
    without = {key: value for key, value in RESULT.items() if key != "control_score"}
    assert cells(result_table(without))[1] == ["metric", "91.73", "not run", "91.50"]


def test_a_metric_below_ten_keeps_its_digits() -> None:
    loss = RESULT | {"float_score": -0.029754, "score": -0.037112, "control_score": 0.9173}
    assert cells(result_table(loss))[1] == ["metric", "-0.02975", "0.9173", "-0.03711"]


def test_what_does_not_retrain_has_no_control() -> None:
    untrained = {
        key: value for key, value in RESULT.items() if key not in ("control_score", "stages")
    }
    table = result_table(untrained)
    assert cells(table)[:2] == [["", "full precision", "quantized"], ["metric", "91.73", "91.50"]]
    assert table.caption == "metric: the score of the task, higher is better"


class Net(nn.Module):
    """Names that would vanish as markup, a tied weight, parameters that are skipped for two
    reasons."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("[bold]", nn.Conv2d(2, 4, 3, padding=1))
        self.lift = nn.Linear(4, 1250, bias=False)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 1250, bias=False)
        self.head.weight = self.lift.weight

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        pixels = self.get_submodule("[bold]")(image).flatten(2).transpose(1, 2)
        result: torch.Tensor = self.lift(pixels) + self.head(self.norm(pixels))
        return result


@pytest.mark.parametrize(
    ("example", "macs"), [(torch.zeros(1, 2, 3, 3), ["648", "90,000"]), (None, ["", ""])]
)
def test_layers_that_can_be_quantized(example: torch.Tensor | None, macs: list[str]) -> None:
    found = inspect(Net(), example)
    assert cells(inspection_table(found)) == [
        ["layer", "kind", "shape", "weights", "MACs", "tied to"],
        ["[bold]", "conv2d", "4x2x3x3", "72", macs[0], ""],
        ["lift", "linear", "1250x4", "5,000", macs[1], "head.weight"],
    ]


def test_what_is_skipped_is_one_row_for_each_reason() -> None:
    assert cells(skipped_table(inspect(Net()))) == [
        ["parameters", "weights", "why", "for example"],
        ["2", "8", "biases stay in float", "[bold].bias"],
        ["1", "4", "norms stay in float", "norm.weight"],
    ]


def test_the_bits_of_activations_are_told_where_there_are_any() -> None:
    model = Net()
    install_quantizers(model, {"lift": InputFormat(4, signed=True)})
    rows = cells(inspection_table(inspect(model)))
    assert [row[-1] for row in rows] == ["bits of its inputs", "float", "4"]
    assert ["1", "1", "scales of activations stay in float", "lift.input_quantizer.step"] in cells(
        skipped_table(inspect(model))
    )
    recurrent = skipped_table(inspect(nn.Sequential(nn.LSTM(2, 2))))
    assert [
        "its inputs",
        "",
        "LSTM multiplies what it computes inside, which no hook reaches",
        "0",
    ] in cells(recurrent)
    assert ["bits of activations", "32", "32", "4 to 8"] in cells(
        result_table(RESULT | {"activation_bits": {"a": 8, "b": 4}})
    )
    assert ["bits of activations", "32", "32", "4"] in cells(
        result_table(RESULT | {"activation_bits": {"a": 4, "b": 4}})
    )
    network = pack(model, {})
    assert bits_range(form.bits for form in network.activations.values()) == "4"


def test_nothing_found_is_an_empty_table() -> None:
    assert len(cells(inspection_table(Inspection((), (), None, None)))) == 1


def packed() -> Packed:
    model = nn.Sequential(nn.Linear(10, 30), nn.Linear(30, 20, bias=False))
    incremental = Incremental(model, Plan({"0": 2, "1": 5}), portions=(1.0,))
    list(incremental)
    return incremental.finish()


STEP = (("0.input_quantizer.step",), torch.tensor(0.25))


def test_the_figures_of_a_packed_file(tmp_path: Any) -> None:
    network = packed()
    network.save(tmp_path / "net")
    size = (tmp_path / "net").stat().st_size
    rows = packed_rows(network)
    assert 0.5 < rows.pop("stored_bits") < 30
    assert rows == {
        "layers": 2,
        "weights": 900,
        "nominal_bits": round((300 * 2 + 600 * 5) / 900, 3),
        "file_bytes": size,
        "ratio": round((4 * 900 + 4 * 30) / size, 2),
    }
    rounded = Packed(network.layers, [*network.floats, STEP], {"0": InputFormat(8, signed=True)})
    assert packed_rows(rounded)["activation_bits"] == "8"


def test_the_layers_of_a_packed_file() -> None:
    torch.manual_seed(0)
    layers = (nn.ConvTranspose2d(6, 4, 3), nn.Linear(30, 20, bias=False))
    model = nn.Sequential(*layers)
    with torch.no_grad():
        layers[1].weight[:, :12] = 0
    incremental = Incremental(model, {"0": 4, "1": "apot5"}, portions=(1.0,), masks={})
    list(incremental)
    network = incremental.finish()
    zeros = [float((layer.weight == 0).float().mean()) for layer in layers]
    assert zeros[1] >= 0.4
    first, second = packed_layers(network)
    bytes_of = [row.pop("stored_bytes") for row in (first, second)]
    assert first == {
        "name": "0", "shape": [6, 4, 3, 3], "weights": 216, "bits": 4, "zeros": round(zeros[0], 4)
    }  # fmt: skip
    assert second == {
        "name": "1", "shape": [20, 30], "weights": 600, "bits": "apot5",
        "zeros": round(zeros[1], 4),
    }  # fmt: skip
    assert cells(packed_layers_table(network)) == [
        ["layer", "shape", "weights", "bits", "bytes", "zeros"],
        ["0", "6x4x3x3", "216", "4", f"{bytes_of[0]:.0f}", f"{zeros[0]:.1%}"],
        ["1", "20x30", "600", "apot5", f"{bytes_of[1]:.0f}", f"{zeros[1]:.1%}"],
    ]
    rounded = Packed(network.layers, [*network.floats, STEP], {"0": InputFormat(8, signed=True)})
    assert [row["activation_bits"] for row in packed_layers(rounded)] == [8, None]
    assert [row[-1] for row in cells(packed_layers_table(rounded))[1:]] == ["8", "float"]


def test_the_figures_of_an_exported_file() -> None:
    rows = {"written": "net.onnx", "form": "lut", "file_bytes": 7, "inexact_layers": []}
    assert exported_rows(Exported(Path("net.onnx"), "lut", 7, None, None, ())) == rows
    measured = exported_rows(Exported(Path("net.onnx"), "int8", 7, 0.25, 0.5, ("conv1",)))
    assert measured == rows | {
        "form": "int8",
        "largest_difference": 0.25,
        "same_class": 0.5,
        "inexact_layers": ["conv1"],
    }


def test_no_name_steers_the_terminal_or_is_markup() -> None:
    row = Row("[bold]\x1b[2J\u202e", "linear", (1,), 1, None, ())
    table = inspection_table(Inspection((row,), (), None, None))
    assert cells(table)[1][0] == r"[bold]\x1b[2J\u202e"
