"""Following a run from another place: every record once, from the first to the last, however late one comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from ll_loop import api
from ll_loop.cli.terminal import clean
from ll_loop.run.journals import recovery
from ll_loop.run.session import Session
from projects import LIMIT, Project, appears, eventually

Records = list[Any]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


async def _all(project: Project, wanted: str, into: Records) -> None:
    async with api.follow(project.folder, wanted) as batches:
        async for records in batches:
            into += records


async def test_a_late_follower_misses_nothing_and_hears_nothing_twice(project: Project) -> None:
    project.loop("a", "echo early", "touch late; until test -e go; do sleep 0.02; done; seq 3000; echo last")
    heard: Records = []
    async with Session(project.folder) as session:
        run = session.start("a")
        await appears(project.file("late"))
        with anyio.fail_after(LIMIT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_all, project, run.run_id, heard)
                await eventually(lambda: heard)
                project.file("go").touch()
    assert heard == project.records(run.run_id)
    assert [record["seq"] for record in heard] == list(range(1, len(heard) + 1))


async def test_a_follower_sees_a_queued_run_begin_and_end(project: Project) -> None:
    project.loop("a", "touch begun; until test -e go; do sleep 0.02; done", scope="src")
    project.loop("b", "echo here", scope="src")
    heard: Records = []
    async with Session(project.folder) as session:
        session.start("a")
        waiting = session.start("b")
        await eventually(lambda: waiting.waits_for)
        with anyio.fail_after(LIMIT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_all, project, "b", heard)
                await eventually(lambda: heard)
                project.file("go").touch()
    assert heard == project.records(waiting.run_id)


async def test_following_a_run_that_is_over_gives_all_of_it(project: Project) -> None:
    project.loop("a", "echo hello")
    async with Session(project.folder) as session:
        run = session.start("a")
    heard: Records = []
    await _all(project, "a", heard)
    assert heard == project.records(run.run_id)


async def test_a_follower_that_leaves_does_not_disturb_the_run(project: Project) -> None:
    project.loop("a", "until test -e go; do sleep 0.02; done; seq 50")
    async with Session(project.folder) as session:
        run = session.start("a")
        await eventually(lambda: run.run)
        async with api.follow(project.folder, "a") as batches:
            assert await anext(batches)
        project.file("go").touch()
        assert (await run.wait()).status == "completed"


async def test_a_process_that_cannot_be_reached_is_followed_by_its_journal_alone(project: Project) -> None:
    project.loop("a", "until test -e go; do sleep 0.02; done; echo x")
    heard: Records = []
    async with Session(project.folder) as session:
        run = session.start("a")
        await eventually(lambda: run.run)
        os.unlink(recovery.open_run(project.runs, run.run_id).socket)
        with anyio.fail_after(LIMIT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_all, project, "a", heard)
                await eventually(lambda: heard)
                project.file("go").touch()
    assert heard == project.records(run.run_id)


# --- the commands ------------------------------------------------------------------------------------------

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(project: Project) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "ll_loop", *words]
        env = {**os.environ, "TERM": "dumb"}
        process = subprocess.Popen(
            argv, cwd=project.folder, env=env, text=True, stdin=subprocess.DEVNULL, stdout=-1, stderr=-1
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_logs_follows_a_run_to_its_end_and_attach_shows_its_steps(project: Project, start: Start) -> None:
    project.loop("a", "echo hello; touch begun; until test -e go; do sleep 0.05; done", "echo bye")
    runner = start("run", "a", "--events")
    assert runner.stdout is not None
    next(line for line in runner.stdout if '"line": "hello"' in line)
    logs, attached, left = start("logs", "a", "-f"), start("attach", "a"), start("attach", "a", "--project", ".")
    assert logs.stdout is not None
    next(line for line in logs.stdout if "| hello" in line)
    anyio.run(_settle, left)
    anyio.run(_settle, attached)
    left.send_signal(signal.SIGINT)
    _, said = left.communicate(timeout=20)
    assert (left.returncode, "detached; run" in said) == (0, True)
    project.file("go").touch()
    out, err = logs.communicate(timeout=20)
    assert logs.returncode == 0
    lines = [clean(line) for line in out.splitlines()]
    assert "| bye" in "\n".join(lines)
    assert "done  2 steps  [terminal]" in lines[-1]
    assert err == ""
    _, said = attached.communicate(timeout=20)
    assert attached.returncode == 0
    assert "state=s1" in said
    assert "state=s2" in said
    assert said.splitlines()[-1] == "done after 2 steps"
    runner.communicate(timeout=20)
    assert runner.returncode == 0


async def _settle(process: subprocess.Popen[str]) -> None:
    """Wait until a process has taken over SIGINT."""
    status = Path(f"/proc/{process.pid}/status")

    def catches() -> bool:
        line = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt"))
        return bool(int(line.split()[1], 16) & (1 << (signal.SIGTERM - 1)))

    await eventually(catches)


def test_attach_shows_several_runs_at_once(project: Project, start: Start) -> None:
    for name in ("a", "b"):
        project.loop(name, f"touch {name}.begun; until test -e {name}.go; do sleep 0.05; done", "true")
    runners = [start("run", name, "--quiet") for name in ("a", "b")]
    for name in ("a", "b"):
        anyio.run(appears, project.file(f"{name}.begun"))
    attached = [start("attach"), start("attach", "a", "b")]
    for one in attached:
        anyio.run(_settle, one)
    project.file("a.go").touch()
    runners[0].communicate(timeout=20)
    project.file("b.go").touch()
    for one in attached:
        _, said = one.communicate(timeout=20)
        assert one.returncode == 0
        assert sorted(said.splitlines()[-2:]) == ["a: done after 2 steps", "b: done after 2 steps"]
    runners[1].communicate(timeout=20)
    idle = start("attach")
    _, said = idle.communicate(timeout=20)
    assert (idle.returncode, "nothing is under way" in said) == (75, True)


def test_attach_refuses_a_run_that_is_over(project: Project, start: Start) -> None:
    project.loop("a", "true")
    start("run", "a").communicate(timeout=20)
    attached = start("attach", "a")
    _, err = attached.communicate(timeout=20)
    assert (attached.returncode, "is not under way" in err) == (75, True)
    logs = start("logs", "a", "-n", "1", "--json")
    out, _ = logs.communicate(timeout=20)
    assert logs.returncode == 0
    assert '"event": "loop_complete"' in out
    assert len(out.splitlines()) == 1
