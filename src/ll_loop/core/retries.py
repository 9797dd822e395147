"""What to do about an action that failed for a reason of its provider: wait and try again, or give up.

Only host actions are looked at, and shell states that declare a rate-limit key themselves
(docs/compatibility.md). Each attempt is a step. Waiting out a rate limit costs no retry and no throttle count; trying
again after a provider's error costs both.
"""

from __future__ import annotations

from datetime import datetime

from . import events
from .effects import RATE_LIMIT, ActionDone, Sleep
from .failures import FailureClass, classify_failure
from .frame import RateRecord
from .model import RateLimit, State
from .move import Move, Wait, assign, without

SERVER_RETRIES = 2
SERVER_WAIT = 30.0
HEARTBEAT = 60.0
STORM = 3
JITTER = 1.0
"""Seconds over which those who were told the same time are spread."""


def after_failure(move: Move, done: ActionDone) -> Wait | str | None:
    """A wait to take, a target to go to, or None for the state's ordinary routes."""
    state = move.state
    if state.rate_limit is None and not state.is_prompt:
        return None
    if done.exit_code == 0:
        _clear(move)
        return None
    match class_of(done):
        case "quota":
            return _wait_out(move, state, done)
        case "auth":
            return move.target(state.routes.on_error)
        case "server" if state.is_prompt:
            return _server_error(move, state)
        case _:
            _clear(move)
            return None


def class_of(done: ActionDone) -> FailureClass:
    """Why an action failed: as its host told, else by the words of what it wrote."""
    if done.reply is not None and done.reply.failure is not None:
        return done.reply.failure
    return classify_failure(done.output, done.stderr)


def _clear(move: Move) -> None:
    frame = move.frame
    frame.rates = without(frame.rates, frame.state)
    frame.server_errors = without(frame.server_errors, frame.state)
    frame.exhausted_in_a_row = 0


def _wait_out(move: Move, state: State, done: ActionDone) -> Wait | str | None:
    """As long as the host told, else as the ladder says. A told wait leaves the ladder where it is."""
    policy = state.rate_limit or RateLimit()
    record = move.frame.rates.get(state.name, RateRecord())
    told = done.reply.wait(_epoch(move.ts)) if done.reply is not None else None
    if told and record.waited + told <= policy.max_wait:
        wait = told + move.chance * JITTER
        record = RateRecord(record.short, record.long + 1, record.waited, wait, wait)
    elif told:  # to wait any part of that would be of no use
        return _give_up(move, state, policy, record)
    elif record.short < policy.retries:
        wait = policy.base * 2**record.short + move.chance * policy.base
        record = RateRecord(record.short + 1, record.long, record.waited, wait, wait)
    elif record.waited < policy.max_wait:
        rung = policy.ladder[min(record.long, len(policy.ladder) - 1)]
        wait = min(rung, policy.max_wait - record.waited)
        record = RateRecord(record.short, record.long + 1, record.waited, wait, wait)
    else:
        return _give_up(move, state, policy, record)
    move.frame.rates = assign(move.frame.rates, state.name, record)
    return _next_wait(record)


def _epoch(ts: str) -> float | None:
    return datetime.fromisoformat(ts).timestamp() if ts else None


def _next_wait(record: RateRecord) -> Wait:
    seconds = min(record.left, HEARTBEAT) if record.long else record.left
    return Wait(Sleep(seconds, RATE_LIMIT, record.left), "rate_limit")


def go_on_waiting(move: Move) -> Wait | None:
    """After a part of a wait: the next part with a heartbeat, or None when the state is to be tried again."""
    frame = move.frame
    record = frame.rates[frame.state]
    part = min(record.left, HEARTBEAT) if record.long else record.left
    left = record.left - part
    record = RateRecord(record.short, record.long, record.waited + part, left, record.wait)
    frame.rates = assign(frame.rates, frame.state, record)
    if left <= 0:
        return None
    policy = move.state.rate_limit or RateLimit()
    move.emit(events.rate_limit_waiting(frame.state, record.wait - left, left, record.waited, policy.max_wait))
    return _next_wait(record)


def _give_up(move: Move, state: State, policy: RateLimit, record: RateRecord) -> str | None:
    frame = move.frame
    frame.rates = without(frame.rates, state.name)
    target = move.named(policy.then) or move.target(state.routes.on_error)
    move.emit(events.rate_limit_exhausted(state.name, record.short, record.long, record.waited, target))
    frame.exhausted_in_a_row += 1
    if frame.exhausted_in_a_row >= STORM:
        move.emit(events.rate_limit_storm(state.name, frame.exhausted_in_a_row))
    return target


def _server_error(move: Move, state: State) -> Wait | None:
    frame = move.frame
    tries = frame.server_errors.get(state.name, 0)
    if tries >= SERVER_RETRIES:
        move.emit(events.api_error_exhausted(state.name, tries))
        frame.server_errors = without(frame.server_errors, state.name)
        return None
    frame.server_errors = assign(frame.server_errors, state.name, tries + 1)
    return Wait(Sleep(SERVER_WAIT, "server error", SERVER_WAIT), "server_error")


def after_server_wait(move: Move) -> None:
    """The pause after a provider's error is over."""
    state = move.frame.state
    move.emit(events.api_error_retry(state, move.frame.server_errors[state], SERVER_WAIT))
