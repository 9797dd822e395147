"""What a run waits for, for whom, and since when: told by its live process, or read from its journal."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from ...core.effects import RATE_LIMIT, AskHuman, AskModel, RunAction, Sleep
from ...core.frame import Run
from ...core.replay import Replayed
from ...errors import LoopError
from ...files.library import Library
from ..children import procs
from ..children.procs import Identity
from ..handle import RunHandle
from ..journals import rebuild, recovery
from ..journals.recovery import StoredRun

Document = dict[str, Any]
MOST_HOLDERS = 20
CLOCK_TICK = timedelta(seconds=0.02)
"""How far the times of files may be behind."""

# --- in the process that runs ------------------------------------------------------------------------------


def entry_of(handle: RunHandle) -> Document:
    """Where a run is, as `status` tells it."""
    return dict(handle.secrets.document(_entry(handle)))


def _entry(handle: RunHandle) -> Document:
    root = handle.run.root if handle.run is not None else None
    return {
        "run_id": handle.run_id,
        "loop": handle.loop.name,
        "status": handle.status,
        "state": root.state if root else "",
        "step": root.iteration if root else 0,
        "waits_for": handle.waits_for or _rests(handle),
        "waiting_since": handle.waiting_since if handle.run is None else "",
        "place": handle.place,
        "question": handle.question,
        "since": handle.since,
        "pid": os.getpid(),
    }


def _rests(handle: RunHandle) -> str:
    """The rate limit that the run itself waits out."""
    waiting = handle.run.waiting if handle.run is not None and handle.result is None else None
    return "its rate limit" if isinstance(waiting, Sleep) and waiting.why == RATE_LIMIT else ""


def facts(handle: RunHandle, fellows: Sequence[RunHandle]) -> Document:
    """What only the process itself knows of a run of its own; `fellows` are all its runs."""
    found = entry_of(handle)
    if handle.ending_since and handle.result is None:
        by, signal = handle.why
        grace = handle.grace.seconds if handle.grace is not None else 0.0
        found["ending"] = {"by": by, "signal": signal, "since": handle.ending_since, "grace": grace}
    if handle.run is None:
        holders = _foreign_holder(handle) or list(_own_holders(handle, fellows))
        return {**found, "slot": handle.waits_for_slot, "paths": list(handle.paths), "holders": holders}
    return {**found, "effect": handle.secrets.document(_effect(handle.run))}


def _own_holders(handle: RunHandle, fellows: Sequence[RunHandle]) -> Iterable[Document]:
    known = {one.run_id: one for one in fellows}
    for run_id in handle.ticket.blockers(MOST_HOLDERS) if handle.ticket is not None else ():
        holder = known.get(run_id)
        if holder is not None:
            state = holder.run.root.state if holder.run is not None else ""
            yield {"run_id": run_id, "loop": holder.loop.name, "status": holder.status, "state": state,
                   "pid": os.getpid(), "since": holder.since}  # fmt: skip


def _foreign_holder(handle: RunHandle) -> list[Document]:
    lock = handle.foreign
    if lock is None:
        return []
    since = lock.since.isoformat() if lock.since else ""
    status = "queued" if lock.place else "running"
    return [{"run_id": lock.run_id, "loop": lock.holder, "status": status, "state": "", "pid": lock.pid,
             "since": since, "file": str(lock.file)}]  # fmt: skip


def _effect(run: Run) -> Document:
    found: Document = {"kind": type(run.waiting).__name__, "since": run.ts, "attempt": run.top.attempt}
    match run.waiting:
        case RunAction():
            found |= {"state": run.waiting.state, "text": run.waiting.text, "timeout": run.waiting.timeout,
                      "prompt": run.waiting.prompt}  # fmt: skip
        case Sleep(seconds, reason):
            found |= {"seconds": seconds, "why": reason}
        case AskHuman():
            found |= {"timeout": run.waiting.timeout}
        case AskModel():
            found |= {"state": run.waiting.state, "purpose": run.waiting.purpose, "model": run.waiting.model,
                      "timeout": run.waiting.timeout}  # fmt: skip
    return found


# --- in the process that asks ------------------------------------------------------------------------------


def explained(run: StoredRun, told: Mapping[str, Any] | None, library: Library) -> Document:
    """The whole answer about a run: `told` is what its live process said, None if it said nothing."""
    found: Document = {
        "run_id": run.run_id,
        "loop": run.loop,
        "status": run.status,
        "state": run.state,
        "step": run.step,
        "pid": run.owner.pid if run.is_alive else 0,
        "since": run.text.records[-1]["ts"],
        "holders": [],
        "place": 0,
        "slot": False,
        "waits_for": "",
        "action": None,
        "pause": None,
        "question": None,
        "ending": None,
        "resume": None,
        "left_alive": [],
    }
    if run.is_over:
        ended = run.completed or run.withdrawn or {}
        resume = _resume(run, library) if run.is_resumable else None
        return found | {"reason": "over", "terminated_by": ended["terminated_by"], "resume": resume}
    if not run.is_alive:
        left = [_process(one) for one in recovery.left_alive(run)]
        return found | {"reason": "dead", "owner": run.owner.pid, "action": _announced(run), "left_alive": left,
                        "resume": _resume(run, library)}  # fmt: skip
    if told is None:
        return found | {"reason": "silent", "action": _announced(run)}
    return found | _live(run, told)


def _live(run: StoredRun, told: Mapping[str, Any]) -> Document:
    found: Document = {key: told[key] for key in ("status", "state", "step", "question", "place")}
    ending = told.get("ending")
    if ending is not None:
        return found | {"reason": "ending", "ending": ending, "since": ending["since"], "action": _under_way(run, told)}
    effect = told.get("effect")
    if effect is None:
        holders = told.get("holders", [])
        kind = "scope" if holders else "slot" if told["slot"] else "turn"
        since = told["waiting_since"] or told["since"]
        return found | {"reason": kind, "since": since, "holders": holders, "slot": told["slot"]}
    found["since"] = effect["since"]
    match effect["kind"]:
        case "RunAction" | "AskModel" if told["waits_for"]:
            return found | {"reason": "host", "waits_for": told["waits_for"], "action": _under_way(run, told)}
        case "RunAction":
            return found | {"reason": "action", "action": _under_way(run, told)}
        case "AskModel":
            return found | {"reason": "model", "action": _under_way(run, told)}
        case "Sleep":
            return found | {"reason": "pause", "pause": {"seconds": effect["seconds"], "why": effect["why"]}}
        case "AskHuman":
            return found | {"reason": "question", "pause": {"seconds": effect["timeout"], "why": "question"}}
        case _:
            return found | {"reason": "working"}


def _under_way(run: StoredRun, told: Mapping[str, Any]) -> Document | None:
    effect = told.get("effect")
    if effect is None or effect["kind"] not in ("RunAction", "AskModel"):
        return None
    leaders = [one for one in run.children() if procs.is_alive(one) or procs.rows_of_session(one, procs.read_table())]
    return {
        "state": effect["state"],
        "command": effect.get("text") or f"ask {effect.get('model') or 'a model'} ({effect.get('purpose')})",
        "since": effect["since"],
        "attempt": effect["attempt"],
        "timeout": effect["timeout"],
        "last_output": _last_output(run, effect["since"]),
        "pid": leaders[-1].pid if leaders else 0,
        "processes": _processes(leaders),
    }


def _last_output(run: StoredRun, since: str) -> str:
    """When the run's log last grew, empty if that was before `since`."""
    try:
        seconds = (run.folder / "output.log").stat().st_mtime
    except OSError:
        return ""
    grown = datetime.fromtimestamp(seconds, UTC) + CLOCK_TICK
    return grown.isoformat(timespec="microseconds") if grown >= datetime.fromisoformat(since) else ""


def _announced(run: StoredRun) -> Document | None:
    """The last action that the journal announces and tells no end of."""
    for record in reversed(run.text.records):
        if record["event"] in ("outcome", "run_interrupted"):
            return None
        if record["event"] == "action_start":
            return {"state": run.state, "command": record["action"], "since": record["ts"], "attempt": _attempt(run),
                    "timeout": 0, "last_output": _last_output(run, record["ts"]),
                    "pid": next((one.pid for one in run.children()), 0),
                    "processes": _processes(run.children())}  # fmt: skip
    return None


def _attempt(run: StoredRun) -> int:
    entered = [record for record in run.text.records if record["event"] == "state_enter"]
    return int(entered[-1].get("attempt", 1)) if entered else 1


def _processes(leaders: Iterable[Identity]) -> list[Document]:
    table = procs.read_table()
    rows = [row for leader in leaders for row in procs.rows_of_session(leader, table) if not row.zombie]
    return [_process(row.identity) for row in rows]


def _process(identity: Identity) -> Document:
    return {"pid": identity.pid, "name": procs.name_of(identity)}


def _resume(run: StoredRun, library: Library) -> Document:
    """Whether the run can go on, and how it would."""
    command = f"ll-loop resume {run.run_id}"
    try:
        replayed = rebuild.rebuild(run, library)
    except LoopError as error:
        return {"possible": False, "does": str(error), "hint": error.hint, "command": ""}
    if run.cap:
        return {"possible": True, "does": f"goes on once {run.cap.replace('_', ' ')} is raised", "hint": "",
                "command": f"{command} --{run.cap.replace('_', '-')} N"}  # fmt: skip
    return {"possible": True, "does": _deed(run, replayed), "hint": "", "command": command}


def _deed(run: StoredRun, replayed: Replayed) -> str:
    if replayed.run is None or replayed.run.waiting is None:
        return "begins it" if replayed.run is None else f"goes on from {run.state}"
    where, effect = replayed.run.top, replayed.run.waiting
    if isinstance(effect, AskHuman):
        return f"puts the question of {where.state} again"
    if rebuild.doubt(run, replayed) is None:
        return f"goes on with {where.state}, whose action had not begun"
    match where.current.on_resume:
        case "ask":
            return f"asks what to do with {where.state}: --in-doubt rerun|skip|fail"
        case "skip":
            return f"skips {where.state}, as its on_resume says"
        case "fail":
            return f"ends the run as failed, as the on_resume of {where.state} says"
        case _:
            return f"runs {where.state} again, as attempt {where.attempt + 1}"
