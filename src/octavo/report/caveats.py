"""The honest part of a report: what its figures do not say."""

from collections.abc import Iterator

from octavo.report.record import RunRecord
from octavo.runs.metric import metric_change

__all__ = ["caveats"]


def caveats(record: RunRecord) -> list[str]:
    """Return what a reader should know before the figures are shown to anybody, in sentences."""
    return [
        *_of_the_metric(record),
        *_of_the_labels(record),
        *_of_the_search(record),
        *_of_the_size(record),
    ]


def _of_the_metric(record: RunRecord) -> Iterator[str]:
    score = record.result["score"]
    if record.control is not None:
        from_control = metric_change(record.control, score)
        from_start = metric_change(record.result["float_score"], score)
        yield (
            "Against the control, which trained equally long in full precision, the metric "
            f"{from_control}: this is what quantization changed. Against the network that went in, "
            f"it {from_start}."
        )
    elif record.recipe.get("method") == "inq":
        yield (
            "No control was run. Retraining alone may have changed the metric: compare with "
            "full precision only with care."
        )
    seed = record.recipe.get("seed", 0)
    yield f"These are the figures of one run with the seed {seed}; other seeds differ a little."


def _of_the_labels(record: RunRecord) -> Iterator[str]:
    if record.result.get("labels_used"):
        yield "Retraining used labels."
    elif record.recipe.get("method") == "inq":
        yield "Retraining used no labels: it imitated the network in full precision."


def _of_the_search(record: RunRecord) -> Iterator[str]:
    search = record.result.get("search")
    if not search:
        return
    if search.get("enumerated"):
        yield (
            f"Only {search['trials']} plans were within the budget, and all of them were measured: "
            "the policy had nothing to learn."
        )
    gain = search["score"] - search["uniform_score"]
    if gain <= 0:
        yield "The search found no plan better than the uniform one."
    if search.get("held_out") == 0:
        yield (
            "The plan was chosen on inputs that had calibrated it: its objective is better than it "
            "will be on other inputs."
        )


def _of_the_size(record: RunRecord) -> Iterator[str]:
    skipped = sum(row["weights"] for row in record.details.get("skipped", []))
    kept = [row for row in record.layers if row.bits is None]
    if kept:
        layers = "1 layer" if len(kept) == 1 else f"{len(kept)} layers"
        yield f"The plan leaves {layers} in float that could be quantized."
    if skipped:
        yield (
            f"{skipped:,} parameters, biases and norms among them, are not quantized; they are "
            "counted in the bytes of the file."
        )
    yield (
        "The file is smaller, but the network is not faster by itself: after loading it computes "
        "in float32. Export it for a runtime with low-bit kernels."
    )
