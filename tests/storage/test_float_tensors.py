"""What is not quantized, in fewer bytes: halves of floats, and norms without their running
statistics."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octavo.activations.quantization import quantize_activations
from octavo.errors import PlanError
from octavo.formats.powers_of_two import PowerOfTwo
from octavo.plan import Plan
from octavo.ptq.calibration import calibrate
from octavo.storage.float_tensors import folded_norms
from octavo.storage.packed import Packed, pack
from octavo.storage.quantized import Quantized


def test_floats_in_half_their_bytes() -> None:
    """Rounded to float16 where that is near, and taken exactly by a float32 model; counters and
    quantized weights stay."""
    norm = nn.BatchNorm1d(4)
    model = nn.Sequential(nn.Linear(3, 4), norm)
    norm.weight.data = torch.tensor(
        [0.1, 1e-9, 3.0, -2.0]
    )  # small beside the others: nothing is lost
    norm.running_var = torch.full((4,), 1e6)  # beyond float16
    layer = Quantized(
        ("0.weight",), PowerOfTwo(3, torch.tensor(0)), torch.full((4, 3), 3, dtype=torch.uint8)
    )
    whole = pack(model, {"0": layer})
    half = whole.with_floats("float16")
    types = {names[0]: value.dtype for names, value in half.floats}
    assert types.pop("1.num_batches_tracked") == torch.int64
    assert types.pop("1.running_var") == torch.float32
    assert set(types.values()) == {torch.float16}
    assert {value.dtype for _, value in whole.floats} == {torch.float32, torch.int64}
    again = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    half.apply(again)
    for name, value in again.state_dict().items():
        expected = model.state_dict()[name]
        same = (
            expected
            if name in ("1.running_var", "1.num_batches_tracked")
            else expected.half().float()
        )
        assert name == "0.weight" or torch.equal(value, same)


def test_steps_keep_their_bytes_where_floats_have_half_of_theirs() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    quantize_activations(model, [torch.rand(8, 3)], 4)
    whole = pack(model, {})
    half = whole.with_floats("float16")
    assert half.activations == whole.activations != {}
    steps = [
        [value for names, value in p.floats if names[0].endswith("step")] for p in (whole, half)
    ]
    assert [step.dtype for step in steps[1]] == [torch.float32] * 2
    assert steps[0] == steps[1]


class Normed(nn.Module):
    """Norms of every kind: 2-D, 1-D, of another eps, called by two names, without a scale, and one
    that shares its scale."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn1 = nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6)
        self.deep = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6, eps=0.1), nn.ReLU())
        self.again = self.deep
        self.fc, self.plain, self.last = (
            nn.Linear(6, 6),
            nn.BatchNorm1d(6, affine=False),
            nn.BatchNorm1d(6),
        )
        self.one, self.other = nn.BatchNorm1d(6), nn.BatchNorm1d(6)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.deep(self.bn1(self.conv(x)))).mean((2, 3))
        found: Tensor = self.last(self.other(self.one(self.plain(self.fc(x)))))
        return found


def only_folded(packed: Packed, model: nn.Module) -> Packed:
    """The network with folded norms that are not rounded to float16."""
    return dataclasses.replace(packed, floats=folded_norms(packed.floats, model))


def trained() -> Any:
    """With norms that do something, in evaluation mode."""
    return stirred(Normed())


def stirred(model: nn.Module) -> Any:
    torch.manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.05, 3)
            if norm.affine:
                nn.init.normal_(norm.weight, 1, 0.5)
                nn.init.normal_(norm.bias)
    return model.eval()


FOLDED = ("bn1", "deep.1", "last")


def test_folded_norms_do_what_they_did(tmp_path: Path) -> None:
    """Loaded again from a file into a fresh network, to rounding; statistics are gone, those of
    other norms are not."""
    model, fresh, inputs = trained(), Normed().eval(), torch.randn(16, 2, 3, 3)
    whole = pack(model, {})
    folded = only_folded(whole, fresh)
    folded.save(tmp_path / "net.safetensors")
    Packed.load(tmp_path / "net.safetensors").apply(fresh)
    torch.testing.assert_close(fresh(inputs), model(inputs), rtol=1e-5, atol=1e-5)
    before, after = model.state_dict(), fresh.state_dict()
    for name in FOLDED:
        assert not after[f"{name}.running_mean"].any()
        assert bool((after[f"{name}.running_var"] == 1).all())
        assert not torch.equal(after[f"{name}.weight"], before[f"{name}.weight"])
    kept = [name for name in before if not name.startswith((*FOLDED, "again.1"))]
    assert {
        "plain.running_mean",
        "one.weight",
        "one.running_var",
        "other.running_mean",
        "conv.bias",
    } <= set(kept)
    for name in kept:
        assert torch.equal(after[name], before[name]), name
    assert {
        name: value for names, value in whole.floats for name in names
    }.keys() == before.keys()  # left as it was
    assert torch.equal(dict(whole.floats)[("bn1.running_mean",)], before["bn1.running_mean"])


def test_statistics_are_stored_once() -> None:
    """One row of zeros and one of ones for three norms; rows of other tensors stay apart, equal or
    not."""
    model = trained()
    assert isinstance(model.conv.bias, nn.Parameter)
    nn.init.zeros_(model.conv.bias)  # equal to the means that are left
    folded = only_folded(pack(model, {}), model)
    rows = {
        names: value
        for names, value in folded.floats
        if "bn1.running_mean" in names or "bn1.running_var" in names
    }
    assert [len(names) for names in rows] == [4, 4]  # bn1, deep.1, the same as again.1, last
    assert all(not any(name.startswith("conv") for name in names) for names in rows)
    assert (
        pack(model, {}).float_bytes - folded.float_bytes == 3 * 2 * 6 * 4 - 2 * 6 + 2 * 8
    )  # their counters are equal too


@pytest.mark.parametrize("first", [True, False])
def test_folding_goes_with_halves_and_quantized_layers(first: bool) -> None:
    model, inputs = trained(), torch.randn(64, 2, 3, 3)
    packed = calibrate(model, Plan.uniform(model, 5, include="*conv*"), [inputs])
    quantized = copy.deepcopy(model)
    packed.apply(quantized)
    both = (
        packed.with_floats("folded", model)
        if first
        else only_folded(packed.with_floats("float16"), model)
    )
    both.apply(slim := Normed().eval())
    torch.testing.assert_close(slim(inputs), quantized(inputs), rtol=0.02, atol=0.02)
    assert torch.equal(slim.conv.weight, quantized.conv.weight)
    assert slim.bn1.running_mean is not None
    assert bool(slim.bn1.running_mean.any()) != first  # norms in float16 are left alone
    assert first == (both.file_bytes < packed.with_floats("float16").file_bytes)


class Shifted(nn.BatchNorm1d):
    """As some ports have it: what is stored is the scale less one."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, 1 + self.weight, self.bias
        )


def raw() -> nn.BatchNorm1d:
    """On numbers as large as they come, in one channel."""
    norm = nn.BatchNorm1d(6)
    norm.running_mean, norm.running_var = (
        torch.full((6,), 5e8),
        torch.tensor([1.0, 1, 1, 1, 1, 1e18]),
    )
    return norm


def twins() -> nn.Module:
    """Two norms, of another eps each, with the same four tensors."""
    one, other = nn.BatchNorm1d(6), nn.BatchNorm1d(6, eps=10.0)
    for key, parameter in one.named_parameters():
        setattr(other, key, parameter)
    other.running_mean, other.running_var = one.running_mean, one.running_var
    return nn.Sequential(one, other)


WHOLE = [
    stirred(Shifted(6)),
    raw(),
    stirred(twins()),
    stirred(nn.BatchNorm1d(6)).bfloat16(),
    nn.BatchNorm1d(6, affine=False),
]


@pytest.mark.parametrize("module", WHOLE)
def test_where_folding_would_not_do_a_norm_stays_as_it_is(module: nn.Module) -> None:
    whole = pack(module.eval(), {})
    folded = only_folded(whole, module)
    assert [names for names, _ in folded.floats] == [names for names, _ in whole.floats]
    assert all(
        torch.equal(a, b) for (_, a), (_, b) in zip(folded.floats, whole.floats, strict=True)
    )


def test_float32_is_the_network_itself() -> None:
    packed = pack(trained(), {})
    assert packed.with_floats("float32") is packed


def test_folding_needs_a_model() -> None:
    with pytest.raises(PlanError, match=r"^floats: expected a model .*, got none: call"):
        pack(trained(), {}).with_floats("folded")


def test_an_unknown_form() -> None:
    with pytest.raises(PlanError, match=r"^floats: expected .*, got 'float8'$"):
        pack(trained(), {}).with_floats("float8")  # type: ignore[arg-type]
