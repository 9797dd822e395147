"""Going back in a run, for the command line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import api
from . import words
from .forms import text_of
from .terminal import STDERR, STDOUT, clean, look_at, say


def replay(wanted: str, as_json: bool, project: Path | None) -> int:
    """Print a run step by step."""
    look = look_at(STDOUT, os.environ)
    for step in api.replay(project or api.find_project(Path.cwd()), wanted):
        if as_json:
            say(text_of(step, indent=None))
        else:
            say(*map(look.fit, _lines(step)))
    return 0


def _lines(step: Mapping[str, Any]) -> Iterator[str]:
    place = "/".join(step["to"])
    yield f"{step['seq']:>5}  {step['at']:9.3f}s  {_input(step)}  [{place}]".rstrip()
    for event in step["events"]:
        indent = "  " * event["depth"]
        yield f"{'':19}{indent}{event['event']}  {words.detail({'loop': '', **event})}".rstrip()
    if step["terminated_by"]:
        yield f"{'':19}ended: {step['terminated_by']}"
    elif step["effect"]:
        yield f"{'':19}asks for: {_effect(step['effect'])}"


def _input(step: Mapping[str, Any]) -> str:
    answer = step["answer"]
    if answer is None:
        return str(step["input"])
    facts = [f"{key}={answer[key]}" for key in ("exit_code", "timeout_kind", "verdict", "error") if answer.get(key)]
    return " ".join([answer["kind"], *facts])


def _effect(effect: Mapping[str, Any]) -> str:
    facts = [clean(str(value)) for key, value in effect.items() if key in ("text", "why", "question", "name", "path")]
    return " ".join([effect["kind"], *facts])


def fork(wanted: str, at: int, as_json: bool, project: Path | None) -> int:
    """Make a new run from a record of another, and say how to go on with it."""
    where = project or api.find_project(Path.cwd())
    run = api.fork(where, wanted, at)
    if as_json:
        origin = run.created["forked_from"]
        say(text_of({"run_id": run.run_id, "loop": run.loop, "state": run.state, "forked_from": origin}))
        return 0
    say(run.run_id)
    where_at = f"in {run.state}, step {run.step}" if run.state else "at its start"
    say(f"{run.loop} {where_at}: go on with: ll-loop resume {run.run_id}", fd=STDERR)
    return 0
