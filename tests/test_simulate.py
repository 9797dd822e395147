"""Walking through loops without running anything: scripts, scenarios, and the performer for tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ll_loop import api
from ll_loop.core.effects import ActionDone, LoadLoop, RunAction, Sleep
from ll_loop.core.events import Event
from ll_loop.core.model import (
    Evaluate,
    Loop,
    OutputContains,
    OutputNumeric,
    Routes,
    Shell,
    State,
    SubLoop,
)
from ll_loop.core.simulate import SCENARIOS, Ask, Play, Scenario, Verdict
from ll_loop.errors import NotFoundError
from ll_loop.run.performing.perform import Performer
from ll_loop.testing import Script, Scripted, play

DONE = State("done", terminal=True)


def loop_of(*states: State, name: str = "sample", **more: Any) -> Loop:
    return Loop(name, states[0].name, {state.name: state for state in (*states, DONE)}, **more)


def check_and_fix(**more: Any) -> Loop:
    check = State("check", Shell("make check"), routes=Routes(on={"yes": "done", "no": "fix", "error": "done"}))
    return loop_of(check, State("fix", Shell("make fix"), routes=Routes(next="check")), **more)


def visited(events: list[Event]) -> list[str]:
    return [event.fields["state"] for event in events if event.name == "state_enter"]


def test_a_script_answers_each_state_in_order_and_repeats_the_last_answer() -> None:
    events, run = play(check_and_fix(), Script({"check": [1, 1, 0], "fix": "mended"}).answer)
    assert visited(events) == ["check", "fix", "check", "fix", "check"]
    assert run.ending is not None
    assert run.ending.by == "terminal"


def test_a_script_may_say_all_about_an_action() -> None:
    answer = ActionDone(124, "half", "late", 30, "wall")
    events, _ = play(check_and_fix(), Script({"check": answer}).answer)
    complete = next(event for event in events if event.name == "action_complete")
    assert (complete.fields["exit_code"], complete.fields["output_preview"]) == (124, "half")


def test_a_script_remembers_what_was_asked_of_it() -> None:
    script = Script(otherwise=0)
    play(check_and_fix(backoff=2.0), script.answer)
    assert [type(effect) for effect in script.performed] == [RunAction, Sleep]


def test_a_script_has_the_sub_loops_it_is_given() -> None:
    child = loop_of(State("work", Shell("true"), routes=Routes(next="done")), name="child")
    parent = loop_of(State("call", SubLoop("child"), routes=Routes(on={"yes": "done"})))
    script = Script(loops={"child": child})
    events, run = play(parent, script.answer)
    assert [(event.fields["state"], event.depth) for event in events if event.name == "state_enter"] == [
        ("call", 0),
        ("work", 1),
    ]
    assert LoadLoop("child", "") in script.performed
    assert run.root.state == "done"


def test_a_walk_without_end_is_cut_off() -> None:
    forever = loop_of(State("a", Shell("true"), routes=Routes(next="a")), max_steps=10**9, max_edge_revisits=10**9)
    events, run = play(forever, Script().answer, limit=5)
    assert len(visited(events)) == 6
    assert run.ending is not None
    assert run.ending.by == "interrupted"


@pytest.mark.parametrize(
    ("scenario", "path"),
    [
        ("all-pass", ["check"]),
        ("all-fail", ["check", "fix", "check", "fix"]),
        ("all-error", ["check"]),
        ("first-fail", ["check", "fix", "check"]),
        ("alternating", ["check"]),
    ],
)
def test_each_scenario_takes_its_own_way(scenario: Scenario, path: list[str]) -> None:
    events, _ = play(check_and_fix(max_steps=4), Play(scenario).answer)
    assert visited(events) == path


def test_every_scenario_is_tried_above() -> None:
    assert set(SCENARIOS) == {"all-pass", "all-fail", "all-error", "first-fail", "alternating"}


@pytest.mark.parametrize(
    "block",
    [
        Evaluate(OutputNumeric("lt", 3)),
        Evaluate(OutputNumeric("eq", 0)),
        Evaluate(OutputNumeric("ge", -1, key="score")),
        Evaluate(OutputContains(r"all \d* ?fine")),
        Evaluate(OutputContains("broken", negate=True)),
    ],
    ids=str,
)
@pytest.mark.parametrize(("scenario", "verdict"), [("all-pass", "yes"), ("all-fail", "no"), ("all-error", "error")])
def test_a_scenario_makes_up_the_output_that_is_judged(block: Evaluate, scenario: Scenario, verdict: str) -> None:
    judged = State("a", Shell("x"), block, Routes(on={"yes": "done", "no": "done", "error": "done"}))
    events, _ = play(loop_of(judged), Play(scenario).answer)
    assert [event.fields["verdict"] for event in events if event.name == "evaluate"] == [verdict]


def test_a_person_may_say_how_each_action_ends() -> None:
    asked: list[tuple[str, str]] = []

    def ask(state: State, action: str) -> Verdict:
        asked.append((state.name, action))
        return "no" if len(asked) == 1 else "yes"

    events, _ = play(check_and_fix(), Ask(ask).answer)
    assert visited(events) == ["check", "fix", "check"]
    assert asked == [("check", "make check"), ("fix", "make fix"), ("check", "make check")]


async def test_the_performer_for_tests_plays_the_same_script() -> None:
    performer: Performer = Scripted({"check": [1, "text"]})
    effect = RunAction("make check", "check", 1)
    assert await performer.perform(effect) == ActionDone(1)
    assert await performer.perform(effect) == ActionDone(0, output="text")


# --- through the API -----------------------------------------------------------------------------------------

COUNTER = """\
name: counter
initial: bump
max_steps: 9
context: {limit: 3}
states:
  bump: {action: "touch proof && echo ${context.limit} ${context.topic}", next: done}
  done: {terminal: true}
"""


@pytest.fixture
def library(tmp_path: Path) -> api.Library:
    (tmp_path / ".loops").mkdir()
    (tmp_path / ".loops" / "counter.yaml").write_text(COUNTER)
    (tmp_path / ".loops" / "outer.yaml").write_text(
        "name: outer\ninitial: a\nstates:\n  a: {loop: counter, with: {topic: x}, on_yes: done, on_error: done}\n"
        "  done: {terminal: true}\n"
    )
    return api.Library(tmp_path)


def listing(folder: Path) -> list[str]:
    return sorted(os.path.join(top, name) for top, dirs, files in os.walk(folder) for name in [*dirs, *files])


def test_simulating_runs_and_writes_nothing(library: api.Library) -> None:
    before = listing(library.project)
    request = api.Request("counter", texts=(("topic", "cats"), ("limit", "7")))
    events = list(api.simulate(library, request, Play("all-pass").answer))
    assert listing(library.project) == before
    assert [event.fields["action"] for event in events if event.name == "action_start"] == [
        "touch proof && echo 7 cats"
    ]


def test_simulating_goes_into_sub_loops(library: api.Library) -> None:
    events = list(api.simulate(library, api.Request("outer"), Play("all-pass").answer))
    assert visited(events) == ["a", "bump"]


def test_simulating_needs_the_inputs_that_a_run_needs(library: api.Library) -> None:
    with pytest.raises(NotFoundError, match="topic"):
        api.simulate(library, api.Request("counter"), Play("all-pass").answer)
