"""The state of a run: a stack of frames, one for the loop and one for each sub-loop under way.

Frames are copied before they are changed (`Frame.copy`) and their containers are replaced, never changed in
place, so that every `Run` that was handed out stays as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct, field

from .effects import ActionDone, Answer, Effect
from .model import EMPTY, Ending, Loop, State
from .tally import Spent

Cap = Literal["max_steps", "max_iterations_reached", "timeout"]
After = Literal[
    "action",
    "flush",
    "cap_flush",
    "probe",
    "stall",
    "rate_limit",
    "server_error",
    "backoff",
    "load",
    "breathe",
    "find_human",
    "human",
    "record",
    "explore",
    "consult",
    "tests_before",
    "patch",
    "tests_after",
    "tests_restored",
    "memory",
    "cooled",
    "artifact",
    "tree_entered",
    "tree_left",
    "nothing",
]
"""What the answer under way is for: the machine goes on there. A flush leads to the limit that caused it: the time of
the loop (`flush`) or its step cap (`cap_flush`)."""


class RateRecord(Struct, frozen=True):
    """How long one state has been waiting out a rate limit. `left` is what remains of the wait under way."""

    short: int = 0
    long: int = 0
    waited: float = 0
    left: float = 0
    wait: float = 0


class Asked(Struct, frozen=True):
    """A question to a person, and when it was put, in seconds of the run's clock."""

    question: str
    since: float = 0


class Pursuit(Struct, frozen=True):
    """How far a learning state is: `known` targets are proven, the next one was explored `tries` times."""

    targets: tuple[str, ...]
    limit: int
    known: int = 0
    tries: int = 0


class Turn(Struct, frozen=True):
    """What is known of the state under way, from its action to its route."""

    done: ActionDone | None = None
    verdict: str = "yes"
    param: Mapping[str, Any] | None = None
    source: str = ""
    asked: Asked | None = None
    pursuit: Pursuit | None = None
    answers: tuple[Answer, ...] = ()
    """What a judge has looked up and been told so far; `chance` is its coin."""
    chance: float = 0.5
    findings: tuple[Mapping[str, str], ...] = ()
    forced: str | None = None
    tree: Mapping[str, Any] = EMPTY
    """The worktree that was made for the sub-loop of this state; `leads_to` is where its end leads."""
    leads_to: str | None = None


class Frame(Struct):
    """One loop under way. `started` and `limit` are seconds of the run's clock."""

    loop: Loop
    context: Mapping[str, Any]
    depth: int = 0
    started_at: str = ""
    started: float = 0
    limit: float | None = None
    state: str = ""
    iteration: int = 0
    passes: int = 0
    attempt: int = 1
    first_step: int = 0
    """The step in which the first attempt at the action under way was made."""
    captured: Mapping[str, Any] = EMPTY
    messages: tuple[str, ...] = ()
    prev: Mapping[str, Any] | None = None
    last: Mapping[str, Any] | None = None
    came_from: str | None = None
    just_routed: bool = False
    repeated_in_place: bool = False
    retries: Mapping[str, int] = EMPTY
    throttled: Mapping[str, int] = EMPTY
    edges: Mapping[str, int] = EMPTY
    rates: Mapping[str, RateRecord] = EMPTY
    server_errors: Mapping[str, int] = EMPTY
    exhausted_in_a_row: int = 0
    held: Mapping[str, int] = EMPTY
    memory: Mapping[tuple[str, str], Mapping[str, Any]] = EMPTY
    """What evaluators remember of their last visit, by loop and state. All calls of a sub-loop in a run share it."""
    told: Mapping[str, tuple[str, ...]] = EMPTY
    """What has been said of the cost ceilings of states, and under no name of how prompts are sent."""
    stall_window: tuple[tuple[str, int, str], ...] = ()
    stall_counts: Mapping[str, int] = EMPTY
    progress: Mapping[str, str] = EMPTY
    acted: bool = False
    """Whether this loop, or one below it, has run any action."""
    cap: Cap | None = None
    handled: frozenset[Cap] = frozenset()
    """The caps whose handlers have been used; `cap` is the latest."""
    pre_cap_state: str | None = None
    tests_before: str | None = None
    under_pressure: bool = False
    used_mb: int = 0
    budget_told: bool = False
    continuation: str = ""
    """What the last session left to the next prompt when it handed over."""
    session: tuple[str, str] = ("", "")
    """The host and the id of the session that the next prompt may continue."""
    turn: Turn = field(default_factory=Turn)
    tree: Mapping[str, Any] = EMPTY
    """The record of the worktree in which this loop works; empty for the run's own directory."""
    trace: tuple[str, ...] | None = None
    """The events of this sub-loop and those below it as JSON lines, kept only if a loop above captures them."""

    def copy(self) -> Frame:
        return copy.copy(self)

    @property
    def current(self) -> State:
        """The state under way; `LookupError` when no such state exists."""
        return self.loop.states[self.state]


class StopAsked(Struct, frozen=True):
    """Why the run ends before its next state: `interrupted`, `system_signal`, or an `error` with its text."""

    by: Literal["interrupted", "system_signal", "error", "handoff"]
    text: str | None = None


class Run(Struct, frozen=True):
    """A run between two answers: where it is, and what it waits for."""

    frames: tuple[Frame, ...]
    env: Mapping[str, str] = EMPTY
    extras: Mapping[str, Any] = EMPTY
    """What the contexts of sub-loops get from the project where they lack it."""
    at: float = 0
    ts: str = ""
    waiting: Effect | None = None
    after: After = "nothing"
    stop: StopAsked | None = None
    ending: Ending | None = None
    spent: Spent = field(default_factory=dict)
    """What hosts have cost, by loop and state."""
    successors: int = 0
    """How often it went on by itself after a handoff, since it was started or resumed."""

    @property
    def root(self) -> Frame:
        return self.frames[0]

    @property
    def top(self) -> Frame:
        return self.frames[-1]

    def __repr__(self) -> str:
        place = "/".join(frame.state for frame in self.frames)
        ended = f", ended by {self.ending.by}" if self.ending else ""
        return f"<Run {self.root.loop.name} at {place!r}, step {self.root.iteration}{ended}>"
