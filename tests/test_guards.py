"""Guards around actions, on real runs: tests that were tampered with, tests that prove nothing, memory, credentials."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from ll_loop.api import resume
from ll_loop.check.states import CREDENTIALS
from ll_loop.core import machine
from ll_loop.core.effects import ActionDone, Outcome, Probed, ReadMemory, Rested, RunAction, Sleep, SnapshotTests
from ll_loop.core.model import HostGuard, Loop, Prompt, Routes, Shell, State
from ll_loop.run.journals import recovery
from ll_loop.run.journals.request import Request, RunResult
from ll_loop.run.performing.credentials import SCOPES
from ll_loop.run.session import Session
from projects import LIMIT, Project, appears, names, only


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def loop(project: Project, action: str, keys: str, route: str = "on_yes: done") -> None:
    body = "".join(f"      {line}\n" for line in action.splitlines())
    (project.loops / "a.yaml").write_text(
        f"name: a\ninitial: a\nscope: [a]\nstates:\n  a:\n    action: |\n{body}    {keys}\n    {route}\n"
        "    on_no: failed\n  done: {terminal: true}\n"
        "  failed: {terminal: true}\n  broken: {terminal: true, failure: true}\n"
    )


async def run(project: Project, env: dict[str, str] | None = None, **context: object) -> RunResult:
    async with Session(project.folder, env=env) as session:
        with anyio.fail_after(LIMIT):
            return await session.start("a", context=context).wait()


def told(project: Project, result: RunResult, event: str) -> list[dict[str, Any]]:
    return [dict(record) for record in only(project.records(result.run_id), event)]


# --- test files ------------------------------------------------------------------------------------------------

TAMPERING = "mkdir -p tests; echo 1 > tests/test_new.py; echo 2 > test_old.py; rm test_gone.py; echo 3 > other.py"


def with_tests(project: Project) -> None:
    project.file("test_old.py").write_text("old")
    project.file("test_gone.py").write_text("gone")


@pytest.mark.parametrize("route", ["on_yes: done", "next: done"])
async def test_an_action_that_changes_tests_is_sent_to_a_failure(project: Project, route: str) -> None:
    with_tests(project)
    loop(project, TAMPERING, "tamper_guard: fail", route)
    result = await run(project)
    assert (result.exit_code, result.final_state) == (2, "failed")
    found = told(project, result, "tamper_detected")
    assert [(one["path"], one["kind"]) for one in found[0]["findings"]] == [
        ("test_gone.py", "deleted"),
        ("test_old.py", "modified"),
        ("tests/test_new.py", "added"),
    ]
    assert (found[0]["state"], found[0]["policy"], found[0]["reverted"], found[0]["next"]) == (
        "a",
        "fail",
        [],
        "failed",
    )


async def test_tests_that_an_action_changed_or_deleted_are_put_back(project: Project) -> None:
    with_tests(project)
    project.file("test_old.py").chmod(0o755)
    loop(project, TAMPERING, "tamper_guard: revert")
    result = await run(project)
    assert (result.exit_code, result.final_state) == (0, "done")
    assert project.file("test_old.py").read_text() == "old"
    assert project.file("test_old.py").stat().st_mode & 0o777 == 0o755
    assert project.file("test_gone.py").read_text() == "gone"
    assert project.file("tests/test_new.py").exists()
    assert told(project, result, "tamper_detected")[0]["reverted"] == ["test_gone.py", "test_old.py"]


async def test_a_loop_s_policy_holds_for_states_without_their_own(project: Project) -> None:
    with_tests(project)
    loop(project, TAMPERING, "capture: x")
    text = (project.loops / "a.yaml").read_text()
    (project.loops / "a.yaml").write_text(text.replace("scope:", "tamper_guard: allow\nscope:"))
    result = await run(project)
    assert result.final_state == "done"
    assert told(project, result, "tamper_detected")[0]["policy"] == "allow"


async def test_an_action_that_leaves_the_tests_alone_is_not_mentioned(project: Project) -> None:
    with_tests(project)
    loop(project, "echo 3 > other.py", "tamper_guard: fail")
    result = await run(project)
    assert result.final_state == "done"
    assert "tamper_detected" not in names(project.records(result.run_id))


async def test_what_a_cut_off_attempt_did_to_the_tests_is_found_after_the_resume(project: Project) -> None:
    with_tests(project)
    loop(project, "[ -e cut ] || { echo 2 > test_old.py; touch cut; sleep 60; }", "tamper_guard: revert")
    async with Session(project.folder) as session:
        handle = session.start("a")
        await appears(project.file("cut"))
        handle.cancel()
        with anyio.fail_after(LIMIT):
            assert (await handle.wait()).status == "interrupted"
    async with Session(project.folder) as session:
        with anyio.fail_after(LIMIT):
            result = await session.resume(recovery.find_run(project.runs, handle.run_id)).wait()
    assert result.exit_code == 0
    assert project.file("test_old.py").read_text() == "old"
    assert told(project, result, "tamper_detected")[0]["reverted"] == ["test_old.py"]


# --- tests that prove nothing ----------------------------------------------------------------------------------

PATCH = """\
echo 'def f(): return 2' > m.py
printf 'from m import f\\ndef test_f(): assert f() == 2\\n' > test_real.py
printf 'def test_f(): assert True\\n' > test_void.py
"""


RUNNER = """\
import runpy, sys

failed = False
for name, found in runpy.run_path(sys.argv[-1]).items():
    if name.startswith("test_"):
        try:
            found()
        except AssertionError:
            failed = True
sys.exit(failed)
"""
"""Enough of pytest for these tests, and quick to start."""


def with_pytest(project: Project) -> dict[str, str]:
    stub = project.folder.parent / "stub"
    stub.mkdir()
    (stub / "pytest.py").write_text(RUNNER)
    (stub / "python3").symlink_to(sys.executable)
    return {"PATH": f"{stub}:/usr/bin:/bin", "PYTHONPATH": f"{stub}:."}


def committed(project: Project) -> None:
    project.file("m.py").write_text("def f(): return 1\n")
    git(project, "init -qb main", "add *.py", "commit -qm x")


def git(project: Project, *commands: str) -> None:
    for words in commands:
        argv = ["git", "-c", "user.name=x", "-c", "user.email=x@y", *words.split()]
        subprocess.run(argv, cwd=project.folder, check=True)


def configure(project: Project, /, **settings: Any) -> None:
    project.file(".ll").mkdir()
    project.file(".ll/ll-config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(("policy", "state"), [("warn", "done"), ("fail", "failed"), ("allow", "done")])
async def test_a_new_test_that_passes_without_the_patch_is_flagged(project: Project, policy: str, state: str) -> None:
    committed(project)
    loop(project, PATCH, f"prepatch_check: {policy}")
    result = await run(project, with_pytest(project))
    assert result.final_state == state
    flagged = [
        (one["policy"], one["outcomes"], one["files"]) for one in told(project, result, "prepatch_check_flagged")
    ]
    assert flagged == ([] if policy == "allow" else [(policy, 1, ["test_void.py"])])
    assert told(project, result, "warning") == []


@pytest.mark.parametrize(
    ("settings", "flagged"),
    [
        ({}, ["test_void.py"]),
        ({"prepatch_check": {"modified_hard": True}}, ["test_old.py", "test_void.py"]),
        ({"prepatch_check": {"enabled": False}}, None),
        ({"parallel": {"base_branch": "base"}}, None),
        ({"project": {"test_cmd": "sh -c 'grep -q 2 $0'"}}, ["test_real.py"]),
        ({"project": {"test_patterns": ["*_real.py"]}}, None),
    ],
)
async def test_the_project_says_how_patches_are_checked(
    project: Project, settings: dict[str, Any], flagged: list[str] | None
) -> None:
    project.file("test_old.py").write_text("def test_f(): pass\n")
    committed(project)
    project.file("test_void.py").write_text("def test_f(): assert True\n")
    git(project, "checkout -qb work", "add test_void.py", "commit -qm more", "branch base")
    configure(project, **settings)
    loop(project, PATCH + "echo '# more' >> test_old.py\n", "prepatch_check: warn")
    result = await run(project, with_pytest(project))
    assert [one["files"] for one in told(project, result, "prepatch_check_flagged")] == ([flagged] if flagged else [])


async def test_the_project_says_which_files_are_tests(project: Project) -> None:
    project.file("checks").mkdir()
    project.file("checks/one.txt").write_text("old")
    configure(project, project={"test_patterns": ["**/checks/**"]})
    loop(project, "echo new > checks/one.txt; echo x > test_a.py", "tamper_guard: fail")
    result = await run(project)
    assert [one["path"] for one in told(project, result, "tamper_detected")[0]["findings"]] == ["checks/one.txt"]


async def test_a_patch_check_that_cannot_be_made_says_so(project: Project) -> None:
    loop(project, PATCH, "prepatch_check: fail")
    result = await run(project)
    assert result.final_state == "done"
    assert "prepatch_check could not be made" in told(project, result, "warning")[0]["message"]


# --- credentials -----------------------------------------------------------------------------------------------

SECRETS = {"OPENAI_API_KEY": "o", "ANTHROPIC_API_KEY": "a", "MY_SETTING": "m", "LL_API_TOKEN": "t", "LL_PLAIN": "p",
           "PATH": "/usr/bin:/bin", "HOME": "/nowhere"}  # fmt: skip


async def test_an_action_with_scopes_sees_only_the_credentials_that_it_names(project: Project) -> None:
    loop(project, 'env > out; ls -A "$GH_CONFIG_DIR" > listed', "scopes: [openai-api]")
    assert (await run(project, SECRETS, mine="kept")).exit_code == 0
    seen = dict(line.split("=", 1) for line in project.lines("out"))
    assert seen["OPENAI_API_KEY"] == "o"
    assert not {"ANTHROPIC_API_KEY", "MY_SETTING", "LL_API_TOKEN"} & seen.keys()
    assert (seen["LL_PLAIN"], seen["LL_CTX_mine"]) == ("p", "kept")
    assert seen["PATH"].endswith("/shim:/usr/bin:/bin")
    assert seen["GH_TOKEN"] == "ll-loop-no-github-token"
    assert project.lines("listed") == []
    assert not os.path.exists(seen["GH_CONFIG_DIR"])  # noqa: ASYNC240 - a look, not a wait


@pytest.mark.parametrize(
    ("switches", "scopes", "lacks", "told_of"),
    [
        ("FORCE_ALLOW", "capture: x", ["MY_SETTING", "OPENAI_API_KEY"], ""),
        ("FORCE_ALLOW", "scopes: [openai-api]", ["MY_SETTING"], ""),
        ("REPORT", "capture: x", [], ""),
        ("REPORT", "scopes: [openai-api]", [], "ANTHROPIC_API_KEY, LL_API_TOKEN, MY_SETTING"),
        ("FORCE_ALLOW REPORT", "capture: x", [], "ANTHROPIC_API_KEY, LL_API_TOKEN, MY_SETTING, OPENAI_API_KEY"),
    ],
)
async def test_the_environment_of_every_action_can_be_cut_down_or_only_told(
    project: Project, switches: str, scopes: str, lacks: list[str], told_of: str
) -> None:
    loop(project, "env > out", scopes)
    result = await run(project, SECRETS | {f"LL_ENV_PROJECTION_{switch}": "1" for switch in switches.split()})
    seen = {line.partition("=")[0] for line in project.lines("out")}
    own = {"MY_SETTING", "OPENAI_API_KEY"}
    assert (own - seen, {"LL_PLAIN", "PATH"} - seen) == (set(lacks), set())
    said = [warning["message"] for warning in told(project, result, "warning")]
    assert said == ([f"the action would not see these variables: {told_of}"] if told_of else [])


async def test_the_github_scope_passes_the_token_on(project: Project) -> None:
    loop(project, 'echo "$GH_TOKEN" > out', "scopes: [github]")
    assert (await run(project, {**SECRETS, "GITHUB_TOKEN": "real"})).exit_code == 0
    assert project.lines("out") == ["real"]


async def test_the_github_scope_without_a_token_fails_the_action(project: Project) -> None:
    loop(project, "touch ran", "scopes: [github]")
    result = await run(project, SECRETS)
    assert result.final_state == "failed"
    assert (
        "Action failed: scope `github` needs a token" in told(project, result, "action_complete")[0]["stderr_preview"]
    )
    assert not project.file("ran").exists()


def test_every_credential_that_a_loop_may_name_is_known_to_the_run() -> None:
    assert set(SCOPES) == CREDENTIALS


# --- deliverables ----------------------------------------------------------------------------------------------


def delivering(project: Project, output: str, action: str = 'echo made > "${context.run_dir}page.html"') -> None:
    loop(project, action, "capture: x")
    text = (project.loops / "a.yaml").read_text()
    (project.loops / "a.yaml").write_text(text.replace("scope:", f"artifact_output: {output}\nscope:"))


async def test_a_deliverable_is_taken_out_of_the_run_s_folder_at_the_end(project: Project) -> None:
    delivering(project, "page.html")
    result = await run(project)
    path = f".loops/artifacts/{result.run_id}.html"
    assert project.file(path).read_text() == "made\n"
    told_of = told(project, result, "artifact_promoted")[0]
    assert (told_of["state"], told_of["from"], told_of["to"]) == ("done", "page.html", path)


async def test_deliverables_go_where_the_project_wants_them(project: Project) -> None:
    configure(project, artifacts={"promotion_dir": "site/made"})
    delivering(project, "page.html")
    result = await run(project)
    assert project.file(f"site/made/{result.run_id}.html").read_text() == "made\n"


TEMPLATE = """\
mkdir "${context.run_dir}page"; cd "${context.run_dir}page"
echo '{"title": "x"}' > data.json; echo '<h1>{{ title }}</h1>' > template.html.j2
echo '{name: page, version: "1", renderer: jinja2, data_schema: {type: object}, output: page.html}' > manifest.yaml
"""


@pytest.mark.parametrize(
    ("settings", "output", "place"),
    [
        ({}, "page", "artifacts/templates/a.llat"),
        ({"artifacts": {"templates_dir": "pages"}}, "page", "pages/a.llat"),
        ({}, "{from: page, to: here.llat}", "here.llat"),
    ],
)
async def test_a_template_is_delivered_as_a_folder(
    project: Project, settings: dict[str, Any], output: str, place: str
) -> None:
    configure(project, **settings)
    (project.file(place) / "old").mkdir(parents=True)
    delivering(project, f"{output}\nartifact_mode: template", TEMPLATE)
    result = await run(project)
    assert told(project, result, "artifact_promoted")[0]["to"] == place
    assert sorted(path.name for path in project.file(place).iterdir()) == [
        "data.json",
        "manifest.yaml",
        "template.html.j2",
    ]


@pytest.mark.parametrize(
    ("action", "why"),
    [
        ('echo made > "${context.run_dir}page"', "needs a folder"),
        (TEMPLATE + "rm manifest.yaml", "No such file"),
        (TEMPLATE + "echo '[' > manifest.yaml", "while parsing"),
        (TEMPLATE + "echo 'name: x' > manifest.yaml", "needs data_schema, name"),
        (TEMPLATE + "sed -i s/jinja2/mako/ manifest.yaml", "must be jinja2"),
        (TEMPLATE + "rm data.json", "there is no data.json"),
    ],
)
async def test_what_is_no_template_is_not_delivered_as_one(project: Project, action: str, why: str) -> None:
    delivering(project, "page\nartifact_mode: template", action)
    result = await run(project)
    assert result.exit_code == 0
    assert why in told(project, result, "warning")[0]["message"]
    assert not project.file("artifacts").exists()


async def test_a_deliverable_replaces_what_is_at_its_place(project: Project) -> None:
    project.file("site").mkdir()
    project.file("site/index.html").write_text("old")
    delivering(project, "{from: page.html, to: site/index.html}")
    await run(project)
    assert project.file("site/index.html").read_text() == "made\n"
    assert [path.name for path in project.file("site").iterdir()] == ["index.html"]


@pytest.mark.parametrize(("on", "action", "promoted"), [
    ("on: [broken]", "true", False),
    ('"on": [done]', "true", True),
    ("on: [failed]", "exit 1", True),
    ("to: p.html", "exit 1", False),
])  # fmt: skip
async def test_a_deliverable_is_taken_only_where_its_loop_allows(
    project: Project, on: str, action: str, promoted: bool
) -> None:
    delivering(project, f"{{from: page.html, {on}}}", f'echo made > "${{context.run_dir}}page.html"; {action}')
    result = await run(project)
    assert ("artifact_promoted" in names(project.records(result.run_id))) == promoted


async def test_a_deliverable_that_is_not_there_is_a_warning(project: Project) -> None:
    delivering(project, "nothing.html")
    result = await run(project)
    assert result.exit_code == 0
    assert "there is no" in told(project, result, "warning")[0]["message"]


async def test_a_run_that_was_cut_short_leaves_what_it_had(project: Project) -> None:
    loop(project, "echo so far", "capture: x", "on_yes: a")
    text = (project.loops / "a.yaml").read_text()
    (project.loops / "a.yaml").write_text(text.replace("scope:", "max_steps: 2\nscope:"))
    result = await run(project)
    document = json.loads((project.runs / result.run_id / "artifacts/best_effort.json").read_text())
    assert (document["terminated_by"], document["final_state"], document["iterations"]) == ("max_steps", "a", 2)
    assert document["captured"]["x"]["output"] == "so far"
    assert (document["metadata"]["best_effort"], document["error"]) == (True, None)


async def test_a_resumed_run_that_arrives_leaves_no_half_result(project: Project) -> None:
    loop(project, "[ -e two ] || { [ ! -e one ] || touch two; touch one; exit 1; }", "capture: x")
    text = (project.loops / "a.yaml").read_text().replace("on_no: failed", "on_no: a")
    (project.loops / "a.yaml").write_text(text.replace("scope:", "max_steps: 2\nscope:"))
    first = await run(project)
    left = project.runs / first.run_id / "artifacts/best_effort.json"
    assert left.exists()
    async with Session(project.folder) as session:
        with anyio.fail_after(LIMIT):
            result = await session.resume(recovery.find_run(project.runs, first.run_id), max_steps=5).wait()
    assert result.exit_code == 0
    assert not left.exists()


# --- memory ----------------------------------------------------------------------------------------------------


async def test_actions_over_the_memory_budget_lead_to_its_state(project: Project) -> None:
    loop(project, "python3 -c 'x = bytearray(b\"x\") * (400 << 20)'", "capture: x")
    guard = "host_guard: {max_cumulative_subproc_mb: 300.5, budget_state: broken}\n"
    text = (project.loops / "a.yaml").read_text()
    (project.loops / "a.yaml").write_text(text.replace("scope:", f"{guard}scope:"))
    result = await run(project)
    assert result.final_state == "broken"
    used = told(project, result, "host_subproc_rss")[0]
    assert used["peak_rss_mb"] == used["cumulative_mb"] > 390
    assert told(project, result, "host_budget_exceeded")[0]["action"] == "route:broken"


HUNGRY = "python3 -c 'x = bytearray(b\"x\") * (400 << 20)'"


def hungry(project: Project, budget: int, head: str = "") -> None:
    loop(project, "true", "next: eat", "on_yes: eat")
    text = (project.loops / "a.yaml").read_text()
    guard = f"{head}host_guard: {{max_cumulative_subproc_mb: {budget}, budget_state: broken}}\n"
    eat = f"states:\n  eat:\n    action: {HUNGRY}\n    next: done\n"
    (project.loops / "a.yaml").write_text(text.replace("scope:", f"{guard}scope:").replace("states:\n", eat))


@pytest.mark.parametrize(
    ("budget", "wishes", "final"),
    [
        (10000, {"host_guard_budget_mb": 300}, "broken"),
        (1, {"host_guard_budget_mb": 0}, "done"),
        (1, {"no_host_guard": True}, "done"),
    ],
)
async def test_a_start_can_set_another_memory_budget_or_none(
    project: Project, budget: int, wishes: dict[str, Any], final: str
) -> None:
    hungry(project, budget)
    async with Session(project.folder) as session:
        with anyio.fail_after(LIMIT):
            assert (await session.start_request(Request("a", **wishes)).wait()).final_state == final


async def test_a_run_goes_on_without_the_guard_if_its_resume_says_so(project: Project) -> None:
    hungry(project, 1, "max_steps: 1\n")
    assert (await run(project)).status == "interrupted"
    async with Session(project.folder) as session:
        with anyio.fail_after(LIMIT):
            [goes_on] = resume(session, max_steps=5, no_host_guard=True)
            assert (await goes_on.wait()).final_state == "done"


async def test_a_run_that_failed_by_its_memory_budget_is_started_anew_with_more(project: Project) -> None:
    hungry(project, 1)
    assert (await run(project)).final_state == "broken"
    async with Session(project.folder) as session:
        with anyio.fail_after(LIMIT):
            [anew] = resume(session, failed=True, host_guard_budget_mb=10000)
            assert (await anew.wait()).final_state == "done"


def prompting(guard: HostGuard) -> Loop:
    ask = State("ask", Prompt("do it"), routes=Routes(next="done"))
    calm = State("calm", Shell("true"), routes=Routes(next="done"))
    return Loop("p", "ask", {"ask": ask, "calm": calm, "done": State("done", terminal=True)}, host_guard=guard)


def after(guard: HostGuard, *used: str | None) -> list[tuple[str, Any]]:
    """What a run does that finds these shares of the memory used: the names of its events, and its last effect."""
    decision = machine.begin(prompting(guard), {})
    told_of = [event.name for event in decision.events]
    for share in used:
        assert decision.effect == ReadMemory()
        decision = machine.advance(decision.run, Outcome(Probed(share)))
        told_of += [event.name for event in decision.events]
    return [*((name, None) for name in told_of[2:]), ("", decision.effect or decision.run.ending)]


def test_a_prompt_waits_a_moment_when_memory_is_short() -> None:
    assert after(HostGuard(), "75") == [("host_cooldown", None), ("", Sleep(0.5, "memory"))]
    assert after(HostGuard(), "85") == [("host_pressure", None), ("host_cooldown", None), ("", Sleep(0.5, "memory"))]


@pytest.mark.parametrize("used", ["74.9", None])
def test_a_prompt_goes_on_when_there_is_memory_or_nobody_can_tell(used: str | None) -> None:
    [(name, _), (_, effect)] = after(HostGuard(), used)
    assert name == "action_start"
    assert isinstance(effect, RunAction)


def test_pressure_can_lead_elsewhere_or_end_the_run() -> None:
    routed = after(HostGuard(on_pressure="route", pressure_state="calm"), "90")
    assert [name for name, _ in routed] == ["host_pressure", "route", "state_enter", "action_start", ""]
    aborted = after(HostGuard(on_pressure="abort", on_abort_route="calm"), "90")
    assert [name for name, _ in aborted] == ["host_pressure", "host_pressure_abort", "loop_complete", ""]
    ending = aborted[-1][1]
    assert (ending.by, ending.state) == ("host_pressure_abort", "calm")


def test_after_the_pause_the_prompt_is_sent() -> None:
    decision = machine.begin(prompting(HostGuard()), {})
    decision = machine.advance(decision.run, Outcome(Probed("80")))
    decision = machine.advance(decision.run, Outcome(Rested()))
    assert isinstance(decision.effect, RunAction)
    assert isinstance(machine.begin(prompting(HostGuard(enabled=False)), {}).effect, RunAction)


def test_a_guarded_state_looks_at_the_tests_before_and_after() -> None:
    state = State("a", Shell("true"), routes=Routes(next="done"), tamper_guard="fail")
    guarded = Loop("g", "a", {"a": state, "done": State("done", terminal=True)})
    decision = machine.begin(guarded, {})
    assert decision.effect == SnapshotTests()
    decision = machine.advance(decision.run, Outcome(Probed("{}")))
    assert isinstance(decision.effect, RunAction)
    decision = machine.advance(decision.run, Outcome(ActionDone(0)))
    assert decision.effect == SnapshotTests()
    decision = machine.advance(decision.run, Outcome(Probed('{"test_x.py": "1"}')))
    assert decision.run.ending is not None, "without a failure to go to, the finding is only told"
    assert "tamper_detected" in [event.name for event in decision.events]
