"""Limits on the size of a packed file and of what it decodes to, checked before memory is taken."""

from torch import Tensor, nn

from octavo.errors import FormatError

__all__ = [
    "DIMENSIONS",
    "HEADER_BYTES",
    "ROWS",
    "VALUES",
    "check_decoded",
    "default_limit",
    "most_manifest_bytes",
]

HEADER_BYTES = 1 << 16  # of the safetensors container, which holds a few byte strings
ROWS = 1 << 15  # tensors of a network
DIMENSIONS = 64  # of a tensor; it is PyTorch's own limit in many places
VALUES = 1 << 19  # numbers, texts and lists in a manifest

# A manifest may expand to SMALL_MANIFEST bytes, and RATIO times its size more, up to
# LARGE_MANIFEST. The most seen was 130 times.
SMALL_MANIFEST = 1 << 16
RATIO = 1 << 10
LARGE_MANIFEST = 1 << 24

# Bytes that a file may decode to if nobody says a limit: so many in any case, and so many times its
# own size. Ours: codes that take a byte each in memory take at least an eighth of one in a file
# that is not made to deceive.
FREE = 256 << 20
EXPANSION = 64


def most_manifest_bytes(squeezed: int) -> int:
    """Return the most bytes that a manifest of so many compressed ones may have."""
    return min(SMALL_MANIFEST + RATIO * squeezed, LARGE_MANIFEST)


def default_limit(file_bytes: int, model: nn.Module | None = None) -> int:
    """Return the most bytes that a file of this size may decode to if nobody says a limit: at least
    those of the model that it is for, where there is one.
    """
    return max(FREE, EXPANSION * file_bytes, 0 if model is None else _state_bytes(model))


def check_decoded(decoded: int, limit: int) -> None:
    """Raise FormatError where a file decodes to more bytes than the limit."""
    if decoded > limit:
        raise FormatError(
            f"expected at most {limit:,} bytes once decoded, found {decoded:,}; "
            "if you trust the file, pass a higher limit"
        )


def _state_bytes(model: nn.Module) -> int:
    """Return the bytes of all tensors of a model's state dict."""
    values = (value for value in model.state_dict().values() if isinstance(value, Tensor))
    return sum(value.numel() * value.element_size() for value in values)
