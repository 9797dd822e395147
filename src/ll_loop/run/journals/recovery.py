"""Runs as the disk knows them: what their journals tell of them, listing, looking up by id."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from ...core.machine import CAPS, RESUMABLE
from ...core.model import EMPTY
from ...core.nearest import question
from ...core.tally import Tally, tally_from_json
from ...errors import LoopError, NotFoundError
from ..children import procs
from ..children.procs import Identity
from . import journal
from .journal import Ends, JournalText, Record
from .request import Request, age_key
from .secrecy import refuse_missing, secrets_of

LATEST = "latest"
IN_USE = ("worktree_created", "worktree_leaving")
"""What was last written about a worktree of which nobody knows what became."""
FAILED = frozenset({"failed", "timed_out"})
"""Statuses of runs that ended for good without success."""


class StoredRun:
    """A run folder: what its journal said when this was made, and whether the process that owns it lives."""

    def __init__(self, folder: Path) -> None:
        """StorageError if nothing can be known of the run."""
        self.folder = folder
        self._ends = Ends(folder / journal.NAME)

    def __repr__(self) -> str:
        return f"<StoredRun {self.run_id}, {self.status}>"

    @cached_property
    def text(self) -> JournalText:
        """Every record. StorageError if the journal is damaged anywhere but in its last line."""
        return self._ends.text()

    @property
    def run_id(self) -> str:
        return self.folder.name

    @property
    def created(self) -> Record:
        return self._ends.first

    @property
    def loop(self) -> str:
        return str(self.created["loop"])

    @property
    def batch(self) -> str:
        return str(self.created["batch"])

    @property
    def parent(self) -> str:
        """The run whose action started it, empty if none did. When that goes on, its action starts another."""
        return str(self.created.get("parent", ""))

    @property
    def owner(self) -> Identity:
        """The process that last worked on it."""
        return identity_from(self._claim["owner"])

    @property
    def socket(self) -> str:
        """Where that process listens (`ll_loop.run.ipc.control`); empty if nowhere."""
        return str(self._claim.get("socket", ""))

    @property
    def is_alive(self) -> bool:
        return self._ended_by is None and procs.is_alive(self.owner)

    @property
    def completed(self) -> Record | None:
        """The last `loop_complete` of the run itself, unless somebody has taken the run up again after that."""
        last = self._last("loop_complete", "run_claimed", "run_resumed")
        return last if last is not None and last["event"] == "loop_complete" else None

    @property
    def withdrawn(self) -> Record | None:
        """How the last process gave the run up before it could go on, if that is what happened."""
        last = self._last("run_withdrawn", "run_claimed", "run_resumed")
        return last if last is not None and last["event"] == "run_withdrawn" else None

    @property
    def is_over(self) -> bool:
        """Whether it was ended, by itself or by somebody; what was killed is not over."""
        return self._ended_by is not None

    @property
    def status(self) -> str:
        """The status word; a run whose owner died is `interrupted`, one that never began `queued`."""
        ended = self._ended_by
        if ended is not None:
            return str(ended["status"])
        if not procs.is_alive(self.owner):
            return "interrupted"
        last = self._last("run_created", "run_claimed", "run_started", "run_resumed")
        return "running" if last and last["event"] in ("run_started", "run_resumed") else "queued"

    @property
    def is_resumable(self) -> bool:
        ended = self._ended_by
        if ended is None:
            return not procs.is_alive(self.owner)
        return ended["terminated_by"] in RESUMABLE and ended["status"] != "failed"

    @property
    def cap(self) -> str:
        """The cap at which it ended, so that it can only go on with a higher one; empty if it did not."""
        return CAPS.get(self.completed["terminated_by"], "") if self.completed is not None else ""

    @property
    def is_out_of_budget(self) -> bool:
        """Whether it ended because it, or its batch, had no budget left."""
        return self._ended_by is not None and self._ended_by["terminated_by"] == "budget_exceeded"

    @property
    def tally(self) -> Tally:
        """What hosts had cost when it last ended."""
        usage = (self.completed or {}).get("usage")
        return tally_from_json(usage) if usage else Tally()

    @property
    def is_capped(self) -> bool:
        """Whether it ended at a cap."""
        return bool(self.cap)

    @property
    def _ended_by(self) -> Record | None:
        return self.completed or self.withdrawn

    @property
    def _claim(self) -> Record:
        return self._last("run_created", "run_claimed") or self.created

    def _last(self, *names: str) -> Record | None:
        return self._ends.last(*names)

    @property
    def is_swept(self) -> bool:
        """Whether nothing of it can be alive that its present process does not know of."""
        last = self._last("run_started", "run_claimed", "swept", "run_resumed")
        return last is None or last["event"] != "run_claimed" or not self.has_begun

    @property
    def has_begun(self) -> bool:
        """Whether an action of it may have been started."""
        return self._last("run_started") is not None

    @property
    def step(self) -> int:
        """How many states it has entered."""
        ended = self.completed
        entered = self._last("state_enter") if ended is None else None
        return int(ended["iterations"] if ended else entered["iteration"] if entered else 0)

    @property
    def state(self) -> str:
        """The state that it is in, or ended in; empty if it never began."""
        if self.completed is not None:
            return str(self.completed["final_state"])
        entered = self._last("state_enter")
        return str(entered["state"]) if entered else ""

    @property
    def end(self) -> int:
        """How many bytes the journal had when it was read."""
        return self._ends.size

    def children(self) -> list[Identity]:
        """The leaders of the actions under way; those before them took everything of theirs along."""
        found: list[Identity] = []
        for record in reversed(self.text.records):
            if record["event"] == "outcome":
                break
            if record["event"] == "action_spawned":
                found.append(identity_from(record))
        return found

    @property
    def may_have_begun(self) -> bool:
        """Whether the action that was announced may have been started: not if its process closed the run in order,
        without having started it. A killed process may have been killed before it could say so."""
        last = self._last("action_spawned", "outcome", "run_started", "run_resumed")
        spawned = last is not None and last["event"] == "action_spawned"
        segment = self._last("run_interrupted", "run_started", "run_resumed")
        closed = segment is not None and segment["event"] == "run_interrupted"
        return spawned or not closed

    @property
    def script(self) -> Path | None:
        """The file that its last process wrote actions into."""
        last = self._last("run_started", "run_resumed")
        return Path(last["script"]) if last and "script" in last else None

    def ancestors(self) -> list[Identity]:
        """Who was above its processes: one of them has got the orphans."""
        claims = (self.created, self._claim)
        return [
            Identity(pid, start, claim["owner"]["boot"]) for claim in claims for pid, start in claim.get("above", ())
        ]

    @property
    def first_start(self) -> float | None:
        """When the first of its processes of this boot began, as `Identity.start`; None if there is none."""
        owners = [identity_from(claim["owner"]) for claim in (self.created, self._claim)]
        return min((one.start for one in owners if one.boot == procs.boot_id()), default=None)

    def worktree(self) -> Record | None:
        """The last thing that was written about a worktree of its own: that it was planned, made, left or finished."""
        return self._last("worktree_planned", "worktree_created", "worktree_leaving", "worktree_finished")

    def spent(self) -> float:
        """Its own clock in seconds, as far as it was written down."""
        last = self._last("run_started", "outcome", "run_interrupted", "run_resumed")
        return float(last["at"]) if last else 0.0


def identity_from(document: Mapping[str, Any]) -> Identity:
    return Identity(document["pid"], document["start"], document["boot"])


def identity_to_json(identity: Identity) -> dict[str, Any]:
    return {"pid": identity.pid, "start": identity.start, "boot": identity.boot}


# --- looking up --------------------------------------------------------------------------------------------


def run_ids(runs: Path) -> list[str]:
    """The ids of all runs, oldest first."""
    try:
        names = os.listdir(runs)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted((name for name in names if os.path.isfile(f"{runs}/{name}/{journal.NAME}")), key=age_key)


def open_run(runs: Path, run_id: str) -> StoredRun:
    """A run by its exact id. NotFoundError if there is none, StorageError if its journal is damaged."""
    folder = runs / run_id
    if not (folder / journal.NAME).is_file():
        raise NotFoundError(f"no such run: {run_id}")
    return StoredRun(folder)


def stored_runs(runs: Path, ids: Iterable[str]) -> Iterator[StoredRun]:
    """Those of the runs of whose journals enough can be read to know them."""
    for run_id in ids:
        try:
            yield open_run(runs, run_id)
        except LoopError:
            continue  # a damaged journal is reported when that run is asked for


def unfinished_runs(runs: Path) -> list[StoredRun]:
    """The runs that are not over, oldest first; of those that are, only the end of the journal is looked at."""
    ids = [run_id for run_id in run_ids(runs) if not journal.says_that_it_is_over(runs / run_id / journal.NAME)]
    return [run for run in stored_runs(runs, ids) if not run.is_over]


def find_run(runs: Path, wanted: str) -> StoredRun:
    """A run by id, by an unambiguous beginning of an id, `latest`, or a loop's exact name (its newest run).

    NotFoundError, and StorageError if its journal is damaged anywhere but in its last line.
    """
    found = _found_run(runs, wanted)
    _ = found.text
    return found


def _found_run(runs: Path, wanted: str) -> StoredRun:
    ids = run_ids(runs)
    if wanted == LATEST and ids:
        return open_run(runs, ids[-1])
    matches = [run_id for run_id in ids if run_id.startswith(wanted)]
    if wanted in matches or len(matches) == 1:
        return open_run(runs, wanted if wanted in matches else matches[0])
    if len(matches) > 1:
        shown = ", ".join(matches[:5])
        raise NotFoundError(f"{wanted!r} is the beginning of {len(matches)} run ids", hint=f"say more of it: {shown}")
    loops: set[str] = {LATEST}
    for run in stored_runs(runs, reversed(ids)):
        if run.loop == wanted:
            return run
        loops.add(run.loop)
    raise NotFoundError(f"no such run: {wanted}", hint=question(wanted, loops, then="`ll-loop history` lists them"))


def resumable_runs(runs: Path, wanted: str | None, *, raised: Collection[str] = ()) -> list[StoredRun]:
    """The runs that a `resume` means: one by id, a loop's newest that can go on, or the last batch's unfinished.

    Of a batch, those that ended at a cap count only if it is `raised`.
    """
    ids = run_ids(runs)
    if wanted is None or wanted == LATEST:
        found = _last_unfinished(runs, ids, raised)
        if not found and (wanted is None or not ids):
            raise NotFoundError("there is nothing to resume", hint="`ll-loop history` lists the runs")
        return found or [find_run(runs, LATEST)]
    stored = list(stored_runs(runs, ids))
    of_batch = [run for run in stored if run.batch == wanted]
    if of_batch:
        unfinished = [run for run in of_batch if run.is_resumable and (not run.cap or run.cap in raised)]
        if not unfinished:
            raise NotFoundError(f"there is nothing to resume of {wanted}", hint="`ll-loop history` lists the runs")
        return unfinished
    of_loop = [run for run in stored if run.loop == wanted]
    if of_loop:
        candidates = [run for run in of_loop if run.is_resumable][-1:]
        return candidates or [of_loop[-1]]
    return [find_run(runs, wanted)]


def failed_requests(
    runs: Path, wanted: str | None, given: Mapping[str, Any] = EMPTY, env: Mapping[str, str] = EMPTY
) -> list[Request]:
    """What was asked for in the runs of a batch that ended for good without success, in its order.

    `wanted` is a batch, or what `find_run` takes; without it, the last batch. What is `given` replaces what was asked
    for, and secrets come from `env`. NotFoundError if none failed, RefusedError if a secret is not there.
    """
    stored = [run for run in stored_runs(runs, run_ids(runs)) if not run.parent]
    batch = (stored[-1].batch if stored else "") if wanted in (None, LATEST) else wanted
    chosen = [run for run in stored if run.batch == batch] or ([find_run(runs, wanted)] if wanted else [])
    failed = [run for run in chosen if run.is_over and run.status in FAILED and not run.is_resumable]
    if not failed:
        raise NotFoundError("no run of that batch failed" if chosen else "there are no runs yet")
    ordered = sorted(failed, key=lambda run: (run.created["index"], run.run_id))
    return [replace(_asked_again(run, env), **given) for run in ordered]


def _asked_again(run: StoredRun, env: Mapping[str, str]) -> Request:
    asked = run.created["request"]
    asked = secrets_of(env, named=asked.get("secrets", ())).restored(asked)
    refuse_missing(run.run_id, asked, run.created.get("withheld", ()))
    return Request.from_json({**asked, "name": run.created["path"]})


def _last_unfinished(runs: Path, ids: Sequence[str], raised: Collection[str]) -> list[StoredRun]:
    found: list[StoredRun] = []
    for run in stored_runs(runs, reversed(ids)):
        if run.parent:
            continue
        if found and run.batch != found[0].batch:
            break
        if run.is_resumable and (not run.cap or run.cap in raised) and _is_whole(run):
            found.append(run)
    return sorted(found, key=lambda run: (run.created["index"], run.run_id))


def _is_whole(run: StoredRun) -> bool:
    """Whether its journal is good; a damaged one is reported when that run is asked for."""
    try:
        return bool(run.text.records)
    except LoopError:
        return False


def marker_of(run_id: str) -> str:
    """What the environment of a run's actions holds, to know them by when their run is dead."""
    return f"LL_LOOP_RUN_ID={run_id}"


def left_alive(run: StoredRun) -> list[Identity]:
    """The processes that a dead process of the run left behind."""
    since = run.first_start
    if since is None or not run.has_begun:
        return []
    return procs.orphans_of(marker_of(run.run_id), run.children(), since, run.ancestors())


def unfinished_clean_ups(runs: Path) -> Iterator[StoredRun]:
    """The runs that have ended for good while nobody wrote down what became of their worktree."""
    for run in stored_runs(runs, run_ids(runs)):
        if not run.created["request"].get("worktree"):
            continue
        with suppress(LoopError):  # a damaged journal is reported when that run is asked for
            last = run.worktree()
            if run.is_over and not run.is_resumable and last is not None and last["event"] in IN_USE:
                yield run


def forget(folder: Path) -> None:
    """Remove the folder of a run that never began. What is not ours in it stays, and the folder with it."""
    with suppress(OSError):
        (folder / journal.NAME).unlink(missing_ok=True)
        (folder / "artifacts").rmdir()
        folder.rmdir()
