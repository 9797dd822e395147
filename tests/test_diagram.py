"""Loops as Mermaid state diagrams."""

from __future__ import annotations

from ll_loop.core.drawing.mermaid import edges, mermaid
from ll_loop.core.model import Loop, Retry, Routes, Shell, State, SubLoop

DONE = State("done", terminal=True)


def loop_of(*states: State) -> Loop:
    return Loop("sample", states[0].name, {state.name: state for state in states})


def test_a_loop_becomes_states_and_arrows() -> None:
    check = State("check", Shell("x"), routes=Routes(on={"yes": "done", "no": "fix", "error": "fix"}))
    fix = State("fix", Shell("y"), routes=Routes(next="check"))
    assert mermaid(loop_of(check, fix, DONE)) == (
        "stateDiagram-v2\n"
        "    [*] --> check\n"
        "    check --> done: yes\n"
        "    check --> fix: no / error\n"
        "    fix --> check: next\n"
        "    done --> [*]\n"
    )


def test_names_that_mermaid_does_not_take_get_another_id() -> None:
    first = State("fix-it now", Shell("x"), routes=Routes(next="end"))
    text = mermaid(loop_of(first, State("end", terminal=True)))
    assert '    state "fix-it now" as s0_\n    state "end" as s1_\n' in text
    assert "    s0_ --> s1_: next\n" in text


def test_the_current_state_is_an_arrow_back_to_itself() -> None:
    text = mermaid(loop_of(State("a", Shell("x"), routes=Routes(table={"_": "$current", "yes": "done"})), DONE))
    assert "    a --> a: otherwise\n" in text


def test_a_target_that_is_only_known_in_a_run_becomes_a_note() -> None:
    text = mermaid(loop_of(State("a", Shell("x"), routes=Routes(next="${captured.where.output}")), DONE))
    assert "    note right of a: next to $#123;captured.where.output#125;\n" in text


def test_failures_and_sub_loops_can_be_told_apart() -> None:
    call = State("call", SubLoop("child"), routes=Routes(on={"yes": "failed"}))
    text = mermaid(loop_of(call, State("failed", terminal=True, failure=True)))
    assert '    state "call (loop child)" as call\n' in text
    assert "    class failed failure\n" in text


def test_every_way_out_of_a_state_is_an_edge() -> None:
    state = State(
        "a",
        Shell("x"),
        routes=Routes(on={"yes": "b"}),
        retry=Retry(2, "c"),
        on_retry_exhausted="d",
        on_maintain="e",
    )
    assert list(edges(state)) == [
        ("yes", "b"),
        ("after 2 retries", "c"),
        ("retry exhausted", "d"),
        ("maintain", "e"),
    ]
