"""The rules: each fires on its smallest trigger, at the documented path, and on nothing else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from ll_loop.check import RULES
from ll_loop.errors import Problem
from ll_loop.files.library import Library

CALLEE = """
name: callee
description: Greets.
scope: [work/]
initial: greet
parameters:
  who: {type: string, required: true}
  count: {type: integer, default: 1}
states:
  greet: {action: echo, next: done}
  done: {terminal: true}
"""

# rule, documented path, what stands at the top level, the body of the state `start`
TRIGGERS = [
    ("load.llm-model-conflict", "<root>", "llm: {model: sonnet, model_hint: coding}", ""),
    (
        "load.number-coercion",
        "<root>",
        "",
        'action: "true", cost_ceiling: {cost_ceiling_per_state: cheap}, next: finish',
    ),
    ("doc.visibility", "visibility", "visibility: hidden", ""),
    ("doc.config", "config.comands", "config: {comands: 1}", ""),
    ("doc.config", "config.automation.max_continuations", "config: {automation: {max_continuations: 2}}", ""),
    ("doc.handoff-threshold", "config.handoff_threshold", "config: {handoff_threshold: 101}", ""),
    ("params.type", "parameters.size", "parameters: {size: {type: float}}", ""),
    ("params.enum-values", "parameters.mode", "parameters: {mode: {type: enum}}", ""),
    (
        "params.required-with-default",
        "parameters.who",
        "parameters: {who: {type: string, required: true, default: me}}",
        "",
    ),
    ("params.default-type", "parameters.count", 'parameters: {count: {type: integer, default: "3"}}', ""),
    ("targets.file-extension", "targets[0].file", "targets: [{file: other.yml, states: []}]", ""),
    ("artifact.template-needs-output", "artifact_mode", "artifact_mode: template", ""),
    (
        "artifact.template-suffix",
        "artifact_output.to",
        "artifact_mode: template\nartifact_output: {from: page, to: page.html}",
        "",
    ),
    ("graph.initial-unknown", "initial", "initial: begin", ""),
    ("graph.unknown-target", "states.start", "", 'action: "true", on_yes: finish, on_no: repair_shop'),
    (
        "state.model-hint-value",
        "states.start.model_hint",
        "",
        "action: Hello, action_type: prompt, model_hint: speedy, next: finish",
    ),
    (
        "state.model-hint-exclusive",
        "states.start.model_hint",
        "",
        "action: Hello, action_type: prompt, model: opus, model_hint: coding, next: finish",
    ),
    (
        "state.model-hint-inapplicable",
        "states.start.model_hint",
        "",
        'action: "true", model_hint: coding, next: finish',
    ),
    (
        "state.append-needs-interpolation",
        "states.start.append_to_messages",
        "",
        'action: "true", append_to_messages: just words, next: finish',
    ),
    ("state.model-ignored", "states.start.model", "", 'action: "true", action_type: shell, model: opus, next: finish'),
    (
        "state.effort-ignored",
        "states.start.effort",
        "",
        'action: "true", action_type: shell, effort: high, next: finish',
    ),
    ("state.params-not-mcp", "states.start.params", "", 'action: "true", params: {q: 1}, next: finish'),
    ("state.scopes-unknown", "states.start.scopes", "", 'action: "true", scopes: [everything], next: finish'),
    (
        "state.scopes-not-shell",
        "states.start.scopes",
        "",
        "action: Hello, action_type: prompt, scopes: [github], next: finish",
    ),
    ("state.loop-and-action", "states.start", "", 'loop: callee, action: "true", on_yes: finish, on_no: finish'),
    ("state.with-without-loop", "states.start.with", "", 'action: "true", with: {a: 1}, next: finish'),
    (
        "state.worktree-without-loop",
        "states.start.worktree",
        "",
        'action: "true", worktree: topic-branch, next: finish',
    ),
    (
        "learning.targets-empty",
        "states.start.learning.targets",
        "",
        "type: learning, learning: {targets: []}, on_yes: finish, on_no: finish",
    ),
    (
        "learning.max-retries",
        "states.start.learning.max_retries",
        "",
        "type: learning, learning: {targets: [queue API], max_retries: -1}, on_yes: finish, on_no: finish",
    ),
    ("learning.on-yes", "states.start.on_yes", "", "type: learning, learning: {targets: [queue API]}, on_no: finish"),
    ("learning.on-blocked", "states.start", "", "type: learning, learning: {targets: [queue API]}, on_yes: finish"),
    (
        "state.with-and-passthrough",
        "states.start",
        "",
        "loop: callee, with: {who: me}, context_passthrough: true, on_yes: finish, on_no: finish",
    ),
    (
        "approval.action",
        "states.start.action",
        "",
        "action_type: human_approval, timeout: 60, on_yes: finish, on_no: finish",
    ),
    (
        "approval.routes",
        "states.start",
        "",
        "action: Ship it?, action_type: human_approval, timeout: 60, on_yes: finish",
    ),
    (
        "approval.timeout",
        "states.start.timeout",
        "",
        "action: Ship it?, action_type: human_approval, on_yes: finish, on_no: finish",
    ),
    (
        "eval.type-unknown",
        "states.start.evaluate",
        "",
        'action: "echo 1", evaluate: {type: eyeball}, on_yes: finish, on_no: finish',
    ),
    (
        "eval.required-field",
        "states.start.evaluate",
        "",
        'action: "echo 1", evaluate: {type: output_numeric}, on_yes: finish, on_no: finish',
    ),
    (
        "eval.operator",
        "states.start.evaluate.operator",
        "",
        'action: "echo 1", evaluate: {type: output_numeric, operator: "==", target: 1}, on_yes: finish, on_no: finish',
    ),
    (
        "eval.direction",
        "states.start.evaluate.direction",
        "",
        'action: "echo 1", evaluate: {type: convergence, target: 1, '
        "direction: sideways}, on_yes: finish, on_no: finish",
    ),
    (
        "eval.tolerance",
        "states.start.evaluate.tolerance",
        "",
        'action: "echo 1", evaluate: {type: convergence, target: 1, tolerance: -0.5}, on_yes: finish, on_no: finish',
    ),
    (
        "eval.min-confidence",
        "states.start.evaluate.min_confidence",
        "",
        'action: "echo 1", evaluate: {type: llm_structured, min_confidence: 1.5}, '
        "on_yes: finish, on_no: finish, on_error: finish",
    ),
    (
        "eval.max-stall",
        "states.start.evaluate.max_stall",
        "",
        'action: "echo 1", evaluate: {type: diff_stall, max_stall: 0}, on_yes: finish, on_no: finish',
    ),
    (
        "eval.epsilon",
        "states.start.evaluate.epsilon",
        "",
        'action: "echo 1", evaluate: {type: score_stall, epsilon: -0.1}, on_yes: finish, on_no: finish',
    ),
    (
        "eval.max-repeat",
        "states.start.evaluate.max_repeat",
        "",
        'action: "echo 1", evaluate: {type: action_stall, max_repeat: 0}, on_yes: finish, on_no: finish',
    ),
    (
        "graph.shorthand-and-route",
        "states.start",
        "",
        'action: "true", on_yes: finish, route: {"no": finish, "yes": finish}',
    ),
    ("graph.no-transition", "states.start", "", 'action: "true"'),
    ("state.max-retries-pair", "states.start", "", 'action: "true", max_retries: 2, next: finish'),
    (
        "state.max-retries-range",
        "states.start",
        "",
        'action: "true", max_retries: 0, on_retry_exhausted: finish, next: finish',
    ),
    ("state.retryable-needs-on-error", "states.start", "", 'action: "true", retryable_exit_codes: [75], next: finish'),
    (
        "state.retryable-value",
        "states.start.retryable_exit_codes",
        "",
        'action: "true", retryable_exit_codes: [0], on_error: finish, next: finish',
    ),
    ("state.rate-limit-pair", "states.start", "", 'action: "true", max_rate_limit_retries: 2, next: finish'),
    (
        "state.rate-limit-retries-range",
        "states.start",
        "",
        'action: "true", max_rate_limit_retries: 0, on_rate_limit_exhausted: finish, next: finish',
    ),
    (
        "state.rate-limit-backoff-range",
        "states.start",
        "",
        'action: "true", rate_limit_backoff_base_seconds: 0, next: finish',
    ),
    (
        "state.rate-limit-max-wait-range",
        "states.start",
        "",
        'action: "true", rate_limit_max_wait_seconds: 0, next: finish',
    ),
    (
        "state.rate-limit-ladder-empty",
        "states.start",
        "",
        'action: "true", rate_limit_long_wait_ladder: [], next: finish',
    ),
    (
        "state.rate-limit-ladder-value",
        "states.start",
        "",
        'action: "true", rate_limit_long_wait_ladder: [60, 0, "90"], next: finish',
    ),
    ("state.throttle-value", "states.start", "", 'action: "true", throttle: {warn_max: 0}, next: finish'),
    (
        "state.throttle-order",
        "states.start",
        "",
        'action: "true", throttle: {normal_max: 6, warn_max: 4}, next: finish',
    ),
    (
        "state.cost-negative",
        "states.start",
        "",
        "action: Hi, action_type: prompt, cost_ceiling: {cost_ceiling_per_state: -1}, next: finish",
    ),
    (
        "state.cost-order",
        "states.start",
        "",
        "action: Hi, action_type: prompt, cost_ceiling: {cost_ceiling_per_state: 1, cost_warn_at: 2}, next: finish",
    ),
    (
        "state.cost-inert",
        "states.start",
        "",
        'action: "true", action_type: shell, cost_ceiling: {cost_ceiling_per_state: 1}, next: finish',
    ),
    ("doc.max-steps", "max_steps", "max_steps: 0", ""),
    ("doc.max-iterations", "max_iterations", "max_steps: 9\nmax_iterations: 0", ""),
    ("doc.max-edge-revisits", "max_edge_revisits", "max_edge_revisits: 0", ""),
    ("doc.backoff", "backoff", "backoff: -2", ""),
    ("doc.timeout", "timeout", "timeout: 0", ""),
    ("llm.max-tokens", "llm.max_tokens", "llm: {max_tokens: 0}", ""),
    ("llm.timeout", "llm.timeout", "llm: {timeout: -1}", ""),
    (
        "llm.model-hint-value",
        "llm.model_hint",
        "llm: {model_hint: speedy}",
        "action: Summarise, action_type: prompt, next: finish",
    ),
    ("llm.model-hint-unused", "llm.model_hint", "llm: {model_hint: coding}", ""),
    ("lint.meta-no-objective-check", "<root>", "", 'action: "touch loops/other.yaml", next: finish'),
    (
        "doc.input-key-unguarded",
        "required_inputs",
        "input_key: topic",
        'action: "echo ${context.topic:shell}", next: finish',
    ),
    ("graph.partial-dead-end", "states.start", "", "action: Judge it, action_type: prompt, on_yes: finish"),
    ("lint.bash-default", "states.start.action", "", "action: 'echo ${context.level:-low}', next: finish"),
    ("lint.double-dollar", "states.start.action", "", "action: 'echo $$(pwd) $$HOME', next: finish"),
    (
        "lint.skill-not-in-tools",
        "states.start.tools",
        "",
        "action: '/ll:tidy', tools: [Read], pruning_profile: {name: slim}, next: finish",
    ),
    (
        "lint.raw-interpolation",
        "states.start.action",
        "context: {folder: docs}",
        "action: 'ls ${context.folder}', next: finish",
    ),
    (
        "lint.marker-malformed",
        "states.start.action",
        "context: {folder: docs}",
        "action: 'ls ${context.folder} # ll-lint: mr11-ok(context.folder) no ticket given', next: finish",
    ),
    (
        "graph.classify-no-default",
        "states.start",
        "",
        'action: "echo LEFT", evaluate: {type: classify}, route: {LEFT: finish, default: finish}',
    ),
    ("doc.on-max-steps-target", "on_max_steps", "on_max_steps: nowhere", ""),
    ("doc.on-max-iterations-target", "on_max_iterations", "on_max_iterations: nowhere", ""),
    ("circuit.window", "circuit.repeated_failure.window", "circuit: {repeated_failure: {window: 0}}", ""),
    (
        "circuit.recurrent-window",
        "circuit.repeated_failure.recurrent_window",
        "circuit: {repeated_failure: {recurrent_window: 1}}",
        "",
    ),
    (
        "circuit.target",
        "circuit.repeated_failure.on_repeated_failure",
        "circuit: {repeated_failure: {on_repeated_failure: nowhere}}",
        "",
    ),
    ("host-guard.pct-range", "host_guard.warn_pct", "host_guard: {warn_pct: 120, critical_pct: 130}", ""),
    ("host-guard.pct-order", "host_guard.critical_pct", "host_guard: {warn_pct: 90, critical_pct: 80}", ""),
    ("host-guard.cooldown", "host_guard.cooldown_ms", "host_guard: {cooldown_ms: -5}", ""),
    ("host-guard.on-pressure", "host_guard.on_pressure", "host_guard: {on_pressure: panic}", ""),
    ("host-guard.pressure-state-missing", "host_guard.pressure_state", "host_guard: {on_pressure: route}", ""),
    (
        "host-guard.pressure-state-unknown",
        "host_guard.pressure_state",
        "host_guard: {on_pressure: route, pressure_state: nowhere}",
        "",
    ),
    ("host-guard.abort-route-unknown", "host_guard.on_abort_route", "host_guard: {on_abort_route: nowhere}", ""),
    (
        "host-guard.budget-negative",
        "host_guard.max_cumulative_subproc_mb",
        "host_guard: {max_cumulative_subproc_mb: -1}",
        "",
    ),
    ("host-guard.on-budget", "host_guard.on_budget_exceeded", "host_guard: {on_budget_exceeded: wait}", ""),
    ("host-guard.budget-state-missing", "host_guard.budget_state", "host_guard: {max_cumulative_subproc_mb: 64}", ""),
    (
        "host-guard.budget-state-unknown",
        "host_guard.budget_state",
        "host_guard: {max_cumulative_subproc_mb: 64, budget_state: nowhere}",
        "",
    ),
    ("prompt-size.warn-chars", "prompt_size_guard.warn_chars", "prompt_size_guard: {warn_chars: -1}", ""),
    (
        "graph.abstention-unrouted",
        "states.start",
        "",
        "action: Judge it, action_type: prompt, evaluate: {type: llm_structured}, "
        "on_yes: finish, on_no: finish, on_partial: finish",
    ),
    ("capture.missing", "states.start.action", "", "action: \"echo '${captured.never.output}'\", next: finish"),
    (
        "subloop.with-unknown",
        "states.start.with.colour",
        "",
        "loop: callee, with: {who: me, colour: red}, on_yes: finish, on_no: finish",
    ),
    ("subloop.with-missing", "states.start.with", "", "loop: callee, with: {count: 2}, on_yes: finish, on_no: finish"),
    (
        "bind.with-type",
        "states.start.with.count",
        "",
        "loop: callee, with: {who: me, count: many}, on_yes: finish, on_no: finish",
    ),
    ("subloop.unresolved", "states.start.loop", "", "loop: nobody-home, on_yes: finish, on_no: finish"),
]

SEVERITY = {rule.name: rule.severity for rule in RULES}


@pytest.fixture
def library(tmp_path: Path) -> Library:
    (tmp_path / ".loops").mkdir()
    (tmp_path / ".loops" / "callee.yaml").write_text(CALLEE, encoding="utf-8")
    return Library(tmp_path, bundled=tmp_path / "bundled")


def check(library: Library, text: str) -> tuple[Problem, ...]:
    (library.loops / "demo.yaml").write_text(text, encoding="utf-8")
    return library.check("demo")[1]


def document(top: str = "", start: str = "action: ls, on_yes: finish, on_no: finish, on_error: finish") -> str:
    initial = "" if "initial:" in top else "initial: start\n"
    head = f"name: demo\ndescription: A sample.\nscope: [work/]\n{initial}{top}\n"
    return f"{head}states:\n  start: {{{start}}}\n  finish: {{terminal: true}}\n"


def graph(states: str, top: str = "") -> str:
    return f"name: demo\ndescription: A sample.\nscope: [work/]\ninitial: start\n{top}\nstates:\n{states}"


def rules_of(problems: tuple[Problem, ...]) -> set[str]:
    return {problem.rule for problem in problems}


@pytest.mark.parametrize(("rule", "path", "top", "start"), TRIGGERS)
def test_a_rule_fires_on_its_smallest_trigger(library: Library, rule: str, path: str, top: str, start: str) -> None:
    found = check(library, document(top, start) if start else document(top))
    assert (rule, SEVERITY[rule], path) in {(p.rule, p.severity, p.path) for p in found}
    others = {p.rule for p in found if p.severity == "error"} - {rule}
    assert not others
    assert all(p.line > 0 and p.column > 0 for p in found)


def test_a_sound_loop_draws_no_complaint(library: Library) -> None:
    assert check(library, document()) == ()


def test_rule_names_are_unique() -> None:
    assert [name for name, count in Counter(rule.name for rule in RULES).items() if count > 1] == []


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("doc.description-missing", "name: x\nscope: [a]\ninitial: s\nstates: {s: {terminal: true}}\n"),
        ("doc.scope-missing", "name: x\ndescription: d\ninitial: s\nstates: {s: {terminal: true}}\n"),
        ("graph.no-terminal", graph("  start: {next: start}\n")),
        ("graph.unreachable", graph("  start: {next: finish}\n  island: {next: finish}\n  finish: {terminal: true}\n")),
        ("graph.failure-terminal-undiagnosed", graph("  start: {next: failed}\n  failed: {terminal: true}\n")),
        ("graph.terminal-action", graph("  start: {next: wrap}\n  wrap: {terminal: true, action: echo}\n")),
        (
            "capture.subloop-own-name",
            graph(
                "  start: {loop: callee, with: {who: me}, capture: kid, on_yes: tell, on_no: done}\n"
                "  tell: {action: 'echo ''${captured.kid.greeting.output}''', next: done}\n  done: {terminal: true}\n"
            ),
        ),
        (
            "capture.implicit-bypass",
            graph(
                "  start: {action: ls, on_yes: call, on_no: tell}\n"
                "  call: {loop: callee, with: {who: me}, on_yes: tell, on_no: done}\n"
                "  tell: {action: 'echo ''${captured.call.greeting.output}''', next: done}\n  done: {terminal: true}\n"
            ),
        ),
        (
            "capture.bypass",
            graph(
                "  start: {action: ls, on_yes: get, on_no: tell}\n  get: {action: ls, capture: c, next: tell}\n"
                "  tell: {action: 'echo ''${captured.c.output}''', next: done}\n  done: {terminal: true}\n"
            ),
        ),
    ],
)
def test_a_rule_over_a_whole_document_fires(library: Library, rule: str, text: str) -> None:
    assert [p.severity for p in check(library, text) if p.rule == rule] == [SEVERITY[rule]]


def test_a_capture_that_every_path_sets_is_fine(library: Library) -> None:
    text = graph(
        "  start: {action: ls, capture: c, on_yes: tell, on_no: tell}\n"
        "  tell: {action: 'echo ${captured.c.output:shell}', on_yes: done, on_no: done}\n  done: {terminal: true}\n"
    )
    assert rules_of(check(library, text)) == set()


def test_a_guarded_capture_may_be_missing(library: Library) -> None:
    text = document(start="action: 'echo ${captured.never.output:shell?}', on_yes: finish, on_no: finish")
    assert rules_of(check(library, text)) == set()


def test_a_sub_loops_verdict_and_quoted_output_are_its_own(library: Library) -> None:
    text = graph(
        "  start: {loop: callee, with: {who: me}, capture: kid, on_yes: tell, on_no: done}\n"
        "  tell: {action: 'echo ${captured.kid.output:shell} ${captured.kid.verdict:shell}', on_yes: done, on_no: done}"
        "\n"
        "  done: {terminal: true}\n"
    )
    assert rules_of(check(library, text)) == set()


# --- our own rules ---------------------------------------------------------------------------------------


def test_actions_that_fail_into_next_are_named_in_one_warning(library: Library) -> None:
    text = graph("  start: {action: ls, next: b}\n  b: {action: ls, next: done}\n  done: {terminal: true}\n")
    found = [p for p in check(library, text) if p.rule == "route.next-swallows-failure"]
    assert [p.message for p in found] == ["a failed, timed-out or killed action goes on to `next`: `start`, `b`"]


def test_a_verdict_without_a_route_is_named(library: Library) -> None:
    found = check(library, document(start="action: ls, on_no: finish"))
    assert [(p.rule, p.message) for p in found] == [
        ("eval.verdict-unrouted", "state `start`: no route takes `yes`; the run ends there")
    ]


@pytest.mark.parametrize("text", ["${HOME}", "${F##*.}", "${A[@]}", "${#s}", "${nowhere.x}", "${prev.stderr}"])
def test_bash_braces_without_a_namespace_are_shown_with_the_way_out(library: Library, text: str) -> None:
    start = f"action: 'echo {text}', on_yes: finish, on_no: finish, on_error: finish"
    found = [p for p in check(library, document(start=start)) if p.rule == "template.namespace"]
    assert [(p.severity, p.line, p.column) for p in found] == [("warning", 7, 25)]
    assert found[0].hint


def test_escaped_braces_and_plain_dollars_are_left_alone(library: Library) -> None:
    start = "action: 'echo $${HOME:-x} $HOME $(date)', on_yes: finish, on_no: finish"
    assert rules_of(check(library, document(start=start))) == set()


def test_a_line_inside_a_block_is_shown_exactly(library: Library) -> None:
    text = graph(
        "  start:\n    action: |\n      echo one\n      echo ${TWO}\n    on_yes: f\n"
        "    on_no: f\n  f: {terminal: true}\n"
    )
    assert [(p.rule, p.line) for p in check(library, text)] == [("template.namespace", 10)]


@pytest.mark.parametrize(
    "action",
    [
        "echo ${context.text:shell}",
        "printf %s '${context.text}'",
        "cat <<'END'\n${context.text}\nEND",
        "echo ${context.text} # ll-lint: mr11-ok(context.text) ABC-7 reviewed",
        "# ll-lint: mr11-ok(context.text) ABC-7 reviewed\necho ${context.text}",
        "echo ${context.run_dir} ${state.name}",
    ],
)
def test_values_that_are_quoted_or_excused_are_not_raw(library: Library, action: str) -> None:
    body = "".join(f"      {line}\n" for line in action.split("\n"))
    text = graph(f"  start:\n    action: |\n{body}    on_yes: f\n    on_no: f\n  f: {{terminal: true}}\n")
    assert "lint.raw-interpolation" not in rules_of(check(library, text))


def test_fragment_bindings_are_compared_with_what_is_declared(library: Library) -> None:
    top = "fragments: {say: {parameters: {word: {type: string, required: true}, n: {type: integer}}, action: ls}}"
    found = check(library, document(top, "fragment: say, with: {wrod: x, n: many}, on_yes: finish, on_no: finish"))
    assert {(p.rule, p.path, p.hint) for p in found} == {
        ("fragment.with-unknown", "states.start.with.wrod", "did you mean `word`?"),
        ("fragment.with-missing", "states.start.with", ""),
        ("bind.with-type", "states.start.with.n", ""),
    }


# --- switches --------------------------------------------------------------------------------------------


def test_a_lint_switch_silences_its_rule(library: Library) -> None:
    start = "action: 'echo $$(pwd)', on_yes: finish, on_no: finish"
    assert rules_of(check(library, document(start=start))) == {"lint.double-dollar"}
    assert rules_of(check(library, document("shell_pid_ok: true", start))) == set()


def test_lint_ok_silences_warnings_and_lint_by_name(library: Library) -> None:
    start = "action: 'echo $$(pwd)', acton: x, next: finish"
    top = "lint_ok: [route.next-swallows-failure, lint.double-dollar, state.unknown-key]"
    assert rules_of(check(library, document(top, start))) == set()


def test_lint_ok_cannot_hide_what_would_break_a_run(library: Library) -> None:
    found = check(library, document("lint_ok: [graph.unknown-target]", "on_yes: nowhere, on_no: finish"))
    assert rules_of(found) == {"graph.unknown-target"}


def test_lint_ok_with_a_wrong_name_says_so(library: Library) -> None:
    found = check(library, document("lint_ok: [graph.unreachble]"))
    assert [(p.rule, p.hint) for p in found] == [("doc.lint-ok", "did you mean `graph.unreachable`?")]


def test_complaints_are_sorted_and_the_same_every_time(library: Library) -> None:
    text = document("max_steps: 0\nowner: me\ntimeout: 0", "acton: x, next: nowhere, timeout: -1")
    first = check(library, text)
    assert [p.line for p in first] == sorted(p.line for p in first)
    assert first == Library(library.project, bundled=library.bundled).check("demo")[1]
