"""What the runs of a session are doing, as far as their records tell: the display's memory, without any drawing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct, field

from ..core.effects import AskHuman, AskModel, RunAction, Sleep
from . import words
from .terminal import clean

if TYPE_CHECKING:
    from ..api import RunResult
    from ..core.frame import Run

Record = Mapping[str, Any]


class LoopInfo(Protocol):
    """What the display shows of a loop."""

    @property
    def name(self) -> str: ...
    @property
    def max_steps(self) -> int: ...
    @property
    def states(self) -> Collection[str]: ...


class Watched(Protocol):
    """What the display needs of a run: one of this process, or one that only its journal tells of."""

    @property
    def run_id(self) -> str: ...
    @property
    def loop(self) -> LoopInfo: ...
    @property
    def run(self) -> Run | None: ...
    @property
    def result(self) -> RunResult | None: ...
    @property
    def waits_for(self) -> str: ...
    @property
    def why(self) -> tuple[str, int]: ...


class Step(Struct):
    """One state entry. `since` is when it began, on the display's clock; `depth` counts sub-loops."""

    state: str
    number: int
    since: float
    depth: int = 0
    attempt: int = 1
    action: str = ""
    heard: str = ""
    exit_code: int | None = None
    verdict: str = ""
    was_cut: bool = False

    @property
    def line(self) -> str:
        """The last line that its action printed."""
        return clean(self.heard)

    @property
    def is_good(self) -> bool | None:
        """Whether it went well; None if it was cut off, or its verdict is a word of the loop's own."""
        if self.was_cut:
            return None
        if self.verdict and self.verdict not in words.GOOD_VERDICTS:
            return False if self.verdict in words.BAD_VERDICTS else None
        return not self.exit_code if not self.verdict else True

    @property
    def outcome(self) -> str:
        """Its result in a word or two: the exit code, else the verdict, unless it went well."""
        if self.is_good:
            return ""
        if self.was_cut:
            return "interrupted"
        return words.exit_words(self.exit_code) or self.verdict


class Following(Struct):
    """One run as the display sees it. `failing` is the last action that failed."""

    handle: Watched
    since: float
    steps: list[Step] = field(default_factory=list)
    count: int = 0
    failing: Record | None = None
    holder: str = ""
    began: bool = False
    ended: bool = False
    stopped_at: float = 0.0
    entered: tuple[str, int] | None = None
    """The state and the step in which it goes on, until it is known whether it enters that anew."""

    @property
    def name(self) -> str:
        return self.handle.loop.name

    @property
    def step(self) -> Step | None:
        """The innermost state under way."""
        return self.steps[-1] if self.steps else None

    @property
    def waits(self) -> str:
        """What it waits for, empty while it works."""
        if self.handle.result is not None:
            return ""
        if not self.began:
            return f"waits for {self.holder}" if self.handle.waits_for else "waits for its turn"
        run = self.handle.run
        effect = run.waiting if run is not None else None
        match effect:
            case Sleep(seconds, why):
                return f"waits {words.seconds(seconds)} ({why})"
            case AskHuman():
                return f"asks: {clean(effect.question)}"
            case RunAction() | AskModel() if self.handle.waits_for:
                return f"waits for {self.handle.waits_for}"
            case _:
                return ""


# --- what happened -----------------------------------------------------------------------------------------


class Began(Struct, frozen=True):
    run: Following


class Waits(Struct, frozen=True):
    run: Following
    holder: str


class StepDone(Struct, frozen=True):
    run: Following
    step: Step
    target: str
    seconds: float
    ts: str


class Asks(Struct, frozen=True):
    """A question to a person, line by line: what is to be approved has to be seen whole."""

    run: Following
    lines: tuple[str, ...]


class Noted(Struct, frozen=True):
    run: Following
    text: str


class Ended(Struct, frozen=True):
    run: Following
    result: RunResult


class Stopping(Struct, frozen=True):
    """A signal came: so many runs have the grace to end."""

    runs: int


Happening = Began | Waits | StepDone | Asks | Noted | Ended | Stopping


class Tracker:
    """Turns records into happenings. `clock` gives seconds and is only compared with itself."""

    def __init__(self, handles: Sequence[Watched], clock: Callable[[], float]) -> None:
        self.clock = clock
        self.runs = {handle.run_id: Following(handle, clock()) for handle in handles}
        self._is_stopping = False

    def take(self, record: Record) -> Iterator[Happening]:
        """Take in one record; the happenings that people may want to hear of."""
        run = self.runs.get(record["run_id"])
        if run is None:
            return
        handler = _HANDLERS.get(record["event"])
        if handler is not None:
            yield from handler(self, run, record)
        text = words.note(record)
        if text:
            yield Noted(run, text)

    def hear(self, record: Record) -> None:
        """Take note of an output line; called for each one as it is written, so it does next to nothing."""
        run = self.runs.get(record["run_id"]) if record["event"] == "action_output" else None
        if run is not None and run.steps and record["line"]:
            run.steps[-1].heard = record["line"]

    def look(self) -> Iterator[Happening]:
        """What no record tells: runs that have ended (some never began), and a shutdown under way."""
        unfinished = [run for run in self.runs.values() if not run.ended]
        ending = [run for run in unfinished if run.handle.result is None and run.handle.why[1]]
        if ending and not self._is_stopping:
            self._is_stopping = True
            yield Stopping(len(ending))
        for run in unfinished:
            if run.handle.result is not None:
                run.ended, run.stopped_at = True, self.clock()
                yield Ended(run, run.handle.result)

    def _name_of(self, holder: str) -> str:
        """A run of this session by its loop's name; others as they were told."""
        known = self.runs.get(holder)
        return known.name if known is not None else holder

    # --- one handler an event ------------------------------------------------------------------------------

    def _start(self, run: Following, record: Record) -> Iterator[Happening]:
        if not run.began:
            run.began, run.since = True, self.clock()
            yield Began(run)

    def _wait(self, run: Following, record: Record) -> Iterator[Happening]:
        run.holder = ", ".join(self._name_of(part) for part in record["holder"].split(", "))
        yield Waits(run, run.holder)

    def _enter(self, run: Following, record: Record) -> Iterator[Happening]:
        depth = record.get("depth", 0)
        yield from self._leave(run, depth, "", record)
        run.entered = None
        attempt = record.get("attempt", 1)
        run.steps.append(Step(record["state"], record["iteration"], self.clock(), depth, attempt))
        if not depth:
            run.count = record["iteration"]

    def _resume(self, run: Following, record: Record) -> Iterator[Happening]:
        run.entered = record["from_state"], record["iteration"]
        return iter(())

    def _spawn(self, run: Following, record: Record) -> Iterator[Happening]:
        """A run that goes on with an action that had not begun yet is in its state already, and does not enter it."""
        if run.entered is not None and not run.steps:
            state, number = run.entered
            run.steps.append(Step(state, number, self.clock(), record.get("depth", 0), 1))
        run.entered = None
        return iter(())

    def _act(self, run: Following, record: Record) -> Iterator[Happening]:
        if run.step is not None:
            run.step.action = clean(record["action"].strip().partition("\n")[0])
        return iter(())

    def _acted(self, run: Following, record: Record) -> Iterator[Happening]:
        if run.step is not None:
            run.step.exit_code = record["exit_code"]
        if record["exit_code"]:
            run.failing = record
        return iter(())

    def _judge(self, run: Following, record: Record) -> Iterator[Happening]:
        if run.step is not None:
            run.step.verdict = record["verdict"]
        return iter(())

    def _ask(self, run: Following, record: Record) -> Iterator[Happening]:
        lines = [clean(line) for line in record["prompt"].strip().splitlines()]
        yield Asks(run, tuple(lines) or ("",))

    def _resolve(self, run: Following, record: Record) -> Iterator[Happening]:
        if run.step is not None:
            run.step.verdict = words.REPLIES.get(record["verdict"]) or record["verdict"]
        return iter(())

    def _route(self, run: Following, record: Record) -> Iterator[Happening]:
        return self._leave(run, record.get("depth", 0), record["to"], record)

    def _complete(self, run: Following, record: Record) -> Iterator[Happening]:
        if record["terminated_by"] in ("interrupted", "user_stopped") and run.step is not None:
            run.step.was_cut = run.step.exit_code is None
        return self._leave(run, record.get("depth", 0), "", record)

    def _leave(self, run: Following, depth: int, target: str, record: Record) -> Iterator[Happening]:
        """End the steps at `depth` and below; only the one at `depth` has a target."""
        while run.steps and run.steps[-1].depth >= depth:
            step = run.steps.pop()
            goes = target if step.depth == depth else ""
            yield StepDone(run, step, goes, self.clock() - step.since, record["ts"])


_HANDLERS: Mapping[str, Callable[[Tracker, Following, Record], Iterator[Happening]]] = {
    "loop_start": Tracker._start,
    "scope_waiting": Tracker._wait,
    "state_enter": Tracker._enter,
    "loop_resume": Tracker._resume,
    "action_spawned": Tracker._spawn,
    "action_start": Tracker._act,
    "action_complete": Tracker._acted,
    "evaluate": Tracker._judge,
    "human_approval_requested": Tracker._ask,
    "human_approval_resolved": Tracker._resolve,
    "route": Tracker._route,
    "loop_complete": Tracker._complete,
}
