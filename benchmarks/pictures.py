"""What the pictures of the pages share: their size, their colours, and files that are reproducible.

Their colours follow the theme of the reader: a style sheet inside the file replaces each colour on
a dark page, and what ignores style sheets shows the light ones on a paper of their own. Text stays
text. Series differ in marker, line or label, never in colour alone.
"""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from octavo.report.colours import DARK, LIGHT

INCHES = 7.2  # the width of every picture
MEASURED = "DejaVu Sans"  # the font that matplotlib brings, and lays text out with
FONTS = "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"  # narrower ones fit too
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "octavo",
    "font.sans-serif": [MEASURED],
    "font.size": 9.5,
    "axes.edgecolor": LIGHT["line"],
    "axes.labelcolor": LIGHT["ink"],
    "axes.titlecolor": LIGHT["ink"],
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LIGHT["line"],
    "grid.linewidth": 0.5,
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.5,
    "lines.markersize": 5.5,
    "figure.facecolor": LIGHT["paper"],
    "axes.facecolor": LIGHT["paper"],
}


def new(height: float, columns: int = 1) -> tuple[Any, list[Any]]:
    """Return a figure of so many inches in height, and its axes, side by side, of one scale."""
    mpl.use("svg")
    mpl.rcParams.update(SETTINGS)  # type: ignore[arg-type]
    size = (INCHES, height)
    figure, axes = plt.subplots(
        1, columns, figsize=size, layout="constrained", squeeze=False, sharey=True
    )
    return figure, list(axes[0])


def save(figure: Any, path: Path, description: str) -> None:
    """Write a figure as SVG: the same bytes from the same results."""
    figure.savefig(path, metadata={"Date": None, "Creator": None, "Description": description})
    text = path.read_text(encoding="utf-8").replace(f"'{MEASURED}', sans-serif", FONTS)
    text = text.replace("</style>", f"\n{dark_colours(text)}\n  </style>", 1)
    lines = [line.rstrip() for line in text.splitlines()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def dark_colours(svg: str) -> str:
    """The style sheet that gives the shapes and the text of a picture their colours in the dark."""
    rules = [
        f'    [style*="{use}: {light}"] {{ {use}: {DARK[name]} !important }}'
        for name, light in LIGHT.items()
        for use in ("fill", "stroke")
        if f"{use}: {light}" in svg
    ]
    return "\n".join(["  @media (prefers-color-scheme: dark) {", *rules, "  }"])
