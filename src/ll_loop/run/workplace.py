"""Where a run works: in the project, or in a worktree of its own that its journal accounts for at every step."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from msgspec.structs import asdict

from ..errors import LoopError
from . import sweep
from .bus import Bus
from .handle import RunHandle
from .journals import recovery
from .journals.journal import Committer, Journal
from .journals.recovery import StoredRun
from .results import kept_to_json
from .worktrees.checkout import WorktreeRecord
from .worktrees.worktree import Kept, Lease, Outcome, Worktrees


class Workplaces:
    """The working directories of a session's runs."""

    def __init__(self, runs: Path, worktrees: Worktrees, committer: Committer, bus: Bus) -> None:
        self.worktrees = worktrees
        self._runs = runs
        self._committer = committer
        self._bus = bus
        self._tidied = False

    @asynccontextmanager
    async def use(self, handle: RunHandle) -> AsyncIterator[Path]:
        """The directory in which a run works while inside; its worktree is dealt with on the way out, cancelled or not.

        A resumed run gets back the worktree in which it was at work. Raises LoopError where git refuses.
        """
        if not handle.request.worktree:
            yield handle.workplace
            return
        handle.worktree = None if handle.stored is None else await self._left_by(handle.stored)
        adopt = handle.worktree is not None
        if handle.worktree is None:
            handle.worktree = await self._plan(handle)
        lease: Lease | None = None
        try:
            async with self.worktrees.use(handle.worktree, adopt=adopt) as lease:
                made = {"worktree": handle.worktree.path, "branch": handle.worktree.branch}
                handle.journal.append("worktree_created", made)
                try:
                    yield lease.project
                finally:
                    lease.keep = _why_keep(handle)
        finally:
            if lease is not None:
                handle.kept = lease.outcome if isinstance(lease.outcome, Kept) else None
                handle.journal.append("worktree_finished", _left(handle.kept))

    async def _plan(self, handle: RunHandle) -> WorktreeRecord:
        await self.worktrees.check()
        await self._tidy()
        planned = await self.worktrees.plan(handle.run_id, handle.loop.name)
        handle.journal.append("worktree_planned", {"worktree": asdict(planned)})
        await self._committer.commit(handle.journal)
        return planned

    async def _tidy(self) -> None:
        """Once a session: finish the worktrees of runs that had ended when their process was killed cleaning up."""
        if self._tidied:
            return
        self._tidied = True
        for stored in recovery.unfinished_clean_ups(self._runs):
            with suppress(LoopError, OSError):  # what cannot be dealt with stays where it is
                await self._finish(stored)

    async def _finish(self, stored: StoredRun) -> None:
        """Deal with the worktree of a run that is over, and write down what became of it."""
        record = _planned(stored)
        if record is None:
            return
        journal = Journal(stored.folder, stored.run_id, stored.loop, self._bus.publish)
        journal.continue_at(stored.end, stored.text.records[-1]["seq"])
        journal.open()  # whoever else wants to do the same is refused
        try:
            sweep.remove_files(stored)
            if stored.text.torn:
                journal.cut(stored.text.torn)
            journal.append("worktree_finished", _left(await self.worktrees.finish(record)))
        finally:
            journal.close()

    async def _left_by(self, stored: StoredRun) -> WorktreeRecord | None:
        """The worktree of an earlier attempt if anything was or is in it; what was only being made is removed."""
        record, last = _planned(stored), stored.worktree()
        if record is None or last is None:
            return None
        if last["event"] == "worktree_planned":
            await self.worktrees.finish(record)
            return None
        if last["event"] == "worktree_leaving":
            return record if isinstance(await self.worktrees.finish(record), Kept) else None
        return None if last["event"] == "worktree_finished" and not last["kept"] else record


def _why_keep(handle: RunHandle) -> str:
    """Write down that the worktree is about to be finished; if that cannot be, why it has to stay.

    Otherwise a run that is to go on would not know whether somebody else has taken its worktree away.
    """
    handle.journal.append("worktree_leaving", {})
    try:
        handle.journal.flush()
    except LoopError as error:
        return str(error)
    return ""


def _planned(stored: StoredRun) -> WorktreeRecord | None:
    planned = [record for record in stored.text.records if record["event"] == "worktree_planned"]
    return WorktreeRecord(**planned[-1]["worktree"]) if planned else None


def _left(outcome: Outcome | None) -> dict[str, Any]:
    """What became of a worktree, as `worktree_finished` tells it."""
    kept = outcome if isinstance(outcome, Kept) else None
    return {"kept": kept is not None, **kept_to_json(kept)}
