"""Which files run a loop as a sub-loop, told by their text alone: cheap enough to be asked of whole folders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from .nodes import MAX_BYTES


def callers(names: Iterable[str], files: Iterable[Path]) -> Iterator[Path]:
    """Those of `files` with a line that runs a loop by one of these names; a file that can't be read has none."""
    wanted = [name.encode() for name in names if name]
    either = b"|".join(re.escape(name) for name in wanted)
    call = re.compile(rb"(?:^|[{,])\s*loop:\s*([\"']?)(?:%b)\1\s*(?:[,}#]|$)" % either, re.MULTILINE)
    for path in files:
        text = _content(path)
        if any(name in text for name in wanted) and call.search(text):
            yield path


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES)
    except OSError:
        return b""
