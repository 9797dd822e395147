"""Going back: a journal replayed step by step, and new runs that begin at any record of another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ll_loop import api
from ll_loop.cli.border import main
from ll_loop.errors import NotFoundError, RefusedError
from ll_loop.run.journals import recovery
from ll_loop.run.session import Session
from projects import Project, names, only


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


async def _run(project: Project, loop: str) -> str:
    async with Session(project.folder) as session:
        return (await session.start(loop).wait()).run_id


async def test_replay_tells_each_input_and_what_followed_without_running_anything(project: Project) -> None:
    project.loop("a", "echo one >> ran", "echo two >> ran; exit 3")
    run_id = await _run(project, "a")
    before = project.records(run_id)
    steps = list(api.replay(project.folder, "a"))
    assert [step["input"] for step in steps] == ["run_started", "outcome", "outcome"]
    assert [(step["from"], step["to"]) for step in steps] == [([], ["s1"]), (["s1"], ["s2"]), (["s2"], ["done"])]
    assert steps[1]["effect"] == {
        "kind": "RunAction",
        "text": steps[1]["effect"]["text"],
        "prompt": False,
        "attempt": 1,
    }
    assert [step["terminated_by"] for step in steps] == [None, None, "terminal"]
    told = [event["event"] for step in steps for event in step["events"]]
    assert [name for name in names(before) if name in told] == told
    assert project.records(run_id) == before
    assert project.lines("ran") == ["one", "two"]


async def test_replay_goes_by_the_loop_as_it_was(project: Project) -> None:
    project.loop("a", "true")
    await _run(project, "a")
    project.loop("a", "true", "true")
    assert list(api.replay(project.folder, "a"))[-1]["terminated_by"] == "terminal"


async def test_a_fork_knows_the_loop_as_it_was(project: Project) -> None:
    project.loop("a", "echo one >> ran", "echo two >> ran")
    run_id = await _run(project, "a")
    project.loop("a", "echo one >> ran", "echo other >> ran")
    forked = api.fork(project.folder, run_id, only(project.records(run_id), "outcome")[0]["seq"])
    async with Session(project.folder) as session:
        [run] = api.resume(session, forked.run_id, from_state="s2")
    assert (run.status, project.lines("ran")) == ("completed", ["one", "two", "other"])


async def test_a_fork_goes_on_from_its_record_and_leaves_the_original_alone(project: Project) -> None:
    project.loop("a", "echo one >> ran; echo keep > ${context.run_dir}/note", "echo two >> ran", "echo three >> ran")
    run_id = await _run(project, "a")
    before = project.records(run_id)
    second = only(before, "outcome")[1]["seq"]
    forked = api.fork(project.folder, run_id, second)
    assert (forked.status, forked.is_resumable, forked.is_alive, forked.state) == ("interrupted", True, False, "s3")
    assert forked.created["forked_from"] == {"run_id": run_id, "seq": second}
    assert (forked.folder / "artifacts" / "note").read_text() == "keep\n"
    async with Session(project.folder) as session:
        [handle] = api.resume(session, forked.run_id)
        result = await handle.wait()
    assert (result.status, result.iterations) == ("completed", 3)
    assert project.lines("ran") == ["one", "two", "three", "three"]
    assert project.records(run_id) == before
    records = project.records(forked.run_id)
    assert {record["run_id"] for record in records} == {forked.run_id}
    assert [record["seq"] for record in records] == list(range(1, len(records) + 1))
    assert only(records, "state_enter")[-1].get("attempt", 1) == 1


async def test_every_record_of_a_run_can_be_forked_at_and_resumed(project: Project) -> None:
    project.loop("a", "echo x", "echo y")
    run_id = await _run(project, "a")
    records = project.records(run_id)
    last = max(record["seq"] for record in records if record["event"] == "outcome")
    forks = [api.fork(project.folder, run_id, seq) for seq in range(1, last)]
    async with Session(project.folder) as session:
        handles = session.resume_all([recovery.open_run(project.runs, one.run_id) for one in forks])
        results = [await handle.wait() for handle in handles]
    assert {result.status for result in results} == {"completed"}
    assert {result.iterations for result in results} == {2}
    with pytest.raises(RefusedError, match="had ended"):
        api.fork(project.folder, run_id, records[-1]["seq"])
    with pytest.raises(NotFoundError, match="no record"):
        api.fork(project.folder, run_id, records[-1]["seq"] + 1)


async def test_a_living_run_can_be_forked(project: Project) -> None:
    project.loop("a", "touch begun-$LL_LOOP_RUN_ID; until test -e go; do sleep 0.02; done", "echo here >> ran")
    async with Session(project.folder, grace=1) as session:
        run = session.start("a", lock=False)
        while not list(project.folder.glob("begun-*")):
            async with api.follow(project.folder, run.run_id) as batches:
                await anext(batches)
        forked = api.fork(project.folder, run.run_id, project.records(run.run_id)[-1]["seq"])
        project.file("go").touch()
        [again] = api.resume(session, forked.run_id)
        assert [(await one.wait()).status for one in (run, again)] == ["completed"] * 2
    assert project.lines("ran") == ["here", "here"]


def test_the_commands_print_steps_and_the_new_run(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    project.loop("a", "true")
    where = ["--project", str(project.folder)]
    assert main(["run", "a", *where]) == 0
    capfd.readouterr()
    assert main(["replay", "latest", *where]) == 0
    out = capfd.readouterr().out
    assert "run_started  [s1]" in out
    assert "asks for: RunAction true" in out
    assert "ended: terminal" in out
    assert main(["replay", "a", "--json", *where]) == 0
    assert [json.loads(line)["input"] for line in capfd.readouterr().out.splitlines()] == ["run_started", "outcome"]
    assert main(["fork", "a", "--at", "2", "--json", *where]) == 0
    forked = json.loads(capfd.readouterr().out)
    assert main(["resume", forked["run_id"], *where]) == 0
