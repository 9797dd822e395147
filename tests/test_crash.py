"""Killed without warning, at any moment: nothing is lost, nothing runs twice, nothing is left alive."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random

import anyio
import pytest

from ll_loop import api
from ll_loop.core.replay import ReplayError
from ll_loop.errors import NotFoundError, RefusedError, StorageError
from ll_loop.run.children import procs
from ll_loop.run.journals import journal, recovery
from ll_loop.run.journals.recovery import StoredRun
from ll_loop.run.session import Session
from projects import LIMIT, Project, appears, eventually, names, only

RUNNER = """
import json, sys, anyio
from ll_loop.api import Session, resume
async def main():
    async with Session(sys.argv[1]) as session:
        for name in sys.argv[3:]:
            session.start(name, **json.loads(sys.argv[2]))
        if not sys.argv[3:]:
            resume(session)
        print("started", flush=True)
anyio.run(main)
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


@pytest.fixture
def start(project: Project) -> Iterator[Start]:
    """Starts a process that runs loops, or resumes if none are named, and has begun with it.

    Whatever of it still lives is killed at the end.
    """
    with ExitStack() as stack:

        def begin(*loops: str, **options: object) -> subprocess.Popen[str]:
            command = [sys.executable, "-c", RUNNER, str(project.folder), json.dumps(options), *loops]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()
            return process

        yield begin
    for run in api.history(project.folder):
        for orphan in project.left_alive(run.run_id):
            procs.send_signal(orphan, signal.SIGKILL)


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def _stored(project: Project, loop: str) -> StoredRun:
    return recovery.find_run(project.runs, loop)


async def _resume_all(project: Project) -> dict[str, str]:
    with anyio.fail_after(LIMIT):
        async with Session(project.folder, grace=1) as session:
            handles = api.resume(session)
    return {handle.loop.name: handle.status for handle in handles}


# --- what goes on ------------------------------------------------------------------------------------------

# The first attempt notes itself and hangs with a grandchild; a later one says whether the first still lived.
HANGING = """\
if test -e pid-of-$0
then case "$(ps -o stat= -p $(cat pid-of-$0))" in ""|Z*) ;; *) echo alive >> twins ;; esac; echo two >> tries
else echo one >> tries; sleep 60 & echo $! > new-$0; mv new-$0 pid-of-$0; wait; fi"""


def _hanging(name: str) -> str:
    return HANGING.replace("$0", name)


async def test_an_orphan_is_ended_before_the_new_attempt_starts(project: Project, start: Start) -> None:
    project.loop("a", "echo first >> steps", _hanging("a"), "echo last >> steps")
    process = start("a")
    await appears(project.file("pid-of-a"))
    _kill(process)
    before = _stored(project, "a")
    left = project.left_alive(before.run_id)
    assert left
    assert all(procs.is_alive(one) for one in left)
    assert (before.status, before.is_alive, before.is_resumable) == ("interrupted", False, True)

    assert await _resume_all(project) == {"a": "completed"}
    assert project.lines("twins") == []
    assert project.lines("tries") == ["one", "two"]
    assert project.lines("steps") == ["first", "last"]
    assert not any(procs.is_alive(one) for one in left)
    records = project.records(before.run_id)
    assert [record.get("attempt", 1) for record in only(records, "state_enter")] == [1, 1, 2, 1]
    order = names(records)
    assert order.index("run_claimed") < order.index("swept") < order.index("run_resumed")
    assert [record["seq"] for record in records] == list(range(1, len(records) + 1))
    assert project.lock_files() == []


async def test_an_orphan_that_left_its_session_is_ended_too(project: Project, start: Start) -> None:
    project.loop("a", "test -e begun && exit; setsid sleep 60 & echo $! > child; sleep 0.1; touch begun; wait")
    process = start("a")
    await appears(project.file("begun"))
    daemon = procs.identity_of(int(project.lines("child")[0]))
    assert daemon is not None
    _kill(process)
    assert procs.is_alive(daemon)
    assert await _resume_all(project) == {"a": "completed"}
    assert not procs.is_alive(daemon)


async def test_all_that_was_cut_off_goes_on_and_nothing_that_had_ended(project: Project, start: Start) -> None:
    """Of one batch: one has ended, one is in its action, one waits for that one, one waits for nothing any more."""
    project.loop("ended", "echo ended >> steps")
    project.loop("busy", "echo busy >> steps", _hanging("busy"), scope="src")
    project.loop("queued", "echo queued >> steps", scope="src")
    project.loop("failing", "exit 1")
    process = start("ended", "failing", "busy", "queued")
    await appears(project.file("pid-of-busy"))
    await eventually(lambda: _stored(project, "ended").is_over and _stored(project, "failing").is_over)
    _kill(process)
    assert _stored(project, "queued").status == "interrupted"
    assert await _resume_all(project) == {"busy": "completed", "queued": "completed"}
    assert project.lines("steps") == ["ended", "busy", "queued"]
    with pytest.raises(NotFoundError, match="nothing to resume"):
        await _resume_all(project)


async def test_input_context_and_overrides_survive(project: Project, start: Start) -> None:
    project.loop(
        "a",
        "test -e begun || { touch begun; sleep 60; }",
        'echo "${context.input} ${context.who}" > said',
        head="context:\n  who: nobody\nrequired_inputs: [input]\n",
    )
    process = start("a", input="hello", context={"who": "me"}, max_steps=5)
    await appears(project.file("begun"))
    _kill(process)
    async with Session(project.folder, grace=1) as session:
        [run] = api.resume(session)
        assert run.loop.max_steps == 5
    assert project.lines("said") == ["hello me"]


async def test_a_run_that_was_killed_while_it_waited_keeps_its_overrides(project: Project, start: Start) -> None:
    project.loop("long", "touch begun; sleep 60", scope="src")
    project.loop("a", "echo ran >> steps", "echo ran >> steps", scope="src")
    process = start("long", "a", max_steps=1)
    await appears(project.file("begun"))
    _kill(process)
    async with Session(project.folder, grace=1) as session:
        result = await session.resume(_stored(project, "a")).wait()
        assert (result.terminated_by, result.resumable) == ("max_steps", True)
        with pytest.raises(RefusedError, match="step cap") as refused:
            session.resume(_stored(project, "a"))
        assert "--max-steps 2" in refused.value.hint
        assert (await session.resume(_stored(project, "a"), max_steps=9).wait()).status == "completed"
    assert project.lines("steps") == ["ran", "ran"]


async def test_a_killed_run_leaves_no_lock_that_counts(project: Project, start: Start) -> None:
    project.loop("a", _hanging("a"), scope="src")
    project.loop("b", "touch ran", scope="src")
    process = start("a")
    await appears(project.file("pid-of-a"))
    _kill(process)
    async with Session(project.folder) as session:
        assert (await session.start("b", queue=False).wait()).status == "completed"


# --- only once ---------------------------------------------------------------------------------------------


async def test_a_run_cannot_be_resumed_twice_at_a_time(project: Project, start: Start) -> None:
    waiting = "touch again; until test -e go; do sleep 0.01; done"
    project.loop("a", f"test -e begun && {{ {waiting}; exit; }}; touch begun; sleep 60")
    process = start("a")
    await appears(project.file("begun"))
    with pytest.raises(RefusedError, match=f"still running .process {process.pid}"):
        async with Session(project.folder) as session:
            session.resume(_stored(project, "a"))
    _kill(process)
    stored = _stored(project, "a")
    async with Session(project.folder, grace=1) as one, Session(project.folder, grace=1) as two:
        run = one.resume(stored)
        with pytest.raises(RefusedError, match="in use") as refused:
            two.resume(stored)  # read before the other took it over
        assert refused.value.exit_code == 75
        await appears(project.file("again"))
        with pytest.raises(RefusedError):
            two.resume(_stored(project, "a"))
        project.file("go").touch()
        await run.wait()
        with pytest.raises(RefusedError, match="taken over"):
            two.resume(stored)
    assert run.status == "completed"
    with pytest.raises(RefusedError, match="nothing to resume"):
        async with Session(project.folder) as session:
            session.resume(_stored(project, "a"))


async def test_a_resumed_run_that_waits_is_nobody_elses(project: Project, start: Start) -> None:
    project.loop("a", _hanging("a"), scope="src")
    project.loop("b", "until test -e go; do sleep 0.01; done", scope="src")
    process = start("a")
    await appears(project.file("pid-of-a"))
    _kill(process)
    async with Session(project.folder, grace=1) as one:
        holder = one.start("b")
        run = one.resume(_stored(project, "a"))
        await eventually(lambda: run.waits_for)
        stored = _stored(project, "a")
        assert (stored.status, stored.owner.pid) == ("queued", os.getpid())
        command = [sys.executable, "-c", RUNNER.replace("(session)", "(session, 'a')"), str(project.folder), "{}"]
        other = await anyio.run_process(command, check=False)
        assert other.returncode == 1
        assert b"still running" in other.stderr
        project.file("go").touch()
    assert (holder.status, run.status) == ("completed", "completed")


async def test_a_batch_is_resumed_as_a_whole_or_not_at_all(project: Project, start: Start) -> None:
    project.loop("a", _hanging("a"))
    project.loop("b", _hanging("b"))
    process = start("a", "b")
    await appears(project.file("pid-of-a"))
    await appears(project.file("pid-of-b"))
    _kill(process)
    text = (project.loops / "b.yaml").read_text()
    (project.loops / "b.yaml").write_text(text.replace("s1", "other"))
    async with Session(project.folder, grace=1) as session:
        with pytest.raises(ReplayError, match=r"b\.yaml was changed") as raised:
            api.resume(session)
        assert session.handles == []
    assert "other, done" in raised.value.hint
    assert raised.value.exit_code == 65
    (project.loops / "b.yaml").write_text(text)
    assert await _resume_all(project) == {"a": "completed", "b": "completed"}


# --- damage ------------------------------------------------------------------------------------------------


async def test_a_torn_last_line_is_cut_off_and_the_run_goes_on(project: Project, start: Start) -> None:
    project.loop("a", "echo first >> steps", _hanging("a"))
    process = start("a")
    await appears(project.file("pid-of-a"))
    _kill(process)
    path = _stored(project, "a").folder / journal.NAME
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert await _resume_all(project) == {"a": "completed"}
    text = journal.read(path)
    [repaired] = only(list(text.records), "journal_repaired")
    assert repaired["bytes"] == len(whole[:-7]) - whole.rindex(b"\n", 0, -1) - 1
    assert text.torn == 0
    assert project.lines("steps") == ["first"]


async def test_a_journal_damaged_in_the_middle_is_refused_and_left_as_it_is(project: Project, start: Start) -> None:
    project.loop("a", "echo first >> steps", _hanging("a"))
    process = start("a")
    await appears(project.file("pid-of-a"))
    _kill(process)
    stored = _stored(project, "a")
    path = stored.folder / journal.NAME
    whole = path.read_bytes()
    damaged = whole.replace(b'"event":"route"', b'"event":"rouge"')
    path.write_bytes(damaged)
    with pytest.raises(StorageError, match=r"record \d+ is damaged") as raised:
        recovery.find_run(project.runs, stored.run_id)
    assert raised.value.exit_code == 74
    assert str(path) in str(raised.value)
    assert path.read_bytes() == damaged
    assert [run.run_id for run in api.history(project.folder)] == [stored.run_id]
    async with Session(project.folder, grace=1) as session:
        with pytest.raises(StorageError):
            api.resume(session, stored.run_id)
        with pytest.raises(NotFoundError):
            api.resume(session)
    path.write_bytes(whole)
    assert await _resume_all(project) == {"a": "completed"}


# --- any moment --------------------------------------------------------------------------------------------

STEPS = 6


def test_killed_again_and_again_at_any_moment_every_step_is_made(project: Project, start: Start) -> None:
    """Each step appends its number. What was cut off may run again, what was recorded as done may not."""
    chance = Random(os.environ.get("CRASH_SEED", "7"))
    actions = [f"sleep 0.02; echo {number} >> steps; sleep 0.02" for number in range(STEPS)]
    project.loop("a", *actions, scope="src")
    project.loop("b", *[action.replace("steps", "others") for action in actions], scope="src")
    process = start("a", "b")
    kills = 0
    while kills < 40:
        with suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0, 0.25))
        _kill(process)
        if all(run.is_over for run in api.history(project.folder)):
            break
        kills += 1
        process = start()
    assert kills >= 3
    for loop, file in (("a", "steps"), ("b", "others")):
        run = _stored(project, loop)
        assert run.status == "completed"
        attempts = [one.get("attempt", 1) for one in only(project.records(run.run_id), "state_enter")]
        done = only(project.records(run.run_id), "action_complete")
        assert [record["state"] for record in done] == [f"s{number}" for number in range(1, STEPS + 1)]
        made = [int(line) for line in project.lines(file)]
        assert made == sorted(made)
        assert set(made) == set(range(STEPS))
        assert len(made) <= len(attempts)


async def test_the_log_of_a_resumed_run_keeps_what_was_said_before(project: Project) -> None:
    project.loop("a", "echo said; test -e go && exit; touch begun; sleep 30")
    async with Session(project.folder, grace=1) as session:
        run = session.start("a")
        await appears(project.file("begun"))
        run.cancel()
    project.file("go").touch()
    async with Session(project.folder) as session:
        session.resume(recovery.open_run(project.runs, run.run_id))
    assert (run.folder / "output.log").read_text().splitlines() == ["said", "said"]
