"""Where one loop file names others (`from`, `import`, `loop`) and itself (`name`), to the character."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import yaml
from msgspec import Struct

from .starters import scalar

Kind = Literal["name", "from", "import", "loop"]
_BLOCKS = frozenset({"states", "state_defs", "fragments"})


class Link(Struct, frozen=True):
    """One name in a file. `start` and `end` bound it as written, quotes included; both are 0 if it spans lines."""

    kind: Kind
    text: str
    start: int
    end: int
    line: int
    column: int
    quote: str = ""

    @property
    def can_be_replaced(self) -> bool:
        return self.end > self.start

    def written(self, text: str) -> str:
        """`text` in the way in which this name is written."""
        return f"{self.quote}{text}{self.quote}" if self.quote else scalar(text)


def links_of(text: str) -> list[Link]:
    """The names in a YAML text that `nodes.parse` can read, in the order of the text."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    found = {link.line * 1_000_000 + link.column: link for link in _links(root, text)}
    return [found[place] for place in sorted(found)]


def _links(root: yaml.Node | None, text: str) -> Iterator[Link]:
    for key, value in _pairs(root):
        if key == "name":
            yield from _link("name", value, text)
        elif key == "from":
            yield from _link("from", value, text)
        elif key == "import" and isinstance(value, yaml.SequenceNode):
            for item in value.value:
                yield from _link("import", item, text)
        elif key in _BLOCKS:
            for _, state in _pairs(value):
                yield from (link for k, v in _pairs(state) if k == "loop" for link in _link("loop", v, text))


def _pairs(node: yaml.Node | None) -> Iterator[tuple[str, yaml.Node]]:
    """The keys and values of a mapping, those that it merges in included."""
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if key.value == "<<" and key.tag.endswith(":merge"):
            below = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for merged in below:
                yield from _pairs(merged)
        elif isinstance(key, yaml.ScalarNode):
            yield key.value, value


def _link(kind: Kind, node: yaml.Node, text: str) -> Iterator[Link]:
    if not isinstance(node, yaml.ScalarNode):
        return
    quote = node.style if node.style in ("'", '"') else ""
    literal = f"{quote}{node.value}{quote}"
    start, end = node.start_mark.index, node.end_mark.index
    if text[start:end].endswith(literal) and node.style not in ("|", ">"):
        start = end - len(literal)  # what stands before it is an anchor or a tag
    else:
        start = end = 0
    at = node.start_mark
    yield Link(kind, node.value, start, end, at.line + 1, at.column + 1, quote)
