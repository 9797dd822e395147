"""A loop file after resolution: the data with its marks, the frozen `Loop` if it could be made, and the complaints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct, field

from ..core.model import Loop
from ..errors import Problem
from .nodes import Map, Mark, mark_of

Steps = tuple[str | int, ...]


class FragmentUse(Struct, frozen=True):
    """What a state took from a fragment besides its shape: the declared parameters and the state's `with:`."""

    name: str
    parameters: Map
    bindings: Map | None
    with_at: Mark


class Document(Struct, frozen=True):
    """One loop file. `data` is resolved as far as it could be: inheritance, `flow`, fragments."""

    path: Path
    file: str
    data: Map
    loop: Loop | None
    problems: tuple[Problem, ...]
    fragments: Mapping[str, FragmentUse] = field(default_factory=dict)
    executables: frozenset[str] = frozenset()
    """States whose action begins with the path of an existing program, and so is no prompt."""

    def mark(self, *steps: str | int, key: bool = False) -> Mark:
        """Where the value (with `key`, the key) under `steps` stood, or the nearest place above it."""
        return mark_of(self.data, steps, Mark(self.file, 1, 1), key=key)


def dotted(steps: Steps) -> str:
    """`("states", "a", "evaluate")` as the documented path `states.a.evaluate`; an index becomes `[i]`."""
    text = ""
    for step in steps:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text or "<root>"
