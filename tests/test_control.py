"""Stopping and asking after runs from another process: only what is meant ends, and everybody hears the truth."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import pytest

from ll_loop import api
from ll_loop.errors import NotFoundError, RefusedError, UsageError
from ll_loop.run.ipc import control
from ll_loop.run.journals import recovery
from ll_loop.run.session import Session
from projects import LIMIT, Project, appears, eventually, only

LONG = "touch begun-$LL_LOOP_RUN_ID; sleep 30 & sleep 30"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


RUNNER = """
import sys, anyio
from ll_loop.api import Session
async def main():
    async with Session(sys.argv[1], grace=1) as session:
        for name in sys.argv[2:]:
            session.start(name)
anyio.run(main)
"""


@asynccontextmanager
async def _elsewhere(project: Project, *loops: str) -> AsyncIterator[anyio.abc.Process]:
    """A process that runs these loops, all of them in their first action by now."""
    async with await anyio.open_process([sys.executable, "-c", RUNNER, str(project.folder), *loops]) as process:
        try:
            await eventually(lambda: len(list(project.folder.glob("begun-*"))) >= len(loops))
            yield process
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                if process.returncode is None:
                    process.terminate()
                await process.wait()


async def _ids(project: Project) -> dict[str, str]:
    return {entry["loop"]: entry["run_id"] for entry in await api.status(project.folder)}


# --- another process ---------------------------------------------------------------------------------------


async def test_stopping_one_run_of_another_process_leaves_the_others_alone(project: Project) -> None:
    for name in ("fix", "fix-types", "fi"):
        project.loop(name, LONG)
    async with _elsewhere(project, "fix", "fix-types", "fi") as process:
        with anyio.fail_after(LIMIT):
            [result] = await api.stop(project.folder, "fix")
        assert (result.loop, result.status, result.terminated_by) == ("fix", "user_stopped", "user_stopped")
        assert (result.exit_code, result.resumable, result.final_state) == (1, True, "s1")
        assert project.left_alive(result.run_id) == []
        assert len(project.lock_files()) == 2
        assert {entry["loop"]: entry["status"] for entry in await api.status(project.folder)} == {
            "fix-types": "running",
            "fi": "running",
        }
        assert process.returncode is None
        assert only(project.records(result.run_id), "loop_complete")[-1]["terminated_by"] == "user_stopped"
        assert recovery.open_run(project.runs, result.run_id).status == "user_stopped"

        with anyio.fail_after(LIMIT):
            rest = await api.stop(project.folder, all=True)
            assert [one.status for one in rest] == ["user_stopped"] * 2
            assert await process.wait() == 0
    assert await api.status(project.folder) == []
    assert project.lock_files() == []


async def test_a_queued_run_of_another_process_can_be_stopped(project: Project) -> None:
    project.loop("a", LONG, scope="src")
    project.loop("b", "touch ran", scope="src")
    async with _elsewhere(project, "a") as _, Session(project.folder) as session:
        waiting = session.start("b")
        await eventually(lambda: waiting.waits_for)
        [entry] = await api.status(project.folder, waiting.run_id)
        assert (entry["status"], entry["state"], entry["step"], entry["pid"]) == ("queued", "", 0, os.getpid())
        assert "`a`" in entry["waits_for"]
        [result] = await api.stop(project.folder, waiting.run_id)
        assert (result.status, result.exit_code) == ("user_stopped", 1)
        assert recovery.open_run(project.runs, waiting.run_id).status == "user_stopped"
        [stopped] = await api.stop(project.folder, "a", grace=0)
        assert stopped.loop == "a"
    assert not project.file("ran").exists()


async def test_a_dead_owner_is_told_of_with_what_it_left_alive(project: Project) -> None:
    project.loop("a", LONG)
    async with _elsewhere(project, "a") as process:
        run_id = (await _ids(project))["a"]
        process.kill()
        await process.wait()
        await eventually(lambda: not recovery.open_run(project.runs, run_id).is_alive)
        left = project.left_alive(run_id)
        with pytest.raises(RefusedError, match="process") as refused:
            await api.stop(project.folder, run_id)
        assert "alive" in str(refused.value)
        assert f"ll-loop resume {run_id}" in refused.value.hint
        assert project.left_alive(run_id) == left != []
        [entry] = await api.status(project.folder)
        assert (entry["status"], entry["state"], entry["step"], entry["pid"]) == ("interrupted", "s1", 1, 0)
    project.loop("a", LONG)
    async with Session(project.folder, grace=1) as session:  # ends what was left
        session.resume(recovery.open_run(project.runs, run_id)).cancel()


async def test_a_process_that_does_not_answer_is_named(project: Project) -> None:
    project.loop("a", LONG)
    async with _elsewhere(project, "a") as process:
        run = recovery.find_run(project.runs, "a")
        os.unlink(run.socket)
        with pytest.raises(RefusedError, match="does not answer") as refused:
            await api.stop(project.folder, "a")
        assert f"kill {process.pid}" in refused.value.hint
        [entry] = await api.status(project.folder, "a")
        assert (entry["status"], entry["state"], entry["pid"]) == ("running", "s1", process.pid)


async def test_a_process_that_somebody_stopped_is_not_waited_for(project: Project) -> None:
    project.loop("a", LONG)
    async with _elsewhere(project, "a") as process:
        await _ids(project)
        process.send_signal(signal.SIGSTOP)
        try:
            with anyio.fail_after(LIMIT * 3), pytest.raises(RefusedError, match="does not answer") as refused:
                await api.stop(project.folder, "a")
            assert "kill -CONT" in refused.value.hint
        finally:
            process.send_signal(signal.SIGCONT)


# --- who is meant ------------------------------------------------------------------------------------------


async def test_runs_are_named_by_id_by_its_beginning_or_as_the_latest(project: Project) -> None:
    project.loop("a", LONG)
    project.loop("b", LONG)
    async with Session(project.folder, grace=1) as session:
        one, two, three = session.start("a"), session.start("b"), session.start("b", lock=False)
        await eventually(lambda: len(list(project.folder.glob("begun-*"))) == 3)
        with pytest.raises(UsageError, match="2 runs of b"):
            await api.stop(project.folder, "b")
        with pytest.raises(NotFoundError, match="beginning of 3"):
            await api.stop(project.folder, "20")
        with pytest.raises(NotFoundError):
            await api.stop(project.folder, "nobody")
        with pytest.raises(UsageError):
            await api.stop(project.folder)
        assert [handle.result for handle in (one, two, three)] == [None] * 3
        newest = max(handle.run_id for handle in (one, two, three))
        assert [result.run_id for result in await api.stop(project.folder, "latest")] == [newest]
        assert [result.run_id for result in await api.stop(project.folder, one.run_id[:-2])] == [one.run_id]
        assert [result.loop for result in await api.stop(project.folder, "b")] == ["b"]  # the other one has ended
    with pytest.raises(RefusedError, match="has ended already"):
        await api.stop(project.folder, one.run_id)
    with pytest.raises(NotFoundError):
        await api.stop(project.folder / "nowhere", "a")
    assert await api.stop(project.folder, all=True) == []


async def test_stop_gives_up_waiting_but_the_run_ends(project: Project) -> None:
    project.loop("a", "trap '' TERM; touch begun-x; sleep 30 & wait; sleep 30")
    async with Session(project.folder, grace=60) as session:
        run = session.start("a")
        await appears(project.file("begun-x"))
        with pytest.raises(RefusedError, match=r"not over after 0\.1 s"):
            await api.stop(project.folder, "a", timeout=0.1)
        assert run.result is None
        [result] = await api.stop(project.folder, "a", grace=0, timeout=LIMIT)
        assert result.status == "user_stopped"
    assert run.status == "user_stopped"
    assert project.left_alive(run.run_id) == []


async def test_status_tells_where_live_runs_are(project: Project) -> None:
    project.loop("a", "true", LONG)
    project.loop("b", "true", scope="a")
    async with Session(project.folder, grace=1) as session:
        first, second = session.start("a"), session.start("b")
        await eventually(lambda: list(project.folder.glob("begun-*")))
        found = {entry["loop"]: entry for entry in await api.status(project.folder)}
        assert found["a"] == {
            "run_id": first.run_id,
            "loop": "a",
            "status": "running",
            "state": "s2",
            "step": 2,
            "question": None,
            "waits_for": "",
            "waiting_since": "",
            "place": 0,
            "since": first.since,
            "pid": os.getpid(),
        }
        assert (found["b"]["status"], found["b"]["waits_for"]) == ("queued", first.run_id)
        assert json.loads(json.dumps(found)) == found
        first.cancel()
        await second.wait()
    [ended] = await api.status(project.folder, second.run_id)
    assert (ended["status"], ended["pid"]) == ("completed", 0)


# --- the socket --------------------------------------------------------------------------------------------


async def test_the_socket_is_private_and_goes_with_the_session(project: Project) -> None:
    project.loop("a", LONG)
    async with Session(project.folder, grace=1) as session:
        run = session.start("a")
        [record] = only(project.records(run.run_id), "run_created")
        path = anyio.Path(record["socket"])
        assert stat.S_IMODE((await path.stat()).st_mode) == 0o600
        assert stat.S_IMODE((await path.parent.stat()).st_mode) == 0o700
        assert str(os.getpid()) in path.name
        run.cancel()
    assert not await path.exists()


def _sockets_of_this_process() -> set[str]:
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    return {path.name for path in base.glob(f"ll-loop-*/{os.getpid()}-*")}


async def test_the_socket_of_a_killed_process_is_cleared_away(project: Project) -> None:
    project.loop("a", LONG)
    async with _elsewhere(project, "a") as process:
        left = anyio.Path(recovery.find_run(project.runs, "a").socket)
        assert await left.exists()
        process.kill()
        await process.wait()  # from now on anybody who starts on this machine may clear it away
        async with Session(project.folder, grace=1) as session:
            api.resume(session)[0].cancel()
            assert not await left.exists()


async def test_a_session_that_starts_nothing_makes_no_socket(project: Project) -> None:
    before = _sockets_of_this_process()
    async with Session(project.folder) as session:
        assert repr(session) == "<Session 0 running, 0 waiting>"
        assert _sockets_of_this_process() == before


async def _raw(path: str, data: bytes) -> bytes:
    async with await anyio.connect_unix(path) as stream:
        await stream.send(data)
        with anyio.fail_after(LIMIT):
            return await stream.receive()


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (b"hello\n", "not JSON"),
        (b"[1]\n", "not a request"),
        (b'{"stop": 7}\n', "not a request"),
        (b'{"stop": "nobody"}\n', "no such run here"),
        (b'{"stop": "%s", "grace": "long"}\n', "a grace is a number"),
        (b'{"stop": "%s", "grace": -1}\n', "a grace is a number"),
    ],
)
async def test_a_wrong_request_is_answered_and_hurts_nobody(project: Project, request_: bytes, complaint: str) -> None:
    project.loop("a", LONG)
    async with Session(project.folder, grace=1) as session:
        run = session.start("a")
        path = recovery.find_run(project.runs, "a").socket
        text = request_.replace(b"%s", run.run_id.encode())
        assert complaint in json.loads(await _raw(path, text))["error"]
        assert run.result is None
        run.cancel()


async def test_silent_and_talkative_peers_hold_nobody_up(project: Project) -> None:
    project.loop("a", LONG)
    with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as endless:
        async with Session(project.folder, grace=1) as session:
            run = session.start("a")
            path = recovery.find_run(project.runs, "a").socket
            silent.connect(path)
            endless.connect(path)
            endless.setblocking(False)
            endless.send(b"x" * (control.LONGEST_REQUEST + 1))
            await eventually(lambda: list(project.folder.glob("begun-*")))
            with socket.socket(socket.AF_UNIX) as gone:  # asks, and does not wait for the answer
                gone.connect(path)
                gone.send(json.dumps({"stop": run.run_id}).encode() + b"\n")
            begun = anyio.current_time()
            assert (await run.wait()).status == "user_stopped"
        assert anyio.current_time() - begun < 1.5
