"""The registry of layer types: a type that is registered works everywhere, up to the file."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from octavo import (
    Budget,
    Incremental,
    Packed,
    Plan,
    PlanError,
    calibrate,
    export,
    inspect,
    quantize_activations,
    register_layer,
    search,
)
from octavo.network import kinds
from octavo.network.kinds import form_of, kind_of
from octavo.network.layer_inputs import layer_inputs, layer_outputs
from octavo.network.layers import calling_modules, channels_first, find_layers

WIDTH, WORDS, LENGTH = 16, 20, 6


@pytest.fixture(autouse=True)
def _registry_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "_KINDS", dict(kinds._KINDS))


class Conv1D(nn.Module):
    """The layer of GPT-2: a linear layer whose weight is (inputs, outputs)."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / math.sqrt(inputs))
        self.bias = nn.Parameter(0.1 * torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        product = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return product.view(*x.shape[:-1], -1)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c_attn, self.c_proj = Conv1D(3 * WIDTH, WIDTH), Conv1D(WIDTH, WIDTH)
        self.c_fc, self.c_out = Conv1D(4 * WIDTH, WIDTH), Conv1D(WIDTH, 4 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.c_attn(self.ln_1(x)).unsqueeze(1).chunk(3, -1)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.c_proj(attended.squeeze(1))
        return x + self.c_out(F.gelu(self.c_fc(self.ln_2(x))))  # type: ignore[no-any-return]


class GPT2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.h = nn.Sequential(Block(), Block())
        self.ln_f, self.lm_head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        return self.lm_head(self.ln_f(self.h(x)))  # type: ignore[no-any-return]


LAYERS = [f"h.{block}.{name}" for block in (0, 1) for name in ("c_attn", "c_proj", "c_fc", "c_out")]


def gpt2() -> GPT2:
    torch.manual_seed(0)
    return GPT2().eval()


def texts(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(WORDS, (32, LENGTH), generator=generator) for _ in range(4)]


def lost(model: nn.Module, other: nn.Module) -> float:
    """Relative squared error of the outputs on other inputs."""
    with torch.no_grad():
        pairs = [(model(batch), other(batch)) for batch in texts(1)]
    return float(
        sum(((a - b).square().sum() / a.square().sum() for a, b in pairs), torch.zeros(()))
    )


def quantized(model: nn.Module, packed: Packed) -> nn.Module:
    twin = copy.deepcopy(model)
    packed.apply(twin)
    return twin


def nearest(model: nn.Module, plan: Plan) -> nn.Module:
    twin = copy.deepcopy(model)
    incremental = Incremental(twin, plan, portions=(1.0,))
    list(incremental)
    incremental.finish()
    return twin


def test_a_gpt2_is_known_once_its_layer_is_registered() -> None:
    model = gpt2()
    assert [row.name for row in inspect(model).rows] == ["wte", "wpe"]
    register_layer(Conv1D, inputs_first=True)
    found = inspect(model, texts()[0])
    assert [row.name for row in found.rows] == ["wte", "wpe", *LAYERS]
    macs = {row.name: row.macs for row in found.rows}
    assert macs["h.0.c_attn"] == 32 * LENGTH * 3 * WIDTH * WIDTH
    assert macs["h.1.c_out"] == 32 * LENGTH * 4 * WIDTH * WIDTH
    assert {skip.reason for skip in found.skipped} == {
        "biases stay in float",
        "norms stay in float",
    }


def test_a_gpt2_is_calibrated_and_survives_its_file(tmp_path: Path) -> None:
    register_layer(Conv1D, inputs_first=True)
    model = gpt2()
    plan = Plan.uniform(model, 4)
    packed = calibrate(model, plan, texts())
    packed.save(tmp_path / "packed.safetensors")
    here = quantized(model, packed)
    there = quantized(model, Packed.load(tmp_path / "packed.safetensors"))
    for name, value in here.state_dict().items():
        assert torch.equal(value, there.state_dict()[name]), name
    for layer in find_layers(here)[0]:
        rows = channels_first(layer.weight.detach(), layer.groups)
        assert all(len(torch.unique(row)) <= 9 for row in rows), layer.name  # levels of a channel
    assert lost(model, here) < 0.7 * lost(model, nearest(model, plan))


def test_a_gpt2_goes_through_inq_with_retraining(tmp_path: Path) -> None:
    register_layer(Conv1D, inputs_first=True)
    model, batches = gpt2(), texts()
    plan = Plan.uniform(model, 3)
    student = copy.deepcopy(model)
    incremental = Incremental(student, plan, portions=(0.5, 0.75, 1.0), inputs=batches)
    for stage in incremental:
        optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
        for batch in () if stage.last else batches:
            optimizer.zero_grad()
            F.mse_loss(student(batch), model(batch).detach()).backward()
            optimizer.step()
    packed = incremental.finish()
    packed.save(tmp_path / "packed.safetensors")
    there = quantized(model, Packed.load(tmp_path / "packed.safetensors"))
    assert all(
        torch.equal(a, b) for a, b in zip(there(batches[0]), student(batches[0]), strict=True)
    )
    assert lost(model, student) < 0.8 * lost(model, nearest(model, plan))


def test_a_gpt2_is_searched() -> None:
    register_layer(Conv1D, inputs_first=True)
    model = gpt2()
    budget = Budget(average_bits=3.5)
    found = search(model, texts()[:1], budget=budget, options=(3, 4), method="random", trials=24)
    assert set(LAYERS) < set(found.plan)
    assert found.plan.cost().average_bits <= 3.5


def test_inputs_of_a_registered_layer_are_quantized() -> None:
    register_layer(Conv1D, inputs_first=True)
    model = gpt2()
    reasons = {skip.name: skip.reason for skip in quantize_activations(model, texts(), 8)}
    assert set(reasons) == {"wte", "wpe"}
    assert {row.name for row in inspect(model).rows if row.activation_bits == 8} == set(LAYERS)


@pytest.mark.parametrize("form", ["float", "lut"])
def test_registered_layers_are_exported(form: Any, tmp_path: Path) -> None:
    """export compares the outputs of the file with those of the quantized network."""
    register_layer(Conv1D, inputs_first=True)
    model, x = nn.Sequential(Conv1D(6, 4), nn.ReLU(), Conv1D(2, 6)), torch.randn(9, 4)
    packed = calibrate(model, Plan.uniform(model, 4), [x])
    path = export(model, packed, tmp_path / "model.onnx", form=form, example=x)
    assert path.exists()


# How a type is found.


def test_conv1d_of_transformers_is_known_by_its_name() -> None:
    fake = type("Conv1D", (Conv1D,), {"__module__": "transformers.pytorch_utils"})
    (layer,) = find_layers(fake(3, 4))[0]
    assert (layer.groups, layer.attribute) == (1, "weight")
    assert torch.equal(channels_first(layer.weight, 1), layer.weight.T)
    other = type("Conv1D", (Conv1D,), {"__module__": "somewhere.else"})
    assert find_layers(other(3, 4))[0] == []


def test_subclasses_are_found_and_the_nearest_type_counts() -> None:
    class Mine(nn.Linear):
        pass

    class Deeper(Mine):
        pass

    assert kind_of(Deeper(2, 2)) is kind_of(nn.Linear(2, 2))
    register_layer(Mine, weight="bias")
    assert [layer.attribute for layer in find_layers(Deeper(2, 2))[0]] == ["bias"]
    assert [layer.attribute for layer in find_layers(nn.Linear(2, 2))[0]] == ["weight"]
    register_layer(f"{Deeper.__module__}.{Deeper.__qualname__}")
    assert [layer.attribute for layer in find_layers(Deeper(2, 2))[0]] == ["weight"]


@pytest.mark.parametrize("wrong", ["Conv1D", 3, int, None, nn.Linear(2, 2)])
def test_what_is_no_layer_type_is_refused(wrong: Any) -> None:
    with pytest.raises(PlanError, match=r"register_layer: expected .* torch\.nn\.Module"):
        register_layer(wrong)


def test_forms() -> None:
    modules = {
        "product": nn.Conv2d(1, 1, 1), "transposed": nn.ConvTranspose1d(1, 1, 1),
        "embedding": nn.EmbeddingBag(2, 2), "recurrent": nn.GRU(1, 1), "cell": nn.LSTMCell(1, 1),
        "attention": nn.MultiheadAttention(2, 1),
    }  # fmt: skip
    assert {form: form_of(module) for form, module in modules.items()} == {f: f for f in modules}
    assert form_of(nn.PReLU()) is None


# What a registered weight is multiplied with.


class Scaled(nn.Module):
    """A linear layer that is none of torch's: another name, and a change of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(2 * x, self.kernel)


class Standardized(nn.Module):
    """A grouped convolution that is none of torch's, and pads by itself."""

    groups = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, [0, 1, 0, 1]), self.weight, stride=2, groups=2)


@pytest.mark.parametrize(
    ("module", "weight", "shape"),
    [
        (Scaled(), "kernel", (2, 7, 5)),
        (Standardized(), "weight", (3, 6, 5, 4)),
        (Conv1D(3, 5), "weight", (2, 7, 5)),
    ],
)  # fmt: skip
def test_products_of_registered_layers(module: Any, weight: str, shape: tuple[int, ...]) -> None:
    register_layer(type(module), weight=weight, inputs_first=isinstance(module, Conv1D))
    (layer,) = find_layers(module)[0]
    x = torch.randn(shape)
    with torch.no_grad():
        pieces = [piece for _, piece in layer_inputs(layer, module, (x,), {})]
        outputs = layer_outputs(module, module(x) - getattr(module, "bias", 0))
    inputs = torch.cat(pieces, 2)  # (problems, columns, n)
    rows = channels_first(layer.weight.detach(), layer.groups)
    assert outputs is not None
    product = rows.reshape(len(inputs), -1, inputs.shape[1]) @ inputs
    assert torch.allclose(product, outputs, atol=1e-5)


def test_inputs_that_do_not_fit_the_weight_are_refused_with_the_layers_name() -> None:
    class Halved(Conv1D):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[..., ::2].contiguous())

    register_layer(Halved, inputs_first=True)
    model = nn.Sequential(nn.Linear(4, 6), Halved(3, 3))
    with pytest.raises(PlanError, match=r"^1: expected inputs for .*\(3, 3\).*register_layer"):
        calibrate(model, {"1": 3}, [torch.randn(5, 4)])


@pytest.mark.parametrize("inputs", [4, 6])
def test_a_weight_in_two_layouts_is_seen_where_it_has_its_own(inputs: int) -> None:
    """An autoencoder whose decoder has the encoder's weight."""
    model: Any = nn.Sequential(nn.Conv1d(inputs, 4, 3), nn.ConvTranspose1d(4, inputs, 3))
    model[1].weight = model[0].weight
    (layer,) = find_layers(model)[0]
    assert calling_modules(model, [layer]) == {model[0]: [layer]}
    packed = calibrate(model, {"0": 4}, [torch.randn(3, inputs, 9)])
    twin = quantized(model, packed)
    assert torch.equal(twin[0].weight, twin[1].weight)  # type: ignore[index]
