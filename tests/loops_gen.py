"""What the machine's tests share: scripted worlds, stories of events, a journal in memory, and loops made at random."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import strategies as st

from ll_loop.core import effects, machine
from ll_loop.core.events import Event
from ll_loop.core.failures import marked_lines
from ll_loop.core.frame import Run
from ll_loop.core.machine import Decision
from ll_loop.core.model import (
    EMPTY,
    Artifact,
    Classify,
    DiffStall,
    Evaluate,
    Evaluator,
    ExitCode,
    HostGuard,
    HumanApproval,
    Learning,
    Loop,
    McpTool,
    Nothing,
    OutputContains,
    OutputNumeric,
    Prompt,
    RateLimit,
    RepeatedFailure,
    Retry,
    Routes,
    ScoreStall,
    Shell,
    State,
    SubLoop,
    TerminatedBy,
    Throttle,
    Work,
)
from ll_loop.core.replay import Replayed, replay
from ll_loop.core.simulate import said_of
from ll_loop.files.library import Library
from ll_loop.run.journals.journal import plain

# --- loops from YAML ---------------------------------------------------------------------------------------


def library_in(folder: Path) -> Library:
    """A library of a project below `folder`, without built-in loops."""
    (folder / ".loops").mkdir(exist_ok=True)
    (folder / "bundled").mkdir(exist_ok=True)
    return Library(folder, bundled=folder / "bundled")


def load(library: Library, text: str, name: str = "demo") -> Loop:
    """The loop that `text` describes; it says only what matters to the test."""
    head = f"name: {name}\ndescription: A sample.\nscope: [work/]\n"
    body = textwrap.dedent(text)
    if "initial:" not in body:
        head += "initial: a\n"
    (library.loops / f"{name}.yaml").write_text(head + body, encoding="utf-8")
    return library.load(name).loop


# --- scripted worlds ---------------------------------------------------------------------------------------

Result = int | str | effects.ActionDone
"""How an action ends: its exit code, its output, or all there is to say."""


def says(output: str, exit_code: int = 0) -> effects.ActionDone:
    """An action that prints `output`."""
    return effects.ActionDone(exit_code, output=output, marked=tuple(marked_lines(output.split("\n"))))


def done(result: Result) -> effects.ActionDone:
    match result:
        case int(code):
            return effects.ActionDone(code)
        case str(text):
            return says(text)
        case _:
            return result


@dataclass
class World:
    """Answers effects from a script: results by state (the last one repeats), seconds by state, loops by name."""

    results: Mapping[str, Result | Sequence[Result]] = EMPTY
    takes: Mapping[str, float] = EMPTY
    loops: Mapping[str, Loop] = EMPTY
    probes: Sequence[str | None] = ("same",)
    at: float = 0.0
    chance: float = 0.0
    asked: list[effects.Effect] = field(default_factory=list)
    runs: dict[str, int] = field(default_factory=dict)
    slept: list[float] = field(default_factory=list)

    def outcome(self, effect: effects.Effect) -> effects.Outcome:
        self.asked.append(effect)
        return effects.Outcome(self._answer(effect), self.at, f"t{len(self.asked)}", self.chance)

    def _answer(self, effect: effects.Effect) -> effects.Answer:
        match effect:
            case effects.RunAction(state=state):
                self.at += self.takes.get(state, 0)
                return done(self._result(state))
            case effects.Sleep(seconds):
                self.at += seconds
                self.slept.append(seconds)
                return effects.Rested()
            case effects.LoadLoop(name):
                found = self.loops.get(name)
                return effects.LoadFailed(f"no loop `{name}`") if found is None else effects.Loaded(found)
            case effects.ProbeTree() | effects.ProbeFile() | effects.ProbePaths():
                turn = sum(isinstance(one, type(effect)) for one in self.asked) - 1
                return effects.Probed(self.probes[min(turn, len(self.probes) - 1)])
            case effects.AskModel(state=state):
                return said_of(self._result(state))
            case effects.WriteFile():
                return effects.Written()
            case (
                effects.SnapshotTests()
                | effects.RestoreTests()
                | effects.CheckPatch()
                | effects.PromoteArtifact()
                | effects.ReadMemory()
            ):
                return effects.Probed(None)
            case _:
                return effects.Rested()

    def _result(self, state: str) -> Result:
        script = self.results.get(state, 0)
        results = [script] if isinstance(script, int | str | effects.ActionDone) else script
        turn = self.runs[state] = self.runs.get(state, 0) + 1
        return results[min(turn, len(results)) - 1]


def drive(decision: Decision, world: World, *, stop_before: type[effects.Effect] | str = "") -> tuple[Run, list[Event]]:
    """Go on until the run ends, or before an effect of this type (or before this state's action)."""
    told = list(decision.events)
    while decision.effect is not None and not _is(decision.effect, stop_before):
        decision = machine.advance(decision.run, world.outcome(decision.effect))
        told += decision.events
        assert len(world.asked) < 2000, "the run does not end"
    return decision.run, told


def _is(effect: effects.Effect, wanted: type[effects.Effect] | str) -> bool:
    if isinstance(wanted, str):
        return isinstance(effect, effects.RunAction) and effect.state == wanted
    return isinstance(effect, wanted)


def play(loop: Loop, world: World | None = None, **context: Any) -> tuple[Run, list[Event]]:
    """Run a loop from begin to end."""
    return drive(machine.begin(loop, {**loop.context, **context}), world or World())


# --- stories -----------------------------------------------------------------------------------------------

_SHOWN: Mapping[str, tuple[str, ...]] = {
    "loop_start": (),
    "loop_resume": ("from_state",),
    "state_enter": ("state", "iteration"),
    "action_start": ("action",),
    "action_complete": ("exit_code",),
    "action_error": ("state",),
    "evaluate": ("type", "verdict"),
    "route": ("from", "to", "reason"),
    "loop_complete": ("terminated_by", "final_state", "iterations"),
}


def line(event: Event) -> str:
    """An event in one line: its name and its main fields; `>` for each level of sub-loops."""
    shown = _SHOWN.get(event.name)
    if shown is None:
        words = [f"{key}={value}" for key, value in event.fields.items()]
    else:
        words = [str(event.fields[key]) for key in shown if key in event.fields]
        flags = ("flushed", "attempt", "failure_terminal")
        words += [f"{key}={event.fields[key]}" for key in flags if event.fields.get(key)]
    return " ".join(["> " * event.depth + event.name, *words])


def story(events: Sequence[Event], *, without: Sequence[str] = ()) -> list[str]:
    """The whole list of events, one line each."""
    return [line(event) for event in events if event.name not in without]


def lines(text: str) -> list[str]:
    """A story as written in a test."""
    return textwrap.dedent(text).strip().splitlines()


# --- a journal in memory -----------------------------------------------------------------------------------

Record = dict[str, Any]


class Ended(Exception):  # noqa: N818 - tells that there is nothing to answer
    """The run has ended."""


class MemoryRun:
    """One run with its journal, written as the engine and the session write it: each record as JSON and back.

    The answer to an effect depends on how many answers the journal holds, so a run that was cut off and goes on sees
    the same world as one that was not.
    """

    def __init__(self, loop: Loop, children: Mapping[str, Loop], answers: Sequence[effects.ActionDone]) -> None:
        self.loop = loop
        self.children = children
        self.answers = answers
        self.records: list[Record] = []
        self.outcomes = 0
        self.at = 0.0
        self._append("run_created", {"context": dict(loop.context), "env": {}, "overrides": {}})
        origin, ts = {"loop_yaml_path": loop.path}, self._ts
        self._append("run_started", {"at": 0.0, "origin": origin, "ts": ts})
        self.decision = machine.begin(loop, loop.context, ts=ts, origin=origin)
        self._tell(self.decision.events)

    @classmethod
    def cut(cls, whole: MemoryRun, length: int) -> MemoryRun:
        """A run of which only the first `length` records were saved, as it is found again."""
        found = cls.__new__(cls)
        found.loop, found.children, found.answers = whole.loop, whole.children, whole.answers
        found.records = [dict(record) for record in whole.records[:length]]
        found.outcomes = sum(record["event"] == "outcome" for record in found.records)
        return found

    @property
    def _ts(self) -> str:
        return f"2026-01-01T00:00:00.{len(self.records):06d}"

    @property
    def ended(self) -> bool:
        return self.decision.effect is None

    def _append(self, name: str, fields: Mapping[str, Any]) -> None:
        record = {"event": name, "ts": self._ts, "seq": len(self.records) + 1, **fields}
        self.records.append(json.loads(json.dumps(record, default=plain)))

    def _tell(self, events: Sequence[Event]) -> None:
        for event in events:
            self._append(event.name, {"loop": event.loop, "depth": event.depth, **event.fields})

    def step(self) -> None:
        """Perform the effect under way and journal its outcome."""
        effect = self.decision.effect
        if effect is None:
            raise Ended
        if isinstance(effect, effects.RunAction):
            self.spawn()
        outcome = self._answer(effect)
        ts = self._ts
        answer = effects.answer_to_json(outcome.answer)
        self._append("outcome", {"at": outcome.at, "chance": outcome.chance, "answer": answer, "ts": ts})
        self.outcomes += 1
        self.decision = machine.advance(
            self.decision.run, effects.Outcome(outcome.answer, outcome.at, ts, outcome.chance)
        )
        self._tell(self.decision.events)

    def spawn(self) -> None:
        """What the performer journals while an action runs."""
        self._append("action_spawned", {"pid": 1, "start": 2, "boot": "b"})
        self._append("action_output", {"line": "working"})

    def _answer(self, effect: effects.Effect) -> effects.Outcome:
        answer, seconds = self._of(effect, self.answers[self.outcomes % len(self.answers)])
        self.at = round(self.at + seconds, 6)
        return effects.Outcome(answer, self.at, "", (self.outcomes % 10) / 10)

    def _of(self, effect: effects.Effect, scripted: effects.ActionDone) -> tuple[effects.Answer, float]:
        match effect:
            case effects.RunAction():
                return scripted, scripted.duration_ms / 1000
            case effects.Sleep(seconds):
                return effects.Rested(), seconds
            case effects.LoadLoop(name):
                found = self.children.get(name)
                return (effects.Loaded(found) if found else effects.LoadFailed(f"no loop `{name}`")), 0.0
            case effects.ProbeTree() | effects.ProbeFile() | effects.ProbePaths():
                return effects.Probed(scripted.output or None), 0.0
            case effects.AskModel():
                return said_of(scripted.output or scripted.exit_code), 0.0
            case effects.WriteFile():
                return effects.Written(), 0.0
            case effects.FindHuman():
                return effects.HumanFound(scripted.exit_code != 2), 0.0
            case effects.AskHuman():
                return HUMANS.get(scripted.exit_code, effects.HumanReply("timeout")), scripted.duration_ms / 1000
            case effects.ReadLearning():
                return LEARNED.get(scripted.exit_code, effects.Learned("stale")), 0.0
            case (
                effects.SnapshotTests()
                | effects.RestoreTests()
                | effects.CheckPatch()
                | effects.PromoteArtifact()
                | effects.ReadMemory()
            ):
                return effects.Probed(_seen(effect, scripted)), 0.0
            case _:
                return effects.Rested(), 0.0

    def finish(self) -> None:
        """Go on to the end."""
        first = self.outcomes
        while not self.ended:
            self.step()
            assert self.outcomes - first < 4000, "the run does not end"

    def interrupt(self, by: TerminatedBy = "interrupted", signal: int = 2) -> None:
        """What the engine does when its run is cancelled."""
        ts = self._ts
        self._append("run_interrupted", {"at": self.at, "by": by, "signal": signal, "error": None, "ts": ts})
        self.decision = machine.interrupt(self.decision.run, self.at, ts, by=by, signal=signal)
        self._tell(self.decision.events)

    def replay(self) -> Replayed:
        return replay(self.loop, self.records, lambda document: self.children[document["name"]])

    def resume(self, max_steps: int | None = None) -> Replayed:
        """What the session does with a journal that it finds; returns what was found."""
        found = self.replay()
        assert found.run is not None, "the run never began"
        missing, found_run, started = list(found.missing), found.run, found.started
        self._tell(missing)
        self.at = max(found.at, found_run.at)
        ts = self._ts
        self._append("run_resumed", {"at": self.at, "started": started, "max_steps": max_steps, "ts": ts})
        self.decision = machine.resume(found_run, self.at, ts, started=started, max_steps=max_steps)
        self._tell(self.decision.events)
        return found

    def events(self) -> list[Record]:
        """The records that the machine told."""
        return [record for record in self.records if is_event(record)]


def _seen(effect: effects.Effect, scripted: effects.ActionDone) -> str | None:
    """What a guard sees: something else whenever the world says something else."""
    match effect:
        case effects.SnapshotTests():
            return json.dumps({"test_a.py": scripted.output})
        case effects.RestoreTests(files):
            return json.dumps(list(files))
        case effects.CheckPatch():
            return '["test_b.py"]' if scripted.output == "ok" else "[]"
        case effects.PromoteArtifact(source):
            return source
        case _:
            return None


NOT_EVENTS = frozenset(
    ["run_created", "run_started", "run_interrupted", "run_resumed", "outcome", "action_spawned", "action_output"]
)


def is_event(record: Mapping[str, Any]) -> bool:
    return record["event"] not in NOT_EVENTS


def bare(record: Mapping[str, Any], *, numbers: bool = True) -> Record:
    """An event without what the journal adds and, with `numbers` false, without counts of steps and tokens."""
    left_out = {"ts", "seq", "deadline_ts"}
    if not numbers:
        left_out |= {"iteration", "iterations", "alert_id", "usage"}
    return {key: value for key, value in record.items() if key not in left_out}


# --- loops made at random ----------------------------------------------------------------------------------

OUTPUTS = ("", "3", "ok", "yes", "cannot_judge", "rate limit", "overloaded", "unauthorized")
MARKED = ("LOOP_STOP: enough", "FATAL_ERROR: boom", "CONTEXT_HANDOFF: later")
CODES = (0, 0, 0, 0, 1, 1, 2, 3, 124, -9)
ENDINGS = tuple(
    effects.ActionDone(code, output, duration_ms=milliseconds)
    for code in CODES
    for output in OUTPUTS
    for milliseconds in (0, 0, 500, 3000)
)
MARKED_ENDINGS = tuple(effects.ActionDone(code, text, marked=(text,)) for text in MARKED for code in CODES)


def scripts(*, markers: bool = True) -> st.SearchStrategy[list[effects.ActionDone]]:
    """What a world answers, in turn, again and again; rarely with a marker that ends the run."""
    plain_ones = st.sampled_from(ENDINGS)
    one = st.one_of(*[plain_ones] * 11, st.sampled_from(MARKED_ENDINGS)) if markers else plain_ones
    return st.lists(one, min_size=1, max_size=8)


seeds = st.integers(0, 2**32)
"""Where a family comes from. A strategy that drew every part of a loop would take fifty times as long."""


def family(seed: int) -> tuple[Loop, dict[str, Loop]]:
    """A loop of two to six states, and the sub-loops that it and they can run."""
    pick = Random(seed)
    grandchild = _loop(pick, "grandkid", (), 2)
    child = _loop(pick, "kid", ("grandkid",), 3)
    return _loop(pick, "top", ("kid",), 6), {"kid": child, "grandkid": grandchild}


EVALUATORS: tuple[Evaluator, ...] = (
    ExitCode(),
    ExitCode(abstain_on_exit_3=True),
    OutputNumeric("ge", 3),
    OutputContains("ok"),
    OutputContains("ok", negate=True),
    Classify(),
    DiffStall(),
    ScoreStall("history"),
)
VERDICTS = ("yes", "no", "error", "timeout", "ok", "cannot_judge", "edit", "blocked")


def _loop(pick: Random, name: str, children: Sequence[str], most: int) -> Loop:
    own = [f"{name[0]}{number}" for number in range(pick.randint(2, most))]
    ends = [State("done", terminal=True), State("failed", terminal=True, failure=True)]
    names = [*own, "done", "failed"]
    states = [*(_state(pick, one, names, children) for one in own), *ends]
    maybe = (None, None, *own)
    circuit = RepeatedFailure(2, pick.choice((None, 3)), pick.choice(maybe), pick.choice(((), ("p",))))
    return Loop(
        name=name,
        initial=own[0],
        states={state.name: state for state in states},
        max_steps=pick.randint(1, 14 if children == ("kid",) else 6),
        on_max_steps=pick.choice(maybe),
        max_iterations=pick.choice((None, 1, 3)),
        on_max_iterations=pick.choice(maybe),
        max_edge_revisits=pick.choice((2, 100, 100)),
        timeout=pick.choice((None, None, 5)),
        timeout_reserve=pick.choice((0, 3)),
        on_timeout=pick.choice(maybe),
        backoff=pick.choice((0, 0, 2)),
        maintain=pick.random() < 0.2,
        circuit=pick.choice((None, circuit)),
        artifact=pick.choice((None, Artifact("page"))),
        host_guard=HostGuard(enabled=False),  # a prompt that is sent again looks at the memory again
    )


def _state(pick: Random, name: str, names: Sequence[str], children: Sequence[str]) -> State:
    def rarely(value: Any) -> Any:
        return value if pick.random() < 0.25 else None

    work = _work(pick, children)
    return State(
        name=name,
        work=work,
        evaluate=pick.choice((None, Evaluate(pick.choice(EVALUATORS)))),
        routes=_routes(pick, names),
        capture=rarely("k"),
        append_to_messages=rarely("said ${captured.k.exit_code:default=nothing}"),
        timeout=pick.choice((None, 4)),
        on_maintain=rarely(pick.choice(names)),
        retry=rarely(Retry(pick.randint(1, 2), pick.choice(names))),
        retryable_exit_codes=rarely((1,)),
        on_retry_exhausted=rarely(pick.choice(names)),
        rate_limit=rarely(RateLimit(1, 2, 100, (70,), pick.choice((None, *names)))),
        throttle=rarely(Throttle(1, 2, 3, pick.choice((None, *names)))),
        tamper_guard=rarely(pick.choice(("revert", "fail", "allow"))),
        prepatch_check=rarely(pick.choice(("fail", "warn"))),
    )


def _work(pick: Random, children: Sequence[str]) -> Work:
    shell, unsure = Shell("echo hi"), Shell("echo ${captured.k.exit_code}")
    works: list[Work] = [shell, shell, shell, Prompt("ask"), Nothing(), pick.choice((shell, shell, unsure))]
    tool = McpTool("server/tool", {"code": "${captured.k.exit_code:default=0}"})
    works.append(pick.choice((tool, HumanApproval("go on?"), Learning(("x", "y"), max_retries=1))))
    works += [SubLoop(child, passthrough=True) for child in (*children, *children)]
    return SubLoop("nowhere") if children and pick.random() < 0.03 else pick.choice(works)


HUMANS = {
    0: effects.HumanReply("approve"),
    1: effects.HumanReply("reject", reason="no"),
    3: effects.HumanReply("edit", edit="so"),
}
LEARNED = {
    0: effects.Learned("proven"),
    1: effects.Learned(),
    2: effects.Learned("refuted"),
    3: effects.Learned(error="damaged"),
}


def _routes(pick: Random, names: Sequence[str]) -> Routes:
    """Ways out, a few of them to targets that no check would let pass: they must not break the machine."""
    targets = (*names, *names, *names, "$current", "$current", "nowhere", "${captured.k.verdict}")
    on = {verdict: pick.choice(targets) for verdict in pick.sample(VERDICTS, 3)}
    shape = pick.choice(("next", "table", "on", "on"))
    if shape == "next":
        return Routes(next=pick.choice(targets), on={key: on[key] for key in on if key == "error"})
    if shape == "table":
        table = {verdict: pick.choice(targets) for verdict in pick.sample((*VERDICTS, "_", "_error"), 4)}
        return Routes(on=on, table=table)
    return Routes(on={"yes": pick.choice(targets), **on})


def prefixes(records: Sequence[Record]) -> Iterator[int]:
    """The lengths at which a journal may have been cut off, from the first record of a run that began."""
    yield from range(2, len(records) + 1)
