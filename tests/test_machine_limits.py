"""Caps on steps, passes, time and edges, their handlers, and what a raised cap lets a resume do."""

from __future__ import annotations

from pathlib import Path

import pytest

from ll_loop.core import machine
from ll_loop.core.effects import RunAction
from ll_loop.core.model import Loop, Retry, Routes, Shell, State, SubLoop
from ll_loop.files.library import Library
from loops_gen import Result, World, drive, library_in, lines, load, play, says, story

QUIET = ("action_start", "action_complete", "evaluate")
RING = "states:\n  a: {action: x, next: b}\n  b: {action: y, next: a}\n  done: {terminal: true}\n"
WRAP = RING + "  wrap: {action: sum up, next: a}\n"


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return library_in(tmp_path)


# --- steps -------------------------------------------------------------------------------------------------


def test_the_step_cap_ends_the_run_before_one_step_too_many(library: Library) -> None:
    run, told = play(load(library, "max_steps: 3\n" + RING))
    assert story(told, without=QUIET) == lines("""
        loop_start
        state_enter a 1
        route a b
        state_enter b 2
        route b a
        state_enter a 3
        route a b
        loop_complete max_steps b 3
    """)
    assert run.ending is not None
    assert run.ending.error is None


def test_who_arrives_at_the_cap_has_arrived(library: Library) -> None:
    body = "states:\n  a: {next: b}\n  b: {next: done}\n  done: {terminal: true}\n"
    _, told = play(load(library, "max_steps: 2\n" + body))
    assert story(told)[-1] == "loop_complete terminal done 2"


def test_the_handler_of_the_step_cap_runs_one_state(library: Library) -> None:
    _, told = play(load(library, "max_steps: 2\non_max_steps: wrap\n" + WRAP))
    assert story(told, without=QUIET)[-5:] == [
        "route b a",
        "max_steps_summary summary_state=wrap iterations=2",
        "state_enter wrap 3",
        "route wrap a",
        "loop_complete max_steps a 3",
    ]


def test_a_terminal_handler_runs_its_action(library: Library) -> None:
    body = RING + "  wrap: {action: sum up, terminal: true}\n"
    _, told = play(load(library, "max_steps: 2\non_max_steps: wrap\n" + body))
    assert story(told)[-6:] == [
        "max_steps_summary summary_state=wrap iterations=2",
        "state_enter wrap 3",
        "action_start sum up",
        "action_complete 0",
        "evaluate default yes",
        "loop_complete max_steps wrap 3",
    ]


def test_a_handler_that_leads_to_a_terminal_still_ends_for_the_cap(library: Library) -> None:
    body = RING + "  wrap: {action: sum up, next: failed}\n  failed: {terminal: true}\n"
    _, told = play(load(library, "max_steps: 2\non_max_steps: wrap\n" + body))
    assert story(told)[-1] == "loop_complete max_steps failed 3 failure_terminal=True"


def test_a_handler_is_no_further_attempt_of_a_state_that_was_flushed_twice() -> None:
    run, _ = drive(_flushing_cap(), World(loops=KID), stop_before="b")
    assert run.after == "cap_flush"
    decision = machine.resume(run, 0, "")
    _, told = drive(decision, World())
    assert story(told, without=QUIET) == lines("""
        loop_resume b
        loop_start
        state_enter b 3 flushed=True attempt=2
        max_steps_summary summary_state=wrap iterations=3
        state_enter wrap 4
        loop_complete max_steps wrap 4
    """)


KID = {"kid": Loop("kid", "done", {"done": State("done", terminal=True)})}


def _flushing_cap() -> machine.Decision:
    states = [
        State("a", SubLoop("kid"), routes=Routes(on={"yes": "b"})),
        State("b", Shell("x"), routes=Routes(next="a")),
        State("wrap", Shell("y")),
    ]
    loop = Loop("demo", "a", {state.name: state for state in states}, max_steps=1, on_max_steps="wrap")
    return machine.begin(loop, {})


def test_a_state_reached_from_a_sub_loop_runs_before_the_handler_of_the_cap() -> None:
    _, told = drive(_flushing_cap(), World(loops=KID))
    assert story(told, without=QUIET)[4:] == lines("""
        route a b
        state_enter b 2 flushed=True
        max_steps_summary summary_state=wrap iterations=2
        state_enter wrap 3
        loop_complete max_steps wrap 3
    """)


# --- passes ------------------------------------------------------------------------------------------------

PASSES = "maintain: true\nmax_steps: 20\nmax_iterations: 1\n"
ONE = "states:\n  a: {action: x, next: done}\n  done: {terminal: true}\n"


def test_the_pass_cap_ends_a_loop_that_maintains(library: Library) -> None:
    _, told = play(load(library, PASSES + ONE))
    assert story(told, without=QUIET) == lines("""
        loop_start
        state_enter a 1
        route a done
        route done a maintain
        loop_complete max_iterations_reached a 2
    """)


def test_the_handler_of_the_pass_cap_runs_one_state(library: Library) -> None:
    body = PASSES + "on_max_iterations: wrap\n" + ONE + "  wrap: {action: y, next: done}\n"
    _, told = play(load(library, body))
    assert story(told, without=QUIET)[-5:] == [
        "route done a maintain",
        "max_iterations_reached_summary summary_state=wrap iteration_count=1",
        "state_enter wrap 3",
        "route wrap done",
        "loop_complete max_iterations_reached done 3",
    ]


def test_a_terminal_handler_of_a_loop_that_maintains_does_not_run(library: Library) -> None:
    body = PASSES + "on_max_iterations: wrap\n" + ONE + "  wrap: {action: y, terminal: true}\n"
    _, told = play(load(library, body))
    assert story(told, without=QUIET)[-3:] == [
        "max_iterations_reached_summary summary_state=wrap iteration_count=1",
        "route wrap a maintain",
        "loop_complete max_iterations_reached a 3",
    ]


def test_two_caps_at_once_hand_over_to_the_second_handler(library: Library) -> None:
    head = "maintain: true\nmax_steps: 2\non_max_steps: wrap\nmax_iterations: 1\non_max_iterations: wrap2\n"
    more = "  wrap: {action: y, next: done}\n  wrap2: {action: z, next: done}\n"
    _, told = play(load(library, head + ONE + more))
    assert story(told, without=QUIET)[-6:] == [
        "route done a maintain",
        "max_steps_summary summary_state=wrap iterations=2",
        "max_iterations_reached_summary summary_state=wrap2 iteration_count=1",
        "state_enter wrap2 3",
        "route wrap2 done",
        "loop_complete max_steps done 3",
    ]


# --- time --------------------------------------------------------------------------------------------------


def test_the_time_limit_is_looked_at_between_states_and_runs_the_pending_command(library: Library) -> None:
    _, told = play(load(library, "timeout: 5\n" + RING), World(takes={"a": 6}))
    assert story(told) == lines("""
        loop_start
        state_enter a 1
        action_start x
        action_complete 0
        route a b
        state_enter b 2 flushed=True
        action_start y
        action_complete 0
        loop_complete timeout b 2
    """)


RESERVE = "timeout: 9\ntimeout_reserve: 4\non_timeout: report\n"


def test_in_its_reserve_of_time_a_run_starts_nothing_but_the_state_that_it_is_for(library: Library) -> None:
    body = RESERVE + RING + "  report: {action: z, next: a}\n"
    run, _ = drive(machine.begin(load(library, body), {}), World(takes={"a": 5}), stop_before="b")
    assert run.top.state == "b"
    _, told = play(load(library, body), World(takes={"a": 3, "b": 3, "report": 60}))
    assert story(told)[5:] == lines("""
        state_enter b 2
        action_start y
        action_complete 0
        route b a
        timeout_summary summary_state=report elapsed_seconds=6.0
        state_enter report 3
        action_start z
        action_complete 0
        route report a
        loop_complete timeout a 3
    """)


def test_a_sub_loop_leaves_its_callers_reserve_alone_and_may_itself_be_what_that_is_for() -> None:
    kid = Loop("kid", "c", {"c": State("c", Shell("x"), routes=Routes(next="c"))})
    calls = {name: State(name, SubLoop("kid"), routes=Routes(on={"no": "a"})) for name in ("a", "report")}
    loop = Loop("demo", "a", calls, timeout=9, timeout_reserve=4, on_timeout="report")
    _, told = drive(machine.begin(loop, {}), World(loops={"kid": kid}, takes={"c": 1}))
    entered = [line for line in story(told) if line.startswith(("> state_enter", "timeout_summary"))]
    assert entered == lines("""
        > state_enter c 1
        > state_enter c 2
        > state_enter c 3
        > state_enter c 4
        > state_enter c 5
        > state_enter c 6
        > state_enter c 7 flushed=True
        timeout_summary summary_state=report elapsed_seconds=7.0
        > state_enter c 1
        > state_enter c 2
        > state_enter c 3
        > state_enter c 4 flushed=True
    """)


def test_exactly_at_the_time_limit_the_run_goes_on(library: Library) -> None:
    run, _ = drive(machine.begin(load(library, "timeout: 5\n" + RING), {}), World(takes={"a": 5}), stop_before="b")
    assert run.after == "action"


def test_who_arrives_after_the_time_limit_has_arrived(library: Library) -> None:
    _, told = play(load(library, "timeout: 5\n" + ONE), World(takes={"a": 6}))
    assert story(told)[-1] == "loop_complete terminal done 1"


def test_a_prompt_is_not_run_after_the_time_limit(library: Library) -> None:
    body = RING.replace("{action: y,", "{action: y, action_type: prompt,")
    _, told = play(load(library, "timeout: 5\n" + body), World(takes={"a": 6}))
    assert story(told, without=QUIET)[-2:] == ["route a b", "loop_complete timeout b 1"]


def test_the_flushed_state_that_fills_the_step_cap_still_ends_for_the_time(library: Library) -> None:
    head = "timeout: 5\nmax_steps: 2\non_max_steps: wrap\n"
    _, told = play(load(library, head + WRAP), World(takes={"a": 6}))
    assert story(told, without=QUIET)[-2:] == ["state_enter b 2 flushed=True", "loop_complete timeout b 2"]


@pytest.mark.parametrize("result", [says("FATAL_ERROR: boom"), says("LOOP_STOP:"), says("CONTEXT_HANDOFF: x"), -9, 124])
def test_nothing_that_the_flushed_action_does_changes_the_end(library: Library, result: Result) -> None:
    run, told = play(load(library, "timeout: 5\n" + RING), World({"b": result}, takes={"a": 6}))
    assert story(told)[-1] == "loop_complete timeout b 2"
    assert run.ending is not None
    assert run.ending.error is None


def test_a_flushed_action_whose_text_cannot_be_made_is_left_out() -> None:
    states = [
        State("a", Shell("x"), routes=Routes(next="b")),
        State("b", Shell("echo ${captured.k.output}"), routes=Routes(next="a")),
    ]
    loop = Loop("demo", "a", {state.name: state for state in states}, timeout=5)
    _, told = play(loop, World(takes={"a": 6}))
    assert story(told, without=QUIET)[-2:] == ["state_enter b 2 flushed=True", "loop_complete timeout b 2"]


def test_a_flush_that_was_cut_off_is_a_flush_again(library: Library) -> None:
    run, _ = drive(machine.begin(load(library, "timeout: 5\n" + RING), {}), World(takes={"a": 6}), stop_before="b")
    assert run.after == "flush"
    _, told = drive(machine.resume(run, 6, ""), World(at=6))
    assert story(told, without=QUIET) == [
        "loop_resume b",
        "loop_start",
        "state_enter b 3 flushed=True attempt=2",
        "loop_complete timeout b 3",
    ]


# --- edges -------------------------------------------------------------------------------------------------


def test_an_edge_taken_too_often_is_a_cycle(library: Library) -> None:
    run, told = play(load(library, "max_edge_revisits: 1\n" + RING))
    assert story(told, without=QUIET)[-4:] == [
        "state_enter a 3",
        "route a b",
        "cycle_detected edge=a->b from=a to=b count=2 max=1",
        "loop_complete cycle_detected a 3",
    ]
    assert run.ending is not None
    assert run.ending.error == "Cycle detected: edge a->b traversed 2 times (limit: 1)"


def test_the_hop_to_an_exhausted_retrys_target_is_no_edge() -> None:
    states = [
        State("a", Shell("x"), routes=Routes(on={"no": "a"}), retry=Retry(1, "b")),
        State("b", routes=Routes(next="a")),
    ]
    loop = Loop("demo", "a", {state.name: state for state in states}, max_steps=6)
    run, _ = play(loop, World({"a": 1}))
    assert run.root.edges == {"a->a": 4, "b->a": 2}


# --- raised caps -------------------------------------------------------------------------------------------


def test_a_raised_step_cap_lets_a_run_go_on_where_it_was_headed(library: Library) -> None:
    run, _ = play(load(library, "max_steps: 2\n" + RING))
    _, told = drive(machine.resume(run, 0, "", max_steps=3), World())
    assert story(told, without=QUIET) == [
        "loop_resume a",
        "loop_start",
        "state_enter a 3",
        "route a b",
        "loop_complete max_steps b 3",
    ]


def test_a_raised_step_cap_forgets_the_handler(library: Library) -> None:
    run, _ = play(load(library, "max_steps: 2\non_max_steps: wrap\n" + WRAP))
    assert (run.root.state, run.root.pre_cap_state) == ("a", "a")
    after, told = drive(machine.resume(run, 0, "", max_steps=4), World())
    assert story(told, without=QUIET) == [
        "loop_resume a",
        "loop_start",
        "state_enter a 4",
        "route a b",
        "max_steps_summary summary_state=wrap iterations=4",
        "state_enter wrap 5",
        "route wrap a",
        "loop_complete max_steps a 5",
    ]
    assert after.root.pre_cap_state == "b"


@pytest.mark.parametrize("cap", [None, 1, 2])
def test_a_step_cap_that_was_not_raised_ends_the_run_as_before(library: Library, cap: int | None) -> None:
    run, _ = play(load(library, "max_steps: 2\n" + RING))
    after, told = drive(machine.resume(run, 0, "", max_steps=cap), World())
    assert story(told) == ["loop_resume a", "loop_start", "loop_complete max_steps a 2"]
    assert after.ending == run.ending


def test_a_run_cut_off_in_its_caps_handler_finishes_the_handler(library: Library) -> None:
    loop = load(library, "max_steps: 2\non_max_steps: wrap\n" + WRAP)
    run, _ = drive(machine.begin(loop, {}), World(), stop_before="wrap")
    _, told = drive(machine.resume(run, 0, ""), World())
    assert story(told, without=QUIET)[2:] == [
        "state_enter wrap 4 attempt=2",
        "route wrap a",
        "loop_complete max_steps a 4",
    ]


def test_an_override_of_the_step_cap_counts_from_the_start(library: Library) -> None:
    loop = machine.with_overrides(load(library, RING), {"max_steps": 1, "backoff": 2})
    world = World()
    _, told = play(loop, world)
    assert story(told)[-1] == "loop_complete max_steps b 1"
    assert world.slept == [2]


# --- limits of single actions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "state", "expected"),
    [
        ("", "action: x", (3600, 0)),
        ("default_timeout: 7\ndefault_idle_timeout: 3\n", "action: x", (7, 3)),
        ("default_timeout: 7\n", "action: x, timeout: 5, idle_timeout: 2", (5, 2)),
        ("default_idle_timeout: 3\n", "action: x, action_type: prompt", (0, 3)),
        ("default_idle_timeout: 3\n", "action: x, action_type: prompt, timeout: 9", (9, 3)),
        ("", "action: x, action_type: prompt", (3600, 0)),
    ],
)
def test_an_action_has_its_own_limits_or_the_loops(
    library: Library, head: str, state: str, expected: tuple[float, float]
) -> None:
    head += "host_guard: {enabled: false}\n"
    loop = load(library, head + f"states:\n  a: {{{state}, next: done}}\n  done: {{terminal: true}}\n")
    effect = machine.begin(loop, {}).effect
    assert isinstance(effect, RunAction)
    assert (effect.timeout, effect.idle_timeout) == expected
