"""Tidying up, for the command line: what was left behind, and runs that are old enough to go."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .. import api
from . import words
from .forms import text_of
from .terminal import STDERR, STDOUT, look_at, say, table


async def cleanup(act: bool, grace: float, as_json: bool, project: Path | None) -> int:
    """Print what was left behind, and what became of it. 1 if something could not be dealt with."""
    found = await api.cleanup(project or api.find_project(Path.cwd()), act=act, grace=grace)
    if as_json:
        say(text_of([one.to_json() for one in found]))
    elif not found:
        say("nothing is left behind", fd=STDERR)
    else:
        look = look_at(STDOUT, os.environ)
        rows = [("kind", "what", "run", "")]
        rows += [(one.kind, one.what, one.run_id or "-", _became(one, act)) for one in found]
        say(*map(look.fit, table(rows, look.width, spare=(2,))))
        if not act:
            say("nothing was touched; `ll-loop cleanup --yes` does it", fd=STDERR)
    return 1 if act and any(not one.done and one.kind != "worktree" for one in found) else 0


def _became(one: api.Remains, act: bool) -> str:
    if not act or not one.done:
        return one.note
    return {"process": "ended", "worktree": one.note}.get(one.kind, "removed")


def prune(rule: dict[str, Any], act: bool, as_json: bool, project: Path | None) -> int:
    """Print the runs that the rule lets go, and where they are now. 1 if one could not be moved."""
    found = api.prune(project or api.find_project(Path.cwd()), **rule, act=act)
    if as_json:
        say(text_of([one.to_json() for one in found]))
    elif not found:
        say("no run may go by this rule", fd=STDERR)
    else:
        look = look_at(STDOUT, os.environ)
        rows = [("loop", "status", "started", "run", "")]
        for one in found:
            started = f"{one.started_at[:10]} {one.started_at[11:19]}Z"
            rows.append((one.loop, one.status, started, one.run_id, one.note or ("archived" if act else "")))
        say(*map(look.fit, table(rows, look.width, spare=(2, 1))))
        if not act:
            said = f"{words.plural(len(found), 'run')} would go to .loops/archive; add --yes to move them"
            say(said, fd=STDERR)
    return 1 if any(one.note for one in found) else 0
