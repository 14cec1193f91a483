"""The picture of README: accuracy against the size of the file, from the committed results.

    python benchmarks/front.py     # some seconds; needs octavo[report]

Writes docs/front.svg.
"""

from dataclasses import replace
from pathlib import Path

import vl_convert

from octavo.report.charts.comparison import front_figure
from octavo.report.charts.theme import configured
from octavo.report.colours import LIGHT
from octavo.report.record import RunRecord

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parents[1] / "docs" / "front.svg"
WIDTH = 640
HEIGHT = 300
RUNS = {  # a committed result, and its name in the picture
    "resnet20-sparse-4bit": "85 % pruned, 4 bits",
    "resnet20-inq-2bit": "2 bits",
    "resnet20-inq-3bit": "3 bits",
    "resnet20-dnq-70kb": "2.4 bits on average, by DNQ",
    "resnet20-inq-4bit": "4 bits",
    "resnet20-inq-5bit": "5 bits",
}


def main() -> None:
    records = [
        replace(RunRecord.load(RESULTS / f"{name}.json"), name=title)
        for name, title in RUNS.items()
    ]
    figure = front_figure(records, LIGHT, "accuracy on CIFAR-10, %")
    spec = configured(replace(figure, height=HEIGHT), LIGHT, WIDTH)
    PICTURE.write_text(vl_convert.vegalite_to_svg(spec) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
