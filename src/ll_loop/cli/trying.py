"""Trying single states for the command line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import api
from ..api import Request, Trial, Tried
from .forms import text_of
from .look import library_of
from .options import Texts
from .terminal import STDERR, STDOUT, clean, look_at, say
from .words import ending, exit_words, placed, seconds

LINES = 20
"""Lines of output that are shown, the last ones; `--json` has all."""

REFUSED = 64
"""The least exit code that says that the state was not run to its end."""


async def test(
    name: str, state: str | None, input: str | None, *, texts: Texts, captured: Texts, prev: str | None,  # noqa: A002
    no_lock: bool, as_json: bool, project: Path | None,
) -> int:  # fmt: skip
    """Run one state, by default the first, once and say what it did.

    0 if it leads somewhere, 1 if it failed or leads nowhere.
    """
    library = library_of(project)
    trial = Trial(library.project, library=library, subreaper=True)
    state = state or library.load(name).loop.initial
    request = Request(name, input, texts=texts, queue=False, lock=not no_lock)
    async with api.signals(trial), trial:
        tried = await trial.attempt(request, state, captured=dict(captured), prev=prev)
    code = tried.result.exit_code if tried.result.exit_code >= REFUSED else int(not tried.ok)
    if as_json:
        say(text_of(_to_json(tried, code)))
        return code
    look = look_at(STDOUT, os.environ)
    for line in _lines(tried):
        say(look.fit(line))
    for line in _complaints(tried):
        say(line, fd=STDERR)
    return code


def _lines(tried: Tried) -> Iterator[str]:
    yield f"state: {tried.state}"
    yield from _shown("action", tried.action)
    if tried.exit_code is not None:
        yield f"ended: {exit_words(tried.exit_code) or 'exit 0'} after {seconds(tried.duration_ms / 1000)}"
    yield from _shown("output", tried.output)
    yield from _shown("stderr", tried.stderr)
    if tried.verdict:
        details = ", ".join(f"{key}: {clean(str(value))}" for key, value in tried.details.items() if value is not None)
        yield f"verdict: {tried.verdict}  ({tried.evaluator}{': ' if details else ''}{details})"
    if tried.sub_loop:
        ended = ending(tried.sub_loop["terminated_by"])
        yield f"sub-loop {tried.sub_loop['loop']}: {placed(ended, tried.sub_loop['final_state'])}"
    if tried.target:
        yield f"leads to: {tried.target}"


def _shown(title: str, text: str) -> Iterator[str]:
    lines = text.rstrip().splitlines()
    if lines:
        yield f"{title}:" + (f" (the last {LINES} of {len(lines)} lines)" if len(lines) > LINES else "")
    for line in lines[-LINES:]:
        yield f"  {clean(line) if line.strip() else ''}".rstrip()


def _complaints(tried: Tried) -> Iterator[str]:
    yield from (f"warning: {clean(warning)}" for warning in tried.warnings)
    if tried.error or not tried.target:
        yield f"Error: {clean(tried.error) or 'it leads nowhere'}"
    if "not found in captured" in tried.error:
        yield "hint: say what an earlier state printed: --captured NAME=TEXT"
    if "not found in prev" in tried.error:
        yield "hint: say what the state before printed: --prev TEXT"


def _to_json(tried: Tried, code: int) -> dict[str, Any]:
    return {
        "loop": tried.loop,
        "state": tried.state,
        "action": tried.action,
        "ended": tried.exit_code,
        "output": tried.output,
        "stderr": tried.stderr,
        "duration_ms": tried.duration_ms,
        "evaluator": tried.evaluator or None,
        "verdict": tried.verdict or None,
        "details": dict(tried.details),
        "sub_loop": dict(tried.sub_loop) or None,
        "leads_to": tried.target or None,
        "error": tried.error or None,
        "warnings": list(tried.warnings),
        "exit_code": code,
    }
