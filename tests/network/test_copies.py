"""Copies of models and inputs."""

import sys
import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from octavo.errors import PlanError
from octavo.network.copies import copied, fresh


def test_tensors_of_a_graph_become_constants_and_stay_shared() -> None:
    model: Any = nn.Linear(3, 3)
    model.kept = model(torch.ones(2, 3))
    model.again = [model.kept]
    twin = copied(model)
    assert torch.equal(twin.kept, model.kept)
    assert twin.kept is twin.again[0]
    assert twin.kept is not model.kept
    assert not twin.kept.requires_grad
    assert twin.weight.requires_grad
    assert twin.weight is not model.weight


def test_what_has_no_copy_is_named() -> None:
    model: Any = nn.Linear(3, 3)
    model.lock = threading.Lock()
    with pytest.raises(PlanError, match=r"^Linear: .*copy.deepcopy cannot make one: TypeError"):
        copied(model)


class Waiting(nn.Module):
    """A module whose copy is not made before it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.copying = threading.Event()
        self.going_on = threading.Event()

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        self.copying.set()
        assert self.going_on.wait(10)
        return nn.Identity()


def test_copies_in_several_threads_put_the_recursion_limit_back() -> None:
    before = sys.getrecursionlimit()
    models = [Waiting(), Waiting()]
    threads = [threading.Thread(target=copied, args=(model,)) for model in models]
    for model, thread in zip(models, threads, strict=True):
        thread.start()
        assert model.copying.wait(10)
    for model, thread in zip(models, threads, strict=True):  # the one that came first goes first
        model.going_on.set()
        thread.join()
    assert sys.getrecursionlimit() == before


def test_fresh_inputs_share_no_memory_and_one_tensor_stays_one() -> None:
    x = torch.randn(4, 3)
    packed = pack_sequence([torch.ones(2, 3)])
    own = fresh({"a": [x, x[:2]], "b": (x, "text", None), "c": packed})
    assert own["b"][0] is own["a"][0]
    assert own["b"][1:] == ("text", None)
    own["a"][0].zero_()
    own["c"].data.zero_()
    assert x.any()
    assert packed.data.all()
    assert torch.equal(own["a"][1], x[:2])
