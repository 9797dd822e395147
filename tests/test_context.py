"""What templates see, and how a run's context is filled before its first state."""

from __future__ import annotations

import hashlib
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ll_loop.core.context import (
    MissingParameter,
    Namespaces,
    bind_fragment,
    cast_like,
    child_context,
    elapsed_text,
    initial_context,
    missing_inputs,
    told_missing,
)
from ll_loop.core.model import Evaluate, Judge, Loop, Parameter, Shell, State, SubLoop
from ll_loop.core.template import MissingValue, render

NOW = Namespaces(
    context={"who": "me", "cfg": {"a": 1}, "none": None, "list": [1]},
    captured={"c": {"output": "out", "exit_code": 1, "timeout_kind": None}},
    prev={"output": "hello\n", "exit_code": 0, "state": "a"},
    state_name="b",
    iteration=2,
    loop_name="demo",
    started_at="2026-11-22T13:29:39+00:00",
    elapsed_ms=135_000,
    env={"HOME": "/home/me", "A.B": "dotted"},
    messages=("one", "two", "three"),
    param={"word": "hi"},
)


def loop(*actions: str, **keys: Any) -> Loop:
    states = {f"s{n}": State(f"s{n}", Shell(action)) for n, action in enumerate(actions)}
    return Loop(name="demo", initial="s0", states=states, **keys)


# --- namespaces ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("${context.who} ${context.cfg.a} [${context.none}]", "me 1 []"),
        ("${captured.c.output} ${captured.c.exit_code} [${captured.c.timeout_kind}]", "out 1 []"),
        ("${prev.output}|${prev.exit_code}|${prev.state}", "hello\n|0|a"),
        ("${state.name} ${state.iteration}", "b 2"),
        ("${loop.name} ${loop.started_at}", "demo 2026-11-22T13:29:39+00:00"),
        ("${loop.elapsed_ms} ${loop.elapsed}", "135000 2m 15s"),
        ("${env.HOME} ${env.A.B} ${env.NOPE:default=none}", "/home/me dotted none"),
        ("${messages}", "one\ntwo\nthree"),
        ("${messages.output}", "one\ntwo\nthree"),
        ("[${messages.last(2)}] [${messages.last(0)}] [${messages.last(9)}]", "[two\nthree] [] [one\ntwo\nthree]"),
        ("[${messages.summary}]", "[]"),
        ("${param.word} ${result.verdict:default=none}", "hi none"),
    ],
)
def test_every_namespace_gives_its_members(template: str, text: str) -> None:
    assert render(template, NOW) == text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("${context.cfg.b}", "Path 'cfg.b' not found in context"),
        ("${captured.base.output}", "Path 'base' not found in captured"),
        ("${context.list.0}", "Path 'list.0' not found in context"),
        ("${context.none.x}", "Path 'none.x' not found in context"),
        ("${state.nam}", "Path 'nam' not found in state"),
        ("${env.NOPE}", "Environment variable 'NOPE' is not set"),
        ("${messages.last(x)}", "Path 'last(x)' not found in messages"),
        ("${result.verdict}", "Path 'verdict' not found in result"),
        ("${foo.bar}", "Unknown namespace: foo"),
    ],
)
def test_a_path_that_leads_nowhere_is_named(template: str, message: str) -> None:
    with pytest.raises(MissingValue) as error:
        render(template, NOW)
    assert str(error.value) == message


def test_prev_is_missing_before_the_first_state() -> None:
    assert render("[${prev.output?}]", Namespaces()) == "[]"


@pytest.mark.parametrize(
    ("milliseconds", "text"), [(0, "0ms"), (29, "29ms"), (12_999, "12s"), (120_000, "2m"), (135_001, "2m 15s")]
)
def test_durations_are_written_for_people(milliseconds: int, text: str) -> None:
    assert elapsed_text(milliseconds) == text


@given(path=st.lists(st.text(), min_size=1).map(tuple), namespace=st.text())
def test_looking_up_anything_gives_a_value_or_says_what_is_missing(path: tuple[str, ...], namespace: str) -> None:
    try:
        NOW.lookup(namespace, path)
    except MissingValue as error:
        missed = error
        assert (missed.namespace, missed.path) == (namespace, path)


# --- the start of a run ----------------------------------------------------------------------------------

ALWAYS = {
    "max_steps": 50,
    "readiness_threshold": 85,
    "outcome_threshold": 65,
    "design_tokens_context": "",
    "design_guidance_context": "",
}


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def test_parameter_defaults_fill_only_absent_keys_and_required_ones_never() -> None:
    parameters = {
        "depth": Parameter("depth", "integer", default=3),
        "who": Parameter("who", "string", default="nobody"),
        "must": Parameter("must", "string", required=True, default="x"),
        "void": Parameter("void", "string"),
    }
    context = initial_context(loop(context={"who": "me"}, parameters=parameters))
    assert context == {"who": "me", "depth": 3, **ALWAYS}


def test_each_source_wins_over_those_before_it() -> None:
    context = initial_context(
        loop(context={"a": "file", "b": "file", "c": "file", "d": "file"}),
        input='{"b": "input", "c": "input", "d": "input"}',
        program={"c": "program", "d": "program"},
        texts=[(" d ", " override "), ("new", "4")],
        extras={"a": "extra", "run_dir": "/runs/1/", "readiness_threshold": 90},
    )
    assert context == ALWAYS | {
        "a": "file",
        "b": "input",
        "c": "program",
        "d": "override",
        "new": "4",
        "run_dir": "/runs/1/",
        "readiness_threshold": 90,
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"topic": "dogs", "size": 7, "nope": 1}', {"topic": "dogs", "size": 7}),
        ('{"nope": 1}', {"topic": '{"nope": 1}', "size": 1}),
        ("[1]", {"topic": "[1]", "size": 1}),
        ("stars", {"topic": "stars", "size": 1}),
        ("[" * 100_000, {"topic": "[" * 100_000, "size": 1}),
    ],
)
def test_the_positional_input_is_spread_only_if_it_has_a_known_key(text: str, expected: dict[str, Any]) -> None:
    demo = loop(context={"topic": ""}, input_key="topic", parameters={"size": Parameter("size", "integer", default=1)})
    assert initial_context(demo, input=text) == ALWAYS | expected


def test_a_textual_input_gets_a_hash() -> None:
    context = initial_context(loop(), input="stars")
    assert (context["input"], context["input_hash"]) == ("stars", hash_of("stars"))
    assert "input_hash" not in initial_context(loop(context={"input": 5}))


def test_caps_are_visible_unless_the_file_says_otherwise() -> None:
    context = initial_context(loop(max_steps=7, max_iterations=2, context={"max_steps": "mine"}))
    assert (context["max_steps"], context["max_iterations"]) == ("mine", 2)


@pytest.mark.parametrize(
    ("current", "text", "value"),
    [
        (True, "False", False),
        (True, "maybe", "maybe"),
        (1, "2", 2),
        (1, "2.5", "2.5"),
        (1.5, "2", 2.0),
        (1.5, "nan", "nan"),
        ("text", "3", "3"),
        (None, "4", "4"),
        ({"type": "integer"}, "4", 4),
        ({"type": "boolean"}, "TRUE", True),
        ({"type": "number"}, "4", 4.0),
        ({"type": ["odd"]}, "4", "4"),
        (1, "9" * 5000, "9" * 5000),
    ],
)
def test_a_typed_override_takes_the_type_of_what_it_replaces(current: Any, text: str, value: Any) -> None:
    cast = cast_like(current, text)
    assert (cast, type(cast)) == (value, type(value))


def test_overrides_of_a_caller_are_taken_as_they_are() -> None:
    assert initial_context(loop(context={"n": 1}), overrides={"n": " 2 ", "x": [1]}) == {"n": " 2 ", "x": [1], **ALWAYS}


def test_the_loop_is_left_alone_by_what_a_run_does_with_its_context() -> None:
    demo = loop(context=MappingProxyType({"cfg": MappingProxyType({"list": (1, 2)})}))
    context = initial_context(demo)
    context["cfg"]["list"].append(3)
    assert demo.context == {"cfg": {"list": (1, 2)}}


# --- the pre-flight --------------------------------------------------------------------------------------


def test_missing_context_variables_are_named_once_and_sorted() -> None:
    demo = loop("echo ${context.who} ${context.b.c} # ${context.a}", "echo ${context.who:shell}")
    assert missing_inputs(demo, {}) == ["a", "b", "who"]


def test_only_the_first_part_of_a_path_is_demanded() -> None:
    assert missing_inputs(loop("echo ${context.cfg.b}"), {"cfg": {"a": 1}}) == []


def test_escaped_and_guarded_references_demand_nothing() -> None:
    demo = loop("$${context.a} ${context.b:default=x} ${context.c?} ${context.d.e?} ${context.f:shell?}")
    assert missing_inputs(demo, {}) == []


def test_the_prompt_of_a_judge_is_looked_at_as_well() -> None:
    judge = Evaluate(Judge("llm_structured", {"prompt": "is ${context.topic} fine?"}))
    demo = Loop(name="demo", initial="a", states={"a": State("a", Shell("true"), evaluate=judge)})
    assert len(missing_inputs(demo, {})) == 1


def test_required_inputs_need_a_value_that_is_not_empty() -> None:
    demo = loop("echo ${context.topic}", required_inputs=("topic",))
    assert missing_inputs(demo, {"topic": "x"}) == []
    assert missing_inputs(demo, {"topic": ""}) == ["topic"]
    assert missing_inputs(demo, {}) == ["topic"]


def test_missing_values_are_told_with_a_command_that_gives_them() -> None:
    demo = loop("", input_key="topic")
    message, hint = told_missing(demo, ["must", "topic"], "team/demo")
    assert message == "loop `team/demo` needs 2 values: must, topic"
    assert hint == "ll-loop run team/demo TOPIC --context must=VALUE"


# --- sub-loops and fragments -----------------------------------------------------------------------------

CHILD = loop(
    context={"tone": "own", "who": "own"},
    parameters={"who": Parameter("who", "string", required=True), "times": Parameter("times", "integer", default=2)},
)
THRESHOLDS = {"readiness_threshold": 85, "outcome_threshold": 65}


def test_bindings_win_over_the_childs_own_context_and_bring_the_run_directory() -> None:
    context = child_context(CHILD, SubLoop("demo"), {"who": "you"}, {"x": 1}, {"c": {}}, "/runs/1/")
    assert context == {"tone": "own", "who": "you", "run_dir": "/runs/1/", "times": 2, **THRESHOLDS}


def test_a_required_parameter_without_binding_is_refused() -> None:
    child = loop(parameters={"name": Parameter("name", "string", required=True)})
    with pytest.raises(MissingParameter, match=r"^Missing required parameter 'name' of loop 'demo'$"):
        child_context(child, SubLoop("demo"), {"other": "x"}, {}, {}, "/runs/1/")


def test_passthrough_hands_down_context_then_captures_and_the_childs_own_context_wins() -> None:
    captured = {
        "said": {"output": "hi", "exit_code": 0},
        "kid": {"terminated_by": "terminal"},
        "who": {"output": "x", "exit_code": 0},
    }
    context = child_context(
        CHILD, SubLoop("demo", passthrough=True), None, {"x": 1, "said": 2, "input": "i"}, captured, "/r/"
    )
    assert context == {
        "x": 1,
        "said": "hi",
        "kid": {"terminated_by": "terminal"},
        "input": "i",
        "input_hash": hash_of("i"),
        "tone": "own",
        "who": "own",
        "times": 2,
        **THRESHOLDS,
    }


def test_without_bindings_or_passthrough_a_child_sees_its_own_context_only() -> None:
    context = child_context(
        CHILD, SubLoop("demo"), None, {"x": 1}, {"c": {"output": "", "exit_code": 0}}, "/r/", {"e": 1}
    )
    assert context == {"tone": "own", "who": "own", "times": 2, "e": 1, **THRESHOLDS}


SAY = (
    Parameter("word", "string", required=True),
    Parameter("times", "integer", default=2),
    Parameter("void", "string"),
)


def test_fragment_bindings_are_rendered_and_completed_by_defaults() -> None:
    state = State(
        "a", Shell("echo"), bindings={"word": "hi-${loop.name}", "more": ["${context.who}"]}, fragment_parameters=SAY
    )
    assert bind_fragment(state, NOW) == {"word": "hi-demo", "more": ["me"], "times": 2}


def test_a_required_fragment_parameter_without_binding_is_refused() -> None:
    with pytest.raises(MissingParameter, match=r"^Missing required parameter 'word' of the fragment of state 'a'$"):
        bind_fragment(State("a", bindings={}, fragment_parameters=SAY), NOW)


def test_a_state_without_fragment_binds_nothing() -> None:
    assert bind_fragment(State("a"), NOW) == {}
