"""The disk or the system refuses: the run pauses where it is, says so, and goes on when there is room again."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from ll_loop import api
from ll_loop.core.endings import exit_code_of
from ll_loop.core.model import Ending
from ll_loop.run.bus import Record
from ll_loop.run.children import procs
from ll_loop.run.journals import recovery
from ll_loop.run.session import Session
from projects import Project, only

WITHOUT_DESCRIPTORS = """
import json, os, resource, sys, anyio
from ll_loop.api import Session
async def main():
    async with Session(sys.argv[1], grace=1) as session:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        def hear(record):
            if record["event"] == "route" and record["from"] == "s1":
                resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            if record["event"] == "loop_complete":
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        session.bus.listen(hear)
        result = await session.start("a").wait()
    print(json.dumps([result.run_id, result.status, result.exit_code, result.resumable, result.error]))
anyio.run(main, backend=sys.argv[2])
"""

RESUMED_WITHOUT_DESCRIPTORS = """
import json, os, resource, sys, anyio
from ll_loop import api
from ll_loop.api import Session
async def main():
    async with Session(sys.argv[1], grace=1) as session:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        def hear(record):
            if record["event"] == "run_claimed":
                resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        session.bus.listen(hear)
        [run] = api.resume(session)
        result = await run.wait()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    print(json.dumps([result.status, result.exit_code, result.resumable, result.error]))
anyio.run(main, backend=sys.argv[2])
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


async def test_a_script_that_cannot_be_removed_is_no_failure_of_its_run(project: Project) -> None:
    project.loop("a", "echo $0 > script; rm $0; mkdir $0")
    async with Session(project.folder, grace=1) as session:
        result = await session.start("a").wait()
    os.rmdir(project.lines("script")[0])
    assert (result.status, result.error) == ("completed", None)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
async def test_a_run_whose_log_finds_the_disk_full_pauses_and_goes_on_later(project: Project) -> None:
    project.loop("a", "echo one >> steps", "echo two >> steps; echo said")
    async with Session(project.folder, grace=1) as session:
        run = session.start("a")
        log = run.folder / "output.log"

        def fill(record: Record) -> None:
            if record["event"] == "run_started":
                log.symlink_to("/dev/full")

        session.bus.listen(fill)
    result = await run.wait()
    assert (result.status, result.exit_code, result.resumable) == ("interrupted", 74, True)
    assert "No space left" in str(result.error)
    assert only(project.records(run.run_id), "loop_complete")[0]["exit_code"] == 74
    log.unlink()
    async with Session(project.folder, grace=1) as session:
        again = session.resume(recovery.open_run(project.runs, run.run_id))
    assert again.status == "completed"
    assert project.lines("steps") == ["one", "two", "two"]
    assert [record.get("attempt", 1) for record in only(project.records(run.run_id), "state_enter")] == [1, 1, 2]


@pytest.mark.skipif(not procs.LINUX, reason="descriptors are counted in another way")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_an_action_that_cannot_be_started_for_want_of_a_descriptor_is_not_taken_for_failed(
    project: Project, backend: str
) -> None:
    project.loop("a", "echo one >> steps", "echo two >> steps")
    command = [sys.executable, "-c", WITHOUT_DESCRIPTORS, str(project.folder), backend]
    with anyio.fail_after(30):
        said = await anyio.run_process(command)
    run_id, *how, error = json.loads(said.stdout)
    assert (how, project.lines("steps")) == (["interrupted", 74, True], ["one"])
    assert "Too many open files" in error
    async with Session(project.folder, grace=1) as session:
        assert (await session.resume(recovery.open_run(project.runs, run_id)).wait()).status == "completed"
    assert project.lines("steps") == ["one", "two"]
    assert [record.get("attempt", 1) for record in only(project.records(run_id), "state_enter")] == [1, 1]


@pytest.mark.skipif(not procs.LINUX, reason="descriptors are counted in another way")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_a_resume_that_cannot_look_around_for_want_of_a_descriptor_can_be_tried_again(
    project: Project, backend: str
) -> None:
    project.loop("a", "echo one >> steps", "echo two >> steps")
    async with Session(project.folder, grace=1) as session:
        run = session.start("a")

        def cut(record: Record) -> None:
            if record["event"] == "route" and record["from"] == "s1":
                run.cancel()

        session.bus.listen(cut)
    with anyio.fail_after(30):
        said = await anyio.run_process([sys.executable, "-c", RESUMED_WITHOUT_DESCRIPTORS, project.folder, backend])
    *how, error = json.loads(said.stdout)
    assert (how, project.lines("steps")) == (["interrupted", 74, True], ["one"])
    assert "Too many open files" in error
    async with Session(project.folder, grace=1) as session:
        assert (await session.resume(recovery.open_run(project.runs, run.run_id)).wait()).status == "completed"
    assert project.lines("steps") == ["one", "two"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("words", ["run a --json", "run a --events --quiet", "history --json"])
def test_results_that_no_disk_takes_are_not_taken_for_told(project: Project, words: str) -> None:
    project.loop("a", "echo said")
    with open("/dev/full", "wb") as full:
        argv = [sys.executable, "-m", "ll_loop", *words.split()]
        done = subprocess.run(argv, cwd=project.folder, stdout=full, stderr=subprocess.PIPE, text=True, timeout=30)
    assert done.returncode == 74
    assert "cannot write the output: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert [run.status for run in api.history(project.folder)] == (["completed"] if words[0] == "r" else [])


def test_what_the_disk_interrupted_has_the_exit_code_of_the_disk() -> None:
    assert exit_code_of(Ending("interrupted", "a", error=f"errno {errno.ENOSPC}")) == 74
    assert exit_code_of(Ending("interrupted", "a", signal=15)) == 143
