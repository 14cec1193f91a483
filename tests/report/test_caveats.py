"""The honest part: each caveat is there where it holds, and nowhere else."""

from dataclasses import replace
from typing import Any

from octavo.report.caveats import caveats
from octavo.report.record import RunRecord


def said(record: RunRecord, **result: Any) -> str:
    return " ".join(caveats(replace(record, result=record.result | result)))


def test_the_price_is_what_the_control_has_more(searched: RunRecord) -> None:
    text = said(searched, score=90.0, control_score=92.5, float_score=91.0)
    assert "the metric fell by 2.50: this is what quantization changed" in text
    assert "Against the network that went in, it fell by 1.00" in text
    assert "rose by 0.50" in said(searched, score=90.0, control_score=89.5)
    assert "the metric is the same" in said(searched, score=90.0, control_score=90.0)


def test_without_a_control_a_retrained_run_says_so(searched: RunRecord, plain: RunRecord) -> None:
    result = {key: value for key, value in searched.result.items() if key != "control_score"}
    assert "No control was run" in " ".join(caveats(replace(searched, result=result)))
    assert "control" not in said(plain)


def test_labels_are_named(searched: RunRecord) -> None:
    assert "Retraining used labels." in said(searched, labels_used=True)
    assert "Retraining used no labels" in said(searched, labels_used=False)


def test_a_search_that_gained_or_learned_nothing_says_so(searched: RunRecord) -> None:
    search = searched.result["search"]
    text = said(searched, search=search | {"enumerated": True, "uniform_score": search["score"]})
    assert "the policy had nothing to learn" in text
    assert "no plan better than the uniform one" in text
    assert "inputs that had calibrated it" in said(searched, search=search | {"held_out": 0})
    held = said(searched, search=search | {"enumerated": False, "held_out": 9})
    assert "calibrated it" not in held
    assert "nothing to learn" not in held


def test_what_stays_in_float_is_counted(plain: RunRecord) -> None:
    assert "The plan leaves 1 layer in float" in said(plain)


def test_a_metric_that_is_a_share_has_a_price_too(searched: RunRecord) -> None:
    text = said(searched, score=0.9150, control_score=0.9173, float_score=0.9170)
    assert "the metric fell by 0.0023: this is what quantization changed" in text
