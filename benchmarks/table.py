"""Write the tables in README.md and benchmarks/README.md from the committed results.

    python benchmarks/table.py

Every figure on those pages stands between markers that this command fills; nothing there is typed by hand.
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def load(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---:"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def results(pattern: str) -> list[Any]:
    """The committed results whose names match, most bits first, then by seed."""
    found = [json.loads(path.read_text()) for path in RESULTS.glob(f"{pattern}.json")]
    return sorted(found, key=lambda result: (-result["nominal_bits"], result["recipe"]["seed"]))


def accuracy() -> str:
    rows = []
    for r in results("resnet20-inq-*"):
        least = r["entropy_bytes"] + r["other_bytes"]
        control = f"{r['control_score']:.2f}" if "control_score" in r else "not run"
        rows.append([
            f"{r['nominal_bits']:g}", f"{r['recipe']['seed']}", f"**{r['score']:.2f}**", control, f"{r['float_score']:.2f}",
            f"{sum(stage['epochs'] for stage in r['stages']):g}", f"{r['stored_bits']:.2f}", f"{r['file_bytes']:,}",
            f"{r['file_bytes'] - least:+,}", f"{r['ratio']:.1f}",
        ])  # fmt: skip
    head = [
        "bits",
        "seed",
        "accuracy",
        "control",
        "before",
        "epochs",
        "stored bits",
        "file, bytes",
        "above entropy",
        "times smaller",
    ]
    return markdown(head, rows)


def orders() -> str:
    rows = [
        [
            r["recipe"]["order"],
            f"{r['score']:.2f}",
            f"{r['stages'][-1]['loss']:.4f}",
            f"{r['stored_bits']:.2f}",
            f"{r['file_bytes']:,}",
        ]
        for r in sorted(results("resnet20-order-*"), key=lambda result: -result["score"])
    ]
    return markdown(["order", "accuracy", "last stage's loss", "stored bits", "file, bytes"], rows)


def speed() -> str:
    step, projection = load("retraining"), load("projection")
    ratios = [row["ratio"] for row in projection["rows"]]
    rows = [
        ["step with frozen weights / plain step (ResNet-20, batch 128)", f"{step['step_ratio']:.3f}"],
        ["extra bytes a weight while retraining", f"{step['extra_bytes_per_weight']:.2f}"],
        ["`project` / `torch.clone`, 64 M weights", f"{min(ratios):.2f} to {max(ratios):.2f}"],
    ]
    return markdown(["what", "ratio"], rows)


def fill(page: Path, name: str, text: str) -> None:
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = page.read_text().partition(start)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{start}\n{text}\n{end}{after}")


def main() -> None:
    fill(HERE.parent / "README.md", "accuracy", accuracy())
    fill(HERE / "README.md", "accuracy", accuracy())
    fill(HERE / "README.md", "orders", orders())
    fill(HERE / "README.md", "speed", speed())


if __name__ == "__main__":
    main()
