"""The fuzzer, guided by coverage: ``make fuzz``, or

    python tests/hostile/fuzz.py packed tests/hostile/corpus/packed -runs=200000

It needs atheris, in an environment of its own. A case that fails is written to the working
directory; run the command again with its name in the place of the corpus to see it fail. The
options are those of libFuzzer. A case that takes more than two seconds of the processor, or more
memory than the limit allows, fails. Those that passed are counted in
benchmarks/results/fuzz.json, a thousand at a time, over all calls: delete it to begin anew.
"""

import json
import sys
import time
from pathlib import Path

import atheris

ROOT = Path(__file__).parent.parent.parent
RESULT = ROOT / "benchmarks" / "results" / "fuzz.json"
SECONDS = 2
LIMITS = ["-timeout=60", "-rss_limit_mb=2048", "-max_len=512", "-len_control=0"]

sys.path.insert(0, str(ROOT))
with atheris.instrument_imports(include=["octavo.storage", "octavo._yaml", "octavo.runs.recipe"]):
    from tests.hostile.fuzzing import check_packed, check_yaml

CHECKS = {"packed": check_packed, "yaml": check_yaml}


class Cases:
    """Checks cases of a kind one after the other, and counts those that pass."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._passed = 0

    def check(self, data: bytes) -> None:
        start = time.process_time()
        CHECKS[self._what](data)
        seconds = time.process_time() - start
        if seconds > SECONDS:
            raise TimeoutError(f"expected at most {SECONDS} seconds for a case, got {seconds:.1f}")
        self._passed += 1
        if self._passed == 1000:
            counts = json.loads(RESULT.read_text()) if RESULT.exists() else {}
            counts[self._what] = counts.get(self._what, 0) + self._passed
            RESULT.write_text(json.dumps(counts, indent=2, sort_keys=True) + "\n")
            self._passed = 0


def main() -> None:
    what, *options = sys.argv[1:]
    atheris.Setup([sys.argv[0], *LIMITS, *options], Cases(what).check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
