"""From YAML to the frozen loop: values, marks, inheritance, fragments, and complaints with their lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ll_loop.core import model as m
from ll_loop.errors import Problem
from ll_loop.files.library import Library
from ll_loop.files.nodes import Map, merged, parse

HEAD = "name: demo\ndescription: A sample.\nscope: [work/]\n"


@pytest.fixture
def library(tmp_path: Path) -> Library:
    (tmp_path / ".loops").mkdir()
    (tmp_path / "bundled").mkdir()
    return Library(tmp_path, bundled=tmp_path / "bundled")


def write(library: Library, name: str, text: str) -> Path:
    path = library.loops / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def loop_of(library: Library, text: str, head: str = HEAD) -> m.Loop:
    write(library, "demo.yaml", head + text)
    return library.load("demo").loop


def problems_of(library: Library, text: str, head: str = HEAD) -> tuple[Problem, ...]:
    write(library, "demo.yaml", head + text)
    return library.check("demo")[1]


def errors_of(library: Library, text: str, head: str = HEAD) -> list[tuple[str, str, int]]:
    found = problems_of(library, text, head)
    return [(p.rule, p.path, p.line) for p in found if p.severity == "error"]


def value_of(text: str) -> Any:
    parsed = parse(text.encode(), "a.yaml")
    assert parsed.readable, parsed.problems
    return parsed.value


def small(state: str) -> str:
    """A loop whose only working state `start` has this body (one line, flow style)."""
    return f"initial: start\nstates:\n  start: {{{state}}}\n  finish: {{terminal: true}}\n"


# --- values ----------------------------------------------------------------------------------------------


def test_a_loop_may_say_its_own_thresholds(library: Library) -> None:
    text = "config: {handoff_threshold: 70, commands: {confidence_gate: {outcome_threshold: 40}}}\n"
    loop = loop_of(library, text + small('action: "true", next: finish'))
    assert (loop.handoff_threshold, dict(loop.thresholds)) == (70, {"outcome_threshold": 40})


def test_a_threshold_that_is_no_number_is_an_error(library: Library) -> None:
    text = "config: {handoff_threshold: high, commands: 1}\n" + small('action: "true", next: finish')
    assert errors_of(library, text) == [
        ("load.shape", "config.handoff_threshold", 4),
        ("load.shape", "config.commands", 4),
    ]


def test_scalars_are_those_of_a_yaml_1_1_safe_loader() -> None:
    text = "a: yes\nb: off\nc: 0x10\nd: 1_000\ne: 12:30:00\nf: ~\ng: .5\nh: 'yes'\ni: !!str 5\nj: 1e3\n"
    assert value_of(text) == {
        "a": True,
        "b": False,
        "c": 16,
        "d": 1000,
        "e": 45000,
        "f": None,
        "g": 0.5,
        "h": "yes",
        "i": "5",
        "j": "1e3",
    }


def test_keys_are_text_as_written() -> None:
    assert list(value_of("yes: 1\nNo: 2\non: 3\n7: 4\n1.50: 5\n")) == ["yes", "no", "on", "7", "1.50"]


def test_merge_keys_lay_the_own_values_on_top() -> None:
    text = "base: &b {x: 1, y: 2}\nmore: &m {y: 3, z: 4}\nall: {<<: [*b, *m], x: 9}\n"
    assert value_of(text)["all"] == {"x": 9, "y": 2, "z": 4}


def test_a_repeated_key_counts_once_and_is_reported() -> None:
    parsed = parse(b"a: 1\nb: 2\na: 3\n", "a.yaml")
    assert parsed.value == {"a": 3, "b": 2}
    assert [str(p) for p in parsed.problems] == ["a.yaml:3:1: warning: `a` is given twice; the last one counts"]


def test_every_value_knows_where_it_stood() -> None:
    value = value_of("a:\n  b: [1, two]\n  c: three\n")
    assert isinstance(value, Map)
    inner = value["a"]
    assert (inner.keys_at["c"].line, inner.values_at["c"].column) == (3, 6)
    assert inner["b"].items_at[1].column == 10


def test_laying_one_mapping_over_another_changes_neither() -> None:
    base, over = value_of("a: {x: 1, y: [1]}\nb: 1\n"), value_of("a: {y: [2]}\nc: null\n")
    assert merged(base, over) == {"a": {"x": 1, "y": [2]}, "b": 1, "c": None}
    assert base == {"a": {"x": 1, "y": [1]}, "b": 1}


# --- the typed loop --------------------------------------------------------------------------------------


def test_a_small_loop_becomes_typed_values_with_the_defaults(library: Library) -> None:
    loop = loop_of(library, small("action: 'true', next: finish"))
    assert loop.states["start"] == m.State("start", m.Shell("true"), routes=m.Routes(next="finish"))
    assert loop.states["finish"] == m.State("finish", terminal=True)
    assert (loop.max_steps, loop.max_edge_revisits, loop.input_key, loop.scope) == (50, 100, "input", ("work/",))
    assert len(loop.file_sha256) == len(loop.fingerprint) == 64


@pytest.mark.parametrize(
    ("state", "work"),
    [
        ("action: 'ls'", m.Shell("ls")),
        ("action: '/ll:tidy now'", m.Prompt("/ll:tidy now", slash=True)),
        ("action: '/bin/sh -c true'", m.Shell("/bin/sh -c true")),
        ("action: '/ll:tidy', action_type: shell", m.Shell("/ll:tidy")),
        ("action: Hello, action_type: prompt", m.Prompt("Hello")),
        ("action: tidy, action_type: slash_command", m.Prompt("tidy", slash=True)),
        ("action: ls, action_type: nonsense", m.Shell("ls")),
        ("action: a/b, action_type: mcp_tool", m.McpTool("a/b")),
        ("action: a/b, action_type: mcp_tool, params: {q: 1}", m.McpTool("a/b", {"q": 1})),
        ("action: Ship?, action_type: human_approval, on_no: finish", m.HumanApproval("Ship?")),
        ("action: x, action_type: contract", m.Nothing()),
        ("action: x, action_type: contract, next: finish", m.Shell("x")),
        ("on_no: finish", m.Nothing()),
        ("type: learning, learning: {targets: [x]}, on_no: finish", m.Learning(("x",))),
        (
            "type: learning, learning: {targets_csv: 'a, b', max_retries: 0, max_retries_expr: '1'}, on_no: finish",
            m.Learning((), "a, b", 0, "1"),
        ),
    ],
)
def test_the_kind_of_work_follows_from_type_and_text(library: Library, state: str, work: m.Work) -> None:
    assert loop_of(library, small(f"{state}, on_yes: finish")).states["start"].work == work


def test_a_command_that_is_an_existing_program_runs_in_a_shell_with_a_warning(library: Library) -> None:
    found = problems_of(library, small("action: '/bin/sh -c true', on_yes: finish, on_no: finish"))
    assert [p.rule for p in found] == ["state.path-command"]


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("type: exit_code, abstain_on_exit_3: true", m.ExitCode(True)),
        ("type: output_numeric, operator: lt, target: 3, key: n", m.OutputNumeric("lt", 3, "n")),
        ("type: output_numeric, operator: eq, target: '${context.t}'", m.OutputNumeric("eq", "${context.t}")),
        ("type: output_json, path: .a.b, operator: ne, target: [1]", m.OutputJson(".a.b", "ne", [1])),
        ("type: output_contains, pattern: x, negate: true", m.OutputContains("x", True)),
        ("type: output_contains, pattern: x, error_patterns: [e]", m.OutputContains("x", False, ("e",))),
        ("type: convergence, target: 0, previous: '${prev.output}'", m.Convergence(0, previous="${prev.output}")),
        ("type: classify", m.Classify()),
        ("type: classify, line: -2", m.Classify(-2)),
        ("type: classify, line: middle", m.Classify("middle")),
        ("type: diff_stall, scope: [a, b], max_stall: 2", m.DiffStall(("a", "b"), 2)),
        ("type: score_stall", m.ScoreStall("${context.run_dir}/.score_history")),
        (
            "type: open_question_stall, epsilon: 0",
            m.ScoreStall("${context.run_dir}/.open_questions_history", epsilon=0, falling=True),
        ),
        ("type: action_stall, track: [prev.output]", m.ActionStall(("prev.output",))),
        ("type: mcp_result", m.McpResult()),
        ("type: harbor_scorer", m.HarborScorer()),
        ("type: llm_structured, prompt: Is it?", m.Judge("llm_structured", {"prompt": "Is it?"})),
        ("type: comparator, baseline_path: b", m.Judge("comparator", {"baseline_path": "b"})),
    ],
)
def test_each_evaluator_becomes_its_own_type(library: Library, block: str, expected: m.Evaluator) -> None:
    loop = loop_of(library, small(f"action: ls, evaluate: {{{block}}}, route: {{_: finish}}"))
    evaluate = loop.states["start"].evaluate
    assert evaluate is not None
    assert evaluate.by == expected
    assert block.startswith(f"type: {evaluate.type}")


def test_both_spellings_of_a_route_mean_the_same_and_the_newer_wins(library: Library) -> None:
    loop = loop_of(
        library, small("action: ls, on_success: nowhere, on_yes: finish, on_failure: finish, on_odd: finish")
    )
    assert loop.states["start"].routes.on == {"yes": "finish", "no": "finish", "odd": "finish"}


def test_bare_yes_and_no_are_words_in_a_route_table(library: Library) -> None:
    loop = loop_of(library, small("action: ls, route: {yes: finish, no: start, _: finish, _other: nowhere}"))
    assert loop.states["start"].routes.table == {"yes": "finish", "no": "start", "_": "finish"}


def test_numbers_and_booleans_can_name_states(library: Library) -> None:
    loop = loop_of(library, "initial: 1\nstates:\n  1: {next: yes}\n  yes: {terminal: true}\n")
    assert loop.initial == "1"
    assert loop.states["1"].routes.next == "yes"
    assert list(loop.states) == ["1", "yes"]


def test_a_terminal_fails_by_its_name_unless_it_says_otherwise(library: Library) -> None:
    states = (
        "error: {terminal: true}\n  aborted: {terminal: true, failure: false}\n  odd: {terminal: true, failure: true}\n"
    )
    loop = loop_of(library, f"initial: error\nstates:\n  {states}")
    assert {name: state.failure for name, state in loop.states.items()} == {
        "error": True,
        "aborted": False,
        "odd": True,
    }


def test_a_step_cap_under_its_old_name(library: Library) -> None:
    text = small("next: finish")
    old = loop_of(library, "max_iterations: 7\n" + text)
    both = loop_of(library, "max_iterations: 7\nmax_steps: 9\n" + text)
    assert (old.max_steps, old.max_iterations) == (7, None)
    assert (both.max_steps, both.max_iterations) == (9, 7)


def test_rate_limits_and_throttles_exist_only_where_they_are_asked_for(library: Library) -> None:
    plain = loop_of(library, small("action: ls, next: finish")).states["start"]
    limited = loop_of(library, small("action: ls, rate_limit_max_wait_seconds: 60, next: finish")).states["start"]
    throttled = loop_of(library, small("action: ls, on_throttle_hard: finish, next: finish")).states["start"]
    assert (plain.rate_limit, plain.throttle) == (None, None)
    assert limited.rate_limit == m.RateLimit(max_wait=60)
    assert throttled.throttle == m.Throttle(then="finish")


def test_retry_resume_and_circuit_are_typed(library: Library) -> None:
    state = "action: ls, max_retries: 2, on_retry_exhausted: finish, on_resume: skip, next: finish"
    loop = loop_of(library, "circuit: {repeated_failure: {}}\n" + small(state))
    assert loop.states["start"].retry == m.Retry(2, "finish")
    assert loop.states["start"].on_resume == "skip"
    assert loop.circuit == m.RepeatedFailure()


def test_what_only_an_agent_host_reads_is_kept_as_written(library: Library) -> None:
    loop = loop_of(
        library,
        "labels: [a]\nllm: {model: haiku}\n" + small("action: Hi, action_type: prompt, tools: [Read], next: finish"),
    )
    assert loop.meta["llm"] == {"model": "haiku"}
    assert loop.meta["states"] == {"start": {"tools": ["Read"]}}


# --- inheritance, flow, fragments ------------------------------------------------------------------------


def test_a_child_overrides_its_parent_at_every_depth(library: Library) -> None:
    write(
        library, "base.yaml", "max_steps: 9\ncontext: {a: {x: 1, y: 2}, b: [1]}\nstates: {finish: {terminal: true}}\n"
    )
    loop = loop_of(library, "from: base\ninitial: s\ncontext: {a: {y: 3}, b: [2]}\nstates: {s: {next: finish}}\n")
    assert loop.context == {"a": {"x": 1, "y": 3}, "b": [2]}
    assert list(loop.states) == ["finish", "s"]
    assert loop.max_steps == 9


def test_a_mistake_in_a_parent_is_shown_in_the_parents_file(library: Library) -> None:
    write(library, "base.yaml", "states:\n  finish: {terminal: true}\n  lost: {next: nowhere}\n")
    found = [p for p in problems_of(library, "from: base\ninitial: finish\n") if p.severity == "error"]
    assert [(p.file, p.line, p.rule) for p in found] == [(".loops/base.yaml", 3, "graph.unknown-target")]


def test_inheriting_in_a_circle_is_refused(library: Library) -> None:
    write(library, "a.yaml", "name: a\nfrom: b\n")
    write(library, "b.yaml", "name: b\nfrom: a\n")
    assert [p.rule for p in library.check("a")[1]] == ["load.from-cycle"]


def test_flow_is_written_out_as_states(library: Library) -> None:
    text = 'initial: one\nflow: [one, "two?three:one", three]\nstate_defs: {one: {action: ls}}\n'
    states = loop_of(library, text).states
    assert states["one"] == m.State("one", m.Shell("ls"), routes=m.Routes(next="two"))
    assert states["two"].routes.on == {"yes": "three", "no": "one"}
    assert states["three"].terminal


def test_a_fragment_gives_a_state_its_shape_and_takes_its_bindings(library: Library) -> None:
    write(
        library,
        "lib/shapes.yaml",
        "fragments:\n  say:\n    description: Says.\n    parameters: {word: {type: string, required: true}}\n"
        "    action: 'echo ${param.word}'\n    evaluate: {type: exit_code}\n    timeout: 5\n",
    )
    text = "import: [lib/shapes.yaml]\n" + small(
        "fragment: say, with: {word: hi}, timeout: 9, on_yes: finish, on_no: finish"
    )
    state = loop_of(library, text).states["start"]
    assert state.work == m.Shell("echo ${param.word}")
    assert state.timeout == 9
    assert state.bindings == {"word": "hi"}
    assert state.fragment_parameters == (m.Parameter("word", "string", required=True),)


def test_the_fingerprint_ignores_layout_and_catalogue_but_not_behaviour(library: Library) -> None:
    text = small("action: ls, next: finish")
    first = loop_of(library, text).fingerprint
    described = loop_of(library, "category: other\n# a remark\n" + text).fingerprint
    changed = loop_of(library, text.replace("ls", "ls -l")).fingerprint
    assert first == described
    assert first != changed


# --- complaints ------------------------------------------------------------------------------------------


def test_all_mistakes_come_at_once_each_with_its_line(library: Library) -> None:
    text = (
        "name: demo\n"
        "initial: strat\n"
        "max_steps: 0\n"
        "states:\n"
        "  start:\n"
        "    acton: ls\n"
        "    on_yes: finsh\n"
        "    evaluate: {type: exit_kode}\n"
        "  finish: {terminal: true}\n"
        "  broken: hello\n"
    )
    found = {(p.rule, p.line, p.hint) for p in problems_of(library, text, head="")}
    assert found >= {
        ("graph.initial-unknown", 2, "did you mean `start`?"),
        ("doc.max-steps", 3, "leave it out for 50"),
        ("state.unknown-key", 6, "did you mean `action`?"),
        ("graph.unknown-target", 7, "did you mean `finish`?"),
        ("eval.type-unknown", 8, "did you mean `exit_code`?"),
        ("load.shape", 10, ""),
    }


def test_a_complaint_reads_as_file_line_column_message_hint(library: Library) -> None:
    text = "initial: check\nstates:\n  check:\n    on_yes: dnoe\n  done: {terminal: true}\n"
    found = [p for p in problems_of(library, text) if p.severity == "error"]
    assert found[0].lines() == [
        ".loops/demo.yaml:7:13: state `check`: `on_yes` names no state: `dnoe`",
        "hint: did you mean `done`?",
    ]


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("context:", "context"),
        ("llm:", "llm"),
        ("config:", "config"),
        ("context: [1]", "context"),
        ("max_steps: '20'", "max_steps"),
        ("timeout: soon", "timeout"),
        ("backoff: true", "backoff"),
        ("parameters: {p: {required: true}}", "parameters.p"),
        ("parameters: {p: text}", "parameters.p"),
        ("commands: [{cmd: x}]", "commands"),
        ("artifact_output: {to: x}", "artifact_output"),
        ("circuit: {repeated_failure: 3}", "circuit.repeated_failure"),
        ("on_handoff: explode", "on_handoff"),
        ("scope: {a: b}", "scope"),
        ("name: [a]", "name"),
    ],
)
def test_a_value_of_the_wrong_shape_is_named_by_its_path(library: Library, line: str, path: str) -> None:
    head = "description: d\n" if line.startswith("name") else "name: demo\ndescription: d\n"
    assert ("load.shape", path, head.count("\n") + 1) in errors_of(library, line + "\n" + small("next: finish"), head)


@pytest.mark.parametrize(
    ("state", "path"),
    [
        ("action: 42, next: finish", "action"),
        ("on_yes: [finish]", "on_yes"),
        ("next: {a: b}", "next"),
        ("route: ", "route"),
        ("route: [finish]", "route"),
        ("route: {a: }", "route.a"),
        ("evaluate: , next: finish", "evaluate"),
        ("evaluate: {pattern: x}, next: finish", "evaluate"),
        ("evaluate: {type: output_contains, pattern: 5}, next: finish", "evaluate.pattern"),
        ("timeout: '30', next: finish", "timeout"),
        ("max_retries: two, on_retry_exhausted: finish, next: finish", "max_retries"),
        ("throttle: 3, next: finish", "throttle"),
        ("loop: x, with: 3, next: finish", "with"),
        ("loop: {}, next: finish", "loop"),
        ("action_type: [shell], next: finish", "action_type"),
        ("model: 3, next: finish", "model"),
        ("cost_ceiling: much, next: finish", "cost_ceiling"),
    ],
)
def test_a_state_of_the_wrong_shape_is_named_by_its_path(library: Library, state: str, path: str) -> None:
    assert ("load.shape", f"states.start.{path}", 6) in errors_of(library, small(state))


def test_a_terminal_that_is_no_boolean_counts_by_its_truth_with_a_warning(library: Library) -> None:
    text = "initial: s\nstates: {s: {next: e}, e: {terminal: 'false'}}\n"
    assert loop_of(library, text).states["e"].terminal
    assert "load.not-boolean" in {p.rule for p in problems_of(library, text)}


def test_an_unknown_fragment_is_one_complaint_with_a_suggestion(library: Library) -> None:
    text = "fragments: {shout: {action: ls}}\n" + small("fragment: shuot")
    found = [p for p in problems_of(library, text) if p.severity == "error"]
    assert [(p.rule, p.hint) for p in found] == [("load.fragment-unknown", "did you mean `shout`?")]


def test_what_is_missing_is_listed_in_one_message(library: Library) -> None:
    found = problems_of(library, "description: nothing else\n", head="")
    assert [p.message for p in found if p.severity == "error"] == ["missing: `name`, `initial`, `states`"]
