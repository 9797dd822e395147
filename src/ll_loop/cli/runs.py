"""Running loops for the command line: start, show, say how it ended."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from msgspec import Struct

from .. import api
from ..api import Request, RunHandle, Session
from ..core.model import State, SubLoop
from .asking import is_somebody_there
from .complaints import mention
from .forms import text_of
from .options import Texts
from .plan import plan_lines, plan_to_json
from .running import Outlook
from .terminal import STDERR, STDOUT, look_at, say
from .words import plural


class Wishes(Struct, frozen=True):
    """How the user wants to hear of runs, and how long they may take to end."""

    project: Path | None = None
    as_json: bool = False
    events: bool = False
    quiet: bool = False
    grace: float = 5.0
    jobs: int | None = None
    fail_fast: bool = False
    many: bool = False
    attended: bool = False
    host_slots: int | None = None
    max_usd: float | None = None
    max_tokens: int | None = None
    deadline: float | None = None

    @property
    def where(self) -> Path:
        """The project."""
        return self.project or api.find_project(Path.cwd())


def request_of(
    name: str, input: str | None, *, program_md: Path | None, queue: bool, no_lock: bool,  # noqa: A002
    no_prompt_size_guard: bool = False, **given: Any,
) -> Request:  # fmt: skip
    """What the options ask for. A time limit for waiting is a wish to wait."""
    if no_prompt_size_guard:
        given["prompt_size_warn"] = 0
    return Request(
        name,
        input,
        program_md=None if program_md is None else str(program_md.absolute()),
        queue=queue or given["queue_timeout"] is not None,
        lock=not no_lock,
        **given,
    )


def names_of(patterns: Iterable[str], wishes: Wishes) -> list[str]:
    """The loops that names and patterns mean."""
    return api.expand(api.Library(wishes.where), patterns)


async def run(requests: Sequence[Request], wishes: Wishes) -> int:
    """Start all or none, and see them through."""

    def start(session: Session) -> list[RunHandle]:
        handles = api.start_all(session, requests)
        if not wishes.quiet:
            mention(session.config.problems, "the configuration", "ll-loop config")
            _mention_warnings(session.library, [request.name for request in requests])
            _mention_problems(handles)
            for handle, request in zip(handles, requests, strict=True):
                _mention_doubts(handle, request.texts)
                _mention_unused_input(handle)
        return handles

    return await _see_through(start, wishes)


def _mention_warnings(library: api.Library, names: Iterable[str]) -> None:
    """Say in one line that the loops have warnings; `validate` tells them."""
    counts = {name: len(library.check(name)[1]) for name in dict.fromkeys(names)}
    doubtful = [name for name, count in counts.items() if count]
    if doubtful:
        said = plural(sum(counts.values()), "warning")
        only = len(doubtful) == 1
        where, name = ("", doubtful[0]) if only else (f" in {len(doubtful)} loops", "NAME")
        line = f"{said}{where}: see `ll-loop validate {name}`"
        say(look_at(STDERR, os.environ).fit(line), fd=STDERR)


def _mention_problems(handles: Sequence[RunHandle]) -> None:
    """Say, once each, what is doubtful about what runs begin with."""
    mention([*dict.fromkeys(problem for handle in handles for problem in handle.problems)])


def _mention_doubts(handle: RunHandle, texts: Texts) -> None:
    """Say of context values that nothing in the loop reads them, or that they are of another type than those there."""
    loop, look = handle.loop, look_at(STDERR, os.environ)
    known = {*loop.context, *loop.parameters, *loop.required_inputs, loop.input_key}
    for key, text in texts:
        before = loop.context.get(key)
        if isinstance(before, bool | int | float) and isinstance(handle.context.get(key), str):
            what = "true or false" if isinstance(before, bool) else "a number"
            say(look.fit(f"warning: {loop.name}: `{key}` was {what} and is now the text `{text}`"), fd=STDERR)
        elif key not in known and not api.may_read(loop, key):
            near = get_close_matches(key, known, n=1, cutoff=0.75)
            more = f"did you mean `{near[0]}`?" if near else f"it knows: {', '.join(sorted(known))}"
            say(look.fit(f"warning: {loop.name} knows no context value `{key}`; {more}"), fd=STDERR)


def _mention_unused_input(handle: RunHandle) -> None:
    """Say that an input was given to a loop in which nothing speaks of it."""
    loop, key = handle.loop, handle.loop.input_key
    declared = key in loop.context or key in loop.parameters or key in loop.required_inputs
    if handle.request.input is None or handle.context.get(key) != handle.request.input or declared:
        return
    if not any(key in repr(state).lower() or _hands_down_all(state) for state in loop.states.values()):
        line = f"warning: {loop.name} does not use its input: nothing in it refers to `${{context.{key}}}`"
        say(look_at(STDERR, os.environ).fit(line), fd=STDERR)


def _hands_down_all(state: State) -> bool:
    """Whether a sub-loop, which may use anything, gets all values."""
    return isinstance(state.work, SubLoop) and state.work.passthrough


async def resume(wanted: str | None, max_steps: int | None, max_iterations: int | None, wishes: Wishes) -> int:
    """Go on with what is meant, and see it through."""

    def start(session: Session) -> list[RunHandle]:
        return api.resume(session, wanted, max_steps=max_steps, max_iterations=max_iterations)

    return await _see_through(start, wishes)


async def _see_through(start: Callable[[Session], list[RunHandle]], wishes: Wishes) -> int:
    """Start runs, show them until they have ended, and say how they ended."""
    attended = wishes.attended or is_somebody_there()
    session = api.Session(
        wishes.where,
        jobs=wishes.jobs,
        grace=wishes.grace,
        subreaper=True,
        attended=attended,
        host_slots=wishes.host_slots,
        max_usd=wishes.max_usd,
        max_tokens=wishes.max_tokens,
        deadline=wishes.deadline,
    )
    async with api.signals(session), session:
        outlook = Outlook(session, wishes)
        results = await outlook.watch(start(session))
    return outlook.tell(results)


def show_plans(requests: Sequence[Request], wishes: Wishes) -> int:
    """Print what would be run. Nothing is started, nothing is written."""
    session = api.Session(wishes.where)
    handles = [session.prepare(request) for request in requests]
    if not wishes.quiet:
        _mention_problems(handles)
    if wishes.as_json:
        say(text_of({"runs": [], "plans": [plan_to_json(handle) for handle in handles], "exit_code": 0}))
        return 0
    look = look_at(STDOUT, os.environ)
    for handle in handles:
        for line in plan_lines(handle, look):
            say(line)
    return 0
