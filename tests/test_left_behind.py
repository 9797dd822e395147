"""What a killed process or a daemon leaves behind is found, ended and removed before anybody goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import anyio
import pytest

from ll_loop import api
from ll_loop.run.bus import Record
from ll_loop.run.children import procs
from ll_loop.run.children.procs import Identity
from ll_loop.run.journals import recovery
from ll_loop.run.session import Session
from projects import Project, appears, eventually, only

RUNNER = """
import json, sys, anyio
from ll_loop.api import Session
async def main():
    async with Session(sys.argv[1], **json.loads(sys.argv[2])) as session:
        for name in sys.argv[3:]:
            session.start(name)
anyio.run(main)
"""
UNDER_A_REAPER = """
import subprocess, sys
from ll_loop.run.children import procs
procs.become_subreaper()
runner = subprocess.Popen(sys.argv[1:])
print(runner.pid, flush=True)
runner.wait()
sys.stdin.read()
"""
HANG = "echo $$ > pid-new; mv pid-new pid; sleep 60 & wait"
IS_PID_ALIVE = 'case "$(ps -o stat= -p $(cat pid))" in ""|Z*) echo alone;; *) echo together;; esac >> seen'

linux = pytest.mark.skipif(not procs.LINUX, reason="no sub-reapers")
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


@pytest.fixture
def start(project: Project) -> Iterator[Start]:
    """Starts a process that runs loops; whatever of it still lives is killed at the end."""
    with ExitStack() as stack:

        def begin(*loops: str, before: tuple[str, ...] = (), **options: object) -> subprocess.Popen[str]:
            command = [sys.executable, "-c", RUNNER, str(project.folder), json.dumps(options), *loops]
            environment = {**os.environ, "TMPDIR": str(project.folder.parent)}
            process = subprocess.Popen(
                [*before, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield begin
    for run in api.history(project.folder):
        for orphan in (*project.left_alive(run.run_id), *recovery.left_alive(run)):
            procs.send_signal(orphan, signal.SIGKILL)


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


async def _pid_in(path: Path) -> Identity:
    await appears(path)
    identity = procs.identity_of(int(await anyio.Path(path).read_text()))
    assert identity is not None
    return identity


def _scripts(project: Project) -> list[Path]:
    return list(project.folder.parent.glob("ll-action-*.sh"))


# --- the scope of a killed run -----------------------------------------------------------------------------


@pytest.mark.parametrize("queue", [True, False])
async def test_a_scope_is_not_granted_while_its_killed_holder_is_at_work(
    project: Project, start: Start, queue: bool
) -> None:
    project.loop("a", HANG, scope="src")
    project.loop("b", IS_PID_ALIVE, scope="src")
    process = start("a")
    left = await _pid_in(project.file("pid"))
    _kill(process)
    assert procs.is_alive(left)
    async with Session(project.folder, grace=1) as session:
        assert (await session.start("b", queue=queue).wait()).status == "completed"
    assert project.lines("seen") == ["alone"]
    assert project.lock_files() == []
    assert _scripts(project) == []


async def test_a_killed_holder_that_cannot_be_known_from_its_journal_is_ended_all_the_same(
    project: Project, start: Start
) -> None:
    project.loop("a", HANG, scope="src")
    project.loop("b", IS_PID_ALIVE, scope="src")
    process = start("a")
    await appears(project.file("pid"))
    _kill(process)
    [folder] = project.run_folders()
    (folder / "events.jsonl").unlink()
    async with Session(project.folder, grace=1) as session:
        assert (await session.start("b").wait()).status == "completed"
    assert project.lines("seen") == ["alone"]


async def test_nobody_gets_the_scope_while_another_process_takes_the_killed_run_up(
    project: Project, start: Start
) -> None:
    """The orphan does not hear SIGTERM, so that the one who resumes has to wait for the grace."""
    project.loop("a", "test -e pid && exit; trap '' TERM; " + HANG + "; sleep 60", scope="src")
    project.loop("b", IS_PID_ALIVE, scope="src")
    process = start("a")
    await appears(project.file("pid"))
    _kill(process)
    async with Session(project.folder, grace=0.6) as one, Session(project.folder, grace=60) as two:
        [resumed] = api.resume(one)
        other = two.start("b")
        assert (await other.wait()).status == "completed"
        assert (await resumed.wait()).status == "completed"
    assert project.lines("seen") == ["alone"]


async def test_the_scope_of_a_run_whose_process_lives_is_left_alone(project: Project, start: Start) -> None:
    project.loop("a", HANG, scope="src")
    project.loop("b", "true", scope="src")
    process = start("a")
    left = await _pid_in(project.file("pid"))
    async with Session(project.folder, grace=1) as session:
        assert (await session.start("b", queue=False).wait()).status == "refused"
    assert procs.is_alive(left)
    assert process.poll() is None


# --- who is an orphan --------------------------------------------------------------------------------------


@linux
async def test_orphans_that_went_to_a_strange_reaper_are_ended(project: Project, start: Start) -> None:
    project.loop("a", "test -e pid && exit; (setsid sleep 60 & echo $! > daemon); " + HANG)
    reaper = start("a", before=(sys.executable, "-c", UNDER_A_REAPER))
    inside, daemon = await _pid_in(project.file("pid")), await _pid_in(project.file("daemon"))
    assert reaper.stdout is not None
    os.kill(int(reaper.stdout.readline()), signal.SIGKILL)
    await eventually(lambda: procs.parent_of(inside.pid) == procs.parent_of(daemon.pid) == reaper.pid)
    async with Session(project.folder, grace=1) as session:
        api.resume(session)
    assert not procs.is_alive(inside)
    assert not procs.is_alive(daemon)
    assert reaper.poll() is None


async def test_actions_that_have_ended_are_not_looked_for_again(project: Project, start: Start) -> None:
    """Their pids may belong to anybody by now."""
    project.loop("a", "true", "true", HANG)
    process = start("a")
    left = await _pid_in(project.file("pid"))
    _kill(process)
    run = recovery.find_run(project.runs, "a")
    assert len(only(project.records(run.run_id), "action_spawned")) == 3
    assert run.children() == [left]


async def test_files_of_a_killed_process_go_when_its_run_goes_on(project: Project, start: Start) -> None:
    project.loop("a", "test -e pid && exit; " + HANG)
    process = start("a")
    await appears(project.file("pid"))
    _kill(process)
    [folder] = project.run_folders()
    (folder / "state.json.0123abcd.tmp").write_text("{")
    assert len(_scripts(project)) == 1
    async with Session(project.folder, grace=1) as session:
        api.resume(session)
    assert _scripts(project) == []
    assert list(folder.glob("*.tmp")) == []


@pytest.mark.parametrize("go_on", ["resume", "fresh"])
async def test_what_a_process_was_killed_clearing_away_goes_with_the_next_start(
    project: Project, start: Start, go_on: str
) -> None:
    project.loop("over", "true", scope="docs")
    project.loop("a", "test -e pid && exit; " + HANG, scope="src")
    process = start("over", "a")
    await appears(project.file("pid"))
    over = recovery.find_run(project.runs, "over")
    await eventually(lambda: project.lock_files() == [f"{recovery.find_run(project.runs, 'a').run_id}.lock"])
    _kill(process)
    # As if it had been killed a moment earlier, after the run's last record and before its lock was given back.
    [claimed] = (project.locks / name for name in project.lock_files())
    lock = json.loads(claimed.read_text()) | {"run_id": over.run_id, "scope": [str(project.file("docs"))]}
    (project.locks / f"{over.run_id}.lock").write_text(json.dumps(lock))
    script = recovery.open_run(project.runs, over.run_id).script
    assert script is not None
    script.touch()
    (over.folder / "state.json.0123abcd.tmp").touch()
    async with Session(project.folder, grace=1) as session:
        [run] = api.resume(session) if go_on == "resume" else [session.start("a")]
    assert run.status == "completed"
    assert project.lock_files() == []
    assert _scripts(project) == []
    assert list(over.folder.glob("*.tmp")) == []


# --- what was announced and never started ------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["rerun", "skip", "fail"])
async def test_an_action_that_was_never_started_is_not_taken_for_cut_off(project: Project, rule: str) -> None:
    project.loop("a", "echo one >> steps", "echo two >> steps")
    path = project.loops / "a.yaml"
    path.write_text(path.read_text().replace("    next: done\n", f"    next: done\n    on_resume: {rule}\n"))
    async with Session(project.folder, grace=1) as session:
        run = session.start("a")
        announced = []

        def cut(record: Record) -> None:
            announced.append(record["event"])
            if announced.count("action_start") == 2:
                run.cancel()

        session.bus.listen(cut)
    assert (run.status, project.lines("steps")) == ("interrupted", ["one"])
    assert len(only(project.records(run.run_id), "action_spawned")) == 1
    async with Session(project.folder, grace=1) as session:
        assert (await session.resume(recovery.open_run(project.runs, run.run_id)).wait()).status == "completed"
    assert project.lines("steps") == ["one", "two"]


# --- strays ------------------------------------------------------------------------------------------------

DAEMON = (
    "env -i setsid bash -c 'echo $$ > new; mv new daemon; exec sleep 60' & until test -e daemon; do sleep 0.01; done"
)


@linux
async def test_a_program_of_its_own_leaves_no_daemon_however_disguised(project: Project, start: Start) -> None:
    project.loop("a", DAEMON)
    process = start("a", subreaper=True)
    await appears(project.file("daemon"))
    pid = int(project.file("daemon").read_text())
    await eventually(lambda: process.poll() is not None)
    assert process.returncode == 0
    daemon = procs.identity_of(pid)
    assert daemon is None or not procs.is_alive(daemon)


@linux
async def test_git_is_not_taken_for_a_stray(project: Project, start: Start) -> None:
    await anyio.run_process(["git", "init", "-q", str(project.folder)])
    project.loop("a", "true")
    text = (project.loops / "a.yaml").read_text()
    evaluate = "    evaluate:\n      type: diff_stall\n    on_yes: done\n    on_no: done\n    on_error: done\n"
    (project.loops / "a.yaml").write_text(text.replace("    next: done\n", evaluate))
    process = start("a", subreaper=True)
    await eventually(lambda: process.poll() is not None)
    assert process.returncode == 0
    assert recovery.find_run(project.runs, "a").status == "completed"


# --- calls from within an action ---------------------------------------------------------------------------

NESTED = """
import sys, anyio
from ll_loop.api import Session
async def main():
    async with Session(sys.argv[1], grace=1) as session:
        result = await session.start(sys.argv[2], queue=True).wait()
        print(result.status, result.error)
        return result.exit_code
sys.exit(anyio.run(main))
"""


def _calls(project: Project, loop: str) -> str:
    project.file("nested.py").write_text(NESTED)
    return f"{sys.executable} nested.py {project.folder} {loop} >> said"


async def test_a_call_within_a_call_shares_the_scopes_of_all_above_it(project: Project) -> None:
    project.loop("outer", _calls(project, "middle"), scope="src")
    project.loop("middle", _calls(project, "inner"), scope="docs")
    project.loop("inner", "touch inside", scope="src/deep")
    async with Session(project.folder, grace=1) as session:
        run = session.start("outer")
        with anyio.fail_after(20):
            assert (await run.wait()).status == "completed"
    assert project.file("inside").exists()


async def test_a_call_from_within_an_action_never_waits_for_others(project: Project) -> None:
    """They might wait for the run above it: a run that holds never asks for more."""
    project.loop("outer", _calls(project, "inner") + "; true", scope="src")
    project.loop("inner", "touch inside", scope="docs")
    project.loop("other", "touch held; until test -e go; do sleep 0.01; done", scope="docs")
    async with Session(project.folder, grace=1) as session:
        session.start("other")
        await appears(project.file("held"))
        with anyio.fail_after(20):
            await session.start("outer").wait()
        project.file("go").touch()
    assert not project.file("inside").exists()
    [said] = project.lines("said")
    assert said.startswith("refused the scope of inner is held")
