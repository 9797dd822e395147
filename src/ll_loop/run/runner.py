"""One run from its first record to its result: admission, workplace, engine, and back out in the reverse order.

Whatever happens to a run is its own ending: `Runner.run` never raises, but for the cancellation of its task.
"""

from __future__ import annotations

import traceback
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from ..core.endings import exit_code_of, status_of
from ..core.model import Budget, Ending
from ..errors import CannotCreateError, LoopError, RefusedError, UsageError
from ..files.config.places import PROJECT, WORKTREE
from . import files, sweep
from .children.tree import Grace
from .engine import Clock, Engine
from .handle import RunHandle
from .inputs import exports_of, nesting_of, own_sources
from .journals import best_effort, recovery
from .journals.recovery import StoredRun, identity_to_json
from .journals.secrecy import hush
from .kin import SOCKET
from .means import Means
from .performing.perform import Actions, Script
from .preparing import Preparing
from .results import cause_of, result_of
from .rooms import Rooms

CLOSING = 10.0
"""Seconds that closing one run's books may take after its children have ended."""


class Runner:
    """Takes runs through what a session has for them."""

    def __init__(self, means: Means, preparing: Preparing) -> None:
        self._means = means
        self._preparing = preparing
        self._tidied = False

    def write_down(self, handle: RunHandle) -> None:
        """Make the run's folder and its first record: from here on, a killed session can be resumed."""
        if handle.journal.seq:
            return
        try:
            with suppress(FileExistsError):
                self._means.runs.mkdir(parents=True, mode=0o700)
            handle.folder.mkdir(mode=0o700)
            handle.artifacts.mkdir(mode=0o700)
        except OSError as error:
            raise CannotCreateError(f"cannot create {handle.artifacts}: {error.strerror}") from error
        created = {**self._preparing.created(handle), **self._means.calls.told(), **self._claim()}
        handle.journal.append("run_created", created)
        self._announce(handle)

    def _claim(self) -> dict[str, Any]:
        above = [[one.pid, one.start] for one in self._means.ancestors]
        return {"owner": identity_to_json(self._means.identity), "above": above, "socket": self._means.control.path}

    def _announce(self, handle: RunHandle) -> None:
        handle.journal.flush()
        if handle.ticket is not None and not handle.ticket.granted:
            handle.journal.close()  # a thousand waiting runs must not hold a thousand files

    def take_over(self, handle: RunHandle, stored: StoredRun) -> None:
        """From here on the run is ours, for everybody to see, also while it waits."""
        handle.journal.open()
        if stored.text.torn:
            handle.journal.cut(stored.text.torn)
        handle.journal.append("run_claimed", {**self._claim(), **handle.raised})
        self._announce(handle)

    def _env_of(self, handle: RunHandle, cwd: Path) -> dict[str, str]:
        means = self._means
        own = nesting_of(means.env, means.above, handle.run_id, limited=means.limited)
        away = cwd != means.project and not (cwd / means.config.loops.loops_dir).is_dir()
        own |= {SOCKET: means.control.path, PROJECT: str(means.project), WORKTREE: str(cwd) if away else ""}
        env = {**means.env, **own, **exports_of(handle.loop, handle.request)}
        return env if handle.worktree is None else env | own_sources(cwd, env)

    async def run(self, handle: RunHandle) -> None:
        """Take a launched run all the way; its handle has the result then. Cancelled, the run ends as interrupted."""
        error: BaseException | None = None
        try:
            with handle.scope:
                await self._admitted_run(handle)
        except LoopError as known:
            hush(known, handle.secrets)
            error = known
        except Exception as unknown:  # noqa: BLE001 - a defect in one run must not hurt the others
            error = files.as_known(unknown)
            if error is unknown:
                self._note_defect(handle, unknown)
        finally:
            result = result_of(handle, error)
            self._close_books(handle, error)
            self._means.admission.give_up(handle)
            handle.finish(result)

    def _close_books(self, handle: RunHandle, error: BaseException | None) -> None:
        """Say in the journal how a run left that never began; one that was refused leaves no trace."""
        journal = handle.journal
        never_ended = handle.run is None or handle.run.ending is None
        refused = isinstance(error, RefusedError | UsageError) and handle.stored is None and handle.run is None
        if never_ended and journal.seq and not refused:
            by, signal, text = cause_of(handle, error)
            ending = Ending(by, "", error=text, signal=signal)
            codes = {"status": status_of(ending), "exit_code": exit_code_of(ending)}
            journal.append("run_withdrawn", {"terminated_by": by, "signal": signal, "error": text, **codes})
        journal.close()
        if refused:
            recovery.forget(handle.folder)

    async def _admitted_run(self, handle: RunHandle) -> None:
        means = self._means
        if not self._tidied:
            self._tidied = True
            await sweep.tidy(means.runs, means.mirror, means.grace)
        if handle.stored is not None:
            await self._sweep(handle, handle.stored)
        async with means.admission.admitted(handle):
            self.write_down(handle)
            await means.kin.settle()
            means.purse.check(handle, costs=bool(handle.loop.shared != Budget()))
            async with means.workplaces.use(handle) as cwd:
                await self._drive(handle, cwd)

    async def _drive(self, handle: RunHandle, cwd: Path) -> None:
        means = self._means
        failure: Exception | None = None
        handle.grace = Grace(means.grace.seconds)
        handle.desk.attended = means.attended
        spent = handle.stored.spent() if handle.stored else 0.0
        furnish = partial(self._furnish, handle)
        performer = Rooms(furnish, cwd, means.workplaces.worktrees, handle.run_id, handle.journal)
        handle.settle()
        changed = partial(self._changed, handle)
        handle.engine = engine = Engine(handle.journal, means.committer, performer, Clock(spent), means.random, changed)
        try:
            decision, ts = self._preparing.first_decision(handle, cwd, performer.script)
            await engine.drive(decision, ts)
        except Exception as error:
            failure = files.as_known(error)
            raise
        finally:
            await performer.close()
            with anyio.move_on_after(CLOSING, shield=True):
                try:
                    by, signal, text = cause_of(handle, failure)
                    await engine.close(by, signal=signal, error=text)
                    best_effort.keep(engine.run, handle.artifacts, handle.secrets)
                finally:
                    means.saver.save(handle)

    def _furnish(self, handle: RunHandle, cwd: Path, *, room: str = "", script: Script | None = None) -> Actions:
        means = self._means
        return Actions(
            spawner=means.spawner,
            library=means.library,
            journal=handle.journal,
            log=handle.folder / "output.log",
            cwd=cwd,
            env=self._env_of(handle, cwd),
            run_id=handle.run_id,
            desk=handle.desk,
            settings=means.config,
            grace=handle.grace,
            allow=partial(means.purse.check, handle),
            traffic=means.traffic,
            tell=handle.note_host_waiting,
            heavy=not handle.loop.wishes.no_host_guard,
            room=room,
            script=script,
            git_turn=means.git_turns.setdefault(cwd, anyio.Lock()),
        )

    def _changed(self, handle: RunHandle) -> None:
        self._means.saver.mark(handle)
        self._means.kin.mark()

    async def _sweep(self, handle: RunHandle, stored: StoredRun) -> None:
        """End what a killed process of this run left alive, also while it waits: it may be at work in its scope."""
        if not stored.has_begun:
            return
        swept = await sweep.sweep(stored, self._means.grace)
        pids = {"ended": [one.pid for one in swept.found], "unkillable": [one.pid for one in swept.unkillable]}
        handle.journal.append("swept", pids)
        self._announce(handle)
        sweep.refuse_if_alive(handle.run_id, swept)

    def _note_defect(self, handle: RunHandle, error: Exception) -> None:
        with suppress(OSError):
            handle.folder.mkdir(parents=True, mode=0o700, exist_ok=True)
            text = handle.secrets.text("".join(traceback.format_exception(error)))
            files.replace_text(handle.folder / "internal-error.log", text)
