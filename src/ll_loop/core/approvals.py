"""States that ask a person: whether anybody is there, the question, and where the answer leads.

A question that was answered is never put again: the answer is an outcome in the journal. One that was open when the
run was cut off is put again, under the same id and with the whole wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from msgspec.structs import replace

from . import actions, events
from .effects import Answer, AskHuman, FindHuman, HumanFound, HumanReply
from .frame import Asked
from .move import Move, Wait, assign, expect
from .routing import route
from .template import TemplateError

_WORDS: Mapping[str, str] = {"approve": "yes", "reject": "no", "edit": "edit", "timeout": "timeout"}
_FALLBACK: Mapping[str, str] = {"edit": "yes", "timeout": "no"}


def start(move: Move) -> Wait | str:
    """Look for somebody to ask, or the target of `on_error` when the question cannot be made."""
    try:
        question = move.render(move.state.template)
    except TemplateError as error:
        return actions.on_error(move, error)
    move.frame.turn = replace(move.frame.turn, asked=Asked(question))
    return Wait(FindHuman(), "find_human")


def found(move: Move, answer: Answer) -> Wait | str | None:
    """Ask, or go on at once when nobody is there."""
    if not expect(HumanFound, answer).anyone:
        return _resolve(move, HumanReply("timeout", reason="headless"), None)
    return ask(move)


def ask(move: Move) -> Wait:
    """Put the question of the state under way (again)."""
    frame = move.frame
    assert frame.turn.asked is not None
    ask = AskHuman(
        _identifier(move), frame.turn.asked.question, frame.state, _patience(move), frame.loop.name, frame.depth
    )
    frame.turn = replace(frame.turn, asked=replace(frame.turn.asked, since=move.at))
    move.emit(events.human_approval_requested(ask, _later(move.ts, ask.timeout)))
    return Wait(ask, "human")


def replied(move: Move, answer: Answer) -> str | None:
    """Where the answer leads."""
    return _resolve(move, expect(HumanReply, answer), _identifier(move))


def withdraw(move: Move) -> None:
    """Tell that a question is open no more because the run was interrupted."""
    frame = move.frame
    move.emit(events.human_approval_resolved(frame.state, _identifier(move), "shutdown", _elapsed(move), None, None))


def _resolve(move: Move, reply: HumanReply, alert_id: str | None) -> str | None:
    frame = move.frame
    frame.acted = frame.acted or reply.verdict != "timeout"
    word = _WORDS[reply.verdict]
    routes = move.state.routes
    template = route(routes, word)
    if template is None and word in _FALLBACK:
        template = route(routes, _FALLBACK[word])
    kept = {"output": reply.edit or "", "verdict": reply.verdict, "edit": reply.edit, "reason": reply.reason}
    frame.captured = assign(frame.captured, frame.state, kept)
    target = move.target(template)
    elapsed = _elapsed(move) if alert_id else 0.0
    move.emit(events.human_approval_resolved(frame.state, alert_id, reply.verdict, elapsed, target, reply.reason))
    return target


def _elapsed(move: Move) -> float:
    asked = move.frame.turn.asked
    return round(move.at - asked.since, 6) if asked else 0.0


def _identifier(move: Move) -> str:
    return "/".join(f"{frame.state}-{frame.iteration}" for frame in move.frames)


def _patience(move: Move) -> float:
    """How long to wait: as the state says, but not beyond the time that its loop has left."""
    frame = move.frame
    wait = move.state.timeout or move.frames[0].loop.approval_timeout
    limit = frame.limit if frame.limit is not None else frame.loop.timeout
    return min(wait, max(0.0, limit - (move.at - frame.started))) if limit else wait


def _later(ts: str, seconds: float) -> str:
    if not ts:
        return ""
    return (datetime.fromisoformat(ts) + timedelta(seconds=seconds)).isoformat(timespec="microseconds")
