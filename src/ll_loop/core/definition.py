"""A loop as JSON takes it, and back: so that a run can be gone through again after its file was changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from .model import Loop


def definition_to_json(loop: Loop) -> dict[str, Any]:
    """All that a loop is, as it is read back from a file."""
    document: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(loop, enc_hook=_plain))
    return document


def definition_from_json(document: Mapping[str, Any]) -> Loop:
    """The loop that `definition_to_json` told of. ValueError if it is none of this version."""
    return msgspec.convert(document, Loop)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is nothing that JSON knows")
