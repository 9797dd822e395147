"""What killed processes left behind, and runs that are old enough to go: found first, dealt with only when told to.

Nothing of a living run is ever touched: what concerns a run is done while its journal is held, as a `resume` would.
"""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from msgspec import Struct

from ..errors import CannotCreateError, LoopError, RefusedError, UsageError
from . import sweep
from .children.tree import Grace
from .ipc import sockets
from .journals import journal, recovery
from .journals.recovery import StoredRun
from .locking.mirror import Mirror
from .worktrees.checkout import WorktreeRecord
from .worktrees.worktree import Kept, Leftover, Worktrees

ARCHIVE = "archive"


class Remains(Struct, frozen=True):
    """One thing that was left behind: `kind` is process, script, temporary, lock, socket or worktree.

    `done` tells whether it has been dealt with, `note` what became of it or why it stays.
    """

    kind: str
    what: str
    run_id: str = ""
    done: bool = False
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__struct_fields__}


@contextmanager
def held(run: StoredRun) -> Iterator[None]:
    """Hold the journal of a dead run, so that nobody takes it up meanwhile. RefusedError if it lives or is in use."""
    fd = os.open(run.folder / journal.NAME, os.O_WRONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RefusedError(f"run {run.run_id} is in use by another process") from error
        if StoredRun(run.folder).is_alive:
            raise RefusedError(f"run {run.run_id} is alive")
        yield
    finally:
        os.close(fd)


class Cleaner:
    """Looks for remains in one project; with `act` it also deals with them. `grace` is for processes, in seconds."""

    def __init__(self, runs: Path, mirror: Mirror, worktrees: Worktrees, *, act: bool, grace: float) -> None:
        self._runs = runs
        self._mirror = mirror
        self._worktrees = worktrees
        self._act = act
        self._grace = Grace(grace)

    async def clean(self) -> list[Remains]:
        """Everything that was found, and what became of it. Cancelled, it stops between two things."""
        found: list[Remains] = []
        busy: set[str] = set()
        for run in recovery.stored_runs(self._runs, recovery.run_ids(self._runs)):
            of_run = [] if run.is_over or run.is_alive else list(_of_run(run))
            if of_run and self._act:
                of_run = await self._swept(run, of_run)
            found += of_run
            busy |= {one.run_id for one in of_run if one.kind == "process" and not one.done}
        found += self._locks(busy)
        stale = sockets.stale_sockets(act=self._act)
        found += [Remains("socket", str(path), done=gone) for path, gone in stale]
        return found + await self._trees()

    async def _swept(self, run: StoredRun, found: Sequence[Remains]) -> list[Remains]:
        try:
            with held(run):
                left = (await sweep.sweep(run, self._grace)).unkillable
        except LoopError as error:
            return [_with(one, False, str(error)) for one in found]
        alive = {str(one.pid) for one in left}
        return [_with(one, not (one.kind == "process" and one.what in alive), "") for one in found]

    def _locks(self, busy: set[str]) -> list[Remains]:
        """Locks of the dead; not those of runs whose processes are still at work."""
        found = []
        for lock, reason in self._mirror.void_locks():
            remains = Remains("lock", str(lock.file), lock.run_id, note=reason)
            if self._act and lock.run_id not in busy:
                remains = _with(remains, self._mirror.clear(lock), reason)
            found.append(remains)
        return found

    async def _trees(self) -> list[Remains]:
        try:
            leftovers = await self._worktrees.leftovers()
        except LoopError:  # no repository, so no worktrees
            return []
        return [one for left in leftovers if (one := await self._tree(left)) is not None]

    async def _tree(self, left: Leftover) -> Remains | None:
        run = self._run_of(left.run_id)
        if run is not None and run.is_alive:
            return None
        remains = Remains("worktree", left.path, left.run_id)
        if run is not None and run.is_resumable:
            return _with(remains, False, f"kept for `ll-loop resume {left.run_id}`")
        if run is None or left.record is None:
            return _with(remains, False, "its run is not known here: look at it, then `git worktree remove`")
        if not self._act:
            return remains
        return await self._finished(run, remains, left.record)

    async def _finished(self, run: StoredRun, remains: Remains, record: WorktreeRecord) -> Remains:
        try:
            with held(run):
                outcome = await self._worktrees.finish(record)
        except LoopError as error:
            return _with(remains, False, str(error))
        if isinstance(outcome, Kept):
            return _with(remains, False, f"kept ({outcome.reason}): {'; '.join(outcome.commands)}")
        return _with(remains, True, "removed")

    def _run_of(self, run_id: str) -> StoredRun | None:
        try:
            return recovery.open_run(self._runs, run_id)
        except LoopError:
            return None


def _of_run(run: StoredRun) -> Iterator[Remains]:
    for left in recovery.left_alive(run):
        yield Remains("process", str(left.pid), run.run_id)
    if run.script is not None and run.script.exists():
        yield Remains("script", str(run.script), run.run_id)
    for path in run.folder.glob("state.json.*.tmp"):
        yield Remains("temporary", str(path), run.run_id)


def _with(remains: Remains, done: bool, note: str) -> Remains:
    return Remains(remains.kind, remains.what, remains.run_id, done, note)


# --- retention ---------------------------------------------------------------------------------------------


class Rule(Struct, frozen=True):
    """Which runs may go: those beyond the newest `keep` of their loop, and begun longer ago than `older_than`.

    Of two conditions, both must hold. Runs that could go on stay, unless `unfinished`.
    """

    keep: int | None = None
    older_than: timedelta | None = None
    unfinished: bool = False


class Pruned(Struct, frozen=True):
    """A run that the rule names, and where it is now: empty while it is where it was; `note` says why, if it failed."""

    run_id: str
    loop: str
    status: str
    started_at: str
    archived: str = ""
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__struct_fields__}


def prune(runs: Path, rule: Rule, *, act: bool, now: datetime | None = None) -> list[Pruned]:
    """The runs that the rule names, oldest first; with `act` they are moved to the archive beside `runs`.

    UsageError if the rule has no condition: nothing goes without a rule.
    """
    if rule.keep is None and rule.older_than is None:
        raise UsageError("say which runs may go: --keep N, --older-than AGE, or both")
    chosen = list(_chosen(runs, rule, now or datetime.now(UTC)))
    return [_archived(run) if act else _pruned(run) for run in reversed(chosen)]


def _chosen(runs: Path, rule: Rule, now: datetime) -> Iterator[StoredRun]:
    seen: Counter[str] = Counter()
    for run in recovery.stored_runs(runs, reversed(recovery.run_ids(runs))):
        seen[run.loop] += 1
        if any(stays(run, seen[run.loop], rule, now) for stays in STAYS):
            continue
        yield run


def _is_needed(run: StoredRun, rank: int, rule: Rule, now: datetime) -> bool:
    return run.is_alive or (run.is_resumable and not rule.unfinished)


def _is_new(run: StoredRun, rank: int, rule: Rule, now: datetime) -> bool:
    return rule.keep is not None and rank <= rule.keep


def _is_young(run: StoredRun, rank: int, rule: Rule, now: datetime) -> bool:
    return rule.older_than is not None and now - datetime.fromisoformat(run.created["ts"]) < rule.older_than


def _has_worktree(run: StoredRun, rank: int, rule: Rule, now: datetime) -> bool:
    last = run.worktree()
    return last is not None and (last["event"] != "worktree_finished" or bool(last["kept"]))


Stays = Callable[[StoredRun, int, Rule, datetime], bool]
STAYS: tuple[Stays, ...] = (_is_new, _is_young, _is_needed, _has_worktree)
"""Why a run stays; `rank` is 1 for the newest of its loop."""


def _pruned(run: StoredRun, archived: str = "", note: str = "") -> Pruned:
    return Pruned(run.run_id, run.loop, run.status, str(run.created["ts"]), archived, note)


def _archived(run: StoredRun) -> Pruned:
    archive = run.folder.parent.parent / ARCHIVE
    try:
        archive.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise CannotCreateError(f"cannot create {archive}: {error.strerror}") from error
    target = archive / run.run_id
    before = _pruned(run)
    try:
        with held(run):
            os.rename(run.folder, target)
    except (LoopError, OSError) as error:
        return _pruned(run, note=str(error))
    with suppress(OSError):  # not every file system can do it, and nothing is lost
        journal.sync_folder(archive)
    return Pruned(before.run_id, before.loop, before.status, before.started_at, str(target))
