"""Between states, and into one: limits, caps and retries first, then the state's work begins."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial

from msgspec.structs import replace

from . import actions, approvals, events, guards, learning, limits, memory, subloops
from .deciding import judge
from .effects import ActionDone, Answer, Probed, Rested
from .frame import After, Frame
from .leaving import finish, leave, stopped, wait_or_leave
from .model import HumanApproval, Learning, McpTool, Nothing, Prompt, Shell, SubLoop
from .move import NEXT_STATE, EndRun, Move, Next, Step, Wait, assign, expect, without


def next_state(move: Move) -> Next:
    return _go_on if move.stop is None else stopped(move)


def _go_on(move: Move) -> Next:
    frame = move.frame
    if _has_arrived(frame):
        return finish(move, frame.cap or "terminal")
    for limit in limits.LIMITS:
        match limit(move):
            case limits.Stop(flush=True):
                return partial(flush, after="flush")
            case limits.Handle(flush=True):
                return partial(flush, after="cap_flush")
            case limits.Stop(by):
                return finish(move, by)
            case limits.Handle() as handle:
                limits.enter_handler(move, handle)
    if frame.state not in frame.loop.states:
        raise EndRun("no_route", f"No state is called {frame.state!r}")
    _count_retry(frame)
    if frame.current.terminal and frame.loop.maintain:
        return _maintained(move)
    if frame.current.terminal and not _is_handler(frame):
        return finish(move, frame.cap or "terminal")
    return _retried(move) or enter


def _has_arrived(frame: Frame) -> bool:
    state = frame.loop.states.get(frame.state)
    return state is not None and state.terminal and not frame.loop.maintain and not _is_handler(frame)


def _is_handler(frame: Frame) -> bool:
    match frame.cap:
        case "max_steps":
            return frame.state == frame.loop.on_max_steps
        case "max_iterations_reached":
            return frame.state == frame.loop.on_max_iterations
        case "timeout":
            return frame.state == frame.loop.on_timeout
        case None:
            return False


def _count_retry(frame: Frame) -> None:
    before, frame.repeated_in_place = frame.repeated_in_place, False
    if frame.came_from is None:
        return
    if frame.came_from != frame.state:
        frame.retries = without(frame.retries, frame.came_from)
        frame.throttled = without(frame.throttled, frame.came_from)
    elif not before:
        frame.retries = assign(frame.retries, frame.state, frame.retries.get(frame.state, 0) + 1)


def _retried(move: Move) -> Next:
    frame, retry = move.frame, move.state.retry
    count = frame.retries.get(frame.state, 0)
    if retry is None or count <= retry.limit:
        return None
    target = move.named(retry.then)
    move.emit(events.retry_exhausted(frame.state, count, target))
    frame.retries = without(frame.retries, frame.state)
    frame.state = target
    return NEXT_STATE


def _maintained(move: Move) -> Next:
    frame = move.frame
    frame.iteration += 1
    frame.passes += 1
    target = move.named(frame.current.on_maintain) or frame.loop.initial
    move.emit(events.route(frame.state, target, "maintain"))
    frame.came_from, frame.state = frame.state, target
    return NEXT_STATE


def enter(move: Move) -> Next:
    _count_step(move)
    actions.prepare(move)
    match move.state.work:
        case SubLoop() as work:
            return wait_or_leave(subloops.start(move, work))
        case Shell() | Prompt() | McpTool():
            return memory.look(move) or _guarded
        case HumanApproval():
            return wait_or_leave(approvals.start(move))
        case Learning() as work:
            return wait_or_leave(learning.start(move, work))
        case Nothing():
            if move.state.routes.next is not None:
                return partial(leave, target=move.target(move.state.routes.next))
            return judge


def _guarded(move: Move) -> Next:
    return guards.before(move) or wait_or_leave(actions.start(move))


def memory_read(move: Move, answer: Answer) -> Next:
    found = memory.weigh(move, expect(Probed, answer))
    if isinstance(found, str):
        move.emit(events.route(move.frame.state, found, "host_pressure"))
        move.frame.came_from, move.frame.state = move.frame.state, found
        return NEXT_STATE
    return found or _guarded


def cooled(move: Move, answer: Answer) -> Next:
    expect(Rested, answer)
    return _guarded


def tests_seen(move: Move, answer: Answer) -> Next:
    guards.note_before(move, expect(Probed, answer))
    return wait_or_leave(actions.start(move))


def _count_step(move: Move, *, flushed: bool = False) -> None:
    frame = move.frame
    frame.iteration += 1
    frame.just_routed = False
    move.emit(events.state_enter(frame.state, frame.iteration, frame.passes, flushed=flushed, attempt=frame.attempt))


def flush(move: Move, *, after: After) -> Next:
    """Run the action of the state under way once, before a limit takes effect; nothing is judged or routed."""
    _count_step(move, flushed=True)
    try:
        actions.prepare(move)
        found = actions.start(move)
    except EndRun:
        return AFTER_FLUSH[after]  # the limit is why the run ends, whatever is wrong with this action
    return Wait(found.effect, after) if isinstance(found, Wait) else AFTER_FLUSH[after]


def flushed(move: Move, answer: Answer, *, after: After) -> Next:
    done = expect(ActionDone, answer)
    move.frame.turn = replace(move.frame.turn, done=done)
    with suppress(EndRun):
        actions.note(move, done)
    return AFTER_FLUSH[after]


AFTER_FLUSH: Mapping[After, Step] = {"flush": partial(finish, by="timeout"), "cap_flush": _go_on}
