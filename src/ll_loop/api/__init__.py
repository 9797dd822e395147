"""What a program or a notebook can do with loops; the command line does nothing else.

    async with Session("~/project") as session:
        run = session.start("fix-types", context={"limit": 3})
        async for event in run.events():
            ...
        result = await run.wait()

    results = await run_many(["lint", "tests"], jobs=2)

Works inside a running asyncio loop (a notebook cell) and under trio, in any thread. No signal handler, working
directory, environment variable or atexit hook is left behind; `signals` is for programs that own the main thread.

What no run needs is in modules of its own: `api.authoring`, `api.mending`, `api.configuration`.
"""

from __future__ import annotations

from ..core.context import may_read
from ..files.config.load import Config, load_config, read_config
from ..files.config.places import find_project, find_workplace
from ..files.library import Entry, Library
from ..files.reports import Report, check_all, expand, folder_of, is_pattern, report_on
from ..run.bus import Reader
from ..run.detached import Errand, Resumption
from ..run.handle import RunHandle
from ..run.journals.recovery import StoredRun, find_run
from ..run.journals.request import Request, RunResult
from ..run.session import Session
from ..run.trial import Trial, Tried
from ..run.upkeep import Pruned, Remains
from .project import library_of
from .running import (
    Doubt,
    carry_on,
    doubts,
    interrupts,
    results,
    resume,
    run_many,
    signals,
    simulate,
    start_all,
    start_in_background,
)
from .stored import (
    approve,
    cleanup,
    follow,
    fork,
    history,
    is_public,
    prune,
    queue,
    replay,
    status,
    stop,
    stored_run,
    stored_state,
    why,
)

__all__ = [
    "Config",
    "Doubt",
    "Entry",
    "Errand",
    "Library",
    "Pruned",
    "Reader",
    "Remains",
    "Report",
    "Request",
    "Resumption",
    "RunHandle",
    "RunResult",
    "Session",
    "StoredRun",
    "Trial",
    "Tried",
    "approve",
    "carry_on",
    "check_all",
    "cleanup",
    "doubts",
    "expand",
    "find_project",
    "find_run",
    "find_workplace",
    "folder_of",
    "follow",
    "fork",
    "history",
    "interrupts",
    "is_pattern",
    "is_public",
    "library_of",
    "load_config",
    "may_read",
    "prune",
    "queue",
    "read_config",
    "replay",
    "report_on",
    "results",
    "resume",
    "run_many",
    "signals",
    "simulate",
    "start_all",
    "start_in_background",
    "status",
    "stop",
    "stored_run",
    "stored_state",
    "why",
]
