"""From an output and an exit code to a verdict and the facts behind it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ll_loop.core.context import Namespaces
from ll_loop.core.model import (
    OPERATORS,
    ActionStall,
    Classify,
    Convergence,
    DiffStall,
    Evaluate,
    Evaluator,
    ExitCode,
    HarborScorer,
    Judge,
    McpResult,
    McpTool,
    Operator,
    OutputContains,
    OutputJson,
    OutputNumeric,
    ScoreStall,
    Shell,
)
from ll_loop.core.verdicts import (
    Evaluation,
    EvaluatorError,
    Look,
    default_evaluation,
    evaluate,
)

SCOPE = Namespaces(
    context={"goal": 3, "word": "ten", "cur": "3\n"},
    captured={"c": {"output": "kept", "exit_code": 0}},
)


def look(output: str = "", exit_code: int = 0, **keys: Any) -> Look:
    return Look(output, exit_code, SCOPE, **keys)


def judged(by: Evaluator, output: str = "", exit_code: int = 0, **keys: Any) -> Evaluation:
    return evaluate(Evaluate(by), look(output, exit_code, **keys))[0]


def verdict(by: Evaluator, output: str = "", exit_code: int = 0) -> str:
    return judged(by, output, exit_code).verdict


# --- exit codes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("by", "code", "expected"),
    [
        (ExitCode(), 0, "yes"),
        (ExitCode(), 1, "no"),
        (ExitCode(), 3, "error"),
        (ExitCode(), 127, "error"),
        (ExitCode(abstain_on_exit_3=True), 3, "cannot_judge"),
        (ExitCode(abstain_on_exit_3=True), 4, "error"),
        (ExitCode(), -9, "error"),
    ],
)
def test_exit_codes_have_fixed_verdicts(by: ExitCode, code: int, expected: str) -> None:
    assert judged(by, "", code) == Evaluation("exit_code", expected, {"exit_code": code})


READERS: list[Evaluator] = [
    OutputNumeric("eq", 7),
    OutputJson(".", "eq", 7),
    OutputContains("7"),
    Convergence(7),
    Classify(),
    Judge("comparator"),
    Judge("advisor_consult"),
]
WITNESSES: list[Evaluator] = [
    ExitCode(),
    HarborScorer(),
    DiffStall(),
    ScoreStall("h"),
    ScoreStall("h", falling=True),
    ActionStall(),
]
WRITERS: list[Evaluator] = [*READERS, *WITNESSES]


@pytest.mark.parametrize("by", WRITERS)
def test_a_timed_out_action_is_an_error(by: Evaluator) -> None:
    result = judged(by, "7", 124)
    assert (result.verdict, result.details) == ("error", {"exit_code": 124, "error": "action timed out"})


@pytest.mark.parametrize("by", READERS)
def test_what_a_failed_action_printed_is_not_read(by: Evaluator) -> None:
    result = judged(by, "7", 4)
    assert (result.verdict, result.details) == ("error", {"exit_code": 4, "error": "action exited with code 4"})


@pytest.mark.parametrize("by", WITNESSES)
def test_the_others_judge_a_failed_action_themselves(by: Evaluator) -> None:
    assert judged(by, "7", 4, probe="f").details.get("error") != "action exited with code 4"


# --- numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operator", "holds"),
    [("eq", "010"), ("ne", "101"), ("lt", "100"), ("le", "110"), ("gt", "001"), ("ge", "011")],
)
def test_numbers_compare_by_six_operators(operator: Operator, holds: str) -> None:
    verdicts = [verdict(OutputNumeric(operator, 7), text) for text in (" 6\n", "7.0", "7.5e0")]
    assert verdicts == ["yes" if bit == "1" else "no" for bit in holds]


def test_a_numeric_verdict_tells_what_was_compared() -> None:
    text = "score=1\nscore = 2.5e1 done"
    assert judged(OutputNumeric("eq", 25, key="score"), text) == Evaluation(
        "output_numeric", "yes", {"value": 25.0, "target": 25, "operator": "eq"}
    )


@pytest.mark.parametrize(
    ("by", "error"),
    [
        (OutputNumeric("gt", 1), "Cannot parse as number: many\n"),
        (OutputNumeric("gt", 1, key="score"), "key 'score' not found in output"),
        (Convergence(1), "Cannot parse output as number: many\n"),
    ],
)
def test_an_output_that_is_no_number_is_an_error(by: Evaluator, error: str) -> None:
    result = judged(by, "many\n")
    assert (result.verdict, result.details) == ("error", {"error": error})


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("ten", "output_numeric target must be numeric, got: 'ten'"),
        ("${context.word}", "output_numeric target must be numeric, got: 'ten'"),
        ("${context.nope}", "Path 'nope' not found in context"),
    ],
)
def test_a_target_that_is_no_number_ends_the_run(target: str, error: str) -> None:
    with pytest.raises(EvaluatorError) as raised:
        judged(OutputNumeric("lt", target), "7")
    assert str(raised.value) == error


def test_a_target_may_be_a_template() -> None:
    assert verdict(OutputNumeric("lt", "${context.goal}"), "2") == "yes"


@pytest.mark.parametrize(("text", "shown"), [("nan", "nan"), ("-inf", "-inf"), ("1e999", "inf")])
def test_numbers_that_json_does_not_know_are_written_as_null_and_text(text: str, shown: str) -> None:
    details = judged(OutputNumeric("ne", 1), text).details
    assert details == {"value": None, "value_text": shown, "target": 1, "operator": "ne"}


# --- JSON ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path", "operator", "target", "expected"),
    [
        ('{"s": {"failed": 0}}', ".s.failed", "eq", 0, "yes"),
        ('[{"v": 3}, {"v": 4}]', "1.v", "gt", 3, "yes"),
        ('{"s": true}', ".s", "eq", 1, "yes"),
        ('{"s": "1"}', "s", "eq", 1, "no"),
        ('{"s": "1"}', "s", "ne", 1, "yes"),
        ('{"s": [1, {"a": 2}]}', "s", "eq", (1, {"a": 2}), "yes"),
        ('{"s": null}', "s", "eq", None, "yes"),
        ('{"s": "b"}', "s", "gt", "a", "error"),
        ("[1]", "1", "eq", 1, "error"),
        ("[1]", "-1", "eq", 1, "error"),
        ("[1]", "9" * 5000, "eq", 1, "error"),
        ('{"s": 1}', "s.t", "eq", 1, "error"),
        ('{"s": 1} x', "s", "eq", 1, "error"),
        ("", "s", "eq", 1, "error"),
        ("7", ".", "ge", 7.0, "yes"),
        ('{"n": 3}', ".n", "eq", "${context.goal}", "no"),
        ("[" * 5000 + "]" * 5000, ".", "ne", 1, "error"),
    ],
)
def test_a_json_value_is_found_by_its_path_and_compared(
    text: str, path: str, operator: Operator, target: Any, expected: str
) -> None:
    assert verdict(OutputJson(path, operator, target), text) == expected


def test_a_json_verdict_tells_what_was_compared() -> None:
    assert judged(OutputJson(".s", "eq", 1), '{"s": true}').details == {
        "value": True,
        "path": ".s",
        "target": 1,
        "operator": "eq",
    }


# --- texts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("by", "text", "expected"),
    [
        (OutputContains("d.ne"), "all done", "yes"),
        (OutputContains("^b"), "a\nb\n", "no"),
        (OutputContains("^$"), "", "yes"),
        (OutputContains("a(b"), "xa(b", "yes"),
        (OutputContains("a(b"), "ab", "no"),
        (OutputContains("done", negate=True), "all done", "no"),
        (OutputContains("done", negate=True), "nothing", "yes"),
        (OutputContains("${context.goal}"), "3", "no"),
        (OutputContains("x{99999999999999999999}"), "x", "no"),
    ],
)
def test_a_pattern_is_searched_anywhere_or_taken_as_plain_text(by: OutputContains, text: str, expected: str) -> None:
    facts = {"matched": (expected == "yes") is not by.negate, "pattern": by.pattern, "negate": by.negate}
    assert judged(by, text) == Evaluation("output_contains", expected, facts)


def test_an_error_pattern_counts_only_where_the_wanted_one_is_absent() -> None:
    facts = {"matched": False, "pattern": "done", "negate": False, "error_pattern": "expired"}
    by = OutputContains("done", error_patterns=("expired",))
    assert judged(by, "auth expired") == Evaluation("output_contains", "error", facts)
    assert verdict(by, "done expired") == "yes"
    assert verdict(OutputContains("done", negate=True, error_patterns=("expired",)), "done expired") == "no"


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        (None, {"token": "beta", "line": None}),
        ("last", {"token": "beta", "line": "last"}),
        ("middle", {"token": "beta", "line": "middle"}),
        ("first", {"token": "alpha", "line": "first"}),
        (-2, {"token": "alpha", "line": -2}),
        (1, {"token": "beta", "line": 1}),
        (5, {"token": "", "line": 5, "source_lines": 2, "error": "index out of range"}),
        (-3, {"token": "", "line": -3, "source_lines": 2, "error": "index out of range"}),
    ],
)
def test_the_chosen_line_is_the_verdict(line: Any, facts: dict[str, Any]) -> None:
    assert judged(Classify(line), "alpha\n beta \n\n") == Evaluation("classify", facts["token"], facts)


def test_an_empty_output_is_the_empty_verdict() -> None:
    assert judged(Classify(), "\n \n") == Evaluation("classify", "", {"token": "", "line": None, "source_lines": 0})


def test_another_text_than_the_output_can_be_judged() -> None:
    by = OutputContains("kept")
    assert evaluate(Evaluate(by, source="${captured.c.output}"), look("ignored"))[0].verdict == "yes"
    assert evaluate(Evaluate(by, source="${context.zip}"), look("kept"))[0].verdict == "yes"


# --- convergence -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("by", "text", "expected", "facts"),
    [
        (Convergence(0, tolerance=1), "3", "progress", {"current": 3, "target": 0, "previous": None, "delta": None}),
        (Convergence(0, tolerance=1), "1", "target", {"current": 1, "target": 0, "delta": 0}),
        (
            Convergence(0, previous="${context.cur}"),
            "3",
            "stall",
            {"current": 3, "target": 0, "previous": 3, "delta": 0, "direction": "minimize"},
        ),
        (
            Convergence("${context.goal}", tolerance="${context.nope}", previous="9"),
            "4",
            "progress",
            {"current": 4, "target": 3, "previous": 9, "delta": -5, "direction": "minimize"},
        ),
        (
            Convergence(9, "maximize", previous="5"),
            "4",
            "stall",
            {"current": 4, "target": 9, "previous": 5, "delta": -1, "direction": "maximize"},
        ),
        (
            Convergence(4, reference="3"),
            "4",
            "stall",
            {"current": 4, "target": 4, "reference": 3, "regressed_vs_reference": True},
        ),
        (Convergence(4, "maximize", reference=3), "4", "target", {"current": 4, "target": 4, "delta": 0}),
        (
            Convergence(4, reference="${captured.base.output}"),
            "4",
            "error",
            {"error": "Cannot resolve reference: Path 'base' not found in captured"},
        ),
        (Convergence("ten"), "4", "error", {"error": "Cannot resolve target: not a number: 'ten'"}),
        (
            Convergence(0, previous="${context.word}"),
            "3",
            "progress",
            {"current": 3, "target": 0, "previous": None, "delta": None},
        ),
    ],
)
def test_convergence_asks_reference_then_target_then_progress(
    by: Convergence, text: str, expected: str, facts: dict[str, Any]
) -> None:
    assert judged(by, text) == Evaluation("convergence", expected, facts)


# --- stalls ----------------------------------------------------------------------------------------------


def looks(by: Evaluator, probes: list[Any], scopes: list[Namespaces] | None = None) -> Iterator[Evaluation]:
    memory: Mapping[str, Any] = {}
    for index, probe in enumerate(probes):
        scope = scopes[index] if scopes else SCOPE
        result, memory = evaluate(Evaluate(by), Look("", 0, scope, memory, probe))
        memory = json.loads(json.dumps(dict(memory)))  # as a resumed run would find it
        yield result


def test_an_unchanged_tree_is_a_stall_after_so_many_looks() -> None:
    results = list(looks(DiffStall(max_stall=2), ["a", "b", "b", "b", "b", "c"]))
    assert [result.verdict for result in results] == ["yes", "yes", "yes", "no", "no", "yes"]
    assert [result.details["stall_count"] for result in results] == [0, 0, 1, 2, 3, 0]
    assert results[0].details == {"stall_count": 0, "max_stall": 2, "diff_changed": True}
    assert results[3].details == {"stall_count": 2, "max_stall": 2, "diff_changed": False}


def test_a_tree_that_cannot_be_read_is_an_error_and_forgets_nothing() -> None:
    results = list(looks(DiffStall(), ["a", {"error": "not a git repository"}, "a"]))
    assert [result.verdict for result in results] == ["yes", "error", "no"]
    assert results[1].details == {"error": "not a git repository"}


def test_a_damaged_memory_counts_as_zero() -> None:
    memory = {"fingerprint": "a", "count": "many"}
    assert evaluate(Evaluate(DiffStall()), look(memory=memory, probe="a"))[1] == {"fingerprint": "a", "count": 1}


@pytest.mark.parametrize(
    ("by", "history", "expected", "facts"),
    [
        (ScoreStall("h"), None, "yes", {"stall_count": 0, "rounds": 0, "best": None}),
        (ScoreStall("h"), "10\n", "yes", {"stall_count": 0, "rounds": 1, "best": 10}),
        (ScoreStall("h", 2), "10\n20\n20.3\n", "yes", {"stall_count": 1, "rounds": 3, "best": 20.3}),
        (ScoreStall("h", 2), "10\nbad\nnan\n20\n20.3\n20.3\n", "no", {"stall_count": 2, "rounds": 4, "best": 20.3}),
        (ScoreStall("h", 2), "10\n9\n8\n11\n", "yes", {"stall_count": 0, "rounds": 4, "best": 11}),
        (ScoreStall("h", 1, 0, True), "8\n7\n", "yes", {"stall_count": 0, "rounds": 2, "best": 7}),
        (ScoreStall("h", 1, 0, True), "8\n7\n7\n", "no", {"stall_count": 1, "rounds": 3, "best": 7}),
    ],
)
def test_a_history_that_no_longer_moves_is_a_stall(
    by: ScoreStall, history: str | None, expected: str, facts: dict[str, Any]
) -> None:
    kind = "open_question_stall" if by.falling else "score_stall"
    facts = {**facts, "max_stall": by.max_stall, "epsilon": by.epsilon}
    assert judged(by, probe=history) == Evaluation(kind, expected, facts)


def test_tracked_values_that_repeat_are_a_stall() -> None:
    scopes = [Namespaces(context={"n": n}, captured={"c": {"output": "x"}}) for n in (1, 1, 2, 2, 2)]
    results = list(looks(ActionStall(("n", "captured.c.output")), [None] * 5, scopes))
    assert [result.verdict for result in results] == ["yes", "yes", "yes", "yes", "no"]


def test_a_tracked_name_that_is_nowhere_always_repeats() -> None:
    results = list(looks(ActionStall(), [None] * 3))
    facts = {"max_repeat": 2, "tracked_keys": ["action"]}
    assert [(result.verdict, result.details) for result in results] == [
        ("yes", {"stall_count": 0, "hash_changed": True, **facts}),
        ("yes", {"stall_count": 1, "hash_changed": False, **facts}),
        (
            "no",
            {
                "stall_count": 2,
                "hash_changed": False,
                "repeated_hash": "e83f17c98ec15ee1ae4bd2f3861f5887",
                **facts,
            },
        ),
    ]


# --- tools, scorers, judges ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code", "expected", "facts"),
    [
        ('{"isError": false, "content": []}', 0, "success", {"envelope": {"isError": False, "content": []}}),
        ('{"isError": true}', 0, "tool_error", {"envelope": {"isError": True}}),
        ("{}", 1, "tool_error", {"envelope": {}}),
        ("", 0, "success", {"envelope": {}}),
        ("oops\n", 0, "tool_error", {"error": "Invalid JSON from mcp-call: oops\n"}),
        ("", 127, "not_found", {"error": "Server or tool not found in .mcp.json"}),
        ("", 124, "timeout", {"error": "MCP tool call timed out"}),
    ],
)
def test_a_tool_answer_is_judged_by_its_envelope(text: str, code: int, expected: str, facts: dict[str, Any]) -> None:
    assert judged(McpResult(), text, code) == Evaluation("mcp_result", expected, {"exit_code": code, **facts})


def test_json_that_is_no_object_is_no_envelope() -> None:
    with pytest.raises(EvaluatorError):
        judged(McpResult(), "[1]")


@pytest.mark.parametrize(("text", "code", "expected"), [(" 0.5\n", 0, "yes"), ("none", 0, "error"), ("0.5", 2, "no")])
def test_a_scorer_says_yes_with_a_number(text: str, code: int, expected: str) -> None:
    assert verdict(HarborScorer(), text, code) == expected
    assert judged(HarborScorer(), "0.5").details["score"] == 0.5


def test_without_a_block_the_kind_of_work_decides() -> None:
    assert default_evaluation(Shell("x"), look("", 1)) == Evaluation("default", "no", {"exit_code": 1})
    assert default_evaluation(Shell("x"), look("", 124)) == Evaluation("default", "error", {"exit_code": 124})
    assert default_evaluation(McpTool("a/b"), look("{}")).verdict == "success"


# --- whatever comes --------------------------------------------------------------------------------------

WORDS = {
    "exit_code": {"yes", "no", "error", "cannot_judge"},
    "output_numeric": {"yes", "no", "error"},
    "output_json": {"yes", "no", "error"},
    "output_contains": {"yes", "no", "error"},
    "convergence": {"target", "progress", "stall", "error"},
    "diff_stall": {"yes", "no", "error"},
    "score_stall": {"yes", "no"},
    "open_question_stall": {"yes", "no"},
    "action_stall": {"yes", "no"},
    "mcp_result": {"success", "tool_error", "not_found", "timeout"},
    "harbor_scorer": {"yes", "no", "error"},
    "llm_structured": {"error"},
}
JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=8,
)
OUTPUTS = st.text() | JSONISH.map(json.dumps) | st.floats().map(str) | st.integers().map(str)
NUMBER_OR_TEXT = st.floats() | st.integers() | st.text()
OPS = st.sampled_from(OPERATORS)
EVALUATORS: st.SearchStrategy[Evaluator] = st.one_of(
    st.builds(ExitCode, st.booleans()),
    st.builds(OutputNumeric, OPS, NUMBER_OR_TEXT, st.none() | st.text(min_size=1)),
    st.builds(OutputJson, st.sampled_from([".", "a", "a.b", "0", "a.0.b"]) | st.text(), OPS, JSONISH),
    st.builds(OutputContains, st.text(), st.booleans(), st.lists(st.text()).map(tuple)),
    st.builds(
        Convergence,
        NUMBER_OR_TEXT,
        st.sampled_from(["minimize", "maximize"]),
        NUMBER_OR_TEXT,
        st.none() | st.text(),
        st.none() | NUMBER_OR_TEXT,
    ),
    st.builds(Classify, st.integers() | st.sampled_from(["first", "last"])),
    st.builds(DiffStall),
    st.builds(ScoreStall, st.text(), st.integers(), st.floats(), st.booleans()),
    st.builds(ActionStall, st.lists(st.text()).map(tuple), st.integers()),
    st.just(McpResult()),
    st.just(HarborScorer()),
)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of patterns that mean something else in a later Python
@given(by=EVALUATORS, output=OUTPUTS, code=st.just(0) | st.integers(-15, 255), probe=st.text() | st.none())
def test_every_look_gives_a_known_verdict_with_json_facts_or_an_evaluator_error(
    by: Evaluator, output: str, code: int, probe: str | None
) -> None:
    memory = {"count": output, "fingerprint": probe, "hash": code}
    try:
        result, remembered = evaluate(Evaluate(by), look(output, code, memory=memory, probe=probe))
    except EvaluatorError:
        assert isinstance(by, OutputNumeric | McpResult)
        return
    assert result.verdict in WORDS.get(result.type, {result.verdict, "error"}) | ({"error"} if code == 124 else set())
    json.dumps([dict(result.details), dict(remembered)], allow_nan=False)
