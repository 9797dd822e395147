"""Typed parameters, of loops and of fragments."""

from __future__ import annotations

from ...core import model as m
from ..fields import Fields
from ..nodes import Seq, plain


def parameters(block: Fields | None) -> dict[str, m.Parameter]:
    """The parameters that a `parameters` block declares, by name."""
    if block is None:
        return {}
    found = {name: _parameter(block, name) for name in block.data}
    return {name: parameter for name, parameter in found.items() if parameter is not None}


def _parameter(block: Fields, name: str) -> m.Parameter | None:
    spec = block.under(name)
    if spec is None:
        return None
    if not isinstance(spec.data.get("type"), str):
        block.wrong(name, "a mapping with a `type`")
        return None
    values = spec.data.get("values")
    return m.Parameter(
        name=name,
        type=spec.text("type"),
        required=spec.flag("required"),
        default=plain(spec.data.get("default")),
        description=spec.text("description"),
        values=tuple(plain(values)) if isinstance(values, Seq) else (),
    )
