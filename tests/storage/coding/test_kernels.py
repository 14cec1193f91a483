"""The contexts of codes in kernels, against a reading of the page code by code."""

import numpy as np
import pytest

from octavo.storage.coding.kernels import CONTEXTS, Contexts, in_kernels, visited


def test_shapes_in_kernels() -> None:
    assert in_kernels((4, 3, 2, 5)) == (12, 10, 5)
    assert in_kernels((4, 3, 7)) == (12, 7, 7)
    assert in_kernels((4, 3)) == (12, 1, 1)
    assert in_kernels((4,)) == (4, 1, 1)
    assert in_kernels((2, 3, 2, 2, 3)) == (6, 12, 3)


@pytest.mark.parametrize("width", [1, 3, 4])
def test_contexts_code_by_code(width: int) -> None:
    draw = np.random.default_rng(0)
    signed = draw.integers(-3, 4, (12, 50)).astype(np.int16)  # (positions, kernels)
    signed[:, ::5] = 0
    contexts = Contexts(2, 20)
    found = np.full(signed.shape, -1)
    signs = np.zeros(signed.shape)
    for position, index, here, sign in visited(signed, width, contexts):
        assert (found[position, here] == -1).all()
        found[position, here] = index
        signs[position, here] = sign
    for t, k in np.ndindex(*signed.shape):
        s = [int(one) for one in signed[:, k]]
        p = (s[t - 1] if t % width else 0) + (s[t - width] if t >= width else 0)
        a = sum(abs(one) for one in s[:t])
        context = 0 if p == 0 else 1 if abs(p) <= 2 else 2
        assert found[t, k] == context + (3 if 16 * a >= 20 * t else 0) < CONTEXTS
        assert signs[t, k] == (-1 if p < 0 else 1)


def test_only_codes_ahead_are_looked_at() -> None:
    """A reader fills in the codes on its way."""
    draw = np.random.default_rng(1)
    signed = draw.integers(-2, 3, (9, 40)).astype(np.int16)
    contexts = Contexts.of(signed)
    read = np.full_like(signed, 99)
    for position, _, here, _ in visited(read, 3, contexts):
        read[position, here] = signed[position, here]
    assert (read == signed).all()


def test_numbers_of_a_layer_fit_a_byte() -> None:
    assert Contexts.of(np.zeros((9, 4), np.int16)) == Contexts(1, 0)
    assert Contexts.of(np.full((9, 4), 127, np.int16)) == Contexts(254, 255)
