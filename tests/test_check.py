"""The rules together: what they say of whole loops, how they are silenced, in which order they come."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from ll_loop.api import library_of
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


def test_a_sound_loop_draws_no_complaint(library: Library) -> None:
    assert check(library, document()) == ()


def test_rule_names_are_unique() -> None:
    assert [name for name, count in Counter(rule.name for rule in RULES).items() if count > 1] == []


def test_a_capture_that_every_path_sets_is_fine(library: Library) -> None:
    text = graph(
        "  start: {action: ls, capture: c, on_yes: tell, on_no: tell}\n"
        "  tell: {action: 'echo ${captured.c.output:shell}', on_yes: done, on_no: done}\n  done: {terminal: true}\n"
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
        ("fragment.with-missing", "states.start.with", "add `word` to `with`"),
        ("bind.with-type", "states.start.with.n", "write it so, or hand over a reference"),
    }


# --- switches --------------------------------------------------------------------------------------------


def test_lint_ok_silences_warnings_and_lint_by_name(library: Library) -> None:
    start = "action: 'echo $$(pwd)', acton: x, next: finish"
    top = "lint_ok: [route.next-swallows-failure, lint.double-dollar, state.unknown-key]"
    assert rules_of(check(library, document(top, start))) == set()


def test_lint_ok_cannot_hide_what_would_break_a_run(library: Library) -> None:
    found = check(library, document("lint_ok: [graph.unknown-target]", "on_yes: nowhere, on_no: finish"))
    assert "graph.unknown-target" in rules_of(found)


def test_lint_ok_with_a_wrong_name_says_so(library: Library) -> None:
    found = check(library, document("lint_ok: [graph.unreachble]"))
    assert [(p.rule, p.hint) for p in found] == [("doc.lint-ok", "did you mean `graph.unreachable`?")]


def test_complaints_are_sorted_and_the_same_every_time(library: Library) -> None:
    text = document("max_steps: 0\nowner: me\ntimeout: 0", "acton: x, next: nowhere, timeout: -1")
    first = check(library, text)
    assert [p.line for p in first] == sorted(p.line for p in first)
    assert first == Library(library.project, bundled=library.bundled).check("demo")[1]


# --- the host that is there ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "rules"), [("codex", {"state.model-hint-unresolved"}), ("claude-code", set()), ("nobody-knows", set())]
)
def test_a_hint_is_held_against_the_models_of_the_host_in_use(library: Library, host: str, rules: set[str]) -> None:
    start = "action: Hi, action_type: prompt, model_hint: coding, on_yes: finish, on_no: finish, on_partial: finish"
    check(library, document(start=start))
    problems = library_of(library.project, {"LL_HOST_CLI": host}).check("demo")[1]
    assert rules_of(problems) == rules
