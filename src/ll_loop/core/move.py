"""One move of the machine under construction: the run as it changes, and the events that tell of it.

Everything in `machine`, `actions`, `routing`, `limits`, `retries`, `stalls` and `subloops` works on a `Move`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, overload

from msgspec import Struct

from . import events
from .context import Namespaces
from .effects import Answer, Effect
from .events import Event
from .frame import After, Frame, Run, StopAsked
from .model import CURRENT, Ending, State, TerminatedBy
from .template import HeredocCollision, TemplateError, render

Emitted = tuple[str, dict[str, Any]]
_T = TypeVar("_T")


class EndRun(Exception):  # noqa: N818 - control flow inside the machine, never seen outside
    """Ends the frame under way: raised where no route can help (`by` is `error` or `no_route`)."""

    def __init__(self, by: TerminatedBy, text: str) -> None:
        super().__init__(text)
        self.by = by


class Wait(Struct, frozen=True):
    """Stop here until the answer to `effect` comes; go on with `after`."""

    effect: Effect
    after: After


class NextState(Struct, frozen=True):
    """Back between states: limits are looked at, then the state that the frame names is entered."""


NEXT_STATE = NextState()


class Move:
    """A run while it is being advanced."""

    def __init__(self, run: Run, at: float, ts: str, chance: float) -> None:
        self.frames = [*run.frames[:-1], run.frames[-1].copy()]
        self.env = run.env
        self.extras = run.extras
        self.at = at
        self.ts = ts
        self.chance = chance
        self.stop = run.stop
        self.spent = run.spent
        self.successors = run.successors
        self.ending: Ending | None = None
        self.events: list[Event] = []

    @property
    def frame(self) -> Frame:
        return self.frames[-1]

    @property
    def state(self) -> State:
        return self.frame.current

    def emit(self, emitted: Emitted) -> None:
        """Tell what happened in the frame under way."""
        name, fields = emitted
        frame = self.frame
        event = Event(name, fields, frame.loop.name, frame.depth)
        self.events.append(event)
        if frame.trace is not None:
            frame.trace = (*frame.trace, self._line(event))

    def trace_output(self, output: str) -> None:
        """Put the lines that an action printed among the events that a loop above captures."""
        frame = self.frame
        if frame.trace is not None and output:
            lines = [events.action_output(line.rstrip()) for line in output.removesuffix("\n").split("\n")]
            told = (Event(name, fields, frame.loop.name, frame.depth) for name, fields in lines)
            frame.trace = (*frame.trace, *map(self._line, told))

    def _line(self, event: Event) -> str:
        told = {"event": event.name, "ts": self.ts, "loop": event.loop, "depth": event.depth, **event.fields}
        return json.dumps(told, default=str)

    def push(self, frame: Frame) -> None:
        self.frames.append(frame)

    def pop(self) -> Frame:
        """Leave the frame under way; the one below becomes changeable."""
        child = self.frames.pop()
        parent = self.frames[-1] = self.frames[-1].copy()
        parent.acted, parent.memory = parent.acted or child.acted, child.memory
        if parent.trace is not None:
            parent.trace = (*parent.trace, *(child.trace or ()))
        return child

    def ask_to_stop(self, asked: StopAsked) -> None:
        """The run ends before its next state; the first reason stands."""
        if self.stop is None:
            self.stop = asked

    def scope(self, result: Mapping[str, Any] | None = None) -> Namespaces:
        """What templates of the state under way may refer to."""
        frame = self.frame
        return Namespaces(
            context=frame.context,
            captured=frame.captured,
            prev=frame.prev,
            state_name=frame.state,
            iteration=frame.iteration,
            loop_name=frame.loop.name,
            started_at=frame.started_at,
            elapsed_ms=int((self.at - frame.started) * 1000),
            env=self.env,
            messages=frame.messages,
            param=frame.turn.param,
            result=result,
        )

    def render(self, template: str, result: Mapping[str, Any] | None = None) -> str:
        return render(template, self.scope(result)) if "$" in template else template

    def target(self, template: str | None, result: Mapping[str, Any] | None = None) -> str | None:
        """A route's target: `$current` is the state under way, anything else is a template."""
        if template == CURRENT:
            return self.frame.state
        try:
            return None if template is None else self.render(template, result)
        except TemplateError as error:
            raise EndRun("no_route", explain(self.frame, error)) from error

    @overload
    def named(self, target: str) -> str: ...

    @overload
    def named(self, target: str | None) -> str | None: ...

    def named(self, target: str | None) -> str | None:
        """A target that is no template: `$current` is the state under way."""
        return self.frame.state if target == CURRENT else target

    def warn(self, message: str) -> None:
        self.emit(events.warning(self.frame.state, message))


Step = Callable[[Move], "Next"]
Next = Step | Wait | NextState | None
"""What comes after a step: another step, an answer to wait for, the next state, or nothing: the run has ended."""


def expect(kind: type[_T], answer: Answer) -> _T:
    """The answer, which must be of this kind; ValueError if it is another."""
    if not isinstance(answer, kind):
        raise ValueError(f"expected {kind.__name__}, got {answer!r}")
    return answer


def explain(frame: Frame, error: TemplateError) -> str:
    """The text with which a reference that cannot be filled ends a run."""
    text = str(error)
    if isinstance(error, HeredocCollision):
        return text
    if text.endswith(" not found in context"):
        advice = f"Run with: ll-loop run {frame.loop.name} --context KEY=VALUE"
        return f"Missing context variable in state {frame.state!r}: {text}. {advice}"
    return f"Cannot fill in a reference in state {frame.state!r}: {text}"


def assign(mapping: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The mapping with one entry set; the original stays as it is."""
    return {**mapping, key: value}


def without(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping without one entry; itself when there is none."""
    return {k: v for k, v in mapping.items() if k != key} if key in mapping else mapping
