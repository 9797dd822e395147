"""A process that is stopped for a while, a terminal that goes away, a cell that is interrupted: nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ll_loop.run.journals import recovery
from projects import LIMIT, Project, only

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


@pytest.fixture
def start(project: Project) -> Iterator[Start]:
    """Starts the command line in a project; whatever still lives at the end is killed."""
    env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LL_LOOP_RUN_ID")} | {
        "TERM": "xterm"
    }
    with ExitStack() as stack:

        def begin(*words: str, terminal: int | None = None) -> subprocess.Popen[bytes]:
            argv = [sys.executable, "-m", "ll_loop", *words]
            out = subprocess.PIPE if terminal is None else terminal
            stdin = subprocess.DEVNULL if terminal is None else terminal
            process = subprocess.Popen(argv, cwd=project.folder, env=env, stdin=stdin, stdout=out, stderr=out)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield begin


def wait_for(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def result_of(project: Project, loop: str) -> tuple[str, int]:
    run = recovery.find_run(project.runs, loop)
    (ended,) = [record for record in only(project.records(run.run_id), "loop_complete") if "depth" not in record]
    return ended["terminated_by"], ended["exit_code"]


# --- stopped for a while -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_action_that_ended_while_the_process_was_stopped_has_not_timed_out(
    project: Project, start: Start, backend: str
) -> None:
    project.loop("a", "touch begun; sleep 0.3; touch slept", "true", head="default_timeout: 1\n", route="on_yes")
    process = start("run", "a", "--backend", backend)
    wait_for(project.file("begun").exists)
    process.send_signal(signal.SIGSTOP)
    wait_for(project.file("slept").exists)
    time.sleep(1.1)  # the limit passes
    process.send_signal(signal.SIGCONT)
    assert process.wait(LIMIT) == 0, process.communicate()
    assert result_of(project, "a") == ("terminal", 0)


def test_a_stopped_process_keeps_its_scope_and_its_run(project: Project, start: Start) -> None:
    project.loop("a", "touch begun; until test -e go; do sleep 0.01; done", scope="src")
    project.loop("b", "true", scope="src")
    process = start("run", "a")
    wait_for(project.file("begun").exists)
    process.send_signal(signal.SIGSTOP)
    other = start("run", "b")
    assert (other.wait(LIMIT), b"a" in other.communicate()[1]) == (75, True)
    assert start("resume", "a").wait(LIMIT) == 75
    process.send_signal(signal.SIGCONT)
    project.file("go").touch()
    assert process.wait(LIMIT) == 0


# --- a terminal that goes away -----------------------------------------------------------------------------


def test_a_terminal_that_closes_under_the_live_display_ends_the_run_in_order(project: Project, start: Start) -> None:
    project.loop("a", "touch begun; exec sleep 60")
    ours, theirs = os.openpty()
    process = start("run", "a", terminal=theirs)
    os.close(theirs)
    wait_for(project.file("begun").exists)
    wait_for(lambda: os.read(ours, 65536))
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    assert process.wait(LIMIT) == 129
    run = recovery.find_run(project.runs, "a")
    assert (run.status, project.left_alive(run.run_id)) == ("interrupted", [])
    assert not list(run.folder.glob("internal-error.log"))


def test_a_terminal_that_closes_does_not_keep_a_run_from_its_end(project: Project, start: Start) -> None:
    """No hang-up comes where the terminal is not the controlling one: then nobody reads, and that is all."""
    project.loop("a", "touch begun; until test -e go; do sleep 0.01; done; seq 2000")
    ours, theirs = os.openpty()
    process = start("run", "a", terminal=theirs)
    os.close(theirs)
    wait_for(project.file("begun").exists)
    os.close(ours)
    project.file("go").touch()
    assert process.wait(LIMIT) == 0
    assert result_of(project, "a") == ("terminal", 0)


# --- a cell that is interrupted ----------------------------------------------------------------------------

CELL = """
import signal, sys
from ll_loop import Session

async def cell(name, interrupt):
    async with Session(sys.argv[1], grace=1) as session:
        run = session.start(name)
        async for record in run.events():
            if interrupt and record["event"] == "action_spawned":
                signal.raise_signal(signal.SIGINT)
        return (await run.wait()).exit_code
"""
NOTEBOOK = f"""
import asyncio
{CELL}
BEFORE = signal.getsignal(signal.SIGINT)
with asyncio.Runner() as kernel:
    try:
        kernel.run(cell("a", True))
    except KeyboardInterrupt:
        print("interrupted")
    assert signal.getsignal(signal.SIGINT) is BEFORE
    print("the kernel lives:", kernel.run(cell("b", False)))
"""
TRIO = f"""
import trio
{CELL}
try:
    trio.run(cell, "a", True)
except BaseException as error:
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, KeyboardInterrupt), error
    print("interrupted")
print("the kernel lives:", trio.run(cell, "b", False))
"""


@pytest.mark.parametrize("notebook", [NOTEBOOK, TRIO], ids=["asyncio", "trio"])
def test_an_interrupted_cell_ends_its_runs_and_the_next_one_works(project: Project, notebook: str) -> None:
    project.loop("a", "sleep 60 & exec sleep 60")
    project.loop("b", "true")
    argv = [sys.executable, "-c", notebook, str(project.folder)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (done.stdout, done.returncode) == ("interrupted\nthe kernel lives: 0\n", 0), done.stderr
    run = recovery.find_run(project.runs, "a")
    assert (run.status, project.left_alive(run.run_id)) == ("interrupted", [])
    assert project.lock_files() == []
