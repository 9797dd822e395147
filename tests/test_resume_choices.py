"""Resuming what failed, and saying aloud what nobody can know."""

from __future__ import annotations

from pathlib import Path

import pytest

from ll_loop import api
from ll_loop.cli.words import note
from ll_loop.errors import NotFoundError
from ll_loop.run.session import Session
from projects import Project, appears, only


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


async def test_the_failed_runs_of_a_batch_are_started_anew_as_they_were_asked_for(project: Project) -> None:
    project.loop("good", "echo good >> ran")
    bad = project.loops / "bad.yaml"
    bad.write_text(
        "name: bad\ninitial: a\nscope: [bad]\ncontext: {n: 1}\nstates:\n"
        "  a: {action: 'echo ${context.n} >> ran; test -e mended', on_yes: done, on_no: failed}\n"
        "  done: {terminal: true}\n  failed: {terminal: true}\n"
    )
    async with Session(project.folder) as session:
        handles = [session.start("bad", context={"n": 7}), session.start("good")]
        batch = session.batch
    assert [handle.status for handle in handles] == ["failed", "completed"]
    project.file("mended").touch()
    async with Session(project.folder) as session:
        [again] = api.resume(session, batch, failed=True)
        assert (await again.wait()).status == "completed"
    assert again.run_id != handles[0].run_id
    assert sorted(project.lines("ran")) == ["7", "7", "good"]
    async with Session(project.folder) as session:
        with pytest.raises(NotFoundError, match="no run of that batch failed"):
            api.resume(session, failed=True)  # the last batch is the one that went well


@pytest.mark.parametrize(
    ("policy", "said"), [("rerun", "runs again, attempt 2"), ("skip", "is skipped"), ("fail", "the run fails")]
)
async def test_an_action_in_doubt_is_told_aloud_on_resume(project: Project, policy: str, said: str) -> None:
    project.loop("a", "test -e go && exit; touch begun; sleep 30")
    path = project.loops / "a.yaml"
    path.write_text(path.read_text().replace("    next: done\n", f"    next: done\n    on_resume: {policy}\n"))
    async with Session(project.folder, grace=0.5) as session:
        run = session.start("a")
        await appears(project.file("begun"))
        run.cancel()
    project.file("go").touch()
    async with Session(project.folder) as session:
        [again] = api.resume(session, "a")
        await again.wait()
    [resumed] = only(project.records(run.run_id), "run_resumed")
    assert "the action of s1 was cut off" in note(resumed)
    assert said in note(resumed)
