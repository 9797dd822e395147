"""`ll-loop validate` on many loops, and in the forms that programs read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from command_line import Ll, command_line

GOOD = """\
name: good
description: Fine.
scope: [s/]
initial: a
states:
  a: {action: "true", on_yes: done, on_no: done}
  done: {terminal: true}
"""
WARNED = GOOD.replace("description: Fine.\n", "")
WRONG = GOOD.replace("on_no: done", "on_no: dnoe")
PARENT = GOOD.replace('{action: "true", ', "{loop: wrong, ")
BASE = "name: base\ndescription: To build on.\nstates:\n  a: {next: done}\n  done: {terminal: true}\n"
CHILD = "name: child\nfrom: base\nscope: [s/]\ninitial: a\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    put(tmp_path, ".loops/good.yaml", GOOD)
    return tmp_path


@pytest.fixture
def ll(project: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ll:
    return command_line(project, capfd, monkeypatch, "validate")


def put(project: Path, name: str, text: str) -> Path:
    path = project / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# --- which loops ---------------------------------------------------------------------------------------------


def test_a_folder_stands_for_the_loops_at_any_depth_below_it(ll: Ll, project: Path) -> None:
    put(project, "flows/deep/one.fsm.yaml", GOOD)
    put(project, "flows/two.yaml", WARNED)
    said = ll("flows")
    assert said.code == 0
    assert said.out.splitlines() == [
        "flows/deep/one.fsm.yaml is valid",
        "flows/two.yaml is valid, 1 warning",
        "2 loops: 2 valid, 0 wrong; 0 errors, 1 warning",
    ]


def test_a_folder_holds_more_than_loops(ll: Ll, project: Path) -> None:
    put(project, "flows/child.yaml", CHILD)
    put(project, "flows/base.yaml", BASE)
    put(project, "flows/pieces.yaml", "fragments:\n  f: {action: 'true'}\n")
    put(project, "flows/.github/workflow.yaml", GOOD)
    put(project, "flows/compose.yaml", "services: {}\n")
    put(project, "flows/empty.yaml", "")
    assert [report["loop"] for report in ll("flows", "-j").json] == ["flows/child.yaml"]


def test_a_file_that_is_broken_is_still_a_loop(ll: Ll, project: Path) -> None:
    put(project, "flows/broken.yaml", GOOD.replace("[s/]", "[s/"))
    (report,) = ll("flows", "-j").json
    assert [(one["rule"], one["line"]) for one in report["violations"]] == [("load.yaml-syntax", 3)]


@pytest.mark.parametrize("text", ["", "# to do\n", "name: x\n  bad: [\n", "\tname: x\n"])
def test_a_file_of_the_project_that_says_nothing_is_not_passed_over(ll: Ll, project: Path, text: str) -> None:
    put(project, ".loops/cut.yaml", text)
    put(project, ".loops/list.yaml", "- 1\n")
    said = ll("-j")
    assert said.code == 65
    assert {report["loop"]: report["valid"] for report in said.json} == {"cut": False, "good": True}


def test_files_of_runs_are_not_looked_at(ll: Ll, project: Path) -> None:
    put(project, ".loops/runs/x/artifacts/left.yaml", WRONG)
    put(project, ".loops/archive/y/artifacts/left.yaml", WRONG)
    put(project, ".loops/archive/y/events.jsonl", "")
    assert [report["loop"] for report in ll(".", "-j").json] == [".loops/good.yaml"]


def test_without_a_name_the_projects_own_loops_are_checked(ll: Ll, project: Path) -> None:
    put(project, ".loops/team/wrong.yaml", WRONG)
    said = ll("-j")
    assert said.code == 65
    assert [(report["loop"], report["valid"]) for report in said.json] == [("good", True), ("team/wrong", False)]


def test_names_patterns_files_and_folders_may_be_mixed_and_each_loop_counts_once(ll: Ll, project: Path) -> None:
    put(project, ".loops/goal.yaml", GOOD)
    words = ("good", "go*", ".loops/goal.yaml", ".loops", "bisect")
    assert [report["loop"] for report in ll(*words, "--json").json] == ["good", "goal", "bisect"]


def test_a_name_is_a_loops_before_it_is_a_folders(ll: Ll, project: Path) -> None:
    put(project, "good/other.yaml", WRONG)
    assert ll("good", "-j").json["valid"] is True
    assert [report["loop"] for report in ll("good/", "-j").json] == ["good/other.yaml"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["empty"], 66, "no loop file in `empty`"),
        (["nope-*"], 66, "no loop fits `nope-*`"),
        ([""], 64, "an empty name means no loop"),
        (["--diff", "--format", "json"], 64, "--diff goes with --format text only"),
        (["--json", "--format", "sarif"], 64, "--json and --format sarif exclude each other"),
    ],
    ids=str,
)
def test_what_cannot_be_checked_is_an_error(ll: Ll, project: Path, words: list[str], code: int, message: str) -> None:
    (project / "empty").mkdir()
    said = ll(*words)
    assert said.code == code
    assert said.err.splitlines()[0] == f"Error: {message}"


def test_a_project_without_loops_is_an_error(ll: Ll, project: Path) -> None:
    (project / ".loops" / "good.yaml").unlink()
    said = ll()
    assert (said.code, said.out) == (66, "")
    assert said.err.startswith("Error: no loops in .loops\n")


# --- what is said --------------------------------------------------------------------------------------------


def test_every_complaint_comes_with_its_rule_and_only_once(ll: Ll, project: Path) -> None:
    put(project, ".loops/wrong.yaml", WRONG)
    put(project, ".loops/parent.yaml", PARENT)
    said = ll("wrong", "parent")
    line = ".loops/wrong.yaml:6:44: state `a`: `on_no` names no state: `dnoe` [graph.unknown-target]"
    assert said.err.splitlines().count(line) == 1
    assert "parent is wrong: 2 errors" in said.err
    assert said.out == "2 loops: 0 valid, 2 wrong; 2 errors, 0 warnings\n"


def test_warnings_fail_only_when_asked(ll: Ll, project: Path) -> None:
    put(project, ".loops/warned.yaml", WARNED)
    assert ll("warned").code == 0
    said = ll("warned", "--strict")
    assert said.code == 65
    assert said.err.splitlines()[-1] == "with --strict, warnings make a loop wrong"
    assert ll("good", "--strict").code == 0


def test_the_exit_code_tells_missing_from_wrong(ll: Ll, project: Path) -> None:
    put(project, ".loops/wrong.yaml", WRONG)
    assert [ll(*words).code for words in (["nope"], ["nope", "good"], ["nope", "wrong"])] == [66, 66, 65]


def test_one_loop_gives_an_object_and_anything_more_an_array(ll: Ll) -> None:
    assert ll("good", "-j").json["loop"] == "good"
    assert ll(".loops/good.yaml", "--format=json").json["loop"] == ".loops/good.yaml"
    assert [len(ll(*words, "-j").json) for words in ([], ["g*"], [".loops"], ["good", "bisect"])] == [1, 1, 1, 2]


def test_json_is_the_only_thing_said(ll: Ll, project: Path) -> None:
    put(project, ".loops/wrong.yaml", WRONG)
    said = ll("wrong", "--format", "json")
    assert said.err == ""
    (violation,) = said.json["violations"]
    assert violation == {
        "severity": "error",
        "path": "states.a",
        "message": "state `a`: `on_no` names no state: `dnoe`",
        "rule": "graph.unknown-target",
        "file": ".loops/wrong.yaml",
        "line": 6,
        "column": 44,
        "hint": "did you mean `done`?",
    }


def test_errors_about_the_command_are_json_too(ll: Ll, project: Path) -> None:
    (project / "empty").mkdir()
    said = ll("empty", "--format", "json")
    assert (said.json["error"]["code"], said.json["exit_code"]) == (66, 66)


# --- annotations ---------------------------------------------------------------------------------------------


def test_annotations_name_the_place_and_the_rule(ll: Ll, project: Path) -> None:
    put(project, ".loops/wrong.yaml", WRONG)
    said = ll("wrong", "nope", "--format", "github")
    assert said.code == 65
    assert said.out.splitlines() == [
        "::error file=.loops/wrong.yaml,line=6,col=44,title=graph.unknown-target::"
        "state `a`: `on_no` names no state: `dnoe`%0Ahint: did you mean `done`?",
        "::error title=load.missing::no loop `nope`%0Ahint: looked in .loops and among the built-in loops",
    ]


def test_annotations_escape_what_would_end_them(ll: Ll, project: Path) -> None:
    put(project, "a,b:c%/x.yaml", GOOD.replace("on_no: done", 'on_no: "100%\\n::error::"'))
    (line,) = ll("a,b:c%", "--format", "github").out.splitlines()
    assert line.startswith("::error file=a%2Cb%3Ac%25/x.yaml,line=6,")
    assert "`100%25%0A::error::`" in line


def test_annotations_are_relative_to_the_repository(ll: Ll, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(project, "sub/.loops/wrong.yaml", WRONG)
    monkeypatch.chdir(project / "sub")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(project))
    assert "file=sub/.loops/wrong.yaml," in ll("--format", "github").out


# --- SARIF ---------------------------------------------------------------------------------------------------

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "log": ("version", "runs"),
    "run": ("tool", "results"),
    "tool": ("driver",),
    "driver": ("name",),
    "rule": ("id",),
    "result": ("message",),
}
"""What SARIF 2.1.0 demands of each object that we write."""

ALLOWED: Mapping[str, set[str]] = {
    "log": {"$schema", "version", "runs"},
    "run": {"tool", "results", "originalUriBaseIds", "columnKind"},
    "driver": {"name", "version", "semanticVersion", "informationUri", "rules"},
    "rule": {"id", "name", "shortDescription", "fullDescription", "helpUri", "defaultConfiguration"},
    "result": {"ruleId", "ruleIndex", "level", "message", "locations", "partialFingerprints"},
    "location": {"physicalLocation", "logicalLocations"},
    "physicalLocation": {"artifactLocation", "region"},
    "artifactLocation": {"uri", "uriBaseId"},
    "region": {"startLine", "startColumn", "endLine", "endColumn"},
}
"""Properties that the standard knows, of those that we may want; it forbids all others."""


def _conforms(kind: str, value: Mapping[str, Any]) -> None:
    assert set(REQUIRED.get(kind, ())) <= value.keys(), kind
    assert value.keys() <= ALLOWED.get(kind, value.keys()), kind


def _check_sarif(log: Mapping[str, Any]) -> None:
    _conforms("log", log)
    assert log["version"] == "2.1.0"
    for run in log["runs"]:
        _conforms("run", run)
        _conforms("tool", run["tool"])
        _conforms("driver", run["tool"]["driver"])
        assert run["columnKind"] in ("utf16CodeUnits", "unicodeCodePoints")
        rules = run["tool"]["driver"]["rules"]
        assert len({rule["id"] for rule in rules}) == len(rules)
        for rule in rules:
            _conforms("rule", rule)
            assert rule["shortDescription"]["text"]
        for base in run["originalUriBaseIds"].values():
            assert re.fullmatch(r"file:///.*/", base["uri"])
        for result in run["results"]:
            _check_result(result, rules, run["originalUriBaseIds"])


def _check_result(result: Mapping[str, Any], rules: list[Mapping[str, Any]], bases: Mapping[str, Any]) -> None:
    _conforms("result", result)
    assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
    assert result["level"] in ("none", "note", "warning", "error")
    assert result["message"]["text"]
    for location in result["locations"]:
        _conforms("location", location)
        _conforms("physicalLocation", location["physicalLocation"])
        artifact, region = location["physicalLocation"]["artifactLocation"], location["physicalLocation"]["region"]
        _conforms("artifactLocation", artifact)
        _conforms("region", region)
        assert artifact["uriBaseId"] in bases if "uriBaseId" in artifact else artifact["uri"].startswith("file:///")
        assert not re.search(r"[ <>\"{}|\\^`]", artifact["uri"])
        assert region["startLine"] >= 1
        assert region["startColumn"] >= 1


def test_sarif_has_rules_places_and_the_shape_of_the_standard(ll: Ll, project: Path) -> None:
    put(project, ".loops/wrong.yaml", WRONG)
    put(project, "with blank/warned.yaml", WARNED)
    said = ll("wrong", "with blank", "nope", "--format", "sarif")
    assert (said.code, said.err) == (65, "")
    _check_sarif(said.json)
    (run,) = said.json["runs"]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == [
        "doc.description-missing",
        "graph.unknown-target",
        "load.missing",
    ]
    wrong, warned, missing = run["results"]
    assert wrong["locations"][0]["physicalLocation"] == {
        "artifactLocation": {"uri": ".loops/wrong.yaml", "uriBaseId": "%SRCROOT%"},
        "region": {"startLine": 6, "startColumn": 44},
    }
    assert wrong["locations"][0]["logicalLocations"] == [{"fullyQualifiedName": "states.a"}]
    assert (wrong["level"], warned["level"]) == ("error", "warning")
    assert warned["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "with%20blank/warned.yaml"
    assert missing["locations"] == []


def test_nothing_wrong_is_a_log_without_results(ll: Ll) -> None:
    said = ll("good", "--format", "sarif")
    _check_sarif(said.json)
    assert said.json["runs"][0]["results"] == []
