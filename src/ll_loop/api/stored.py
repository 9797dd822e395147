"""Runs of any process, under way or over: where they are, what they wait for, what they wrote, what they left."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from ..core.replay import INPUTS
from ..files.config.load import Config
from ..files.library import Library
from ..run import upkeep
from ..run.children.procs import own_identity
from ..run.ipc import remote
from ..run.ipc.follow import Follower
from ..run.journals import rewind
from ..run.journals.recovery import StoredRun, find_run, run_ids, stored_runs
from ..run.journals.request import RunResult
from ..run.locking.mirror import Mirror
from ..run.session import Session
from ..run.upkeep import Cleaner, Pruned, Remains, Rule
from .project import runs_of

_BOOKKEEPING = INPUTS | {"run_created", "loop_defined", "run_claimed", "action_spawned"}


def history(project: Path | str | None = None, loop: str | None = None, *, limit: int | None = None) -> list[StoredRun]:
    """The runs of a project, newest first, of one loop if `loop` is given; what cannot be read is left out.

    At most `limit` of them: reading stops there.
    """
    runs = runs_of(project)
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
    return await remote.stop(runs_of(project), wanted, every=all, grace=grace, timeout=timeout)


async def status(project: Path | str | None = None, wanted: str | None = None) -> list[dict[str, Any]]:
    """Where the runs of a project are, oldest first: all that are not over, or the one that `wanted` means.

    Keys: run_id, loop, status, state, step, waits_for, question (what it asks a person, or None), since, pid (0 when no
    process has the run). A live process is asked, what is dead is read from its journal. Raises NotFoundError.
    """
    return await remote.status(runs_of(project), wanted)


async def why(project: Path | str | None, wanted: str) -> dict[str, Any]:
    """What a run waits for, who holds that, and since when; of a dead run, that it is dead and what `resume` would do.

    Keys: run_id, loop, status, state, step, pid, `reason`, `since`, and for each reason what belongs to it. Reasons:
    `scope` (`holders`, `place`), `slot` (as many run as may), `turn`, `action` and `model` (`action`: command, pid,
    since, last_output, attempt, processes), `host` (`waits_for`: a call that has not begun yet; `action`), `pause`
    (`pause`: seconds and why), `question`, `ending` (`ending`: by whom, since, grace; `action` with the processes that
    still live), `working`, `silent` (its process does not answer), `dead` (`owner`, `left_alive`, `resume`) and `over`
    (`terminated_by`, `resume`). Raises NotFoundError, StorageError.
    """
    return await remote.explain(runs_of(project), wanted, Library(Path(project or ".")))


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
    return Follower(runs_of(project), wanted)


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
    return upkeep.prune(runs_of(project), Rule(keep, older_than, unfinished), act=act)


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
    return rewind.fork(runs_of(project), wanted, at, Library(Path(project or ".")))


async def approve(project: Path | str | None, wanted: str, answer: str, text: str = "") -> dict[str, Any]:
    """Answer what a live run asks a person, in whichever process it is: `yes`, `no` with a reason, `edit` with a text.

    `wanted` is an id, the unambiguous beginning of one, `latest`, or a loop's exact name. Returns the question (`id`,
    `state`, `text`) once the run has taken the answer. Raises NotFoundError, UsageError (no such answer, several runs
    ask), RefusedError (it asks nothing, does not live, does not answer).
    """
    return await remote.approve(runs_of(project), wanted, answer, text)


def stored_run(project: Path | str | None, wanted: str) -> StoredRun:
    """A run by id, by an unambiguous beginning of an id, `latest`, or a loop's exact name (its newest run).

    NotFoundError, and StorageError if its journal is damaged.
    """
    return find_run(runs_of(project), wanted)


def stored_state(project: Path | str | None, run_id: str, *, config: Config | None = None) -> dict[str, Any]:
    """What the `state.json` of a run shows, without its context; empty for a run that never began.

    It may lag behind a live run by a moment: `status` knows better where that is. `config`, if it is at hand, saves
    reading it again.
    """
    try:
        text = (runs_of(project, config) / run_id / "state.json").read_text(encoding="utf-8")
        document: dict[str, Any] = json.loads(text)
    except (OSError, ValueError):
        return {}
    document.pop("context", None)
    return document


def is_public(record: Mapping[str, Any]) -> bool:
    """Whether a record of a run is an event for readers, and not bookkeeping that only a resume needs."""
    return record["event"] not in _BOOKKEEPING
