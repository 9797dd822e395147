"""What runs wait for, for the command line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import api
from . import words
from .forms import text_of
from .terminal import STDERR, STDOUT, clean, look_at, say, table

Document = Mapping[str, Any]


async def why(wanted: str, as_json: bool, project: Path | None) -> int:
    """Print what a run waits for."""
    found = await api.why(project or api.find_project(Path.cwd()), wanted)
    if as_json:
        say(text_of(found))
        return 0
    look = look_at(STDOUT, os.environ)
    say(*map(look.fit, lines_of(found, datetime.now(UTC))))
    return 0


async def queue(as_json: bool, project: Path | None) -> int:
    """Print the runs that wait for their turn."""
    found = await api.queue(project or api.find_project(Path.cwd()))
    if as_json:
        say(text_of(found))
    elif not found:
        say("no run waits", fd=STDERR)
    else:
        look, now = look_at(STDOUT, os.environ), datetime.now(UTC)
        rows = [("place", "loop", "waits for", "for", "pid", "run")]
        for one in found:
            holder = clean(one["waits_for"]) or "a slot"
            since = _ago(one["waiting_since"] or one["since"], now)
            rows.append((str(one["place"]), one["loop"], holder, since, str(one["pid"]), one["run_id"]))
        say(*map(look.fit, table(rows, look.width, right=(0, 3, 4), spare=(4, 3, 2))))
    return 0


def lines_of(found: Document, now: datetime) -> Iterator[str]:
    """The answer of `why` in words."""
    yield f"{found['loop']}, run {found['run_id']}: {_HEADLINES[found['reason']](found, now)}"
    for line in _details(found, now):
        yield f"  {line}"


def _ago(ts: str, now: datetime) -> str:
    """How long ago a time of a record was."""
    try:
        passed = (now - datetime.fromisoformat(ts)).total_seconds()
    except ValueError:
        return "?"
    return words.seconds(max(0.0, passed), whole=True)


def _where(found: Document) -> str:
    return f"in {found['state']}, step {found['step']}"


_HEADLINES: Mapping[str, Any] = {
    "scope": lambda f, now: f"waits {_ago(f['since'], now)} for its scope, place {f['place']} in the line",
    "slot": lambda f, now: f"waits {_ago(f['since'], now)} for a slot: as many runs go on as may (--jobs)",
    "turn": lambda f, now: "is about to begin",
    "action": lambda f, now: f"{_where(f)}: its action runs for {_ago(f['action']['since'], now)}",
    "host": lambda f, now: f"{_where(f)}: waits {_ago(f['since'], now)} for {clean(f['waits_for'])}",
    "model": lambda f, now: f"{_where(f)}: asks a model for {_ago(f['since'], now)}",
    "pause": lambda f, now: f"{_where(f)}: {_pause(f, now)}",
    "question": lambda f, now: f"{_where(f)}: asks a person, for {_ago(f['since'], now)} by now",
    "ending": lambda f, now: f"is ending for {_ago(f['since'], now)}: {_ender(f['ending'])}",
    "working": lambda f, now: f"{_where(f)}: at work, between two actions",
    "silent": lambda f, now: f"process {f['pid']} has it, but does not answer; last record {_ago(f['since'], now)} ago",
    "dead": lambda f, now: f"its process {f['owner']} is gone; last record {_ago(f['since'], now)} ago",
    "over": lambda f, now: f"is over: {f['status']} ({f['terminated_by']})",
}


def _pause(found: Document, now: datetime) -> str:
    seconds, reason = found["pause"]["seconds"], found["pause"]["why"]
    return f"waits {words.seconds(seconds)} ({reason}), {_ago(found['since'], now)} of it have passed"


def _ender(ending: Document) -> str:
    if ending["by"] == "user_stopped":
        return "somebody stopped it"
    return f"signal {ending['signal']}" if ending["signal"] else "its session ends"


def _details(found: Document, now: datetime) -> Iterator[str]:
    for holder in found["holders"]:
        verb = "waits before it" if holder["status"] == "queued" else "holds it"
        state = f", in {holder['state']}" if holder["state"] else ""
        since = f", since {holder['since'][:19].replace('T', ' ')}Z" if holder["since"] else ""
        yield f"{holder['loop']} {verb}{state} (run {holder['run_id']}, pid {holder['pid']}{since})"
    question = found["question"]
    if question:
        yield f"question: {clean(question['text'])}"
        yield f"answer with: ll-loop approve {found['run_id']} yes|no|edit"
    if found["ending"]:
        yield f"its action has {words.seconds(found['ending']['grace'])} to end, then it is killed"
    if found["action"]:
        yield from _action(found["action"], found["reason"], now)
    for process in found["left_alive"]:
        yield f"left alive: {process['pid']} {process['name']}"
    resume = found["resume"]
    if resume:
        yield f"resume: {clean(resume['does'])}"
        if resume["command"]:
            yield f"go on with: {resume['command']}"
        elif resume["hint"]:
            yield f"hint: {resume['hint']}"


def _action(action: Document, reason: str, now: datetime) -> Iterator[str]:
    first, *more = action["command"].strip().splitlines() or [""]
    yield f"command: {clean(first)}{' ...' if more else ''}"
    attempt = f", attempt {action['attempt']}" if action["attempt"] > 1 else ""
    if reason == "host":  # neither its time nor its process has begun
        return
    limit = f", of {words.seconds(action['timeout'], whole=True)} at most" if action["timeout"] else ""
    heard = f"last output {_ago(action['last_output'], now)} ago" if action["last_output"] else "no output yet"
    yield f"pid {action['pid'] or 'none yet'}, since {_ago(action['since'], now)}{limit}{attempt}, {heard}"
    if action["processes"]:
        verb = "still alive" if reason == "ending" else "processes"
        yield f"{verb}: " + ", ".join(f"{one['pid']} {one['name']}" for one in action["processes"])
