"""Going back in a run: its journal step by step through the machine, and new runs that begin at any of its records."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...core import machine
from ...core.effects import Effect
from ...core.endings import exit_code_of, status_of
from ...core.frame import Run
from ...core.model import Ending
from ...core.replay import INPUTS, STREAM, Replayed, Step, replay, steps
from ...errors import CannotCreateError, NotFoundError, RefusedError
from ...files.library import Library
from ..children import procs
from . import rebuild, recovery
from .journal import Journal, Record, now, sync_folder
from .recovery import StoredRun, identity_to_json
from .request import new_run_id

_HEAD = frozenset({"event", "ts", "run_id", "loop", "depth", "seq", "crc"})
_OF_PROCESS = frozenset({"script", "cwd"})
"""Fields of inputs that belong to the process that wrote them, not to the run."""


# --- step by step ------------------------------------------------------------------------------------------


def replayed_steps(run: StoredRun, library: Library) -> Iterator[dict[str, Any]]:
    """Each input of a run's journal and what the machine makes of it now. ReplayError where they do not agree."""
    loop, load = rebuild.loaded(run, library)
    for step in steps(loop, run.text.records, load):
        yield _told(step)


def _told(step: Step) -> dict[str, Any]:
    record, after = step.record, step.decision.run
    return {
        "seq": record["seq"],
        "ts": record["ts"],
        "at": record["at"],
        "input": record["event"],
        "answer": record.get("answer"),
        "from": _place(step.before),
        "to": _place(after),
        "step": after.root.iteration,
        "events": [{"event": event.name, "depth": event.depth, **event.fields} for event in step.decision.events],
        "effect": _effect(step.decision.effect),
        "terminated_by": after.ending.by if after.ending else None,
    }


def _place(run: Run | None) -> list[str]:
    """The states that a run is in, that of its own loop first."""
    return [] if run is None else [frame.state for frame in run.frames]


def _effect(effect: Effect | None) -> dict[str, Any] | None:
    if effect is None:
        return None
    names = ("text", "prompt", "attempt", "seconds", "why", "question", "name", "path", "target")
    told = {name: getattr(effect, name) for name in names if hasattr(effect, name)}
    return {"kind": type(effect).__name__, **told}


# --- a new run from there ----------------------------------------------------------------------------------


def fork(runs: Path, wanted: str, at: int, library: Library) -> StoredRun:
    """A new run that begins with what `wanted` had gone through up to record `at`; it waits to be resumed.

    The action that was under way there is not, in the new run: it starts when that is resumed. Artifacts are copied as
    they are now. Raises NotFoundError (no such run or record), RefusedError (it had ended for good), ReplayError.
    """
    source = recovery.find_run(runs, wanted)
    records = [record for record in source.text.records if record["seq"] <= at]
    if not records or at > source.text.records[-1]["seq"]:
        raise NotFoundError(
            f"run {source.run_id} has no record {at}", hint=f"it has 1 to {source.text.records[-1]['seq']}"
        )
    loop, load = rebuild.loaded(source, library)
    replayed = replay(loop, records, load)
    _refuse_if_over(source, replayed, at)
    run_id = new_run_id(source.loop)
    folder = runs / run_id
    try:
        _write(source, records, replayed, Journal(folder, run_id, source.loop, lambda _: None), at)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return recovery.open_run(runs, run_id)


def _refuse_if_over(source: StoredRun, replayed: Replayed, at: int) -> None:
    ending = replayed.run.ending if replayed.run is not None else None
    if ending is not None and (ending.by not in machine.RESUMABLE or status_of(ending) == "failed"):
        last = max(record["seq"] for record in source.text.records if record["event"] in INPUTS)
        raise RefusedError(f"run {source.run_id} had ended at record {at} ({ending.by})", hint=f"say one before {last}")


def _write(source: StoredRun, records: Sequence[Record], replayed: Replayed, journal: Journal, at: int) -> None:
    folder = journal.path.parent
    artifacts = folder / "artifacts"
    try:
        folder.mkdir(parents=True, mode=0o700)
        with suppress(FileNotFoundError):
            shutil.copytree(source.folder / "artifacts", artifacts, symlinks=True)
        artifacts.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise CannotCreateError(f"cannot create {artifacts}: {error.strerror}") from error
    journal.open()
    journal.append("run_created", {**_creation(records[0], artifacts), "forked_from": {"run_id": source.run_id,
                                                                                       "seq": at}})  # fmt: skip
    for record in records[1:]:
        if record["event"] == "loop_defined" or record["event"] not in STREAM:
            fields = {key: value for key, value in record.items() if key not in _HEAD | _OF_PROCESS}
            depth = record.get("depth", 0)
            journal.append(record["event"], fields, ts=record["ts"], loop=record["loop"], depth=depth)
    _close(journal, replayed)
    journal.flush()
    os.fsync(journal.fd)
    journal.close()
    sync_folder(folder)
    sync_folder(folder.parent)


def _creation(created: Record, artifacts: Path) -> Mapping[str, Any]:
    fields = {key: value for key, value in created.items() if key not in _HEAD}
    context = {**fields["context"], "run_dir": f"{artifacts}/"}
    owner = procs.own_identity()
    above = [[one.pid, one.start] for one in procs.ancestors(owner.pid)]
    return {**fields, "context": context, "batch": new_run_id("batch"), "index": 0, "above": above, "socket": "",
            "owner": identity_to_json(owner)}  # fmt: skip


def _close(journal: Journal, replayed: Replayed) -> None:
    """End the journal as that of a run that was interrupted before its next action started."""
    run, ts = replayed.run, now()
    if run is None:
        ending = Ending("interrupted", "")
        codes = {"status": status_of(ending), "exit_code": exit_code_of(ending)}
        journal.append("run_withdrawn", {"terminated_by": "interrupted", "signal": 0, "error": None, **codes})
        return
    journal.append_events(replayed.missing, run.ts)
    if run.ending is None:
        at = max(replayed.at, run.at)
        journal.append("run_interrupted", {"at": at, "by": "interrupted", "signal": 0, "error": None}, ts=ts)
        journal.append_events(machine.interrupt(run, at, ts).events, ts)
