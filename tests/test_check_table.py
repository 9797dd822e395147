"""Every rule on the loops of rules.yaml: it fires at the marked place, and is silent on the nearest right loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
import yaml

from ll_loop.check import LOADING, RULES, Rule
from ll_loop.errors import Problem
from ll_loop.files.library import Library
from test_check import CALLEE

CASES: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "rules.yaml").read_text(encoding="utf-8"))
SEVERITY = {**{rule.name: rule.severity for rule in RULES}, **LOADING}
MARK = "▸"
NOT_TEXT = frozenset({"load.unreadable"})
"""Rules that no text of a file can bring about."""

"""Rules that may have nothing to add to what they say."""


def composed(case: Mapping[str, Any]) -> str:
    """The whole text of a case."""
    if "whole" in case:
        return str(case["whole"])
    top, start = str(case.get("top", "")).rstrip(), str(case.get("start", "action: ls, ...")).rstrip()
    initial = "" if "initial:" in top else "initial: start\n"
    head = f"name: demo\ndescription: A sample.\nscope: [work/]\n{initial}{top}"
    more = indent(f"{str(case.get('more', '')).rstrip()}\nfinish: {{terminal: true}}\n".lstrip(), "  ")
    return f"{head.rstrip()}\nstates:\n  start:{_state(start)}\n{more}"


def _state(body: str) -> str:
    routes = ["on_yes: finish", "on_no: finish", "on_error: finish"]
    if "\n" not in body:
        return f" {{{body.replace('...', ', '.join(routes))}}}"
    lines = body.replace("...", "\n".join(routes)).split("\n")
    return "".join(f"\n    {line}" for line in lines)


def check(folder: Path, case: Mapping[str, Any]) -> tuple[str, tuple[Problem, ...]]:
    """The text of a case, with its mark, and what is said of it without."""
    loops = folder / ".loops"
    loops.mkdir()
    text = composed(case)
    files = {"callee.yaml": CALLEE, **case.get("files", {}), "demo.yaml": text.replace(MARK, "")}
    for name, content in files.items():
        (loops / name).write_text(content, encoding="utf-8")
    library = Library(folder, bundled=folder / "bundled")
    library.model_hints = case.get("model_hints")
    return text, library.check("demo")[1]


def place(case: Mapping[str, Any], text: str) -> tuple[int, int]:
    """Line and column of the mark, or what the case says."""
    if "at" in case:
        line, column = case["at"]
        return line, column
    before = text[: text.index(MARK)]
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def by_rule(case: dict[str, Any]) -> str:
    return str(case["rule"])


@pytest.mark.parametrize("case", CASES, ids=by_rule)
def test_a_rule_fires_at_the_place_of_the_mistake(case: dict[str, Any], tmp_path: Path) -> None:
    rule = case["rule"]
    text, found = check(tmp_path, case["bad"])
    mine = [(p.severity, p.path, p.line, p.column) for p in found if p.rule == rule]
    assert mine == [(SEVERITY[rule], case["path"], *place(case, text))]
    assert {p.rule for p in found if p.severity == "error"} <= {rule, *case["bad"].get("also", ())}
    assert all(p.line > 0 and p.column > 0 for p in found)
    assert all(p.hint for p in found if p.rule == rule) or rule in LOADING


@pytest.mark.parametrize("case", CASES, ids=by_rule)
def test_a_rule_is_silent_on_the_nearest_right_loop(case: dict[str, Any], tmp_path: Path) -> None:
    _, found = check(tmp_path, case["good"])
    assert [p for p in found if p.rule == case["rule"] or p.severity == "error"] == []


def test_every_rule_has_a_case() -> None:
    assert SEVERITY.keys() - {case["rule"] for case in CASES} == NOT_TEXT


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.silenced_by], ids=lambda rule: rule.name)
def test_each_switch_of_a_rule_and_its_name_in_lint_ok_silence_it(rule: Rule, tmp_path: Path) -> None:
    case = next(case for case in CASES if case["rule"] == rule.name and "whole" not in case["bad"])["bad"]
    ways = [*(f"{switch}: true" for switch in rule.silenced_by), f"lint_ok: [{rule.name}]"]
    for number, way in enumerate(ways):
        folder = tmp_path / str(number)
        folder.mkdir()
        _, found = check(folder, {**case, "top": f"{case.get('top', '')}\n{way}".lstrip()})
        assert rule.name not in {p.rule for p in found}
