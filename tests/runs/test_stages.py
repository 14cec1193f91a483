"""What is kept between stages, and whose it is; runs that are cut off are tests/test_run.py's."""

from pathlib import Path

import pytest
import torch
from torch import nn

from octavo.errors import FormatError
from octavo.runs.stages import Track


def control(path: Path, *, digest: str = "abc", inputs: int = 3) -> Track:
    torch.manual_seed(0)
    return Track("control", nn.Linear(inputs, 2), None, path, digest, [(1.0, 1.0)])


def test_nothing_saved_is_nothing_to_resume(tmp_path: Path) -> None:
    fresh = control(tmp_path / "none.pt")
    fresh.resume()
    assert (fresh.log, fresh.earlier) == ([], 0.0)


def test_what_was_saved_comes_back_with_its_time(tmp_path: Path) -> None:
    first, second = control(tmp_path / "c.pt"), control(tmp_path / "c.pt")
    nn.init.constant_(first.model.weight, 0.75)  # type: ignore[arg-type]
    first.log = [{"loss": 0.5, "seconds": 1.5}, {"loss": 0.25, "seconds": 2.0}]
    first.save()
    second.resume()
    assert torch.equal(second.model.weight, first.model.weight)  # type: ignore[arg-type]
    assert (second.log, second.earlier) == (first.log, 3.5)


@pytest.mark.parametrize(
    ("digest", "inputs", "cause"),
    [("xyz", 3, "weights have changed since"), ("abc", 4, "size mismatch")],
)
def test_the_stage_of_another_network_is_refused(
    digest: str, inputs: int, cause: str, tmp_path: Path
) -> None:
    control(tmp_path / "c.pt").save()
    with pytest.raises(
        FormatError, match=f"c.pt: expected the last whole stage.*{cause}.*delete it to start over"
    ):
        control(tmp_path / "c.pt", digest=digest, inputs=inputs).resume()
