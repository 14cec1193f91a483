"""The examples run, and those in pairs differ in nothing but what octavo adds."""

import math
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from octavo import Plan, calibrate

EXAMPLES = Path(__file__).parent.parent / "examples"
NEEDS = {
    "loop": ("sklearn",),
    "fabric": ("sklearn", "lightning_fabric"),
    "trainer": ("sklearn", "transformers", "accelerate"),
}
SAVES = ("torch.save", "fabric.save")  # the lines of a plain example that octavo's replaces


def code(name: str) -> list[str]:
    """The lines of an example behind its docstring."""
    return (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").split('"""\n', 1)[1].splitlines()


@pytest.mark.filterwarnings("default")  # other people's libraries warn of each other
@pytest.mark.parametrize("name", NEEDS)
def test_an_example_trains_and_quantizes(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for package in NEEDS[name]:
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    runpy.run_path(str(EXAMPLES / f"{name}_octavo.py"))
    full, quantized = re.findall(r"(?:precision|bits): ([\d.]+) %", capsys.readouterr().out)
    assert float(full) > 95
    assert float(quantized) > float(full) - 3
    assert (tmp_path / "digits.safetensors").is_file()


@pytest.mark.parametrize("name", NEEDS)
def test_the_plain_example_is_octavos_without_octavo(name: str) -> None:
    after = code(f"{name}_octavo")
    kept = [line for line in code(name) if not line.startswith(SAVES)]
    rest = iter(after)
    assert all(line in rest for line in kept), "in this order"
    assert len(after) - len(kept) <= 11


def test_every_pair_is_tested() -> None:
    assert {path.stem.removesuffix("_octavo") for path in EXAMPLES.glob("*_octavo.py")} == set(
        NEEDS
    )


def test_the_notebook_runs_in_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("sklearn", "ipykernel", "matplotlib"):
        pytest.importorskip(package)
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLES), *sys.path]))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "committed without outputs"
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    pictures = [output for output in outputs if "image/png" in output.get("data", ())]
    assert len(pictures) == 2
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "Warning" not in said
    assert (tmp_path / "digits.safetensors").stat().st_size <= 8_500  # its budget


def test_the_c_of_the_microcontroller_computes_what_torch_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    model = runpy.run_path(str(EXAMPLES / "digits.py"))["network"]().eval()
    packed = calibrate(model, Plan.uniform(model, 4), [torch.rand(8, 1, 8, 8)])
    packed.save("digits.safetensors")
    runpy.run_path(str(EXAMPLES / "microcontroller.py"))
    packed.apply(model)

    inputs = torch.randint(-128, 128, (256,))
    listed = ", ".join(map(str, inputs.tolist()))
    Path("main.c").write_text(
        f"""#include <stdio.h>
#include "digits.h"
static const int8_t inputs[256] = {{{listed}}};
int main(void) {{
  for (int row = 0; row < 10; row++)
    printf("%d %d\\n", octavo_dot(layer_12[row], inputs, 256), layer_12_exponents[row]);
}}
"""
    )
    flags = ["-Wall", "-Werror", "-Wno-unused-variable", "-fsanitize=undefined"]
    subprocess.run([compiler, *flags, "main.c", "-o", "main"], check=True)
    lines = subprocess.run(["./main"], check=True, capture_output=True, text=True).stdout
    sums = [
        math.ldexp(int(total), int(power))
        for total, power in map(str.split, lines.split("\n")[:-1])
    ]
    expected = model[12].weight.detach().double() @ inputs.double()
    assert sums == expected.tolist()


def test_the_page_of_the_microcontroller_shows_the_c_of_the_example() -> None:
    page = (EXAMPLES.parent / "docs/microcontroller.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```c\n([\s\S]*?)^```$", page, re.MULTILINE)
    assert shown in (EXAMPLES / "microcontroller.py").read_text(encoding="utf-8")
