"""Running loops for the command line: start, show, say how it ended."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from .. import api
from ..api import Errand, Request, Resumption, RunHandle, Session
from ..core.model import State, SubLoop
from ..core.nearest import nearest
from ..errors import RefusedError, UsageError
from .asking import Keyboard, is_somebody_there
from .complaints import mention
from .doubting import decide
from .forms import text_of
from .options import Texts
from .plan import plan_lines, plan_to_json
from .running import Outlook
from .terminal import STDERR, STDOUT, look_at, say
from .words import plural


class Telling(Struct, frozen=True):
    """How a command tells of its runs, besides what it tells a person."""

    as_json: bool = False
    events: bool = False
    background: bool = False


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


async def carry_out(errand: Errand, telling: Telling) -> int:
    """Start all or none; see them through, or leave that to a process in the background."""
    errand = await _decided(errand)
    if telling.background:
        return await _leave(errand, telling)
    session = session_of(errand)
    async with api.signals(session), session:
        outlook = Outlook(session, errand, telling)
        results = await outlook.watch(starter_of(errand)(session))
    return outlook.tell(results)


async def _decided(errand: Errand) -> Errand:
    """The errand with what somebody at the terminal says about actions in doubt, if that is to be asked."""
    going = errand.resume
    if going is None or going.failed or going.in_doubt or going.from_state or not is_somebody_there():
        return errand
    said = await decide(api.doubts(Path(errand.project), going.wanted), Keyboard(live=False))
    return replace(errand, resume=replace(going, in_doubt=said)) if said else errand


Asked = tuple[Errand, Telling]
"""What is to be done, and how it is to be told."""

_SHARED = ("jobs", "host_slots", "grace", "fail_fast", "attended", "quiet", "verbose", "backend")
_BUDGET = ("max_usd", "max_tokens", "deadline")


def asked_of_run(name: str, input: str | None, given: dict[str, Any]) -> Asked:  # noqa: A002
    """What the options of `run` ask for."""
    project, telling, shared = _project(given), _taken(given, Telling.__struct_fields__), _taken(given, _SHARED)
    if given.pop("builtin"):
        name = str(api.Library(Path(project)).resolve(name, built_in=True))
    return Errand(project, (request_of(name, input, **given),), **shared), Telling(**telling)


def asked_of_many(names: Iterable[str], given: dict[str, Any]) -> Asked:
    """What the options of `run-many` ask for."""
    project, telling = _project(given), _taken(given, Telling.__struct_fields__)
    shared = _taken(given, (*_SHARED, *_BUDGET))
    given["queue"] = True
    chosen = api.expand(api.Library(Path(project)), names)
    requests = tuple(request_of(name, None, **given) for name in chosen)
    return Errand(project, requests, many=True, **shared), Telling(**telling)


def asked_of_resume(given: dict[str, Any]) -> Asked:
    """What the options of `resume` ask for."""
    project, telling = _project(given), _taken(given, Telling.__struct_fields__)
    shared = _taken(given, (*_SHARED, *_BUDGET))
    if given.pop("no_prompt_size_guard"):
        given["prompt_size_warn"] = 0
    return Errand(project, resume=Resumption(**given), **shared), Telling(**telling)


def _project(given: dict[str, Any]) -> str:
    return str((given.pop("project") or api.find_project(Path.cwd())).absolute())


def _taken(given: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Take these out of the options, as far as the command has them."""
    return {name: given.pop(name) for name in names if name in given}


def session_of(errand: Errand) -> Session:
    """The session for what was asked."""
    return api.Session(
        errand.project,
        jobs=errand.jobs,
        grace=errand.grace,
        subreaper=True,
        attended=errand.attended or is_somebody_there(),
        host_slots=errand.host_slots,
        max_usd=errand.max_usd,
        max_tokens=errand.max_tokens,
        deadline=errand.deadline,
        workplace=api.find_workplace(Path.cwd(), Path(errand.project)),
    )


def starter_of(errand: Errand) -> Callable[[Session], list[RunHandle]]:
    """What starts the runs of an errand, all or none, and says what is doubtful about them."""

    def start(session: Session) -> list[RunHandle]:
        if errand.resume is not None:
            handles = api.carry_on(session, errand.resume)
            if not errand.quiet:
                _mention_problems(handles)
                for handle in handles:
                    _mention_doubts(handle, errand.resume.texts)
            return handles
        handles = api.start_all(session, errand.requests)
        _mention_earlier(handles)
        if not errand.quiet:
            mention(session.config.problems, "the configuration", "ll-loop config")
            _mention_warnings(session.library, [request.name for request in errand.requests])
            _mention_problems(handles)
            for handle, request in zip(handles, errand.requests, strict=True):
                _mention_doubts(handle, request.texts)
                _mention_unused_input(handle)
        return handles

    return start


async def _leave(errand: Errand, telling: Telling) -> int:
    if telling.events:
        raise UsageError("--events shows what happens, --background does not wait", hint="use `ll-loop logs -f --json`")
    if os.environ.get("LL_LOOP_RUN_ID"):
        raise RefusedError(
            "inside an action, a run in the background would end with that action", hint="leave --background out"
        )
    report = await api.start_in_background(errand)
    code = int(report["exit_code"])
    if telling.as_json:
        say(text_of(report, indent=None))
    else:
        say(*_left_lines(report))
        say(*_refused_lines(report), fd=STDERR)
    return code


def _left_lines(report: Mapping[str, Any]) -> Iterator[str]:
    for run in report["runs"]:
        if run["exit_code"] is not None:
            continue
        how = f"goes on in the background (pid {report['pid']})"
        if run["status"] == "queued":
            how = f"is queued, place {run['place']}: {run['waits_for'] or 'as many run as may'}"
        yield f"{run['loop']} {how}: run {run['run_id']}"
    if report.get("log"):
        yield f"log: {report['log']}"


def _refused_lines(report: Mapping[str, Any]) -> Iterator[str]:
    for run in report["runs"]:
        if run["exit_code"] is None:
            continue
        yield f"Error: {run['error']}" if run["error"] else f"{run['loop']} is over already: {run['status']}"
        if run["hint"]:
            yield f"hint: {run['hint']}"


def _mention_earlier(handles: Iterable[RunHandle]) -> None:
    """Say of which runs the attempt at this action that was cut off had made a part, or all."""
    for handle in handles:
        if handle.stored is not None:
            does = "it goes on" if handle.result is None else f"it is not run again: {handle.result.status}"
            say(f"{handle.loop.name}: run {handle.run_id} is of the attempt that was cut off; {does}", fd=STDERR)


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
            given = handle.secrets.text(text)
            say(look.fit(f"warning: {loop.name}: `{key}` was {what} and is now the text `{given}`"), fd=STDERR)
        elif key not in known and not api.may_read(loop, key):
            near = nearest(key, known, cutoff=0.75)
            more = f"did you mean `{near}`?" if near else f"it knows: {', '.join(sorted(known))}"
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


def show_plans(errand: Errand, telling: Telling) -> int:
    """Print what would be run. Nothing is started, nothing is written."""
    session = session_of(errand)
    handles = [session.prepare(request) for request in errand.requests]
    turns = list(zip(handles, session.foresee(handles), strict=True))
    if not errand.quiet:
        _mention_problems(handles)
    if telling.as_json:
        say(text_of({"runs": [], "plans": [plan_to_json(*one) for one in turns], "exit_code": 0}))
        return 0
    look = look_at(STDOUT, os.environ)
    for handle, waits_for in turns:
        for line in plan_lines(handle, waits_for, look):
            say(line)
    return 0
