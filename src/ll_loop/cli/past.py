"""Runs on the disk, of this process or of any other, for the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
from msgspec import Struct
from msgspec.structs import replace

from .. import api
from ..api import StoredRun
from ..errors import UsageError
from . import report, words
from .forms import results_to_json, text_of
from .terminal import STDERR, STDOUT, Look, clean, look_at, say, table

Record = Mapping[str, Any]
SILENT = 1.0
"""Seconds that may pass before it is said what is waited for."""
_RUN_ID = re.compile(r"latest$|\d{8}T\d{6}-")


def _project(project: Path | None) -> Path:
    return project or api.find_project(Path.cwd())


def _print_table(rows: Sequence[tuple[str, ...]], *, right: tuple[int, ...], spare: tuple[int, ...]) -> None:
    look = look_at(STDOUT, os.environ)
    say(*map(look.fit, table(rows, look.width, right=right, spare=spare)))


# --- status ------------------------------------------------------------------------------------------------


async def status(wanted: str | None, as_json: bool, project: Path | None) -> int:
    """Print where runs are: all that are not over, or one, be it over or not."""
    where = _project(project)
    found = await api.status(where, wanted)
    if as_json:
        config = api.load_config(where)
        documents = [{**api.stored_state(where, one["run_id"], config=config), **_as_state(one)} for one in found]
        say(text_of(documents[0] if wanted is not None else documents))
    elif wanted is not None:
        _print_one(found[0], api.stored_run(where, found[0]["run_id"]))
    else:
        _print_all(found)
        hint = _resume_hint(found, where)
        if hint:
            say(look_at(STDERR, os.environ).fit(hint), fd=STDERR)
    return 0


def _print_all(found: Sequence[Record]) -> None:
    names = {entry["run_id"]: entry["loop"] for entry in found}
    rows = [("loop", "status", "state", "step", "since", "run", "")]
    for one in found:
        holders = ", ".join(names.get(holder, holder) for holder in one["waits_for"].split(", "))
        asks = f"asks: {clean(one['question']['text'])}" if one["question"] else ""
        note = f"waits for {holders}" if holders else asks if one["pid"] else "its process is gone"
        state, since = one["state"] or "-", _time(one["since"])
        rows.append((one["loop"], one["status"], state, str(one["step"]), since, one["run_id"], note))
    if found:
        _print_table(rows, right=(3,), spare=(4, 3, 2, 0, 6))


def _resume_hint(found: Sequence[Record], where: Path) -> str:
    """What `ll-loop resume` would do now, if anything."""
    if any(entry["pid"] for entry in found):
        return ""
    unfinished = [run for run in api.history(where) if run.is_resumable and not run.is_capped and not run.parent]
    if not unfinished:
        return "no run is under way; `ll-loop history` lists those that are over"
    count = sum(run.batch == unfinished[0].batch for run in unfinished)
    verb = "was" if count == 1 else "were"
    return f"no run is under way; {count} {verb} interrupted, go on with: ll-loop resume"


def _as_state(entry: Record) -> dict[str, Any]:
    """What is known now, under the names of the state object."""
    return {
        "run_id": entry["run_id"],
        "loop_name": entry["loop"],
        "current_state": entry["state"],
        "iteration": entry["step"],
        "status": entry["status"],
        "waits_for": entry["waits_for"],
        "question": entry["question"],
        "pid": entry["pid"] or None,
    }


def _print_one(entry: Record, run: StoredRun) -> None:
    log = run.folder / "output.log"
    facts = [
        ("Loop", entry["loop"]),
        ("Run", entry["run_id"]),
        ("Status", entry["status"] if run.is_over or entry["pid"] else f"{entry['status']}: its process is gone"),
        ("State", entry["state"] or "-"),
        ("Step", str(entry["step"])),
        ("Waits for", entry["waits_for"]),
        ("Asks", clean(entry["question"]["text"]) if entry["question"] else ""),
        ("Answer with", f"ll-loop approve {run.run_id} yes|no|edit" if entry["question"] else ""),
        ("Started", _time(run.created["ts"])),
        ("Updated", _time(run.text.records[-1]["ts"])),
        ("Process", str(entry["pid"] or "none")),
        ("Log", str(log) if log.exists() else ""),  # there is none before something was printed
        ("Events", str(run.folder / "events.jsonl")),
        ("Resume with", f"ll-loop resume {run.run_id}" if run.is_resumable else ""),
    ]
    look = look_at(STDOUT, os.environ)
    for name, value in facts:
        if value:
            say(look.fit(f"{name}: {value}"))


def _time(ts: str) -> str:
    """A time as tables show it: UTC, to the second."""
    return f"{ts[:10]} {ts[11:19]}Z"


# --- approve -----------------------------------------------------------------------------------------------


async def approve(wanted: str, answer: str, text: str, as_json: bool, project: Path | None) -> int:
    """Answer what a run asks a person, and say what that was."""
    asked = await api.approve(_project(project), wanted, answer, text)
    if as_json:
        say(text_of({"answered": asked, "answer": answer}))
        return 0
    line = f"answered {answer} to {asked['state']}: {clean(asked['text'])}"
    say(look_at(STDERR, os.environ).fit(line), fd=STDERR)
    return 0


# --- history -----------------------------------------------------------------------------------------------


class Filter(Struct, frozen=True):
    """Which events of a run to show: their type, their state, no older than `since`, whether output lines too,
    and how many (0: all).
    """

    kind: str | None
    state: str | None
    since: timedelta | None
    verbose: bool
    tail: int

    def is_young(self, ts: str) -> bool:
        """Whether what was written down then is to be shown."""
        return self.since is None or datetime.now(UTC) - datetime.fromisoformat(ts) <= self.since

    def kept(self, records: Iterable[Record]) -> list[Record]:
        return [record for record in records if self.is_young(record["ts"]) and self._wants(record)][-self.tail :]

    def _wants(self, record: Record) -> bool:
        name = record["event"]
        if name != self.kind if self.kind else name == "action_output" and not self.verbose:
            return False
        return self.state is None or self.state in (record.get("state"), record.get("from"), record.get("to"))


def history(wanted: str | None, chosen: Filter, as_json: bool, project: Path | None, *, full: bool = False) -> int:
    """Print the runs of the project or of a loop, or the events of a run; `full` cuts no line."""
    where = _project(project)
    is_run = wanted is not None and _RUN_ID.match(wanted)
    found = [] if is_run else api.history(where, wanted, limit=chosen.tail or None)
    look = replace(look_at(STDOUT, os.environ), **({"width": None} if full else {}))
    if wanted is not None and not found:
        run = api.stored_run(where, wanted)
        kept = chosen.kept(filter(api.is_public, run.text.records))
        if as_json:
            say(text_of([{key: value for key, value in record.items() if key != "crc"} for record in kept]))
        else:
            _print_events(kept, look)
        if not kept:
            kinds = sorted({record["event"] for record in run.text.records if api.is_public(record)})
            say(f"no such event among those of {run.run_id}: {', '.join(kinds)}", fd=STDERR)
        return 0
    if chosen.kind or chosen.state:
        raise UsageError("--event and --state need a run", hint="say which: `ll-loop history RUN --event TYPE`")
    found = [run for run in found if chosen.is_young(run.created["ts"])]
    if as_json:
        say(text_of([_summary(run) for run in found]))
    else:
        _print_runs(found, look)
    return 0


def _summary(run: StoredRun) -> dict[str, Any]:
    completed = run.completed
    return {
        "run_id": run.run_id,
        "loop": run.loop,
        "status": run.status,
        "terminated_by": completed["terminated_by"] if completed else None,
        "started_at": run.created["ts"],
        "iterations": run.step,
        "duration_ms": int(run.spent() * 1000),
    }


def _print_runs(runs: list[StoredRun], look: Look) -> None:
    if not runs:
        say("no runs yet", fd=STDERR)
        return
    rows = [("loop", "status", "started", "steps", "time", "run")]
    for one in map(_summary, runs):
        took = words.seconds(one["duration_ms"] / 1000)
        rows.append((one["loop"], one["status"], _time(one["started_at"]), str(one["iterations"]), took, one["run_id"]))
    say(*map(look.fit, table(rows, look.width, right=(3, 4), spare=(2, 4, 3, 0))))


def _print_events(records: Iterable[Record], look: Look) -> None:
    for record in records:
        indent = "  " * record.get("depth", 0)
        line = f"{record['ts'][11:19]}Z  {record['event']:<16}  {indent}{words.detail(record)}"
        say(look.fit(line.rstrip()))


# --- stop --------------------------------------------------------------------------------------------------


async def _say_that_it_waits() -> None:
    await anyio.sleep(SILENT)
    say("told to end; waiting for what is under way", fd=STDERR)


async def stop(wanted: str | None, everything: bool, grace: float | None, as_json: bool, project: Path | None) -> int:
    """Stop runs and say how they ended."""
    if wanted is None and not everything:
        raise UsageError("say which run to stop, or --all", hint="`ll-loop status` lists those under way")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_say_that_it_waits)
        results = await api.stop(_project(project), wanted, all=everything, grace=grace)
        tasks.cancel_scope.cancel()
    if as_json:
        say(text_of(results_to_json(results, 0), indent=None))
        return 0
    if not results:
        say("nothing is running", fd=STDERR)
    look = look_at(STDERR, os.environ)
    say(*(report.of_one(results[0], None, look) if len(results) == 1 else report.of_many(results, {}, look)), fd=STDERR)
    return 0
