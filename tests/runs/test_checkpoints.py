"""The files of a run's state: every damage is named before anything of it is used."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.runs.tiny import recipe

from octavo.errors import FormatError
from octavo.runs.checkpoints import read_checkpoint, refusing, write_checkpoint
from octavo.runs.run import run
from octavo.storage.checksum import sealed

pytestmark = pytest.mark.usefixtures("folder")

CONTENT = {"digest": "abc", "log": [{"loss": 0.5}], "state": {"w": torch.arange(6.0)}}
SCHEMA = {"log": list, "state": Mapping}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "s.pt", CONTENT)
    return tmp_path / "s.pt"


def test_what_was_written_is_read(path: Path) -> None:
    read = read_checkpoint(path, SCHEMA, "abc")
    assert torch.equal(read["state"]["w"], CONTENT["state"]["w"])  # type: ignore[index]
    assert read["log"] == CONTENT["log"]


def refused(path: Path, digest: str = "abc") -> str:
    with (
        pytest.raises(FormatError) as caught,
        refusing(path, "the state", "delete it"),
    ):
        read_checkpoint(path, SCHEMA, digest)
    message = str(caught.value)
    assert message.startswith(f"{path}: expected the state of this task's network, got a file that")
    assert message.endswith("; delete it")
    assert "\n" not in message
    return message


def test_no_byte_of_a_tensor_can_change_unnoticed(path: Path) -> None:
    whole = path.read_bytes()
    at = whole.index(CONTENT["state"]["w"].numpy().tobytes())  # type: ignore[index]
    for offset in range(6 * 4):
        damaged = bytearray(whole)
        damaged[at + offset] ^= 1
        path.write_bytes(damaged)
        assert "its checksum is not that of its content" in refused(path)


def test_any_damaged_byte_is_refused_or_changes_nothing(path: Path) -> None:
    whole = path.read_bytes()
    generator = random.Random(0)
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            with refusing(path, "the state", "delete it"):
                read = read_checkpoint(path, SCHEMA, "abc")
        except FormatError:
            continue
        assert sealed(read) == read  # a byte that says nothing, such as a time stamp
        assert torch.equal(read["state"]["w"], torch.arange(6.0))


def test_a_file_that_was_cut_off_anywhere_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        refused(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (CONTENT, "expected a checksum, found none"),  # as earlier versions wrote it
        (sealed(CONTENT | {"log": "none"}), "expected a list called log, got 'none'"),
        (sealed(CONTENT | {"state": 3}), "expected a mapping called state, got 3"),
        (sealed({"digest": "abc"}), "expected a list called log, got None"),
        ([1, 2], "expected a mapping, got list"),
        (torch.ones(2), "expected a mapping, got Tensor"),
    ],
)
def test_other_contents_are_refused(content: Any, said: str, path: Path) -> None:
    torch.save(content, path)
    assert said in refused(path)


def test_the_state_of_other_weights_is_refused(path: Path) -> None:
    assert "the task's weights have changed since" in refused(path, "xyz")


STATES = [
    "one/quantized.pt",
    "one/quantized-stage.pt",
    "control-*/control.pt",
    "warmup-*/warmup.pt",
]


def flip(saved: dict[str, Any], path: Path) -> None:
    """Flip a bit of the first weight in the file."""
    state = saved["state"].get("model", saved["state"])
    weight = next(value for value in state.values() if value.dtype == torch.float32)
    data = path.read_bytes()
    at = data.index(weight.contiguous().numpy().tobytes())
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


@pytest.mark.parametrize("which", STATES)
def test_a_flipped_bit_of_a_weight_does_not_give_another_network(
    which: str, folder: Path, begun_inside: Callable[..., Path]
) -> None:
    begun_inside()
    path = next(folder.parent.glob(which))
    flip(torch.load(path, weights_only=True), path)
    with pytest.raises(FormatError, match=rf"^{path}: .*its checksum is not that.*; delete it to"):
        run(recipe(warmup=1), folder)
    path.unlink()
    assert run(recipe(warmup=1), folder)["score"]


NAN = torch.tensor(float("nan"))
CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "the log is empty": lambda saved: saved["log"].clear(),
    "the log is longer": lambda saved: saved["log"].append(saved["log"][0]),
    "the log is too long": lambda saved: saved["log"].extend(saved["log"] * 3),
    "an entry is a text": lambda saved: saved["log"].__setitem__(0, "x"),
    "an entry has no seconds": lambda saved: saved["log"][0].pop("seconds"),
    "seconds are a text": lambda saved: saved["log"][0].update(seconds="long"),
    "done is negative": lambda saved: saved["state"].update(done=-1),
    "done is too large": lambda saved: saved["state"].update(done=9),
    "done is a text": lambda saved: saved["state"].update(done="x"),
    "one exponent for a tensor": lambda saved: saved["state"]["tops"].update(
        {"0": saved["state"]["tops"]["0"].flatten()[0]}
    ),
    "exponents are missing": lambda saved: saved["state"]["tops"].clear(),
    "exponents are NaN": lambda saved: saved["state"]["tops"].update({"0": NAN.expand(6)}),
    "weights are NaN": lambda saved: next(iter(saved["state"]["model"].values())).fill_(NAN),
    "the state is a list": lambda saved: saved.update(state=[1]),
    "portions are texts": lambda saved: saved["state"].update(portions=("a", "b", "c")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_state_that_makes_no_sense_is_refused_even_with_a_checksum(
    change: str, folder: Path, half_run: Callable[..., Path]
) -> None:
    half_run(8)  # in the second stage
    path = folder / "quantized.pt"
    saved = torch.load(path, weights_only=True)
    CHANGES[change](saved)
    torch.save(sealed(saved), path)
    with pytest.raises(FormatError, match=rf"^{path}: expected .*; delete it to start over$"):
        run(recipe(), folder)


@pytest.mark.parametrize("done", [-1, 0, 99, "x"])
def test_a_state_inside_a_stage_that_makes_no_sense_is_refused(
    done: Any, folder: Path, begun_inside: Callable[..., Path]
) -> None:
    begun_inside()
    path = folder / "quantized-stage.pt"
    saved = torch.load(path, weights_only=True)
    saved["training"]["done"] = done
    torch.save(sealed(saved), path)
    with pytest.raises(FormatError, match=rf"^{path}: expected .*; delete it to go on from the la"):
        run(recipe(warmup=1), folder)
