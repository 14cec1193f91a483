"""The examples run, and those in pairs differ in nothing but what octavo adds."""

import re
import runpy
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
