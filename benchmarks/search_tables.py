"""The tables of benchmarks/table.py about the search, each as its head and its rows."""

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from pages import RESULTS, load  # type: ignore[import-not-found]  # its neighbour

Rows = list[Any]
MEASURES = (
    "divergence of the best trial, on unseen images, on unseen images after `calibrate`,"
    " accuracy after `calibrate`, its file in bytes"
)
Table = tuple[list[str], list[list[str]]]  # the head, and the rows


def known(name: str) -> Any:
    """A result, or one without rows where it has not been run."""
    return load(name) if (RESULTS / f"{name}.json").exists() else {"rows": []}


def grouped(rows: Rows, key: Callable[[Any], Any]) -> dict[Any, Rows]:
    """The rows of each key, in the order of the keys' first rows."""
    groups: dict[Any, Rows] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def mean(rows: Rows, name: str) -> float:
    return float(statistics.mean(row[name] for row in rows))


def with_spread(values: Iterable[float], digits: int) -> str:
    """The mean, and where there are several values, the least and the largest of them."""
    every = list(values)
    middle = f"{statistics.mean(every):.{digits}f}"
    if len(every) == 1:
        return middle
    return f"{middle} ({min(every):.{digits}f} to {max(every):.{digits}f})"


def losses(rows: Rows, name: str) -> str:
    return with_spread([-row[name] for row in rows], 4)


def measures(rows: Rows) -> list[str]:
    """What `search.py` measures of the best trials of a method, under the titles MEASURES."""
    return [
        *(losses(rows, name) for name in ("objective", "unseen", "solved_unseen")),
        with_spread([row["accuracy"] for row in rows], 2),
        f"{mean(rows, 'file_bytes'):,.0f}",
    ]


def searches(depth: int) -> Table:
    """Each method under each file size: the lowest divergence on unseen images first."""
    groups = grouped(known(f"search-resnet{depth}")["rows"], lambda row: row["limit"])
    rows = []
    for limit, alike in sorted(groups.items()):
        methods = grouped(alike, lambda row: row["method"])
        for method, seeds in sorted(methods.items(), key=lambda item: -mean(item[1], "unseen")):
            rows.append([
                f"{limit:,}", method, f"{len(seeds)}", *measures(seeds),
                f"{mean(seeds, 'counted'):.0f}", f"{mean(seeds, 'seconds'):.0f}",
            ])  # fmt: skip
    head = f"limit, method, seeds, {MEASURES}, trials, seconds"
    return head.split(", "), rows


def final_choice() -> Table:
    """The plans after the final choice, beside the exact and the uniform plan."""
    groups = grouped(known("final-choice")["rows"], lambda row: row["limit"])
    rows = []
    for limit, alike in sorted(groups.items()):
        methods = grouped(alike, lambda row: row["method"])
        plans = {method: [row["best"] for row in seeds] for method, seeds in methods.items()}
        plans |= {plan: [alike[0][plan]] for plan in ("exact", "uniform")}
        for name, best in plans.items():
            rows.append([
                f"{limit:,}", name, f"{len(best)}", losses(best, "final"),
                losses(best, "solved_unseen"),
                with_spread([row["accuracy"] for row in best], 2),
                f"{mean(best, 'file_bytes'):,.0f}",
            ])  # fmt: skip
    head = "limit, plan, seeds, final divergence, on unseen images, accuracy, file in bytes"
    return head.split(", "), rows


def uniform() -> Table:
    """The same bits in every layer, calibrated from the images of the search."""
    rows = []
    for depth in (20, 56):
        for bits, row in known(f"search-resnet{depth}").get("uniform", {}).items():
            figures = [f"{-row['solved_unseen']:.4f}", f"{row['accuracy']:.2f}"]
            rows.append([f"ResNet-{depth}", bits, *figures, f"{row['file_bytes']:,}"])
    head = "network, bits, on unseen images after `calibrate`, accuracy after `calibrate`,"
    return f"{head} its file in bytes".split(", "), rows


def ablation() -> Table:
    rows = []
    for variant, seeds in grouped(known("ablation")["rows"], lambda row: row["method"]).items():
        figures = [losses(seeds, name) for name in ("objective", "unseen")]
        accuracies = with_spread([row["accuracy"] for row in seeds], 2)
        rows.append([variant, f"{len(seeds)}", *figures, accuracies])
    head = "variant, seeds, divergence of the best trial, on unseen images"
    return f"{head}, accuracy after `calibrate`".split(", "), rows


def one_search() -> Table:
    """Means over the seeds; the last row counts the budgets at which ``dnq`` is better."""
    result = known("one-search")
    by_method = grouped(result["rows"], lambda row: row["method"])
    means = {
        method: [statistics.mean(each) for each in zip(*unseen(seeds), strict=True)]
        for method, seeds in by_method.items()
    }
    rows = []
    for at, average in enumerate(result.get("averages", ())):
        rows.append([f"{average:g}", *(f"{-means[method][at]:.4f}" for method in means)])
    if "dnq" in means:
        won = [
            f"{better(means['dnq'], means[method])} of {len(rows)} ("
            + ", ".join(map(str, map(better, unseen(by_method["dnq"]), unseen(seeds))))
            + ")"
            for method, seeds in by_method.items()
            if method != "dnq"
        ]
        rows.append(["`dnq` is better at", "", *won])
    return ["average bits", *means], rows


def unseen(rows: Rows) -> list[list[float]]:
    """The objectives for all budgets on unseen images, by seed."""
    return [row["unseen"] for row in sorted(rows, key=lambda row: row["seed"])]


def better(own: list[float], others: list[float]) -> int:
    """The number of budgets at which the first are better."""
    return sum(map(float.__gt__, own, others))


def mixed() -> Table:
    """Bits of weights and inputs, chosen together: the lowest divergence after calibrate first."""
    groups = grouped(known("mixed")["rows"], lambda row: row["limit"])
    rows = []
    for limit, alike in sorted(groups.items(), reverse=True):
        methods = grouped(alike, lambda row: row["method"])
        ranked = sorted(methods.items(), key=lambda item: -mean(item[1], "solved_unseen"))
        for method, seeds in ranked:
            rows.append([
                f"{limit / 1e6:.0f}", method, f"{len(seeds)}", *measures(seeds),
                f"{mean(seeds, 'average_bits'):.2f}",
            ])  # fmt: skip
    head = f"million bit operations, method, seeds, {MEASURES}, average weight bits"
    return head.split(", "), rows


def objective() -> Table:
    """How well each measure of trials ranks plans by what the solved networks lose."""
    correlations = known("objective").get("correlations", {})
    rows = []
    for name in correlations:
        measure, images = name.rsplit(", ", 1)
        both = [f"{value:.2f}" for value in correlations[name].values()]
        rows.append([measure, images, *both])
    rows.sort(key=lambda row: int(row[1]))
    head = "measure, images, correlation with the divergence, with the disagreement"
    return head.split(", "), rows
