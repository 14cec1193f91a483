"""Spill to disk: what waiting forward passes hold together beyond a bound is moved to a file.

The code of a model that waits still refers to its tensors. So the tensors stay, with their values
and views, and only the memory behind them changes: it becomes a part of a temporary file, which the
operating system reads when the pass goes on. The file has no name that could stay behind.
"""

import contextlib
import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.overrides import TorchFunctionMode

from octavo.errors import brief
from octavo.network.nested import named_tensors
from octavo.network.warned import warn

__all__ = ["BOUND", "PassMemory", "Spill", "addresses"]

BOUND = 1 << 29  # bytes that waiting passes hold in memory; what is beyond goes to disk
SMALL = 1 << 14  # bytes of a tensor that stays where it is: a file is read in pages of 4,096
FILE_SIZE = 1 << 26  # bytes, so that few files are open
GIVES_BACK = getattr(mmap, "MADV_DONTNEED", None)  # None on Windows, which decides for itself


class PassMemory:
    """The memory of what a forward pass has made and still holds, or several passes together.

    Args:
        others: addresses of what is not the pass's own, such as its inputs and the weights.

    Attributes:
        counted: bytes in memory, as :class:`Spill` has counted them.

    """

    def __init__(self, others: Collection[int] = ()) -> None:
        self.counted = 0
        self._others = others
        self._made: list[weakref.ref[Tensor]] = []
        self._pieces: list[_Piece] = []

    def watching(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context that notes what functions of torch return in the thread of the pass."""
        return _Results(self._made)

    def held(self) -> list[UntypedStorage]:
        """Return what is held in memory and could be moved to disk."""
        alive = {id(tensor): (ref, tensor) for ref in self._made if (tensor := ref()) is not None}
        self._made[:] = [ref for ref, _ in alive.values()]
        storages = [tensor.untyped_storage() for _, tensor in alive.values() if _is_movable(tensor)]
        by_address = {storage.data_ptr(): storage for storage in storages}
        self._pieces = [piece for piece in self._pieces if piece.address in by_address]
        on_disk = {piece.address for piece in self._pieces}
        return [
            storage
            for address, storage in by_address.items()
            if storage.nbytes() >= SMALL
            and storage.resizable()  # numpy may look at the memory of others
            and address not in self._others
            and address not in on_disk
        ]

    def add(self, piece: "_Piece") -> None:
        """Note a piece of a file that some of the memory was moved to."""
        self._pieces.append(piece)

    def give_back(self) -> None:
        """Let go of the memory in which the operating system keeps what was read from files."""
        self._pieces = [piece for piece in self._pieces if piece.give_back()]


class Spill:
    """A bound on the memory that waiting passes hold together. Tensors on other devices than the
    CPU do not count, and torch before 2.12 cannot move any. Where the disk is full, all stays in
    memory from then on, and a warning says so.

    Args:
        bound: bytes.

    """

    def __init__(self, bound: int = BOUND) -> None:
        self._bound = bound if hasattr(UntypedStorage, "_swap_data_ptr_") else math.inf
        self._counted = 0
        self._file: _File | None = None

    def settle(self, memory: PassMemory) -> None:
        """Count what a pass holds where it stands, and move it to disk if it is too much."""
        memory.give_back()
        held = memory.held()
        self._count(memory, sum(storage.nbytes() for storage in held))
        if self._counted > self._bound:
            self._move(memory, held)

    def forget(self, memory: PassMemory) -> None:
        """Count a pass no more, which has come to its end."""
        self._count(memory, 0)

    def _count(self, memory: PassMemory, size: int) -> None:
        self._counted += size - memory.counted
        memory.counted = size

    def _move(self, memory: PassMemory, held: Iterable[UntypedStorage]) -> None:
        try:
            for storage in held:
                memory.add(self._moved(storage))
        except OSError as error:
            self._bound = math.inf
            warn(
                f"{tempfile.gettempdir()}: calibration cannot put there what it holds beyond "
                f"{BOUND >> 20} MiB, and keeps it in memory: {brief(error)}; TMPDIR names another "
                "folder"
            )
        else:
            self._count(memory, 0)

    def _moved(self, storage: UntypedStorage) -> "_Piece":
        size = storage.nbytes()
        if self._file is None or self._file.room < size:
            self._file = _File(max(FILE_SIZE, size))
        return self._file.take(storage)


class _File:
    """A temporary file without a name; it is gone once no tensor has its memory there.

    Attributes:
        room: the number of bytes that are free.

    """

    def __init__(self, size: int) -> None:
        with tempfile.TemporaryFile() as file:
            _reserve(file, size)
            self._pages = mmap.mmap(file.fileno(), size)
        self.room = size

    def take(self, storage: UntypedStorage) -> "_Piece":
        """Move the memory of a tensor to this file."""
        size = storage.nbytes()
        start = len(self._pages) - self.room
        mapped = torch.frombuffer(self._pages, dtype=torch.uint8, count=size, offset=start)
        mapped.untyped_storage().copy_(storage)
        storage._swap_data_ptr_(mapped.untyped_storage())  # type: ignore[attr-defined]
        length = min(-(-size // mmap.PAGESIZE) * mmap.PAGESIZE, self.room)
        self.room -= length
        piece = _Piece(storage.data_ptr(), weakref.ref(self._pages), start, length)
        piece.give_back()
        return piece


def _reserve(file: IO[bytes], size: int) -> None:
    """Give a file its size and room on the disk: if that is full, this is where an error is."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.write(bytes(size))
        file.flush()


@dataclass(frozen=True)
class _Piece:
    """A piece of a file that a tensor has its memory in."""

    address: int
    pages: "weakref.ref[mmap.mmap]"
    start: int
    length: int

    def give_back(self) -> bool:
        """Give its memory back; false if the file is gone."""
        pages = self.pages()
        if pages is not None and GIVES_BACK is not None:
            pages.madvise(GIVES_BACK, self.start, self.length)
        return pages is not None


class _Results(TorchFunctionMode):
    """A mode that notes the tensors that functions of torch return."""

    def __init__(self, made: list["weakref.ref[Tensor]"]) -> None:
        super().__init__()
        self._made = made

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):  # as a rule, and this runs for every function
            self._made.append(weakref.ref(result))
        else:
            self._made += [weakref.ref(tensor) for _, tensor in named_tensors(result)]
        return result


def addresses(tensors: Iterable[Tensor]) -> frozenset[int]:
    """Return the addresses of what tensors have in the memory of the CPU."""
    return frozenset(one.untyped_storage().data_ptr() for one in tensors if _is_movable(one))


def _is_movable(tensor: Tensor) -> bool:
    """Tell if a tensor is plain numbers in the memory of the CPU."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
    return plain and tensor.device.type == "cpu"
