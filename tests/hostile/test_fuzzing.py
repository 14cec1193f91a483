"""The fuzzer for a few seconds; ``make fuzz`` runs it for longer, guided by coverage."""

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.hostile.fuzzing import BASES, LIMIT, Decisions, check_packed, check_yaml, forged_file

from octavo.errors import FormatError
from octavo.storage.container import unpack

FUZZ = settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow]
)  # fmt: skip
YAML = [
    "task: digits", "bits: ", "options: ", "retraining: ", "search: ", "a", "&a", "*a", "<<: ", "[",
    "]", "{", "}", ", ", ": ", "\n", "\n  ", "- ", "? ", "!!int ", "!!map ", "! ", "'", '"', "# ",
    "|\n ", ">", "0x1f", "1e9", ".nan", ".inf", "~", "true", "1:30", "---\n", "...\n", "%TAG ! x\n",
    "\x00", "\u2028", "\ud7ff", "apot6", "{'*': 3}", "portions: [0.5, 1]", "epochs: [1, 0]",
]  # fmt: skip


@given(st.binary(max_size=64))
@FUZZ
def test_packed_files(data: bytes) -> None:
    check_packed(data)


@given(st.lists(st.sampled_from(YAML), max_size=24).map("".join))
@FUZZ
def test_yaml_of_many_pieces(text: str) -> None:
    check_yaml(text.encode())


@given(st.binary(max_size=200))
@FUZZ
def test_yaml_of_bytes(data: bytes) -> None:
    check_yaml(data)


def test_the_fuzzer_reaches_what_lies_behind_the_checksums() -> None:
    """A fuzzer that only breaks checksums finds nothing else."""
    draw = random.Random(0)
    said = set()
    read = 0
    for _ in range(400):
        file, _ = forged_file(Decisions(draw.randbytes(64)))
        try:
            unpack(file, LIMIT)
            read += 1
        except FormatError as error:
            said.add(str(error).partition(": ")[2][:24])
    assert read >= 10
    assert len(said) >= 20


def test_what_is_not_changed_is_read() -> None:
    for base in BASES:
        unpack(base, LIMIT)
