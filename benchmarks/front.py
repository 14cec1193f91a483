"""The picture of README: accuracy of ResNet-20 against the bytes of its file.

    python benchmarks/front.py     # some seconds; needs octavo[plot]

It is drawn from committed results. Calibrated files and integers are those of results/rate.json:
the mean of the sets of images that were measured, with a bar from the worst to the best of them.
Other packages are those of results/peers.json, one run each. The retrained networks are the
published ones, one run each, in the coder ``small`` and with folded norms as the others, of
results/small.json. The control is the full-precision network trained as long as those of 3 bits
and of 2.4 bits on average. Writes docs/front.svg.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from pages import control, load  # type: ignore[import-not-found]  # its neighbour
from pictures import new, save  # type: ignore[import-not-found]  # its neighbour

from octavo.dnq.front import undominated
from octavo.report.colours import LIGHT

PICTURE = Path(__file__).parents[1] / "docs" / "front.svg"
SMALLEST = "resnet20-dnq-70kb"  # the retrained network that is compared with full precision
RETRAINED = {  # a committed run: its name in the picture, and the side of its point that it is on
    "resnet20-sparse-4bit": ("85 % pruned", "below"),
    "resnet20-inq-2bit": ("2 bits", "right"),
    SMALLEST: ("2.4 bits, by layer", "left"),
    "resnet20-rate": ("apot5, rate 64", "left"),
    "resnet20-inq-3bit": ("3 bits", "above"),
    "resnet20-inq-4bit": ("4 bits", "left"),
    "resnet20-inq-5bit": ("5 bits", "right"),
}
PEERS = {  # a row of peers.json: the same
    "nncodec, qp -24": ("nncodec (DeepCABAC)", "right"),
    "optimum-quanto, int8": ("optimum-quanto, int8", "under"),
    "optimum-quanto, int4": ("optimum-quanto, int4", "right"),
    "optimum-quanto, int4, HQQ": ("optimum-quanto, int4, HQQ", "right"),
    "Brevitas, GPTQ, 4 bits": ("Brevitas, 4 bits in float32", "over"),
    "torchao, int4": ("torchao, int4", "right"),
}
SIDES = {  # of a point: where its name begins, in points, and how it is aligned
    "left": {"xytext": (-6, 5), "ha": "right"},
    "right": {"xytext": (7, -3), "ha": "left"},
    "below": {"xytext": (0, -14), "ha": "left"},
    "under": {"xytext": (0, -14), "ha": "center"},
    "above": {"xytext": (0, 7), "ha": "center"},
    "over": {"xytext": (4, 20), "ha": "right"},
}
TICKS = (40_000, 60_000, 100_000, 200_000, 400_000, 1_000_000)


@dataclass(frozen=True)
class File:
    """The bytes of a file, and the accuracies of the runs that it stands for, in per cent."""

    size: float
    accuracies: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """The mean of the runs."""
        return mean(self.accuracies)

    @property
    def place(self) -> tuple[float, float]:
        """The point in the picture."""
        return self.size, self.accuracy


# Committed results


def retrained(run: str) -> File:
    folded = load("small")["rows"][run]["folded"]
    return File(folded["file_bytes"], (folded["score"],))


def of_rates(wanted: Callable[[str], bool]) -> list[File]:
    """The rows of rate.json whose names are wanted, each as the mean of its sets."""
    return [
        File(mean(s["file_bytes"] for s in sets), tuple(s["accuracy"] for s in sets))
        for name, found in load("rate")["rows"].items()
        if wanted(name) and (sets := list(found.values()))
    ]


def of_peers() -> dict[str, File]:
    rows = load("peers")["rows"]["resnet20"]
    return {
        name: File(row["file_bytes"], (row["accuracy"],))
        for name, row in rows.items()
        if "accuracy" in row and not name.startswith("octavo")
    }


# Drawing


def add(panel: Any, files: list[File], *, line: Any = "", **style: Any) -> None:
    """Add files to a panel, with a line through those that no other beats in size and accuracy."""
    panel.plot(*zip(*(file.place for file in files), strict=True), linestyle="", **style)
    for file in files:
        if len(file.accuracies) > 1:
            ends = min(file.accuracies), max(file.accuracies)
            panel.plot([file.size] * 2, ends, color=style["color"], linewidth=0.8)
    if line:
        best = undominated(files, lambda file: file.size, lambda file: file.accuracy)
        places = zip(*(file.place for file in best), strict=True)
        panel.plot(*places, linestyle=line, color=style["color"])


def write(panel: Any, text: str, place: tuple[float, float], **how: Any) -> None:
    panel.annotate(text, place, **{"textcoords": "offset points"} | how)


def add_octavo(panel: Any) -> None:
    blue: dict[str, Any] = {"color": LIGHT["first"]}
    without = of_rates(lambda name: name.startswith("octavo") and name.endswith("/0"))
    with_rate = of_rates(lambda name: name.startswith("octavo") and not name.endswith("/0"))
    integers = of_rates(lambda name: name.startswith("integers"))
    add(panel, integers, line=":", marker="D", markersize=4.5, color=LIGHT["second"])
    add(panel, without, marker="s", fillstyle="none", **blue)
    add(panel, with_rate, line="--", marker="s", **blue)
    add(panel, [retrained(run) for run in RETRAINED], line="-", marker="o", markersize=6.5, **blue)
    for run, (name, side) in RETRAINED.items():
        write(panel, name, retrained(run).place, **SIDES[side])


def add_peers(panel: Any) -> None:
    files = of_peers()
    codec = [file for name, file in files.items() if name.startswith("nncodec")]
    add(panel, list(files.values()), marker="X", color=LIGHT["muted"])
    add(panel, codec, line=(0, (1, 2)), marker="", color=LIGHT["muted"])
    for row, (name, side) in PEERS.items():
        write(panel, name, files[row].place, color=LIGHT["muted"], **SIDES[side])


def add_full_precision(panel: Any) -> None:
    """Add the network before and its control, and how many times smaller a file is."""
    run = load(SMALLEST)
    size = run["float_bytes"]
    before = run["float_score"]
    small = retrained(SMALLEST)
    arrow = {"arrowstyle": "-|>", "color": LIGHT["ink"], "linewidth": 1, "shrinkA": 4, "shrinkB": 5}
    panel.annotate("", small.place, (size, before), arrowprops=arrow)
    write(
        panel, f"{size / small.size:.1f} times smaller", (0.55 * size, before),
        xytext=(0, 5), ha="center", color=LIGHT["first"], weight="bold", size=11,
    )  # fmt: skip
    ink: dict[str, Any] = {"color": LIGHT["ink"], "marker": "o", "markersize": 6.5}
    add(panel, [File(size, (before,))], **ink)
    trained = float(control(run))
    add(panel, [File(size, (trained,))], fillstyle="none", **ink)
    write(panel, f"full precision: {before:.2f} %", (size, before), xytext=(4, -15), ha="right")
    write(
        panel, f"full precision, trained as long: {trained:.2f} %", (size, trained), **SIDES["left"]
    )


def key(panel: Any) -> None:
    blue: dict[str, Any] = {"color": LIGHT["first"]}
    for name, style in {
        "octavo, retrained (INQ)": {"marker": "o", "linestyle": "-"} | blue,
        "octavo, calibrated with a rate": {"marker": "s", "linestyle": "--"} | blue,
        "octavo, calibrated without a rate": {"marker": "s", "fillstyle": "none"} | blue,
        "integers, same solver and coder": {
            "marker": "D", "markersize": 4.5, "linestyle": ":", "color": LIGHT["second"],
        },
        "three sets of images: mean, worst and best": {
            "marker": "|", "markersize": 9, "color": LIGHT["muted"],
        },
    }.items():  # fmt: skip
        panel.plot([], [], label=name, **{"linestyle": ""} | style)
    panel.legend(loc="lower right")


def main() -> None:
    figure, (panel,) = new(4.6)
    add_octavo(panel)
    add_peers(panel)
    add_full_precision(panel)
    key(panel)
    panel.set_xscale("log")
    panel.set_xlim(29_000, 1_300_000)
    panel.set_ylim(89, 92.45)
    panel.set_xticks(TICKS, [f"{tick // 1000:,} KB" for tick in TICKS])
    panel.set_xticks([], minor=True)
    panel.set_xlabel("whole file, 1 KB = 1,000 bytes")
    panel.set_title("ResNet-20 on CIFAR-10, accuracy in %")
    save(figure, PICTURE, "Accuracy of ResNet-20 on CIFAR-10 against the bytes of its file")


if __name__ == "__main__":
    main()
