"""The examples run, and those in pairs differ in nothing but what octavo adds."""

import os
import re
import runpy
import sys
from pathlib import Path

import pytest

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
    for package in ("sklearn", "ipykernel", "nbformat"):
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
    assert {output.output_type for output in outputs} == {"stream"}, "no errors"
    assert all(output.name == "stdout" for output in outputs), "no warnings"
    assert (tmp_path / "digits.safetensors").stat().st_size <= 8_500  # its budget
