"""What a run waits for: the process that has it tells, or its journal once that process is gone."""

from __future__ import annotations

import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest

from ll_loop import api
from ll_loop.cli.waiting import lines_of
from ll_loop.errors import NotFoundError
from ll_loop.run.children import procs
from ll_loop.run.journals import recovery
from ll_loop.run.session import Session
from projects import Project, appears, eventually

LONG = "echo hi; touch begun-$LL_LOOP_RUN_ID; sleep 30"
HOLD = """
import sys, anyio
from ll_loop.api import Session
async def main():
    async with Session(sys.argv[1], grace=1) as session:
        session.start(sys.argv[2])
anyio.run(main)
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def _text(found: dict[str, object]) -> str:
    return "\n".join(lines_of(found, datetime.now(UTC)))


async def test_why_names_the_action_under_way_with_its_pid_and_processes(project: Project) -> None:
    project.loop("a", LONG)
    async with Session(project.folder, grace=1) as session:
        run = session.start("a")
        await appears(project.file(f"begun-{run.run_id}"))
        found = await api.why(project.folder, "a")
        assert (found["reason"], found["state"], found["step"], found["pid"]) == ("action", "s1", 1, os.getpid())
        action = found["action"]
        [leader] = recovery.open_run(project.runs, run.run_id).children()
        assert (action["pid"], action["attempt"], action["timeout"]) == (leader.pid, 1, 3600)
        assert "sleep 30" in action["command"]
        assert leader.pid in [process["pid"] for process in action["processes"]]
        assert f"pid {leader.pid}, since" in _text(found)
        await eventually(lambda: "hi" in (run.folder / "output.log").read_text())
        heard = (await api.why(project.folder, "a"))["action"]["last_output"]
        assert action["since"] <= heard
        assert "last output 0s ago" in "\n".join(
            lines_of(found | {"action": {**action, "last_output": heard}}, datetime.fromisoformat(heard))
        )
        run.cancel()


async def test_why_names_who_holds_the_scope_and_the_place_in_the_line(project: Project) -> None:
    project.loop("a", LONG, scope="src")
    project.loop("b", "true", scope="src")
    project.loop("c", "true", scope="src")
    async with Session(project.folder, grace=1) as session:
        one, two, three = (session.start(name) for name in "abc")
        await appears(project.file(f"begun-{one.run_id}"))
        await eventually(lambda: three.waits_for)
        found = await api.why(project.folder, three.run_id)
        assert (found["reason"], found["status"], found["place"]) == ("scope", "queued", 2)
        assert [(holder["run_id"], holder["status"]) for holder in found["holders"]] == [
            (one.run_id, "running"),
            (two.run_id, "queued"),
        ]
        assert "a holds it, in s1" in _text(found)
        assert "b waits before it" in _text(found)
        line = await api.queue(project.folder)
        assert [(entry["loop"], entry["place"]) for entry in line] == [("b", 1), ("c", 2)]
        assert all(entry["waiting_since"] for entry in line)
        session.shut_down()
    assert await api.queue(project.folder) == []


async def test_why_names_the_other_process_that_holds_the_scope(project: Project) -> None:
    project.loop("a", LONG, scope="src")
    project.loop("b", "true", scope="src")
    async with await anyio.open_process([sys.executable, "-c", HOLD, str(project.folder), "a"]) as holder:
        await eventually(lambda: list(project.folder.glob("begun-*")))
        async with Session(project.folder, grace=1) as session:
            waiting = session.start("b")
            await eventually(lambda: waiting.waits_for)
            found = await api.why(project.folder, "b")
            assert (found["reason"], found["place"]) == ("scope", 1)
            [named] = found["holders"]
            assert (named["loop"], named["pid"]) == ("a", holder.pid)
            waiting.cancel()
        holder.terminate()


async def test_why_tells_a_run_that_waits_for_a_slot_from_one_that_waits_for_a_scope(project: Project) -> None:
    project.loop("a", LONG)
    project.loop("b", "true")
    async with Session(project.folder, jobs=1, grace=1) as session:
        one, two = session.start("a"), session.start("b")
        await appears(project.file(f"begun-{one.run_id}"))
        await two.settled()
        found = await api.why(project.folder, "b")
        assert (found["reason"], found["slot"], found["holders"]) == ("slot", True, [])
        assert "--jobs" in _text(found)
        session.shut_down()


async def test_why_tells_a_pause_and_how_long_it_is(project: Project) -> None:
    project.loop("a", "true", "true", head="backoff: 30\n")
    async with Session(project.folder) as session:
        run = session.start("a")
        await eventually(lambda: run.run is not None and type(run.run.waiting).__name__ == "Sleep")
        found = await api.why(project.folder, "a")
        assert (found["reason"], found["pause"]) == ("pause", {"seconds": 30, "why": "backoff"})
        run.cancel()


async def test_why_tells_a_question_and_how_to_answer_it(project: Project) -> None:
    state = (
        "  s1: {action_type: human_approval, action: 'Deploy?', on_yes: done, on_no: done}\n  done: {terminal: true}\n"
    )
    (project.loops / "a.yaml").write_text(f"name: a\ninitial: s1\nscope: [a]\nstates:\n{state}")
    async with Session(project.folder, attended=True) as session:
        run = session.start("a")
        await eventually(lambda: run.question)
        found = await api.why(project.folder, "a")
        assert (found["reason"], found["question"]["text"]) == ("question", "Deploy?")
        assert f"ll-loop approve {run.run_id}" in _text(found)
        run.cancel()


async def test_why_names_the_child_that_delays_a_shutdown(project: Project) -> None:
    project.loop("a", "trap '' TERM; touch begun; while :; do sleep 1; done")
    async with Session(project.folder, grace=20) as session:
        run = session.start("a")
        await appears(project.file("begun"))
        run.cancel("user_stopped")
        await eventually(lambda: run.ending_since)
        found = await api.why(project.folder, "a")
        assert (found["reason"], found["ending"]["by"], found["ending"]["grace"]) == ("ending", "user_stopped", 20)
        assert "bash" in [process["name"] for process in found["action"]["processes"]]
        assert "still alive" in _text(found)
        run.cancel(grace=0)


async def test_why_says_of_a_killed_run_that_it_is_dead_and_what_resume_would_do(project: Project) -> None:
    project.loop("a", LONG)
    async with await anyio.open_process([sys.executable, "-c", HOLD, str(project.folder), "a"]) as holder:
        await eventually(lambda: list(project.folder.glob("begun-*")))
        holder.kill()
    found = await api.why(project.folder, "a")
    assert (found["reason"], found["owner"], found["pid"]) == ("dead", holder.pid, 0)
    assert found["left_alive"] != []
    assert found["resume"]["does"] == "runs s1 again, as attempt 2"
    assert f"go on with: ll-loop resume {found['run_id']}" in _text(found)
    (project.loops / "a.yaml").write_text((project.loops / "a.yaml").read_text().replace("s1", "other"))
    found = await api.why(project.folder, "a")
    assert found["resume"]["possible"] is False
    assert "was changed" in _text(found)
    for one in recovery.left_alive(recovery.find_run(project.runs, "a")):
        procs.send_signal(one, signal.SIGKILL)


async def test_why_says_how_a_run_ended_that_is_over(project: Project) -> None:
    project.loop("a", "true")
    async with Session(project.folder) as session:
        await session.start("a").wait()
    found = await api.why(project.folder, "latest")
    assert (found["reason"], found["terminated_by"], found["resume"]) == ("over", "terminal", None)
    with pytest.raises(NotFoundError):
        await api.why(project.folder, "b")
