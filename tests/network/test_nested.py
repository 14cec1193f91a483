"""Nested values: what is a container, what a leaf, and what things inside are called."""

from collections import OrderedDict, UserDict
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pack_sequence

from octavo.network.forward import on_device
from octavo.network.nested import children, leaves, mapped, named_tensors


class Pair(NamedTuple):
    a: Any
    b: Any


def test_nested_inputs_keep_their_form() -> None:
    """Tuples, lists, dicts and named tuples are rebuilt; a packed sequence is one thing, and no
    tensor stays behind."""
    packed = pack_sequence([torch.ones(2, 3), torch.ones(1, 3)])
    value = (1, [2, "x"], {"k": Pair(3, torch.Size((4,)))}, packed)
    found = mapped(value, lambda leaf: leaf if leaf is packed else [leaf])
    assert found == ([1], [[2], ["x"]], {"k": Pair([3], ([4],))}, packed)
    assert isinstance(found[2]["k"], Pair)
    moved = on_device((torch.ones(2), {"k": Pair(torch.ones(1), 2)}, packed), torch.device("meta"))
    assert moved[0].is_meta
    assert moved[1]["k"].a.is_meta
    assert moved[1]["k"].b == 2
    assert moved[2].data.is_meta


def test_every_mapping_is_a_container_and_becomes_a_dict() -> None:
    """transformers returns and takes mappings that torch's pytree does not know."""
    for mapping in (UserDict(a=1, b=[2]), OrderedDict(a=1, b=[2])):
        assert mapped(mapping, str) == {"a": "1", "b": ["2"]}
        assert type(mapped(mapping, str)) is dict
        assert list(leaves(mapping)) == [1, 2]
        assert children(mapping) == [("a", 1), ("b", [2])]


def test_leaves_come_in_order_and_a_packed_sequence_is_one() -> None:
    packed = pack_sequence([torch.ones(2, 3), torch.ones(1, 3)])
    assert list(leaves({"x": (1, [2]), "y": Pair(None, packed), "z": ()})) == [1, 2, None, packed]
    assert list(leaves(5)) == [5]
    assert children("text") is None


def test_names_are_paths() -> None:
    x, y = torch.ones(1), torch.ones(2)
    value = UserDict(one=[x, {2: y}], pair=Pair(x, "text"))
    assert [name for name, _ in named_tensors(value)] == ["one.0", "one.1.2", "pair.a"]
    assert next(named_tensors(x))[1] is x
