"""Write the tables in README.md and benchmarks/README.md from the committed results.

    python benchmarks/table.py

Every figure on those pages stands between markers that this command fills; nothing there is typed
by hand.
"""

import json
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
FIGURES = ("score", "accuracy", "retrained", "stored_bits", "counted", "seconds")


def load(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---:"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def results(pattern: str) -> list[Any]:
    """The committed results whose names match, most bits first, then by seed."""
    found = [json.loads(path.read_text()) for path in RESULTS.glob(f"{pattern}.json")]
    return sorted(found, key=lambda result: (-result["nominal_bits"], result["recipe"]["seed"]))


def activations() -> str:
    """Runs whose activations are quantized too."""
    rows = []
    for r in results("resnet20-w*a*"):
        bits = r["activation_bits"]
        first, *others = bits.values()
        control = f"{r['control_score']:.2f}" if "control_score" in r else "not run"
        rows.append([
            f"{r['nominal_bits']:g}", " to ".join(map(str, sorted(set(others)))), f"{first}", f"{r['recipe']['seed']}",
            f"**{r['score']:.2f}**", control, f"{r['float_score']:.2f}", f"{sum(stage['epochs'] for stage in r['stages']):g}",
            f"{r['file_bytes']:,}", f"{r['ratio']:.1f}",
        ])  # fmt: skip
    head = "weights, activations, first, seed, accuracy, control, before, epochs, file in bytes, times smaller"
    return markdown(head.split(", "), rows)


def retrained(pattern: str) -> str:
    """Runs of recipes that retrain."""
    rows = []
    for r in results(pattern):
        least = r["entropy_bytes"] + r["other_bytes"]
        control = f"{r['control_score']:.2f}" if "control_score" in r else "not run"
        rows.append([
            "by layer" if "search" in r else f"{r['recipe']['bits']}", f"{r['nominal_bits']:.2f}", f"{r['recipe']['seed']}",
            f"**{r['score']:.2f}**", control, f"{r['float_score']:.2f}", f"{sum(stage['epochs'] for stage in r['stages']):g}",
            f"{r['stored_bits']:.2f}", f"{r['file_bytes']:,}", f"{r['file_bytes'] - least:+,}", f"{r['ratio']:.1f}",
        ])  # fmt: skip
    head = "bits, average, seed, accuracy, control, before, epochs, stored bits, file in bytes, above entropy, times smaller"
    return markdown(head.split(", "), rows)


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
        [
            "step with frozen weights / plain step (ResNet-20, batch 128)",
            f"{step['step_ratio']:.3f}",
        ],
        ["extra bytes a weight while retraining", f"{step['extra_bytes_per_weight']:.2f}"],
        ["`project` / `torch.clone`, 64 M weights", f"{min(ratios):.2f} to {max(ratios):.2f}"],
    ]
    return markdown(["what", "ratio"], rows)


def oneshot() -> str:
    """The closed form beside nearest levels and full precision."""
    result = load("oneshot")
    rows = []
    for network, before in result["float"].items():
        for bits in ("apot8", "apot7", "apot6", "apot5", 5, 4, 3, 2):
            ways = [
                result["rows"].get(f"{network}/{bits}/{way}")
                for way in ("nearest", "gptq", "gptq, absorbed")
            ]
            if all(ways[:2]):
                spread = max(ways[1]["scores"]) - min(ways[1]["scores"])
                figures = [f"{row['mean']:.2f}" if row else "" for row in ways]
                rows.append(
                    [
                        network.replace("resnet", "ResNet-"),
                        f"{bits}",
                        f"{before:.2f}",
                        *figures,
                        f"{spread:.2f}",
                    ]
                )
    head = [
        "network",
        "bits",
        "full precision",
        "nearest levels",
        "closed form",
        "absorbed",
        "spread of 3",
    ]
    return markdown(head, rows)


def apot() -> str:
    """Squared errors of sums of two powers of two."""
    errors = load("apot")["relative_squared_error"]
    rows = [
        [*reversed(name.split("/")), *(f"{error:.5f}" for error in row.values())]
        for name, row in errors.items()
    ]
    return markdown(["bits", "levels", "Gaussian", "Laplace", "ResNet-20"], rows)


def ways() -> str:
    """The closed form's orders and settings on ResNet-20."""
    found = load("oneshot")["rows"]
    names = [name.split("/", 2)[2] for name in found if name.startswith("resnet20/3/")]
    cells = {
        (name, bits): found.get(f"resnet20/{bits}/{name}") for name in names for bits in (3, 2)
    }
    rows = [
        [name, *(f"{cells[name, b]['mean']:.2f}" if cells[name, b] else "" for b in (3, 2))]
        for name in names
    ]
    return markdown(["way", "3 bits", "2 bits"], rows)


def starts() -> str:
    result = load("start")
    rows = [
        [
            f"{r['bits']}",
            r["start"],
            f"{r['mean']:.2f}",
            f"{min(r['scores']):.2f}",
            f"{result['float']:.2f}",
        ]
        for r in result["rows"]
    ]
    return markdown(["bits", "start", "mean of 5 seeds", "worst", "full precision"], rows)


def oneshot_cost() -> str:
    rows = [
        [
            name.replace("resnet", "ResNet-"),
            f"{r['calibrate_s']:.1f}",
            f"{r['forward_s']:.2f}",
            f"{r['solver_ratio']:.2f}",
        ]
        for name, r in load("oneshot_cost")["rows"].items()
    ]
    head = [
        "network",
        "`calibrate`, s",
        "one forward pass, s",
        "its solver / GPTQ's bare linear algebra",
    ]
    return markdown(head, rows)


def searches() -> str:
    """Every way of choosing bits: means over the seeds that were run, NaN where a seed lacks the
    figure.
    """
    rows = []
    for path in sorted(RESULTS.glob("search-resnet*.json"), key=lambda path: path.stem):
        groups: dict[tuple[float, str], list[Any]] = {}
        for row in json.loads(path.read_text())["rows"]:
            groups.setdefault((row["budget"], row["method"]), []).append(row)
        means = {
            key: {
                name: statistics.mean(row.get(name, math.nan) for row in found) for name in FIGURES
            }
            for key, found in groups.items()
        }
        for (budget, method), mean in sorted(
            means.items(), key=lambda item: (item[0][0], -item[1]["score"])
        ):
            rows.append([
                path.stem.replace("search-resnet", "ResNet-"), f"{budget:.1f}", method, f"{len(groups[budget, method])}",
                f"{-mean['score']:.4f}", f"{mean['accuracy']:.2f}", f"{mean['retrained']:.2f}",
                f"{mean['stored_bits']:.2f}", f"{mean['counted']:.0f}", f"{mean['seconds']:.0f}",
            ])  # fmt: skip
    head = [
        "network",
        "bits",
        "method",
        "seeds",
        "divergence",
        "accuracy",
        "retrained",
        "stored bits",
        "plans",
        "seconds",
    ]
    return markdown(head, rows)


def search_cost() -> str:
    result = load("search_cost")
    rows = []
    for network, seconds in result["trial_s"].items():
        whole = result["search_s"][f"{network}/512"]
        figures = [
            seconds["random"] / seconds["bare"],
            seconds["similar"] / seconds["bare"],
            seconds["naive"] / seconds["random"],
        ]
        rows.append([
            network.replace("resnet", "ResNet-"), f"{1000 * seconds['bare']:.0f}", *(f"{figure:.2f}" for figure in figures),
            f"{whole:.0f}", f"{whole / int(network.removeprefix('resnet')):.2f}",
        ])  # fmt: skip
    head = [
        "network",
        "forward pass, ms",
        "trial / pass",
        "trial of a similar plan / pass",
        "naive trial / trial",
    ]
    return markdown([*head, "search of 512 plans, s", "a layer"], rows)


def mixed() -> str:
    """Bits of weights and inputs searched for together, and the same bits everywhere for as many
    bit operations.
    """
    found, rows = load("mixed")["rows"], []
    for name, r in found.items():
        if (everywhere := name.removesuffix(", searched")) != name:
            same = found[f"{everywhere}, uniform"]
            figures = [f"{one['accuracy']:.2f}" for one in (same, r)] + [
                f"{one['file_bytes']:,}" for one in (same, r)
            ]
            rows.append(
                [everywhere, f"{same['bit_ops'] / 1e6:.0f}", *figures, f"{r['average_bits']:.2f}"]
            )
    head = "everywhere, million bit operations, accuracy, searched, file in bytes, searched, its average of weights"
    return markdown(head.split(", "), rows)


def images() -> str:
    """Plans of searches on more and more calibration images, by images that they have not seen."""
    rows = []
    for name, r in load("images")["rows"].items():
        divergences = [f"{-r[key]:.4f}" for key in ("score", "others")]
        rows.append(
            [*name.split(", ", 1), *divergences, f"{r['accuracy']:.2f}", f"{r['calibrated']:.2f}"]
        )
    return markdown(["images", "bits", "divergence", "on others", "accuracy", "sequential"], rows)


def efficientnet() -> str:
    result = load("efficientnet")
    rows = [["full precision", "32", f"{result['float']:.2f}", "", "", ""]]
    for name, r in sorted(
        result["rows"].items(), key=lambda item: (-item[1]["nominal_bits"], -item[1]["accuracy"])
    ):
        sizes = [f"{r['stored_bits']:.2f}", f"{r['file_bytes']:,}", f"{r['ratio']:.1f}"]
        rows.append([name, f"{r['nominal_bits']:.2f}", f"{r['accuracy']:.2f}", *sizes])
    return markdown(
        ["bits", "average", "accuracy", "stored bits", "file in bytes", "times smaller"], rows
    )


def sentences() -> str:
    shown = ("mean_cosine", "least_cosine", "rank_correlation", "neighbours_shared")
    rows = [
        [f"{r['bits']}", r["way"], *(f"{r[name]:.4f}" for name in shown), f"{r['ratio']:.1f}"]
        for r in load("sentences")["rows"]
    ]
    return markdown(
        ["bits", "way", "mean cosine", "least", "rank correlation", "neighbours", "times smaller"],
        rows,
    )


def speech() -> str:
    result = load("speech")
    rows = [
        [
            "32",
            "full precision",
            f"{result['float']['accuracy']:.2f}",
            f"{result['float']['area_under_curve']:.4f}",
            "",
            "",
        ]
    ]
    for r in result["rows"]:
        if r["layers"] == "all":
            figures = [
                f"{r['accuracy']:.2f}",
                f"{r['area_under_curve']:.4f}",
                f"{r['decisions_alike']:.2f}",
                f"{r['ratio']:.1f}",
            ]
            rows.append([f"{r['bits']}", r["way"], *figures])
    return markdown(["bits", "way", "accuracy", "area", "decided alike", "times smaller"], rows)


def exports() -> str:
    result, names = load("export"), {"resnet20": "ResNet-20", "mobilenet": "depthwise"}
    rows = []
    for network, row in result["networks"].items():
        for form, one in row["forms"].items():
            speed = f"{row['speed']['median']['ratio']:.2f}" if form == "int8" else ""
            figures = [f"{one[name]:,}" for name in ("bytes", "codes")]
            rows.append(
                [
                    names[network],
                    f"`{form}`",
                    *figures,
                    f"{row['graph_bytes']:,}",
                    f"{one['difference']:.0e}",
                    speed,
                ]
            )
    head = "network, form, file in bytes, its codes, the graph alone, difference, times faster"
    return markdown(head.split(", "), rows)


def int8_scores() -> str:
    scores = load("export")["int8_scores"]
    rows = [
        [bits, f"{one['packed']:.2f}", f"{one['int8']:.2f}"]
        for bits, one in sorted(scores.items(), reverse=True)
    ]
    return markdown(["bits", "packed", "int8"], rows)


def fill(page: Path, name: str, text: str) -> bool:
    """Put a table between its markers; whether the page has them."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = page.read_text().partition(start)
    _, ended, after = rest.partition(end)
    if found != start or ended != end:
        return False
    page.write_text(f"{before}{start}\n{text}\n{end}{after}")
    return True


TABLES: dict[str, Callable[[], str]] = {
    "oneshot": oneshot,
    "ways": ways,
    "apot": apot,
    "oneshot cost": oneshot_cost,
    "start": starts,
    "accuracy": partial(retrained, "resnet20-inq-*"),
    "dnq": partial(retrained, "resnet20-dnq-*"),
    "sparse": partial(retrained, "resnet20-sparse-*"),
    "activations": activations,
    "orders": orders,
    "speed": speed,
    "searches": searches,
    "search cost": search_cost,
    "images": images,
    "mixed": mixed,
    "exports": exports,
    "int8": int8_scores,
    "efficientnet": efficientnet,
    "sentences": sentences,
    "speech": speech,
}


def main() -> None:
    for name, table in TABLES.items():
        text = table()
        if not any(
            fill(page, name, text) for page in (HERE.parent / "README.md", HERE / "README.md")
        ):
            raise SystemExit(f"{name}: expected its two markers on one of the pages, found none")


if __name__ == "__main__":
    main()
