"""The catalogue keys of a loop file without reading the rest: a listing of hundreds of loops takes milliseconds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .nodes import Map, parse, plain

_TOP_KEY = re.compile(rb"^([A-Za-z_]\w*|\"\w+\"|'\w+')[ ]*:(?=\s|$)", re.MULTILINE)
_OF_LOOPS = frozenset({b"initial", b"states", b"flow", b"from"})
_WANTED = frozenset({b"name", b"description", b"category", b"labels", b"visibility", b"from"})


def head_of(data: bytes) -> Mapping[str, Any] | None:
    """The catalogue keys as plain values; other top-level keys map to True. None if the file is no mapping."""
    found = list(_TOP_KEY.finditer(data))
    spans = zip(found, [*(m.start() for m in found[1:]), len(data)], strict=False)
    head: dict[str, Any] = {}
    wanted: list[bytes] = []
    for match, end in spans:
        key = match[1].strip(b"\"'")
        head[key.decode()] = True
        if key in _WANTED:
            wanted.append(data[match.start() : end])
    value = parse(b"\n".join(wanted), "").value if wanted else None
    if isinstance(value, Map) and b"<<" not in data[:200]:
        head.update(plain(value))
        return head
    whole = parse(data, "").value  # braces, anchors from elsewhere, another encoding
    return plain(whole) if isinstance(whole, Map) else None


def looks_like_a_loop(data: bytes) -> bool:
    """Whether a file is meant to be a loop. One with mistakes counts, even if it is not YAML any more."""
    keys = {match[1].strip(b"\"'") for match in _TOP_KEY.finditer(data)}
    if keys:
        return bool(keys & _OF_LOOPS)
    whole = parse(data, "").value
    return isinstance(whole, Map) and any(key.encode() in _OF_LOOPS for key in whole)


def has_required(head: Mapping[str, Any]) -> bool:
    """Whether the head of a loop has what every loop must have."""
    return bool(head.get("name") and head.get("initial") and (head.get("states") or head.get("flow")))
