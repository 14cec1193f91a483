"""Runs that are killed, and savings whose system calls fail: ``make torture``.

Kills: a run of the digits, a pruned one and a search are killed by SIGKILL at random moments, again
and again, until they are complete. Then their files are compared with those of a run that was left
alone. Faults: each system call of each kind of saving fails in turn, first with no space left, then
with an error of the disk. What was there before must still be read, and the error must name the
file. Threads: the same run with one thread and with two.

Writes results/torture.json; docs/reliability.md has its table.
"""

import argparse
import contextlib
import copy
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pages import fill  # type: ignore[import-not-found]  # its neighbour
from table import markdown  # type: ignore[import-not-found]  # its neighbour
from torch import nn

from octavo import Budget, Plan, calibrate, search
from octavo.dnq.journal import Journal
from octavo.dnq.space import Action
from octavo.errors import OctavoError
from octavo.runs.checkpoints import read_checkpoint, write_checkpoint
from octavo.runs.recipe import Recipe, make_recipe
from octavo.runs.run import environment, run
from octavo.runs.run_folder import read_json, write_json
from octavo.runs.task import load_task
from octavo.runs.tasks.digits import Digits
from octavo.storage.packed import Packed

RESULT = Path(__file__).parent / "results" / "torture.json"
PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
KILLS = 30
EACH = 3  # kills of one run, which then may end
SAVE_EVERY = 0.05  # seconds; ten minutes would never come
SHORT = {
    "task": "digits",
    "bits": 3,
    "portions": [0.5, 0.8, 1.0],
    "epochs": [1, 1, 0],
    "control": False,
    "retraining": {"learning_rate": 0.02},
}
PRUNED = SHORT | {
    "prune": {"sparsity": 0.5, "epochs": 1},
    "portions": [0.5, 1.0],
    "epochs": [1, 0],
}


def digits_run(folder: Path) -> None:
    run(_recipe(SHORT), folder / "run", save_every=SAVE_EVERY)


def pruned_run(folder: Path) -> None:
    run(_recipe(PRUNED), folder / "run", save_every=SAVE_EVERY)


def digits_search(folder: Path) -> None:
    task = load_task("digits", {})
    batches = list(task.calibration())[:1]
    found = search(
        task.model(), batches, budget=Budget(average_bits=3), trials=32, seed=1,
        journal=folder / "search.jsonl",
    )  # fmt: skip
    found.plan.save(folder / "plan.yaml")


WORKS: dict[str, Callable[[Path], None]] = {
    "run of the digits": digits_run,
    "pruned run of the digits": pruned_run,
    "search on the digits": digits_search,
}


def _recipe(content: dict[str, Any]) -> Recipe:
    return make_recipe(content, "torture")


# Kills.


def in_child(work: Callable[[], None]) -> int:
    """Start a job in a process of its own, which torch need not be imported for again."""
    pid = os.fork()
    if pid:
        return pid
    with open(os.devnull, "w") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 1)
    try:
        work()
        os._exit(0)
    except BaseException as error:  # noqa: BLE001
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)


def ended(pid: int, within: float) -> int | None:
    """Wait for a process; return its exit status, or None if it was killed after so long."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return None if code == -signal.SIGKILL else code


def contents(folder: Path) -> dict[str, Any]:
    """Return the files below a folder without what differs between two equal runs: times."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix == ".jsonl":
            found[name] = sorted(path.read_text().splitlines())
        elif path.name == "result.json":
            found[name] = _timeless(read_json(path))
        elif path.suffix in (".json", ".pt"):
            found[name] = "has times"
        else:
            found[name] = path.read_bytes()
    return found


def _timeless(result: dict[str, Any]) -> dict[str, Any]:
    stages = [{k: v for k, v in stage.items() if k != "seconds"} for stage in result["stages"]]
    rest = {key: result[key] for key in result if key not in ("seconds", "checksum")}
    return rest | {"stages": stages}


def kills(name: str, work: Callable[[Path], None], count: int, folder: Path) -> dict[str, Any]:
    """Kill a job so many times, and compare what comes of it."""
    generator = random.Random(name)
    whole = folder / "whole"
    whole.mkdir()
    started = time.monotonic()
    assert ended(in_child(partial(work, whole)), 600) == 0
    seconds = time.monotonic() - started
    expected = contents(whole)
    killed = ends = identical = 0
    while killed < count:
        place = folder / str(ends)
        place.mkdir()
        status = None
        until = min(count, killed + EACH)
        while status is None:
            moment = generator.uniform(0, 0.6 * seconds) if killed < until else 600
            status = ended(in_child(partial(work, place)), moment)
            killed += status is None
        ends += 1
        identical += status == 0 and contents(place) == expected
        shutil.rmtree(place)
        print(f"{name}: {killed} kills, {ends} ends, {identical} identical", flush=True)
    return {"what": name, "kills": killed, "completed": ends, "identical": identical}


# Faults.


@dataclass
class Faults:
    """A shim over the system calls of saving: the call of this number fails.

    Attributes:
        at: the number of the call that fails, from 1.
        error: the number of the error.
        calls: the names of the calls that were made.

    """

    at: int
    error: int
    calls: list[str] = field(default_factory=list)

    def count(self, name: str) -> None:
        """Count a call, and fail if it is its turn."""
        self.calls.append(name)
        if len(self.calls) == self.at:
            raise OSError(self.error, os.strerror(self.error))

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Count the calls of a block."""
        names = ("open", "write", "fsync", "fchmod", "replace", "ftruncate", "fdopen", "fstat")
        before = {name: getattr(os, name) for name in names}
        for name in names:
            setattr(os, name, self._counted(name, before[name]))
        try:
            yield
        finally:
            for name in names:
                setattr(os, name, before[name])

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count(name)
            result = call(*args, **kwargs)
            return FaultyFile(result, self) if name == "fdopen" else result

        return counted


class FaultyFile:
    """A file whose writes are counted, and fail half way."""

    def __init__(self, file: Any, faults: Faults) -> None:
        self._file = file
        self._faults = faults

    def write(self, data: Any) -> Any:
        """Write data, or the first half of them if it is the turn of this call to fail."""
        try:
            self._faults.count("write")
        except OSError:
            self._file.write(bytes(data)[: len(bytes(data)) // 2])
            raise
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "FaultyFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@dataclass(frozen=True)
class Saving:
    """A kind of saving: how the file is written for the first and second time, and read."""

    save: Callable[[Path, int], object]
    read: Callable[[Path], object]


def savings() -> dict[str, Saving]:
    task = load_task("digits", {})
    model = task.model()
    packed = [
        calibrate(model, Plan.uniform(model, bits), list(task.calibration())[:2]) for bits in (3, 4)
    ]
    plans = [Plan.uniform(model, bits) for bits in (3, 4)]
    states = [{"digest": "d", "log": [n], "state": {"w": torch.full((999,), n)}} for n in (0, 1)]
    actions = (tuple(map(Action.parse, (2, 3))),) * 2

    def journal(path: Path, which: int) -> None:
        Journal(path, actions, {}).add([(which, 0)], [-0.5 - which])

    def scores(path: Path) -> list[float]:
        known = Journal(path, actions, {})
        return [known[n, 0] for n in (0, 1) if (n, 0) in known]

    return {
        "packed file": Saving(
            lambda path, which: packed[which].save(path),
            lambda path: {
                name: one.codes.tolist() for name, one in Packed.load(path).layers.items()
            },
        ),
        "plan": Saving(
            lambda path, which: plans[which].save(path), lambda path: dict(Plan.load(path))
        ),
        "result": Saving(
            lambda path, which: write_json(path, {"score": which}),
            lambda path: read_json(path)["score"],
        ),
        "checkpoint": Saving(
            lambda path, which: write_checkpoint(path, states[which]),
            lambda path: read_checkpoint(path, {}, "d")["state"]["w"].tolist(),
        ),
        "journal": Saving(journal, scores),
    }


def faults(name: str, saving: Saving, folder: Path) -> dict[str, Any]:
    """Let each call of a saving fail in turn, and look at what is there then."""
    row: dict[str, Any] = {"what": name, "faults": 0, "old": 0, "new": 0, "lost": 0, "unnamed": 0}
    for error in (28, 5):  # no space left, and an error of the disk
        for at in range(1, 10_000):
            path = folder / f"{name} {error} {at}"
            saving.save(path, 0)
            old = saving.read(path)
            shim = Faults(at, error)
            try:
                with shim.installed():
                    saving.save(path, 1)
            except (OSError, OctavoError) as failure:
                row["unnamed"] += str(path) not in str(failure)
            if len(shim.calls) < at:
                break
            there = saving.read(path)
            saving.save(path, 1)  # now it can be saved
            new = saving.read(path)
            row["faults"] += 1
            row["old" if there == old else "new" if there == new else "lost"] += 1
    assert not [path for path in folder.iterdir() if path.suffix == ".tmp"]
    print(row, flush=True)
    return row


def threaded(work: Callable[[Path], None], place: Path, number: int) -> None:
    """Do a job with so many threads."""
    torch.set_num_threads(number)
    work(place)


def threads(folder: Path) -> dict[str, Any]:
    """Do the same job with one thread and with two, and compare."""
    row: dict[str, Any] = {}
    for name, work in WORKS.items():
        found = []
        for number in (1, 2):
            place = folder / f"{name} {number}"
            place.mkdir()

            assert ended(in_child(partial(threaded, work, place, number)), 600) == 0
            found.append({k: v for k, v in contents(place).items() if "result" not in k})
        row[name] = found[0] == found[1]
    print(row, flush=True)
    return row


def table(result: dict[str, Any]) -> str:
    """Return the tables of docs/reliability.md."""
    threads = [[name, "yes" if same else "no"] for name, same in result["threads"].items()]
    tables: list[tuple[str, list[list[Any]]]] = [
        (
            "job, kills, completed, identical to an unbroken one",
            [list(row.values()) for row in result["kills"]],
        ),
        (
            "file, calls that failed, old one kept, new one there, lost, errors without its name",
            [list(row.values()) for row in result["faults"]],
        ),
        ("job, the same files with 1 thread and with 2", threads),
    ]
    return "\n\n".join(
        markdown(head, [list(map(str, row)) for row in rows]) for head, rows in tables
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=KILLS, help="of each job")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    train_once()
    with tempfile.TemporaryDirectory() as name:
        result = tortured(Path(name), asked.kills) | {"environment": environment()}
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    page = fill(PAGE.read_text(encoding="utf-8"), "torture", table(result))
    PAGE.write_text(page, encoding="utf-8")
    print(table(result))
    failed = [row for row in result["kills"] if row["identical"] != row["completed"]]
    failed += [row for row in result["faults"] if row["lost"] or row["unnamed"]]
    assert not failed, failed


def train_once() -> None:
    """Let every process have the network of the task, which else each would train anew."""
    model = Digits().model()

    def copied(_: Digits) -> nn.Module:
        return copy.deepcopy(model)

    Digits.model = copied  # type: ignore[method-assign, assignment]


def tortured(folder: Path, count: int) -> dict[str, Any]:
    """Do everything, with so many kills of each work."""
    places = [folder / name for name in ("faults", "threads", *map(str, range(len(WORKS))))]
    for place in places:
        place.mkdir()
    return {
        "faults": [faults(name, saving, places[0]) for name, saving in savings().items()],
        "kills": [
            kills(name, work, count, place)
            for place, (name, work) in zip(places[2:], WORKS.items(), strict=True)
        ],
        "threads": threads(places[1]),
    }


if __name__ == "__main__":
    main()
