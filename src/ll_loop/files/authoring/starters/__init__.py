"""The texts that new loops begin with: a YAML file each, or a few lines that start from another loop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap

from ....core.model import Loop, Parameter
from ...keys import TOP_LEVEL
from ...nodes import is_plain_text

FOLDER = Path(__file__).parent
USUAL = "check-fix"
SAFE = "safe_interpolation"


def names() -> list[str]:
    """What a loop can begin with, besides other loops."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def from_template(template: str, name: str) -> str:
    """A complete small loop called `name`."""
    text = (FOLDER / f"{template}.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines(keepends=True) if SAFE in TOP_LEVEL or not line.startswith(f"{SAFE}:")]
    return "".join(lines).replace("name: NAME\n", f"name: {scalar(name)}\n", 1)


def from_loop(parent: Loop, start: str, name: str) -> str:
    """A loop called `name` that inherits all of `parent`, which is `start` by name, and what it may set."""
    about = " ".join(parent.description.split()) or f"Starts from {start}."
    lines = [
        f"name: {scalar(name)}",
        f"description: {json.dumps(about, ensure_ascii=False)}",
        f"from: {scalar(start)}  # all that is not written here; what is written here wins",
        *_context(parent),
    ]
    return "".join(f"{line}\n" for line in lines)


def _context(parent: Loop) -> Iterator[str]:
    """The values that can be set, commented out: they are what they are until somebody says otherwise."""
    values = {**{name: parameter.default for name, parameter in parent.parameters.items()}, **parent.context}
    if not values:
        return
    yield "# context:"
    for key, value in values.items():
        yield from _about(parent.parameters.get(key), key in parent.required_inputs)
        shown = "" if value is None else json.dumps(value, ensure_ascii=False, default=str)
        yield f"#   {key}: {shown}".rstrip()


def _about(parameter: Parameter | None, needed: bool) -> Iterator[str]:
    said = " ".join(parameter.description.split()) if parameter else ""
    text = f"{said}{' ' if said else ''}{'(needed)' if needed else ''}".strip()
    yield from (f"#   # {line}" for line in wrap(text, 100))


def scalar(name: str) -> str:
    """A name as YAML: quoted only where it would be read as something else."""
    return name if is_plain_text(name) else json.dumps(name)
