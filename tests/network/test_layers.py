"""The layers of a model: which are found, how they are laid out, which are tied, and why parameters
are skipped."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from octavo.network.layers import channels_back, channels_first, find_layers

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")  # oneDNN has none

# Every kind of module with weights, and the names (in the plan) of what can be quantized when it is
# called "m".
KINDS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), ["m"]),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3), ["m"]),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), ["m"]),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), ["m"]),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), ["m"]),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 3), ["m"]),
    "transposed 2d": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), ["m"]),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 3, 2), ["m"]),
    "linear": (lambda: nn.Linear(4, 3), ["m"]),
    "embedding": (lambda: nn.Embedding(7, 3), ["m"]),
    "bag": (lambda: nn.EmbeddingBag(7, 3), ["m"]),
    "lstm": (
        lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2),
        [
            f"m.weight_{what}_l{n}{way}"
            for n in (0, 1)
            for way in ("", "_reverse")
            for what in ("ih", "hh", "hr")
        ],
    ),
    "gru": (lambda: nn.GRU(3, 4), ["m.weight_ih_l0", "m.weight_hh_l0"]),
    "rnn": (lambda: nn.RNN(3, 4, bias=False), ["m.weight_ih_l0", "m.weight_hh_l0"]),
    "lstm cell": (lambda: nn.LSTMCell(3, 4), ["m.weight_ih", "m.weight_hh"]),
    "gru cell": (lambda: nn.GRUCell(3, 4), ["m.weight_ih", "m.weight_hh"]),
    "rnn cell": (lambda: nn.RNNCell(3, 4), ["m.weight_ih", "m.weight_hh"]),
    "fused attention": (lambda: nn.MultiheadAttention(4, 2), ["m.in_proj_weight", "m.out_proj"]),
    "attention": (
        lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True),
        ["m.q_proj_weight", "m.k_proj_weight", "m.v_proj_weight", "m.out_proj"],
    ),
    "encoder layer": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8),
        ["m.self_attn.in_proj_weight", "m.self_attn.out_proj", "m.linear1", "m.linear2"],
    ),
}


def holder(**modules: nn.Module) -> nn.Module:
    model = nn.Module()
    for name, module in modules.items():
        model.add_module(name, module)
    return model


def reasons(model: nn.Module) -> dict[str, str]:
    return {skip.name: skip.reason for skip in find_layers(model)[1]}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_found_under_its_name(kind: str) -> None:
    make, names = KINDS[kind]
    model = holder(m=make())
    layers, _ = find_layers(model)
    assert [layer.name for layer in layers] == names
    parameters = dict(model.named_parameters())
    for layer in layers:
        assert layer.weight is parameters[layer.parameter] is getattr(layer.module, layer.attribute)
        assert layer.kind == type(layer.module).__name__.lower()
        assert layer.tied == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_a_layer_or_skipped_with_its_size_and_a_reason(kind: str) -> None:
    model = holder(m=KINDS[kind][0](), norm=nn.BatchNorm1d(3), loose=nn.PReLU())
    layers, skipped = find_layers(model)
    assert {layer.parameter for layer in layers}.isdisjoint(skip.name for skip in skipped)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert {layer.parameter: layer.weight.numel() for layer in layers} | {
        s.name: s.weights for s in skipped
    } == sizes
    assert all(skip.reason for skip in skipped)


def test_layers_come_in_the_order_of_registration_and_inner_names_are_dotted() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Sequential(nn.BatchNorm2d(2), nn.Linear(2, 2)), nn.Linear(2, 2)
    )
    assert [(layer.name, layer.parameter) for layer in find_layers(model)[0]] == [
        ("0", "0.weight"),
        ("1.1", "1.1.weight"),
        ("2", "2.weight"),
    ]


def test_a_bare_layer_is_named_after_its_parameter() -> None:
    assert [layer.name for layer in find_layers(nn.Linear(2, 2))[0]] == ["weight"]
    assert [layer.name for layer in find_layers(nn.GRU(2, 2))[0]] == [
        "weight_ih_l0",
        "weight_hh_l0",
    ]


def test_a_subclass_is_its_parent() -> None:
    class Mine(nn.Conv2d):
        pass

    (layer,) = find_layers(holder(m=Mine(1, 2, 3)))[0]
    assert (layer.name, layer.kind) == ("m", "mine")


# What is skipped.


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(3),
        nn.LayerNorm(3),
        nn.GroupNorm(1, 3),
        nn.RMSNorm(3),
        nn.InstanceNorm2d(3, affine=True),
        nn.SyncBatchNorm(3),
    ],
)
def test_norms_stay_in_float_whatever_they_are_called(norm: nn.Module) -> None:
    model = holder(conv1=norm, downsample=nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), norm))
    assert [layer.name for layer in find_layers(model)[0]] == ["downsample.0"]
    assert reasons(model)["conv1.weight"] == "norms stay in float"
    assert reasons(model).get("conv1.bias", "biases stay in float") == "biases stay in float"


def test_biases_stay_in_float() -> None:
    model = holder(
        fc=nn.Linear(2, 2), lstm=nn.LSTM(2, 2), attn=nn.MultiheadAttention(2, 1, add_bias_kv=True)
    )
    names = [
        "fc.bias",
        "lstm.bias_ih_l0",
        "lstm.bias_hh_l0",
        "attn.in_proj_bias",
        "attn.out_proj.bias",
    ]
    assert {name: reasons(model)[name] for name in names} == dict.fromkeys(
        names, "biases stay in float"
    )
    assert set(reasons(model)) == {*names, "attn.bias_k", "attn.bias_v"}


def test_unknown_parameters_are_named_with_their_owner() -> None:
    model = holder(act=nn.PReLU(), pair=nn.Bilinear(2, 3, 4))
    model.register_parameter("scale", nn.Parameter(torch.ones(2)))
    assert [layer.name for layer in find_layers(model)[0]] == []
    assert reasons(model) == {
        "scale": "Module.scale is not a kind of weight that octavo knows",
        "act.weight": "PReLU.weight is not a kind of weight that octavo knows",
        "pair.weight": "Bilinear.weight is not a kind of weight that octavo knows",
        "pair.bias": "biases stay in float",
    }


def test_other_parameters_of_a_known_module_are_not_taken_for_its_weight() -> None:
    model = nn.Linear(2, 2)
    model.register_parameter("temperature", nn.Parameter(torch.ones(())))
    assert [layer.name for layer in find_layers(model)[0]] == ["weight"]
    assert "temperature" in reasons(model)


def test_types_that_are_no_floats() -> None:
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    assert find_layers(model)[0] == []
    assert reasons(model)["weight"] == "its type is torch.int8"


def test_empty_weights() -> None:
    model = holder(none=nn.Conv2d(1, 1, 1), some=nn.Linear(1, 1))
    model.none.weight = nn.Parameter(torch.empty(0, 1, 1, 1))  # type: ignore[union-attr]
    assert [layer.name for layer in find_layers(model)[0]] == ["some"]
    assert reasons(model)["none.weight"] == "it is empty"


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_modules_before_and_after_they_have_seen_an_input() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.LazyConv1d(2, 1))
    assert find_layers(model)[0] == []
    assert reasons(model)["0.weight"] == "LazyLinear is lazy and has not seen an input yet"
    assert [skip.weights for skip in find_layers(model)[1]] == [0, 0, 0, 0]
    model(torch.ones(2, 4, 5))
    assert [layer.name for layer in find_layers(model)[0]] == ["0", "1"]


def test_parametrized_modules_are_skipped() -> None:
    model = holder(fc=parametrizations.weight_norm(nn.Linear(3, 4)), out=nn.Linear(4, 2))
    assert [layer.name for layer in find_layers(model)[0]] == ["out"]
    assert reasons(model)["fc.weight"] == "its module is parametrized already"
    assert set(reasons(model)) == {"fc.weight", "fc.bias", "out.bias"}


def test_another_attribute_that_is_parametrized_is_no_obstacle() -> None:
    model = nn.Linear(3, 4)
    parametrize.register_parametrization(model, "bias", nn.Identity())
    assert [layer.name for layer in find_layers(model)[0]] == ["weight"]
    assert reasons(model) == {"bias": "its module is parametrized already"}


def test_a_parametrized_buffer_is_no_obstacle() -> None:
    model = holder(norm=nn.BatchNorm1d(3), fc=nn.Linear(3, 3))
    parametrize.register_parametrization(model.norm, "running_mean", nn.Identity())  # type: ignore[arg-type]
    assert [layer.name for layer in find_layers(model)[0]] == ["fc"]


# What is tied.


def tied_language_model() -> nn.Module:
    model = holder(wte=nn.Embedding(10, 4), mid=nn.Linear(4, 4), head=nn.Linear(4, 10, bias=False))
    model.head.weight = model.wte.weight  # type: ignore[union-attr]
    return model


def test_a_tied_weight_is_one_layer_named_after_its_first_place() -> None:
    model = tied_language_model()
    layers, skipped = find_layers(model)
    assert [layer.name for layer in layers] == ["wte", "mid"]
    assert [(full, module, attribute) for full, module, attribute in layers[0].tied] == [
        ("head.weight", model.head, "weight")
    ]
    assert layers[0].places == [(model.wte, "weight"), (model.head, "weight")]
    assert [skip.name for skip in skipped] == ["mid.bias"]


def test_equal_values_are_not_tied() -> None:
    model: Any = holder(a=nn.Linear(2, 2), b=nn.Linear(2, 2))
    model.load_state_dict(
        {**model.state_dict(), **{f"b.{k}": v for k, v in model.a.state_dict().items()}}
    )
    assert [layer.name for layer in find_layers(model)[0]] == ["a", "b"]


def test_a_module_with_two_names_is_tied_under_both() -> None:
    inner = nn.Linear(3, 3)
    model = holder(first=inner, blocks=nn.ModuleList([inner, nn.Linear(3, 3)]))
    layers, _ = find_layers(model)
    assert [layer.name for layer in layers] == ["first", "blocks.1"]
    assert [full for full, *_ in layers[0].tied] == ["blocks.0.weight"]
    named = {layer.parameter for layer in layers} | {
        full for layer in layers for full, *_ in layer.tied
    }
    assert named == {key for key in model.state_dict() if key.endswith("weight")}


def test_a_weight_that_an_unknown_module_shares_is_tied_there_too() -> None:
    for first in (True, False):
        embedding: Any = nn.Embedding(5, 3)
        custom = nn.Module()
        custom.register_parameter("matrix", embedding.weight)
        model = holder(a=embedding, b=custom) if first else holder(b=custom, a=embedding)
        layers, skipped = find_layers(model)
        assert [(layer.name, layer.parameter) for layer in layers] == [("a", "a.weight")]
        assert {id(module) for module, _ in layers[0].places} == {id(embedding), id(custom)}
        assert skipped == []


# Output channels of a transposed convolution.


@pytest.mark.parametrize(
    ("inputs", "outputs", "groups"), [(4, 6, 1), (4, 6, 2), (4, 4, 4), (6, 3, 3), (2, 8, 2)]
)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_row_of_channels_first_is_what_makes_one_output_channel(
    inputs: int, outputs: int, groups: int, dims: int
) -> None:
    make = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    module = make(inputs, outputs, 2, groups=groups, bias=False)
    (layer,) = find_layers(module)[0]
    assert layer.groups == groups
    rows = channels_first(layer.weight.detach(), groups)
    assert len(rows) == outputs
    x = torch.ones(1, inputs, *[3] * dims)
    for channel in range(outputs):
        only = torch.zeros_like(rows)
        only[channel] = rows[channel].abs() + 1
        module.weight.data = channels_back(only, groups)
        active = module(x).abs().flatten(2).amax(2)[0] > 0
        assert active.nonzero().flatten().tolist() == [channel]


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 2, 5), (4, 3, 1, 2, 2)])
def test_channels_back_undoes_channels_first(shape: tuple[int, ...]) -> None:
    weight = torch.arange(float(torch.Size(shape).numel())).view(shape)
    assert channels_first(weight, 0) is weight
    assert channels_back(weight, 0) is weight
    for groups in (1, 2, 4):
        assert torch.equal(channels_back(channels_first(weight, groups), groups), weight)
        bits = weight.to(torch.uint8)
        assert torch.equal(channels_back(channels_first(bits, groups), groups), bits)
