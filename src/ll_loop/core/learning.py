"""States that need things to have been learned: every target must be proven, what is unknown is explored by an agent.

What is known of a target stands in a record that an exploration leaves behind; reading it is an effect.
"""

from __future__ import annotations

import re

from msgspec.structs import replace

from . import actions, events
from .effects import ActionDone, Answer, Learned, ReadLearning
from .frame import Pursuit
from .model import Learning
from .move import EndRun, Move, Wait, expect, explain
from .routing import first_route
from .template import TemplateError

EXPLORE = "/ll:explore-api"


def slug(target: str) -> str:
    """The name of a target's record: lower case, letters, digits, `_`, and hyphens for blanks."""
    plain = re.sub(r"[^\w\s-]", "", target.lower())
    return re.sub(r"[\s-]+", "-", plain).strip("-")


def start(move: Move, work: Learning) -> Wait | str | None:
    """Look up the first target; ends the run when the targets cannot be made out."""
    try:
        targets = work.targets if work.targets_csv is None else _listed(move.render(work.targets_csv))
        limit = work.max_retries if work.max_retries_expr is None else int(move.render(work.max_retries_expr))
    except TemplateError as error:
        raise EndRun("error", explain(move.frame, error)) from error
    except ValueError as error:
        raise EndRun("error", f"state {move.state.name!r}: max_retries_expr gives no whole number: {error}") from error
    if not targets:
        move.warn("no targets are named, so nothing had to be proven")
    return _look(move, Pursuit(targets, limit))


def looked(move: Move, answer: Answer) -> Wait | str | None:
    """Go on to the next target, explore this one, or give up."""
    learned = expect(Learned, answer)
    pursuit, name = _pursuit(move), move.state.name
    move.frame.acted = True
    target = pursuit.targets[pursuit.known]
    if learned.error is not None:
        raise EndRun("error", f"state {name!r}: the record of {target!r} cannot be read: {learned.error}")
    if learned.status == "proven":
        move.emit(events.learning_target("proven", name, target))
        return _look(move, replace(pursuit, known=pursuit.known + 1, tries=0))
    if learned.status == "refuted":
        move.emit(events.learning_target("refuted", name, target))
        return _blocked(move, target, "refuted")
    if pursuit.tries >= pursuit.limit:
        return _blocked(move, target, "retries_exhausted")
    move.emit(events.learning_target("stale", name, target, cause=learned.status or "missing"))
    move.emit(events.learning_explore_invoked(name, target, pursuit.tries + 1))
    return actions.launch(move, f"{EXPLORE} {target}", after="explore")


def explored(move: Move, answer: Answer) -> Wait | str | None:
    """Look again, whatever the agent says of its exploration."""
    done = expect(ActionDone, answer)
    actions.check_workdir(move, done)
    target = actions.note(move, done)
    if target is not None or move.stop is not None:
        return target
    pursuit = _pursuit(move)
    return _look(move, replace(pursuit, tries=pursuit.tries + 1))


def _look(move: Move, pursuit: Pursuit) -> Wait | str | None:
    move.frame.turn = replace(move.frame.turn, pursuit=pursuit)
    if pursuit.known < len(pursuit.targets):
        return Wait(ReadLearning(pursuit.targets[pursuit.known]), "record")
    move.emit(events.learning_complete(move.state.name, pursuit.targets))
    return move.target(first_route(move.state.routes, "yes"))


def _blocked(move: Move, target: str, reason: str) -> str | None:
    move.emit(events.learning_blocked(move.state.name, target, reason))
    return move.target(first_route(move.state.routes, "blocked", "no"))


def _pursuit(move: Move) -> Pursuit:
    pursuit = move.frame.turn.pursuit
    assert pursuit is not None
    return pursuit


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part for part in map(str.strip, text.split(",")) if part)
