"""What a program or a notebook can do with loops; the command line does nothing else.

    async with Session("~/project") as session:
        run = session.start("fix-types", context={"limit": 3})
        async for event in run.events():
            ...
        result = await run.wait()

    results = await run_many(["lint", "tests"], jobs=2)

Works inside a running asyncio loop (a notebook cell) and under trio, in any thread. No signal handler, working
directory, environment variable or atexit hook is left behind; `signals` is for programs that own the main thread.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc

from .files.library import Entry, Library, find_project
from .run.bus import Reader
from .run.handle import RunHandle
from .run.recovery import StoredRun, find_run, resumable_runs, run_ids, stored_runs
from .run.request import Request, RunResult
from .run.session import Session

__all__ = [
    "Entry",
    "Library",
    "Reader",
    "Request",
    "RunHandle",
    "RunResult",
    "Session",
    "StoredRun",
    "find_project",
    "find_run",
    "history",
    "resume",
    "run_many",
    "signals",
]


async def run_many(
    loops: Iterable[str | Request],
    *,
    project: Path | str | None = None,
    jobs: int | None = None,
    fail_fast: bool = False,
    grace: float = 5.0,
) -> list[RunResult]:
    """Run many loops of a project and return their results in the order given.

    Runs whose scopes overlap take turns in that order; at most `jobs` run at a time. With `fail_fast`, the first run
    that does not end well ends the others. Everything that can be found wrong in advance is raised before any starts:
    NotFoundError, DefinitionError, UsageError. Cancelling it ends all runs; they can be resumed.
    """
    async with Session(project, jobs=jobs, grace=grace) as session:
        handles = start_all(session, [Request(loop) if isinstance(loop, str) else loop for loop in loops])
        return await results(session, handles, fail_fast=fail_fast)


def start_all(session: Session, requests: Sequence[Request]) -> list[RunHandle]:
    """Start all or none: every request is looked at before the first begins."""
    prepared = [session.prepare(request) for request in requests]
    return [session.launch(handle) for handle in prepared]


async def results(session: Session, handles: Sequence[RunHandle], *, fail_fast: bool = False) -> list[RunResult]:
    """The results of runs, once all have ended. With `fail_fast` the first bad one ends the rest."""

    async def watch(handle: RunHandle) -> None:
        if not (await handle.wait()).ok and fail_fast and not session.is_ending:
            session.shut_down()

    async with anyio.create_task_group() as tasks:
        for handle in handles:
            tasks.start_soon(watch, handle)
    return [await handle.wait() for handle in handles]


def resume(session: Session, wanted: str | None = None, *, max_steps: int | None = None) -> list[RunHandle]:
    """Go on with a run (by id, by the beginning of its id, `latest`, or its loop's name), or a batch's unfinished.

    Without `wanted`: all that the last batch left unfinished. Raises NotFoundError if there is nothing, RefusedError if
    it is still running or has ended for good.
    """
    return [session.resume(stored, max_steps=max_steps) for stored in resumable_runs(session.runs, wanted)]


def history(project: Path | str | None = None, loop: str | None = None) -> list[StoredRun]:
    """The runs of a project, newest first, of one loop if `loop` is given. Journals that cannot be read are left out."""
    runs = Path(project or ".").resolve() / ".loops" / "runs"
    found = stored_runs(runs, reversed(run_ids(runs)))
    return [run for run in found if loop is None or run.loop == loop]


@asynccontextmanager
async def signals(session: Session) -> AsyncIterator[None]:
    """While inside: the first SIGINT, SIGTERM or SIGHUP ends all runs within the grace, the second at once.

    Only in the main thread of a program of one's own.
    """
    async with anyio.create_task_group() as tasks:
        await tasks.start(_obey, session)
        try:
            yield
        finally:
            tasks.cancel_scope.cancel()


async def _obey(session: Session, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as received:
        task_status.started()
        async for number in received:
            session.shut_down(int(number))
