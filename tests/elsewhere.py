"""A GPU for machines without one. Its tensors compute on the CPU; but they say that they are on
``cuda:0``, and an operation that a GPU would refuse, on tensors of both devices, is an error.

``FakeTensorMode`` of torch tells devices apart in the same way, but its tensors have no values.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["ELSEWHERE", "Elsewhere"]

ELSEWHERE = torch.device("cuda:0")
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
BY_INDEX = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class _Away(Tensor):
    """A tensor that stands for ``here``. To torch's own code, it is on ``meta``."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Any:
        layout = {"strides": here.stride(), "storage_offset": here.storage_offset()}
        make: Any = Tensor._make_wrapper_subclass
        away = make(cls, here.shape, dtype=here.dtype, device="meta", **layout)
        away.here = here
        return away

    device = property(lambda _: ELSEWHERE)
    is_meta = property(lambda _: False)
    is_cuda = property(lambda _: True)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _computed(func, args, kwargs or {})

    # These read the memory of a tensor without torch's dispatcher.

    def data_ptr(self) -> int:
        return self.here.data_ptr()

    def untyped_storage(self) -> Any:
        return self.here.untyped_storage()

    def tolist(self) -> Any:
        return self.here.tolist()

    def __getitem__(self, index: Any) -> Any:
        rows = torch.tensor(index, device="cpu") if isinstance(index, list) else index
        return super().__getitem__(rows)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        detached: Any = self.detach()
        away: Any = _Away(detached.here.clone())
        if isinstance(self, nn.Parameter):
            away = nn.Parameter(away, self.requires_grad)
        memo[id(self)] = away
        return away


class Elsewhere(TorchDispatchMode):
    """While this lasts, ``model.to(ELSEWHERE)`` and ``device=ELSEWHERE`` work."""

    def __init__(self) -> None:
        super().__init__()
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE  # else torch would look for CUDA

    def __enter__(self) -> Any:
        self._cudnn = torch.backends.cudnn.enabled
        torch.backends.cudnn.enabled = False  # recurrent layers would look for CUDA
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor copies only what it has made
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(False)
        torch.backends.cudnn.enabled = self._cudnn
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    away = [one for one in given if isinstance(one, _Away)]
    # A GPU takes numbers from the CPU, and looks up its own tensors by indices from there.
    apart = [one for one in given if not isinstance(one, _Away) and one.dim()]
    by_index = func in BY_INDEX and isinstance(args[0], _Away)
    if away and apart and func not in COPIES and not by_index:
        raise RuntimeError(f"{func}: expected tensors on one device, got cuda:0 and cpu")
    goes_there = bool(away)
    if kwargs.get("device") is not None:
        goes_there = torch.device(kwargs["device"]).type != "cpu"
        kwargs = {**kwargs, "device": torch.device("cpu"), "pin_memory": False}
    elif func is aten.copy_.default:
        goes_there = isinstance(args[0], _Away)
    of_here = {id(one.here): one for one in away}  # what is written in place stays what it is
    result = func(*tree_map(_here, args), **tree_map(_here, kwargs))

    def there(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return of_here[id(value)] if id(value) in of_here else _Away(value)

    return tree_map(there, result) if goes_there else result


def _here(value: Any) -> Any:
    return value.here if isinstance(value, _Away) else value
