"""The inputs X that a weight is multiplied with: X W^T is the output of the module itself, and sums
over X are those of X laid out by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import octavo.network.layer_inputs
from octavo.network.layer_inputs import layer_inputs, layer_outputs, problem_count
from octavo.network.layers import Layer, channels_first, find_layers
from octavo.network.moments import Moments

CONVOLUTIONS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "plain 1d": (nn.Conv1d(3, 5, 4), (2, 3, 9)),
    "plain 2d": (nn.Conv2d(3, 5, 3), (2, 3, 6, 7)),
    "plain 3d": (nn.Conv3d(2, 3, 2), (2, 2, 3, 4, 5)),
    "strides": (nn.Conv2d(2, 3, 3, stride=(2, 3)), (2, 2, 8, 11)),
    "dilation": (nn.Conv2d(2, 3, (2, 3), dilation=(3, 2)), (2, 2, 8, 9)),
    "all at once": (
        nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1), groups=2),
        (3, 4, 6, 7),
    ),
    "asymmetric padding": (nn.Conv2d(2, 3, (1, 5), padding=(0, 3)), (2, 2, 4, 5)),
    "groups 1d": (nn.Conv1d(6, 9, 3, groups=3, stride=2), (2, 6, 9)),
    "groups 3d": (nn.Conv3d(4, 2, (1, 2, 3), groups=2, padding=1), (1, 4, 3, 4, 5)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, padding=1), (2, 4, 5, 6)),
    "depthwise, two each": (nn.Conv2d(3, 6, 3, groups=3), (2, 3, 5, 6)),
    "circular": (nn.Conv2d(2, 3, (3, 2), padding=(2, 1), padding_mode="circular"), (2, 2, 5, 6)),
    "circular 1d": (nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular", bias=False), (2, 2, 5)),
    "reflected": (nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="reflect"), (2, 2, 5, 6)),
    "same": (nn.Conv2d(2, 3, (4, 3), padding="same", dilation=(1, 2)), (2, 2, 7, 8)),
    "same, circular": (nn.Conv1d(2, 3, 4, padding="same", padding_mode="circular"), (2, 2, 7)),
    "valid": (nn.Conv2d(2, 3, 3, padding="valid"), (2, 2, 5, 6)),
    "unbatched": (nn.Conv2d(2, 4, 3, groups=2, padding=1), (2, 5, 6)),
    "unbatched 1d": (nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5)),
    "one pixel": (nn.Conv2d(3, 5, 1), (2, 3, 1, 1)),
}
TRANSPOSED: dict[str, tuple[nn.Module, tuple[int, ...], Any]] = {
    "plain 1d": (nn.ConvTranspose1d(3, 5, 4), (2, 3, 6), None),
    "plain 2d": (nn.ConvTranspose2d(3, 5, (3, 2)), (2, 3, 4, 5), None),
    "plain 3d": (nn.ConvTranspose3d(2, 3, 2, stride=(1, 2, 3)), (1, 2, 2, 3, 4), None),
    "stride": (nn.ConvTranspose2d(2, 3, 3, stride=(2, 3)), (2, 2, 4, 5), None),
    "dilation": (nn.ConvTranspose2d(2, 3, (2, 3), dilation=(3, 2)), (2, 2, 4, 5), None),
    "groups": (nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 4, 5), None),
    "depthwise": (nn.ConvTranspose2d(4, 4, 3, groups=4, stride=2), (2, 4, 4, 5), None),
    "padding": (nn.ConvTranspose2d(2, 3, 3, padding=(1, 2)), (2, 2, 4, 5), None),
    "padding beyond the kernel": (
        nn.ConvTranspose2d(2, 3, 2, padding=(2, 3), stride=3),
        (2, 2, 4, 5),
        None,
    ),
    "output padding": (
        nn.ConvTranspose2d(2, 3, 3, stride=(3, 2), output_padding=(2, 1)),
        (2, 2, 4, 5),
        None,
    ),
    "all at once": (
        nn.ConvTranspose2d(
            4,
            6,
            (3, 2),
            stride=(2, 3),
            padding=(2, 1),
            dilation=(2, 1),
            groups=2,
            output_padding=(1, 2),
        ),
        (2, 4, 4, 5),
        None,
    ),
    "output size": (nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1), (2, 2, 4, 5), [8, 9]),
    "output size, all of it": (nn.ConvTranspose1d(2, 3, 3, stride=3), (2, 2, 4), (2, 3, 14)),
    "unbatched": (nn.ConvTranspose2d(2, 3, 3, stride=2), (2, 4, 5), None),
    "output size, unbatched": (nn.ConvTranspose1d(2, 3, 3, stride=2), (2, 4), (3, 10)),
}


def layer_of(module: nn.Module, attribute: str = "weight") -> Layer:
    return next(
        layer
        for layer in find_layers(module)[0]
        if layer.attribute == attribute and layer.module is module
    )


def seen(layer: Layer, module: nn.Module, *args: Any, **kwargs: Any) -> list[Tensor]:
    """X of each problem, (n, columns), its pieces put together."""
    found: list[list[Tensor]] = [[] for _ in range(problem_count(layer))]
    with torch.no_grad():
        for problem, piece in layer_inputs(layer, module, args, kwargs):
            assert piece.dtype == torch.float32
            for target, one in zip(found[problem], piece, strict=True):
                target.append(one.T)
    return [torch.cat(pieces) for pieces in found]


def products(layer: Layer, inputs: list[Tensor]) -> Tensor:
    """``X W^T``, the problems' rows side by side: (n, output channels)."""
    weight = channels_first(layer.weight.detach(), layer.groups).flatten(1)
    return torch.cat([x @ w.T for x, w in zip(inputs, weight.chunk(len(inputs)), strict=True)], 1)


def without_bias(module: Any, output: Tensor) -> Tensor:
    """A convolution's output as (n, channels)."""
    output = output.detach().movedim(1 - module.weight.dim(), -1)
    return (output if module.bias is None else output - module.bias.detach()).flatten(0, -2)


def check_sums(
    layer: Layer, module: nn.Module, inputs: list[Tensor], *args: Any, **kwargs: Any
) -> None:
    """What Moments adds up from a call is what the inputs give, one row after the other."""
    moments = Moments.of(layer)
    for problem, piece in layer_inputs(layer, module, args, kwargs):
        moments.add(problem, piece.detach())
    expected = torch.stack(
        [torch.stack([torch.outer(row, row) for row in x]).sum(0) for x in inputs]
    )
    assert torch.allclose(moments.hessian, expected, rtol=1e-4, atol=1e-4)
    assert moments.seen == min(len(x) for x in inputs)


# Linear layers and convolutions.


@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 7), (2, 1, 3, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_linear_inputs_of_every_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    module = nn.Linear(7, 4).to(dtype)
    x, layer = torch.randn(shape, dtype=dtype), layer_of(module)
    (found,) = seen(layer, module, x)
    assert torch.equal(found, x.float().view(-1, 7))
    outputs = layer_outputs(module, module(x))
    assert outputs is not None
    expected = products(layer, [found.to(dtype)]) + module.bias
    assert torch.allclose(
        outputs[0].T, expected.float(), atol=1e-5 if dtype != torch.bfloat16 else 0.05
    )
    check_sums(layer, module, [found], x)


@pytest.mark.filterwarnings(
    "ignore:Using padding='same' with even kernel"
)  # it is slower, that is all
@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("pieces", [False, True])
def test_convolutions_multiply_their_patches(
    kind: str, pieces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, shape = CONVOLUTIONS[kind]
    torch.manual_seed(0)
    x, layer = torch.randn(shape), layer_of(module)
    if pieces:
        monkeypatch.setattr(octavo.network.layer_inputs, "CHUNK", 1)
        batch = shape[0] if len(shape) == module.weight.dim() else 1  # type: ignore[operator]
        assert len(list(layer_inputs(layer, module, (x,), {}))) == batch
    inputs, output = seen(layer, module, x), module(x).detach()
    assert torch.allclose(products(layer, inputs), without_bias(module, output), atol=1e-5)
    check_sums(layer, module, inputs, x)


class Same(nn.Conv2d):
    """Pads its input by itself, as TensorFlow does, more on one side than on the other."""

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, [0, 1, 1, 2])
        return F.conv2d(
            padded,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            groups=self.groups,
        )


class Shifted(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x + 1)


@pytest.mark.parametrize(
    "module", [Same(4, 6, 3, stride=2, groups=2), Same(2, 2, (1, 2), padding="same"), Shifted(5, 3)]
)
def test_subclasses_that_change_their_input_first(module: Any) -> None:
    """What counts is what the weight is multiplied with, not what the module is called with."""
    torch.manual_seed(0)
    x = (
        torch.randn(7, 5)
        if isinstance(module, nn.Linear)
        else torch.randn(3, module.in_channels, 6, 7)
    )
    layer, output = layer_of(module), module(x)
    inputs = seen(layer, module, x)
    outputs = layer_outputs(module, output - module.bias.view(-1, *[1] * (output.dim() - 2)))
    assert outputs is not None
    assert torch.allclose(products(layer, inputs).T, outputs.flatten(0, 1), atol=1e-5)
    check_sums(layer, module, inputs, x)


@pytest.mark.parametrize("kind", TRANSPOSED)
@pytest.mark.parametrize("pieces", [False, True])
def test_transposed_convolutions_too(
    kind: str, pieces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, shape, output_size = TRANSPOSED[kind]
    torch.manual_seed(0)
    x, layer = torch.randn(shape), layer_of(module)
    if pieces:
        monkeypatch.setattr(octavo.network.layer_inputs, "CHUNK", 1)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [((x,), {})]
    if output_size is not None:
        calls = [
            ((x,), {"output_size": output_size}),
            ((x, output_size), {}),
            ((), {"output_size": output_size, "input": x}),
        ]
    for args, kwargs in calls:
        inputs, output = seen(layer, module, *args, **kwargs), module(*args, **kwargs).detach()
        assert torch.allclose(products(layer, inputs), without_bias(module, output), atol=1e-5)
        check_sums(layer, module, inputs, *args, **kwargs)


@pytest.mark.parametrize(
    "kind", ["groups 1d", "all at once", "depthwise, two each", "unbatched", "plain 3d"]
)
def test_outputs_come_in_the_order_of_the_inputs(kind: str) -> None:
    for module, shape in (CONVOLUTIONS[kind], TRANSPOSED.get(kind, TRANSPOSED["groups"])[:2]):
        x, layer = torch.randn(shape), layer_of(module)
        outputs = layer_outputs(module, module(x).detach())
        assert outputs is not None
        bias = module.bias.detach()  # type: ignore[operator]
        assert torch.allclose(
            products(layer, seen(layer, module, x)) + bias,
            torch.cat(list(outputs.mT), 1),
            atol=1e-5,
        )
        assert outputs.shape[0] == problem_count(layer)


@pytest.mark.parametrize(
    "memory", ["contiguous", "channels last", "every other pixel", "one pixel expanded"]
)
def test_patches_of_inputs_laid_out_otherwise(memory: str) -> None:
    module, x = nn.Conv2d(4, 6, 3, groups=2), torch.randn(2, 4, 6, 6)
    if memory == "channels last":
        x = x.to(memory_format=torch.channels_last)
    elif memory == "every other pixel":
        x = torch.randn(3, 4, 6, 12)[1:, :, :, ::2]
    elif memory == "one pixel expanded":
        x = x[:, :, :1, :1].expand(2, 4, 6, 6)
    layer = layer_of(module)
    assert torch.allclose(
        products(layer, seen(layer, module, x)), without_bias(module, module(x)), atol=1e-5
    )


# Attention.


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Plain attention of one sequence (length, width), head by head."""
    results = []
    for a, b, c in zip(q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1), strict=True):
        results.append(torch.softmax(a @ b.T / math.sqrt(a.shape[1]), 1) @ c)
    return torch.cat(results, 1)


def sequences(rows: Tensor, batch: int, *, batch_first: bool) -> list[Tensor]:
    """Each sequence of the batch, from rows in the order of the module's inputs."""
    return (
        list(rows.view(batch, -1, rows.shape[1]))
        if batch_first
        else list(rows.view(-1, batch, rows.shape[1]).unbind(1))
    )


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_attention_is_what_its_weights_inputs_make(
    separate: bool, batch_first: bool, by_name: bool, batch: int
) -> None:
    """Cross-attention of 5 queries over 7 keys, put together by hand from X of each weight."""
    torch.manual_seed(0)
    sizes = {"kdim": 3, "vdim": 5} if separate else {}
    module = nn.MultiheadAttention(4, 2, batch_first=batch_first, **sizes).eval()
    nn.init.normal_(module.in_proj_bias)
    nn.init.normal_(module.out_proj.bias)
    layout = (lambda n: (batch, n)) if batch_first else (lambda n: (n, batch))
    given = [
        torch.randn(*layout(n), width)
        for n, width in ((5, 4), (7, sizes.get("kdim", 4)), (7, sizes.get("vdim", 4)))
    ]
    args, kwargs = (
        ((), dict(zip(("query", "key", "value"), given, strict=True)))
        if by_name
        else (tuple(given), {})
    )
    if separate:
        projections = [layer_of(module, f"{name}_proj_weight") for name in "qkv"]
        rows = [products(layer, seen(layer, module, *args, **kwargs)) for layer in projections]
    else:
        inputs = seen(layer_of(module, "in_proj_weight"), module, *args, **kwargs)
        rows = [
            x @ w.T for x, w in zip(inputs, module.in_proj_weight.detach().chunk(3), strict=True)
        ]
    rows = [
        row + bias.detach() for row, bias in zip(rows, module.in_proj_bias.chunk(3), strict=True)
    ]
    parts = [sequences(row, batch, batch_first=batch_first) for row in rows]
    heads = [attention(q, k, v, 2) for q, k, v in zip(*parts, strict=True)]
    out = next(layer for layer in find_layers(module)[0] if layer.module is module.out_proj)
    (through,) = seen(out, module, *args, **kwargs)
    for found, expected in zip(
        sequences(through, batch, batch_first=batch_first), heads, strict=True
    ):
        assert torch.allclose(found, expected, atol=1e-5)
    whole = module(*args, **kwargs)[0].detach().flatten(0, 1)
    assert torch.allclose(products(out, [through]) + module.out_proj.bias, whole, atol=1e-5)


def test_attention_without_a_batch_and_with_a_mask() -> None:
    module, x = nn.MultiheadAttention(4, 2).eval(), torch.randn(6, 4)
    mask = torch.ones(6, 6, dtype=torch.bool).triu(1)
    layer, out = layer_of(module, "in_proj_weight"), find_layers(module)[0][1]
    assert all(torch.equal(found, x) for found in seen(layer, module, x, x, x, attn_mask=mask))
    (through,) = seen(out, module, x, x, x, attn_mask=mask, need_weights=False)
    expected = module(x, x, x, attn_mask=mask)[0].detach()
    assert torch.allclose(products(out, [through]) + module.out_proj.bias, expected, atol=1e-5)


def test_the_thirds_of_a_fused_projection_are_summed_each_by_itself() -> None:
    module = nn.MultiheadAttention(4, 2, batch_first=True)
    q, k, v = torch.randn(2, 5, 4), torch.randn(2, 7, 4), torch.randn(2, 7, 4)
    layer = layer_of(module, "in_proj_weight")
    check_sums(layer, module, [x.reshape(-1, 4) for x in (q, k, v)], q, k, v)


# Lookups and cells.


@pytest.mark.parametrize("module", [nn.Embedding(6, 3), nn.EmbeddingBag(6, 3)])
def test_the_weights_of_an_embedding_count_by_themselves(module: nn.Module) -> None:
    layer, moments = layer_of(module), Moments.of(layer_of(module))
    for shape in ((4, 3), (2, 9)):
        for problem, piece in layer_inputs(
            layer, module, (torch.zeros(shape, dtype=torch.long),), {}
        ):
            moments.add(problem, piece)
    assert torch.allclose(
        moments.hessian, 30 / 6 * torch.eye(3).unsqueeze(0)
    )  # 30 lookups of 6 rows
    assert moments.drift.shape == (1, 6, 3)
    assert moments.seen


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
@pytest.mark.parametrize("batch", [(), (4,)])
def test_cells_meet_their_input_and_their_state(kind: Any, batch: tuple[int, ...]) -> None:
    module, x, hidden = kind(3, 5), torch.randn(*batch, 3), torch.randn(*batch, 5)
    state = (hidden, torch.randn(*batch, 5)) if kind is nn.LSTMCell else hidden
    for layer in find_layers(module)[0]:
        expected = (x if layer.attribute == "weight_ih" else hidden).reshape(
            -1, layer.weight.shape[1]
        )
        for args, kwargs in (
            ((x, state), {}),
            ((x,), {"hx": state}),
            ((), {"hx": state, "input": x}),
        ):
            assert torch.equal(seen(layer, module, *args, **kwargs)[0], expected)
        (first,) = seen(layer, module, x)
        assert torch.equal(
            first, expected if layer.attribute == "weight_ih" else torch.zeros_like(expected)
        )
