"""Signals to a process that runs loops: everything ends in order, at once and within one grace."""

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

GRACE = 0.6
RUNNER = """
import signal, sys, anyio
from ll_loop.api import Session, results, signals
from ll_loop.core.endings import combined_exit_code
async def main():
    async with Session(sys.argv[2], grace=float(sys.argv[3])) as session, signals(session):
        print("ready", flush=True)
        if not sys.argv[4:]:
            await anyio.sleep(0.3)  # a signal comes now
        handles = [session.start(name) for name in sys.argv[4:] or ["late"]]
        found = await results(session, handles)
        if sys.argv[4:] == ["over"]:
            signal.raise_signal(signal.SIGTERM)
            await anyio.sleep(0.05)
        return combined_exit_code(one.exit_code for one in found)
sys.exit(anyio.run(main, backend=sys.argv[1]))
"""
Start = Callable[..., "subprocess.Popen[str]"]
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


@pytest.fixture(params=["asyncio", "trio"])
def start(request: pytest.FixtureRequest, project: Project) -> Iterator[Start]:
    """Starts a process that runs loops and is ready for signals."""
    with ExitStack() as stack:

        def begin(*loops: str, grace: float = GRACE) -> subprocess.Popen[str]:
            command = [sys.executable, "-c", RUNNER, request.param, str(project.folder), str(grace), *loops]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            return process

        yield begin


def _wait_for(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _end(process: subprocess.Popen[str], number: int) -> float:
    """Send the signal; the seconds until the process ended, without a word."""
    begun = time.monotonic()
    process.send_signal(number)
    _, complaints = process.communicate(timeout=LIMIT)
    assert complaints == ""
    return time.monotonic() - begun


def _begun(project: Project, number: int) -> bool:
    return len(list(project.folder.glob("begun-*"))) == number


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_the_whole_tree_and_the_run_can_go_on(
    project: Project, start: Start, number: int, code: int
) -> None:
    project.loop("a", "bash -c 'sleep 300; true' & sleep 300 & touch begun-a; wait")
    process = start("a")
    _wait_for(lambda: _begun(project, 1))
    took = _end(process, number)
    assert process.returncode == code
    assert took < GRACE + 1
    run = recovery.find_run(project.runs, "a")
    assert project.left_alive(run.run_id) == []
    assert (run.status, run.is_resumable) == ("interrupted", True)
    [interrupted] = only(project.records(run.run_id), "run_interrupted")
    assert (interrupted["by"], interrupted["signal"]) == ("interrupted", number)
    assert project.lock_files() == []


def test_twenty_stubborn_runs_end_within_one_grace(project: Project, start: Start) -> None:
    loops = [project.loop(f"l{n}", f"trap '' TERM; touch begun-{n}; sleep 300 & wait; sleep 300") for n in range(20)]
    process = start(*loops)
    _wait_for(lambda: _begun(project, 20))
    took = _end(process, signal.SIGTERM)
    assert process.returncode == 143
    assert GRACE <= took < GRACE + 2.5
    for run_id in recovery.run_ids(project.runs):
        assert project.left_alive(run_id) == []
        assert recovery.open_run(project.runs, run_id).status == "interrupted"


def test_a_second_signal_ends_the_grace(project: Project, start: Start) -> None:
    project.loop("a", "trap 'touch asked' TERM; touch begun-a; sleep 300 & wait; sleep 300 & wait")
    process = start("a", grace=60)
    _wait_for(lambda: _begun(project, 1))
    process.send_signal(signal.SIGINT)
    _wait_for(project.file("asked").exists)
    assert _end(process, signal.SIGTERM) < 2
    assert process.returncode == 130  # the first one counts
    run = recovery.find_run(project.runs, "a")
    assert run.is_over
    assert project.left_alive(run.run_id) == []


def test_a_signal_before_any_loop_was_started_is_not_forgotten(project: Project, start: Start) -> None:
    project.loop("late", "touch ran")
    process = start()
    _end(process, signal.SIGTERM)
    assert process.returncode == 143
    assert not project.file("ran").exists()


def test_a_signal_after_the_last_run_has_ended_changes_nothing(project: Project, start: Start) -> None:
    project.loop("over", "true")
    process = start("over")
    _, complaints = process.communicate(timeout=LIMIT)
    assert (process.returncode, complaints) == (0, "")
    assert recovery.find_run(project.runs, "over").status == "completed"
    assert project.lock_files() == []


def test_a_reader_that_goes_away_hurts_nobody(project: Project, start: Start) -> None:
    project.loop("a", "touch begun-a; until test -e go; do sleep 0.01; done; seq 1000")
    process = start("a")
    _wait_for(lambda: _begun(project, 1))
    assert process.stdout is not None
    process.stdout.close()
    project.file("go").touch()
    assert process.wait(LIMIT) == 0
    run = recovery.find_run(project.runs, "a")
    assert run.status == "completed"
    assert len(only(project.records(run.run_id), "action_output")) == 1000


def test_a_terminal_that_is_closed_is_a_hang_up(project: Project) -> None:
    project.loop("a", "touch begun-a; sleep 300 & sleep 300")
    ours, theirs = os.openpty()
    command = [sys.executable, "-c", RUNNER, "asyncio", str(project.folder), str(GRACE), "a"]
    take = "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    take += "os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", take, *command]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        _wait_for(lambda: _begun(project, 1))
        os.close(ours)
        assert process.wait(LIMIT) == 129
    run = recovery.find_run(project.runs, "a")
    assert (run.status, project.left_alive(run.run_id)) == ("interrupted", [])


def test_the_end_of_a_child_by_a_signal_is_not_the_end_of_the_program(project: Project, start: Start) -> None:
    project.loop("a", "kill -TERM 0")
    project.loop("b", "true")
    process = start("a", "b")
    assert process.wait(LIMIT) == 1
    assert recovery.find_run(project.runs, "a").status == "failed"
    assert recovery.find_run(project.runs, "b").status == "completed"
