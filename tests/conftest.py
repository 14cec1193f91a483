"""What all tests share: each begins with the same random state, whichever tests ran before it."""

import random

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  # torchvision and others draw from it
    random.seed(0)
