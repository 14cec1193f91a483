"""How a model is called: arguments of every form, and modes that are put back."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.overrides import TorchFunctionMode

from octavo import Budget, Incremental, PlanError, calibrate, compress, quantize_activations, search
from octavo.network.forward import arguments, batches_of, call, evaluating, observing, on_device


class Sum(nn.Module):
    def forward(self, a: Tensor, b: Tensor | float = 0.0) -> Tensor:
        return a + 2 * b


def test_call_hands_over_tensors_tuples_and_dicts() -> None:
    a, b = torch.tensor([1.0]), torch.tensor([10.0])
    assert [float(call(Sum(), x)) for x in (a, (a, b), [a, b], {"b": a, "a": b}, (a,))] == [
        1,
        21,
        21,
        12,
        1,
    ]


@pytest.mark.parametrize(("device", "at_once"), [("cpu", True), ("meta", False)])
def test_a_copy_to_the_cpu_is_complete_before_anyone_reads_it(device: str, at_once: bool) -> None:
    """An accelerator orders its copies and its kernels; the CPU would read too early."""
    waits = []

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            if func is Tensor.to:
                waits.append(not kwargs["non_blocking"])
            return func(*args, **(kwargs or {}))

    with Watch():
        on_device((torch.ones(2), {"x": torch.ones(1)}), torch.device(device))
    assert waits == [at_once, at_once]


def test_arguments_by_position_and_by_name() -> None:
    x = torch.zeros(2)
    assert arguments(x) == ((x,), {})
    assert arguments((x, 3)) == ((x, 3), {})
    assert arguments({"x": x}) == ((), {"x": x})


def test_a_packed_sequence_is_one_argument() -> None:
    packed = pack_sequence([torch.ones(2, 3), torch.ones(1, 3)])
    outputs, _ = call(nn.GRU(3, 4), packed)
    assert outputs.data.shape == (3, 4)


def test_evaluating_restores_each_module_even_after_an_error() -> None:
    inner = nn.BatchNorm1d(2).eval()
    model = nn.Sequential(nn.Dropout(), nn.Sequential(inner))

    class Observer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert not any(module.training for module in model.modules())
            raise ArithmeticError("inside")

    with pytest.raises(ArithmeticError, match="inside"), evaluating(model):
        Observer()(torch.zeros(1))
    assert [module.training for module in model.modules()] == [True, True, True, False]


CALLS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "calibrate": lambda model, inputs: calibrate(model, {"0": 3}, inputs),
    "absorb": lambda model, inputs: calibrate(model, {"0": 3}, inputs, absorb=True),
    "streamed": lambda model, inputs: calibrate(model, {"0": 3}, inputs, sequential=False),
    "search": lambda model, inputs: search(model, inputs, budget=Budget(average_bits=3)),
    "compress": lambda model, inputs: compress(model, inputs, budget=Budget(average_bits=3)),
    "Incremental": lambda model, inputs: next(iter(Incremental(model, {"0": 3}, inputs=inputs))),
    "activations": lambda model, inputs: quantize_activations(model, inputs, 8),
}


@pytest.mark.parametrize("name", CALLS)
def test_inputs_that_are_no_batches_get_the_line_to_write_instead(name: str) -> None:
    """Rows of a tensor would be taken for batches, and pairs for two arguments."""
    x, model = torch.randn(6, 4), nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(PlanError, match=r"got one tensor of shape \(6, 4\); write \[inputs\]"):
        CALLS[name](model, x)
    with pytest.raises(PlanError, match=r"got one ndarray; write \[torch.as_tensor\(inputs\)\]"):
        CALLS[name](model, x.numpy())
    with pytest.raises(PlanError, match=r"pairs \(x, y\), write \[x for x, y in inputs\]$"):
        CALLS[name](model, [(x, torch.zeros(6))])


@pytest.mark.parametrize(
    ("inputs", "named"), [({"x": torch.ones(1)}, "keys x; write"), (None, "NoneType; write")]
)
def test_a_mapping_and_no_batches_at_all_are_refused(inputs: Any, named: str) -> None:
    with pytest.raises(PlanError, match=named):
        batches_of(inputs)


class Masked(nn.Module):
    """A model whose second argument is not a label."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        outputs: Tensor = self.linear(x if mask is None else x * mask)
        return outputs


def test_pairs_are_named_though_the_model_takes_two_arguments() -> None:
    pairs = [(torch.ones(8, 4), torch.zeros(8))]
    with pytest.raises(PlanError, match=r"write \[x for x, y in inputs\]$"):
        calibrate(Masked(), {"linear": 3}, pairs)


def test_the_fused_path_is_off_until_the_last_thread_is_done() -> None:
    inside, leave = threading.Event(), threading.Event()

    def observe() -> None:
        with observing(nn.Linear(1, 1)):
            inside.set()
            leave.wait()

    thread = threading.Thread(target=observe)
    with observing(nn.Linear(1, 1)):
        thread.start()
        inside.wait()
    still_on = torch.backends.mha.get_fastpath_enabled()
    leave.set()
    thread.join()
    assert not still_on
    assert torch.backends.mha.get_fastpath_enabled()


def test_hooks_see_a_model_that_was_compiled_and_called_before() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    compiled: Any = torch.compile(model, backend="eager")
    x = torch.zeros(5, 3)
    seen: list[nn.Module] = []
    with torch.no_grad():
        compiled(x)
    for copied in (compiled, copy.deepcopy(compiled)):
        for name in ("_orig_mod.0", "_orig_mod.2"):
            copied.get_submodule(name).register_forward_pre_hook(
                lambda layer, _: seen.append(layer)
            )
        with observing(copied):
            copied(x)
        assert len(seen) == 2
        seen.clear()
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_a_compiled_model_that_was_called_before_is_calibrated_as_the_model_is() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    inputs = [torch.randn(5, 3)]
    compiled: Any = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(inputs[0])
    packed = calibrate(model, {"0": 3, "2": 2}, inputs)
    of_compiled = calibrate(compiled, {"_orig_mod.0": 3, "_orig_mod.2": 2}, inputs)
    for name, quantized in packed.layers.items():
        assert torch.equal(of_compiled.layers[f"_orig_mod.{name}"].codes, quantized.codes)
