"""What all tests share: each begins with the same random state, whichever tests ran before it."""

import random
import signal
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch
from tests.ranks import Ranks, two_ranks

from octavo.dnq.reinforce import Reinforce

# A process in the background of a shell may ignore Ctrl-C, and its children too.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  # torchvision and others draw from it
    random.seed(0)


@pytest.fixture(scope="session")
def on_two_ranks() -> Iterator[Ranks]:
    """Run a function on two ranks, whose processes start with the first test that asks."""
    with two_ranks() as ranks:
        yield ranks


@pytest.fixture
def brief_practice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the policy of DNQ practise less: enough for the few layers of a test."""
    brief = partial(Reinforce, before=20, practice=1, after=5, imagined=16, proposed=4, patience=20)
    monkeypatch.setattr("octavo.dnq.agent.Reinforce", brief)
