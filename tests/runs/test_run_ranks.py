"""A run on two ranks is the run of one: rank 0 alone writes, and any number of ranks resumes it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.ranks import Ranks as Processes
from tests.runs.tiny import Tiny, files, recipe
from torch import nn

from octavo._interruption import Interrupted, Interruption
from octavo.errors import RecipeError, TrainingError
from octavo.progress import Event
from octavo.runs import parallel, running_stage
from octavo.runs.run import run
from octavo.runs.run_folder import Json
from octavo.storage.packed import Packed

pytestmark = pytest.mark.usefixtures("folder")

FULL: dict[str, Any] = {
    "start": "ptq",
    "warmup": 0.5,
    "prune": {"sparsity": 0.3, "epochs": 0.5},
    "activations": {"bits": 4},
    "portions": [0.5, 1.0],
    "epochs": [1, 0.5],
}


def spoil_rank_1(number: int) -> Callable[..., None]:
    """Let rank 1 change a weight when the ranks have made their buffers alike."""

    def even_out(model: Any, ranks: Any) -> None:
        parallel.even_out(model, ranks)
        if number:
            with torch.no_grad():
                model[3].bias += 1

    return even_out


def on_a_rank(number: int, folder: Path, changes: Json, how: str = "") -> tuple[Json, list[str]]:
    """Run in the folder, which only rank 0 has; each rank has a working directory of its own."""
    own = folder if number == 0 else folder.parent / "nothing" / "one"
    Tiny.reset()
    seen: list[str] = []

    def progress(event: Event) -> None:
        seen.append(event.phase)

    interruption = Interruption()
    if how == "spoiled":
        vars(running_stage)["even_out"] = spoil_rank_1(number)
    if how == "interrupted" and number:  # the signal reaches one of them
        interruption.requested = 15
    try:
        result = run(recipe(**changes), own, progress, interruption=interruption)
    except Interrupted as stop:
        return {"kept": str(stop)}, seen
    finally:
        vars(running_stage)["even_out"] = parallel.even_out
    return result, seen


def without_norm(**changes: Any) -> Json:
    return {"task": f"{__name__}:Smooth", **changes}


class Smooth(Tiny):
    """Its norm does not depend on the other rows of a batch."""

    def model(self) -> nn.Module:
        model: Any = super().model()
        model[1] = nn.LayerNorm(self.width)
        return model.eval()  # type: ignore[no-any-return]


def close(one: Path, other: Path) -> None:
    """The networks of two runs differ by no more than the rounding of sums allows."""
    first = json.loads((one / "result.json").read_text())
    second = json.loads((other / "result.json").read_text())
    assert first["score"] == pytest.approx(second["score"], abs=1e-3)
    assert first["control_score"] == pytest.approx(second["control_score"], abs=1e-3)
    for stage, same in zip(first["stages"], second["stages"], strict=True):
        assert stage["loss"] == pytest.approx(same["loss"], abs=1e-4)


def test_two_ranks_end_as_one_does(folder: Path, on_two_ranks: Processes) -> None:
    alone = folder.parent.parent / "alone" / "one"
    run(recipe(**without_norm()), alone)
    (result, seen), (same, nothing) = on_two_ranks(on_a_rank, folder, without_norm())
    close(folder, alone)
    assert json.loads((folder / "result.json").read_text()) == result == same
    codes = [Packed.load(one / "packed.safetensors").layers for one in (folder, alone)]
    assert all(torch.equal(codes[0][name].codes, codes[1][name].codes) for name in codes[1])
    assert {"note", "retrain"} <= set(seen)
    assert nothing == []
    assert set(files(folder.parent)) == set(files(alone.parent))  # the control's have the same name


def test_every_step_of_a_recipe_runs_on_two_ranks(folder: Path, on_two_ranks: Processes) -> None:
    (result, _), (same, _) = on_two_ranks(on_a_rank, folder, FULL)
    assert result == same
    assert len(result["stages"]) == 4
    again, _ = on_two_ranks(on_a_rank, folder, FULL)[0]
    assert again == result  # it is complete


@pytest.mark.parametrize("first", [1, 2])
def test_another_number_of_ranks_goes_on(first: int, folder: Path, on_two_ranks: Processes) -> None:
    """The run is stopped in the middle of its first stage."""
    alone = folder.parent.parent / "alone" / "one"
    run(recipe(**without_norm()), alone)
    if first == 1:
        interruption = Interruption()
        interruption.requested = 15
        with pytest.raises(Interrupted, match="step 1 of 6 is kept"):
            run(recipe(**without_norm()), folder, interruption=interruption)
        on_two_ranks(on_a_rank, folder, without_norm())
    else:
        kept = [
            result["kept"]
            for result, _ in on_two_ranks(on_a_rank, folder, without_norm(), "interrupted")
        ]
        assert all("step 1 of 6 is kept" in one for one in kept)
        run(recipe(**without_norm()), folder)
    close(folder, alone)


def test_a_rank_that_differs_is_named(folder: Path, on_two_ranks: Processes) -> None:
    for error in on_two_ranks(on_a_rank, folder, {}, "spoiled"):
        assert isinstance(error, TrainingError)
        assert "1, after retraining: rank 1 differs from rank 0 in 3.bias" in str(error)


def test_an_error_of_rank_0_is_that_of_all(folder: Path, on_two_ranks: Processes) -> None:
    folder.mkdir(parents=True)
    shutil.copy(os.devnull, folder / "recipe.json")
    (folder / "recipe.json").write_text(json.dumps(recipe(seed=3).model_dump(mode="json")))
    for error in on_two_ranks(on_a_rank, folder, {}):
        assert isinstance(error, RecipeError)
        assert "holds a run with seed 3" in str(error)
