"""INQ inside of other trainers' loops: portions freeze when they are due, and all of them."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octavo import Incremental, Plan
from octavo.errors import OctavoError, PlanError
from octavo.trainers import Portions, for_lightning, for_transformers


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.layer(x)
        if labels is None:
            return logits
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def begun(**options: Any) -> Incremental:
    torch.manual_seed(0)
    model = Net()
    return Incremental(model, Plan.uniform(model, 3), **options)


def frozen(incremental: Incremental) -> float:
    model: Any = incremental.model
    return round(float(model.layer.parametrizations.weight[0].frozen.float().mean()), 2)


@pytest.mark.parametrize(
    ("portions", "steps", "shares"),
    [
        ((0.5, 0.75, 1.0), 6, [0.5, 0.5, 0.5, 0.75, 0.75, 0.75, 0.75]),
        ((0.5, 1.0), 3, [0.5, 0.5, 0.5, 0.5]),
        ((1.0,), 2, [0.0, 0.0, 0.0]),
        ((0.25, 0.5, 0.75, 1.0), 2, [0.25, 0.5, 0.75]),  # fewer steps than portions
    ],
)
def test_portions_are_spread_over_the_steps(
    portions: tuple[float, ...], steps: int, shares: list[float]
) -> None:
    incremental = begun(portions=portions)
    spread = Portions(incremental)
    spread.begin(steps)
    seen = [frozen(incremental)]
    for step in range(1, steps + 1):
        spread.after(step)
        seen.append(frozen(incremental))
    assert seen == shares
    spread.end()
    assert frozen(incremental) == 1
    assert incremental.finish().plan == {"layer": 3}


def test_a_training_that_ends_early_freezes_the_rest() -> None:
    incremental = begun()
    spread = Portions(incremental)
    spread.begin(100)
    spread.after(7)
    spread.end()
    assert frozen(incremental) == 1


@pytest.mark.parametrize("steps", [math.inf, math.nan, -1, 0])
def test_a_training_of_unknown_length_is_refused_before_anything_freezes(steps: float) -> None:
    incremental = begun()
    spread = Portions(incremental)
    with pytest.raises(PlanError, match=rf"got {steps}; give the trainer max_steps$"):
        spread.begin(steps)
    assert frozen(incremental) == 0
    spread.begin(4)  # the same callback serves the trainer that has a length
    assert frozen(incremental) == 0.5


@pytest.mark.parametrize(
    ("module", "make", "extra"),
    [("transformers", for_transformers, "hf"), ("lightning.pytorch", for_lightning, "lightning")],
)
def test_a_library_that_is_missing_names_its_extra(
    module: str, make: Any, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(OctavoError, match=rf"install octavo with its extra {extra}$"):
        make(begun())


DATA: Any = [{"x": torch.randn(6), "labels": i % 4} for i in range(32)]


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    incremental = begun()
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=6, per_device_train_batch_size=8, report_to="none",
        disable_tqdm=True, save_strategy="no", use_cpu=True,
    )  # fmt: skip
    before = incremental.model.layer.bias.clone()  # type: ignore[union-attr,operator]
    transformers.Trainer(
        incremental.model, arguments, train_dataset=DATA, callbacks=[for_transformers(incremental)]
    ).train()
    packed = incremental.finish()
    assert packed.plan == {"layer": 3}
    model: Any = incremental.model
    assert not torch.equal(model.layer.bias.cpu(), before)  # it trained


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    incremental = begun()

    class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = incremental.model

        def training_step(self, batch: Any, index: int) -> Any:
            return self.net(**batch)["loss"]

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[for_lightning(incremental)],
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader(DATA, batch_size=8))
    assert trainer.global_step == 8
    assert incremental.finish().plan == {"layer": 3}
