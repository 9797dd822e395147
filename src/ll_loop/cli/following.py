"""Watching runs of other processes, live or over: their log as lines, or the live display."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio

from .. import api
from ..api import RunResult
from ..errors import LoopError, RefusedError
from . import words
from .display import REFRESH, view_of
from .forms import event_line
from .terminal import STDERR, STDOUT, Look, Screen, Sink, look_at, say
from .tracker import Happening, Tracker

Record = Mapping[str, Any]
BACKLOG = 10
"""Steps of the past that `attach` shows at first."""
_OUTPUT = "action_output"


# --- logs --------------------------------------------------------------------------------------------------


async def logs(wanted: str, follow: bool, tail: int, as_json: bool, project: Path | None) -> int:
    """Print what happened in a run, and with `follow` what happens, until it has ended."""
    where = project or api.find_project(Path.cwd())
    look = look_at(STDOUT, os.environ)

    def lines(records: Iterable[Record]) -> Iterator[str]:
        shown = [record for record in records if api.is_public(record)]
        return map(event_line, shown) if as_json else (look.fit(log_line(record)) for record in shown)

    if not follow:
        say(*deque(lines(api.stored_run(where, wanted).text.records), tail or None))
        return 0
    async with _until_left(), api.follow(where, wanted) as batches:
        most = tail or None
        async for records in batches:
            say(*deque(lines(records), most))
            most = None
        run = api.stored_run(where, wanted)
        if not run.is_over and not as_json:
            say(f"its process is gone; go on with: ll-loop resume {run.run_id}", fd=STDERR)
    return 0


def log_line(record: Record) -> str:
    """A record as a line for people."""
    indent = "  " * record.get("depth", 0)
    return f"{record['ts'][11:19]}Z  {record['event']:<16}  {indent}{words.detail(record)}".rstrip()


@asynccontextmanager
async def _until_left(*besides: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Ctrl-C ends the block, and nothing else: whoever only looks on leaves at will. `besides` run meanwhile."""
    async with anyio.create_task_group() as tasks:

        async def leave() -> None:
            async with api.interrupts() as received:
                async for _ in received:
                    tasks.cancel_scope.cancel()

        for task in (leave, *besides):
            tasks.start_soon(task)
        yield
        tasks.cancel_scope.cancel()


# --- attach ------------------------------------------------------------------------------------------------


class Remote:
    """A run of another process, as far as its journal tells: what the display needs of a run."""

    def __init__(self, run: api.StoredRun, library: api.Library) -> None:
        self.run_id = run.run_id
        self.result: RunResult | None = None
        self.waits_for = ""
        self.run = None
        self.question = None
        self.why: tuple[str, int] = ("interrupted", 0)
        self.loop = _loop_of(run, library)

    def take(self, record: Record) -> None:
        """Take note of a record of its own."""
        if record["event"] == "scope_waiting":
            self.waits_for = record["holder"]
        elif record["event"] in ("run_started", "run_resumed"):
            self.waits_for = ""


class _Known:
    """What is known of a loop whose file cannot be read (any more)."""

    def __init__(self, name: str, max_steps: int) -> None:
        self.name = name
        self.max_steps = max_steps
        self.states: tuple[str, ...] = ()


def _loop_of(run: api.StoredRun, library: api.Library) -> Any:
    limit = run.created["overrides"].get("max_steps")
    try:
        loop = library.load(run.created["path"]).loop
    except LoopError:
        return _Known(run.loop, limit or 0)
    known = _Known(loop.name, limit or loop.max_steps)
    known.states = tuple(loop.states)
    return known


class _Clock:
    """The wall clock, but standing at a record's time while records of the past are read."""

    def __init__(self) -> None:
        self.stands_at: float | None = None

    def __call__(self) -> float:
        return time.time() if self.stands_at is None else self.stands_at


async def attach(wanted: Sequence[str], project: Path | None) -> int:
    """Show runs of other processes as their own terminals would; Ctrl-C leaves them alone."""
    where = project or api.find_project(Path.cwd())
    runs = _under_way(where, wanted)
    library = api.Library(where)
    seat = _Seat([Remote(run, library) for run in runs])
    over: set[str] = set()

    async def look_on(run: api.StoredRun) -> None:
        async with api.follow(where, run.run_id) as batches:
            async for records in batches:
                seat.take(run.run_id, records)
        over.add(run.run_id)

    try:
        async with _until_left(seat.tick), anyio.create_task_group() as tasks:
            for run in runs:
                tasks.start_soon(look_on, run)
    finally:
        seat.close()
    for run in runs:
        say(*_last_words(api.stored_run(where, run.run_id), run.run_id in over, len(runs) > 1), fd=STDERR)
    return 0


def _under_way(where: Path, wanted: Sequence[str]) -> list[api.StoredRun]:
    """The runs that are meant, without a word all that live. RefusedError if one of them does not."""
    if not wanted:
        alive = [run for run in api.history(where) if run.is_alive][::-1]
        if not alive:
            raise RefusedError("nothing is under way", hint="`ll-loop history` lists what is over")
        return alive
    runs = {run.run_id: run for run in (api.stored_run(where, word) for word in wanted)}
    for run in runs.values():
        if not run.is_alive:
            hint = f"`ll-loop resume {run.run_id}` goes on with it" if run.is_resumable else "`ll-loop logs` shows it"
            raise RefusedError(f"run {run.run_id} is not under way", hint=hint)
    return list(runs.values())


def _last_words(run: api.StoredRun, over: bool, many: bool) -> Iterator[str]:
    return (f"{run.loop}: {line}" if many else line for line in _words_on(run, over))


def _words_on(run: api.StoredRun, over: bool) -> Iterator[str]:
    if not over:
        yield f"detached; run {run.run_id} goes on: come back with `ll-loop attach`, end it with `ll-loop stop`"
    elif run.completed is not None:
        ended = run.completed
        ending = words.ending(ended["terminated_by"], failure=ended["failure_terminal"])
        yield f"{words.placed(ending, run.state)} after {words.plural(run.step, 'step')}"
    else:
        yield f"{run.status}: go on with `ll-loop resume {run.run_id}`"


class _Seat:
    """A place to look on from: the tracker, the view and the screen for some runs."""

    def __init__(self, remotes: Sequence[Remote]) -> None:
        self._clock = _Clock()
        self._remotes = {remote.run_id: remote for remote in remotes}
        self._late = set(self._remotes)
        self._tracker = Tracker(remotes, self._clock)
        self._look = look_at(STDERR, os.environ)
        self._sink = Sink(STDERR)
        self._screen = Screen(self._sink)
        self._view = view_of(self._tracker, self._look, quiet=False, many=len(remotes) > 1, grace=0)
        self._fed: list[str] = []

    def take(self, run_id: str, records: Sequence[Record]) -> None:
        """Take in records of a run; of the first batch, which is the past, only the end is shown."""
        before, self._fed = self._fed, []
        for record in records:
            if run_id in self._late:
                self._clock.stands_at = datetime.fromisoformat(record["ts"]).timestamp()
            self._remotes[run_id].take(record)
            self._tracker.hear(record)
            if record["event"] != _OUTPUT:
                self._feed(self._tracker.take(record), self._look)
        if run_id in self._late:
            self._late.remove(run_id)
            self._clock.stands_at = None
            self._fed = self._fed[:1] + self._fed[1:][-BACKLOG:]
        self._fed = before + self._fed
        self._draw()

    async def tick(self) -> None:
        """Draw, several times a second, until cancelled."""
        while True:
            self._draw()
            await anyio.sleep(REFRESH)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._draw()
        self._screen.close()
        self._sink.finish()

    def _feed(self, happenings: Iterator[Happening], look: Look) -> None:
        for happening in happenings:
            self._fed += self._view.feed(happening, look)

    def _draw(self) -> None:
        if self._late:
            return
        if self._look.live:
            self._look = look_at(STDERR, os.environ)
        fed, self._fed = self._fed, []
        self._screen.show(fed, list(self._view.live(self._look)))
