"""From a journal back to the run: a fold of its inputs through the machine.

A journal holds three kinds of records: *inputs* (what came from outside: `run_started`, `outcome`,
`run_interrupted`, `run_resumed`), *events* (what the machine told, derived from the inputs), and *stream* records
(output lines, spawned children, waiting for a scope) that the machine never saw. Inputs alone rebuild the run; the
events that are there tell how far the dead run got.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from msgspec import Struct, field

from ..errors import LoopError
from . import machine
from .effects import Answer, Loaded, Outcome, answer_from_json
from .events import Event
from .frame import Run
from .machine import Decision, Start
from .model import Loop

INPUTS = frozenset({"run_started", "outcome", "run_interrupted", "run_resumed"})
STREAM = frozenset(
    {
        "run_created",
        "loop_defined",
        "run_claimed",
        "run_withdrawn",
        "action_output",
        "action_spawned",
        "action_ended",
        "scope_waiting",
        "scope_granted",
        "host_waiting",
        "worktree_planned",
        "worktree_created",
        "worktree_leaving",
        "worktree_finished",
        "sub_loop_worktree_kept",
        "journal_repaired",
        "swept",
    }
)

Load = Callable[[Mapping[str, Any]], Loop]
"""Loads a loop named in the journal (`path`, `fingerprint`); raises if it changed and the journal does not have it."""


class ReplayError(LoopError):
    """The journal and the loop do not fit together: one of them was changed."""

    exit_code = 65


class Replayed(Struct):
    """A rebuilt run. `missing` are events that the dead run had not yet written; `at` is its clock in seconds.

    `raised` are caps that somebody raised who then could not go on with it.
    `started` tells whether the effect under way may have begun: it had been announced, or the run was interrupted.
    """

    run: Run | None = None
    created: Mapping[str, Any] | None = None
    at: float = 0.0
    missing: list[Event] = field(default_factory=list)
    raised: dict[str, Any] = field(default_factory=dict)

    @property
    def started(self) -> bool:
        return not self.missing or (self.run is not None and self.run.ending is not None)


def replay(loop: Loop, records: Iterable[Mapping[str, Any]], load: Load) -> Replayed:
    """Rebuild the run of `loop` from its journal's records, in their order."""
    state = Replayed()
    for _ in _fold(state, loop, records, load):
        pass
    return state


class Step(Struct, frozen=True):
    """One input of a journal and what the machine made of it."""

    record: Mapping[str, Any]
    before: Run | None
    decision: Decision


def steps(loop: Loop, records: Iterable[Mapping[str, Any]], load: Load) -> Iterator[Step]:
    """Go through a journal again, input by input. ReplayError where the loop would have gone another way."""
    return _fold(Replayed(), loop, records, load)


def _fold(state: Replayed, loop: Loop, records: Iterable[Mapping[str, Any]], load: Load) -> Iterator[Step]:
    for record in records:
        name = record["event"]
        if name == "run_created":
            state.created = record
        elif name == "run_claimed":
            state.raised |= caps_in(record)
        elif name in INPUTS:
            if state.missing:
                raise ReplayError(
                    f"the journal lacks the event {state.missing[0].name!r} before record {record.get('seq')}"
                )
            before, decision = state.run, _apply(loop, state, record, load)
            if name in ("run_started", "run_resumed"):
                state.raised = {}
            state.run, state.missing = decision.run, list(decision.events)
            state.at = record.get("at", state.at)
            yield Step(record, before, decision)
        elif name not in STREAM:
            _take(state, record)


def _take(state: Replayed, record: Mapping[str, Any]) -> None:
    name = record["event"]
    if not state.missing or state.missing[0].name != name:
        expected = state.missing[0].name if state.missing else "nothing"
        raise ReplayError(
            f"the journal says {name!r} at record {record.get('seq')}, the loop says {expected!r}: "
            "the loop was changed since, or the journal was"
        )
    state.missing.pop(0)


def _apply(loop: Loop, state: Replayed, record: Mapping[str, Any], load: Load) -> Decision:
    name, ts, run = record["event"], record["ts"], state.run
    if name == "run_started":
        if state.created is None:
            raise ReplayError("the journal does not say how the run was created")
        created = state.created
        given = machine.with_overrides(loop, {**created["overrides"], **caps_in(record)})
        extras = created.get("extras", {})
        context = {**created["context"], **record.get("values", {})}
        return machine.begin(given, context, env=created["env"], ts=ts, origin=record["origin"], extras=extras)
    if run is None:
        raise ReplayError(f"the journal begins with {name!r}")
    at = record["at"]
    if name == "outcome":
        answer = _answer(record["answer"], load)
        return machine.advance(run, Outcome(answer, at, ts, record["chance"]))
    if name == "run_interrupted":
        return machine.interrupt(
            run,
            at,
            ts,
            by=record["by"],
            signal=record["signal"],
            error=record.get("error"),
            begun=record.get("begun", False),
        )
    start = _start(state, record, load) if "from" in record else None
    choice = record.get("in_doubt")
    return machine.resume(run, at, ts, started=record["started"], in_doubt=choice, start=start, **caps_in(record))


def _start(state: Replayed, record: Mapping[str, Any], load: Load) -> Start:
    overrides = state.created["overrides"] if state.created is not None else {}
    return start_in(record["from"], machine.with_overrides(load(record["from"]), overrides))


def start_in(document: Mapping[str, Any], loop: Loop) -> Start:
    """Where a journal says that a run goes on, in the loop that it names there."""
    return Start(loop, document["state"], document["context"], document["env"])


def caps_in(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says that a resume replaced."""
    return {name: record[name] for name in machine.REPLACED if record.get(name) is not None}


def _answer(document: Mapping[str, Any], load: Load) -> Answer:
    if document["kind"] == "Loaded":
        return Loaded(load(document), document["env"])
    return answer_from_json(document)
