"""The orchestrator: one task a run, scopes in the order of asking, one shutdown for all.

A run goes through admission (its scope in memory, a slot, its scope on disk), its workplace (the project or a worktree
of its own), the engine, and back out in the reverse order, whatever happens (`runner`). What runs share is in `means`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import anyio
import anyio.abc

from ..core.model import TerminatedBy
from ..errors import LoopError
from ..files.config.load import Config
from ..files.library import Library
from .admission import foreseen
from .bus import Reader
from .handle import RunHandle
from .journals import recovery
from .journals.recovery import StoredRun
from .journals.request import Request, limits
from .means import Means
from .preparing import Changes, Preparing
from .results import result_of_stored
from .runner import Runner

TICK = 0.2
"""Seconds between two wake-ups of an event loop that is somebody else's: a notebook's interrupt wakes nobody."""


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
        self._means = means = Means(
            project,
            jobs=jobs,
            host_slots=host_slots,
            grace=grace,
            env=env,
            library=library,
            config=config,
            subreaper=subreaper,
            attended=attended,
            seed=seed,
            workplace=workplace,
        )
        self.project, self.config, self.library, self.env = means.project, means.config, means.library, means.env
        self.loops_dir, self.runs, self.worktrees = means.loops_dir, means.runs, means.worktrees
        self.bus, self.batch, self.handles = means.bus, means.batch, means.handles
        self._subreaper = subreaper
        self._preparing = Preparing(means, limits(max_usd, max_tokens, deadline))
        self._runner = Runner(means, self._preparing)
        self._ended_by: tuple[TerminatedBy, int] | None = None
        self._services: anyio.abc.TaskGroup | None = None
        self._tasks: anyio.abc.TaskGroup | None = None
        self._life: AbstractAsyncContextManager[None] | None = None
        self._task = 0

    def __repr__(self) -> str:
        running = sum(handle.status == "running" for handle in self.handles)
        waiting = sum(handle.status == "queued" for handle in self.handles)
        return f"<Session {running} running, {waiting} waiting>"

    async def __aenter__(self) -> Self:
        self._life = self._living()
        self._task = anyio.get_current_task().id
        self._means.purse.begin()
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
        with self._means.spawner if self._subreaper else nullcontext():
            async with anyio.create_task_group() as self._services:
                self._services.start_soon(self._means.saver.serve)
                self._services.start_soon(self._means.kin.serve)
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
                    self._means.control.close()
                    self._means.saver.close()
                    self.bus.close()
                    with anyio.CancelScope(shield=True):  # bounded by itself
                        await self._means.kin.settle()
                    self._means.kin.close()
                    if self._subreaper:
                        await self._means.spawner.end_strays()  # bounded and shielded by itself
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
        self._means.control.listen(self._services)
        try:
            self._means.admission.take_place(handle)
            if handle.stored is not None:
                self._runner.take_over(handle, handle.stored)
            elif handle.request.queue:
                self._runner.write_down(handle)
        except BaseException:
            self._means.admission.give_up(handle)
            handle.journal.close()
            raise
        self.handles.append(handle)
        self._tasks.start_soon(self._runner.run, handle, name=handle.run_id)
        if self._ended_by is not None:
            handle.cancel(*self._ended_by)
        return handle

    def _of_earlier_attempt(self, handle: RunHandle) -> RunHandle | None:
        for stored in self._means.calls.earlier(handle.loop.path, handle.request, handle.secrets):
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

    def foresee(self, handles: Sequence[RunHandle]) -> list[list[str]]:
        """The loops for which each of these prepared runs would have to wait if all were launched in this order."""
        return foreseen(handles, fold_case=self._means.folds_case)

    # --- resuming ------------------------------------------------------------------------------------------

    def resume(self, stored: StoredRun, **changes: Unpack[Changes]) -> RunHandle:
        """Go on with a run that was interrupted or killed; what it left alive is ended first.

        `max_steps` and `max_iterations` replace its caps from here on, `delay` (seconds) the pause between its steps,
        `prompt_size_warn` and `handoff_threshold` what its start said (see `Request`), `context` values of its own
        context (pairs are texts, which take the type of the value that they replace; a sub-loop under way keeps what it
        was handed), `wishes` what its start wished, the session's `max_usd`, `max_tokens` and `deadline` its budget, or
        that of its batch if it has one. `in_doubt` (`rerun`, `skip` or `fail`, or that by run id) says what to do with
        an action that was cut off, in place of its state.

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
            self._means.purse.remember_all(recovery.stored_runs(self.runs, recovery.run_ids(self.runs)))
        taken = [self._preparing.again(run, changes) for run in wanted]
        for handle in taken:  # one at a time: a thousand runs must not need a thousand open files
            handle.journal.open()
            handle.journal.close()
        return [self.launch(handle) for handle in taken]

    # --- ending --------------------------------------------------------------------------------------------

    def shut_down(self, signal: int = 0, by: TerminatedBy = "interrupted") -> None:
        """End every run, those that are started later at once: the first call gives children the grace, the
        second none. Never waits."""
        again, self._ended_by = self._ended_by is not None, self._ended_by or (by, signal)
        if again:
            self._means.grace.cut()
            self.worktrees.hurry()
        for handle in self.handles:
            handle.cancel(by, signal, grace=0 if again else None)

    @property
    def is_ending(self) -> bool:
        return self._ended_by is not None

    def reader(self) -> Reader:
        """The records of all runs: a snapshot of each first, then every record from there on."""
        return self.bus.subscribe([handle.snapshot() for handle in self.handles if handle.run is not None])


async def _tick(until: anyio.CancelScope) -> None:
    with until:
        while True:  # noqa: ASYNC110 - to wake up is all that it is for
            await anyio.sleep(TICK)
