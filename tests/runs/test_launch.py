"""Processes that torchrun starts are ranks of one run; any other process is alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.runs.tiny import recipe
from torch import distributed

from octavo.network.ranks import ALONE
from octavo.runs.launch import LAUNCHED, launched

ROOT = Path(__file__).parents[2]


def test_a_process_that_nothing_launched_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")  # by a scheduler, without an address to meet at
    with launched("auto") as ranks:
        assert ranks == ALONE
        assert not distributed.is_initialized()


def test_torchrun_starts_a_run_and_rank_0_alone_speaks(tmp_path: Path) -> None:
    content = {
        key: value
        for key, value in recipe(control=False, portions=[0.5, 1.0], epochs=0.5)
        .model_dump(mode="json")
        .items()
        if value is not None
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "octavo", "run", str(path), "--folder", str(tmp_path / "run"), "--json"]
    done = subprocess.run(
        [sys.executable, *launcher, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # one, not two
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert (tmp_path / "run" / "packed.safetensors").exists()
