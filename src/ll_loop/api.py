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

import json
import os
import signal
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
from msgspec import Struct
from msgspec.structs import asdict

from .core.context import may_read
from .core.effects import Answer, Effect, LoadLoop
from .core.events import Event
from .core.frame import Run
from .core.machine import with_overrides
from .core.model import EMPTY
from .core.replay import INPUTS
from .core.simulate import Perform, walk
from .errors import LoopError, NotFoundError, Problem, RefusedError, UsageError
from .files.config import DEFAULT, Config, load_config, read_config
from .files.library import Entry, Library
from .files.places import find_project
from .files.reports import Report, check_all, expand, folder_of, is_pattern, report_on
from .run import detached, remote, rewind, upkeep
from .run.asking import known_hints
from .run.bus import Reader
from .run.detached import Errand, Resumption
from .run.follow import Follower
from .run.handle import RunHandle
from .run.inputs import inputs_of
from .run.mirror import Mirror
from .run.preparing import InDoubt
from .run.probes import load_loop
from .run.procs import own_identity
from .run.rebuild import doubt, rebuild
from .run.recovery import StoredRun, failed_requests, find_run, resumable_runs, run_ids, stored_runs
from .run.request import Request, RunResult
from .run.session import Session
from .run.trial import Trial, Tried
from .run.upkeep import Cleaner, Pruned, Remains, Rule

if TYPE_CHECKING:
    from .files.authoring import Created as Created
    from .files.authoring import Installed as Installed
    from .files.fixes import Fixed as Fixed
    from .files.fragments import FragmentLibrary as FragmentLibrary
    from .files.renaming import Change as Change
    from .files.renaming import Renaming as Renaming

__all__ = [
    "Config",
    "Doubt",
    "Entry",
    "Errand",
    "Library",
    "Pruned",
    "Reader",
    "Remains",
    "Report",
    "Request",
    "Resumption",
    "RunHandle",
    "RunResult",
    "Session",
    "Setting",
    "StoredRun",
    "Trial",
    "Tried",
    "approve",
    "can_be_mended",
    "carry_on",
    "check_all",
    "cleanup",
    "create",
    "doubts",
    "expand",
    "find_project",
    "find_run",
    "fix",
    "folder_of",
    "follow",
    "fork",
    "fragments",
    "history",
    "install",
    "interrupts",
    "is_pattern",
    "is_public",
    "library_of",
    "load_config",
    "may_read",
    "prune",
    "queue",
    "read_config",
    "rename",
    "replay",
    "report_on",
    "resolved",
    "resume",
    "run_many",
    "schema",
    "settings",
    "signals",
    "simulate",
    "start_in_background",
    "status",
    "stop",
    "stored_run",
    "stored_state",
    "templates",
    "why",
    "write_fixed",
    "write_schema",
]

_BOOKKEEPING = INPUTS | {"run_created", "loop_defined", "run_claimed", "action_spawned"}


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


def resume(
    session: Session,
    wanted: str | None = None,
    *,
    max_steps: int | None = None,
    max_iterations: int | None = None,
    failed: bool = False,
    no_host_guard: bool = False,
    host_guard_budget_mb: float | None = None,
    in_doubt: InDoubt | None = None,
    from_state: str | None = None,
) -> list[RunHandle]:
    """Go on with a run (by id, by the beginning of its id, `latest`, or its loop's name), or a batch's unfinished.

    Without `wanted`: all that the last batch left unfinished. With `failed`, those of the batch (or the run) that ended
    for good without success are started again as new runs, with what was asked for then. What is given of the rest
    (see `Request`) replaces what was asked for then. `in_doubt` and `from_state` (of one run alone): see
    `Session.resume`. Raises NotFoundError if there is nothing, RefusedError if it is still running, has ended for good,
    or has an action in doubt about which its state wants somebody asked (`doubts` tells which).
    """
    caps = _given(max_steps=max_steps, max_iterations=max_iterations)
    wishes = _given(no_host_guard=no_host_guard or None, host_guard_budget_mb=host_guard_budget_mb)
    if failed and from_state is not None:
        raise UsageError("what failed is started anew, not from a state", hint="say --from or --failed")
    if failed:
        return start_all(session, failed_requests(session.runs, wanted, {**caps, **wishes}, session.env))
    found = resumable_runs(session.runs, wanted, raised=caps.keys())
    if from_state is not None and len(found) > 1:
        ids = ", ".join(run.run_id for run in found)
        raise UsageError(f"{len(found)} runs would go on from `{from_state}`: {ids}", hint="say which one")
    return session.resume_all(found, **caps, wishes=wishes, in_doubt=in_doubt or EMPTY, from_state=from_state)


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
        for run in resumable_runs(_runs_of(project), wanted):
            with suppress(LoopError):
                at = doubt(run, rebuild(run, library))
                if at is not None and at.current.on_resume == "ask":
                    found.append(Doubt(run.run_id, run.loop, at.state, at.current.template, at.attempt))
    return found


def carry_on(session: Session, wanted: Resumption) -> list[RunHandle]:
    """Go on with what a `Resumption` says: see `resume`."""
    return resume(session, **asdict(wanted))


async def start_in_background(errand: Errand) -> dict[str, Any]:
    """Start runs in a process of their own that outlives this one; returns once it is known what became of the start.

    Keys: `pid`, `log` (where that process writes), `exit_code` (0, or that of what was refused) and `runs`, for each
    run_id, loop, status (`running`, `queued`, or how it ended), `place` in the line, `waits_for`, and for one that is
    over `exit_code`, `error`, `hint`. What is wrong with the errand itself is said on stderr, and `runs` is empty.
    Cancelled, the runs end as well. RefusedError if that process ended without a word.
    """
    return await detached.send(errand)


def history(project: Path | str | None = None, loop: str | None = None, *, limit: int | None = None) -> list[StoredRun]:
    """The runs of a project, newest first, of one loop if `loop` is given; what cannot be read is left out.

    At most `limit` of them: reading stops there.
    """
    runs = _runs_of(project)
    found = stored_runs(runs, reversed(run_ids(runs)))
    return list(islice((run for run in found if loop is None or run.loop == loop), limit))


async def stop(
    project: Path | str | None,
    wanted: str | None = None,
    *,
    all: bool = False,  # noqa: A002 - the word of the command line
    grace: float | None = None,
    timeout: float | None = None,
) -> list[RunResult]:
    """End live runs of a project, in whichever process they are; their results say `user_stopped`, exit code 1.

    `wanted` is an id, the unambiguous beginning of one, `latest`, or a loop's exact name; `all` means every live run,
    or every one of that loop. Other runs go on, also those in the same process. `grace` replaces that of their session;
    `timeout` bounds the wait; both are seconds. Cancelled, it stops waiting; the runs end all the same.

    Raises NotFoundError, UsageError (it is not clear which run is meant), and RefusedError (the run does not live, its
    process does not answer, time is up).
    """
    return await remote.stop(_runs_of(project), wanted, every=all, grace=grace, timeout=timeout)


async def status(project: Path | str | None = None, wanted: str | None = None) -> list[dict[str, Any]]:
    """Where the runs of a project are, oldest first: all that are not over, or the one that `wanted` means.

    Keys: run_id, loop, status, state, step, waits_for, question (what it asks a person, or None), since, pid (0 when no
    process has the run). A live process is asked, what is dead is read from its journal. Raises NotFoundError.
    """
    return await remote.status(_runs_of(project), wanted)


async def why(project: Path | str | None, wanted: str) -> dict[str, Any]:
    """What a run waits for, who holds that, and since when; of a dead run, that it is dead and what `resume` would do.

    Keys: run_id, loop, status, state, step, pid, `reason`, `since`, and for each reason what belongs to it. Reasons:
    `scope` (`holders`, `place`), `slot` (as many run as may), `turn`, `action` and `model` (`action`: command, pid,
    since, last_output, attempt, processes), `host` (`waits_for`: a call that has not begun yet; `action`), `pause`
    (`pause`: seconds and why), `question`, `ending` (`ending`: by whom, since, grace; `action` with the processes that
    still live), `working`, `silent` (its process does not answer), `dead` (`owner`, `left_alive`, `resume`) and `over`
    (`terminated_by`, `resume`). Raises NotFoundError, StorageError.
    """
    return await remote.explain(_runs_of(project), wanted, Library(Path(project or ".")))


async def queue(project: Path | str | None = None) -> list[dict[str, Any]]:
    """The runs of a project that wait for a scope, or for a slot of their session, in the order of asking.

    Keys as those of `status`; `place` is how many are before it, `waiting_since` when it began to wait.
    """
    entries = await status(project)
    waiting = [entry for entry in entries if entry["status"] == "queued" and entry["pid"]]
    return sorted(waiting, key=lambda entry: (entry["since"], entry["place"]))


def follow(project: Path | str | None, wanted: str) -> Follower:
    """The records of a run from its first one, in batches: what there is, then what comes, until the run has ended.

        async with follow("~/project", "latest") as batches:
            async for records in batches:
                ...

    A dead run's end with what it wrote last. Nothing is missed and nothing comes twice, however late one begins.
    Raises NotFoundError, StorageError.
    """
    return Follower(_runs_of(project), wanted)


async def cleanup(project: Path | str | None = None, *, act: bool = False, grace: float = 5.0) -> list[Remains]:
    """What killed processes left behind in a project: processes, scripts, locks, sockets, worktrees. Told, not touched.

    With `act` it is dealt with: processes are ended (`grace` in seconds), files removed, worktrees of runs that are
    over removed or saved on their branch. Runs that live are never touched; those that were killed can be resumed.
    """
    session = Session(project)
    mirror = Mirror(session.loops_dir / ".running", identity=own_identity())
    return await Cleaner(session.runs, mirror, session.worktrees, act=act, grace=grace).clean()


def prune(
    project: Path | str | None = None,
    *,
    keep: int | None = None,
    older_than: timedelta | None = None,
    unfinished: bool = False,
    act: bool = False,
) -> list[Pruned]:
    """The runs that a rule lets go, oldest first; with `act` they are moved to `.loops/archive`, nothing is deleted.

    The rule: beyond the newest `keep` of their loop, and begun before `older_than`; of two conditions both must hold.
    Runs that live or whose worktree is kept always stay, those that could go on do unless `unfinished`. UsageError
    without a condition.
    """
    return upkeep.prune(_runs_of(project), Rule(keep, older_than, unfinished), act=act)


def replay(project: Path | str | None, wanted: str) -> Iterator[dict[str, Any]]:
    """Each input of a run's journal in its order, and what the machine makes of it: nothing is run, nothing written.

    Keys: `seq`, `ts`, `at` (the run's clock), `input`, `answer`, `from` and `to` (states, the root's first), `step`,
    `events`, `effect` (what the machine asks for next, or None) and `terminated_by`. Raises NotFoundError,
    StorageError, and ReplayError where the loop, as its file is now, would have gone another way.
    """
    run = stored_run(project, wanted)
    return rewind.replayed_steps(run, Library(Path(project or ".")))


def fork(project: Path | str | None, wanted: str, at: int) -> StoredRun:
    """A new run that begins with all that a run had gone through up to record `at` of its journal; `resume` goes on.

    The original stays as it is, and may be alive. Its artifacts are copied as they are now, its worktree is not: the
    new run gets one of its own. Raises NotFoundError (no such run, no such record), RefusedError (it had ended there),
    ReplayError (its loop was changed), CannotCreateError.
    """
    return rewind.fork(_runs_of(project), wanted, at, Library(Path(project or ".")))


async def approve(project: Path | str | None, wanted: str, answer: str, text: str = "") -> dict[str, Any]:
    """Answer what a live run asks a person, in whichever process it is: `yes`, `no` with a reason, `edit` with a text.

    `wanted` is an id, the unambiguous beginning of one, `latest`, or a loop's exact name. Returns the question (`id`,
    `state`, `text`) once the run has taken the answer. Raises NotFoundError, UsageError (no such answer, several runs
    ask), RefusedError (it asks nothing, does not live, does not answer).
    """
    return await remote.approve(_runs_of(project), wanted, answer, text)


class Setting(Struct, frozen=True):
    """A key of the configuration: its value, where that comes from, what it does, and whether it does it yet."""

    key: str
    value: Any
    origin: str
    effect: str
    works: bool


def settings(config: Config) -> list[Setting]:
    """Every key that concerns loops, those that have an effect first."""
    from .files.keycheck import KEYS  # types and texts that no run needs

    found = []
    for info in KEYS:
        given = config.given.get(info.name)
        value, origin = (info.default, DEFAULT) if given is None else (given.value, given.origin)
        found.append(Setting(info.name, value, origin, info.effect, info.works))
    return found


def stored_run(project: Path | str | None, wanted: str) -> StoredRun:
    """A run by id, by an unambiguous beginning of an id, `latest`, or a loop's exact name (its newest run).

    NotFoundError, and StorageError if its journal is damaged.
    """
    return find_run(_runs_of(project), wanted)


def _runs_of(project: Path | str | None, config: Config | None = None) -> Path:
    folder = Path(project or ".").resolve()
    return folder / (config or load_config(folder)).loops.loops_dir / "runs"


def stored_state(project: Path | str | None, run_id: str, *, config: Config | None = None) -> dict[str, Any]:
    """What the `state.json` of a run shows, without its context; empty for a run that never began.

    It may lag behind a live run by a moment: `status` knows better where that is. `config`, if it is at hand, saves
    reading it again.
    """
    try:
        text = (_runs_of(project, config) / run_id / "state.json").read_text(encoding="utf-8")
        document: dict[str, Any] = json.loads(text)
    except (OSError, ValueError):
        return {}
    document.pop("context", None)
    return document


def library_of(project: Path, env: Mapping[str, str] | None = None) -> Library:
    """The loops of a project, checked with an eye on the agent host that runs would ask; `env` says which that is."""
    library, config = Library(project), load_config(project, env)
    library.model_hints = known_hints(os.environ if env is None else env, config.orchestration)
    return library


def can_be_mended(problem: Problem) -> bool:
    """Whether there may be a repair for a complaint; whether it helps, only `fix` can tell."""
    from .files import repairs, restructure  # here and below: runs need none of it

    return problem.rule in repairs.REPAIRS or problem.rule in restructure.STRUCTURAL


def fix(library: Library, path: Path) -> Fixed:
    """Mend a copy of the loop file `path`, which exists. Only what stands in that very file is mended."""
    from .files import fixes

    return fixes.fix(library, path)


def write_fixed(fixed: Fixed) -> None:
    """Put the mended file in place of the old one, all at once: a reader sees the old text or the new one.

    Raises RefusedError if the file was changed meanwhile, CannotCreateError if the disk refuses; both leave it alone.
    """
    from .files import fixes

    fixes.write_fixed(fixed)


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


def is_public(record: Mapping[str, Any]) -> bool:
    """Whether a record of a run is an event for readers, and not bookkeeping that only a resume needs."""
    return record["event"] not in _BOOKKEEPING


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


# --- writing loops -----------------------------------------------------------------------------------------
# What only authors need is imported when it is needed: a run must not wait for it.


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of loop files, as a document."""
    from . import __version__
    from .files.schema import schema

    return schema(__version__)


def write_schema(library: Library) -> Path:
    """Write the schema where the first line of new loops looks for it; its path. CannotCreateError."""
    from .files import authoring

    return authoring.write_schema(library)


def templates() -> list[str]:
    """What `create` can start from, besides loops."""
    from .files import starters

    return starters.names()


def create(library: Library, name: str, start: str = "check-fix") -> Created:
    """Write a new loop of the project that begins with a template or inherits from another loop.

    Raises UsageError (a name that can't be), CannotCreateError (there is such a loop), NotFoundError (no such start),
    DefinitionError (the loop to start from is wrong).
    """
    from .files import authoring

    return authoring.create(library, name, start)


def install(library: Library, name: str) -> Installed:
    """Copy a built-in loop into the project, with the built-in files that it uses.

    Raises NotFoundError, and CannotCreateError if the project has a loop of that name.
    """
    from .files import authoring

    return authoring.install(library, name)


def rename(library: Library, old: str, new: str, *, dry_run: bool = False) -> Renaming:
    """Give a loop of the project another name, in its file and wherever other files of the project name it.

    With `dry_run` nothing is written. Raises NotFoundError, UsageError, CannotCreateError (there is a loop of the new
    name), RefusedError (a run would miss the old name), StorageError.
    """
    from .files import renaming

    plan = renaming.plan(library, old, new)
    runs = library.loops / "runs"
    alive = [run for run in stored_runs(runs, run_ids(runs)) if run.is_alive]
    using = [run.run_id for run in alive if Path(run.created["path"]) in plan.affected]
    if using:
        raise RefusedError(f"`{old}` is in use by {', '.join(using)}", hint="wait for it, or `ll-loop stop` it")
    if not dry_run:
        renaming.apply(plan)
    return plan


def fragments(library: Library, name: str | None = None) -> list[FragmentLibrary]:
    """The fragment libraries in reach, or the one that `name` means. NotFoundError, DefinitionError."""
    from .files import fragments

    return fragments.fragment_libraries(library) if name is None else [fragments.fragment_library(library, name)]


def resolved(library: Library, name: str) -> tuple[dict[str, Any], str]:
    """A loop with all that it takes from other places written out: as a document, and as YAML with the places.

    Raises NotFoundError, DefinitionError.
    """
    from .files import resolved
    from .files.nodes import plain

    library.load(name)
    document = library.document(name)
    return plain(resolved.resolved(document)), resolved.resolved_text(document)
