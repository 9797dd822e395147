"""The machine: decides what a run does next. It never awaits, reads no clock, opens no file.

    decision = begin(loop, context, ...)            # events to record, an effect to perform
    decision = advance(decision.run, outcome)       # the effect's outcome in, the next effect out

A run whose `ending` is set has no further effect. `interrupt` closes a run in the middle (its state stays current),
`resume` opens it again. The same calls with the same values give the same decisions, so a journal of outcomes is
enough to rebuild a run (`ll_loop.core.replay`).

Inside, a move is a chain of steps: each returns the next step, a `Wait` for an answer, `NEXT_STATE`, or None when the
run has ended. The steps stand in the order in which a state goes through them: `entering`, `deciding`, `leaving`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from . import approvals, events, learning, sessions, spending, subloops
from .deciding import acted, consulted, files_checked, probed, stall_probed
from .effects import ActionDone, Answer, AskHuman, Breathe, Effect, Outcome, RunAction
from .endings import status_of
from .entering import AFTER_FLUSH, cooled, enter, flush, flushed, memory_read, next_state, tests_seen
from .events import Event
from .frame import After, Frame, Run, Turn
from .leaving import end_all, finish, loaded, promoted, rate_limit_rested, rested, server_error_rested, wait_or_leave
from .model import EMPTY, Ending, Loop, OnResume, TerminatedBy
from .move import NEXT_STATE, EndRun, Move, Next, NextState, Wait
from .tally import merged

CAPS: Mapping[TerminatedBy, str] = MappingProxyType(
    {"max_steps": "max_steps", "max_iterations_reached": "max_iterations"}
)
"""Endings at a cap, and the cap that has to be raised before the run can go on."""


BUDGETS = ("budget", "shared")
"""What a resume can raise besides caps: see `Loop`. A mapping of limits, which replace those that it names."""


REPLACED = (*CAPS.values(), *BUDGETS, "wishes", "backoff", "prompt_size_warn", "handoff_threshold", "values")
"""All that a resume can replace; `values` are values of the context of the run's own loop."""


RESUMABLE: frozenset[TerminatedBy] = frozenset(
    {"interrupted", "user_stopped", "handoff", "queue_timeout", "budget_exceeded", *CAPS}
)
"""Endings after which a run may go on; after a cap or a budget only once that was raised."""


LONGEST_STRETCH = 64
"""States in a row that need no answer before other runs get a turn."""


class Decision(Struct, frozen=True):
    """What a run does next: tell `events`, then perform `effect` (None when the run has ended)."""

    run: Run
    effect: Effect | None
    events: tuple[Event, ...]


def begin(
    loop: Loop,
    context: Mapping[str, Any],
    *,
    env: Mapping[str, str] = EMPTY,
    ts: str = "",
    origin: Mapping[str, Any] = EMPTY,
    extras: Mapping[str, Any] = EMPTY,
) -> Decision:
    """Start a run. `env` holds the environment values that templates may name, `origin` fields of `loop_start`,
    `extras` what the contexts of its sub-loops get where they lack it.
    """
    frame = Frame(loop=loop, context=context, state=loop.initial, started_at=ts)
    move = Move(Run((frame,), env=env, extras=extras), 0.0, ts, 0.5)
    move.emit(events.loop_start(origin))
    return _follow(move, NEXT_STATE)


def advance(run: Run, outcome: Outcome) -> Decision:
    """Go on with the outcome of the effect under way; ValueError if the answer is not one to that effect."""
    if run.waiting is None or run.ending is not None:
        raise ValueError(f"{run!r} waits for nothing")
    move = Move(run, outcome.at, outcome.ts, outcome.chance)
    spending.book(move, outcome.answer)
    return _follow(move, partial(_ANSWERED[run.after], answer=outcome.answer))


def interrupt(
    run: Run,
    at: float,
    ts: str,
    *,
    by: TerminatedBy = "interrupted",
    signal: int = 0,
    error: str | None = None,
    begun: bool = False,
) -> Decision:
    """Close a run in the middle. No route is taken: the state stays current, and `resume` enters it again.

    `begun` is whether a process was started for what is under way. ValueError if the run has ended already.
    """
    if run.ending is not None:
        raise ValueError(f"{run!r} cannot be interrupted")
    move = Move(run, at, ts, 0.5)
    if isinstance(run.waiting, AskHuman):
        approvals.withdraw(move)
    if begun:
        spending.book_lost(move, run.waiting)
    end_all(move, by, error=error, signal=signal)
    return Decision(replace(_settled(move, None), waiting=run.waiting, after=run.after), None, tuple(move.events))


class Start(Struct, frozen=True):
    """Where a run goes on that was told to: a state of its loop as it is now, and what templates may see there."""

    loop: Loop
    state: str
    context: Mapping[str, Any]
    env: Mapping[str, str]


def resume(
    run: Run,
    at: float,
    ts: str,
    *,
    started: bool = True,
    in_doubt: OnResume | None = None,
    start: Start | None = None,
    **raised: Any,
) -> Decision:
    """Open a closed or killed run again; `raised` are those of `REPLACED` that are not to be as they were.

    An action that may have `started` is entered again as the next attempt (or skipped, or fails the run, as `in_doubt`
    or its state's `on_resume` says; ValueError if that is to ask); a question to a person is put again, any other
    effect is asked for again. A run that ended for good, or whose cap would end it at once, ends again as it did. With
    a `start` it goes on there, however it ended, with its captures and counters, and leaves what was under way.
    """
    if start is not None:
        run = _moved(run, start)
    ending = run.ending
    over = ending is not None and run.waiting is None
    move = Move(replace(run, stop=None if over else run.stop, ending=None, successors=0), at, ts, 0.5)
    _replace(move, raised)
    goes_on = ending is None or _goes_on(ending, move.frames[0])
    if ending is None and started:
        spending.book_lost(move, run.waiting)
    if over and goes_on:
        move.frame.state = move.frame.pre_cap_state or move.frame.state
        _reopen(move.frame)
        sessions.pick_up(move, ending.continuation if ending else None)
    root = move.frames[0]
    continuation = ending.continuation if ending else None
    for name, fields in (events.loop_resume(root.state, root.iteration, continuation), events.loop_start({})):
        move.events.append(Event(name, fields, root.loop.name, 0))
    if ending is not None and not goes_on:
        return _follow(move, partial(_end_again, ending=ending))
    if run.waiting is None or (run.after == "backoff" and len(run.frames) == 1 and raised.get("backoff") is not None):
        return _follow(move, NEXT_STATE)
    if isinstance(run.waiting, RunAction) and (started or raised.get("values")):
        choice = in_doubt if started else "rerun"  # what never began is made anew, with the new values in it
        return _follow(move, partial(_reenter, after=run.after, in_doubt=choice))
    if isinstance(run.waiting, AskHuman):
        return _follow(move, approvals.ask)
    waiting = Wait(run.waiting, run.after)
    return _follow(move, lambda _: waiting)


def _goes_on(ending: Ending, root: Frame) -> bool:
    match ending.by:
        case "max_steps":
            return root.iteration < root.loop.max_steps
        case "max_iterations_reached":
            return root.loop.max_iterations is None or root.passes < root.loop.max_iterations
        case by:
            return by in RESUMABLE and status_of(ending) != "failed"


def _end_again(move: Move, *, ending: Ending) -> None:
    root = move.frames[0]
    name, fields = events.loop_complete(ending, root.iteration)
    move.events.append(Event(name, fields, root.loop.name, 0))
    move.ending = ending


def with_overrides(loop: Loop, overrides: Mapping[str, Any]) -> Loop:
    """The loop with what a start or a resume asked for in place of its own caps and `backoff`.

    `values` are for its context.
    """
    if not overrides:
        return loop
    given = {name: value for name, value in overrides.items() if name != "values"}
    if isinstance(wishes := given.get("wishes"), Mapping):
        given["wishes"] = replace(loop.wishes, **wishes)
    for name in BUDGETS:
        if isinstance(raised := given.get(name), Mapping):
            given[name] = merged(getattr(loop, name), raised)
    return replace(loop, **given)


def _replace(move: Move, raised: Mapping[str, Any]) -> None:
    given = {name: value for name, value in raised.items() if value is not None}
    if not given:
        return
    root = move.frames[0] if len(move.frames) == 1 else move.frames[0].copy()
    root.context = {**root.context, **given.get("values", EMPTY)}
    root.loop = with_overrides(root.loop, given)
    move.frames[0] = root


def _reopen(frame: Frame) -> None:
    frame.pre_cap_state = frame.cap = frame.came_from = None
    frame.handled = frozenset()
    frame.attempt = 1


def _moved(run: Run, start: Start) -> Run:
    root = run.root.copy()
    root.loop, root.state, root.context, root.turn = start.loop, start.state, start.context, Turn()
    _reopen(root)
    return replace(run, frames=(root,), env=start.env, waiting=None, after="nothing", stop=None, ending=None)


def _reenter(move: Move, *, after: After, in_doubt: OnResume | None) -> Next:
    frame = move.frame
    why = "its on_resume says" if in_doubt is None else "somebody said"
    match in_doubt or move.state.on_resume:
        case "ask":
            raise ValueError(f"nobody said what to do with state {frame.state!r}")
        case "fail":
            raise EndRun("error", f"state {frame.state!r} was cut off, and {why} fail")
        case "skip":
            move.warn(f"state {frame.state!r} was cut off; skipped, as {why}")
            return partial(_ANSWERED[after], answer=ActionDone(0))
        case "rerun":
            frame.attempt += 1
            return partial(flush, after=after) if after in AFTER_FLUSH else enter


def _follow(move: Move, following: Next) -> Decision:
    states = 0
    while callable(following) or isinstance(following, NextState):
        try:
            following = following(move) if callable(following) else next_state(move)
        except EndRun as end:
            following = partial(finish, by=end.by, error=str(end))
        states += following is NEXT_STATE
        if states > LONGEST_STRETCH:
            following = Wait(Breathe(), "breathe")
    return Decision(_settled(move, following), following.effect if following else None, tuple(move.events))


def _settled(move: Move, wait: Wait | None) -> Run:
    return Run(
        frames=tuple(move.frames),
        env=move.env,
        extras=move.extras,
        at=move.at,
        ts=move.ts,
        waiting=wait.effect if wait else None,
        after=wait.after if wait else "nothing",
        stop=move.stop,
        ending=move.ending,
        spent=move.spent,
        successors=move.successors,
    )


def _then(step: Callable[[Move, Answer], Wait | str | None]) -> Callable[..., Next]:
    """An answer to a kind of state that chooses its target itself."""
    return lambda move, answer: wait_or_leave(step(move, answer))


_ANSWERED: Mapping[After, Callable[..., Next]] = {
    "action": acted,
    "flush": partial(flushed, after="flush"),
    "cap_flush": partial(flushed, after="cap_flush"),
    "probe": probed,
    "stall": stall_probed,
    "rate_limit": rate_limit_rested,
    "server_error": server_error_rested,
    "backoff": rested,
    "breathe": rested,
    "load": loaded,
    "find_human": _then(approvals.found),
    "human": _then(approvals.replied),
    "record": _then(learning.looked),
    "explore": _then(learning.explored),
    "consult": consulted,
    "tests_before": tests_seen,
    "patch": partial(files_checked, after="patch"),
    "tests_after": partial(files_checked, after="tests_after"),
    "tests_restored": partial(files_checked, after="tests_restored"),
    "memory": memory_read,
    "cooled": cooled,
    "artifact": promoted,
    "tree_entered": _then(subloops.tree_entered),
    "tree_left": _then(subloops.tree_left),
}
