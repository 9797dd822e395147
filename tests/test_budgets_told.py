"""Budgets, host slots and what prompts have cost, through the command line and the scripted host."""

from __future__ import annotations

import json
import os
import re
from itertools import pairwise
from pathlib import Path

import pytest

from command_line import Ll, command_line
from ll_loop.run.journals.recovery import run_ids
from projects import Project, only

DEAR = "init model=claude-haiku-4-5\ntext ok\nresult in=1000000 out=0"
"""A dollar."""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


@pytest.fixture
def ll(project: Project, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ll:
    monkeypatch.setenv("LL_HOST_CLI", "fake")
    (project.folder / ".git").mkdir()
    run = command_line(project.folder, capfd, monkeypatch)
    monkeypatch.setenv("LL_HOST_CLI", "fake")
    return run


def prompts(project: Project, name: str, *scripts: str, model: str = "") -> str:
    text = f"name: {name}\ninitial: s1\nscope: [{name}]\nstates:\n"
    for number, script in enumerate(scripts, 1):
        lines = "".join(f"      {line}\n" for line in ("@@fake", *script.splitlines(), "@@end"))
        following = f"s{number + 1}" if number < len(scripts) else "done"
        text += f"  s{number}:\n    action_type: prompt\n    action: |\n{lines}    next: {following}\n{model}"
    (project.loops / f"{name}.yaml").write_text(text + "  done: {terminal: true}\n")
    return name


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_dollars_end_a_run_and_a_resume_with_more_goes_on(project: Project, ll: Ll, backend: str) -> None:
    prompts(project, "a", DEAR, DEAR, DEAR, DEAR)
    said = ll("run", "a", "--max-usd", "1.5", "--backend", backend)
    assert said.code == 1
    assert "budget used up: $2.00 of $1.50 are spent" in said.err
    assert "--max-usd USD" in said.err
    again = ll("resume", "--max-usd", "1.5", "--backend", backend)
    assert (again.code, "would end at once" in again.err) == (75, True)
    on = ll("resume", "--max-usd", "2.5", "--backend", backend)
    assert "state=s3 exit=0" in on.err  # as any step is told, though it was entered before
    more = ll("resume", "--max-usd", "10", "--json", "--backend", backend)
    [run] = more.json["runs"]
    assert (more.code, run["status"], run["usage"]["cost_usd"]) == (0, "completed", 4.0)


def test_tokens_and_time_end_runs_too(project: Project, ll: Ll) -> None:
    prompts(project, "a", "text x\nresult in=50 out=1", "text y\nresult in=1 out=1")
    said = ll("run", "a", "--max-tokens", "20")
    assert (said.code, "51 of 20 tokens are spent" in said.err) == (1, True)
    said = ll("run", "a", "--deadline", "0", "--json")
    assert (said.code, said.json["runs"][0]["terminated_by"]) == (1, "budget_exceeded")
    assert ll("run", "a", "--max-usd", "-1").code == 64


def test_a_batch_shares_its_budget(project: Project, ll: Ll) -> None:
    names = [prompts(project, name, DEAR) for name in "abc"]
    said = ll("run-many", *names, "--max-usd", "1.5", "--jobs", "1", "--json")
    assert said.code == 1
    assert [run["status"] for run in said.json["runs"]] == ["completed", "completed", "interrupted"]
    assert "budget of the batch used up" in said.json["runs"][2]["error"]
    said = ll("resume", "--max-usd", "5", "--json")
    assert [run["status"] for run in said.json["runs"]] == ["completed"]


def test_as_many_hosts_run_at_a_time_as_there_are_slots(project: Project, ll: Ll) -> None:
    for name in "abc":
        prompts(project, name, "sleep 0.3\ntext x\nresult in=1 out=1")
    said = ll("run-many", "a", "b", "c", "--host-slots", "1")
    assert said.code == 0, said.err
    turns = []
    for run_id in run_ids(project.runs):
        records = project.records(run_id)
        [began], [ended] = only(records, "action_spawned"), only(records, "action_complete")
        turns.append((began["ts"], ended["ts"]))
    turns.sort()
    assert all(one[1] <= other[0] for one, other in pairwise(turns))
    waits = [
        record["why"] for run_id in run_ids(project.runs) for record in only(project.records(run_id), "host_waiting")
    ]
    assert waits.count("one of 1 host slots") == 2
    assert ll("run", "a", "--host-slots", "0").code == 64


def test_an_unknown_price_is_said_before_anything_starts(project: Project, ll: Ll) -> None:
    prompts(project, "a", DEAR, model="    model: brand-new\n")
    said = ll("run", "a", "--max-usd", "5", "--dry-run")
    assert "--max-usd may not hold: no price is known for the model brand-new" in said.err
    assert "--max-tokens" in said.err
    assert run_ids(project.runs) == []
    assert "no price" not in ll("run", "a", "--dry-run").err
    prompts(project, "b", DEAR, model="    model: claude-haiku-4-5\n")
    assert "claude-haiku" not in ll("run", "b", "--max-usd", "5", "--dry-run").err


def test_a_host_that_is_not_there_is_said_for_all_loops_before_the_first_starts(
    project: Project, ll: Ll, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LL_HOST_CLI", "codex")
    monkeypatch.setenv("PATH", os.pathsep.join(["/usr/bin", "/bin"]))
    for name in "ab":
        prompts(project, name, DEAR)
    said = ll("run-many", "a", "b")
    assert said.err.index("`codex` of the host codex is not there") < said.err.index("started")
    states = "states: {{a: {{loop: {}, on_yes: done, on_no: done}}, done: {{terminal: true}}}}"
    for name, inner in (("outer", "middle"), ("middle", "a")):
        head = f"name: {name}\ninitial: a\nscope: [x]\n"
        (project.loops / f"{name}.yaml").write_text(head + states.format(inner))
    assert "`codex` of the host codex is not there" in ll("run", "outer", "--dry-run").err
    assert "codex" not in ll("run", "outer", "--dry-run", "--host", "fake").err


def test_a_host_that_is_gone_is_said_before_a_run_goes_on(
    project: Project, ll: Ll, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts(project, "a", DEAR, DEAR)
    assert ll("run", "a", "--max-usd", "0.5").code == 1
    monkeypatch.setenv("LL_HOST_CLI", "codex")
    monkeypatch.setenv("PATH", os.pathsep.join(["/usr/bin", "/bin"]))
    said = ll("resume", "--max-usd", "9")
    assert said.err.index("`codex` of the host codex is not there") < said.err.index("goes on after")


@pytest.mark.parametrize(("version", "told"), [("0.12.3", True), ("0.169.9", False), ("", False)])
def test_a_host_that_is_older_than_what_was_tested_is_said(
    project: Project, ll: Ll, monkeypatch: pytest.MonkeyPatch, version: str, *, told: bool
) -> None:
    package = project.folder / "node_modules" / "codex"
    (package / "bin").mkdir(parents=True)
    (package / "package.json").write_text(json.dumps({"version": version}))
    (package / "bin" / "codex.js").write_text("#!/bin/sh\n")
    (package / "bin" / "codex.js").chmod(0o755)
    (project.folder / "codex").symlink_to(package / "bin" / "codex.js")
    monkeypatch.setenv("LL_HOST_CLI", "codex")
    monkeypatch.setenv("PATH", os.pathsep.join([str(project.folder), "/usr/bin", "/bin"]))
    prompts(project, "a", DEAR)
    said = ll("run", "a", "--dry-run")
    assert ("codex 0.12.3 is older than what ll-loop was tested with (0.169.0)" in said.err) is told
    assert "is not there" not in said.err


def test_why_a_judge_gave_no_verdict_is_said(project: Project, ll: Ll) -> None:
    prompts(project, "a", "text Fixed.\nresult in=1 out=1")
    loop = project.loops / "a.yaml"
    loop.write_text(loop.read_text().replace("next: done", "on_yes: done\n    on_no: done\n    on_error: done"))
    assert "no verdict: the judge's answer cannot be read: ok" in ll("run", "a").err


def test_the_report_has_tokens_and_dollars_of_runs_and_states(project: Project, ll: Ll) -> None:
    prompts(project, "a", DEAR, "init model=claude-haiku-4-5\ntext x\nresult in=0 out=100000")
    prompts(project, "b", "init model=nobody-knows\ntext x\nresult in=7 out=0")
    said = ll("run-many", "a", "b", "--json", columns=120)
    rows = [re.split(r"\s{2,}", line.strip()) for line in said.err.splitlines()]
    table = {tuple(row[:2]): row for row in rows}
    assert ["loop", "state", "turns", "tokens", "cost"] in rows
    assert table["a", "s1"][-2:] == ["1,000,000", "$1.00"]
    assert table["a", "s2"][-2:] == ["100,000", "$0.50"]
    assert table["b", "s1"][-2:] == ["7", "unknown"]
    one, other = said.json["runs"]
    assert (one["usage"]["tokens"], one["usage"]["cost_usd"]) == (1_100_000, 1.5)
    assert [(state["state"], state["cost_usd"]) for state in one["usage"]["states"]] == [("s1", 1.0), ("s2", 0.5)]
    assert (other["usage"]["cost_usd"], other["usage"]["tokens"]) == (None, 7)
    single = ll("run", "a", columns=120).err
    assert "1,100,000 tokens, cost $1.50" in single
    assert re.search(r"a +s2 +1 +100,000 +\$0\.50", single)
