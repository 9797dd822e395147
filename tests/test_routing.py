"""From a verdict to the next state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from ll_loop.core.effects import RunAction
from ll_loop.core.model import Loop, RepeatedFailure, Routes, Shell, State, Throttle
from ll_loop.core.routing import route
from ll_loop.files.library import Library
from loops_gen import Result, World, library_in, lines, load, play, says, story

ACTIONS = ("action_start", "action_complete")
QUIET = (*ACTIONS, "evaluate")
ENDS = "  b: {next: done}\n  done: {terminal: true}\n"


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return library_in(tmp_path)


def route_of(library: Library, state: str, result: Result = 0, more: str = ENDS) -> str:
    """Where state `a` goes (or how the run ends there)."""
    _, told = play(load(library, f"states:\n  a: {{{state}}}\n{more}"), World({"a": result}))
    shown = story(told)
    return next(one for one in shown if one.startswith(("route", "loop_complete")))


# --- shorthand and table -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "on", "target"),
    [
        ("yes", {"yes": "b"}, "b"),
        ("yes", {"no": "b"}, None),
        ("no", {"no": "b", "error": "c"}, "b"),
        ("no", {"error": "c"}, "c"),
        ("error", {"no": "b"}, None),
        ("partial", {"partial": "b"}, "b"),
        ("blocked", {"no": "b"}, None),
        ("purple", {"purple": "b"}, "b"),
        ("yes_uncertain", {"yes": "b"}, "b"),
        ("yes_uncertain", {"yes": "b", "yes_uncertain": "c"}, "c"),
        ("no_uncertain", {"error": "c"}, "c"),
        ("", {"yes": "b"}, None),
    ],
)
def test_shorthand_keys(verdict: str, on: Mapping[str, str], target: str | None) -> None:
    assert route(Routes(on=on), verdict) == target


@pytest.mark.parametrize(
    ("verdict", "table", "target"),
    [
        ("yes", {"yes": "b", "_": "c"}, "b"),
        ("no", {"_": "c", "_error": "d"}, "c"),
        ("no", {"_error": "d"}, "d"),
        ("error", {"_": "c", "_error": "d"}, "d"),
        ("error", {"_": "c"}, "c"),
        ("error", {"error": "b", "_error": "d"}, "b"),
        ("yes", {"_error": "d"}, None),
        ("yes_uncertain", {"yes": "b", "_": "c"}, "b"),
        ("odd_uncertain", {"_": "c"}, "c"),
        ("", {"_": "c"}, "c"),
        ("_own", {"_own": "b", "_": "c"}, "c"),
    ],
)
def test_a_table(verdict: str, table: Mapping[str, str], target: str | None) -> None:
    assert route(Routes(table=table), verdict) == target


def test_a_table_hides_the_shorthand_keys(library: Library) -> None:
    assert route_of(library, "action: x, on_yes: b, route: {'no': b}") == "loop_complete no_route a 1"


def test_a_table_hides_on_error_from_verdicts_but_not_from_failures_to_begin(library: Library) -> None:
    assert route_of(library, "action: x, on_error: b, route: {'yes': done}", 2) == "loop_complete no_route a 1"
    more = "  b: {action: y, capture: k, next: done}\n  done: {terminal: true}\n"
    state = "action: 'echo ${captured.k.output}', on_error: b, route: {'yes': done}"
    assert route_of(library, state, more=more) == "route a b"


def test_a_stripped_verdict_goes_through_the_table_once(library: Library) -> None:
    state = "action: x, evaluate: {type: classify}, route: {odd: b, _: done}"
    assert route_of(library, state, "odd_uncertain\n") == "route a b"


# --- the current state -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "result"),
    [
        ("action: x, on_yes: $current, on_no: b", [0, 1]),
        ("action: x, next: $current", 0),
        ("action: x, next: b, on_error: $current", [1, 0]),
        ("action: x, evaluate: {type: exit_code}, route: {_: $current}", 0),
        (
            "action: x, on_no: b, on_error: b, retryable_exit_codes: [7], max_retries: 9, on_retry_exhausted: $current",
            2,
        ),
        ("action: x, next: b, on_error: b, retryable_exit_codes: [7], max_retries: 9, on_retry_exhausted: $current", 2),
    ],
)
def test_the_current_state_is_a_target_everywhere(library: Library, state: str, result: Result) -> None:
    body = f"max_steps: 3\nstates:\n  a: {{{state}}}\n{ENDS}"
    _, told = play(load(library, body), World({"a": result}))
    assert "route a a" in story(told)


def test_the_current_state_is_a_target_of_policies_too() -> None:
    quick = Throttle(1, 2, 3, then="$current")
    state = State("a", Shell("x"), routes=Routes(on={"yes": "a"}), throttle=quick)
    _, told = play(Loop("demo", "a", {"a": state}, max_steps=3))
    assert story(told, without=QUIET)[-3:] == [
        "throttle_hard state=a count=3 hard_max=3 next=a",
        "route a a",
        "loop_complete max_steps a 3",
    ]
    state = State("a", Shell("x"), routes=Routes(on={"yes": "b"}))
    stalling = Loop(
        "demo", "a", {"a": state, "b": State("b")}, circuit=RepeatedFailure(1, then="$current"), max_steps=1
    )
    assert "route a a" in story(play(stalling)[1])


# --- next --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "result", "expected"),
    [
        ("action: x, next: b", 1, "route a b"),
        ("action: x, next: b", 124, "route a b"),
        ("action: x, next: b, on_error: done", 0, "route a b"),
        ("action: x, next: b, on_error: done", 1, "route a done"),
        ("action: x, next: b, on_error: done", -15, "route a done"),
        ("action: x, next: b, on_yes: done, on_no: done", 0, "route a b"),
        ("next: b, on_yes: done", 0, "route a b"),
        (
            "action: x, next: b, on_error: done, retryable_exit_codes: [1], max_retries: 9, on_retry_exhausted: a",
            1,
            "route a done",
        ),
        (
            "action: x, next: b, on_error: done, retryable_exit_codes: [1], max_retries: 9, on_retry_exhausted: b",
            2,
            "route a b",
        ),
        ("action: x, next: b, on_error: done, retryable_exit_codes: [1]", 2, "route a done"),
    ],
)
def test_next_wins_unless_the_action_failed_and_somebody_cares(
    library: Library, state: str, result: int, expected: str
) -> None:
    assert route_of(library, state, result) == expected


@pytest.mark.parametrize(
    ("state", "result", "expected"),
    [
        (
            "action: x, on_yes: b, on_error: done, retryable_exit_codes: [2], max_retries: 9, on_retry_exhausted: a",
            2,
            "route a done",
        ),
        (
            "action: x, on_yes: b, on_error: done, retryable_exit_codes: [2], max_retries: 9, on_retry_exhausted: a",
            3,
            "route a a",
        ),
        ("action: x, on_yes: b, on_error: done, retryable_exit_codes: [2]", 3, "route a done"),
        (
            "action: x, on_no: done, on_error: b, retryable_exit_codes: [2], max_retries: 9, on_retry_exhausted: a",
            1,
            "route a done",
        ),
        ("action: x, on_yes: done, on_error: b, retryable_exit_codes: [3]", 3, "route a b"),
    ],
)
def test_only_the_verdict_error_asks_whether_its_exit_code_may_be_retried(
    library: Library, state: str, result: int, expected: str
) -> None:
    assert route_of(library, state, result) == expected


# --- judging -----------------------------------------------------------------------------------------------


def test_a_timeout_is_an_error_for_every_evaluator(library: Library) -> None:
    state = "action: x, evaluate: {type: output_contains, pattern: ok}, on_yes: b, on_error: done"
    assert route_of(library, state, says("ok", 124)) == "route a done"


def test_an_evaluator_that_cannot_judge_at_all_ends_the_run_without_a_route(library: Library) -> None:
    evaluate = "{type: output_numeric, operator: eq, target: '${prev.output}'}"
    body = f"states:\n  a: {{action: x, evaluate: {evaluate}, on_yes: b}}\n"
    run, told = play(load(library, body + ENDS), World({"a": "3"}))
    assert story(told)[-1] == "loop_complete no_route a 1"
    assert run.ending is not None
    assert run.ending.error


def test_an_evaluator_sees_the_result_before_its_own(library: Library) -> None:
    body = """
        states:
          a: {action: x, next: b}
          b: {action: y, evaluate: {type: output_contains, pattern: first, source: '${prev.output}'}, on_yes: done}
          done: {terminal: true}
    """
    _, told = play(load(library, body), World({"a": "first", "b": "second"}))
    assert story(told)[-1] == "loop_complete terminal done 2"


def test_a_capture_shows_its_verdict_from_then_on(library: Library) -> None:
    body = """
        states:
          a: {action: x, capture: k, on_no: b, on_yes: b}
          b: {action: 'echo ${captured.k.verdict} ${captured.k.exit_code}', next: done}
          done: {terminal: true}
    """
    world = World({"a": 1})
    play(load(library, body), world)
    assert [effect.text for effect in world.asked if isinstance(effect, RunAction)][-1] == "echo no 1"


# --- abstention --------------------------------------------------------------------------------------------

UNSURE = "action: x, evaluate: {type: classify}"


def unsure(library: Library, routes: str, outputs: list[Result], more: str = ENDS) -> list[str]:
    body = f"states:\n  a: {{{UNSURE}, {routes}}}\n{more}"
    _, told = play(load(library, body), World({"a": outputs}))
    return story(told, without=QUIET)


def test_an_abstention_repeats_the_state_twice_and_then_takes_the_error_route(library: Library) -> None:
    assert unsure(library, "on_yes: b, on_no: b, on_error: done", ["cannot_judge"]) == lines("""
        loop_start
        state_enter a 1
        route a a
        state_enter a 2
        route a a
        state_enter a 3
        route a done
        loop_complete terminal done 3
    """)


def test_an_abstention_never_takes_the_default(library: Library) -> None:
    told = unsure(library, "route: {_: b}", ["cannot_judge"])
    assert told[-1] == "loop_complete no_route a 3"
    told = unsure(library, "route: {_: b, _error: done}", ["cannot_judge_uncertain"])
    assert told[-2:] == ["route a done", "loop_complete terminal done 3"]


@pytest.mark.parametrize("verdict", ["cannot_judge", "cannot_judge_uncertain"])
def test_an_abstention_with_a_route_of_its_own_takes_it(library: Library, verdict: str) -> None:
    assert unsure(library, "on_yes: b, on_cannot_judge: done", [verdict])[2] == "route a done"
    assert unsure(library, "route: {cannot_judge: done, _: b}", [verdict])[2] == "route a done"


def test_a_word_that_only_begins_like_an_abstention_is_none(library: Library) -> None:
    assert unsure(library, "route: {_: done}", ["cannot_judgement"])[2] == "route a done"


def test_any_other_outcome_of_the_state_forgets_its_abstentions(library: Library) -> None:
    outputs: list[Result] = ["cannot_judge", "cannot_judge", "again", "cannot_judge", "cannot_judge", "yes"]
    told = unsure(library, "on_yes: done, on_again: a", outputs)
    assert told[-1] == "loop_complete terminal done 6"


def test_an_error_that_may_not_be_retried_forgets_abstentions_too(library: Library) -> None:
    routes = "on_yes: done, on_error: a, retryable_exit_codes: [9], max_retries: 9, on_retry_exhausted: a"
    outputs: list[Result] = ["cannot_judge", "cannot_judge", 2, "cannot_judge", "cannot_judge", "yes"]
    assert unsure(library, routes, outputs)[-1] == "loop_complete terminal done 6"
