"""`ll-loop` within an action: a part of the run whose action it is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import anyio
import pytest

from ll_loop import api
from ll_loop.errors import RefusedError
from ll_loop.run.session import Session
from projects import Project, Repo, appears, only

ALONE = "mkdir inside || echo together >> seen; sleep 0.3; rmdir inside; echo {} >> ran"
LIMIT = 120
BACKENDS = ["trio"]
"""Of the sessions; the commands that their actions call run on the other one."""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


async def test_it_is_the_engine_that_runs_the_action_whatever_else_is_installed(project: Project) -> None:
    other = project.file("bin") / "ll-loop"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\necho another\n")
    other.chmod(0o755)
    project.loop("outer", "ll-loop list > said; ll-loop run inner --quiet")
    project.loop("inner", "true", scope="outer")
    env = {**os.environ, "PATH": f"{other.parent}{os.pathsep}{os.environ['PATH']}", "LL_PYTHON": "/nowhere"}
    async with Session(project.folder, env=env) as session:
        outer = session.start("outer")
    assert outer.status == "completed"
    assert any(line.split()[0] == "inner" for line in project.lines("said") if line.split())
    inner = api.history(project.folder, "inner")[0]
    assert (inner.status, inner.parent) == ("completed", outer.run_id)


async def test_calls_of_one_action_take_turns_within_its_scope_and_strangers_wait_for_it(project: Project) -> None:
    call = "ll-loop run {} --queue --quiet &"
    project.loop(
        "outer", f"touch begun; {call.format('one')} {call.format('two')} wait; echo outer >> ran", scope="src"
    )
    project.loop("one", ALONE.format("one"), scope="src/a")
    project.loop("two", ALONE.format("two"), scope="src")
    project.loop("stranger", ALONE.format("stranger"), scope="src/a")
    async with Session(project.folder) as session:
        outer = session.start("outer")
        await appears(project.file("begun"))
        async with Session(project.folder) as elsewhere:
            stranger = elsewhere.start("stranger")
            with anyio.fail_after(LIMIT):
                await stranger.wait()
    assert (outer.status, stranger.status) == ("completed", "completed")
    assert not project.file("seen").exists()
    assert sorted(project.lines("ran")[:2]) == ["one", "two"]
    assert project.lines("ran")[2:] == ["outer", "stranger"]


async def test_calls_of_different_actions_do_not_wait_for_each_other_outside_of_what_their_runs_hold(
    project: Project,
) -> None:
    """`one` may want what `two` holds, and the other way round."""
    both = "ll-loop run one --queue --quiet & ll-loop run two --queue --quiet & wait"
    project.loop("outer", both, scope="src")
    for name, other in (("one", "two"), ("two", "one")):
        cross = f"touch {name}.in; until test -e {other}.in; do sleep 0.02; done; ll-loop run {name}-more --queue"
        project.loop(name, f"{cross} 2> {name}.said; echo $? > {name}.code", scope=f"src/{name}")
        project.loop(f"{name}-more", "true", scope=f"src/{other}")
    async with Session(project.folder) as session:
        with anyio.fail_after(LIMIT):
            await session.start("outer").wait()
    codes = [project.lines("one.code")[0], project.lines("two.code")[0]]
    assert "75" in codes
    assert "does not wait for others" in project.file(f"{'one' if codes[0] == '75' else 'two'}.said").read_text()


async def test_a_loop_that_calls_itself_comes_to_an_end(project: Project) -> None:
    project.loop("deep", "ll-loop run deep --quiet 2>> said; echo $? >> codes", scope="src")
    async with Session(project.folder) as session:
        with anyio.fail_after(LIMIT):
            await session.start("deep").wait()
    assert len(project.run_folders()) == 4
    assert project.lines("codes") == ["75", "0", "0", "0"]
    assert "calls of ll-loop within actions are 4 deep, and may be 3" in project.file("said").read_text()


async def test_runs_of_a_call_share_the_slot_of_the_run_above(project: Project) -> None:
    project.loop("outer", "ll-loop run-many one two --quiet", scope="src")
    for name in ("one", "two"):
        project.loop(name, ALONE.format(name), scope=name)
    async with Session(project.folder, jobs=2) as session:
        with anyio.fail_after(LIMIT):
            await session.start("outer").wait()
    assert (sorted(project.lines("ran")), project.file("seen").exists()) == (["one", "two"], False)


async def test_a_resume_goes_on_with_the_run_above_and_not_with_what_it_had_called(project: Project) -> None:
    project.loop("outer", "test -e go && exit; ll-loop run inner --quiet", scope="src")
    project.loop("inner", "touch begun; sleep 60", scope="src")
    async with Session(project.folder, grace=2) as session:
        outer = session.start("outer")
        with anyio.fail_after(LIMIT):
            await appears(project.file("begun"))
        outer.cancel()
    project.file("go").touch()
    async with Session(project.folder) as session:
        assert [run.run_id for run in api.resume(session)] == [outer.run_id]


async def gone_on_with(project: Project) -> None:
    """Resume what was cut off, and let its actions end."""
    project.file("go").touch()
    async with Session(project.folder) as session:
        with anyio.fail_after(LIMIT):
            [again] = api.resume(session)
            assert (await again.wait()).status == "completed"


async def test_a_call_that_was_over_when_its_action_was_cut_off_is_answered_and_not_made_again(
    project: Project,
) -> None:
    call = "ll-loop run {} --json > {}.said 2>> notes; echo $? >> {}.codes; "
    calls = call.replace("{}", "good") + call.replace("{}", "bad") + 'll-loop run other "$(cat word)" --quiet; '
    project.loop("outer", calls + "test -e go && exit; cp good.said bad.said before; touch begun; sleep 60")
    project.loop("good", "echo good >> ran", "echo good >> ran", scope="outer")
    project.loop("bad", "echo bad >> ran; exit 3", scope="outer", route="on_yes")
    project.loop("other", "echo ${context.input} >> ran", scope="outer")
    project.file("before").mkdir()
    project.file("word").write_text("one")
    async with Session(project.folder, grace=2) as session:
        outer = session.start("outer")
        with anyio.fail_after(LIMIT):
            await appears(project.file("begun"))
        project.file("word").write_text("two")
        outer.cancel()
    await gone_on_with(project)
    assert project.lines("ran") == ["good", "good", "bad", "one", "two"]  # who asks for something else gets it
    assert (project.lines("good.codes"), project.lines("bad.codes")) == (["0", "0"], ["1", "1"])
    for name in ("good.said", "bad.said"):
        assert json.loads(project.file(name).read_text()) == json.loads(project.file(f"before/{name}").read_text())
    assert [line.split("; ")[1] for line in project.lines("notes") if "cut off" in line] == [
        "it is not run again: completed",
        "it is not run again: failed",
    ]


async def test_calls_of_an_action_that_was_cut_off_go_on_where_they_were_one_by_one(project: Project) -> None:
    project.loop("outer", "for n in 1 2 3; do ll-loop run inner --quiet; done")
    slow = "mkdir once || test -e go || { touch begun; exec sleep 60; }; echo two >> ran"
    project.loop("inner", "echo one >> ran", slow, scope="outer")
    async with Session(project.folder, grace=2) as session:
        outer = session.start("outer")
        with anyio.fail_after(LIMIT):
            await appears(project.file("begun"))
        outer.cancel()
    await gone_on_with(project)
    assert project.lines("ran") == ["one", "two"] * 3
    inner = api.history(project.folder, "inner")
    assert [run.status for run in inner] == ["completed"] * 3
    assert [len(only(project.records(run.run_id), "run_resumed")) for run in inner] == [0, 1, 0]


async def test_a_call_in_a_worktree_without_loops_works_there_with_the_loops_of_the_project(tmp_path: Path) -> None:
    """A clean-up of the worktree brings nothing of the calls with it but their work."""
    repo = Repo(tmp_path / "project")
    repo.file(".gitignore").write_text(".loops\n")
    repo.file(".ll").mkdir()
    repo.file(".ll/ll.local.md").write_text("")
    repo.loop("outer", "ll-loop run inner --quiet && cd / && ll-loop run elsewhere --quiet", route="on_yes")
    repo.loop("inner", "pwd > inner", scope=".")
    repo.loop("elsewhere", "pwd > elsewhere", scope=".")
    repo.commit()
    async with Session(repo.folder, env=repo.env) as session:
        with anyio.fail_after(LIMIT):
            outer = await session.start("outer", worktree=True).wait()
    assert outer.status == "completed", repo.records(outer.run_id)
    assert repo.git("show", f"{outer.worktree['branch']}:inner").strip() == outer.worktree["path"]
    assert repo.git("diff", "--name-only", "HEAD", outer.worktree["branch"]) == "inner\n"
    assert (repo.lines("inner"), repo.lines("elsewhere")) == ([], [str(repo.folder)])
    assert {(run.loop, run.parent) for run in api.history(repo.folder)} == {
        ("outer", ""),
        ("inner", outer.run_id),
        ("elsewhere", outer.run_id),
    }
    assert not repo.worktrees()
    [inner] = api.history(repo.folder, "inner")
    forked = api.fork(repo.folder, inner.run_id, 5)
    async with Session(repo.folder) as session:
        with pytest.raises(RefusedError, match="was at work, is gone"):
            session.resume(forked)


async def test_nothing_of_an_action_can_be_left_to_the_background(project: Project) -> None:
    project.loop("outer", "ll-loop run inner -b 2> said; echo $? > code", scope="src")
    project.loop("inner", "true", scope="src")
    async with Session(project.folder) as session:
        with anyio.fail_after(LIMIT):
            await session.start("outer").wait()
    assert project.lines("code") == ["75"]
    assert "a run in the background would end with that action" in project.file("said").read_text()
