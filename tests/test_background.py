"""Runs in the background: the command returns when it is known what became of them, and every flag comes along."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import asyncclick as click
import pytest

from ll_loop.api import Errand, Request, Resumption, history
from ll_loop.cli import commands, runs
from projects import Project

LONG = "echo here; sleep 30"


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path / "project")
    yield made
    _command(made, "stop", "--all", "--grace", "0")


def _command(project: Project, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "ll_loop", *words]
    return subprocess.run(
        argv, cwd=project.folder, capture_output=True, text=True, timeout=30, check=False, stdin=subprocess.DEVNULL
    )


def _worker(pid: int) -> list[str]:
    return sorted(os.readlink(f"/proc/{pid}/fd/{number}") for number in (0, 1, 2))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_command_returns_once_the_run_goes_on_and_nothing_ties_it_to_us(project: Project) -> None:
    project.loop("a", LONG, scope="src")
    project.loop("b", "true", scope="src")
    begun = _command(project, "run", "a", "-b", "--json", "--backend", "trio")
    assert (begun.returncode, begun.stderr.count("Error")) == (0, 0)
    report = json.loads(begun.stdout)
    [run] = report["runs"]
    assert (run["loop"], run["status"], run["place"], run["exit_code"]) == ("a", "running", 0, None)
    pid = report["pid"]
    assert _worker(pid) == ["/dev/null", "/dev/null", report["log"]]
    assert os.getsid(pid) not in (pid, os.getsid(0))  # a session of its own, of which it is no leader
    assert history(project.folder)[0].owner.pid == pid

    queued = _command(project, "run", "b", "-b", "--queue")
    assert queued.returncode == 0
    assert "b is queued, place 1: `a`" in queued.stdout
    refused = _command(project, "run", "b", "-b")
    assert refused.returncode == 75
    assert refused.stdout == ""
    assert "the scope of b is held" in refused.stderr
    assert "hint: wait for it with --queue" in refused.stderr
    assert len(list((project.loops / "background").iterdir())) == 2


def test_what_is_wrong_with_the_start_is_said_by_the_command_with_its_exit_code(project: Project) -> None:
    missing = _command(project, "run", "nobody", "--background", "--json")
    assert (missing.returncode, json.loads(missing.stdout)["exit_code"]) == (66, 66)
    assert "no loop `nobody`" in missing.stderr
    nothing = _command(project, "resume", "-b")
    assert (nothing.returncode, "nothing to resume" in nothing.stderr) == (66, True)
    assert not (project.loops / "background").exists()


def test_a_background_run_ends_in_its_log(project: Project) -> None:
    project.loop("a", "echo here")
    begun = _command(project, "run-many", "a", "-b", "--json")
    report = json.loads(begun.stdout)
    log = Path(report["log"])
    assert log.stat().st_mode & 0o777 == 0o600
    deadline = time.monotonic() + 20
    while "1 done" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "1 run: 1 done" in log.read_text()


# --- every flag --------------------------------------------------------------------------------------------

HERE = frozenset({"help", "dry_run", "background", "as_json", "events", "project"})
"""What the command that starts does itself."""
VALUES: dict[str, list[str]] = {
    "texts": ["--context", "k=v=w"],
    "secrets": ["--secret", "CODE"],
    "max_successors": ["--max-successors", "5"],
    "program_md": ["--program-md", "steer.md"],
    "max_steps": ["--max-steps", "7"],
    "max_iterations": ["--max-iterations", "3"],
    "delay": ["--delay", "0.5"],
    "worktree": ["--worktree"],
    "queue": ["--queue"],
    "queue_timeout": ["--queue-timeout", "9"],
    "no_lock": ["--no-lock"],
    "handoff_threshold": ["--handoff-threshold", "70"],
    "context_limit": ["--context-limit", "1000"],
    "host": ["--host", "codex"],
    "model": ["--model", "large"],
    "llm_model": ["--llm-model", "small"],
    "no_llm": ["--no-llm"],
    "effort": ["--effort", "high"],
    "no_host_guard": ["--no-host-guard"],
    "host_guard_budget_mb": ["--host-guard-budget-mb", "512"],
    "prompt_size_warn": ["--prompt-size-warn-chars", "900"],
    "no_prompt_size_guard": ["--no-prompt-size-guard"],
    "attended": ["--attended"],
    "quiet": ["--quiet"],
    "verbose": ["--verbose"],
    "grace": ["--grace", "2.5"],
    "backend": ["--backend", "trio"],
    "jobs": ["--jobs", "4"],
    "fail_fast": ["--fail-fast"],
    "max_usd": ["--max-usd", "1.5"],
    "max_tokens": ["--max-tokens", "5000"],
    "deadline": ["--deadline", "600"],
    "host_slots": ["--host-slots", "2"],
    "input": ['{"x": [1, "é"]}'],
    "wanted": ["latest"],
    "failed": ["--failed"],
    "from_state": ["--from", "s1"],
    "in_doubt": ["--in-doubt", "skip"],
    "builtin": ["--builtin"],
    "name": [],
    "names": [],
}
COMMANDS = {"run": (commands.run, ["bisect"]), "run-many": (commands.run_many, ["a"]), "resume": (commands.resume, [])}
CASES = [
    (name, str(parameter.name))
    for name, (command, _) in COMMANDS.items()
    for parameter in command.params
    if parameter.name not in HERE
]


async def _errand(command: str, words: list[str]) -> Errand:
    """The errand that a command line asks for."""
    context = await COMMANDS[command][0].make_context(command, words)
    given = {name: value for name, value in context.params.items() if name not in ("dry_run", "help")}
    match command:
        case "run":
            return runs.asked_of_run(given.pop("name"), given.pop("input"), given)[0]
        case "run-many":
            return runs.asked_of_many(given.pop("names"), given)[0]
        case _:
            return runs.asked_of_resume(given)[0]


def test_every_flag_has_a_case() -> None:
    assert {flag for _, flag in CASES} <= set(VALUES)


@pytest.mark.parametrize(("command", "flag"), CASES)
def test_every_flag_reaches_the_background_process(command: str, flag: str, tmp_path: Path) -> None:
    words = COMMANDS[command][1]
    where = ["--project", str(tmp_path)]
    (tmp_path / ".loops").mkdir()
    plain = anyio.run(_errand, command, [*words, *where])
    given = anyio.run(_errand, command, [*words, *VALUES[flag], *where])
    sent = Errand.from_json(json.loads(json.dumps(given.to_json())))
    assert sent == given
    assert given != plain or flag in ("name", "names") or (flag, command) == ("queue", "run-many")


def test_an_errand_survives_json_whole() -> None:
    request = Request("a", "x", {"k": [1, None]}, (("t", "v"),), max_steps=3, delay=0.5, worktree=True, queue=False)
    for errand in (
        Errand("/p", (request,), jobs=3, grace=1.0, fail_fast=True, attended=True, quiet=True, many=True),
        Errand("/p", resume=Resumption("latest", 4, 5, delay=1.5, texts=(("k", "v"),)), backend="trio"),
    ):
        document: Any = json.loads(json.dumps(errand.to_json()))
        assert Errand.from_json(document) == errand


def test_options_that_start_runs_are_the_same_in_help_and_errand() -> None:
    for command, _ in COMMANDS.values():
        assert any(isinstance(one, click.Option) and one.name == "background" for one in command.params)
