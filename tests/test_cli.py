"""The command line in this process: results, errors and exit codes. What needs a process of its own is elsewhere."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from command_line import Ll, Said, command_line
from ll_loop import __version__
from ll_loop.cli.app import SHORT, app

LOOPS = {
    "counter": """\
name: counter
description: Count up to a limit, then stop.
category: demo
labels: [numbers]
scope: [count/]
context: {limit: 2}
initial: bump
max_steps: 20
states:
  bump:
    action: |
      n=$(cat ${context.run_dir}/n 2>/dev/null || echo 0)
      echo $((n + 1)) > ${context.run_dir}/n
      echo "n is $((n + 1))"
    next: check
  check: {action: 'test "$(cat ${context.run_dir}/n)" -ge ${context.limit}', on_yes: done, on_no: bump}
  done: {terminal: true}
""",
    "bad": """\
name: bad
scope: [bad/]
initial: work
states:
  work: {action: "echo some output; echo some complaint >&2; exit 1", on_yes: done, on_no: failed}
  done: {terminal: true}
  failed: {terminal: true}
""",
    "endless": """\
name: endless
scope: [endless/]
initial: a
max_steps: 3
states:
  a: {action: "true", on_yes: a, on_no: done}
  done: {terminal: true}
""",
    "needs": """\
name: needs
scope: [needs/]
initial: a
states:
  a: {action: "echo ${context.topic}", on_yes: done, on_no: done}
  done: {terminal: true}
""",
    "wrong": """\
name: wrong
initial: a
states:
  a: {action: "true", on_yes: dnoe}
  done: {terminal: true}
""",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / ".loops"
    folder.mkdir()
    for name, text in LOOPS.items():
        (folder / f"{name}.yaml").write_text(text)
    return tmp_path


@pytest.fixture
def ll(project: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ll:
    """Give the command line some words in the project's folder."""
    return command_line(project, capfd, monkeypatch)


def events_of(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


# --- run -----------------------------------------------------------------------------------------------------


def test_a_run_says_each_step_and_how_it_ended(ll: Ll) -> None:
    said = ll("run", "counter")
    assert said.code == 0
    assert said.out == ""
    warnings, *steps, last = said.err.splitlines()
    assert warnings.endswith("see `ll-loop validate counter`")
    assert [line.split(" ")[1:4] for line in steps] == [
        ["counter", "step=1/20", "state=bump"],
        ["counter", "step=2/20", "state=check"],
        ["counter", "step=3/20", "state=bump"],
        ["counter", "step=4/20", "state=check"],
    ]
    assert "verdict=no exit=1 next=bump" in steps[1]
    assert last.startswith("done in 4 steps, ")


def test_a_name_alone_is_a_run(ll: Ll) -> None:
    assert ll("counter", "--context", "limit=1", "--json").json["runs"][0]["iterations"] == 2


def test_the_words_after_a_name_alone_are_those_of_run(ll: Ll) -> None:
    assert ll("endless", "-n", "2").code == 1


def test_json_is_one_document_about_the_results(ll: Ll) -> None:
    said = ll("run", "counter", "--json", "--quiet")
    document = said.json
    assert said.err == ""
    assert document["exit_code"] == 0
    (run,) = document["runs"]
    assert (run["loop"], run["status"], run["terminated_by"], run["final_state"]) == (
        "counter",
        "completed",
        "terminal",
        "done",
    )


def test_events_come_as_lines_and_the_document_last(ll: Ll) -> None:
    *events, document = events_of(ll("run", "bad", "--events", "--json").out)
    names = [event["event"] for event in events]
    assert names[0] == "loop_start"
    assert names[-1] == "loop_complete"
    assert "outcome" not in names
    assert [event["line"] for event in events if event["event"] == "action_output"] == ["some output"]
    assert document["exit_code"] == 2


def test_a_failure_is_told_with_the_last_lines_of_both_streams(ll: Ll) -> None:
    said = ll("run", "bad", "--quiet")
    assert said.code == 2
    assert "failed: reached failed after 1 step" in said.err
    assert "  work: exit 1\n    stdout: some output\n    stderr: some complaint\n" in said.err


def test_quiet_says_nothing_about_what_went_well(ll: Ll) -> None:
    assert ll("run", "counter", "--quiet") == Said(0, "", "")


def test_a_run_at_its_step_limit_can_be_resumed_with_a_higher_one(ll: Ll) -> None:
    said = ll("run", "endless")
    assert said.code == 1
    assert "stopped: step limit, in a after 3 steps" in said.err
    command = said.err.splitlines()[-1].removeprefix("resume with: ll-loop ")
    assert command.endswith(" --max-steps 6")
    again = ll(*command.split(), "--json")
    assert again.json["runs"][0]["iterations"] == 6


def test_a_dry_run_shows_the_plan_and_does_nothing(ll: Ll, project: Path) -> None:
    said = ll("run", "counter", "--dry-run", "--context", "limit=9")
    assert said.code == 0
    assert not (project / ".loops" / "runs").exists()
    for line in ("initial: bump", "max steps: 20", "  limit: 9", "  check", "    no -> bump", "  done  (end)"):
        assert line in said.out.splitlines()
    assert f"scope: {project}/count" in said.out


def test_a_dry_run_as_json_is_one_document(ll: Ll) -> None:
    (plan,) = ll("run", "counter", "--dry-run", "--json").json["plans"]
    assert plan["states"]["check"]["routes"] == {"yes": "done", "no": "bump"}


def test_an_input_reaches_the_loop(ll: Ll) -> None:
    events = events_of(ll("run", "needs", '{"topic": "x"}', "--context", "topic=cats", "--events").out)
    assert [event["line"] for event in events if event["event"] == "action_output"] == ["cats"]


def test_trio_runs_the_same(ll: Ll) -> None:
    assert ll("run", "counter", "--backend", "trio", "--json").json["exit_code"] == 0


# --- run-many ------------------------------------------------------------------------------------------------


def test_many_runs_end_in_one_report(ll: Ll) -> None:
    said = ll("run-many", "counter", "bad", "endless")
    assert said.code == 1
    assert "counter: started" in said.err
    table = said.err[said.err.index("   loop") :].splitlines()
    assert [line.split()[:2] for line in table[1:4]] == [["✓", "counter"], ["✗", "bad"], ["✗", "endless"]]
    assert "    stderr: some complaint".strip() in [line.strip() for line in table]
    assert "3 runs: 1 done, 1 failed, 1 stopped: step limit" in table


def test_names_may_be_patterns_over_the_projects_own_loops(ll: Ll) -> None:
    runs = ll("run-many", "endless", "[bc]*", "--json", "--max-steps", "9").json["runs"]
    assert [run["loop"] for run in runs] == ["endless", "bad", "counter"]


def test_a_pattern_that_fits_nothing_is_an_error(ll: Ll) -> None:
    said = ll("run-many", "nothing-*")
    assert said.code == 66
    assert said.err.startswith("Error: no loop fits `nothing-*`\n")


def test_the_plan_of_many_runs_says_which_of_them_take_turns(ll: Ll, project: Path) -> None:
    whole = (project / ".loops" / "bad.yaml").read_text()
    lines = [line for line in whole.splitlines(keepends=True) if not line.startswith("scope:")]
    (project / ".loops" / "all.yaml").write_text("".join(lines).replace("name: bad", "name: all"))
    plans = ll("run-many", "counter", "bad", "all", "counter", "--dry-run", "--json").json["plans"]
    assert [(plan["loop"], plan["waits_for"]) for plan in plans] == [
        ("counter", []),
        ("bad", []),
        ("all", ["counter", "bad"]),
        ("counter", ["counter", "all"]),
    ]
    said = ll("run-many", "counter", "counter", "--dry-run")
    assert said.out.splitlines().count("waits for: counter") == 1


def test_runs_of_one_scope_take_turns_in_the_order_given(ll: Ll) -> None:
    said = ll("run-many", "counter", "counter", "counter", "--json")
    assert [run["exit_code"] for run in said.json["runs"]] == [0, 0, 0]
    assert "counter: waits for counter" in said.err


def test_all_runs_start_or_none(ll: Ll, project: Path) -> None:
    said = ll("run-many", "counter", "wrong", "--json")
    assert said.code == 65
    assert said.json["runs"] == []
    assert not (project / ".loops" / "runs").exists()


def test_all_that_keeps_a_batch_from_starting_is_told_at_once(ll: Ll, project: Path) -> None:
    (project / ".loops" / "worse.yaml").write_text("name: worse\n")
    said = ll("run-many", "wrong", "countr", "counter", "worse", "wrong")
    assert said.code == 65
    wrong, _, missing, nearest, worse, *_ = said.err.splitlines()
    assert "`on_yes` names no state: `dnoe`" in wrong
    assert (missing, nearest.partition("?")[0]) == ("no loop `countr`", "hint: did you mean `counter`")
    assert worse.startswith(".loops/worse.yaml:1:1: missing: `initial`")
    assert said.err.count("dnoe") == 1
    absent = ll("run-many", "countr", "nobody")
    assert (absent.code, absent.err.splitlines()[:2]) == (66, ["Error: no loop `countr`", "no loop `nobody`"])


def test_a_bad_end_may_end_the_others(ll: Ll) -> None:
    runs = ll("run-many", "bad", "counter", "--jobs", "1", "--fail-fast", "--json").json["runs"]
    assert [run["status"] for run in runs] == ["failed", "interrupted"]


# --- exit codes and errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["run", "counter"], 0),
        (["run", "endless"], 1),
        (["run", "bad"], 2),
        (["run-many", "bad", "endless", "counter"], 1),
        (["run-many", "bad", "counter"], 2),
        (["run", "counter", "--frob"], 64),
        (["run", "counter", "--max-steps", "0"], 64),
        (["run", "counter", "--max-steps", "abc"], 64),
        (["run", "counter", "--context", "limit"], 64),
        (["run", "counter", "--delay", "-1"], 64),
        (["run", "counter", "--backend", "curio"], 64),
        (["run", "counter", "--project", "nowhere"], 64),
        (["run", "counter", "--host", "nobody"], 64),
        (["run"], 64),
        (["run", "counter", "x", "y"], 64),
        (["simulate", "counter", "--scenario", "some-pass"], 64),
        (["stop"], 64),
        (["history", "--state", "x"], 64),
        (["run", "wrong"], 65),
        (["validate", "wrong"], 65),
        (["run", "nope"], 66),
        (["nope"], 66),
        (["run", "needs"], 66),
        (["show", "nope"], 66),
        (["validate", "nope"], 66),
        (["resume"], 66),
        (["resume", "nope"], 66),
        (["history", "nope"], 66),
        (["status", "nope"], 66),
        (["stop", "nope"], 66),
    ],
    ids=str,
)
def test_the_exit_code_tells_what_went_wrong_in_a_few_lines(ll: Ll, words: Sequence[str], code: int) -> None:
    said = ll(*words)
    assert said.code == code
    assert "Traceback" not in said.err
    if code == 64:
        assert said.out == ""
        assert said.err.startswith("Error: ")
        assert 1 <= len(said.err.splitlines()) <= 3


def test_a_run_folder_that_cannot_be_made_is_said(ll: Ll, project: Path) -> None:
    (project / ".loops" / "runs").write_text("in the way")
    said = ll("run", "counter")
    assert said.code == 73
    assert "cannot create" in said.err


def test_a_finished_run_is_not_resumed(ll: Ll) -> None:
    run_id = ll("run", "counter", "--json").json["runs"][0]["run_id"]
    assert ll("logs", "countr").err.endswith("hint: did you mean `counter`? `ll-loop history` lists them\n")
    for wanted in (run_id, "counter", "latest"):
        said = ll("resume", wanted)
        assert said.code == 75
        assert f"Error: run {run_id} has ended" in said.err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["run", "countr"], "hint: did you mean `counter`?"),
        (["lst"], "hint: did you mean the command `list`?"),
        (["run", "./counter.yaml"], "Error: no file `./counter.yaml`\nhint: `ll-loop list` shows"),
        (["run", "counter", "--quite"], "hint: did you mean `--quiet`? see `ll-loop run --help`"),
        (["run"], "Error: `ll-loop run` needs NAME\nhint: see `ll-loop run --help`"),
        (["run", "counter", "x", "y"], "Error: `ll-loop run` takes fewer words: `y` is too much"),
        (["run", "counter", "--context"], "Error: `--context` needs a value\nhint: see `ll-loop run --help`"),
        (["run", "counter", "--bogus"], "hint: see `ll-loop run --help`"),
        (["fork", "latest"], "Error: `ll-loop fork` needs `--at`"),
        (["--project", ".", "list"], "hint: `--project` goes after the command; see `ll-loop --help`"),
        (["show", "counter", "--diagram", "--mermaid"], "Error: --diagram and --mermaid exclude each other"),
        (["needs"], "--context topic=VALUE"),
        (["run", "bisect", "true"], "ll-loop run bisect COMMAND --context good=VALUE"),
        (["status", "lates"], "hint: did you mean `latest`? `ll-loop history` lists them"),
        (["new", "fresh", "--from", "mesure"], "hint: did you mean `measure`?"),
        (["fragments", "lib/comon.yaml"], "hint: did you mean `lib/common.yaml`?"),
    ],
    ids=str,
)
def test_errors_say_what_was_probably_meant(ll: Ll, words: Sequence[str], hint: str) -> None:
    assert hint in ll(*words).err


def test_an_unknown_option_is_told_with_its_command(ll: Ll) -> None:
    assert ll("--backend", "trio").err.startswith("Error: `ll-loop` has no option `--backend`\n")
    assert ll("run", "counter", "--frob").err.startswith("Error: `ll-loop run` has no option `--frob`\n")


def test_a_loops_name_is_taken_for_a_command_only_if_there_is_no_such_loop(ll: Ll) -> None:
    assert "the command" not in ll("needs").err
    assert "the command" not in ll("bisect").err


def test_an_input_that_nothing_uses_is_mentioned(ll: Ll) -> None:
    said = ll("run", "bad", "words")
    assert "warning: bad does not use its input: nothing in it refers to `${context.input}`" in said.err.splitlines()
    assert "does not use" not in ll("run", "bad").err
    assert "does not use" not in ll("retry-until", "true").err
    assert "does not use" not in ll("run", "counter", '{"limit": 1}').err


def test_a_mistyped_context_value_is_mentioned(ll: Ll) -> None:
    said = ll("run", "counter", "--context", "limt=1", "--context", "other=1")
    assert said.code == 0
    assert "warning: counter knows no context value `limt`; did you mean `limit`?" in said.err.splitlines()
    assert "warning: counter knows no context value `other`; it knows: input, limit" in said.err.splitlines()
    assert "did you mean `tries`?" in ll("retry-until", "true", "--context", "trie=1").err


def test_only_errors_are_told_when_a_loop_cannot_run(ll: Ll) -> None:
    assert "warning: " not in ll("run", "wrong").err
    assert "warning: " in ll("validate", "wrong").err


def test_a_wrong_file_is_told_by_place(ll: Ll) -> None:
    said = ll("run", "wrong")
    assert ".loops/wrong.yaml:4:31: " in said.err
    assert "hint: did you mean `done`?" in said.err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["run", "nope"], 66),
        (["run", "wrong"], 65),
        (["run", "needs"], 66),
        (["run-many", "counter", "--jobs", "0"], 64),
        (["resume", "nope"], 66),
    ],
    ids=str,
)
def test_with_json_an_error_is_a_document_too(ll: Ll, words: Sequence[str], code: int) -> None:
    said = ll(*words, "--json")
    document = said.json
    assert (said.code, document["exit_code"], document["runs"]) == (code, code, [])
    assert document["error"]["code"] == code
    assert document["error"]["message"]
    assert "hint" in document["error"]


def test_long_errors_are_folded_to_the_width_that_is_told(ll: Ll) -> None:
    said = ll("run", "needs", columns=40)
    assert max(map(len, said.err.splitlines())) <= 40


# --- looking at loops ----------------------------------------------------------------------------------------


def test_a_valid_loop_is_described(ll: Ll) -> None:
    said = ll("validate", "endless")
    assert said.code == 0
    assert said.out.splitlines()[0].startswith("endless is valid")
    assert "  Max steps: 3" in said.out.splitlines()


def test_the_report_of_a_wrong_loop_has_its_documented_keys(ll: Ll) -> None:
    report = ll("validate", "wrong", "-j").json
    assert (report["loop"], report["valid"]) == ("wrong", False)
    violation = next(one for one in report["violations"] if one["severity"] == "error")
    assert violation["path"] == "states.a"
    assert (violation["file"], violation["line"], violation["column"]) == (".loops/wrong.yaml", 4, 31)
    assert violation["rule"]
    assert violation["hint"]


def test_several_loops_give_a_report_each(ll: Ll) -> None:
    said = ll("validate", "counter", "wrong", "nope", "--json")
    assert said.code == 65
    assert [(report["loop"], report["valid"]) for report in said.json] == [
        ("counter", True),
        ("wrong", False),
        ("nope", False),
    ]


def test_the_list_can_be_narrowed(ll: Ll, project: Path) -> None:
    assert "counter" in ll("list").out
    (entry,) = ll("list", "--category", "demo", "--label", "NUMBERS", "--json").json
    assert entry == {
        "name": "counter",
        "path": ".loops/counter.yaml",
        "category": "demo",
        "labels": ["numbers"],
        "visibility": "public",
        "description": "Count up to a limit, then stop.",
    }
    assert all(entry["built_in"] for entry in ll("list", "--builtin", "-j").json)
    assert ll("list", "--category", "none", "-j").json == []


@pytest.mark.parametrize(
    ("words", "own"),
    [
        ([], {"counter"}),
        (["--all"], {"counter", "hidden", "wf"}),
        (["--visibility", "internal"], {"hidden"}),
        (["--internal"], {"hidden"}),
        (["--visibility", "draft"], {"wf"}),
        (["--drafts"], {"wf"}),
        (["--examples"], set()),
    ],
)
def test_internal_loops_and_drafts_are_listed_when_asked_for(
    ll: Ll, project: Path, words: list[str], own: set[str]
) -> None:
    text = "visibility: {}\ndescription: d\ninitial: a\nstates: {{a: {{terminal: true}}}}\n"
    (project / ".loops/hidden.yaml").write_text("name: hidden\n" + text.format("internal"))
    (project / ".loops/runs/wf").mkdir(parents=True)
    (project / ".loops/runs/wf/workflow.yaml").write_text("name: inner\n" + text.format("public"))
    found = {entry["name"] for entry in ll("list", *words, "-j").json if not entry.get("built_in")}
    assert found & {"counter", "hidden", "wf"} == own


def test_a_loop_can_be_shown_as_text_as_json_and_as_a_diagram(ll: Ll) -> None:
    assert "    yes -> done" in ll("show", "counter").out.splitlines()
    assert "  tries (10): " in ll("show", "retry-until").out
    assert ll("show", "counter", "-j").json["states"]["bump"]["routes"] == {"next": "check"}
    assert "    bump --> check: next" in ll("show", "counter", "--mermaid").out.splitlines()


def test_simulating_tells_the_way_and_leaves_nothing(ll: Ll, project: Path) -> None:
    said = ll("simulate", "counter", "--scenario", "all-pass")
    assert said.out.splitlines()[-2:] == ["visited: bump → check → done", "done after 2 steps, 2 actions"]
    assert ll("simulate", "counter", "--scenario", "all-fail", "-n", "5", "-j").json["iterations"] == 5
    assert not (project / ".loops" / "runs").exists()


# --- runs on the disk ----------------------------------------------------------------------------------------


def test_history_lists_runs_newest_first_and_shows_the_events_of_one(ll: Ll) -> None:
    names = ("bad", "endless", "bad", "endless", "counter", "bad", "endless")
    ids = [ll("run", name, "--json").json["runs"][0]["run_id"] for name in names]  # most in the same second
    listed = ll("history", "-j").json
    assert [run["run_id"] for run in listed] == ids[::-1]
    assert ll("status", "latest", "-j").json["run_id"] == ids[-1]
    assert set(listed[0]) >= {"run_id", "status", "started_at", "iterations", "duration_ms"}
    assert [run["run_id"] for run in ll("history", "bad", "-j").json] == [ids[5], ids[2], ids[0]]
    assert len(ll("history", "-j", "-n", "1").json) == 1
    events = ll("history", ids[0], "-j").json
    assert [event["event"] for event in events][:2] == ["loop_start", "state_enter"]
    assert "action_output" not in [event["event"] for event in events]
    assert [event["to"] for event in ll("history", ids[0], "--event", "route", "-j").json] == ["failed"]
    nothing = ll("history", ids[0], "--event", "routes")
    assert (nothing.code, nothing.out) == (0, "")
    assert "evaluate, " in nothing.err
    assert " route, " in nothing.err
    assert "route             work -> failed" in ll("history", ids[0]).out


def test_history_can_be_of_the_last_hours_and_uncut(ll: Ll, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    run_id = ll("run", "bad", "--json").json["runs"][0]["run_id"]
    assert len(ll("history", "--since", "2d", "-j").json) == 1
    assert ll("history", "--since", "0s", "-j").json == []
    assert ll("history", run_id, "--since", "1h", "-j").json == ll("history", run_id, "-j").json != []
    assert ll("history", run_id, "--since", "0s").out == ""
    assert max(map(len, ll("history", run_id).out.splitlines())) < 40
    assert "echo some output; echo some complaint >&2; exit 1" in ll("history", run_id, "--full").out
    assert run_id in ll("history", "--full").out
    wrong = ll("history", "--since", "soon")
    assert (wrong.code, "`soon` is no age" in wrong.err) == (64, True)
    longest = "1000000d"  # begins before all calendars
    assert len(ll("history", "--since", longest, "-j").json) == 1
    assert ll("prune", "--older-than", longest, "-j").json == []
    for words in (("history", "--since"), ("prune", "--older-than")):
        assert ll(*words, f"1{longest}").code == 64


def test_old_names_of_commands_are_understood_and_not_listed(ll: Ll) -> None:
    for short, words in SHORT.items():
        assert f"ll-loop {words}" in ll(short, "--help").out
        assert f"\n  {short} " not in ll("--help").out
    assert ll("val", "counter") == ll("validate", "counter")
    run_id = ll("r", "bad", "--json").json["runs"][0]["run_id"]
    assert ll("h", run_id, "-j").json
    assert "did you mean `--quiet`? see `ll-loop run --help`" in ll("r", "counter", "--quite").err


def test_a_built_in_loop_can_be_run_whatever_the_project_calls_so(ll: Ll, project: Path) -> None:
    mine = "name: retry-until\nscope: [m/]\ninitial: a\nstates: {a: {terminal: true}}\n"
    (project / ".loops/retry-until.yaml").write_text(mine)
    for words, states in ((["--builtin"], True), ([], False)):
        run_id = ll("run", "retry-until", "touch made", "--json", *words).json["runs"][0]["run_id"]
        entered = ll("history", run_id, "--event", "state_enter", "-j").json
        assert bool(entered) is states
    assert ll("run", "counter", "--builtin").code == 66


def test_status_tells_of_one_run_or_of_all_under_way(ll: Ll) -> None:
    run_id = ll("run", "bad", "--json").json["runs"][0]["run_id"]
    assert ll("status", "-j").json == []
    one = ll("status", run_id, "-j").json
    assert (one["run_id"], one["loop_name"], one["status"]) == (run_id, "bad", "failed")
    assert (one["current_state"], one["iteration"], one["pid"]) == ("failed", 1, None)
    assert "context" not in one
    shown = ll("status", "bad").out.splitlines()
    assert "Status: failed" in shown
    assert "State: failed" in shown
    assert ll("status") == Said(0, "", "no run is under way; `ll-loop history` lists those that are over\n")


@pytest.mark.parametrize(("command", "name"), [("run", ""), ("run-many", "bad: ")])
def test_verbose_shows_all_that_an_action_does_and_prints(
    ll: Ll, project: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    path = project / ".loops/bad.yaml"
    path.write_text(path.read_text().replace("echo some output;", "echo '  some output  '; echo;"))
    shown = ll(command, "bad", "--verbose").err.splitlines()
    action = "echo '  some output  '; echo; echo some complaint >&2; exit 1"
    assert [line for line in shown if line.startswith("    ")][:2] == [
        f"    {name}$ {action}",
        f"    {name}  some output",
    ]
    assert not any("$ echo" in line for line in ll(command, "bad").err.splitlines())
    assert ll(command, "counter", "--verbose", "--quiet").err == ""


def test_the_log_of_a_silent_run_is_not_mentioned(ll: Ll) -> None:
    ll("run-many", "bad", "endless", "--quiet")
    assert "Log: " in ll("status", "bad").out
    assert "Log: " not in ll("status", "endless").out


def test_tables_keep_whole_ids_as_long_as_they_can(ll: Ll) -> None:
    run_id = ll("run", "bad", "--json").json["runs"][0]["run_id"]
    assert [line.split()[-1] for line in ll("history", columns=60).out.splitlines()] == ["run", run_id]


def test_stopping_all_of_nothing_is_no_error(ll: Ll) -> None:
    assert ll("stop", "--all") == Said(0, "", "nothing is running\n")


# --- help ----------------------------------------------------------------------------------------------------


def test_no_words_at_all_give_the_help_with_a_whole_sentence_on_every_command(ll: Ll) -> None:
    assert ll() == ll("--help") == ll("help")
    rows = [line.split(maxsplit=1) for line in ll().out.partition("Run loops:")[2].splitlines() if line[:2] == "  "]
    assert {name for name, _ in rows} == app.commands.keys()
    assert [text for _, text in rows if not text.endswith((".", "!")) or text.endswith("...")] == []


async def test_the_examples_in_helps_are_lines_that_the_command_takes() -> None:
    epilogs = [command.epilog or "" for command in app.commands.values()]
    examples = [line for epilog in epilogs for line in epilog.splitlines() if line.startswith("  ")]
    assert len(examples) > 20
    for line in examples:
        program, command, *words = shlex.split(line)
        assert program == "ll-loop"
        await app.commands[command].make_context(command, words)


@pytest.mark.parametrize("command", ["run", "fake-host"])
def test_help_on_a_command_is_asked_for_in_either_way(ll: Ll, command: str) -> None:
    assert ll("help", command) == ll(command, "--help")
    assert ll("help", command).out.startswith(f"Usage: ll-loop {command} ")


def test_the_version_is_told(ll: Ll) -> None:
    assert ll("--version") == ll("-V") == Said(0, f"ll-loop {__version__}\n", "")
