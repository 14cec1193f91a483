"""The orders of freezing that a recipe names: the package's own, or the user's functions in files.

A function takes a weight and its codebook and returns the rank of each element; the highest ranks
freeze first. A recipe names it as it names a task: ``path/to/file.py:function``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

from pydantic import ValidationInfo

from octavo.errors import RecipeError, nearest
from octavo.inq.partition import NAMES, FreezeOrder, Order, RankFunction
from octavo.runs.task import load_callable

__all__ = [
    "OrderFunction",
    "RecipeOrder",
    "check_orders",
    "load_orders",
    "read_orders",
    "write_orders",
]


@dataclass(frozen=True)
class OrderFunction:
    """The name of a user's function that ranks the weights of a layer for freezing.

    Attributes:
        name: ``path/to/file.py:function``, as the recipe has it.
        folder: the folder of the recipe. A relative path is looked for there first, and then in the
            working directory.

    """

    name: str
    folder: Path = field(default=Path(), compare=False)

    def load(self) -> RankFunction:
        """Import the function.

        Raises:
            RecipeError: there is no such file, importing it failed, or it lacks the function.

        """
        source, _, attribute = self.name.rpartition(":")
        path = self.folder / Path(source).expanduser()
        file_or_module = path if path.is_file() else source
        function = load_callable(str(file_or_module), attribute, f"order {self.name!r}")
        return cast("RankFunction", function)


RecipeOrder: TypeAlias = Order | OrderFunction


def read_orders(value: Any, info: ValidationInfo) -> Any:
    """Return the value of a recipe's ``order``, with a name of a function turned into a value.

    Args:
        value: one order, or a list of one for each portion; `check_orders` checks them.
        info: its context says the recipe's ``folder``.

    """
    if isinstance(value, list | tuple):
        return tuple(read_orders(one, info) for one in value)
    if isinstance(value, str) and ".py:" in value:
        return OrderFunction(value, (info.context or {}).get("folder", Path()))
    return value


def write_orders(value: Any) -> Any:
    """Return the plain data that `read_orders` reads."""
    if isinstance(value, tuple):
        return [write_orders(one) for one in value]
    return value.name if isinstance(value, OrderFunction) else value


def check_orders(value: Any, portions: int) -> None:
    """Raise RecipeError unless ``value`` is one known order, or one for each of the portions."""
    orders = value if isinstance(value, tuple) else (value,) * portions
    for index, order in enumerate(orders):
        if not isinstance(order, OrderFunction) and order not in NAMES:
            key = f"order.{index}" if isinstance(value, tuple) else "order"
            known = ", ".join(NAMES)
            raise RecipeError(
                f"{key}: expected one of {known}, or path/to/file.py:function, got {order!r}"
                f"{nearest(str(order), NAMES, only_alike=True)}"
            )
    if len(orders) != portions:
        raise RecipeError(f"order: expected one, or {portions}, one a portion; got {len(orders)}")


def load_orders(
    value: RecipeOrder | Sequence[RecipeOrder],
) -> FreezeOrder | tuple[FreezeOrder, ...]:
    """Return a recipe's ``order`` as ``Incremental`` takes it, with functions imported.

    Raises:
        RecipeError: a function cannot be imported.

    """
    if isinstance(value, str | OrderFunction):
        return _load_order(value)
    return tuple(_load_order(one) for one in value)


def _load_order(order: RecipeOrder) -> FreezeOrder:
    return order.load() if isinstance(order, OrderFunction) else order
