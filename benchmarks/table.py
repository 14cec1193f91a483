"""Write the tables of README.md and of docs/ from the committed results.

    python benchmarks/table.py

Every figure on those pages that comes from a result stands between two markers, and this
command fills the space between them. No such figure is typed by hand.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import guide_tables  # type: ignore[import-not-found]  # its neighbour
import search_tables  # type: ignore[import-not-found]  # its neighbour
from pages import (  # type: ignore[import-not-found]  # its neighbour
    control,
    difference,
    epochs,
    fill,
    label,
    labels,
    load,
    results,
    size,
    three_digits,
)

Rows = list[list[str]]
ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def markdown(head: str | list[str], rows: Rows) -> str:
    """A table in Markdown; a head in one text has its columns separated by commas."""
    columns = head.split(", ") if isinstance(head, str) else head
    lines = [columns, ["---:"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def rendered(table: Callable[..., tuple[str | list[str], Rows]], *arguments: Any) -> str:
    """A table of ``search_tables`` in Markdown."""
    return markdown(*table(*arguments))


# README.md


def headline() -> str:
    run = load("resnet20-dnq-70kb")
    small = load("small")["rows"]
    folded = small["resnet20-dnq-70kb"]["folded"]
    second = small["resnet20-dnq-70kb-seed1"]["folded"]
    trained = load("resnet20-inq-3bit")["control_score"]  # by the same settings
    efficient = load("efficientnet")
    calibrated = efficient["rows"]["apot5, absorbed, rate 12"]
    return (
        f"**ResNet-20 on CIFAR-10: {run['float_bytes'] / folded['file_bytes']:.1f} times smaller, "
        f"{folded['score']:.2f} % accuracy** in a file of {folded['file_bytes']:,} bytes, with "
        "bits that differ by\nlayer; a second seed "
        f"has {second['score']:.2f} % in {second['file_bytes']:,} bytes. "
        f"In full precision it has {run['float_score']:.2f} %,\nand {trained:.2f} % "
        "after training equally long.\n\n"
        f"**EfficientNet-Lite0, without training: {calibrated['ratio']:.1f} times smaller, "
        f"{calibrated['accuracy']:.2f} %** in a file of {calibrated['file_bytes']:,} bytes, on "
        "photographs of\n43 classes. "
        f"In full precision it has {efficient['float']:.2f} %; the standard error is 0.9 points."
    )


# Runs of recipes


def retrained(pattern: str) -> str:
    rows = []
    for run in results(pattern):
        least = run["entropy_bytes"] + run["other_bytes"]
        bits = "by layer" if "search" in run else f"{run['recipe']['bits']}"
        file_bytes, ratio = size(run)
        rows.append([
            bits, f"{run['nominal_bits']:.2f}", f"{run['recipe']['seed']}",
            f"**{run['score']:.2f}**", control(run), f"{run['float_score']:.2f}", epochs(run),
            f"{run['stored_bits']:.2f}", file_bytes, f"{run['file_bytes'] - least:+,}", ratio,
        ])  # fmt: skip
    head = (
        "bits, average, seed, accuracy, control, before, epochs, stored bits, file in bytes,"
        " above entropy, times smaller"
    )
    return markdown(head, rows)


def activations() -> str:
    rows = []
    for run in results("resnet20-w*a*"):
        first, *others = run["activation_bits"].values()
        rows.append([
            f"{run['nominal_bits']:g}", " to ".join(map(str, sorted(set(others)))), f"{first}",
            f"{run['recipe']['seed']}", f"**{run['score']:.2f}**", control(run),
            f"{run['float_score']:.2f}", epochs(run), *size(run),
        ])  # fmt: skip
    head = (
        "weights, activations, first, seed, accuracy, control, before, epochs, file in bytes,"
        " times smaller"
    )
    return markdown(head, rows)


def orders() -> str:
    rows = []
    for run in sorted(results("resnet20-order-*"), key=lambda run: -run["score"]):
        loss = run["stages"][-1]["loss"]
        stored = run["stored_bits"]
        figures = [f"{run['score']:.2f}", f"{loss:.4f}", f"{stored:.2f}", f"{run['file_bytes']:,}"]
        rows.append([run["recipe"]["order"], *figures])
    return markdown("order, accuracy, last stage's loss, stored bits, file in bytes", rows)


def starts() -> str:
    result = load("start")
    rows = []
    for row in result["rows"]:
        scores = [f"{row['mean']:.2f}", f"{min(row['scores']):.2f}", f"{result['float']:.2f}"]
        rows.append([f"{row['bits']}", label(row["start"]), *scores])
    return markdown("bits, start, mean of 5 seeds, worst, full precision", rows)


# Calibration and codebooks


def calibration() -> str:
    """Calibration beside nearest levels and full precision."""
    result = load("oneshot")
    rows = []
    for network, before in result["float"].items():
        for bits in ("apot8", "apot7", "apot6", "apot5", 5, "fp4", 4, 3, 2):
            ways = ("nearest", "gptq", "gptq, absorbed")
            measured = [result["rows"].get(f"{network}/{bits}/{way}") for way in ways]
            if any(measured):
                scores = (measured[1] or measured[2])["scores"]
                spread = max(scores) - min(scores)
                means = [f"{row['mean']:.2f}" if row else "" for row in measured]
                network_name = network.replace("resnet", "ResNet-")
                rows.append([network_name, f"{bits}", f"{before:.2f}", *means, f"{spread:.2f}"])
    head = "network, bits, full precision, nearest levels, calibrated, calibrated with absorb"
    return markdown([*head.split(", "), "spread of 3"], rows)


def settings() -> str:
    """Orders and settings of calibration on ResNet-20."""
    rows_by_name = load("oneshot")["rows"]
    rows = []
    for full_name in rows_by_name:
        if full_name.startswith("resnet20/3/"):
            way = full_name.removeprefix("resnet20/3/")
            measured = [rows_by_name.get(f"resnet20/{bits}/{way}") for bits in (3, 2)]
            means = [f"{row['mean']:.2f}" if row else "" for row in measured]
            rows.append([label(way), *means])
    return markdown("setting, 3 bits, 2 bits", rows)


def calibration_cost() -> str:
    rows = []
    for name, row in load("oneshot_cost")["rows"].items():
        seconds = [f"{row['calibrate_s']:.1f}", f"{row['forward_s']:.2f}"]
        rows.append([name.replace("resnet", "ResNet-"), *seconds, f"{row['solver_ratio']:.2f}"])
    head = "network, `calibrate` in s, one forward pass in s, solver / bare linear algebra of GPTQ"
    return markdown(head, rows)


def sums() -> str:
    """Squared errors of sums of two powers of two."""
    rows = []
    for name, errors in load("apot")["relative_squared_error"].items():
        levels, bits = name.split("/")
        rows.append([bits, levels, *map(three_digits, errors.values())])
    return markdown("bits, levels, Gaussian, Laplace, ResNet-20", rows)


def codebooks() -> str:
    """The codebooks beside each other."""
    rows = []
    for name, book in load("codebooks")["weights"].items():
        errors = book["relative_squared_error"]
        both = [
            " / ".join(
                three_digits(errors[f"{kind}, per {per}"]) for per in ("channel", "group 32")
            )
            for kind in ("gaussian", "laplace")
        ]
        width = f"{name} bits" if name.isdecimal() else f"`{name}`"
        counts = [str(book[key]) for key in ("levels", "powers_in_a_level")]
        rows.append([width, *counts, *both, NATIVE.get(name, "")])
    return markdown(
        "width, levels, shifts, error on Gaussian weights, on Laplace weights, runs natively", rows
    )


NATIVE = {
    **dict.fromkeys(("2", "3", "4"), "FP4, FP8, int8"),
    "5": "FP6 E3M2, FP8",
    **dict.fromkeys(("apot5", "apot6"), "FP8, int8"),
    "fp4": "MXFP4, NVFP4, int8",
    "fp6": "MXFP6, FP8, int8",
    "fp8": "FP8, MXFP8",
    "int8": "int8, MXINT8",
}


def groups() -> str:
    """What shares an exponent: networks, calibrated."""
    rows = []
    for name, row in load("codebooks")["networks"].items():
        network, width, per = name.split("/")
        score = f"{row['accuracy']:.2f} %" if "accuracy" in row else f"{row['divergence']:.4f}"
        words = {"resnet20": "ResNet-20, accuracy", "llama": "stories260K, divergence"}[network]
        width = f"{width} bits" if width.isdecimal() else f"`{width}`"
        width = width.replace("`integers`", "integers, 4 bits")
        rows.append(
            [words, width, per, f"{row['stored_bits']:.2f}", f"{row['file_bytes']:,}", score]
        )
    return markdown("network, width, exponents, bits stored, bytes of the file, score", rows)


# Weights and inputs together


# Other networks, speed, exported files


def efficientnet() -> str:
    result = load("efficientnet")
    rows = [["full precision", "32", f"{result['float']:.2f}", "", "", ""]]
    for name, row in sorted(
        result["rows"].items(), key=lambda item: (-item[1]["nominal_bits"], -item[1]["accuracy"])
    ):
        figures = [f"{row[key]:.2f}" for key in ("nominal_bits", "accuracy", "stored_bits")]
        rows.append([labels(name), *figures, *size(row)])
    return markdown("bits, average, accuracy, stored bits, file in bytes, times smaller", rows)


def sentences() -> str:
    keys = ("mean_cosine", "least_cosine", "rank_correlation", "neighbours_shared")
    rows = []
    for row in load("sentences")["rows"]:
        figures = [f"{row[key]:.4f}" for key in keys]
        rows.append([f"{row['bits']}", label(row["way"]), *figures, f"{row['ratio']:.1f}"])
    head = (
        "bits, weights, mean cosine, least cosine, rank correlation, neighbours shared,"
        " times smaller"
    )
    return markdown(head, rows)


def speech() -> str:
    result = load("speech")
    before = [f"{result['float']['accuracy']:.2f}", f"{result['float']['area_under_curve']:.4f}"]
    rows = [["32", "full precision", *before, "", ""]]
    for row in result["rows"]:
        if row["layers"] == "all":
            scores = [f"{row['accuracy']:.2f}", f"{row['area_under_curve']:.4f}"]
            figures = [*scores, f"{row['decisions_alike']:.2f}", f"{row['ratio']:.1f}"]
            rows.append([f"{row['bits']}", label(row["way"]), *figures])
    return markdown(
        "bits, weights, accuracy, area under curve, same decisions, times smaller", rows
    )


def speed() -> str:
    steps = load("retraining")["rows"]
    ratios = [row["ratio"] for row in load("projection")["rows"]]
    rows = []
    for name in ("half frozen", "straight through"):
        row = steps[name]
        rows.append([f"step, {name} / plain step", f"{row['step_ratio']:.3f}"])
        rows.append([f"extra bytes per weight, {name}", f"{row['extra_bytes_per_weight']:.2f}"])
    rows.append(
        ["`project` / `torch.clone`, 64 M weights", f"{min(ratios):.2f} to {max(ratios):.2f}"]
    )
    return markdown("measured, value", rows)


def startup() -> str:
    result = load("startup")
    ratios = result["times_import_torch"]
    rows = []
    for command, seconds in result["seconds"].items():
        rows.append([f"`{command}`", f"{seconds:.2f}", f"{ratios[command]:.2f}"])
    return markdown("command, seconds, relative to `import torch`", rows)


def exports() -> str:
    names = {"resnet20": "ResNet-20", "mobilenet": "depthwise"}
    rows = []
    for network, row in load("export")["networks"].items():
        for form, file in row["forms"].items():
            speed = f"{row['speed']['median']['ratio']:.2f}" if form == "int8" else ""
            sizes = [f"{file['bytes']:,}", f"{file['codes']:,}", f"{row['graph_bytes']:,}"]
            rows.append([names[network], f"`{form}`", *sizes, f"{file['difference']:.0e}", speed])
    head = "network, form, file in bytes, its codes, the graph alone, difference, times faster"
    return markdown(head, rows)


def int8_scores() -> str:
    rows = []
    for bits, scores in sorted(load("export")["int8_scores"].items(), reverse=True):
        rows.append([bits, f"{scores['packed']:.2f}", f"{scores['int8']:.2f}"])
    return markdown("bits, packed, int8", rows)


# Filling the pages


def memory() -> str:
    by_images: dict[int, list[str]] = {}
    for row in load("memory")["rows"]:  # first all that are sequential, then all streamed
        by_images.setdefault(row["images"], []).append(f"{row['mb']:,}")
    head = ["images", "`sequential=True`", "`sequential=False`"]
    return markdown(head, [[f"{images:,}", *both] for images, both in by_images.items()])


TABLES: dict[str, Callable[[], str]] = {
    "headline": headline,
    "summary": partial(rendered, guide_tables.summary),
    "ways": partial(rendered, guide_tables.ways),
    "rates": partial(rendered, guide_tables.rates, "rate"),
    "inq rates": partial(rendered, guide_tables.inq_rates),
    "theory": partial(rendered, guide_tables.theory),
    "small": partial(rendered, guide_tables.small),
    "peers, ResNet-20": partial(rendered, guide_tables.peers, "resnet20"),
    "peers, ResNet-56": partial(rendered, guide_tables.peers, "resnet56"),
    "stories": partial(rendered, guide_tables.stories),
    "llama.cpp": partial(rendered, guide_tables.llama_cpp),
    "accuracy": partial(retrained, "resnet20-inq-*"),
    "dnq": partial(retrained, "resnet20-dnq-*"),
    "sparse": partial(retrained, "resnet20-sparse-*"),
    "retrained rate": partial(retrained, "resnet20-rate"),
    "resnet8": partial(retrained, "resnet8-*"),
    "activations": activations,
    "orders": orders,
    "start": starts,
    "calibration": calibration,
    "settings": settings,
    "calibration cost": calibration_cost,
    "sums": sums,
    "codebooks": codebooks,
    "fits": guide_tables.fits,
    "groups": groups,
    "searches, ResNet-20": partial(rendered, search_tables.searches, 20),
    "searches, ResNet-56": partial(rendered, search_tables.searches, 56),
    "uniform": partial(rendered, search_tables.uniform),
    "final choice": partial(rendered, search_tables.final_choice),
    "ablation": partial(rendered, search_tables.ablation),
    "one search": partial(rendered, search_tables.one_search),
    "objective": partial(rendered, search_tables.objective),
    "mixed": partial(rendered, search_tables.mixed),
    "efficientnet": efficientnet,
    "sentences": sentences,
    "speech": speech,
    "speed": speed,
    "start-up": startup,
    "memory": memory,
    "exports": exports,
    "int8": int8_scores,
    "tutorial": partial(rendered, guide_tables.tutorial),
    "loop": partial(difference, "loop"),
    "fabric": partial(difference, "fabric"),
    "trainer": partial(difference, "trainer"),
}


def main() -> None:
    for name, table in TABLES.items():
        filled = {path: fill(path.read_text(), name, table()) for path in PAGES}
        if not any(filled.values()):
            raise SystemExit(f"{name}: expected its two markers on one of the pages, found none")
        for path, page in filled.items():
            if page is not None:
                path.write_text(page)


if __name__ == "__main__":
    main()
