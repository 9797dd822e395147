"""Where a project is, and which folders above it count: the search for its configuration goes through these."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

JOURNAL = "events.jsonl"
"""The journal in the folder of a run, by which such a folder is known."""


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


PROJECT, WORKTREE = "LL_LOOP_PROJECT", "LL_LOOP_WORKTREE"
"""The variables that tell a call within an action its run's project, and the worktree where that run is at work, if
that has no loops of its own."""


def find_project(start: Path) -> Path:
    """The nearest folder at or above `start` that holds `.loops` or `.ll`: see `upwards`.

    Without any, it is the project of the run whose action this process is a part of, else `start`. The worktree of
    such a run is no project unless it has loops.
    """
    tree = os.environ.get(WORKTREE)
    folders = (folder for folder in upwards(start) if str(folder) != tree)
    found = (folder for folder in folders if (folder / ".loops").is_dir() or (folder / ".ll").is_dir())
    return next(found, None) or Path(os.environ.get(PROJECT) or start).resolve()


def find_workplace(start: Path, project: Path) -> Path | None:
    """Where runs of the project work that are started at `start`, if not in the project itself: in the worktree of the
    run whose action starts them."""
    tree = os.environ.get(WORKTREE)
    if not tree or os.environ.get(PROJECT) != str(project):
        return None
    return Path(tree) if start.resolve().is_relative_to(tree) else None
