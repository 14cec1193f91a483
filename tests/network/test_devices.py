"""The device that a user names is there, or the error says which are."""

import pytest
import torch

from octavo.errors import RecipeError
from octavo.network.devices import available_devices, device_named


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_network_stays_where_its_task_puts_it() -> None:
    assert available_devices() == ["cpu"]
    assert device_named("auto") is None
    assert device_named("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:0", "gpu"):
        with pytest.raises(
            RecipeError, match=rf"^device: expected auto or one .* has, cpu, got '{name}'; torch is"
        ):
            device_named(name)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("name", "rank", "device"),
    [
        ("auto", None, "cuda:0"),
        ("auto", "1", "cuda:1"),
        ("cuda", None, "cuda:0"),
        ("cuda", "1", "cuda:1"),
        ("cuda:1", "0", "cuda:1"),
        ("cpu", "1", "cpu"),
    ],
)
def test_each_rank_has_a_gpu_of_its_own(
    name: str, rank: str | None, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert device_named(name) == torch.device(device)


@pytest.mark.usefixtures("gpus")
def test_more_processes_than_gpus_and_unknown_gpus_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(RecipeError, match=r"has, cpu, cuda:0, cuda:1, got 'cuda:2'"):
        device_named("cuda:2")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(RecipeError, match=r"got process 2 .*; start no more than 2$"):
        device_named("auto")


@pytest.mark.parametrize("name", ["mps", "mps:0"])
def test_apples_gpu_is_refused_because_it_has_no_float64(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert available_devices() == ["cpu"]
    assert device_named("auto") is None
    with pytest.raises(RecipeError, match=rf"got '{name}'; .* float64, .* does not have: use cpu$"):
        device_named(name)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
def test_a_gpu_that_is_there_is_taken() -> None:
    assert torch.zeros(1, device=device_named("auto")).is_cuda
