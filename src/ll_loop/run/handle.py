"""One run of a session, as its owner and its readers hold it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio

from ..core.frame import Run
from ..core.model import Loop, TerminatedBy
from ..core.replay import Replayed
from ..core.secrets import Secrets
from ..core.snapshot import open_question, snapshot
from ..errors import Problem, RefusedError
from .bus import Bus, Reader, Record
from .children.tree import Grace
from .engine import Engine
from .journals.journal import Journal, now
from .journals.recovery import StoredRun
from .journals.request import Request, RunResult
from .locking.lockfile import Foreign
from .locking.locks import Ticket
from .performing.desk import Desk, reply_of
from .worktrees.checkout import WorktreeRecord
from .worktrees.worktree import Kept

RESOLVED = "human_approval_resolved"


class RunHandle:
    """One run of a session: where it is, how it ended. `problems` are warnings about its inputs."""

    def __init__(self, runs: Path, bus: Bus, run_id: str, loop: Loop, request: Request, index: int) -> None:
        self.run_id = run_id
        self.loop = loop
        self.request = request
        self.index = index
        self.batch = ""
        self.folder = runs / run_id
        self.artifacts = self.folder / "artifacts"
        self.context: Mapping[str, Any] = {}
        self.ticket: Ticket | None = None
        self.asked = 0
        self.paths: tuple[str, ...] = ()
        self.waits_for: str = ""
        self.foreign: Foreign | None = None
        self.waits_for_slot = False
        self.waiting_since = ""
        self.ending_since = ""
        self.result: RunResult | None = None
        self.workplace = Path()
        self.worktree: WorktreeRecord | None = None
        self.kept: Kept | None = None
        self.stored: StoredRun | None = None
        self.replayed: Replayed | None = None
        self.raised: Mapping[str, Any] = {}
        self.told: Mapping[str, Any] = {}
        self.extras: Mapping[str, Any] = {}
        self.overrides: Mapping[str, Any] = {}
        self.problems: tuple[Problem, ...] = ()
        self.since = now()
        self.desk = Desk()
        self.grace: Grace | None = None
        self.journal = Journal(self.folder, run_id, loop.name, bus.publish)
        self.engine: Engine | None = None
        self.dirty = False
        self._bus = bus
        self._readers: list[Reader] = []
        self._done = anyio.Event()
        self._settled = anyio.Event()
        self._scope = anyio.CancelScope()
        self._why: tuple[TerminatedBy, int] = ("interrupted", 0)

    def __repr__(self) -> str:
        place = repr(self.engine.run.root.state) if self.engine and self.engine.run else "its start"
        return f"<RunHandle {self.run_id} at {place}{', ended' if self.result else ''}>"

    @property
    def secrets(self) -> Secrets:
        """What of the run is shown to nobody and written down nowhere."""
        return self.journal.secrets

    @property
    def run(self) -> Run | None:
        """The run's present state, None while it waits."""
        return self.engine.run if self.engine else None

    @property
    def status(self) -> str:
        """`queued`, `running`, or the status of its result."""
        if self.result is not None:
            return self.result.status
        return "running" if self.run is not None else "queued"

    async def wait(self) -> RunResult:
        """The result, once the run has ended. Cancelling the wait leaves the run alone."""
        await self._done.wait()
        assert self.result is not None
        return self.result

    async def settled(self) -> None:
        """Return once it is known whether the run goes on at once, has to wait, or was refused."""
        await self._settled.wait()

    @property
    def place(self) -> int:
        """How many runs are before it in the line for what it waits for; 0 when it waits for none."""
        if self.run is not None or self.result is not None:
            return 0
        earlier = self.ticket.position if self.ticket is not None else 0
        return earlier or int(bool(self.waits_for))

    def changes(self) -> Reader:
        """A reader that tells, without saying what, that this run's journal has grown; it ends with the run."""
        reader = self._bus.subscribe([], size=1, run_id=self.run_id)
        if self.result is not None:
            reader.close()
        else:
            self._readers.append(reader)
        return reader

    def forget(self, reader: Reader) -> None:
        """Close a reader of this run before the run has ended."""
        if reader in self._readers:
            self._readers.remove(reader)
        reader.close()

    def events(self) -> Reader:
        """This run's records from now on (a snapshot first), as an async iterator that ends with the run."""
        held = [self.snapshot()] if self.run is not None else []
        reader = self._bus.subscribe(held, run_id=self.run_id)
        if self.result is not None:
            reader.close()
        else:
            self._readers.append(reader)
        return reader

    def snapshot(self) -> Record:
        """Where the run is, as a record: what a late reader gets first."""
        assert self.run is not None
        ts = now()
        state = self.secrets.document(snapshot(self.run, updated_at=ts))
        return {"event": "snapshot", "ts": ts, "run_id": self.run_id, "loop": self.loop.name, "state": state}

    @property
    def question(self) -> dict[str, Any] | None:
        """What the run asks a person now (`id`, `state`, `text`), None if nothing: see `approve`."""
        question = open_question(self.run) if self.run is not None else None
        return None if question is None else dict(self.secrets.document(question))

    async def approve(self, answer: str, text: str = "") -> None:
        """Answer the question that the run asks: `yes`, `no` with a reason or none, or `edit` with the new text.

        Returns once the run has taken the answer, and it is on disk. UsageError for another word, RefusedError if the
        run asks nothing, was answered a moment ago, or ended before it could take the answer.
        """
        reply, question = reply_of(answer, text), self.question
        if question is None:
            raise RefusedError(f"run {self.run_id} asks nothing now")
        reader = self._bus.subscribe([], lambda record: record["event"] == RESOLVED, run_id=self.run_id)
        self._readers.append(reader)
        try:
            self.desk.answer(question["id"], reply)
            async for record in reader:
                if record["alert_id"] == question["id"] and record["verdict"] == reply.verdict:
                    return
        finally:
            self.forget(reader)
        raise RefusedError(f"run {self.run_id} ended before it took the answer")

    def cancel(self, by: TerminatedBy = "interrupted", signal: int = 0, *, grace: float | None = None) -> None:
        """End the run: its children get SIGTERM and the grace, its state stays current for a resume.

        `grace` replaces the session's, in seconds; zero also ends the patience with those that were asked before.
        """
        if grace is not None and self.grace is not None:
            self.grace.seconds = grace
            if not grace:
                self.grace.cut()
        if self.result is None and not self._scope.cancel_called:
            self._why = (by, signal)
            self.ending_since = now()
            self._scope.cancel()

    # What follows is for the session.

    @property
    def scope(self) -> anyio.CancelScope:
        return self._scope

    @property
    def why(self) -> tuple[TerminatedBy, int]:
        return self._why

    def note_waiting(self, holder: str, foreign: Foreign | None = None) -> None:
        """Say, once, whom the run waits for; `foreign` is the lock of another process, if it is one."""
        self.foreign = foreign
        if self.waits_for != holder:
            self.waits_for = holder
            self.waiting_since = self.waiting_since or now()
            self.journal.append("scope_waiting", {"holder": holder})
            self.journal.flush()
            self.journal.close()  # a thousand waiting runs must not hold a thousand files
            self.settle()

    def note_slot(self, *, waits: bool) -> None:
        """Say whether the run waits because as many run already as may."""
        self.waits_for_slot = waits
        if waits:
            self.waiting_since = self.waiting_since or now()
            self.settle()

    def settle(self) -> None:
        """It is known now whether the run goes on, waits or was refused."""
        self._settled.set()

    def note_host_waiting(self, why: str, until: float) -> None:
        """Say what a call of a host waits for; empty when it goes on."""
        when = datetime.fromtimestamp(until, UTC) if until else None
        shown = why if when is None else f"{why} until {when.astimezone():%H:%M:%S}"
        if why and shown != self.waits_for:
            told = {} if when is None else {"until": when.isoformat()}
            self.journal.append("host_waiting", {"why": why, **told})
            self.journal.flush()
        self.waits_for = shown

    def finish(self, result: RunResult) -> None:
        """Make the result known; readers of this run end."""
        self.result = result
        self.ticket = None  # with its place in the tree of paths
        self.settle()
        self._done.set()
        for reader in self._readers:
            reader.close()
