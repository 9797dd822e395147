"""The engine: records what the machine decided, performs its effect, hands the outcome back.

Journal first: an action starts only when the records that announce it are on the disk, and none waits there while
the run sleeps.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import anyio

from ..core import machine
from ..core.effects import AskHuman, HumanReply, ModelSaid, Outcome, RunAction, Sleep, answer_to_json
from ..core.frame import Run
from ..core.machine import Decision
from ..core.model import TerminatedBy
from .journals.journal import Committer, Journal, now
from .performing.perform import Performer


class Clock:
    """A run's own clock: seconds in which it was alive, over all its segments."""

    def __init__(self, spent: float = 0.0) -> None:
        self._start = anyio.current_time() - spent

    def at(self) -> float:
        return anyio.current_time() - self._start


class Engine:
    """Drives one run from decision to decision. `run` is where it is; `changed` hears of every decision."""

    def __init__(
        self,
        journal: Journal,
        committer: Committer,
        performer: Performer,
        clock: Clock,
        chance: Random,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.run: Run | None = None
        self._journal = journal
        self._committer = committer
        self._performer: Performer | None = performer
        self._clock = clock
        self._chance = chance
        self._changed = changed

    @property
    def at(self) -> float:
        """Seconds in which the run was alive."""
        return self._clock.at()

    async def drive(self, decision: Decision, ts: str) -> Run:
        """Go on until the run ends. Cancelled, it leaves the run where it is: see `close`."""
        performer = self._performer
        assert performer is not None
        while True:
            await self._record(decision, ts)
            if decision.effect is None:
                return decision.run
            answer = await performer.perform(decision.effect, decision.run.top.tree)
            ts = now()
            outcome = Outcome(answer, round(self._clock.at(), 6), ts, round(self._chance.random(), 6))
            self._journal.append(
                "outcome",
                {"at": outcome.at, "chance": outcome.chance, "answer": answer_to_json(answer)},
                ts=ts,
            )
            if isinstance(answer, HumanReply | ModelSaid):
                await self._committer.commit(self._journal)  # nobody is asked twice
            decision = machine.advance(decision.run, outcome)

    async def _record(self, decision: Decision, ts: str) -> None:
        self.run = decision.run
        self._journal.append_events(decision.events, ts)
        self._changed()
        if decision.effect is None or isinstance(decision.effect, RunAction | Sleep | AskHuman):
            await self._committer.commit(self._journal)
        else:
            self._journal.flush()

    async def close(self, by: TerminatedBy, *, signal: int = 0, error: str | None = None) -> Run | None:
        """Close a run that was cut off: its state stays current, nothing is routed. None if it never began."""
        self._performer = None  # its environment is a good part of what a run that is over would keep in memory
        if self.run is None or self.run.ending is not None:
            return self.run
        ts, at, begun = now(), round(self._clock.at(), 6), self._journal.has_child
        self._journal.append(
            "run_interrupted", {"at": at, "by": by, "signal": signal, "error": error, "begun": begun}, ts=ts
        )
        decision = machine.interrupt(self.run, at, ts, by=by, signal=signal, error=error, begun=begun)
        await self._record(decision, ts)
        return decision.run
