"""The orchestrator: one task a run, scopes in the order of asking, one shutdown for all.

A run goes through admission (its scope in memory, a slot, its scope on disk), its workplace (the project or a worktree
of its own), the engine, and back out in the reverse order, whatever happens. One run's failure is its own ending.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self, Unpack

import anyio
import anyio.abc

from ..core.endings import exit_code_of, status_of
from ..core.model import Budget, Ending, TerminatedBy
from ..errors import CannotCreateError, LoopError, NotFoundError, RefusedError, UsageError
from ..files.config.load import Config, load_config
from ..files.config.places import PROJECT, WORKTREE
from ..files.library import Library
from . import files, sweep
from .admission import Admission
from .agents.asking import known_hints
from .agents.circuit import Circuit
from .agents.traffic import Traffic
from .bus import Bus, Reader
from .children import procs
from .children.process import Spawner
from .children.tree import Grace
from .engine import Clock, Engine
from .handle import RunHandle
from .inputs import exports_of, nesting_of, own_sources, runs_above
from .ipc.control import Control
from .journals import best_effort, recovery
from .journals.calls import Calls
from .journals.journal import Committer
from .journals.recovery import StoredRun, identity_to_json
from .journals.request import Request, limits, new_run_id
from .journals.secrecy import hush
from .kin import SOCKET, Kin
from .locking.lockfile import Foreign
from .locking.locks import Locks, folds_case
from .locking.mirror import Mirror
from .performing.perform import Actions, Script
from .performing.probes import memory_in_use
from .preparing import Changes, Preparing
from .purse import Purse
from .results import cause_of, result_of, result_of_stored
from .rooms import Rooms
from .saver import StateSaver
from .workplace import Workplaces
from .worktrees.git import Gate
from .worktrees.worktree import Worktrees

TICK = 0.2
"""Seconds between two wake-ups of an event loop that is somebody else's: a notebook's interrupt wakes nobody."""
CLOSING = 10.0
"""Seconds that closing one run's books may take after its children have ended."""


class Session:
    """Runs loops of one project, many at a time. Use it as an async context manager, within one task.

    Leaving the block waits for the runs that were started; an exception or a cancellation ends them first. Nothing
    outlives it: no child, no task, no lock, no signal handler. `jobs` bounds how many run at a time, `host_slots` how
    many calls of hosts; `grace` is how many seconds a child has after SIGTERM. `config` is by default what is read for
    the project (DefinitionError if it is wrong). `env` is the environment of actions, by default this process's over
    what the project's `.env` sets. Runs without a worktree of their own work in `workplace`, by default the project.
    `subreaper` lets orphans of actions come to this process while the session lasts (Linux), and ends at its end even
    those that nothing ties to an action: right for a program of one's own, wrong inside somebody else's. `attended`
    says that somebody will answer questions of human approval (`RunHandle.approve`, `ll-loop approve`); otherwise they
    count as timed out at once.

    `max_usd`, `max_tokens` and `deadline` (seconds) are what all runs together may spend: after that no further prompt
    and no further run is started, and those that were stopped so can be resumed with more.
    """

    def __init__(
        self,
        project: Path | str | None = None,
        *,
        jobs: int | None = None,
        grace: float = 5.0,
        env: Mapping[str, str] | None = None,
        library: Library | None = None,
        subreaper: bool = False,
        attended: bool = False,
        max_usd: float | None = None,
        max_tokens: int | None = None,
        deadline: float | None = None,
        host_slots: int | None = None,
        seed: int | None = None,
        config: Config | None = None,
        workplace: Path | None = None,
    ) -> None:
        for what, number in (("jobs", jobs), ("host slots", host_slots)):
            if number is not None and number < 1:
                raise UsageError(f"{what} must be at least 1, not {number}")
        self.project = Path(project or ".").expanduser().resolve()
        if not self.project.is_dir():
            raise NotFoundError(f"no such project folder: {self.project}")
        self.config = config or load_config(self.project, env)
        self.loops_dir = self.project / self.config.loops.loops_dir
        self.library = library or Library(self.project, self.config.loops.loops_dir)
        self.runs = self.loops_dir / "runs"
        self.bus = Bus()
        self.batch = new_run_id("batch")
        self.handles: list[RunHandle] = []
        self._purse = Purse(self.handles)
        self.env = {**self.config.environment, **os.environ} if env is None else dict(env)
        if library is None:
            self.library.model_hints = known_hints(self.env, self.config.orchestration)
        self._random = Random(seed)
        self._identity = procs.own_identity()
        self._ancestors = procs.ancestors(self._identity.pid)
        self._tidied = False
        self._above = runs_above(self.env)
        if self._above and "LL_LOOP_JOBS" in self.env:
            jobs = 1  # the slot of the run above
        self._limited = jobs is not None
        self._admission = self._make_admission(jobs)
        self._grace = Grace(grace)
        self._spawner = Spawner(self._grace, sole=subreaper)
        self._subreaper = subreaper
        self._attended = attended or self.config.hitl.channel == "eventbus"
        self._committer = Committer()
        self.worktrees = self._make_worktrees()
        self._workplace = workplace or self.project
        self._workplaces = Workplaces(self.runs, self.worktrees, self._committer, self.bus)
        self._traffic = self._make_traffic(host_slots)
        self._git_turns: dict[Path, anyio.Lock] = {}
        self._saver = StateSaver(self.handles)
        self._control = Control(self.handles, self._purse)
        self._preparing = self._make_preparing(limits(max_usd, max_tokens, deadline))
        self._calls = Calls(self.env, self._above, self.runs)
        self._kin = Kin(self.env, self._above, self._purse, self.batch)
        self._ended_by: tuple[TerminatedBy, int] | None = None
        self._services: anyio.abc.TaskGroup | None = None
        self._tasks: anyio.abc.TaskGroup | None = None
        self._life: AbstractAsyncContextManager[None] | None = None
        self._task = 0

    def _make_admission(self, jobs: int | None) -> Admission:
        fold = folds_case(self.project)
        self._mirror = Mirror(self.loops_dir / ".running", identity=self._identity, fold_case=fold, sweeps=True)
        patience = self.config.loops.queue_wait_timeout_seconds
        return Admission(Locks(fold_case=fold), self._mirror, jobs, self._above, self._make_way, patience)

    def _make_preparing(self, shared: Mapping[str, Any]) -> Preparing:
        return Preparing(
            self.project,
            self.runs,
            self.config,
            self.library,
            self.env,
            workplace=self._workplace,
            bus=self.bus,
            purse=self._purse,
            batch=self.batch,
            shared=shared,
        )

    def _circuit(self) -> Circuit | None:
        limits = self.config.commands.rate_limits
        return Circuit(self.project / limits.circuit_breaker_path) if limits.circuit_breaker_enabled else None

    def _make_traffic(self, slots: int | None) -> Traffic:
        hosts = self.config.orchestration
        stagger, limit = hosts.stagger_ms / 1000, hosts.memory_limit_pct
        return Traffic(self._circuit(), slots, stagger=stagger, memory=memory_in_use, memory_limit=limit)

    def _make_worktrees(self) -> Worktrees:
        base, copied = self.config.automation.worktree_base, self.config.parallel.worktree_copy_files
        place = None if base is None else Path(base)
        return Worktrees(self.project, place, copied, gate=Gate(), env=self.env, spawner=self._spawner)

    def __repr__(self) -> str:
        running = sum(handle.status == "running" for handle in self.handles)
        waiting = sum(handle.status == "queued" for handle in self.handles)
        return f"<Session {running} running, {waiting} waiting>"

    async def __aenter__(self) -> Self:
        self._life = self._living()
        self._task = anyio.get_current_task().id
        self._purse.begin()
        await self._life.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._life is not None
        if anyio.get_current_task().id != self._task:
            raise RuntimeError("a Session is left by the task that entered it; in a notebook, within the same cell")
        return await self._life.__aexit__(kind, error, trace)

    @asynccontextmanager
    async def _living(self) -> AsyncIterator[None]:
        failure: BaseException | None = None
        with self._spawner if self._subreaper else nullcontext():
            async with anyio.create_task_group() as self._services:
                self._services.start_soon(self._saver.serve)
                self._services.start_soon(self._kin.serve)
                ticking = anyio.CancelScope()
                if not self._subreaper:
                    self._services.start_soon(_tick, ticking)
                try:
                    async with anyio.create_task_group() as self._tasks:
                        try:
                            yield
                        except anyio.get_cancelled_exc_class():
                            raise
                        except BaseException as error:  # noqa: BLE001 - raised again below, without a group around it
                            failure = error
                            self._tasks.cancel_scope.cancel()
                finally:
                    self._tasks = None
                    ticking.cancel()
                    self._control.close()
                    self._saver.close()
                    self.bus.close()
                    with anyio.CancelScope(shield=True):  # bounded by itself
                        await self._kin.settle()
                    self._kin.close()
                    if self._subreaper:
                        await self._spawner.end_strays()  # bounded and shielded by itself
        if failure is not None:
            raise failure

    # --- starting ------------------------------------------------------------------------------------------

    def start(
        self,
        name: str,
        *,
        input: str | None = None,  # noqa: A002 - the word of the command line and of the format
        context: Mapping[str, Any] | None = None,
        max_steps: int | None = None,
        max_iterations: int | None = None,
        delay: float | None = None,
        worktree: bool = False,
        queue: bool = True,
        queue_timeout: float | None = None,
        lock: bool = True,
        program_md: Path | str | None = None,
        secrets: Iterable[str] = (),
    ) -> RunHandle:
        """Start a run of the loop `name`; it takes its place in the order of scopes at once.

        Raises NotFoundError (no such loop, a missing input), DefinitionError (a wrong file), and, unless it may
        `queue`, RefusedError when its scope is held. `queue_timeout` and `delay` are seconds. `secrets` names variables
        and context values that are written down and shown nowhere, beside those whose names say so.
        """
        return self.start_request(
            Request(
                name,
                input,
                context or {},
                max_steps=max_steps,
                max_iterations=max_iterations,
                delay=delay,
                worktree=worktree,
                queue=queue,
                queue_timeout=queue_timeout,
                lock=lock,
                program_md=None if program_md is None else str(program_md),
                secrets=tuple(secrets),
            )
        )

    def start_request(self, request: Request) -> RunHandle:
        """Start what a request asks for: see `start`."""
        return self.launch(self.prepare(request))

    def launch(self, handle: RunHandle) -> RunHandle:
        """Start a prepared run. RefusedError if its scope is held and it may not queue.

        In a shell action that was cut off before, it is the run that the earlier attempt had started for the same
        request: over already, or gone on with where it was.
        """
        if self._tasks is None or self._services is None:
            raise RuntimeError("a Session must be entered (`async with Session(...)`) before it can start runs")
        earlier = self._of_earlier_attempt(handle) if handle.stored is None else None
        if earlier is not None:
            return earlier
        self._control.listen(self._services)
        try:
            self._admission.take_place(handle)
            if handle.stored is not None:
                self._take_over(handle, handle.stored)
            elif handle.request.queue:
                self._write_down(handle)
        except BaseException:
            self._admission.give_up(handle)
            handle.journal.close()
            raise
        self.handles.append(handle)
        self._tasks.start_soon(self._run, handle, name=handle.run_id)
        if self._ended_by is not None:
            handle.cancel(*self._ended_by)
        return handle

    def _of_earlier_attempt(self, handle: RunHandle) -> RunHandle | None:
        for stored in self._calls.earlier(handle.loop.path, handle.request, handle.secrets):
            result = result_of_stored(stored)
            if result is None:
                with suppress(LoopError):  # what cannot go on is started anew
                    return self.resume(stored)
            else:
                self.handles.append(self._preparing.over(handle, stored, result))
                return self.handles[-1]
        return None

    def prepare(self, request: Request) -> RunHandle:
        """Everything about a start that can be found wrong before anything happens: raises, or gives a handle."""
        return self._preparing.new(request)

    def _env_of(self, handle: RunHandle, cwd: Path) -> dict[str, str]:
        own = nesting_of(self.env, self._above, handle.run_id, limited=self._limited)
        away = cwd != self.project and not (cwd / self.config.loops.loops_dir).is_dir()
        own |= {SOCKET: self._control.path, PROJECT: str(self.project), WORKTREE: str(cwd) if away else ""}
        env = {**self.env, **own, **exports_of(handle.loop, handle.request)}
        return env if handle.worktree is None else env | own_sources(cwd, env)

    def _write_down(self, handle: RunHandle) -> None:
        """Make the run's folder and its first record: from here on, a killed session can be resumed."""
        if handle.journal.seq:
            return
        try:
            with suppress(FileExistsError):
                self.runs.mkdir(parents=True, mode=0o700)
            handle.folder.mkdir(mode=0o700)
            handle.artifacts.mkdir(mode=0o700)
        except OSError as error:
            raise CannotCreateError(f"cannot create {handle.artifacts}: {error.strerror}") from error
        created = {**self._preparing.created(handle), **self._calls.told(), **self._claim()}
        handle.journal.append("run_created", created)
        self._announce(handle)

    def _claim(self) -> dict[str, Any]:
        above = [[one.pid, one.start] for one in self._ancestors]
        return {"owner": identity_to_json(self._identity), "above": above, "socket": self._control.path}

    def _announce(self, handle: RunHandle) -> None:
        handle.journal.flush()
        if handle.ticket is not None and not handle.ticket.granted:
            handle.journal.close()  # a thousand waiting runs must not hold a thousand files

    # --- resuming ------------------------------------------------------------------------------------------

    def resume(self, stored: StoredRun, **changes: Unpack[Changes]) -> RunHandle:
        """Go on with a run that was interrupted or killed; what it left alive is ended first.

        `max_steps` and `max_iterations` replace its caps from here on, `delay` (seconds) the pause between its steps,
        `context` values of its own context (pairs are texts, which take the type of the value that they replace; a
        sub-loop under way keeps what it was handed), `wishes` what its start wished, the session's
        `max_usd`, `max_tokens` and `deadline` its budget, or that of its batch if it has one. `in_doubt` (`rerun`,
        `skip` or `fail`, or that by run id) says what to do with an action that was cut off, in place of its state.

        With `from_state` it goes on at that state of its loop as the file is now, though it may have failed or ended at
        a cap; its captures and counters stay, and values that the file has new are added to its context.

        Raises RefusedError when it lives, has ended for good, ended at a cap or a budget that is not raised, or has an
        action in doubt about which its state wants somebody asked; `ReplayError` when its loop was changed.
        """
        return self.resume_all([stored], **changes)[0]

    def resume_all(self, stored: Iterable[StoredRun], **changes: Unpack[Changes]) -> list[RunHandle]:
        """Go on with all of these runs or, if one of them cannot, with none: see `resume`."""
        wanted = list(stored)
        if any(run.created["overrides"].keys() & {"shared", "budget"} for run in wanted):
            self._purse.remember_all(recovery.stored_runs(self.runs, recovery.run_ids(self.runs)))
        taken = [self._preparing.again(run, changes) for run in wanted]
        for handle in taken:  # one at a time: a thousand runs must not need a thousand open files
            handle.journal.open()
            handle.journal.close()
        return [self.launch(handle) for handle in taken]

    def _take_over(self, handle: RunHandle, stored: StoredRun) -> None:
        """From here on the run is ours, for everybody to see, also while it waits."""
        handle.journal.open()
        if stored.text.torn:
            handle.journal.cut(stored.text.torn)
        handle.journal.append("run_claimed", {**self._claim(), **handle.raised})
        self._announce(handle)

    # --- ending --------------------------------------------------------------------------------------------

    def shut_down(self, signal: int = 0, by: TerminatedBy = "interrupted") -> None:
        """End every run, those that are started later at once: the first call gives children the grace, the
        second none. Never waits."""
        again, self._ended_by = self._ended_by is not None, self._ended_by or (by, signal)
        if again:
            self._grace.cut()
            self.worktrees.hurry()
        for handle in self.handles:
            handle.cancel(by, signal, grace=0 if again else None)

    @property
    def is_ending(self) -> bool:
        return self._ended_by is not None

    def reader(self) -> Reader:
        """The records of all runs: a snapshot of each first, then every record from there on."""
        return self.bus.subscribe([handle.snapshot() for handle in self.handles if handle.run is not None])

    # --- one run -------------------------------------------------------------------------------------------

    async def _run(self, handle: RunHandle) -> None:
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
            self._admission.give_up(handle)
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
        if not self._tidied:
            self._tidied = True
            await sweep.tidy(self.runs, self._mirror, self._grace)
        if handle.stored is not None:
            await self._sweep(handle, handle.stored)
        async with self._admission.admitted(handle):
            self._write_down(handle)
            await self._kin.settle()
            self._purse.check(handle, costs=bool(handle.loop.shared != Budget()))
            async with self._workplaces.use(handle) as cwd:
                await self._drive(handle, cwd)

    async def _drive(self, handle: RunHandle, cwd: Path) -> None:
        failure: Exception | None = None
        handle.grace = Grace(self._grace.seconds)
        handle.desk.attended = self._attended
        spent = handle.stored.spent() if handle.stored else 0.0
        furnish = partial(self._furnish, handle)
        performer = Rooms(furnish, cwd, self._workplaces.worktrees, handle.run_id, handle.journal)
        handle.settle()
        changed = partial(self._changed, handle)
        handle.engine = engine = Engine(handle.journal, self._committer, performer, Clock(spent), self._random, changed)
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
                    self._saver.save(handle)

    def _furnish(self, handle: RunHandle, cwd: Path, *, room: str = "", script: Script | None = None) -> Actions:
        return Actions(
            spawner=self._spawner,
            library=self.library,
            journal=handle.journal,
            log=handle.folder / "output.log",
            cwd=cwd,
            env=self._env_of(handle, cwd),
            run_id=handle.run_id,
            desk=handle.desk,
            settings=self.config,
            grace=handle.grace,
            allow=partial(self._purse.check, handle),
            traffic=self._traffic,
            tell=handle.note_host_waiting,
            heavy=not handle.loop.wishes.no_host_guard,
            room=room,
            script=script,
            git_turn=self._git_turns.setdefault(cwd, anyio.Lock()),
        )

    def _changed(self, handle: RunHandle) -> None:
        self._saver.mark(handle)
        self._kin.mark()

    async def _sweep(self, handle: RunHandle, stored: StoredRun) -> None:
        """End what a killed process of this run left alive, also while it waits: it may be at work in its scope."""
        if not stored.has_begun:
            return
        swept = await sweep.sweep(stored, self._grace)
        pids = {"ended": [one.pid for one in swept.found], "unkillable": [one.pid for one in swept.unkillable]}
        handle.journal.append("swept", pids)
        self._announce(handle)
        sweep.refuse_if_alive(handle.run_id, swept)

    async def _make_way(self, killed: Foreign) -> bool:
        return killed.owner is None or await sweep.make_way(self.runs, killed.run_id, killed.owner, self._grace)

    def _note_defect(self, handle: RunHandle, error: Exception) -> None:
        with suppress(OSError):
            handle.folder.mkdir(parents=True, mode=0o700, exist_ok=True)
            text = handle.secrets.text("".join(traceback.format_exception(error)))
            files.replace_text(handle.folder / "internal-error.log", text)


async def _tick(until: anyio.CancelScope) -> None:
    with until:
        while True:  # noqa: ASYNC110 - to wake up is all that it is for
            await anyio.sleep(TICK)
