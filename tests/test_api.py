"""The API as a program, a thread and a notebook use it."""

from __future__ import annotations

import asyncio
import datetime
import math
import signal
import sys
import threading
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
import trio

import ll_loop
from ll_loop import api
from ll_loop.errors import DefinitionError, NotFoundError, RefusedError, UsageError
from projects import LIMIT, Project, appears, eventually


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


# --- ways out ----------------------------------------------------------------------------------------------


def test_what_is_raised_under_signals_comes_out_as_it_is(project: Project) -> None:
    async def main() -> None:
        async with api.Session(project.folder) as session, api.signals(session):
            raise KeyError("mine")

    for backend in ("asyncio", "trio"):
        with pytest.raises(KeyError, match="mine"):
            anyio.run(main, backend=backend)


async def test_context_is_the_same_for_a_run_and_for_its_replay(project: Project) -> None:
    project.loop("a", "echo ${context.day} ${context.map.1} ${context.pair} >> said")
    context = {"day": datetime.date(2026, 11, 22), "map": {1: "one"}, "pair": ("x", 2), "nan": math.nan}
    async with api.Session(project.folder) as session:
        run = session.start("a", context=context)
        assert (await run.wait()).status == "completed"
    stored = api.find_run(project.runs, run.run_id)
    assert run.context == stored.created["context"]
    assert project.lines("said") == ["2026-11-22 one [x, 2]"]


# --- many runs ---------------------------------------------------------------------------------------------


async def test_run_many_gives_the_results_in_the_order_given(project: Project) -> None:
    project.loop("slow", "until test -e quick-was-here; do sleep 0.01; done")
    project.loop("quick", "touch quick-was-here")
    project.loop("wrong", "exit 3", route="on_yes")
    results = await api.run_many(["slow", api.Request("quick", input="x"), "wrong"], project=project.folder)
    assert [result.loop for result in results] == ["slow", "quick", "wrong"]
    assert [result.ok for result in results] == [True, True, False]
    assert [result.exit_code for result in results] == [0, 0, 1]
    assert results[2].terminated_by == "no_route"


async def test_run_many_finds_everything_wrong_before_it_starts_anything(project: Project) -> None:
    project.loop("good", "touch ran")
    (project.loops / "bad.yaml").write_text("name: bad\ninitial: nowhere\nstates:\n  done:\n    terminal: true\n")
    with pytest.raises(DefinitionError) as wrong:
        await api.run_many(["good", "bad"], project=project.folder)
    assert wrong.value.exit_code == 65
    with pytest.raises(NotFoundError) as missing:
        await api.run_many(["good", "nobody"], project=project.folder)
    assert missing.value.exit_code == 66
    with pytest.raises(UsageError):
        await api.run_many(["good"], project=project.folder, jobs=0)
    with pytest.raises(UsageError, match="as a list"):
        await api.run_many("good", project=project.folder)
    assert project.run_folders() == []
    assert not project.file("ran").exists()


async def test_run_many_of_nothing_is_nothing(project: Project) -> None:
    assert await api.run_many([], project=project.folder) == []


async def test_fail_fast_ends_the_others_and_they_can_be_resumed(project: Project) -> None:
    project.loop("bad", "until test -e begun; do sleep 0.01; done; exit 1", route="on_yes")
    project.loop("long", "test -e begun && exit; touch begun; sleep 30")
    with anyio.fail_after(LIMIT):
        bad, long = await api.run_many(["bad", "long"], project=project.folder, fail_fast=True, grace=1)
    assert (bad.terminated_by, long.terminated_by, long.resumable) == ("no_route", "interrupted", True)
    async with api.Session(project.folder) as session:
        [handle] = api.resume(session)
    assert (handle.run_id, handle.status) == (long.run_id, "completed")


async def test_a_run_that_takes_too_long_leaves_the_others_of_its_batch_alone(project: Project) -> None:
    project.loop("slow", "test -e go && exit; touch go; sleep 1.2", "true", head="timeout: 1\n")
    for name in "ab":
        project.loop(name, f"until test -e go; do sleep 0.01; done; echo {name} >> ran")
    with anyio.fail_after(LIMIT):
        results = await api.run_many(["a", "slow", "b"], project=project.folder, grace=1)
    assert [result.status for result in results] == ["completed", "timed_out", "completed"]
    async with api.Session(project.folder) as session:
        [again] = api.resume(session, failed=True)
    assert (again.loop.name, again.status) == ("slow", "completed")
    assert sorted(project.lines("ran")) == ["a", "b"]


async def test_cancelling_run_many_ends_all_and_they_can_be_resumed(project: Project) -> None:
    for name in "ab":
        project.loop(name, f"test -e begun-{name} && exit; touch begun-{name}; sleep 30")
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                await api.run_many(["a", "b"], project=project.folder, grace=1)

            tasks.start_soon(run)
            await appears(project.file("begun-a"))
            await appears(project.file("begun-b"))
            scope.cancel()
    assert [run.status for run in api.history(project.folder)] == ["interrupted", "interrupted"]
    assert project.lock_files() == []
    async with api.Session(project.folder) as session:
        handles = api.resume(session)
    assert [(handle.loop.name, handle.status) for handle in handles] == [("a", "completed"), ("b", "completed")]


# --- the past ----------------------------------------------------------------------------------------------


async def test_history_lists_the_newest_first_and_one_loop_alone(project: Project) -> None:
    for name in ("x", "y-x"):
        project.loop(name, "true")
    first = await api.run_many(["x"], project=project.folder)
    second = await api.run_many(["y-x", "x"], project=project.folder)
    ids = {result.run_id for result in (*first, *second)}
    assert {run.run_id for run in api.history(project.folder)} == ids
    assert [run.run_id for run in api.history(project.folder)][2] == first[0].run_id
    assert {run.run_id for run in api.history(project.folder, "x")} == {first[0].run_id, second[1].run_id}
    assert api.history(project.folder, "nobody") == []
    assert api.history(project.folder / "nowhere") == []


async def test_what_can_be_resumed_is_found_by_id_batch_or_name(project: Project) -> None:
    project.loop("a", "test -e go || sleep 30; echo a >> done")
    project.loop("b", "test -e go || sleep 30; echo b >> done")
    async with api.Session(project.folder, grace=1) as session:
        handles = [session.start(name) for name in ("a", "b", "b")]
        await eventually(lambda: all(handle.run for handle in handles[:2]))
        session.shut_down()
    project.file("go").touch()
    async with api.Session(project.folder) as session:
        assert [handle.run_id for handle in api.resume(session, handles[0].run_id[:-1])] == [handles[0].run_id]
    async with api.Session(project.folder) as session:
        assert [handle.loop.name for handle in api.resume(session, "b")] == ["b"]
    async with api.Session(project.folder) as session:
        batch = api.history(project.folder)[0].batch
        assert [handle.loop.name for handle in api.resume(session, batch)] == ["b"]
    assert sorted(project.lines("done")) == ["a", "b", "b"]
    async with api.Session(project.folder) as session:
        for wanted in (None, batch, "nobody"):
            with pytest.raises(NotFoundError):
                api.resume(session, wanted)
        with pytest.raises(RefusedError, match="has ended"):
            api.resume(session, "latest")


async def test_a_run_at_its_cap_does_not_keep_its_batch_from_being_resumed(project: Project) -> None:
    project.loop("capped", "true", "true", head="max_steps: 1\n")
    project.loop("long", "test -e begun && exit; touch begun; sleep 30")
    async with api.Session(project.folder, grace=1) as session:
        capped, long = session.start("capped"), session.start("long")
        await appears(project.file("begun"))
        await capped.wait()
        session.shut_down()
    async with api.Session(project.folder) as session:
        [handle] = api.resume(session)
    assert (handle.run_id, handle.status) == (long.run_id, "completed")
    async with api.Session(project.folder) as session:
        [handle] = api.resume(session, max_steps=5)
    assert (handle.run_id, handle.status) == (capped.run_id, "completed")


# --- anywhere ----------------------------------------------------------------------------------------------


def test_runs_in_a_thread_of_its_own(project: Project) -> None:
    """The only place where signals could not be handled, and nobody asks for it."""
    project.loop("a", "echo $PPID > parent")
    found: list[object] = []

    def work() -> None:
        for backend in ("asyncio", "trio"):
            found.extend(anyio.run(_run_one, project, backend=backend))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(LIMIT)
    assert found == ["completed", "completed"]


async def _run_one(project: Project) -> list[str]:
    return [result.status for result in await api.run_many(["a"], project=project.folder)]


def test_a_plain_asyncio_program_needs_no_anyio(project: Project) -> None:
    project.loop("a", "true")

    async def cell() -> list[str]:
        async with ll_loop.Session(project.folder) as session:
            handles = [session.start("a"), session.start("a")]
            results = await asyncio.gather(*(handle.wait() for handle in handles))
        return [result.status for result in results]

    assert asyncio.run(cell()) == ["completed", "completed"]


def test_a_plain_trio_program_needs_no_anyio(project: Project) -> None:
    project.loop("a", "true")

    async def cell() -> list[str]:
        async with ll_loop.Session(project.folder) as session:
            with trio.fail_after(LIMIT):
                return [(await session.start("a").wait()).status]

    assert trio.run(cell) == ["completed"]


def test_an_asyncio_program_may_cancel_its_own_task(project: Project) -> None:
    """`asyncio.timeout` cancels the task that holds the session, past anyio."""
    project.loop("a", "touch begun; sleep 30 & sleep 30")

    async def cell() -> None:
        async with asyncio.timeout(0.3):
            await api.run_many(["a"], project=project.folder, grace=1)

    with pytest.raises(TimeoutError):
        asyncio.run(cell())
    [run] = api.history(project.folder)
    assert (run.status, project.left_alive(run.run_id), project.lock_files()) == ("interrupted", [], [])


def test_a_notebook_starts_in_one_cell_and_looks_on_in_others(project: Project) -> None:
    """Each cell is a task of its own on one running loop."""
    project.loop("a", "touch begun; until test -e go; do sleep 0.01; done; echo here")

    async def start() -> asyncio.Task[list[ll_loop.RunResult]]:
        return asyncio.create_task(ll_loop.run_many(["a"], project=project.folder))

    async def look() -> tuple[str, list[str]]:
        await appears(project.file("begun"))
        [entry] = await api.status(project.folder)
        project.file("go").touch()
        async with api.follow(project.folder, "a") as batches:
            return entry["status"], [record["event"] async for records in batches for record in records]

    async def kernel() -> tuple[str, list[str], str]:
        batch = await asyncio.create_task(start())
        status, events = await asyncio.create_task(look())
        [result] = await batch
        return status, events, result.status

    status, events, ended = asyncio.run(kernel())
    assert (status, ended) == ("running", "completed")
    assert "action_output" in events


def test_a_session_is_not_left_by_another_task_but_says_so_and_lives_on(project: Project) -> None:
    project.loop("a", "true")

    async def kernel() -> str:
        async with ll_loop.Session(project.folder) as session:
            with pytest.raises(RuntimeError, match="in a notebook, within the same cell"):
                await asyncio.create_task(session.__aexit__(None, None, None))
            return (await session.start("a").wait()).status

    assert asyncio.run(kernel()) == "completed"


def test_a_program_without_an_event_loop_uses_a_portal(project: Project) -> None:
    project.loop("a", "true")
    with anyio.from_thread.start_blocking_portal("trio") as portal:
        [result] = portal.call(_run_one, project)
    assert result == "completed"


def test_the_package_offers_the_api_by_name() -> None:
    assert {name: getattr(ll_loop, name) for name in ll_loop.__all__} == {
        name: getattr(api, name) for name in ll_loop.__all__
    }
    with pytest.raises(AttributeError, match="nonsense"):
        _ = ll_loop.nonsense


# --- a notebook's interrupt --------------------------------------------------------------------------------

CELL = """
import asyncio, signal, sys
from ll_loop import run_many
async def main():
    cell = asyncio.create_task(run_many(["a"], project=sys.argv[1]))
    signal.signal(signal.SIGINT, lambda *_: cell.cancel())  # as a kernel does: nothing wakes the event loop
    try:
        await cell
    except asyncio.CancelledError:
        [result] = await run_many(["b"], project=sys.argv[1])  # the next cell
        assert result.ok
        print("cancelled")
asyncio.run(main())
"""


async def test_an_interrupt_that_only_cancels_the_task_is_heard_while_the_runs_are_silent(project: Project) -> None:
    project.loop("a", "touch begun; exec sleep 60")
    project.loop("b", "true")
    async with await anyio.open_process([sys.executable, "-c", CELL, str(project.folder)]) as cell:
        try:
            await appears(project.file("begun"))
            await eventually(lambda: list(project.runs.glob("*/state.json")))  # from here on it only waits
            cell.send_signal(signal.SIGINT)
            with anyio.fail_after(LIMIT * 2):
                assert await cell.wait() == 0
        finally:
            if cell.returncode is None:
                cell.kill()
    [run] = api.history(project.folder, "a")
    assert run.status == "interrupted"
    assert [run.status for run in api.history(project.folder, "b")] == ["completed"]
    assert project.left_alive(run.run_id) == []
