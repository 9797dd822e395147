"""What has been learned of a target: its record in `.ll/learning-tests`, as an exploration leaves it behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ..core.effects import Learned
from ..core.learning import slug
from . import files

FOLDER = Path(".ll", "learning-tests")
LONGEST = 1 << 20


async def read_learning(cwd: Path, target: str) -> Learned:
    """The status that the record of `target` gives in its front matter; none if there is no record."""
    try:
        text = await files.read_text(cwd / FOLDER / f"{slug(target)}.md", limit=LONGEST)
    except OSError as error:
        return Learned(error=str(error.strerror))
    return Learned() if text is None else _learned(text)


def _learned(text: str) -> Learned:
    front = _front_matter(text)
    if front is None:
        return Learned(error="it has no front matter between two lines of `---`")
    try:
        known: Any = yaml.safe_load(front)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return Learned(error=" ".join(str(error).split()))
    status = known.get("status") if isinstance(known, dict) else None
    if status not in ("proven", "refuted", "stale"):
        return Learned(error=f"its status is {status!r}, and not proven, refuted or stale")
    return Learned(status)


def _front_matter(text: str) -> str | None:
    lines = text.lstrip("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return None
    end = next((number for number, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), None)
    return None if end is None else "\n".join(lines[1:end])
