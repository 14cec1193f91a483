"""YAML as octavo reads it: plain data only, keys as they are written, none of them twice."""

from typing import Any

import yaml

__all__ = ["read_yaml"]

TEXT, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """Takes keys for text, as JSON does: YAML reads a layer's name ``1.10`` as the number 1.1, which is another layer."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for index, (key, value) in enumerate(node.value):
            if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
                continue
            if key.value in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: the key {key.value!r} comes twice; keep one of the two")
            seen.add(key.value)
            node.value[index] = yaml.ScalarNode(TEXT, key.value, key.start_mark), value  # an alias may share the old node
        return node


def read_yaml(text: str) -> Any:
    """What ``text`` says; the keys of its mappings are strings.

    Raises:
        ValueError: not YAML, a type that is not plain, or a key that comes twice; the message is one line.

    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506  (a safe loader's child)
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # an impossible date is a ValueError
        raise ValueError(" ".join(str(error).split())) from error
