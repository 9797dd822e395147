"""What runs that share an account do when one of them is refused, and how their hosts start, in real runs."""

from __future__ import annotations

import json
import os
import textwrap
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from ll_loop import Session, api
from ll_loop.cli.waiting import lines_of
from ll_loop.core.effects import Sleep
from ll_loop.run.handle import RunHandle
from ll_loop.run.journals.request import Request
from projects import LIMIT, Project, eventually, only

ENV = {**os.environ, "LL_HOST_CLI": "fake"}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def write(project: Project, name: str, *script: str, more: str = "", host: str = "") -> None:
    """A loop with one prompt, to `done`, or to `failed` where it fails."""
    action = "\n".join(("@@fake", *script, "@@end") if script else ("Hello.",))
    (project.loops / f"{name}.yaml").write_text(
        f"name: {name}\ninitial: a\nscope: [{name}]\nstates:\n  a:\n    action_type: prompt\n    action: |\n"
        + textwrap.indent(action, " " * 6)
        + f"\n    next: done\n    on_error: failed\n{textwrap.indent(more, '    ')}{host}"
        + "\n  done: {terminal: true}\n  failed: {terminal: true, failure: true}\n"
    )


def agent(project: Project, *lines: str) -> str:
    """A host of the project's own: `lines` of bash."""
    project.file("agent").write_text("\n".join(("#!/bin/bash", "cat > /dev/null", *lines, "echo ok", "")))
    project.file("agent").chmod(0o755)
    return "    host: {command: [./agent]}"


def configure(project: Project, **sections: Any) -> None:
    (project.folder / ".ll").mkdir()
    (project.folder / ".ll" / "ll-config.json").write_text(json.dumps(sections))


def calls(project: Project, handle: RunHandle) -> int:
    return len(only(project.records(handle.run_id), "action_spawned"))


def began(project: Project, handle: RunHandle) -> float:
    """When the time of the run's only prompt began, in epoch seconds."""
    [ended] = only(project.records(handle.run_id), "action_complete")
    return datetime.fromisoformat(ended["ts"]).timestamp() - float(ended["duration_ms"]) / 1000


def rests(handle: RunHandle) -> float:
    """How many seconds the run waits out a rate limit; 0 if it does not."""
    waiting = handle.run.waiting if handle.run is not None else None
    return waiting.seconds if isinstance(waiting, Sleep) else 0


LADDER = "max_rate_limit_retries: 2\nrate_limit_backoff_base_seconds: 1.5\non_rate_limit_exhausted: failed\n"


async def test_eight_runs_wait_out_one_rate_limit_and_none_loses_a_step(project: Project) -> None:
    project.file("refused").write_text("")
    refuse = 'if mv refused gone 2>/dev/null; then echo \'{"type":"result","is_error":true,"result":"Too many requests"'
    refuse += ',"api_error_status":429}\'; exit 1; fi; date +%s.%N >> started; sleep 0.2'
    host = agent(project, refuse)
    configure(project, orchestration={"stagger_ms": 0})
    for name in "abcdefgh":
        write(project, name, host=host, more=LADDER)
    async with Session(project.folder, jobs=8) as session:
        first = session.start("a")
        await eventually(lambda: rests(first))
        refused_at = time.time()
        handles = [first, *(session.start(name) for name in "bcdefgh")]
        with anyio.fail_after(LIMIT * 4):
            results = [await handle.wait() for handle in handles]
    assert {result.status for result in results} == {"completed"}
    assert {calls(project, handle) for handle in handles[1:]} == {1}  # none of them was turned away
    started = sorted(float(line) for line in project.lines("started"))
    assert started[0] > refused_at + 1
    assert all(began(project, handle) > refused_at + 1 for handle in handles[1:])  # nor did its time limit run
    assert started[1] > started[0] + 0.19  # one went ahead


async def test_a_prompt_waits_for_its_account_visibly_and_no_longer_than_it_may(project: Project) -> None:
    write(project, "a", "result error=limit status=429", more=LADDER.replace("1.5", "300"))
    write(project, "patient", "result in=1 out=1")
    write(project, "hasty", "result in=1 out=1", more=f"rate_limit_max_wait_seconds: 60\n{LADDER}")
    async with Session(project.folder, env=ENV, grace=0) as session:
        first = session.start("a")
        await eventually(lambda: rests(first))
        patient, hasty = session.start("patient"), session.start("hasty")
        assert (await hasty.wait()).final_state == "failed"
        [told] = only(project.records(hasty.run_id), "action_complete")
        assert "not started: fake has a rate limit until" in told["stderr_preview"]
        assert only(project.records(hasty.run_id), "rate_limit_exhausted")
        await eventually(lambda: patient.waits_for)
        [entry] = await api.status(project.folder, patient.run_id)
        assert entry["waits_for"].startswith("the rate limit of fake until")
        found = await api.why(project.folder, patient.run_id)
        assert (found["reason"], found["waits_for"], found["action"]["pid"]) == ("host", entry["waits_for"], 0)
        [line, command] = lines_of(found, datetime.now(UTC))
        assert "for the rate limit of fake until" in line
        assert command == "  command: @@fake ..."
        session.shut_down()
    assert calls(project, patient) == calls(project, hasty) == 0


async def test_a_judge_that_is_turned_away_is_asked_again_and_the_action_not_done_again(project: Project) -> None:
    limit = '{"type":"result","is_error":true,"result":"limit; try again in 1 seconds","api_error_status":429}'
    opinion = '{"type":"result","structured_output":{"verdict":"yes","confidence":1,"evidence":"fine","reason":"r"}}'
    host = agent(project, f"if mkdir asked; then echo '{limit}'; else echo '{opinion}'; fi; exit")
    (project.loops / "a.yaml").write_text(
        f"name: a\ninitial: a\nscope: [a]\nstates:\n  a:\n    action: 'echo fine | tee -a ran'\n{host}\n"
        "    evaluate: {type: llm_structured, prompt: Good?}\n    on_yes: done\n    on_no: failed\n"
        "    on_error: failed\n  done: {terminal: true}\n  failed: {terminal: true, failure: true}\n"
    )
    async with Session(project.folder, env=ENV) as session:
        with anyio.fail_after(LIMIT * 3):
            result = await session.start("a").wait()
    assert result.final_state == "done"
    assert project.lines("ran") == ["fine"]
    records = project.records(result.run_id)
    assert "rate limit" in only(records, "host_waiting")[0]["why"]
    [judged] = only(records, "evaluate")
    assert (judged["model_requested"], judged["model_resolved"]) == (None, None)  # a command that names no model


async def test_after_a_refused_login_no_prompt_of_the_batch_is_started(project: Project) -> None:
    write(project, "a", "result error=401 status=401")
    write(project, "b", "text hi", "result in=1 out=1")
    write(project, "c", "text hi", "result in=1 out=1", more="capture: said\n")
    async with Session(project.folder, jobs=1, env=ENV) as session:
        handles = [session.start(name) for name in "abc"]
        with anyio.fail_after(LIMIT * 3):
            results = [await handle.wait() for handle in handles]
    assert [calls(project, handle) for handle in handles] == [1, 0, 0]
    assert [result.final_state for result in results] == ["failed"] * 3
    [told] = only(project.records(handles[1].run_id), "action_complete")
    assert "not started: fake refused the login a moment ago" in told["stderr_preview"]
    assert told["exit_code"] == 1


async def test_hosts_of_a_batch_start_a_moment_apart(project: Project) -> None:
    host = agent(project, "date +%s.%N >> started", "sleep 0.1")
    configure(project, orchestration={"stagger_ms": 400})
    for name in "abc":
        write(project, name, host=host)
    async with Session(project.folder, env=os.environ) as session:
        for name in "abc":
            session.start(name)
    times = sorted(float(line) for line in project.lines("started"))
    assert times[-1] - times[0] > 0.5  # of 0.8 s; a busy machine makes starting itself uneven


async def test_hosts_wait_for_memory_and_say_so(project: Project) -> None:
    host = agent(project)
    configure(project, orchestration={"memory_limit_pct": 0.001})
    write(project, "a", host=host)
    async with Session(project.folder, env=os.environ, grace=0) as session:
        run = session.start("a")
        await eventually(lambda: "memory" in run.waits_for)
        [entry] = await api.status(project.folder, run.run_id)
        assert entry["waits_for"].startswith("memory, of which")
        run.cancel()
        assert (await run.wait()).resumable
    assert calls(project, run) == 0


async def test_who_pays_no_heed_to_memory_does_not_wait(project: Project) -> None:
    host = agent(project)
    configure(project, orchestration={"memory_limit_pct": 0.001})
    write(project, "a", host=host)
    async with Session(project.folder, env=os.environ) as session:
        result = await session.start_request(Request("a", no_host_guard=True)).wait()
    assert result.status == "completed"


async def test_a_time_that_is_told_in_words_is_waited_for(project: Project) -> None:
    write(project, "a", "result error=limit; try again in 2 seconds status=429", more=LADDER.replace("1.5", "60"))
    async with Session(project.folder, env=ENV) as session:
        run = session.start("a")
        await eventually(lambda: rests(run))
        assert 2 <= rests(run) < 30  # what it was told, and not its ladder
        run.cancel(grace=0)
