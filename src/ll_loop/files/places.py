"""Where a project is, and which folders above it count: the search for its configuration goes through these."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def upwards(start: Path) -> Iterator[Path]:
    """`start` and the folders above it, nearest first.

    The search ends at the top of a git repository and never enters the home folder or what is above it, unless it
    began there.
    """
    start = start.resolve()
    home = Path(os.path.expanduser("~"))
    for folder in (start, *start.parents):
        if folder != start and (folder == home or folder in home.parents):
            return
        yield folder
        if (folder / ".git").exists():
            return


def find_project(start: Path) -> Path:
    """The nearest folder at or above `start` that holds `.loops` or `.ll`, else `start`: see `upwards`."""
    found = (folder for folder in upwards(start) if (folder / ".loops").is_dir() or (folder / ".ll").is_dir())
    return next(found, start.resolve())
