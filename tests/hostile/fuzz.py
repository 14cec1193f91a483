"""The fuzzer, guided by coverage: ``make fuzz``, or

    python tests/hostile/fuzz.py packed tests/hostile/corpus/packed -runs=200000

It needs atheris, in an environment of its own. A case that fails is written to the working
directory; run the command again with its name in the place of the corpus to see it fail. The
options are those of libFuzzer: a case that takes more than two seconds, or more memory than the
limit allows, fails.
"""

import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).parent.parent.parent
LIMITS = ["-timeout=2", "-rss_limit_mb=2048", "-max_len=512", "-len_control=0"]

sys.path.insert(0, str(ROOT))
with atheris.instrument_imports(include=["octavo.storage", "octavo._yaml", "octavo.runs.recipe"]):
    from tests.hostile.fuzzing import check_packed, check_yaml

CHECKS = {"packed": check_packed, "yaml": check_yaml}


def main() -> None:
    what, *options = sys.argv[1:]
    atheris.Setup([sys.argv[0], *LIMITS, *options], CHECKS[what])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
