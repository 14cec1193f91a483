"""The figures of the tutorial: runs the code of docs/tutorial.md, in its order.

    python benchmarks/tutorial.py     # half a minute; needs octavo[demo,onnx]

Writes results/tutorial.json.
"""

import contextlib
import re
import tempfile
from pathlib import Path
from typing import Any

from octavo.runs.run import environment
from octavo.runs.run_folder import write_json

RESULT = Path(__file__).parent / "results" / "tutorial.json"
PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"


def main() -> None:
    namespace: dict[str, Any] = {}
    page = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for block in re.findall(r"^```python\n([\s\S]*?)^```$", page, re.MULTILINE):
            exec(block, namespace)
    rows = [
        {"name": name, "accuracy": round(accuracy, 2), "file_bytes": file_bytes}
        for name, accuracy, file_bytes in namespace["table"]
    ]
    write_json(RESULT, {"environment": environment(), "rows": rows})


if __name__ == "__main__":
    main()
