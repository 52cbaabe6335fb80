"""Where a field stands in the file of a plan: the line and the column of a mistake."""

from collections.abc import Sequence

import yaml

__all__ = ["place_of"]


def place_of(text: str, path: Sequence[object], *, unknown: bool = False) -> str:
    """``line 3, column 11`` of the value at ``path`` in a YAML ``text``, or, where the field is
    ``unknown``, of its name. As much of the path is followed as the file has; "" for none of it.
    """
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    mark: yaml.Mark | None = None
    for part in path:
        if isinstance(node, yaml.MappingNode):
            entries = {key.value: (key, value) for key, value in node.value}
            if str(part) not in entries:
                break
            name, node = entries[str(part)]
            mark = name.start_mark
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            if part >= len(node.value):
                break
            node = node.value[part]
            mark = node.start_mark
        else:
            break
    if mark is None:
        return ""
    if isinstance(node, yaml.ScalarNode) and not unknown:
        mark = node.start_mark
    return f"line {mark.line + 1}, column {mark.column + 1}"
