"""Which files run a loop as a sub-loop, told by their text alone: cheap enough to be asked of whole folders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from .nodes import MAX_BYTES


def callers(names: Iterable[str], files: Iterable[Path]) -> Iterator[Path]:
    """Those of `files` with a line that runs a loop by one of these names; a file that can't be read has none."""
    either = "|".join(re.escape(name) for name in names if name)
    call = re.compile(rf"(?:^|[{{,])\s*loop:\s*([\"']?)(?:{either})\1\s*(?:[,}}#]|$)", re.MULTILINE)
    return (path for path in files if call.search(_text(path)))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
