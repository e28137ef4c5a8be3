"""PyYAML's safe loader with the scalars of YAML 1.2, the version that DVC reads and writes.

PyYAML itself follows YAML 1.1, where 1e-5 is a string, `no` is false and 0644 is 420.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml


class Yaml12Loader(yaml.SafeLoader):
    """Loads 1e-5 as a float, `no` as a string, 0644 as 644 and 0x1F as 31. A repeated key is an error."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, AttributeError) as error:  # a number too long, or `!!bool maybe`
            kind = node.tag.rpartition(":")[2]
            message = f"the value cannot be read as {kind}"
            raise yaml.constructor.ConstructorError(None, None, message, node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        for (key, _), name in zip(node.value, keys, strict=True):
            if keys.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} appears twice", key.start_mark)
        return super().construct_mapping(node, deep=deep)


def _construct_integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    number = int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    str(number)  # raises ValueError if the number has too many digits to be shown in an error
    return number


_SCALARS = {  # YAML 1.2's core schema (section 10.3.2): a pattern for each type, and its possible first characters
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
Yaml12Loader.yaml_implicit_resolvers = {}  # drop those of YAML 1.1
for _type, (_pattern, _first) in _SCALARS.items():
    Yaml12Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_type}", re.compile(rf"^(?:{_pattern})$"), _first)
Yaml12Loader.add_constructor("tag:yaml.org,2002:int", _construct_integer)
