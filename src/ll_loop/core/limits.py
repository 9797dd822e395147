"""Caps of a run: each decides whether the run goes on to its next state, is sent to a handler, or ends.

A new cap is a function and its place in `LIMITS`. A state that ends the run is entered before any cap is
asked: who arrives has arrived.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from . import events
from .frame import Cap
from .model import McpTool, Prompt, Shell, SubLoop, TerminatedBy
from .move import Move


class Stop(Struct, frozen=True):
    """End the frame for this reason; `flush` runs the state under way once first."""

    by: TerminatedBy
    flush: bool = False


class Handle(Struct, frozen=True):
    """Go to a handler; `flush` runs the state under way once first."""

    cap: Cap
    handler: str
    flush: bool = False


Limited = Stop | Handle | None
Limit = Callable[[Move], Limited]


def step_cap(move: Move) -> Limited:
    """At most `max_steps` states."""
    frame = move.frame
    if frame.iteration < frame.loop.max_steps:
        return None
    handler = frame.loop.on_max_steps
    if handler is None or "max_steps" in frame.handled:
        return Stop("max_steps")
    return Handle("max_steps", handler, flush=_left_a_sub_loop(move))


def pass_cap(move: Move) -> Limited:
    """At most `max_iterations` passes of a loop that maintains."""
    frame = move.frame
    if frame.loop.max_iterations is None or frame.passes < frame.loop.max_iterations:
        return None
    handler = frame.loop.on_max_iterations
    if handler is None or "max_iterations_reached" in frame.handled:
        return Stop("max_iterations_reached")
    return Handle("max_iterations_reached", handler)


def deadline(move: Move) -> Limited:
    """At most `timeout` seconds. Looked at between states only: it never cuts an action.

    With an `on_timeout`, nothing but that state is entered in the last `timeout_reserve` seconds.
    """
    frame, loop = move.frame, move.frame.loop
    limit = frame.limit if frame.limit is not None else loop.timeout
    if "timeout" in frame.handled:
        return Stop("timeout")
    if not limit or move.at - frame.started <= limit - loop.timeout_reserve:
        return None
    if loop.on_timeout is not None:
        return Handle("timeout", loop.on_timeout)
    state = frame.loop.states.get(frame.state)
    pending = state is not None and frame.just_routed and isinstance(state.work, Shell) and not state.terminal
    return Stop("timeout", flush=pending)


LIMITS: tuple[Limit, ...] = (step_cap, pass_cap, deadline)


def _left_a_sub_loop(move: Move) -> bool:
    """Whether the state under way was just reached from a sub-loop and still has an action to run."""
    frame = move.frame
    before = frame.loop.states.get(frame.came_from or "")
    state = frame.loop.states.get(frame.state)
    if before is None or state is None or not frame.just_routed:
        return False
    return isinstance(before.work, SubLoop) and not state.terminal and isinstance(state.work, Shell | Prompt | McpTool)


def enter_handler(move: Move, handle: Handle) -> None:
    """Jump to a cap's handler: it runs once, in the same turn."""
    frame = move.frame
    frame.pre_cap_state = frame.pre_cap_state or frame.state
    frame.cap = handle.cap
    frame.handled |= {handle.cap}
    match handle.cap:
        case "max_steps":
            move.emit(events.max_steps_summary(handle.handler, frame.iteration))
        case "max_iterations_reached":
            move.emit(events.max_iterations_summary(handle.handler, frame.passes))
        case "timeout":
            move.emit(events.timeout_summary(handle.handler, move.at - frame.started))
    frame.state, frame.attempt = handle.handler, 1
