"""The directories of one run: where it works, and the worktrees in which some of its sub-loops do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from msgspec.structs import asdict

from ..core.effects import Answer, Effect, EnterTree, LeaveTree, Probed
from ..core.model import EMPTY
from ..errors import LoopError
from .journals.journal import Journal
from .performing.perform import Actions, Script
from .worktrees.checkout import WorktreeRecord
from .worktrees.worktree import Kept, Worktrees


class Furnish(Protocol):
    """Makes what performs actions in a directory."""

    def __call__(self, cwd: Path, *, room: str = "", script: Script | None = None) -> Actions: ...


class Rooms:
    """Performs each effect of a run where it belongs; a worktree that a killed process left is taken up again."""

    def __init__(self, furnish: Furnish, cwd: Path, trees: Worktrees, run_id: str, journal: Journal) -> None:
        self._furnish = furnish
        self._own = furnish(cwd)
        self._trees = trees
        self._run_id = run_id
        self._journal = journal
        self._open: dict[str, tuple[WorktreeRecord, Actions]] = {}
        self._made: list[Actions] = [self._own]

    @property
    def script(self) -> str:
        """The path of the file that actions are read from, known before it is made."""
        return self._own.script.path

    async def perform(self, effect: Effect, tree: Mapping[str, Any] = EMPTY) -> Answer:
        match effect:
            case EnterTree(branch):
                return await self._enter(branch)
            case LeaveTree(left):
                return await self._leave(WorktreeRecord(**left))
            case _:
                return await (await self._room(tree)).perform(effect)

    async def _enter(self, branch: str) -> Probed:
        try:
            record = await self._trees.borrow(self._run_id, branch)
            self._furnished(record, await self._trees.adopt(record))
        except LoopError as error:
            return Probed(None, str(error))
        return Probed(json.dumps(asdict(record)))

    async def _leave(self, record: WorktreeRecord) -> Probed:
        outcome = await self._trees.put_away(record)
        self._open.pop(record.path, None)
        return Probed(None, _why(outcome)) if isinstance(outcome, Kept) else Probed("")

    async def _room(self, tree: Mapping[str, Any]) -> Actions:
        if not tree:
            return self._own
        if tree["path"] not in self._open:
            record = WorktreeRecord(**tree)
            self._furnished(record, await self._trees.adopt(record))
        return self._open[tree["path"]][1]

    def _furnished(self, record: WorktreeRecord, project: Path) -> None:
        room = self._furnish(project, room=f"-{len(self._made)}", script=self._own.script)
        self._made.append(room)
        self._open[record.path] = record, room

    async def close(self) -> None:
        """Put away the worktrees that are still open and remove what was made for the actions, cancelled or not."""
        for room in self._made:
            room.close()
        for record, _ in self._open.values():
            outcome = await self._trees.put_away(record)
            if isinstance(outcome, Kept):
                told = {"branch": record.branch, "path": record.path, "reason": _why(outcome)}
                self._journal.append("sub_loop_worktree_kept", told)


def _why(kept: Kept) -> str:
    return f"{kept.reason}; {'; '.join(kept.commands)}"
