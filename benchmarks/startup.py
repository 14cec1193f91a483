"""The time that octavo needs to start, beside that of torch: ``python benchmarks/startup.py``.

Each command runs in a new interpreter. The commands take turns, so that a busy machine slows all of
them alike, and the medians are compared. The result goes to results/startup.json.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from octavo.runs.run import environment

RESULT = Path(__file__).parent / "results" / "startup.json"
COMMANDS = {
    "import torch": ["-c", "import torch"],
    "import octavo": ["-c", "import octavo"],
    "from octavo import *": ["-c", "from octavo import *"],  # everything, which imports torch too
    "octavo --help": ["-m", "octavo", "--help"],
    "octavo run --help": ["-m", "octavo", "run", "--help"],
}
ROUNDS = 9
LIMIT = 1.3  # times the median of import torch


def seconds(words: list[str]) -> float:
    """Return the wall time of one run of the interpreter."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    for words in COMMANDS.values():  # compiles and caches what is not yet
        seconds(words)
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, words in COMMANDS.items():
            times[name].append(seconds(words))
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {name: round(median / medians["import torch"], 2) for name, median in medians.items()}
    for name, ratio in ratios.items():
        print(f"{name:22} {medians[name]:6.2f} s  {ratio:5.2f}")
    result = {
        "seconds": {name: round(median, 2) for name, median in medians.items()},
        "times_import_torch": ratios,
        "rounds": ROUNDS,
        "environment": environment(),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    assert max(ratios.values()) <= LIMIT, f"expected at most {LIMIT} times import torch: {ratios}"


if __name__ == "__main__":
    main()
