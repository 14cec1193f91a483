"""The quantized network as data: what it costs, exact on reload, and a file of version 1 that must
stay readable."""

import copy
import json
import os
import pickle
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from octavo.activations.quantizer import InputFormat, input_formats, install_quantizers, scales
from octavo.errors import FormatError, PlanError
from octavo.formats.powers_of_two import PowerOfTwo, power_of_two
from octavo.storage.packed import Packed, pack, verify
from octavo.storage.quantized import Quantized

GOLDEN = Path(__file__).parent / "data" / "golden-v1.safetensors"


class Net(nn.Module):
    """One of everything that a file can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.out = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.out.weight = self.emb.weight
        self.conv, self.norm = nn.Conv2d(2, 2, (1, 2)), nn.BatchNorm2d(2)
        self.up, self.fc = (
            nn.ConvTranspose1d(2, 4, 2, groups=2, bias=False),
            nn.Linear(3, 1, bias=False),
        )
        self.a = nn.Parameter(torch.tensor([1.5, -3.0], dtype=torch.bfloat16))
        self.b = self.a
        buffers = {
            "wide": torch.tensor([0.1], dtype=torch.float64),
            "slim": torch.tensor([[0.5, 65504.0]], dtype=torch.float16),
            "mask": torch.tensor([True, False, True]),
            "small": torch.tensor([-7, 2**31 - 1], dtype=torch.int32),
            "byte": torch.tensor(255, dtype=torch.uint8),
            "empty": torch.empty(0, 3),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value)


# The network in the golden file, as it was written down when the file was made. Never change it,
# nor the file.
WEIGHTS: dict[str, list[Any]] = {
    "emb.weight": [
        [0.0, 0.0, 0.5, 0.0],
        [0.0, -1.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 4.0],
        [0.0009765625, 0.0, 0.0, -0.125],
        [0.0, 0.0, 0.0, 0.0],
        [0.0, 0.015625, -0.0625, 0.0],
    ],
    "conv.weight": [[[[1.0, -0.5]], [[0.0, 0.5]]], [[[-0.25, 0.0]], [[0.125, 0.25]]]],
    "up.weight": [[[0.5, -0.5], [0.0, 0.5]], [[-0.5, -0.5], [0.5, 0.0]]],
    "fc.weight": [[8.0, 0.0, -4.0]],
}
PLAN = {"emb": 5, "conv": 3, "up": 2, "fc": 3}
OTHERS: dict[str, tuple[torch.dtype, Any]] = {
    "a": (torch.bfloat16, [1.5, -3.0]),
    "b": (torch.bfloat16, [1.5, -3.0]),
    "wide": (torch.float64, [0.1]),
    "slim": (torch.float16, [[0.5, 65504.0]]),
    "mask": (torch.bool, [True, False, True]),
    "small": (torch.int32, [-7, 2147483647]),
    "byte": (torch.uint8, 255),
    "empty": (torch.float32, []),
    "conv.bias": (torch.float32, [0.25, -1.5]),
    "norm.weight": (torch.float32, [1.0, 2.0]),
    "norm.bias": (torch.float32, [0.0, -0.75]),
    "norm.running_mean": (torch.float32, [3.0, -0.125]),
    "norm.running_var": (torch.float32, [0.5, 4.0]),
    "norm.num_batches_tracked": (torch.int64, 1234567890123),
}
CODES = {
    "emb": (
        [8, 8, 15, 8, 8, 1, 8, 8, 8, 8, 8, 16, 9, 8, 8, 0, 8, 8, 8, 8, 8, 10, 4, 8],
        [0, 1, 2, -3, 0, 0],
    ),
    "conv": ([4, 1, 2, 3, 0, 2, 3, 4], [0, -2]),
    "up": ([2, 0, 1, 2, 0, 0, 2, 1], None),
    "fc": ([4, 2, 1], None),
}


def network() -> tuple[Net, dict[str, Quantized]]:
    """The network above."""
    model = Net()
    state = model.state_dict()
    with torch.no_grad():
        for name, (dtype, value) in OTHERS.items():
            state[name].copy_(torch.tensor(value, dtype=dtype).view(state[name].shape))
        for name, weight in WEIGHTS.items():
            state[name].copy_(torch.tensor(weight))
    layers = {
        "emb": Quantized(
            ("emb.weight", "out.weight"),
            PowerOfTwo(5, torch.tensor(CODES["emb"][1])),
            codes("emb", 6, 4),
        ),
        "conv": Quantized(
            ("conv.weight",),
            PowerOfTwo(3, torch.tensor(CODES["conv"][1])),
            codes("conv", 2, 2, 1, 2),
        ),
        "up": Quantized(("up.weight",), PowerOfTwo(2, torch.tensor(-1)), codes("up", 4, 1, 2), 2),
        "fc": Quantized(("fc.weight",), PowerOfTwo(3, torch.tensor(3)), codes("fc", 1, 3)),
    }
    return model, layers


def codes(name: str, *shape: int) -> Tensor:
    return torch.tensor(CODES[name][0], dtype=torch.uint8).view(shape)


def packed() -> Packed:
    return pack(*network())


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: Tensor, b: Tensor) -> bool:
    """The same bits."""
    raw = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*raw)


def check_golden(network: Packed) -> None:
    found = {name: layer.weight() for layer in network.layers.values() for name in layer.names}
    assert {name: weight.tolist() for name, weight in found.items()} == {
        **WEIGHTS,
        "out.weight": WEIGHTS["emb.weight"],
    }
    others = {
        name: (value.dtype, value.tolist()) for names, value in network.floats for name in names
    }
    assert others == OTHERS
    assert dict(network.plan) == PLAN


# The golden file.


def test_the_golden_file_is_read_as_it_was_written() -> None:
    check_golden(Packed.load(GOLDEN))
    verify(GOLDEN)


def test_the_golden_file_fills_a_model() -> None:
    model = Net()
    Packed.load(GOLDEN).apply(model)
    expected = network()[0].state_dict()
    assert list(model.state_dict()) == list(expected)
    assert all(same(value, expected[name]) for name, value in model.state_dict().items())
    assert model.out.weight is model.emb.weight


def test_what_is_written_today_says_the_same_as_the_golden_file(tmp_path: Path) -> None:
    packed().save(tmp_path / "today.safetensors")
    check_golden(Packed.load(tmp_path / "today.safetensors"))
    assert manifest_names(tmp_path / "today.safetensors") == manifest_names(GOLDEN)


def manifest_names(path: Path) -> list[str]:
    data = path.read_bytes()
    return sorted(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]))


# What is packed, and what it costs.


def test_packing_a_model_takes_each_tensor_once() -> None:
    model, layers = network()
    found = pack(model, layers)
    assert list(found.layers) == ["emb", "conv", "up", "fc"]
    assert dict(found.floats).keys() == {(n,) for n in OTHERS if n not in "ab"} | {("a", "b")}
    check_golden(found)


def test_packing_copies() -> None:
    model, layers = network()
    found = pack(model, layers)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.zero_()
    check_golden(found)


@pytest.mark.parametrize("kind", ["extra", "complex"])
def test_what_cannot_be_packed_is_named(kind: str) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"a": 1}

        def set_extra_state(self, state: Any) -> None: ...

    model: nn.Module = nn.ModuleDict({"m": Extra(2, 2) if kind == "extra" else nn.Linear(2, 2)})
    if kind == "complex":
        model.register_buffer("phase", torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(PlanError, match=r"^m\._extra_state: " if kind == "extra" else "^phase: "):
        pack(model, {})


def test_the_plan_knows_bits_and_weights() -> None:
    plan = packed().plan
    assert dict(plan) == PLAN
    assert plan.weights == {"emb": 24, "conv": 8, "up": 8, "fc": 3}


def test_the_three_figures(tmp_path: Path) -> None:
    network = packed()
    network.save(tmp_path / "net.safetensors")
    data = (tmp_path / "net.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    sizes = {
        name: entry["data_offsets"][1] - entry["data_offsets"][0]
        for name, entry in header.items()
        if name[:1] != "_"
    }
    weights = 24 + 8 + 8 + 3
    assert network.file_bytes == len(data)
    assert network.nominal_bits == (24 * 5 + 8 * 3 + 8 * 2 + 3 * 3) / weights
    stored = sizes["codes.2"] + sizes["codes.3"] + sizes["codes.5"] + sizes["exponents"]
    assert network.stored_bits == 8 * stored / weights
    others = 2 * 2 + 8 + 2 * 2 + 3 + 2 * 4 + 1 + 2 * 4 + 4 * 2 * 4 + 8  # a and b are one tensor
    assert network.float_bytes == 4 * weights + others
    assert network.ratio == network.float_bytes / len(data)


def test_a_large_network_is_really_small(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(200, 500, generator=draw)
    book = PowerOfTwo(3, torch.zeros(200, dtype=torch.int32))
    network = Packed({"fc": Quantized(("fc.weight",), book, book.encode(weight))}, [])
    network.save(tmp_path / "net.safetensors")
    assert network.ratio > 12
    assert network.stored_bits < 2.4
    assert (
        (tmp_path / "net.safetensors").stat().st_size
        == network.file_bytes
        < 500 * 200 * 2.35 / 8 + 1000
    )


# Saved and loaded.


@given(st.data())
@settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_apply_is_exact_after_a_round_trip(tmp_path: Path, data: st.DataObject) -> None:
    bits = data.draw(st.integers(2, 8))
    outputs, inputs, kernel = data.draw(st.tuples(*[st.integers(1, 4)] * 3))
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    model = nn.ModuleDict(
        {"conv": nn.Conv1d(inputs, outputs, kernel), "norm": nn.BatchNorm1d(outputs)}
    )
    per_channel = data.draw(st.booleans())
    tops = torch.randint(-149, 128, (outputs,) if per_channel else (), generator=draw)
    drawn = torch.randint(
        0, 2 ** (bits - 1) + 1, (outputs, inputs, kernel), generator=draw, dtype=torch.uint8
    )
    found = pack(model, {"conv": Quantized(("conv.weight",), PowerOfTwo(bits, tops), drawn)})
    found.save(tmp_path / "net.safetensors")
    other = nn.ModuleDict(
        {"conv": nn.Conv1d(inputs, outputs, kernel), "norm": nn.BatchNorm1d(outputs)}
    )
    Packed.load(tmp_path / "net.safetensors").apply(other)
    expected = state(model) | {"conv.weight": found.layers["conv"].weight()}
    assert all(same(value, expected[name]) for name, value in other.state_dict().items())


def test_what_is_reported_is_what_is_saved(tmp_path: Path) -> None:
    network = packed()
    reported, names = network.file_bytes, list(network.layers)
    assert network.ratio == network.float_bytes / reported
    for change in (
        lambda: network.layers.pop(names[0]),  # type: ignore[attr-defined]
        lambda: network.layers.__delitem__(names[0]),  # type: ignore[attr-defined]
        lambda: network.activations.clear(),  # type: ignore[attr-defined]
        lambda: network.floats.clear(),  # type: ignore[attr-defined]
    ):
        with pytest.raises((AttributeError, TypeError)):
            change()
    with pytest.raises(FrozenInstanceError):
        network.layers = {}  # type: ignore[misc]
    network.save(tmp_path / "net.safetensors")
    assert (tmp_path / "net.safetensors").stat().st_size == reported
    assert list(Packed.load(tmp_path / "net.safetensors").layers) == names


def test_it_does_not_hold_on_to_the_collections_that_it_was_made_of() -> None:
    _, layers = network()
    floats = [(("x",), torch.ones(2))]
    made = Packed(layers, floats)
    names = list(made.layers)
    layers.clear()
    floats.clear()
    assert (list(made.layers), [names for names, _ in made.floats]) == (names, [("x",)])


def test_codes_that_change_in_place_are_seen_by_the_next_save(tmp_path: Path) -> None:
    network = packed()
    name, layer = next(iter(network.layers.items()))
    network.save(tmp_path / "before")
    before = network.file_bytes, network.stored_bits
    layer.codes.fill_(layer.codebook.zero)
    network.save(tmp_path / "after")
    assert (network.file_bytes, network.stored_bits) != before
    assert network.file_bytes == (tmp_path / "after").stat().st_size
    assert Packed.load(tmp_path / "before").layers[name].weight().any()
    assert not Packed.load(tmp_path / "after").layers[name].weight().any()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_it_can_be_copied_and_sent_to_another_process(copied: Any, tmp_path: Path) -> None:
    network = packed()
    network.save(tmp_path / "one")
    copied(network).save(tmp_path / "other")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_it_says_what_it_is() -> None:
    network = packed()
    weights = sum(layer.codes.numel() for layer in network.layers.values())
    assert repr(network) == (
        f"Packed({len(network.layers)} layers, {weights} weights, {network.nominal_bits:.2f} bits "
        f"a weight, {network.stored_bits:.2f} stored, {network.file_bytes:,} bytes, "
        f"{network.ratio:.2f} times smaller)"
    )
    assert repr(Packed({}, [])).startswith("Packed(no quantized layer, ")


@pytest.mark.parametrize("kind", [str, Path])
def test_saving_is_repeatable(kind: type, tmp_path: Path) -> None:
    path = kind(tmp_path / "net.safetensors")
    packed().save(path)
    first = Path(path).read_bytes()
    Packed.load(path).save(path)
    assert Path(path).read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


def test_a_save_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.safetensors"
    packed().save(path)
    old = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    other = Packed(
        {
            "fc": Quantized(
                ("fc.weight",), PowerOfTwo(2, torch.tensor(0)), torch.ones(1, 3, dtype=torch.uint8)
            )
        },
        [],
    )
    with pytest.raises(OSError, match="No space left"):
        other.save(path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]
    verify(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, cause in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        for read in (Packed.load, verify):
            with pytest.raises(FormatError, match=f"{path}: {cause}"):
                read(path)


# Applied.


def test_apply_fills_what_is_there_and_makes_nothing_new() -> None:
    model = Net()
    before = {name: (id(p), p.requires_grad) for name, p in model.named_parameters()}
    model.fc.weight.requires_grad_(False)
    packed().apply(model)
    assert {name: id(p) for name, p in model.named_parameters()} == {
        name: identity for name, (identity, _) in before.items()
    }
    assert not model.fc.weight.requires_grad
    assert model.emb.weight.tolist() == WEIGHTS["emb.weight"]
    assert all(value.grad_fn is None for value in model.state_dict().values())


def wrong_models() -> dict[str, tuple[nn.Module, str]]:
    missing, extra, shape, kind = Net(), Net(), Net(), Net()
    del missing.fc
    extra.register_buffer("more", torch.zeros(1))
    shape.conv = nn.Conv2d(2, 2, (2, 1))
    kind.norm = nn.Identity()  # type: ignore[assignment]
    narrow, integer, tiny = Net(), Net(), Net()
    narrow.fc.weight = nn.Parameter(torch.zeros(3))
    integer.register_buffer("wide", torch.zeros(1, dtype=torch.int64))
    tiny.register_buffer("small", torch.zeros(2, dtype=torch.uint8))
    return {
        "missing layer": (
            missing,
            r"^fc\.weight: missing in the model; expected the architecture that was packed$",
        ),
        "extra tensor": (extra, "^more: missing in the packed network; expected"),
        "another shape": (
            shape,
            r"^conv\.weight: expected shape \(2, 2, 1, 2\) as packed, got \(2, 2, 2, 1\) in the ",
        ),
        "another rank": (
            narrow,
            r"^fc\.weight: expected shape \(1, 3\) as packed, got \(3,\) in the model$",
        ),
        "missing norm": (kind, r"^norm\.\w+: missing in the model"),
        "integers": (integer, "^wide: torch.int64 cannot hold its packed values exactly"),
        "wrapped": (tiny, "^small: torch.uint8 cannot hold its packed values exactly"),
        "in another module": (nn.ModuleDict({"model": Net()}), "missing in the"),
        "empty": (nn.Module(), "missing in the model"),
        "half": (
            Net().half(),
            r"^\S+: torch.float16 cannot hold its packed values exactly; use a float32 model$",
        ),
    }


@pytest.mark.parametrize("case", wrong_models())
def test_a_model_that_does_not_fit_is_left_as_it_was(case: str) -> None:
    model, message = wrong_models()[case]
    before = state(model)
    with pytest.raises(PlanError, match=message):
        packed().apply(model)
    assert all(same(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_that_no_longer_ties_what_was_tied() -> None:
    model = Net()
    model.out.weight = nn.Parameter(torch.zeros(6, 4))
    packed().apply(model)
    assert model.out.weight.tolist() == model.emb.weight.tolist() == WEIGHTS["emb.weight"]


def test_a_model_without_memory() -> None:
    with pytest.raises(PlanError, match="meta"):
        packed().apply(Net().to("meta"))


def test_a_sparse_networks_file_is_near_the_entropy_of_its_codes(tmp_path: Path) -> None:
    """Nine in ten weights zero, 4 bits, a million of them: all of the file, exponents and manifest
    too, beside its codes' order-0 entropy. (A small network's file is mostly other things.)"""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(512, 2304, generator=draw) * (torch.rand(512, 2304, generator=draw) < 0.1)
    book = power_of_two(weight, 4, fit="mse", per="channel")
    network = Packed({"conv": Quantized(("conv.weight",), book, book.encode(weight))}, [])
    counts = torch.bincount(network.layers["conv"].codes.flatten()).double()
    entropy = float((counts * torch.log2(counts.sum() / counts.clamp(min=1))).sum()) / 8
    assert network.file_bytes <= 1.05 * entropy
    network.save(tmp_path / "net.safetensors")
    assert torch.equal(
        Packed.load(tmp_path / "net.safetensors").layers["conv"].weight(), book.project(weight)
    )


# Networks whose inputs are quantized.


def rounded() -> tuple[Net, Packed]:
    model, layers = network()
    install_quantizers(
        model,
        {
            "conv": InputFormat(4, signed=True),
            "fc": InputFormat(8, signed=False, power_of_two=True),
        },
    )
    with torch.no_grad():
        for step in scales(model):
            step.fill_(0.3)
    return model, pack(model, layers)


def version_of(path: Path) -> int:
    data = path.read_bytes()
    return int(
        json.loads(
            json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["octavo"]
        )["version"]
    )


def test_quantized_inputs_make_it_a_file_of_version_2_that_older_readers_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed().save(tmp_path / "plain")
    rounded()[1].save(tmp_path / "rounded")
    assert (version_of(tmp_path / "plain"), version_of(tmp_path / "rounded")) == (1, 2)
    assert rounded()[1].file_bytes == (tmp_path / "rounded").stat().st_size
    verify(tmp_path / "rounded")
    monkeypatch.setattr("octavo.storage.container.VERSION", 1)
    with pytest.raises(
        FormatError,
        match="format version 2 is newer than 1, the newest this octavo reads: upgrade octavo",
    ):
        Packed.load(tmp_path / "rounded")


def test_a_plain_model_gets_the_quantizers_and_their_steps(tmp_path: Path) -> None:
    rounded()[1].save(tmp_path / "net")
    found, model = Packed.load(tmp_path / "net"), Net().train()
    found.apply(model)
    assert found.activations == {"conv": InputFormat(4, True), "fc": InputFormat(8, False, True)}
    assert input_formats(model) == found.activations
    assert found.plan.activations == {"conv": 4, "fc": 8}
    assert [step.item() for step in scales(model)] == [
        torch.tensor(0.3).item(),
        0.25,
    ]  # what is used of a step is what is kept
    found.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "net").read_bytes()


def test_a_model_with_quantizers_keeps_its_parameters_and_gets_the_packed_form() -> None:
    model = Net()
    install_quantizers(model, {"conv": InputFormat(4, True), "fc": InputFormat(2, True)})
    kept, _ = scales(model)
    found = rounded()[1]
    found.apply(model)
    assert scales(model)[0] is kept
    assert input_formats(model) == found.activations
    assert [step.item() for step in scales(model)] == [torch.tensor(0.3).item(), 0.25]


def test_quantizers_that_were_not_packed_and_layers_that_are_not_there_are_named() -> None:
    more, less = Net(), Net()
    install_quantizers(more, {"up": InputFormat(4, True)})
    with pytest.raises(PlanError, match=r"^up.input_quantizer.step: missing in the packed network"):
        packed().apply(more)
    del less.fc
    with pytest.raises(PlanError, match=r"^fc: missing in the model"):
        rounded()[1].apply(less)
    assert input_formats(less) == {}
    with pytest.raises(PlanError, match="cannot hold its packed values"):
        rounded()[1].apply(half := Net().half())
    assert input_formats(half) == {}


def test_a_module_with_two_names_has_one_quantizer() -> None:
    def twice() -> nn.Module:
        shared = nn.Linear(2, 2)
        return nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})

    model, fresh = twice(), twice()
    install_quantizers(model, {"a": InputFormat(4, True)})
    found = pack(model, {})
    assert found.activations == {"a": InputFormat(4, True)}
    assert ("a.input_quantizer.step", "b.0.input_quantizer.step") in dict(found.floats)
    found.apply(fresh)
    assert fresh.state_dict().keys() == model.state_dict().keys()


def test_a_network_without_quantized_layers_has_no_bits(tmp_path: Path) -> None:
    Packed({}, [(("a",), torch.zeros(3))]).save(tmp_path / "net")
    packed = Packed.load(tmp_path / "net")
    assert "no quantized layer" in repr(packed)
    for figure in ("nominal_bits", "stored_bits"):
        with pytest.raises(PlanError, match=r"the plan is empty|expected a network"):
            getattr(packed, figure)
