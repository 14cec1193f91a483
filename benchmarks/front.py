"""The picture of README: accuracy of ResNet-20 against the bytes of its file.

    python benchmarks/front.py     # some seconds; needs octavo[plot]

It is drawn from committed results. The points are those of results/rate.json, each the mean over
the sets of images that were measured, of results/peers.json, and of the published retrained
networks, in the coder ``small`` and with folded norms as the others, of results/small.json. Writes
docs/front.svg.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from pages import load  # type: ignore[import-not-found]  # its neighbour
from pictures import new, save  # type: ignore[import-not-found]  # its neighbour

from octavo.dnq.front import undominated
from octavo.report.colours import LIGHT

PICTURE = Path(__file__).parents[1] / "docs" / "front.svg"
RETRAINED = {  # a committed run: its name in the picture, and the side of its point that it is on
    "resnet20-sparse-4bit": ("85 % pruned", "below"),
    "resnet20-inq-2bit": ("2 bits", "right"),
    "resnet20-dnq-70kb": ("2.4 bits (DNQ)", "left"),
    "resnet20-rate": ("rate 64", "left"),
    "resnet20-inq-3bit": ("3 bits", "above"),
    "resnet20-inq-4bit": ("4 bits", "left"),
    "resnet20-inq-5bit": ("5 bits", "right"),
}
SIDES = {  # of a point: where its name begins, in points, and how it is aligned
    "left": {"xytext": (-6, 5), "ha": "right"},
    "right": {"xytext": (7, -4), "ha": "left"},
    "below": {"xytext": (0, -15), "ha": "left"},
    "above": {"xytext": (0, 9), "ha": "center"},
}
LEAST = 88.0  # per cent; the picture ends there

Point = tuple[float, float]  # bytes of the file, accuracy in per cent


def retrained() -> list[Point]:
    folded = [load("small")["rows"][run]["folded"] for run in RETRAINED]
    return [(row["file_bytes"], row["score"]) for row in folded]


def of_rates(wanted: Callable[[str], bool]) -> list[Point]:
    """The rows of rate.json whose names are wanted, each as the mean of its sets."""
    points = []
    for name, found in load("rate")["rows"].items():
        if found and wanted(name):
            sets = list(found.values())
            points.append((mean(s["file_bytes"] for s in sets), mean(s["accuracy"] for s in sets)))
    return points


def of_peers(package: str) -> list[Point]:
    rows = load("peers")["rows"]["resnet20"]
    found = [row for name, row in rows.items() if name.startswith(package) and "accuracy" in row]
    return [(row["file_bytes"], row["accuracy"]) for row in found]


def front(points: list[Point]) -> list[Point]:
    """The points that no other beats in both, the smallest file first."""
    best: list[Point] = undominated(points, lambda point: point[0], lambda point: point[1])
    return sorted(best)


def series() -> list[tuple[str, list[Point], dict[str, Any]]]:
    """The name of each series, its points and how they are drawn."""
    with_rate = of_rates(lambda name: name.startswith("octavo") and not name.endswith("/0"))
    without = of_rates(lambda name: name.startswith("octavo") and name.endswith("/0"))
    integers = of_rates(lambda name: name.startswith("integers"))
    first: dict[str, Any] = {"color": LIGHT["first"]}
    others: list[tuple[str, str, dict[str, Any]]] = [
        ("nncodec (DeepCABAC)", "nncodec", {"marker": "x", "color": LIGHT["ink"]}),
        ("optimum-quanto, int4 and int8", "optimum-quanto", {"marker": "P"}),
        ("torchao, int4", "torchao", {"marker": "v"}),
        ("Brevitas, GPTQ, 4 bits", "Brevitas", {"marker": "*", "markersize": 9}),
    ]
    return [
        ("octavo, retrained (INQ, DNQ)", retrained(), {"marker": "o", "linestyle": "-"} | first),
        ("octavo, calibrated with a rate", with_rate, {"marker": "s", "linestyle": "--"} | first),
        ("octavo, calibrated without", without, {"marker": "s", "fillstyle": "none"} | first),
        (
            "integers of the same solver and coder",
            integers,
            {"marker": "D", "linestyle": ":", "color": LIGHT["second"]},
        ),
        *(
            (name, of_peers(package), {"color": LIGHT["muted"]} | style)
            for name, package, style in others
        ),
    ]


def draw(panel: Any) -> None:
    for name, points, style in series():
        shown = [point for point in points if point[1] >= LEAST]
        if not shown:
            continue
        line = style.get("linestyle", "")
        panel.plot(*zip(*shown, strict=True), **{**style, "linestyle": ""})
        if line:
            panel.plot(*zip(*front(shown), strict=True), **{**style, "marker": ""})
        panel.plot([], [], label=name, **{"linestyle": "", **style})
    for point, (name, side) in zip(retrained(), RETRAINED.values(), strict=True):
        panel.annotate(name, point, textcoords="offset points", **SIDES[side])


def main() -> None:
    figure, ((panel,),) = new(1, 5.2)
    before = load("resnet20-inq-3bit")["float_score"]
    panel.axhline(before, color=LIGHT["muted"], linestyle=(0, (6, 3)), linewidth=1)
    panel.annotate(
        f"full precision: {before:.2f} %",
        (1, before),
        (0, 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
    )
    draw(panel)
    panel.set_xscale("log")
    ticks = [35_000, 50_000, 70_000, 100_000, 140_000, 200_000, 300_000, 500_000, 1_000_000]
    panel.set_xticks(ticks, [f"{tick // 1000} KB" for tick in ticks[:-1]] + ["1 MB"])
    panel.set_xticks([], minor=True)
    panel.set_xlabel("bytes of the whole file")
    panel.set_ylabel("accuracy on CIFAR-10, %")
    figure.legend(loc="outside upper left", ncols=2)
    save(figure, PICTURE, "Accuracy of ResNet-20 on CIFAR-10 against the bytes of its file")


if __name__ == "__main__":
    main()
