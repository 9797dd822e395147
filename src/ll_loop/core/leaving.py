"""The way out of a state: its route, the pause before the next one, and the ways in which a loop ends."""

from __future__ import annotations

from functools import partial
from typing import Any

from . import artifacts, events, memory, retries, sessions, spending, subloops
from .effects import Answer, Loaded, LoadFailed, Probed, Rested
from .effects import Sleep as SleepEffect
from .events import Event
from .frame import Frame
from .model import Ending, TerminatedBy
from .move import NEXT_STATE, EndRun, Move, Next, Wait, assign, expect
from .tally import spent_to_json


def wait_or_leave(found: Wait | str | None) -> Next:
    return found if isinstance(found, Wait) else partial(leave, target=found)


def leave(move: Move, target: str | None) -> Next:
    frame = move.frame
    if move.stop is not None and move.stop.by in ("error", "handoff"):
        return stopped(move)
    spending.check_ceiling(move)
    target = memory.over_budget(move, target)
    if target is None and frame.loop.maintain:
        target = move.named(move.state.on_maintain) or frame.loop.initial
    if target is None:
        if move.stop is not None:
            return stopped(move)
        if frame.cap is not None:
            return finish(move, frame.cap)
        raise EndRun("no_route", "No valid transition")
    move.emit(events.route(frame.state, target))
    _count_edge(move, target)
    frame.came_from, frame.state, frame.just_routed, frame.attempt = frame.state, target, True, 1
    if frame.loop.backoff > 0 and move.stop is None:
        return Wait(SleepEffect(frame.loop.backoff, "backoff"), "backoff")
    return NEXT_STATE


def _count_edge(move: Move, target: str) -> None:
    frame = move.frame
    edge = f"{frame.state}->{target}"
    count = frame.edges.get(edge, 0) + 1
    frame.edges = assign(frame.edges, edge, count)
    limit = frame.loop.max_edge_revisits
    if count > limit:
        move.emit(events.cycle_detected(frame.state, target, count, limit))
        raise EndRun("cycle_detected", f"Cycle detected: edge {edge} traversed {count} times (limit: {limit})")


def rate_limit_rested(move: Move, answer: Answer) -> Next:
    expect(Rested, answer)
    return retries.go_on_waiting(move) or again


def server_error_rested(move: Move, answer: Answer) -> Next:
    expect(Rested, answer)
    retries.after_server_wait(move)
    return partial(leave, target=move.frame.state)


def again(move: Move) -> Next:
    """Enter the state again in place: it costs no retry and no throttle count."""
    frame = move.frame
    frame.repeated_in_place = True
    count = frame.throttled.get(frame.state, 0)
    if count:
        frame.throttled = assign(frame.throttled, frame.state, count - 1)
    return partial(leave, target=frame.state)


def rested(move: Move, answer: Answer) -> Next:
    expect(Rested, answer)
    return NEXT_STATE


def loaded(move: Move, answer: Answer) -> Next:
    if not isinstance(answer, Loaded | LoadFailed):
        raise ValueError(f"not an answer to loading a sub-loop: {answer!r}")
    target = subloops.loaded(move, answer)
    return NEXT_STATE if target is None else wait_or_leave(subloops.out_of_tree(move, target))


def stopped(move: Move) -> Next:
    assert move.stop is not None
    asked = move.stop
    match asked.by:
        case "error":
            end_all(move, "error", error=asked.text)
        case "handoff":
            if sessions.hand_over(move, asked.text or ""):
                return NEXT_STATE
            keeps = move.frames[0].loop.on_handoff != "terminate"
            end_all(move, "handoff", continuation=asked.text or "" if keeps else None)
        case "interrupted":
            done = move.frame.turn.done
            if done is not None and done.exit_code < 0:
                end_all(move, "system_signal")
            else:
                end_all(move, "interrupted", asked=True)
        case "system_signal":
            move.stop = None
            return finish(move, "system_signal")
    return None


def finish(move: Move, by: TerminatedBy, error: str | None = None) -> Next:
    """End the frame under way: a sub-loop goes back to its parent, the outermost loop ends the run."""
    if len(move.frames) == 1:
        if by == "terminal" and not move.frame.acted:
            move.warn("the run has come to its end without running anything")
        promotion = artifacts.due(move, by)
        if promotion is None:
            end_all(move, by, error=error)
        return promotion
    ending = _ending(move.frame, by, error=error)
    move.emit(events.loop_complete(ending, move.frame.iteration))
    return wait_or_leave(subloops.ended(move, ending))


def promoted(move: Move, answer: Answer) -> None:
    artifacts.note(move, expect(Probed, answer))
    end_all(move, "terminal")


def end_all(move: Move, by: TerminatedBy, **more: Any) -> None:
    """End every frame for the same reason; they stay on the stack, so that a resume finds them."""
    for frame in reversed(move.frames):
        ending = _ending(frame, by, **more)
        name, fields = events.loop_complete(ending, frame.iteration)
        if move.spent and not frame.depth:
            fields["usage"] = spent_to_json(move.spent)
        move.events.append(Event(name, fields, frame.loop.name, frame.depth))
        move.ending = ending


def _ending(frame: Frame, by: TerminatedBy, **more: Any) -> Ending:
    state = frame.loop.states.get(frame.state)
    arrived = by in ("terminal", "max_steps", "max_iterations_reached")
    failed = arrived and state is not None and state.failure
    return Ending(by, frame.state, failure_terminal=failed, **more)
