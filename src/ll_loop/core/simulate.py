"""Walking through a loop without doing anything: the machine, and someone who says how every action ended.

    events, run = play(loop, Script({"check": [1, 0]}).answer)

Nothing here runs, waits or writes. Time stands still except for pauses, which take no time but are counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal, get_args

from msgspec import Struct

from . import effects, machine
from .events import Event
from .frame import Run
from .hosts.turn import Reply
from .judging import is_judged_by_a_model
from .model import EMPTY, Classify, Convergence, Judge, Loop, OutputContains, OutputNumeric, State

Perform = Callable[[effects.Effect, Run], effects.Answer]
"""Says how an effect ended; the run shows where it is."""

Said = int | str | effects.ActionDone | effects.HumanReply | effects.ModelSaid
"""How an action ended: its exit code, what it printed (exit code 0), or all of it. Of a person: 0 is approval, another
number refusal, a text the edit."""

Scenario = Literal["all-pass", "all-fail", "all-error", "first-fail", "alternating"]
Verdict = Literal["yes", "no", "error"]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)
LONGEST = 10_000
"""Answers after which a walk is given up."""


def walk(
    loop: Loop,
    perform: Perform,
    *,
    context: Mapping[str, Any] = EMPTY,
    env: Mapping[str, str] = EMPTY,
    extras: Mapping[str, Any] = EMPTY,
    limit: int = LONGEST,
) -> Generator[Event, None, Run]:
    """Yield the events of a run as they come about; the generator's value is the run as it ended.

    After `limit` answers the run is interrupted where it is.
    """
    decision = machine.begin(loop, context, env=env, extras=extras)
    at = 0.0
    for _ in range(limit):
        yield from decision.events
        effect = decision.effect
        if effect is None:
            return decision.run
        at += effect.seconds if isinstance(effect, effects.Sleep) else 0.0
        decision = machine.advance(decision.run, effects.Outcome(perform(effect, decision.run), at))
    yield from decision.events
    if decision.run.ending is None:
        decision = machine.interrupt(decision.run, at, "")
        yield from decision.events
    return decision.run


def play(
    loop: Loop,
    perform: Perform,
    *,
    context: Mapping[str, Any] = EMPTY,
    env: Mapping[str, str] = EMPTY,
    limit: int = LONGEST,
) -> tuple[list[Event], Run]:
    """All events of a run, and the run as it ended: see `walk`."""
    events: list[Event] = []
    walking = walk(loop, perform, context=context, env=env, limit=limit)
    while True:
        try:
            events.append(next(walking))
        except StopIteration as end:
            return events, end.value


# --- who says how actions end ------------------------------------------------------------------------------


class Script:
    """Answers by state: each state's answers in order, the last one again and again.

    A state without answers does `otherwise`. `tree` and `files` are what probes see, `loops` the sub-loops by name,
    `learned` the status of learning targets; without `anyone`, nobody is there to answer questions.
    `performed` holds every effect that was asked for.
    """

    def __init__(
        self,
        answers: Mapping[str, Said | Sequence[Said]] = EMPTY,
        *,
        otherwise: Said = 0,
        tree: str | Sequence[str] = "unchanged",
        files: Mapping[str, str] = EMPTY,
        loops: Mapping[str, Loop] = EMPTY,
        learned: Mapping[str, effects.Learned | Sequence[effects.Learned]] = EMPTY,
        anyone: bool = True,
    ) -> None:
        self.performed: list[effects.Effect] = []
        self._answers = {state: _listed(said) for state, said in answers.items()}
        self._otherwise = otherwise
        self._tree = _listed(tree)
        self._files = files
        self._loops = loops
        self._learned = {target: _listed(known) for target, known in learned.items()}
        self._anyone = anyone
        self._taken: dict[str, int] = {}

    def answer(self, effect: effects.Effect, run: Run | None = None) -> effects.Answer:
        """The answer to an effect; it takes no time."""
        self.performed.append(effect)
        match effect:
            case effects.RunAction(state=state):
                return done(self._next(state, self._answers.get(state, (self._otherwise,))))
            case effects.FindHuman():
                return effects.HumanFound(self._anyone)
            case effects.AskHuman(state=state):
                return reply(self._next(state, self._answers.get(state, (self._otherwise,))))
            case effects.AskModel(state=state):
                return said_of(self._next(state, self._answers.get(state, (self._otherwise,))))
            case effects.WriteFile():
                return effects.Written()
            case effects.ReadLearning(target):
                known: effects.Learned = self._next(
                    f"record of {target}", self._learned.get(target, (effects.Learned(),))
                )
                return known
            case effects.ProbeTree():
                return effects.Probed(self._next("probe of the tree", self._tree))
            case effects.ProbeFile(path):
                return effects.Probed(self._files.get(path))
            case effects.ProbePaths():
                return effects.Probed(self._next("probe of paths", self._tree))
            case (
                effects.SnapshotTests()
                | effects.RestoreTests()
                | effects.CheckPatch()
                | effects.PromoteArtifact()
                | effects.ReadMemory()
            ):
                return effects.Probed(self._files.get(type(effect).__name__))
            case effects.EnterTree(branch):
                return effects.Probed(json.dumps({"branch": branch, "path": branch}))
            case effects.LeaveTree():
                return effects.Probed("")
            case effects.LoadLoop(name):
                found = self._loops.get(name)
                return effects.LoadFailed(f"no loop `{name}`") if found is None else effects.Loaded(found)
            case _:
                return effects.Rested()

    def _next(self, key: str, answers: Sequence[Any]) -> Any:
        index = self._taken.get(key, 0)
        self._taken[key] = index + 1
        return answers[min(index, len(answers) - 1)]


def _listed(said: Any) -> Sequence[Any]:
    return said if isinstance(said, Sequence) and not isinstance(said, str) else (said,)


def done(said: Said) -> effects.ActionDone:
    """The full answer of an action that ended so."""
    match said:
        case effects.ActionDone():
            return said
        case str():
            return effects.ActionDone(0, output=said)
        case int():
            return effects.ActionDone(said)
        case effects.HumanReply():
            return effects.ActionDone(0 if said.verdict == "approve" else 1, output=said.edit or "")
        case effects.ModelSaid():
            return effects.ActionDone(0 if said.reply.ok else 1, output=said.reply.answer)


def reply(said: Said) -> effects.HumanReply:
    """The full answer of a person who said so."""
    match said:
        case effects.HumanReply():
            return said
        case str():
            return effects.HumanReply("edit", edit=said)
        case int():
            return effects.HumanReply("reject" if said else "approve")
        case effects.ActionDone():
            return effects.HumanReply("reject" if said.exit_code else "approve")
        case effects.ModelSaid():
            return effects.HumanReply("approve" if said.reply.ok else "reject")


class Play:
    """Answers by scenario: `all-pass`, `all-fail`, `all-error`, `first-fail`, `alternating` (pass, fail, pass, ...).

    Where a state's verdict is read from its output, the output is made up to fit, as far as that can be done.
    """

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._count = 0

    def answer(self, effect: effects.Effect, run: Run) -> effects.Answer:
        """The answer to an effect, given where the run is."""
        match effect:
            case effects.RunAction():
                self._count += 1
                return self._act(run.top.current, self._verdict())
            case effects.FindHuman():
                return effects.HumanFound(anyone=True)
            case effects.AskHuman():
                self._count += 1
                return _REPLIES[self._verdict()]
            case effects.ReadLearning():
                self._count += 1
                return _LEARNED[self._verdict()]
            case effects.AskModel():
                return opinion_of(run.top.current, self._verdict())
            case effects.WriteFile():
                return effects.Written()
            case effects.ProbeTree() | effects.ProbePaths():
                return effects.Probed("unchanged" if self._verdict() == "no" else f"change {self._count}")
            case (
                effects.ProbeFile()
                | effects.SnapshotTests()
                | effects.RestoreTests()
                | effects.CheckPatch()
                | effects.ReadMemory()
            ):
                return effects.Probed(None)
            case effects.PromoteArtifact(source):
                return effects.Probed(source)
            case effects.EnterTree(branch):
                return effects.Probed(json.dumps({"branch": branch, "path": branch}))
            case effects.LeaveTree():
                return effects.Probed("")
            case effects.LoadLoop(name):
                return effects.LoadFailed(f"no loop `{name}`")
            case _:
                return effects.Rested()

    def _verdict(self) -> Verdict:
        match self._scenario:
            case "all-pass":
                return "yes"
            case "all-fail":
                return "no"
            case "all-error":
                return "error"
            case "first-fail":
                return "no" if self._count <= 1 else "yes"
            case "alternating":
                return "yes" if self._count % 2 else "no"

    def _act(self, state: State, verdict: Verdict) -> effects.ActionDone:
        return ended_as(state, verdict)


_REPLIES: Mapping[Verdict, effects.HumanReply] = {
    "yes": effects.HumanReply("approve"),
    "no": effects.HumanReply("reject", reason="simulated"),
    "error": effects.HumanReply("timeout"),
}
_LEARNED: Mapping[Verdict, effects.Learned] = {
    "yes": effects.Learned("proven"),
    "no": effects.Learned("refuted"),
    "error": effects.Learned("stale"),
}


def ended_as(state: State, verdict: Verdict) -> effects.ActionDone:
    """An end of a state's action that leads to this verdict, if one can be made up."""
    if verdict == "error":
        return effects.ActionDone(2, stderr="simulated error")
    if is_judged_by_a_model(state):
        return effects.ActionDone(0, output="simulated output")
    text = _output(state, good=verdict == "yes")
    if text is not None:
        return effects.ActionDone(0, output=text)
    return effects.ActionDone(0 if verdict == "yes" else 1, output="simulated output")


def opinion_of(state: State, verdict: Verdict) -> effects.ModelSaid:
    """A judge's answer that leads to this verdict."""
    if verdict == "error":
        return effects.ModelSaid(Reply(failure="real", error="simulated error"))
    good = verdict == "yes"
    by = state.evaluate.by if state.evaluate is not None else None
    custom = isinstance(by, Judge) and "schema" in by.keys
    facts = {"confidence": 1.0, "reason": "simulated", "evidence": "simulated output"}
    sides = {"verdict_a": "no" if good else "yes", "verdict_b": "yes" if good else "no"}
    word = _word(state, good=good) if custom else verdict
    return effects.ModelSaid(Reply(answer=verdict, structured={"verdict": word, **facts, **sides}))


def said_of(said: Said) -> effects.ModelSaid:
    """The answer of a model that said so: a number is a verdict (0 is yes), a text its answer."""
    match said:
        case effects.ModelSaid():
            return said
        case int():
            word = "no" if said else "yes"
            opinion = {"verdict": word, "confidence": 1.0, "reason": "", "evidence": "as scripted"}
            return effects.ModelSaid(Reply(answer=word, structured=opinion))
        case str():
            return effects.ModelSaid(Reply(answer=said))
        case _:
            return effects.ModelSaid(Reply(failure="real", error="as scripted"))


def _output(state: State, *, good: bool) -> str | None:
    """What a state has to print for a good or a bad verdict; None if its output is not what counts."""
    match state.evaluate.by if state.evaluate else None:
        case OutputNumeric(operator, int() | float() as target, key):
            above = operator in ("ne", "gt") if good else operator in ("eq", "le")
            below = operator == "lt" if good else operator == "ge"
            number = target + above - below
            return f"{key}={number:g}" if key else f"{number:g}"
        case OutputContains(pattern, negate):
            return _sample(pattern) if good != negate else "simulated output"
        case Convergence(int() | float() as target, direction):
            return f"{target:g}" if good else f"{target + (1e6 if direction == 'minimize' else -1e6):g}"
        case Classify():
            return _word(state, good=good)
        case _:
            return None


_CLASSES = (("\\d", "0"), ("\\s", " "), ("\\w", "a"), ("\\b", ""), ("\\.", "."))


def _sample(pattern: str) -> str:
    """A text in which the pattern is found, if a simple one will do."""
    plain = pattern
    for name, text in _CLASSES:
        plain = plain.replace(name, text)
    plain = re.sub(r"\(\?[^)]*\)|[\\^$()*+?]", "", plain)
    candidates = (pattern, plain, plain.split("|")[0])
    return next((text for text in candidates if _finds(pattern, text)), plain)


def _finds(pattern: str, text: str) -> bool:
    try:
        return re.search(pattern, text) is not None
    except re.error:
        return pattern in text


def _word(state: State, *, good: bool) -> str:
    """The first word that a state routes, or the last."""
    words = [word for word in (state.routes.table or state.routes.on) if not word.startswith("_") and word != "error"]
    usual = "yes" if good else "no"
    if usual in words or not words:
        return usual
    return words[0] if good else words[-1]


class Ask(Struct):
    """Answers by asking: `ask` gets the state and its action and says which verdict to lead to."""

    ask: Callable[[State, str], Verdict]

    def answer(self, effect: effects.Effect, run: Run) -> effects.Answer:
        """The answer to an effect, given where the run is."""
        if isinstance(effect, effects.RunAction):
            return ended_as(run.top.current, self.ask(run.top.current, effect.text))
        if isinstance(effect, effects.AskHuman):
            return _REPLIES[self.ask(run.top.current, effect.question)]
        if isinstance(effect, effects.AskModel):
            return opinion_of(run.top.current, self.ask(run.top.current, f"the judge ({effect.purpose})"))
        if isinstance(effect, effects.ReadLearning):
            return _LEARNED[self.ask(run.top.current, f"is it known: {effect.target}?")]
        return Play("all-pass").answer(effect, run)
