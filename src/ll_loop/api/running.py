"""Starting runs, going on with them, ending them; and walking through a loop without running it."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Generator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
from msgspec import Struct
from msgspec.structs import asdict

from ..core.context import Overrides
from ..core.effects import Answer, Effect, LoadLoop
from ..core.events import Event
from ..core.frame import Run
from ..core.machine import with_overrides
from ..core.model import EMPTY
from ..core.simulate import Perform, walk
from ..errors import DefinitionError, LoopError, NotFoundError, Problem, UsageError
from ..files.config.load import load_config
from ..files.library import Library
from ..files.reports import MISSING
from ..run import detached
from ..run.detached import Errand, Resumption
from ..run.handle import RunHandle
from ..run.inputs import inputs_of
from ..run.journals.rebuild import doubt, rebuild
from ..run.journals.recovery import failed_requests, resumable_runs
from ..run.journals.request import Request, RunResult
from ..run.performing.probes import load_loop
from ..run.preparing import Changes, InDoubt
from ..run.session import Session
from .project import library_of, runs_of


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
    if isinstance(loops, str):
        raise UsageError("loops are given as a list", hint=f"run_many([{loops!r}])")
    async with Session(project, jobs=jobs, grace=grace) as session:
        handles = start_all(session, [Request(loop) if isinstance(loop, str) else loop for loop in loops])
        return await results(session, handles, fail_fast=fail_fast)


def start_all(session: Session, requests: Sequence[Request]) -> list[RunHandle]:
    """Start all or none: every request is looked at before the first begins."""
    prepared: list[RunHandle] = []
    wrong: list[LoopError] = []
    for request in requests:
        try:
            prepared.append(session.prepare(request))
        except LoopError as error:
            wrong.append(error)
    if wrong:
        raise _together(wrong)
    return [session.launch(handle) for handle in prepared]


def _together(wrong: Sequence[LoopError]) -> LoopError:
    """One error for all of them: what is missing and what is wrong in files is told together, else the first."""
    kinds = {type(error) for error in wrong}
    if len(wrong) == 1 or not kinds <= {NotFoundError, DefinitionError}:
        return wrong[0]
    if kinds == {NotFoundError}:
        return NotFoundError("\n".join(dict.fromkeys(map(str, wrong))), hint=wrong[0].hint)
    names: list[str] = []
    problems: list[Problem] = []
    for error in wrong:
        if isinstance(error, DefinitionError):
            names.append(error.name)
            problems += error.problems
        else:
            problems.append(Problem("error", MISSING, "<root>", str(error), hint=error.hint))
    return DefinitionError(", ".join(names), tuple(dict.fromkeys(problems)))


async def results(session: Session, handles: Sequence[RunHandle], *, fail_fast: bool = False) -> list[RunResult]:
    """The results of runs, once all have ended. With `fail_fast` the first bad one ends the rest."""

    async def watch(handle: RunHandle) -> None:
        if not (await handle.wait()).ok and fail_fast and not session.is_ending:
            session.shut_down()

    async with anyio.create_task_group() as tasks:
        for handle in handles:
            tasks.start_soon(watch, handle)
    return [await handle.wait() for handle in handles]


def resume(
    session: Session,
    wanted: str | None = None,
    *,
    max_steps: int | None = None,
    max_iterations: int | None = None,
    delay: float | None = None,
    prompt_size_warn: int | None = None,
    handoff_threshold: int | None = None,
    context: Overrides = (),
    failed: bool = False,
    no_host_guard: bool = False,
    host_guard_budget_mb: float | None = None,
    in_doubt: InDoubt | None = None,
    from_state: str | None = None,
) -> list[RunHandle]:
    """Go on with a run (by id, by the beginning of its id, `latest`, or its loop's name), or a batch's unfinished.

    Without `wanted`: all that the last batch left unfinished. With `failed`, those of the batch (or the run) that ended
    for good without success are started again as new runs, with what was asked for then. What is given of the rest
    (see `Request`) replaces what was asked for then, of the context value by value. `in_doubt` and `from_state` (of one
    run alone): see `Session.resume`. Raises NotFoundError if there is nothing, RefusedError if it is still running, has
    ended for good, or has an action in doubt about which its state wants somebody asked (`doubts` tells which).
    """
    caps = _given(max_steps=max_steps, max_iterations=max_iterations)
    wishes = _given(no_host_guard=no_host_guard or None, host_guard_budget_mb=host_guard_budget_mb)
    more = _given(delay=delay, prompt_size_warn=prompt_size_warn, handoff_threshold=handoff_threshold)
    if failed and from_state is not None:
        raise UsageError("what failed is started anew, not from a state", hint="say --from or --failed")
    if failed:
        asked = failed_requests(session.runs, wanted, {**caps, **wishes, **more}, session.env)
        return start_all(session, [request.but_with(context) for request in asked])
    found = resumable_runs(session.runs, wanted, raised=caps.keys())
    if from_state is not None and len(found) > 1:
        ids = ", ".join(run.run_id for run in found)
        raise UsageError(f"{len(found)} runs would go on from `{from_state}`: {ids}", hint="say which one")
    changes: Changes = {"context": context, "wishes": wishes, "in_doubt": in_doubt or EMPTY, "from_state": from_state}
    return session.resume_all(found, **changes, **caps, **more)


def _given(**asked: Any) -> dict[str, Any]:
    return {name: value for name, value in asked.items() if value is not None}


class Doubt(Struct, frozen=True):
    """An action that was cut off while nobody knows how far it came, in a state that wants somebody asked."""

    run_id: str
    loop: str
    state: str
    action: str
    attempt: int


def doubts(project: Path | str | None = None, wanted: str | None = None) -> list[Doubt]:
    """What somebody has to decide before the runs that `wanted` means can go on: see `resume` and its `in_doubt`.

    What cannot be resumed has no doubts: `resume` says why it cannot.
    """
    library, found = library_of(Path(project or ".")), []
    with suppress(NotFoundError):
        for run in resumable_runs(runs_of(project), wanted):
            with suppress(LoopError):
                at = doubt(run, rebuild(run, library))
                if at is not None and at.current.on_resume == "ask":
                    found.append(Doubt(run.run_id, run.loop, at.state, at.current.template, at.attempt))
    return found


def carry_on(session: Session, wanted: Resumption) -> list[RunHandle]:
    """Go on with what a `Resumption` says: see `resume`."""
    given = asdict(wanted)
    return resume(session, context=given.pop("texts"), **given)


async def start_in_background(errand: Errand) -> dict[str, Any]:
    """Start runs in a process of their own that outlives this one; returns once it is known what became of the start.

    Keys: `pid`, `log` (where that process writes), `exit_code` (0, or that of what was refused) and `runs`, for each
    run_id, loop, status (`running`, `queued`, or how it ended), `place` in the line, `waits_for`, and for one that is
    over `exit_code`, `error`, `hint`. What is wrong with the errand itself is said on stderr, and `runs` is empty.
    Cancelled, the runs end as well. RefusedError if that process ended without a word.
    """
    return await detached.send(errand)


def simulate(library: Library, request: Request, perform: Perform) -> Generator[Event, None, Run]:
    """Walk through a loop without running, waiting or writing anything: `perform` says how each action ends.

    Yields the events as they come about; the generator's value is the run as it ended. `core.simulate` has performers
    that play a scenario or a script; sub-loops are found in the library. Raises NotFoundError for a missing loop or
    input, DefinitionError.
    """
    loop = with_overrides(library.load(request.name).loop, request.overrides())
    run_dir = f"{library.loops / 'runs' / 'simulated'}/"
    inputs = inputs_of(loop, request, library.project, load_config(library.project), run_dir)

    def answer(effect: Effect, run: Run) -> Answer:
        if isinstance(effect, LoadLoop):
            return load_loop(library, effect.name, effect.beside, {})
        return perform(effect, run)

    return walk(loop, answer, context=inputs.context, extras=inputs.extras)


@asynccontextmanager
async def signals(session: Session) -> AsyncIterator[None]:
    """While inside: the first SIGINT, SIGTERM or SIGHUP ends all runs within the grace, the second at once.

    Only in the main thread of a program of one's own.
    """
    failure: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        await tasks.start(_obey, session)
        try:
            yield
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001 - raised again below, without a group around it
            failure = error
        finally:
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


@asynccontextmanager
async def interrupts() -> AsyncIterator[AsyncIterator[signal.Signals]]:
    """While inside: Ctrl-C (SIGINT) and SIGTERM come as values. Only in the main thread of a program of one's own."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
        yield received


async def _obey(session: Session, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as received:
        task_status.started()
        async for number in received:
            session.shut_down(int(number))
