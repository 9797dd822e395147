"""Trying again: retries, throttles, provider failures, and loops that stall."""

from __future__ import annotations

from pathlib import Path

import pytest

from ll_loop.core import machine
from ll_loop.core.effects import ProbePaths
from ll_loop.core.model import Loop, Retry, Routes, Shell, State
from ll_loop.files.library import Library
from loops_gen import World, drive, library_in, lines, load, play, says, story

QUIET = ("action_start", "action_complete", "evaluate")
ENDS = "  b: {action: y, next: done}\n  done: {terminal: true}\n"


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return library_in(tmp_path)


def told_by(library: Library, state: str, world: World, head: str = "", more: str = ENDS) -> list[str]:
    _, told = play(load(library, f"{head}states:\n  a: {{{state}}}\n{more}"), world)
    return story(told, without=QUIET)


# --- retries -----------------------------------------------------------------------------------------------


def test_retries_are_entries_after_the_first(library: Library) -> None:
    state = "action: x, max_retries: 2, on_retry_exhausted: b, on_yes: done, on_no: a"
    assert told_by(library, state, World({"a": 1})) == lines("""
        loop_start
        state_enter a 1
        route a a
        state_enter a 2
        route a a
        state_enter a 3
        route a a
        retry_exhausted state=a retries=3 next=b
        state_enter b 4
        route b done
        loop_complete terminal done 4
    """)


def test_retries_are_forgotten_when_another_state_is_entered(library: Library) -> None:
    state = "action: x, max_retries: 1, on_retry_exhausted: done, on_yes: done, on_no: a, on_error: b"
    more = "  b: {action: y, next: a}\n  done: {terminal: true}\n"
    told = told_by(library, state, World({"a": [1, 2, 1, 2, 1, 0]}), more=more)
    assert told[-1] == "loop_complete terminal done 8"


def test_an_exhausted_retry_begins_anew(library: Library) -> None:
    state = "action: x, max_retries: 1, on_retry_exhausted: b, on_yes: done, on_no: a"
    more = "  b: {action: y, next: a}\n  done: {terminal: true}\n"
    told = told_by(library, state, World({"a": 1}), "max_steps: 7\n", more)
    assert [one for one in told if one.startswith(("retry", "state"))] == lines("""
        state_enter a 1
        state_enter a 2
        retry_exhausted state=a retries=2 next=b
        state_enter b 3
        state_enter a 4
        state_enter a 5
        retry_exhausted state=a retries=2 next=b
        state_enter b 6
        state_enter a 7
    """)


def test_the_first_turn_after_a_resume_is_no_retry() -> None:
    state = State("a", Shell("x"), routes=Routes(on={"yes": "a"}), retry=Retry(1, "b"))
    loop = Loop("demo", "a", {"a": state, "b": State("b", terminal=True)})
    run, _ = play(loop, World({"a": says("LOOP_STOP:")}))
    _, told = drive(machine.resume(run, 0, ""), World())
    assert story(told, without=QUIET) == [
        "loop_resume a",
        "loop_start",
        "state_enter a 2",
        "route a a",
        "state_enter a 3",
        "route a a",
        "retry_exhausted state=a retries=2 next=b",
        "loop_complete terminal b 3",
    ]


# --- throttle ----------------------------------------------------------------------------------------------

THROTTLE = "throttle: {normal_max: 1, warn_max: 2, hard_max: 3}"


def test_without_a_throttle_a_poll_may_go_on(library: Library) -> None:
    told = told_by(library, "action: x, on_yes: done, on_no: a", World({"a": [*[1] * 40, 0]}))
    assert told[-1] == "loop_complete terminal done 41"


def test_a_throttle_warns_and_then_forces_a_way_out_before_anything_is_judged(library: Library) -> None:
    loop = load(
        library, f"states:\n  a: {{action: x, {THROTTLE}, on_throttle_hard: b, on_yes: done, on_no: a}}\n{ENDS}"
    )
    run, told = play(loop, World({"a": 1}))
    assert story(told)[9:] == lines("""
        throttle_warn state=a count=2 normal_max=1 warn_max=2 hard_max=3
        evaluate default no
        route a a
        state_enter a 3
        action_start x
        action_complete 1
        throttle_hard state=a count=3 hard_max=3 next=b
        route a b
        state_enter b 4
        action_start y
        action_complete 0
        route b done
        loop_complete terminal done 4
    """)
    assert run.root.throttled == {}


def test_a_throttle_falls_back_to_on_error_and_then_stops_the_run(library: Library) -> None:
    told = told_by(library, f"action: x, {THROTTLE}, on_error: b, on_no: a, on_yes: done", World({"a": 1}))
    assert "throttle_hard state=a count=3 hard_max=3 next=b" in told
    told = told_by(library, f"action: x, {THROTTLE}, on_no: a, on_yes: done", World({"a": 1}))
    assert told[-5:] == [
        "throttle_hard state=a count=3 hard_max=3 next=None",
        "route a a",
        "state_enter a 4",
        "throttle_stop state=a count=4 hard_max=3",
        "loop_complete error a 4",
    ]


def test_a_learning_state_is_warned_only(library: Library) -> None:
    told = told_by(
        library, f"type: learning, action: x, {THROTTLE}, on_no: a, on_yes: done", World({"a": [*[1] * 5, 0]})
    )
    assert [one for one in told if one.startswith("throttle")] == [
        "throttle_warn state=a count=2 normal_max=1 warn_max=2 hard_max=3"
    ]
    assert told[-1] == "loop_complete terminal done 6"


# --- rate limits -------------------------------------------------------------------------------------------

LIMITED = "action: x, max_rate_limit_retries: 1, rate_limit_backoff_base_seconds: 10, on_rate_limit_exhausted: b"
LADDER = "rate_limit_long_wait_ladder: [70], rate_limit_max_wait_seconds: 80"
BUSY = says("429 too many requests", 1)


def test_a_shell_state_that_declares_no_rate_limit_is_never_made_to_wait(library: Library) -> None:
    world = World({"a": BUSY})
    assert told_by(library, "action: x, on_yes: done, on_no: done", world)[-1] == "loop_complete terminal done 1"
    assert world.slept == []


def test_a_rate_limit_is_waited_out_in_place(library: Library) -> None:
    world = World({"a": [BUSY, 0]}, chance=0.5)
    told = told_by(library, f"{LIMITED}, {LADDER}, on_yes: done, on_no: done", world)
    assert told == lines("""
        loop_start
        state_enter a 1
        route a a
        state_enter a 2
        route a done
        loop_complete terminal done 2
    """)
    assert world.slept == [15]


def test_after_the_short_waits_come_long_ones_with_a_heartbeat_and_then_the_way_out(library: Library) -> None:
    world = World({"a": BUSY})
    told = told_by(library, f"{LIMITED}, {LADDER}, on_yes: done, on_no: done", world)
    assert told[1:] == [
        "state_enter a 1",
        "route a a",
        "state_enter a 2",
        "rate_limit_waiting state=a elapsed_seconds=60.0 next_attempt_in=10.0 total_waited_seconds=70.0 "
        "budget_seconds=80 tier=long_wait",
        "route a a",
        "state_enter a 3",
        "rate_limit_exhausted state=a retries=2 short_retries=1 long_retries=1 total_wait_seconds=80.0 next=b",
        "route a b",
        "state_enter b 4",
        "route b done",
        "loop_complete terminal done 4",
    ]
    assert world.slept == [10, 60, 10]


def test_waiting_out_a_rate_limit_costs_no_retry_and_no_throttle(library: Library) -> None:
    state = f"{LIMITED}, {LADDER}, {THROTTLE}, max_retries: 1, on_retry_exhausted: done, on_yes: done, on_no: a"
    _, told = play(load(library, f"states:\n  a: {{{state}}}\n{ENDS}"), World({"a": [BUSY, BUSY, 0]}))
    assert story(told)[-1] == "loop_complete terminal done 3"
    assert not [event for event in told if event.name.startswith(("retry", "throttle"))]


def test_a_rate_limit_met_on_a_next_state_is_waited_out_as_well(library: Library) -> None:
    world = World({"a": [BUSY, 0]})
    told = told_by(library, f"{LIMITED}, {LADDER}, next: b", world)
    assert told[2:4] == ["route a a", "state_enter a 2"]
    assert world.slept == [10]


def test_three_exhausted_rate_limits_in_a_row_are_a_storm(library: Library) -> None:
    state = f"{LIMITED}, rate_limit_long_wait_ladder: [1], rate_limit_max_wait_seconds: 11, on_no: a"
    state = state.replace("on_rate_limit_exhausted: b", "on_rate_limit_exhausted: a")
    told = told_by(library, state, World({"a": [*[BUSY] * 9, 0]}), more="  b: {next: done}\n  done: {terminal: true}\n")
    assert [one for one in told if one.startswith("rate_limit_storm")] == ["rate_limit_storm state=a count=3"]


def test_a_rate_limit_is_not_waited_out_once_the_run_is_to_stop(library: Library) -> None:
    world = World({"a": says("LOOP_STOP: x\nrate limit", 1)})
    told = told_by(library, f"{LIMITED}, {LADDER}, on_yes: done, on_no: done", world)
    assert told[-2:] == ["route a a", "loop_complete interrupted a 1"]
    assert world.slept == []


def test_a_refused_login_takes_on_error_instead_of_the_verdicts_route(library: Library) -> None:
    world = World({"a": says("401 unauthorized", 1)})
    told = told_by(library, f"{LIMITED}, on_yes: done, on_no: done, on_error: b", world)
    assert told[2] == "route a b"
    world = World({"a": says("401 unauthorized", 1)})
    assert told_by(library, f"{LIMITED}, on_yes: b, on_no: done", world)[2] == "route a done"


# --- provider errors ---------------------------------------------------------------------------------------


def test_a_providers_error_is_tried_again_twice_and_counts_as_a_retry(library: Library) -> None:
    state = "action: ask, action_type: prompt, next: b"
    world = World({"a": says("overloaded", 1)})
    assert told_by(library, state, world)[:9] == lines("""
        loop_start
        state_enter a 1
        api_error_retry state=a attempt=1 backoff=30.0
        route a a
        state_enter a 2
        api_error_retry state=a attempt=2 backoff=30.0
        route a a
        state_enter a 3
        api_error_exhausted state=a retries=2
    """)
    assert world.slept == [30, 30]
    told = told_by(library, f"{state}, max_retries: 1, on_retry_exhausted: done", World({"a": says("overloaded", 1)}))
    assert told[-2:] == ["retry_exhausted state=a retries=2 next=done", "loop_complete terminal done 2"]


# --- stalls ------------------------------------------------------------------------------------------------


def circuit(body: str) -> str:
    return f"circuit: {{repeated_failure: {{{body}}}}}\n"


def test_the_same_result_again_and_again_aborts_the_run(library: Library) -> None:
    loop = load(library, circuit("window: 2") + "states:\n  a: {action: x, on_yes: done, on_no: a}\n" + ENDS)
    run, told = play(loop, World({"a": 1}))
    assert story(told, without=QUIET)[-2:] == [
        "stall_detected state=a exit_code=1 verdict=no consecutive=2 action=abort",
        "loop_complete stall_detected a 2",
    ]
    assert run.ending is not None
    assert str(run.ending.error).startswith("Stall detected: state 'a' produced (exit_code=1, verdict='no') for 2")


def test_successes_stall_as_well_and_next_states_are_not_seen(library: Library) -> None:
    told = told_by(library, "action: x, on_yes: a", World(), circuit("window: 3"))
    assert told[-1] == "loop_complete stall_detected a 3"
    told = told_by(library, "action: x, next: a", World(), "max_steps: 5\n" + circuit("window: 2"))
    assert told[-1] == "loop_complete max_steps a 5"


def test_a_stall_may_lead_to_a_state_instead_of_the_verdicts(library: Library) -> None:
    head = "max_steps: 4\n" + circuit("window: 2, on_repeated_failure: b")
    more = "  b: {action: y, next: a}\n  done: {terminal: true}\n"
    told = told_by(library, "action: x, on_yes: done, on_no: a", World({"a": 1}), head, more)
    assert told[4:] == lines("""
        stall_detected state=a exit_code=1 verdict=no consecutive=2 action=route:b
        route a b
        state_enter b 3
        route b a
        state_enter a 4
        stall_detected state=a exit_code=1 verdict=no consecutive=2 action=route:b
        route a b
        loop_complete max_steps b 4
    """)


def test_a_result_that_recurs_stalls_too(library: Library) -> None:
    head = circuit("window: 9, recurrent_window: 3")
    told = told_by(library, "action: x, on_yes: a, on_no: a", World({"a": [1, 0, 1, 0, 1]}), head)
    assert told[-2:] == [
        "stall_detected state=a exit_code=1 verdict=no recurrent=3 action=abort",
        "loop_complete stall_detected a 5",
    ]


def test_progress_begins_the_count_anew(library: Library) -> None:
    head = "max_steps: 6\n" + circuit("window: 2, progress_paths: ['${context.watched}', '${context.nothing}']")
    loop = load(library, f"{head}context: {{watched: out.txt}}\nstates:\n  a: {{action: x, on_yes: a}}\n{ENDS}")
    world = World(probes=["one", "two", "three", "three"])
    _, told = play(loop, world)
    assert story(told)[-1] == "loop_complete stall_detected a 4"
    assert world.asked[1] == ProbePaths(("out.txt",))


def test_a_fatal_error_says_more_than_the_stall_it_comes_with(library: Library) -> None:
    loop = load(library, circuit("window: 2") + "states:\n  a: {action: x, on_yes: done, on_no: a}\n" + ENDS)
    run, told = play(loop, World({"a": [1, says("FATAL_ERROR: boom", 1)]}))
    assert [event.name for event in told[-2:]] == ["stall_detected", "loop_complete"]
    assert run.ending is not None
    assert (run.ending.by, run.ending.error) == ("error", "boom")


def test_a_stall_says_more_than_the_handoff_it_comes_with(library: Library) -> None:
    loop = load(library, circuit("window: 2") + "states:\n  a: {action: x, on_yes: done, on_no: a}\n" + ENDS)
    run, _ = play(loop, World({"a": [1, says("CONTEXT_HANDOFF: x", 1)]}))
    assert run.ending is not None
    assert run.ending.by == "stall_detected"
