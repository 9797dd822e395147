"""How a simulated walk through a loop is told, and how a person is asked about its actions."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from . import words
from .forms import text_of
from .terminal import Look, cells, clean, pad

if TYPE_CHECKING:
    from ..core.events import Event
    from ..core.frame import Run
    from ..core.model import State
    from ..core.simulate import Verdict

_ANSWERS: dict[str, Verdict] = {"": "yes", "1": "yes", "2": "no", "3": "error"}


class Walk:
    """One walk: its steps as they come about, then where it went and how it ended."""

    def __init__(self, name: str, how: str, look: Look) -> None:
        self.visited: list[str] = []
        self.actions = 0
        self._name = name
        self._how = how
        self._look = look

    def lines(self, walking: Generator[Event, None, Run]) -> Iterator[str]:
        """The walk for people, line by line as it goes on."""
        yield self._look.fit(f"simulating {self._name} ({self._how}): nothing is run")
        run = yield from self._steps(walking)
        ending = run.ending
        assert ending is not None  # a walk ends, or is cut off, which is an ending too
        self._arrive(run)
        visited = f" {self._look.glyphs.arrow} ".join(self.visited)
        yield self._look.fit(f"visited: {visited}")
        said = words.ending(ending.by, failure=ending.failure_terminal, asked=ending.asked)
        if ending.error:
            yield self._look.fit(f"error: {clean(ending.error)}")
        steps, actions = words.plural(run.root.iteration, "step"), words.plural(self.actions, "action")
        yield self._look.fit(f"{words.placed(said, ending.state)} after {steps}, {actions}")

    def _arrive(self, run: Run) -> None:
        """A terminal is visited too, though nothing happens there."""
        state = run.root.loop.states.get(run.root.state)
        if state is not None and state.terminal:
            self.visited.append(state.name)

    def _steps(self, walking: Generator[Event, None, Run]) -> Generator[str, None, Run]:
        said: list[str] = []
        while True:
            try:
                event = next(walking)
            except StopIteration as end:
                run: Run = end.value
                return run
            line = self._hear(event, said)
            if line:
                yield self._look.fit(line)

    def _hear(self, event: Event, said: list[str]) -> str:
        """Take in an event; the line of a step once it is over. `said` holds what is known of it so far."""
        fields = event.fields
        match event.name:
            case "state_enter":
                name = pad(fields["state"], max(8, cells(fields["state"])))
                said[:] = [f"{'  ' * event.depth}{fields['iteration']:>4} {name}"]
                if not event.depth:
                    self.visited.append(fields["state"])
            case "action_start":
                self.actions += 1
                said.append(clean(fields["action"].strip().partition("\n")[0])[:40])
            case "evaluate":
                said.append(fields["verdict"])
            case "route":
                line = "  ".join([*said, f"{self._look.glyphs.arrow} {fields['to']}"])
                said.clear()
                return line
            case "loop_complete" if said:
                line = "  ".join(said)
                said.clear()
                return line
            case name:
                return f"     ! {text}" if (text := words.note({"event": name, **fields})) else ""
        return ""

    def document(self, walking: Generator[Event, None, Run]) -> str:
        """The whole walk as JSON."""
        events: list[dict[str, Any]] = []
        while True:
            try:
                event = next(walking)
            except StopIteration as end:
                return text_of({**self._summary(end.value), "events": events})
            self._hear(event, [""])
            depth = {"depth": event.depth} if event.depth else {}
            events.append({"event": event.name, "loop": event.loop, **depth, **event.fields})

    def _summary(self, run: Run) -> dict[str, Any]:
        assert run.ending is not None
        self._arrive(run)
        return {
            "loop": self._name,
            "scenario": self._how,
            "visited": self.visited,
            "iterations": run.root.iteration,
            "actions": self.actions,
            "terminated_by": run.ending.by,
            "final_state": run.ending.state,
            "failure_terminal": run.ending.failure_terminal,
            "error": run.ending.error,
        }


def asked(state: State, action: str) -> Verdict:
    """Ask how an action ends; the end of input counts as a success."""
    sys.stderr.write(f"{state.name}: {clean(action)[:200]}\n  1 success  2 failure  3 error  [1]: ")
    sys.stderr.flush()
    return _ANSWERS.get(sys.stdin.readline().strip(), "error")
