"""From state to state: what the machine tells and asks for, from the first event to the last."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ll_loop.core import machine
from ll_loop.core.effects import ActionDone, LoadLoop, Outcome, ProbeTree, RunAction
from ll_loop.core.effects import Sleep as Pause
from ll_loop.core.model import Loop, Routes, Shell, State, SubLoop
from ll_loop.core.subloops import DEEPEST
from ll_loop.files.library import Library
from loops_gen import World, drive, library_in, lines, load, play, says, story

ACTIONS = ("action_start", "action_complete")
DONE = "done: {terminal: true}"


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return library_in(tmp_path)


def states(*more: str) -> str:
    """A loop of these states and `done`."""
    return "states:\n" + "".join(f"  {state}\n" for state in (*more, DONE))


# --- one state ---------------------------------------------------------------------------------------------


def test_a_state_tells_its_entry_its_action_its_verdict_and_its_route(library: Library) -> None:
    loop = load(library, states("a: {action: echo hi, on_yes: done}"))
    _, told = play(loop, World({"a": "hi\n"}))
    assert story(told) == lines("""
        loop_start
        state_enter a 1
        action_start echo hi
        action_complete 0
        evaluate default yes
        route a done
        loop_complete terminal done 1
    """)


def test_a_terminal_state_is_not_entered_and_its_action_does_not_run(library: Library) -> None:
    run, told = play(load(library, "initial: done\nstates: {done: {action: echo hi, terminal: true}}"))
    assert story(told, without=["warning"]) == ["loop_start", "loop_complete terminal done 0"]
    assert run.ending is not None
    assert not run.ending.failure_terminal


def test_a_failure_terminal_says_so(library: Library) -> None:
    loop = load(library, states("a: {action: x, on_yes: done, on_no: failed}", "failed: {terminal: true}"))
    _, told = play(loop, World({"a": 1}))
    assert story(told)[-1] == "loop_complete terminal failed 1 failure_terminal=True"


def test_a_failure_that_is_no_terminal_counts_where_a_cap_ends_the_run(library: Library) -> None:
    body = states("a: {action: x, next: b}", "b: {action: y, failure: true, next: done}")
    for cap, last in ((1, "max_steps b 1 failure_terminal=True"), (2, "terminal done 2")):
        _, told = play(load(library, f"max_steps: {cap}\n{body}"))
        assert story(told)[-1] == f"loop_complete {last}"


def test_a_state_without_action_is_yes_and_shows_an_empty_result(library: Library) -> None:
    loop = load(library, states("a: {on_yes: b}", "b: {action: 'echo [${prev.output}] ${prev.exit_code}', next: done}"))
    _, told = play(loop)
    assert story(told) == lines("""
        loop_start
        state_enter a 1
        route a b
        state_enter b 2
        action_start echo [] 0
        action_complete 0
        route b done
        loop_complete terminal done 2
    """)


def test_a_state_that_judges_nothing_empties_the_verdict_of_its_capture(library: Library) -> None:
    loop = load(
        library,
        states(
            "a: {action: x, capture: k, on_yes: b}",
            "b: {capture: k, on_yes: c}",
            "c: {action: 'echo [${captured.k.verdict}]', next: done}",
        ),
    )
    run, told = play(loop)
    assert "action_start echo []" in story(told)
    assert run.root.captured["k"]["verdict"] == ""


def test_next_goes_on_after_a_failure_but_warns(library: Library) -> None:
    _, told = play(load(library, states("a: {action: x, next: done}")), World({"a": 5}))
    assert story(told, without=ACTIONS) == lines("""
        loop_start
        state_enter a 1
        warning state=a message=the action ended with exit code 5; `next` goes on without `on_error`
        route a done
        loop_complete terminal done 1
    """)


def test_an_action_killed_by_a_signal_ends_a_next_state(library: Library) -> None:
    run, told = play(load(library, states("a: {action: x, next: done}")), World({"a": -9}))
    assert story(told)[-1] == "loop_complete system_signal a 1"
    assert run.ending is not None
    assert run.ending.error is None


def test_an_action_killed_by_a_signal_takes_on_error(library: Library) -> None:
    loop = load(library, states("a: {action: x, next: done, on_error: b}", "b: {next: done}"))
    _, told = play(loop, World({"a": -9}))
    assert story(told, without=ACTIONS)[2:] == [
        "route a b",
        "state_enter b 2",
        "route b done",
        "loop_complete terminal done 2",
    ]


def test_a_reference_that_cannot_be_filled_takes_on_error(library: Library) -> None:
    body = states(
        "a: {action: 'echo ${captured.k.output}', on_yes: done, on_error: b}", "b: {action: x, capture: k, next: done}"
    )
    _, told = play(load(library, body))
    assert story(told)[:4] == ["loop_start", "state_enter a 1", "action_error a", "route a b"]


def test_a_reference_that_cannot_be_filled_ends_the_run_without_on_error(library: Library) -> None:
    body = states("a: {action: 'echo ${captured.k.output}', on_yes: b}", "b: {action: x, capture: k, next: done}")
    run, told = play(load(library, body))
    assert story(told)[2:] == ["loop_complete error a 1"]
    assert run.ending is not None
    assert "captured.k" in str(run.ending.error) or "'k'" in str(run.ending.error)
    run, _ = play(load(library, states("a: {action: 'echo ${context.x.y}', next: done}")), x={})
    assert run.ending is not None
    assert "ll-loop run demo --context" in str(run.ending.error)


def test_a_verdict_without_a_route_ends_the_run() -> None:
    loop = Loop("demo", "a", {"a": State("a", Shell("x"), routes=Routes(on={"yes": "a"}))})
    run, told = play(loop, World({"a": 1}))
    assert story(told)[-1] == "loop_complete no_route a 1"
    assert run.ending is not None
    assert run.ending.error == "No valid transition"


def test_a_working_directory_that_is_gone_ends_the_run(library: Library) -> None:
    gone = ActionDone(127, workdir="/gone")
    run, told = play(load(library, states("a: {action: x, on_yes: done}")), World({"a": gone}))
    assert story(told)[3:] == [
        "workdir_vanished state=a path=/gone",
        "loop_complete workdir_vanished a 1",
    ]
    assert run.ending is not None
    assert run.ending.error == "Working directory vanished: /gone"


def test_a_long_stretch_without_effects_lets_others_breathe() -> None:
    loop = Loop("demo", "a", {"a": State("a", routes=Routes(next="a"))}, max_steps=200, max_edge_revisits=500)
    world = World()
    _, told = play(loop, world)
    assert len(world.asked) == 200 // machine.LONGEST_STRETCH
    assert story(told)[-1] == "loop_complete max_steps a 200"


# --- run markers -------------------------------------------------------------------------------------------


def test_a_fatal_error_ends_the_run_whatever_the_routes_say(library: Library) -> None:
    body = states("a: {action: x, on_yes: done, on_no: done, on_error: done}")
    run, told = play(load(library, body), World({"a": says("FATAL_ERROR: boom")}))
    assert story(told)[-2:] == ["evaluate default yes", "loop_complete error a 1"]
    assert run.ending is not None
    assert run.ending.error == "boom"


def test_a_stop_takes_the_route_and_ends_before_the_next_state(library: Library) -> None:
    run, told = play(load(library, states("a: {action: x, on_yes: done}")), World({"a": says("LOOP_STOP: enough")}))
    assert story(told)[-2:] == ["route a done", "loop_complete interrupted done 1"]
    assert run.ending is not None
    assert run.ending.asked


def test_a_stop_by_an_action_that_dies_of_a_signal_is_no_success(library: Library) -> None:
    body = states("a: {action: x, on_yes: done, on_error: b}", "b: {next: done}")
    _, told = play(load(library, body), World({"a": says("LOOP_STOP: x", -9)}))
    assert story(told)[-2:] == ["route a b", "loop_complete system_signal b 1"]


def test_a_stop_is_not_kept_waiting_by_backoff(library: Library) -> None:
    world = World({"a": says("LOOP_STOP:")})
    play(load(library, "backoff: 5\n" + states("a: {action: x, on_yes: done}")), world)
    assert world.slept == []


def test_a_handoff_ends_the_run_after_the_state_was_judged(library: Library) -> None:
    run, told = play(
        load(library, states("a: {action: x, on_yes: done}")), World({"a": says("CONTEXT_HANDOFF: go on")})
    )
    assert story(told)[-3:] == [
        "evaluate default yes",
        "handoff_detected state=a iteration=1 continuation=go on",
        "loop_complete handoff a 1",
    ]
    assert run.ending is not None
    assert run.ending.continuation == "go on"


def test_a_handoff_that_terminates_leaves_nothing_to_continue(library: Library) -> None:
    loop = load(library, "on_handoff: terminate\n" + states("a: {action: x, on_yes: done}"))
    run, _ = play(loop, World({"a": says("CONTEXT_HANDOFF: go on")}))
    assert run.ending is not None
    assert run.ending.continuation is None
    _, told = drive(machine.resume(run, 0, ""), World())
    assert story(told)[-1] == "loop_complete handoff a 1"


# --- maintain ----------------------------------------------------------------------------------------------


def test_maintain_starts_again_at_every_terminal_and_uses_up_a_step(library: Library) -> None:
    _, told = play(load(library, "maintain: true\nmax_steps: 3\n" + states("a: {action: x, on_yes: done}")))
    assert story(told, without=(*ACTIONS, "evaluate")) == lines("""
        loop_start
        state_enter a 1
        route a done
        route done a maintain
        state_enter a 3
        route a done
        loop_complete max_steps done 3
    """)


def test_maintain_takes_the_place_of_a_missing_route(library: Library) -> None:
    body = states("a: {action: x, on_yes: b, on_maintain: b}", "b: {next: done, on_maintain: a}")
    _, told = play(load(library, "maintain: true\nmax_steps: 2\n" + body), World({"a": 1}))
    assert story(told, without=(*ACTIONS, "evaluate"))[:4] == [
        "loop_start",
        "state_enter a 1",
        "route a b",
        "state_enter b 2",
    ]


def test_a_terminal_may_say_where_maintain_goes_on(library: Library) -> None:
    body = "states:\n  a: {next: b}\n  b: {next: done}\n  done: {terminal: true, on_maintain: b}\n"
    _, told = play(load(library, "maintain: true\nmax_steps: 3\n" + body))
    assert "route done b maintain" in story(told)


def test_a_new_pass_is_no_retry_of_the_state_before_the_terminal(library: Library) -> None:
    body = states("a: {action: x, max_retries: 1, on_retry_exhausted: b, on_yes: done, on_no: a}", "b: {next: done}")
    loop = load(library, "maintain: true\nmax_steps: 9\n" + body)
    _, told = play(loop, World({"a": [0, 1, 0, 1, 0, 1, 0]}))
    assert not [event for event in told if event.name == "retry_exhausted"]


# --- sub-loops ---------------------------------------------------------------------------------------------

CHILD = "initial: c\nstates:\n  c: {action: echo child, capture: said, on_yes: done, on_no: failed, on_error: c2}\n"
CHILD += "  c2: {action: x, on_yes: done}\n  done: {terminal: true}\n  failed: {terminal: true}\n"


def family(library: Library, parent_state: str, child: str = CHILD, head: str = "") -> tuple[Loop, dict[str, Loop]]:
    kid = load(library, child, "kid")
    more = ["b: {action: 'echo ${captured.a.terminated_by}', next: done}", "bad: {terminal: true}"]
    return load(library, head + states(f"a: {{loop: kid, {parent_state}}}", *more)), {"kid": kid}


def test_a_sub_loop_tells_its_events_inside_its_state(library: Library) -> None:
    loop, kids = family(library, "on_yes: b")
    _, told = play(loop, World({"c": "hello\n"}, loops=kids))
    assert story(told) == lines("""
        loop_start
        state_enter a 1
        > loop_start
        > state_enter c 1
        > action_start echo child
        > action_complete 0
        > evaluate default yes
        > route c done
        > loop_complete terminal done 1
        route a b
        state_enter b 2
        action_start echo terminal
        action_complete 0
        route b done
        loop_complete terminal done 2
    """)


def ends_of(told: list[str]) -> list[str]:
    """How the sub-loop ended, and where its parent went."""
    at = next(index for index, one in enumerate(told) if one.startswith("> loop_complete"))
    return told[at : at + 2]


@pytest.mark.parametrize(
    ("routes", "result", "end", "then"),
    [
        ("on_yes: bad, on_no: b", 1, "terminal failed 1 failure_terminal=True", "route a b"),
        ("on_yes: bad, on_error: bad", 1, "terminal failed 1 failure_terminal=True", "loop_complete no_route a 1"),
        ("on_yes: bad, on_no: bad, on_error: b", [2], "no_route c2 2", "route a b"),
        ("on_yes: bad, on_no: b", [2], "no_route c2 2", "route a b"),
        ("next: b", 1, "terminal failed 1 failure_terminal=True", "route a b"),
        ("on_no: b, next: bad", 1, "terminal failed 1 failure_terminal=True", "route a b"),
        ("next: bad, on_error: b", 2, "no_route c2 2", "route a b"),
        ("route: {'yes': bad, 'no': b}", 1, "terminal failed 1 failure_terminal=True", "route a b"),
        ("route: {'yes': bad, _error: b}", 2, "no_route c2 2", "route a b"),
        ("route: {'yes': bad, _: bad}, on_no: b", 1, "terminal failed 1 failure_terminal=True", "route a b"),
    ],
)
def test_the_end_of_a_sub_loop_is_routed(library: Library, routes: str, result: int, end: str, then: str) -> None:
    loop, kids = family(library, routes)
    _, told = play(loop, World({"c": result, "c2": 1}, loops=kids))
    assert ends_of(story(told)) == [f"> loop_complete {end}", then]


SPINNING = "initial: c\nmax_steps: 2\nstates:\n  c: {action: x, next: c}\n  done: {terminal: true}\n"


@pytest.mark.parametrize(
    ("routes", "then"),
    [
        ("on_yes: bad, on_no: bad, on_timeout: b", "route a b"),
        ("on_yes: bad, on_no: b", "route a b"),
        ("on_yes: bad, on_error: bad", "loop_complete no_route a 1"),
    ],
)
def test_a_sub_loop_that_runs_out_of_steps_takes_the_way_of_a_timeout(library: Library, routes: str, then: str) -> None:
    loop, kids = family(library, routes, SPINNING)
    _, told = play(loop, World(loops=kids))
    assert ends_of(story(told)) == ["> loop_complete max_steps c 2", then]


def test_a_sub_loop_has_the_time_of_its_state(library: Library) -> None:
    loop, kids = family(
        library, "on_timeout: b, on_no: bad, timeout: 10", SPINNING.replace("max_steps: 2", "timeout: 99")
    )
    _, told = play(loop, World(takes={"c": 6}, loops=kids))
    shown = story(told, without=ACTIONS)
    assert ends_of(shown) == ["> loop_complete timeout c 3", "route a b"]
    assert "> state_enter c 3 flushed=True" in shown


def test_a_sub_loop_has_what_is_left_of_its_parents_time(library: Library) -> None:
    body = states(
        "z: {action: x, next: a}",
        "a: {loop: kid, on_timeout: b, on_no: bad}",
        "b: {next: done}",
        "bad: {terminal: true}",
    )
    kids = {"kid": load(library, SPINNING, "kid")}
    world = World(takes={"z": 8, "c": 1.5}, loops=kids)
    run, _ = drive(machine.begin(load(library, "initial: z\ntimeout: 10\n" + body), {}), world, stop_before="c")
    assert run.top.limit == 2
    assert run.top.started == 8


def test_a_sub_loop_killed_by_a_signal_is_a_no_of_its_state(library: Library) -> None:
    child = "initial: c\nstates:\n  c: {action: x, next: done}\n  done: {terminal: true}\n"
    loop, kids = family(library, "on_yes: bad, on_error: bad, on_no: b", child)
    _, told = play(loop, World({"c": -9}, loops=kids))
    assert ends_of(story(told)) == ["> loop_complete system_signal c 1", "route a b"]
    assert story(told)[-1] == "loop_complete terminal done 2"


def test_a_sub_loop_that_cannot_be_found_takes_on_error_or_ends_the_run(library: Library) -> None:
    loop, _ = family(library, "on_yes: bad, on_error: b")
    _, told = play(loop, World())
    assert story(told)[2:4] == ["warning state=a message=no loop `kid`", "route a b"]
    loop, _ = family(library, "on_yes: bad, on_no: b")
    run, told = play(loop, World())
    assert story(told)[2:] == ["loop_complete error a 1"]
    assert run.ending is not None
    assert run.ending.error == "no loop `kid`"


def test_a_way_out_of_a_sub_loop_that_cannot_be_filled_in_ends_its_parent() -> None:
    kid = Loop("kid", "done", {"done": State("done", terminal=True)})
    state = State("a", SubLoop("kid"), routes=Routes(on={"yes": "${captured.k.output}"}))
    run, told = play(Loop("demo", "a", {"a": state}), World(loops={"kid": kid}))
    assert story(told)[-2:] == ["> loop_complete terminal done 0", "loop_complete no_route a 1"]
    assert run.ending is not None
    assert run.ending.error


@pytest.mark.parametrize(
    ("marker", "end", "last"),
    [
        ("FATAL_ERROR: boom", "error c 1", "loop_complete error a 1"),
        ("LOOP_STOP: x", "interrupted done 1", "loop_complete interrupted a 1"),
        ("CONTEXT_HANDOFF: x", "handoff c 1", "loop_complete handoff a 1"),
    ],
)
def test_a_marker_in_a_sub_loop_means_the_whole_run(library: Library, marker: str, end: str, last: str) -> None:
    loop, kids = family(library, "on_yes: b, on_no: b, on_error: b")
    run, told = play(loop, World({"c": says(marker)}, loops=kids))
    assert story(told)[-2:] == [f"> loop_complete {end}", last]
    assert [frame.state for frame in run.frames] == ["a", "c" if end.split()[1] == "c" else "done"]


def test_a_sub_loops_captures_come_back_under_its_states_name(library: Library) -> None:
    loop, kids = family(library, "context_passthrough: true, on_yes: b")
    run, _ = play(loop, World({"c": "hello\n"}, loops=kids))
    assert run.root.captured["a"]["said"]["output"] == "hello"
    assert run.root.captured["a"]["terminated_by"] == "terminal"
    assert "failure_terminal" not in run.root.captured["a"]


def test_a_sub_loop_with_neither_bindings_nor_passthrough_only_tells_how_it_ended(library: Library) -> None:
    loop, kids = family(library, "on_no: b")
    run, _ = play(loop, World({"c": 1}, loops=kids))
    assert run.root.captured["a"] == {"terminated_by": "terminal", "failure_terminal": True}


def test_a_sub_loops_error_is_kept(library: Library) -> None:
    loop, kids = family(library, "on_error: b")
    run, _ = play(loop, World({"c": 2, "c2": 1}, loops=kids))
    assert run.root.captured["a"] == {"terminated_by": "no_route", "error": "No valid transition"}


def test_a_captured_sub_loop_is_its_events_and_those_of_its_own_sub_loops(library: Library) -> None:
    kid = load(library, CHILD, "kid")
    mid = load(library, "initial: m\nstates:\n  m: {loop: kid, on_yes: done}\n  done: {terminal: true}\n", "mid")
    loop = load(library, states("a: {loop: mid, capture: k, on_yes: done}"))
    run, _ = play(loop, World({"c": "one\ntwo\n"}, loops={"kid": kid, "mid": mid}))
    kept = run.root.captured["k"]
    told = [json.loads(one) for one in kept["output"].splitlines()]
    shown = [(one["loop"], one["depth"], one["event"], one.get("line")) for one in told]
    assert shown == [
        ("mid", 1, "loop_start", None),
        ("mid", 1, "state_enter", None),
        ("kid", 2, "loop_start", None),
        ("kid", 2, "state_enter", None),
        ("kid", 2, "action_start", None),
        ("kid", 2, "action_output", "one"),
        ("kid", 2, "action_output", "two"),
        ("kid", 2, "action_complete", None),
        ("kid", 2, "evaluate", None),
        ("kid", 2, "route", None),
        ("kid", 2, "loop_complete", None),
        ("mid", 1, "route", None),
        ("mid", 1, "loop_complete", None),
    ]
    assert (kept["exit_code"], kept["verdict"]) == (None, "yes")


def test_a_loop_that_calls_itself_without_end_is_stopped() -> None:
    loop = Loop("demo", "a", {"a": State("a", SubLoop("demo"), routes=Routes(on={"yes": "a"}))})
    world = World(loops={"demo": loop})
    _, told = play(loop, world)
    assert len(world.asked) == DEEPEST
    assert story(told)[-1] == "loop_complete no_route a 1"


# --- interrupted and resumed -------------------------------------------------------------------------------


def test_an_interrupted_action_is_entered_again_as_the_next_attempt(library: Library) -> None:
    loop = load(library, states("a: {action: x, next: b}", "b: {action: y, on_yes: done}"))
    run, _ = drive(machine.begin(loop, {}), World(), stop_before="b")
    cut = machine.interrupt(run, 1, "", signal=15)
    assert story(cut.events) == ["loop_complete interrupted b 2"]
    assert cut.effect is None
    assert cut.run.ending is not None
    assert cut.run.ending.signal == 15
    _, told = drive(machine.resume(cut.run, 1, ""), World())
    assert story(told) == lines("""
        loop_resume b
        loop_start
        state_enter b 3 attempt=2
        action_start y
        action_complete 0
        evaluate default yes
        route b done
        loop_complete terminal done 3
    """)


def test_attempts_are_counted_for_one_entry_only(library: Library) -> None:
    loop = load(library, states("a: {action: x, on_yes: done, on_no: a}"))
    decision = machine.begin(loop, {})
    for attempt in (2, 3):
        decision = machine.resume(machine.interrupt(decision.run, 0, "").run, 0, "")
        assert isinstance(decision.effect, RunAction)
        assert decision.effect.attempt == attempt
    _, told = drive(decision, World({"a": [1, 0]}))
    assert story(told, without=(*ACTIONS, "evaluate"))[-3:] == [
        "state_enter a 4",
        "route a done",
        "loop_complete terminal done 4",
    ]


def test_an_action_that_never_began_is_asked_for_again_without_a_new_entry(library: Library) -> None:
    loop = load(library, states("a: {action: x, on_yes: done}"))
    begun = machine.begin(loop, {})
    again = machine.resume(begun.run, 0, "", started=False)
    assert again.effect == begun.effect
    assert story(again.events) == ["loop_resume a", "loop_start"]


def test_an_interruption_inside_a_sub_loop_is_resumed_inside_it(library: Library) -> None:
    loop, kids = family(library, "on_yes: b")
    run, _ = drive(machine.begin(loop, {}), World(loops=kids), stop_before="c")
    cut = machine.interrupt(run, 0, "")
    assert story(cut.events) == ["> loop_complete interrupted c 1", "loop_complete interrupted a 1"]
    _, told = drive(machine.resume(cut.run, 0, ""), World(loops=kids))
    assert story(told, without=ACTIONS)[:4] == [
        "loop_resume a",
        "loop_start",
        "> state_enter c 2 attempt=2",
        "> evaluate default yes",
    ]
    assert story(told)[-1] == "loop_complete terminal done 2"


def test_loading_a_sub_loop_that_was_cut_off_is_simply_repeated(library: Library) -> None:
    loop, kids = family(library, "on_yes: b")
    run, _ = drive(machine.begin(loop, {}), World(loops=kids), stop_before=LoadLoop)
    decision = machine.resume(run, 0, "")
    assert decision.effect == run.waiting
    assert story(decision.events) == ["loop_resume a", "loop_start"]


def test_after_a_stop_a_resume_goes_on_with_the_routed_state(library: Library) -> None:
    loop = load(library, states("a: {action: x, next: b}", "b: {action: y, next: done}"))
    run, _ = play(loop, World({"a": says("LOOP_STOP:")}))
    _, told = drive(machine.resume(run, 0, ""), World())
    assert story(told, without=ACTIONS) == [
        "loop_resume b",
        "loop_start",
        "state_enter b 2",
        "route b done",
        "loop_complete terminal done 2",
    ]


def test_after_a_stop_in_a_sub_loop_a_resume_goes_on_inside_it(library: Library) -> None:
    child = (
        "initial: c\nstates:\n  c: {action: x, next: c2}\n  c2: {action: y, on_yes: done}\n  done: {terminal: true}\n"
    )
    loop, kids = family(library, "on_yes: b", child)
    run, _ = play(loop, World({"c": says("LOOP_STOP:")}, loops=kids))
    _, told = drive(machine.resume(run, 0, ""), World(loops=kids))
    assert story(told, without=(*ACTIONS, "evaluate"))[:6] == [
        "loop_resume a",
        "loop_start",
        "> state_enter c2 2",
        "> route c2 done",
        "> loop_complete terminal done 2",
        "route a b",
    ]


def test_after_a_handoff_a_resume_runs_the_state_again(library: Library) -> None:
    loop = load(library, states("a: {action: x, next: done}"))
    run, _ = play(loop, World({"a": says("CONTEXT_HANDOFF: the rest")}))
    decision = machine.resume(run, 0, "")
    assert decision.events[0].fields == {
        "from_state": "a",
        "iteration": 1,
        "from_handoff": True,
        "continuation_prompt": "the rest",
    }
    _, told = drive(decision, World())
    assert story(told, without=ACTIONS)[2:] == ["state_enter a 2", "route a done", "loop_complete terminal done 2"]


def test_a_stop_that_was_asked_for_outlives_a_crash_before_it_took_effect(library: Library) -> None:
    body = states("a: {action: x, evaluate: {type: diff_stall}, on_yes: b}", "b: {action: y, next: done}")
    world = World({"a": says("FATAL_ERROR: boom")})
    run, _ = drive(machine.begin(load(library, body), {}), world, stop_before=ProbeTree)
    for decision in (machine.resume(run, 0, ""), machine.resume(machine.interrupt(run, 0, "").run, 0, "")):
        after, told = drive(decision, World())
        assert story(told)[-1] == "loop_complete error a 1"
        assert after.ending is not None
        assert after.ending.error == "boom"


def test_a_pause_that_was_cut_off_is_taken_again(library: Library) -> None:
    loop = load(library, "backoff: 5\n" + states("a: {action: x, next: b}", "b: {next: done}"))
    run, _ = drive(machine.begin(loop, {}), World(), stop_before=Pause)
    decision = machine.resume(machine.interrupt(run, 0, "").run, 0, "")
    assert decision.effect == Pause(5, "backoff")


@pytest.mark.parametrize(
    ("word", "rest"),
    [
        ("skip", ["warning", "action_complete", "evaluate", "route", "loop_complete"]),
        ("fail", ["loop_complete"]),
    ],
)
def test_a_state_says_what_a_resume_does_with_its_lost_action(library: Library, word: str, rest: list[str]) -> None:
    loop = load(library, states(f"a: {{action: x, on_yes: done, on_resume: {word}}}"))
    begun = machine.begin(loop, {})
    run, told = drive(machine.resume(begun.run, 0, ""), World())
    assert [event.name for event in told] == ["loop_resume", "loop_start", *rest]
    assert run.ending is not None
    assert run.ending.by == ("terminal" if word == "skip" else "error")
    assert run.root.iteration == 1


@pytest.mark.parametrize("exit_code", [0, 2])
def test_a_run_that_has_ended_takes_no_answer_and_no_interruption(library: Library, exit_code: int) -> None:
    run, _ = play(load(library, states("a: {action: x, on_yes: done}")), World({"a": exit_code}))
    with pytest.raises(ValueError, match="waits for nothing"):
        machine.advance(run, Outcome(ActionDone(0)))
    with pytest.raises(ValueError, match="cannot be interrupted"):
        machine.interrupt(run, 0, "")


def test_an_interrupted_run_takes_no_late_answer(library: Library) -> None:
    begun = machine.begin(load(library, states("a: {action: x, on_yes: done}")), {})
    with pytest.raises(ValueError, match="waits for nothing"):
        machine.advance(machine.interrupt(begun.run, 0, "").run, Outcome(ActionDone(0)))
