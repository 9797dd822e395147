"""The session: order, isolation, and what is left when runs end, whoever or whatever ends them."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint

from ll_loop.errors import CannotCreateError, NotFoundError, RefusedError, UsageError
from ll_loop.run.bus import Record
from ll_loop.run.handle import RunHandle
from ll_loop.run.journals import recovery
from ll_loop.run.journals.request import RunResult
from ll_loop.run.locking.locks import Ticket
from ll_loop.run.performing.perform import Actions
from ll_loop.run.session import Session
from projects import LIMIT, Project, appears, eventually, names, only


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


async def _results(*handles: RunHandle) -> list[RunResult]:
    with anyio.fail_after(LIMIT):
        return [await handle.wait() for handle in handles]


# --- order -------------------------------------------------------------------------------------------------


async def test_overlapping_scopes_take_turns_in_the_order_of_starting(project: Project) -> None:
    for name in "abcd":
        project.loop(name, f"echo in-{name} >> order; sleep 0.02; echo out-{name} >> order", scope="src")
    async with Session(project.folder) as session:
        handles = [session.start(name) for name in "cadb"]
        assert [result.status for result in await _results(*handles)] == ["completed"] * 4
    assert project.lines("order") == [f"{way}-{name}" for name in "cadb" for way in ("in", "out")]


async def test_disjoint_scopes_overlap_in_time(project: Project) -> None:
    """Each waits for the other's file, so neither could end if they took turns."""
    project.loop("a", "touch a; until test -e b; do sleep 0.01; done")
    project.loop("b", "touch b; until test -e a; do sleep 0.01; done")
    async with Session(project.folder) as session:
        results = await _results(session.start("a"), session.start("b"))
    assert [result.exit_code for result in results] == [0, 0]


async def test_six_starts_of_one_loop_at_once_are_six_runs(project: Project) -> None:
    project.loop("same", 'echo "$LL_LOOP_RUN_ID" >> ids; echo x > "${context.run_dir}mine"')
    async with Session(project.folder) as session:
        results = await _results(*[session.start("same", lock=False) for _ in range(6)])
    ids = {result.run_id for result in results}
    assert [result.status for result in results] == ["completed"] * 6
    assert len(ids) == 6
    assert set(project.lines("ids")) == ids
    assert {folder.name for folder in project.run_folders()} == ids
    assert all((Path(result.run_dir) / "mine").is_file() for result in results)


async def test_no_more_runs_than_jobs_at_a_time(project: Project) -> None:
    count = "echo + >> load; sleep 0.03; echo - >> load"
    async with Session(project.folder, jobs=2) as session:
        await _results(*[session.start(project.loop(f"l{number}", count)) for number in range(6)])
    load = most = 0
    for line in project.lines("load"):
        load += 1 if line == "+" else -1
        most = max(most, load)
    assert most == 2


FEW_FILES = """
import resource, sys, anyio
from ll_loop.api import Session
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
async def main():
    async with Session(sys.argv[1]) as session:
        handles = [session.start("a", input=f"p{number}", lock=False) for number in range(30)]
    print({handle.status for handle in handles})
anyio.run(main)
"""


async def test_where_files_are_few_runs_wait_for_one_another_instead_of_failing(project: Project) -> None:
    project.loop("a", "sleep 0.1", route="on_yes")
    done = await anyio.run_process([sys.executable, "-c", FEW_FILES, str(project.folder)])
    assert done.stdout == b"{'completed'}\n"


async def test_with_one_job_runs_go_in_the_order_given(project: Project) -> None:
    loops = [project.loop(f"l{number}", f"echo {number} >> order") for number in range(8)]
    async with Session(project.folder, jobs=1) as session:
        await _results(*[session.start(name) for name in loops])
    assert project.lines("order") == [str(number) for number in range(8)]


async def test_a_held_scope_refuses_a_run_that_may_not_queue(project: Project) -> None:
    project.loop("long", "touch begun; sleep 30", scope="src")
    project.loop("other", "true", scope="src/deep")
    async with Session(project.folder, grace=1) as session:
        holder = session.start("long")
        await appears(project.file("begun"))
        with pytest.raises(RefusedError, match=holder.run_id) as refused:
            session.start("other", queue=False)
        assert refused.value.exit_code == 75
        assert [folder.name for folder in project.run_folders()] == [holder.run_id]
        holder.cancel()


async def test_a_queue_timeout_is_an_ending_and_leaves_no_folder(project: Project) -> None:
    project.loop("long", "touch begun; sleep 30", scope="src")
    project.loop("other", "true", scope="src")
    async with Session(project.folder, grace=1) as session:
        holder = session.start("long")
        await appears(project.file("begun"))
        [result] = await _results(session.start("other", queue_timeout=0.05))
        assert (result.status, result.exit_code, result.resumable) == ("refused", 75, False)
        assert "within 0.05 s" in (result.error or "")
        assert [folder.name for folder in project.run_folders()] == [holder.run_id]
        holder.cancel()


async def test_of_a_long_line_those_who_are_next_are_named(project: Project) -> None:
    project.loop("a", "until test -e go; do sleep 0.01; done", scope="src")
    async with Session(project.folder) as session:
        handles = [session.start("a") for _ in range(30)]
        await eventually(lambda: handles[-1].waits_for)
        first = [handle.run_id for handle in handles[:3]]
        assert handles[-1].waits_for == ", ".join([*first, "and others"])
        assert handles[2].waits_for == ", ".join(first[:2])
        project.file("go").touch()


async def test_what_an_action_did_is_on_the_disk_before_the_run_sleeps(project: Project) -> None:
    project.loop("a", "touch ran", "true", head="backoff: 30\n")
    async with Session(project.folder) as session:
        run = session.start("a")
        async for record in run.events():
            if record["event"] == "action_complete":
                break
        await eventually(lambda: not run.journal.unsynced)
        run.cancel()


async def test_another_session_waits_for_the_scope_of_this_one(project: Project) -> None:
    project.loop("long", "touch begun; until test -e go; do sleep 0.01; done; echo long >> order", scope="src")
    project.loop("other", "echo other >> order", scope="src")
    async with Session(project.folder) as one, Session(project.folder) as two:
        first = one.start("long")
        await appears(project.file("begun"))
        refused = await two.start("other", queue=False).wait()
        assert (refused.status, refused.exit_code) == ("refused", 75)
        second = two.start("other")
        await eventually(lambda: second.waits_for)
        assert str(os.getpid()) in second.waits_for
        project.file("go").touch()
        await _results(first, second)
    assert project.lines("order") == ["long", "other"]
    assert len(project.run_folders()) == 2


async def test_sessions_get_a_scope_in_the_order_in_which_they_asked(project: Project) -> None:
    project.loop("long", "touch begun; until test -e go; do sleep 0.01; done", scope="src")
    for name in "bcd":
        project.loop(name, f"echo {name} >> order", scope="src")
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(Session(project.folder)) for _ in range(4)]
        sessions[0].start("long")
        await appears(project.file("begun"))
        runs: list[RunHandle] = []
        for name, session in zip("bcd", sessions[1:], strict=True):
            runs.append(session.start(name))
            await eventually(lambda: all(run.waits_for for run in runs))
        project.file("go").touch()
    assert project.lines("order") == ["b", "c", "d"]
    assert sorted(path.name for path in project.locks.iterdir()) == [".acquire.lock"]


async def test_all_runs_of_two_sessions_go_in_the_order_of_asking(project: Project) -> None:
    project.loop("long", "touch begun; until test -e go; do sleep 0.01; done", scope="src")
    for name in "bcdef":
        project.loop(name, f"echo {name} >> order", scope="src")
    async with Session(project.folder) as one, Session(project.folder) as two:
        one.start("long")
        await appears(project.file("begun"))
        runs: list[RunHandle] = []
        for name, session in zip("bcdef", (one, two, one, one, two), strict=True):
            runs.append(session.start(name))
            await eventually(lambda: all(run.waits_for for run in runs))
        project.file("go").touch()
    assert project.lines("order") == list("bcdef")


async def test_a_scope_given_back_goes_to_the_next_though_its_turn_was_cancelled(project: Project) -> None:
    project.loop("a", "touch begun; sleep 30", scope="src")
    project.loop("b", "true", scope="src")
    async with Session(project.folder, grace=1) as session:
        first, second, third = session.start("a"), session.start("b"), session.start("b")
        await appears(project.file("begun"))
        first.cancel()
        await first.wait()
        second.cancel()  # it was granted in this very moment
        results = await _results(second, third)
    assert results[1].status == "completed"


# --- isolation ---------------------------------------------------------------------------------------------


async def test_a_defect_in_one_run_is_its_own_ending(project: Project) -> None:
    project.loop("good", "until test -e go; do sleep 0.01; done")
    project.loop("bad", "true")
    async with Session(project.folder) as session:
        good, bad = session.start("good"), session.start("bad")

        def defect(record: Record) -> None:
            if record["event"] == "state_enter" and record["run_id"] == bad.run_id:
                raise ValueError("a defect")

        session.bus.listen(defect)
        [result] = await _results(bad)
        assert (result.status, result.terminated_by, result.exit_code) == ("failed", "internal_error", 70)
        assert result.error == "ValueError: a defect"
        assert "a defect" in (bad.folder / "internal-error.log").read_text()
        project.file("go").touch()
        [other] = await _results(good)
    assert other.status == "completed"
    assert only(project.records(bad.run_id), "loop_complete")[-1]["terminated_by"] == "internal_error"
    assert project.lock_files() == []


async def test_a_folder_that_cannot_be_written_ends_that_run_alone(project: Project) -> None:
    project.loop("good", "until test -e go; do sleep 0.01; done")
    project.loop("bad", "rm -r .loops/runs/*-bad-*; touch gone; sleep 0.1; echo hi")
    async with Session(project.folder) as session:
        good, bad = session.start("good"), session.start("bad")
        [result] = await _results(bad)
        project.file("go").touch()
        [other] = await _results(good)
    assert other.status == "completed"
    assert result.exit_code == 73
    assert "cannot create" in (result.error or "")
    assert project.lock_files() == []


async def test_a_run_that_cannot_be_written_down_keeps_no_scope(project: Project) -> None:
    project.loop("a", "true", scope="src")
    project.runs.write_text("a file where a folder must be")
    async with Session(project.folder) as session:
        with pytest.raises(CannotCreateError):
            session.start("a")
        project.runs.unlink()
        [result] = await _results(session.start("a"))
    assert result.status == "completed"


async def test_a_session_must_be_entered_before_it_starts_runs(project: Project) -> None:
    project.loop("a", "true")
    with pytest.raises(RuntimeError, match="entered"):
        Session(project.folder).start("a")
    assert project.run_folders() == []


async def test_what_is_wrong_with_a_start_is_raised_before_anything_happens(project: Project) -> None:
    project.loop("a", "true")
    async with Session(project.folder) as session:
        with pytest.raises(NotFoundError, match="nowhere"):
            session.start("nowhere")
        for name, scope in (("unknown", "${context.nobody}"), ("empty", "${context.input}")):
            project.loop(name, "true", scope=f'"{scope}"')
        with pytest.raises(NotFoundError, match="the scope of unknown cannot be filled in"):
            session.start("unknown")
        with pytest.raises(UsageError, match="is not a path"):
            session.start("empty", input=" ")
        with pytest.raises(UsageError):
            session.start("a", max_steps=0)
        with pytest.raises(UsageError):
            session.start("a", delay=-1)
        with pytest.raises(UsageError):
            session.start("a", queue_timeout=-1)
        refused = await session.start("a", worktree=True).wait()
        assert (refused.status, refused.exit_code) == ("refused", 64), "there is no repository"
    assert project.run_folders() == []


# --- cancelling --------------------------------------------------------------------------------------------


UNTIL = 'echo "$LL_LOOP_RUN_ID" >> tries; touch begun; test -e go || sleep 30'


async def _while_queued(project: Project, session: Session) -> RunHandle:
    project.loop("holder", "touch held; until test -e go; do sleep 0.01; done", scope="src")
    project.loop("it", "echo ran >> tries", scope="src")
    holder = session.start("holder")
    run = session.start("it")
    await appears(project.file("held"))
    run.cancel()
    await run.wait()
    project.file("go").touch()
    await holder.wait()
    return run


async def _at_once(project: Project, session: Session) -> RunHandle:
    project.loop("it", "echo ran >> tries")
    run = session.start("it")
    run.cancel()
    return run


async def _while_claiming(project: Project, session: Session) -> RunHandle:
    project.loop("it", "echo ran >> tries")
    run = session.start("it")
    for _ in range(2):  # the claim is in a thread by now
        await checkpoint()
    run.cancel()
    return run


async def _before_the_first_state(project: Project, session: Session) -> RunHandle:
    project.loop("it", "echo ran >> tries")
    run = session.start("it")
    session.bus.listen(lambda record: run.cancel() if record["event"] == "run_started" else None)
    return run


async def _in_an_action(project: Project, session: Session) -> RunHandle:
    project.loop("it", UNTIL)
    run = session.start("it")
    await appears(project.file("begun"))
    run.cancel()
    return run


async def _in_the_action_of_a_sub_loop(project: Project, session: Session) -> RunHandle:
    project.loop("child", UNTIL, scope="elsewhere")
    (project.loops / "it.yaml").write_text(
        "name: it\ninitial: s1\nscope: [it]\nstates:\n  s1:\n    loop: child\n    on_yes: done\n    on_no: done\n"
        "  done:\n    terminal: true\n"
    )
    run = session.start("it")
    await appears(project.file("begun"))
    run.cancel()
    return run


async def _in_backoff(project: Project, session: Session) -> RunHandle:
    project.loop("it", "echo ran >> tries", "echo ran >> tries", head="backoff: 0.3\n")
    run = session.start("it")
    await eventually(lambda: run.run is not None and run.run.after == "backoff")
    run.cancel()
    return run


Moment = Callable[[Project, Session], Awaitable[RunHandle]]
MOMENTS: list[Moment] = [
    _while_queued,
    _at_once,
    _while_claiming,
    _before_the_first_state,
    _in_an_action,
    _in_the_action_of_a_sub_loop,
    _in_backoff,
]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__.strip("_"))
async def test_a_run_can_be_cancelled_at_any_moment_and_resumed(project: Project, moment: Moment) -> None:
    with anyio.fail_after(LIMIT):
        async with Session(project.folder, grace=1) as session:
            run = await moment(project, session)
            result = await run.wait()
            assert (result.status, result.exit_code, result.resumable) == ("interrupted", 130, True)
    assert project.lock_files() == []
    assert project.left_alive(run.run_id) == []
    assert names(project.records(run.run_id))[-1] in ("run_withdrawn", "loop_complete")
    stored = recovery.open_run(project.runs, run.run_id)
    assert (stored.status, stored.is_alive, stored.is_resumable) == ("interrupted", False, True)
    project.file("go").touch()
    with anyio.fail_after(LIMIT):
        async with Session(project.folder, grace=1) as session:
            assert (await session.resume(stored).wait()).status == "completed"
    assert 1 <= len(project.lines("tries")) <= 2


async def test_cancelling_twice_is_once(project: Project) -> None:
    project.loop("a", UNTIL)
    async with Session(project.folder, grace=1) as session:
        run = session.start("a")
        await appears(project.file("begun"))
        run.cancel("user_stopped")
        run.cancel("interrupted", signal.SIGTERM)
        [result] = await _results(run)
        run.cancel()
    assert (result.status, result.terminated_by, result.exit_code) == ("user_stopped", "user_stopped", 1)
    assert await run.wait() == result


async def test_an_outer_cancellation_ends_all_runs_and_goes_on(project: Project) -> None:
    for name in "ab":
        project.loop(name, f"touch begun-{name}; sleep 30 & sleep 30", scope=name)
    project.loop("c", "true", scope="a")
    handles: list[RunHandle] = []
    with anyio.CancelScope() as outer:
        async with Session(project.folder, grace=1) as session:
            handles += [session.start(name) for name in "abc"]
            for name in "ab":
                await appears(project.file(f"begun-{name}"))
            outer.cancel()
    assert outer.cancelled_caught
    assert [handle.status for handle in handles] == ["interrupted"] * 3
    for handle in handles:
        assert project.left_alive(handle.run_id) == []
        assert recovery.open_run(project.runs, handle.run_id).is_resumable
    assert project.lock_files() == []


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
async def test_an_exception_in_the_block_ends_the_runs_and_comes_out_as_it_is(
    project: Project, error: BaseException
) -> None:
    project.loop("a", UNTIL)
    handles: list[RunHandle] = []

    async def fail() -> None:
        async with Session(project.folder, grace=1) as session:
            handles.append(session.start("a"))
            await appears(project.file("begun"))
            raise error

    with pytest.raises(type(error)) as raised:
        await fail()
    assert raised.value is error
    assert handles[0].status == "interrupted"
    assert project.left_alive(handles[0].run_id) == []
    assert project.lock_files() == []


async def test_leaving_the_block_waits_for_the_runs(project: Project) -> None:
    project.loop("a", "sleep 0.05; touch done")
    async with Session(project.folder) as session:
        run = session.start("a")
    assert run.status == "completed"
    assert project.file("done").exists()


async def test_what_is_started_after_a_shut_down_ends_at_once_and_can_be_resumed(project: Project) -> None:
    project.loop("a", "touch ran")
    async with Session(project.folder) as session:
        session.shut_down(signal.SIGTERM)
        assert session.is_ending
        [result] = await _results(session.start("a"))
    assert (result.status, result.exit_code, result.resumable) == ("interrupted", 143, True)
    assert not project.file("ran").exists()
    assert only(project.records(result.run_id), "run_withdrawn")[0]["signal"] == signal.SIGTERM


async def test_a_child_that_ignores_the_end_is_killed_after_the_grace(project: Project) -> None:
    project.loop("a", "trap '' TERM; touch begun; sleep 30 & wait; sleep 30")
    async with Session(project.folder, grace=0.2) as session:
        run = session.start("a")
        await appears(project.file("begun"))
        run.cancel()
        begun = anyio.current_time()
        await _results(run)
        assert 0.15 < anyio.current_time() - begun < 1.2
    assert project.left_alive(run.run_id) == []


async def test_a_second_shut_down_has_no_patience(project: Project) -> None:
    project.loop("a", "trap '' TERM; touch begun; sleep 30 & wait; sleep 30")
    async with Session(project.folder, grace=60) as session:
        run = session.start("a")
        await appears(project.file("begun"))
        session.shut_down(signal.SIGINT)
        with anyio.move_on_after(0.1):
            await run.wait()
        assert run.result is None
        session.shut_down(signal.SIGTERM)
        [result] = await _results(run)
    assert result.exit_code == 130  # the first signal counts
    assert project.left_alive(run.run_id) == []


# --- readers -----------------------------------------------------------------------------------------------


async def test_a_late_reader_gets_a_snapshot_and_then_every_record(project: Project) -> None:
    project.loop("a", "echo early", "touch begun; until test -e go; do sleep 0.01; done; echo late", "true")
    async with Session(project.folder) as session:
        run = session.start("a")
        await appears(project.file("begun"))
        await eventually(lambda: run.run is not None and run.run.root.state == "s2")
        seen = names(project.records(run.run_id))
        reader = run.events()
        project.file("go").touch()
        with anyio.fail_after(LIMIT):
            heard = [record async for record in reader]
    assert heard[0]["event"] == "snapshot"
    assert heard[0]["state"]["current_state"] == "s2"
    written = project.records(run.run_id)
    assert [dict(record) for record in heard[1:]] == written[len(seen) :]
    assert written[-1]["event"] == "loop_complete"
    assert [record["seq"] for record in written] == list(range(1, len(written) + 1))


async def test_a_reader_of_all_runs_ends_with_the_session(project: Project) -> None:
    loops = [project.loop(name, "true") for name in "ab"]
    async with Session(project.folder) as session:
        reader = session.reader()
        handles = [session.start(name) for name in loops]
    heard = [record async for record in reader]
    for handle in handles:
        assert [dict(one) for one in heard if one["run_id"] == handle.run_id] == project.records(handle.run_id)


async def test_the_events_of_a_run_that_is_over_end_at_once(project: Project) -> None:
    project.loop("a", "true")
    async with Session(project.folder) as session:
        run = session.start("a")
        await run.wait()
        with anyio.fail_after(LIMIT):
            assert [record["event"] async for record in run.events()] == ["snapshot"]


async def test_a_reader_that_does_not_read_loses_records_and_knows_how_many(project: Project) -> None:
    project.loop("a", "seq 100")
    async with Session(project.folder) as session:
        reader = session.bus.subscribe([], size=10)
        run = session.start("a")
    heard = [record async for record in reader]
    written = project.records(run.run_id)
    assert [dict(record) for record in heard] == written[:10]
    assert reader.dropped == len(written) - 10 > 90
    assert len(only(written, "action_output")) == 100


async def test_ten_thousand_lines_are_all_told_in_their_order_and_in_the_log(project: Project) -> None:
    project.loop("a", "seq 10000")
    async with Session(project.folder) as session:
        with anyio.fail_after(LIMIT):
            result = await session.start("a").wait()
    records = project.records(result.run_id)
    assert [record["line"] for record in only(records, "action_output")] == [str(n) for n in range(1, 10_001)]
    assert [record["seq"] for record in records] == list(range(1, len(records) + 1))
    log = project.runs / result.run_id / "output.log"
    assert log.read_text().split() == [str(n) for n in range(1, 10_001)]


async def test_of_a_run_that_is_over_little_stays_in_memory(project: Project) -> None:
    project.loop("a", "true")
    async with Session(project.folder) as session:
        runs = [session.start("a") for _ in range(3)]
        await _results(*runs)
        gc.collect()
        kept = [type(one).__name__ for one in gc.get_objects() if isinstance(one, Actions | Ticket)]
        assert (kept, [run.status for run in runs]) == ([], ["completed"] * 3)


# --- at home anywhere --------------------------------------------------------------------------------------


def _world() -> tuple[object, ...]:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)]
    return os.getcwd(), dict(os.environ), handlers, threading.active_count() < 1000


async def test_working_directory_environment_and_signal_handlers_stay(project: Project) -> None:
    project.loop("a", "cd /; export MINE=1; kill -TERM $$")
    before = _world()
    inside: list[object] = []
    async with Session(project.folder) as session:
        session.bus.listen(lambda _: inside.append(_world()))
        run = session.start("a")
    assert run.result is not None
    assert run.result.terminated_by == "system_signal"
    assert len(inside) > 5
    assert all(world == before for world in inside)
    assert _world() == before


async def test_two_sessions_after_each_other_and_at_the_same_time(project: Project) -> None:
    project.loop("a", "true")
    for _ in range(2):
        async with Session(project.folder) as session:
            assert (await session.start("a").wait()).ok
    async with Session(project.folder) as one, Session(project.folder) as two:
        assert [result.ok for result in await _results(one.start("a"), two.start("a"))] == [True, True]
    assert len(project.run_folders()) == 4


async def test_a_run_has_a_worktree_of_its_own(project: Project) -> None:
    project.loop("a", "touch begun-${context.input}; pwd > where", scope=".")
    identity = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    for command in ("init -q", "add .", "commit -q -m start"):
        await anyio.run_process(["git", *command.split()], cwd=project.folder, env={**os.environ, **identity})
    async with Session(project.folder, env={**os.environ, **identity}) as session:
        handles = [session.start("a", input=text, worktree=True) for text in ("x", "y")]
        results = await _results(*handles)
    assert [result.status for result in results] == ["completed", "completed"]
    assert len({result.worktree["path"] for result in results}) == 2
    assert [result.worktree["kept"] for result in results] == [True, True]  # they left files behind
    assert not project.file("where").exists()


# --- an interrupted action, nested calls -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "status", "steps"),
    [("rerun", "completed", ["one", "one", "two"]), ("skip", "completed", ["one", "two"]), ("fail", "failed", ["one"])],
)
async def test_a_state_says_what_becomes_of_its_interrupted_action(
    project: Project, rule: str, status: str, steps: list[str]
) -> None:
    project.loop("a", "echo one >> steps; test -e begun || { touch begun; sleep 30; }", "echo two >> steps")
    path = project.loops / "a.yaml"
    path.write_text(path.read_text().replace("    next: s2\n", f"    next: s2\n    on_resume: {rule}\n"))
    async with Session(project.folder, grace=1) as session:
        run = session.start("a")
        await appears(project.file("begun"))
        run.cancel()
    async with Session(project.folder, grace=1) as session:
        [result] = await _results(session.resume(recovery.open_run(project.runs, run.run_id)))
    assert result.status == status
    assert project.lines("steps") == steps


NESTED = """
import sys, anyio
from ll_loop.api import Session
async def main():
    async with Session(sys.argv[1]) as session:
        return (await session.start("inner", queue=False).wait()).exit_code
sys.exit(anyio.run(main))
"""


async def test_what_an_action_starts_shares_the_scope_of_its_run_and_others_do_not(project: Project) -> None:
    project.file("nested.py").write_text(NESTED)
    project.loop("outer", f"{sys.executable} nested.py {project.folder} && touch shared", scope="src")
    project.loop("inner", "echo inner >> order; touch inside; until test -e go; do sleep 0.01; done", scope="src/deep")
    project.loop("stranger", "echo stranger >> order", scope="src")
    async with Session(project.folder) as session, Session(project.folder) as other:
        outer = session.start("outer")
        await appears(project.file("inside"))
        assert (await other.start("stranger", queue=False).wait()).status == "refused"
        stranger = other.start("stranger")
        await eventually(lambda: stranger.waits_for)
        project.file("go").touch()
        assert [result.status for result in await _results(outer, stranger)] == ["completed", "completed"]
    assert project.file("shared").exists()
    assert project.lines("order") == ["inner", "stranger"]
