"""The machine's books: every answer of a host is counted, and a state's `cost_ceiling` is held against its count.

The counts follow from the journal like everything else, so they survive a resume. Budgets of runs and batches are held
against them before the next call starts (`ll_loop.run.purse`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import events
from .effects import ActionDone, Answer, AskModel, Effect, ModelSaid, RunAction
from .model import EMPTY, Loop
from .move import EndRun, Move, assign
from .tally import Tally, tally_of, total


def book(move: Move, answer: Answer) -> None:
    """Count what an answer of a host cost, and say, once a model, that its price is unknown where that matters."""
    reply = answer.reply if isinstance(answer, ActionDone | ModelSaid) else None
    tally = tally_of(reply) if reply is not None else Tally()
    if not tally.turns:
        return
    place = (move.frame.loop.name, move.frame.state)
    new = [model for model in tally.models if model not in total(move.spent).models]
    move.spent = {**move.spent, place: move.spent.get(place, Tally()) + tally}
    root = move.frames[0].loop
    if new and (root.budget.usd is not None or root.shared.usd is not None):
        move.warn(f"the price of {new[0]} is not known: what it costs is missing from what --max-usd counts")


def book_lost(move: Move, effect: Effect | None) -> None:
    """Count a call of a host that was cut off: nobody knows what it cost."""
    if isinstance(effect, AskModel) or (isinstance(effect, RunAction) and effect.prompt):
        place = (move.frame.loop.name, move.frame.state)
        lost = Tally(turns=1, uncounted=1, unpriced=1)
        move.spent = {**move.spent, place: move.spent.get(place, Tally()) + lost}


def check_ceiling(move: Move) -> None:
    """Hold the state under way against its `cost_ceiling`: warn once near it, end the loop above it."""
    block = _ceiling_of(move.frame.loop, move.frame.state)
    if not block:
        return
    frame = move.frame
    tally = move.spent.get((frame.loop.name, frame.state))
    if not move.spent:
        _tell(move, "unknown", "no host has told of any tokens")
    if tally is None:
        return
    if tally.unpriced:
        _tell(move, "unknown", f"no price is known for {', '.join(tally.models)}")
    ceiling, near = block.get("cost_ceiling_per_state"), block.get("cost_warn_at")
    if near is not None and tally.usd >= near:
        _tell(move, "warn", tally.usd, near)
    if ceiling is not None and tally.usd > ceiling:
        move.emit(events.cost_ceiling_exceeded(frame.state, tally.usd, ceiling))
        text = f"state {frame.state!r} has cost ${tally.usd:.4f}, more than its ceiling of ${ceiling:g}"
        raise EndRun("cost_ceiling_exceeded", text)


def _tell(move: Move, kind: str, *what: Any) -> None:
    """Tell one kind of thing about the ceiling of a state once."""
    frame = move.frame
    told = frame.told.get(frame.state, ())
    if kind in told:
        return
    frame.told = assign(frame.told, frame.state, (*told, kind))
    move.emit((events.cost_ceiling_unknown if kind == "unknown" else events.cost_ceiling_warn)(frame.state, *what))


def _ceiling_of(loop: Loop, state: str) -> Mapping[str, Any]:
    states = loop.meta.get("states")
    found = states[state].get("cost_ceiling") if isinstance(states, Mapping) and state in states else None
    return found if isinstance(found, Mapping) else EMPTY
