"""export, evaluate and verify: what they print, and what they say of bad files."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo.runs.task import load_task
from octavo.storage.container import VERSION
from octavo.storage.packed import Packed


def test_evaluate_and_verify_print_the_figures(octavo: Callable[..., Any], packed: Path) -> None:
    network, task = Packed.load(packed), load_task("tiny.py:Tiny")
    model = task.model()
    network.apply(model)
    figures = {
        "layers": 2,
        "weights": 48,
        "nominal_bits": 3.0,
        "stored_bits": round(network.stored_bits, 3),
        "file_bytes": packed.stat().st_size,
        "ratio": round(network.ratio, 2),
    }
    words = ("evaluate", str(packed), "--task", "tiny.py:Tiny")
    assert json.loads(octavo(*words, "--json").out) == {"score": task.score(model), **figures}
    assert json.loads(octavo("verify", str(packed), "--json").out) == {
        "verified": str(packed),
        **figures,
    }
    assert f"score  {round(task.score(model), 3)}\n" in octavo(*words).out
    assert (
        f"  nominal bits  3.0\n   stored bits  {figures['stored_bits']}\n"
        in octavo("verify", str(packed)).out
    )


def test_export_prints_what_the_check_found_and_evaluate_scores_the_file(
    octavo: Callable[..., Any], packed: Path
) -> None:
    words = ("export", str(packed), "--task", "tiny.py:Tiny", "-o", "net.onnx")
    made = json.loads(octavo(*words, "--json").out)
    assert made.pop("largest_difference") < 1e-5
    size = Path("net.onnx").stat().st_size
    assert made == {
        "written": "net.onnx",
        "form": "lut",
        "file_bytes": size,
        "same_class": 1.0,
        "inexact_layers": [],
    }
    assert re.search(r"largest difference  \d", octavo(*words, "--form", "fp8").out)
    score = json.loads(octavo("evaluate", str(packed), "-t", "tiny.py:Tiny", "--json").out)["score"]
    evaluated = json.loads(octavo("evaluate", "net.onnx", "-t", "tiny.py:Tiny", "--json").out)
    assert evaluated["score"] == pytest.approx(score, abs=1e-4)


def test_export_to_int8_prints_both_scores(octavo: Callable[..., Any], packed: Path) -> None:
    words = (
        "export",
        str(packed),
        "--task",
        "tiny.py:Tiny",
        "--form",
        "int8",
        "-o",
        "net.onnx",
        "--json",
    )
    made = json.loads(octavo(*words).out)
    assert made["score"] == pytest.approx(made["packed_score"], abs=0.2)
    assert made["score"] != made["packed_score"]


def header(data: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def newer(data: bytes) -> bytes:
    content, rest = header(data)
    content["__metadata__"]["octavo"] = json.dumps(
        json.loads(content["__metadata__"]["octavo"]) | {"version": 99}
    )
    text = json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text + rest


def someone_elses(data: bytes) -> bytes:
    content, rest = header(data)
    del content["__metadata__"]
    text = json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text + rest


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda data: data[:-9], "truncated or damaged"),
    "cut short": (lambda data: data[:20], "not octavo's, or cut or damaged"),
    "empty": (lambda data: b"", "not octavo's, or cut or damaged"),
    "altered": (
        lambda data: data[:-2] + bytes([data[-2] ^ 1]) + data[-1:],
        "checksum does not match",
    ),
    "newer": (
        newer,
        f"format version 99 is newer than {VERSION}, the newest this octavo reads: upgrade octavo",
    ),
    "not ours": (someone_elses, "expected a safetensors file with octavo's header, found none"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_file_is_named_with_its_cause(
    damage: str, packed: Path, refused: Callable[..., str]
) -> None:
    spoil, cause = DAMAGE[damage]
    packed.write_bytes(spoil(packed.read_bytes()))
    for words in (["verify", str(packed)], ["evaluate", str(packed), "-t", "tiny.py:Tiny"]):
        said = refused(*words)
        assert said.startswith(f"{packed}: ")
        assert cause in said


def test_the_wrong_network_for_a_packed_file(packed: Path, refused: Callable[..., str]) -> None:
    wider = refused("evaluate", str(packed), "-t", "tiny.py:Tiny", "-O", "width=7")
    assert wider == "0.weight: expected shape (6, 5) as packed, got (7, 5) in the model"
    other = refused("evaluate", str(packed), "-t", "tiny.py:Normed")
    assert other == "0.weight: missing in the model; expected the architecture that was packed"


@pytest.mark.parametrize(
    ("form", "file", "said"),
    [
        (
            "mx",
            "net.mx",
            "expected a packed network, got an export in the form mx: `octavo export`",
        ),
        ("lut", "net.onnx", "expected a packed network, got an ONNX file: `octavo export` checked"),
    ],
)
def test_verify_knows_octavos_other_files(
    form: str, file: str, said: str, packed: Path, octavo: Callable[..., Any],
    refused: Callable[..., str],
) -> None:  # fmt: skip
    words = ["export", str(packed), "-t", "tiny.py:Tiny", "--form", form, "-o", file]
    assert octavo(*words).status == 0
    message = refused("verify", file)
    assert message.startswith(f"{file}: {said}")
    assert "give the packed file that it was made from" in message


def test_a_limit_on_what_a_file_decodes_to(
    octavo: Callable[..., Any], packed: Path, refused: Callable[..., str]
) -> None:
    assert octavo("verify", str(packed), "--limit", "1000000").status == 0
    for words in (["verify"], ["evaluate", "-t", "tiny.py:Tiny"]):
        said = refused(words[0], str(packed), *words[1:], "--limit", "9")
        assert said.startswith(f"{packed}: expected at most 9 bytes once decoded, found ")
