"""What `kill -9` leaves behind is found and removed when told to; runs go to the archive by a rule only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import anyio.abc
import pytest

from ll_loop import api
from ll_loop.cli.border import main
from ll_loop.errors import RefusedError, UsageError
from ll_loop.run import upkeep
from ll_loop.run.children import procs
from ll_loop.run.journals import recovery
from ll_loop.run.session import Session
from projects import LIMIT, Project, eventually, only

LONG = "touch begun-$LL_LOOP_RUN_ID; sleep 30"
RUNNER = """
import sys, anyio
from ll_loop.api import Session
async def main():
    async with Session(sys.argv[1], grace=1) as session:
        for name in sys.argv[2:]:
            session.start(name)
anyio.run(main)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    with TemporaryDirectory(prefix="ll-") as short:  # a socket's path has at most about a hundred characters
        monkeypatch.setenv("XDG_RUNTIME_DIR", short)  # sockets of other tests are none of ours
        yield Project(tmp_path / "project")


@asynccontextmanager
async def _elsewhere(project: Project, *loops: str) -> AsyncIterator[anyio.abc.Process]:
    argv = [sys.executable, "-c", RUNNER, str(project.folder), *loops]
    before = len(list(project.folder.glob("begun-*")))
    async with await anyio.open_process(argv) as process:
        await eventually(lambda: len(list(project.folder.glob("begun-*"))) >= before + len(loops))
        runs = [recovery.find_run(project.runs, loop).run_id for loop in loops]
        await eventually(lambda: all(only(project.records(run_id), "action_spawned") for run_id in runs))
        yield process
        with suppress(ProcessLookupError):
            process.terminate()


async def test_cleanup_finds_all_that_a_killed_run_left_and_removes_it_only_when_told(project: Project) -> None:
    project.loop("dead", LONG)
    project.loop("alive", LONG)
    async with _elsewhere(project, "dead") as process:
        process.kill()
        await process.wait()
    killed = recovery.find_run(project.runs, "dead")
    (killed.folder / "state.json.x.tmp").touch()
    async with _elsewhere(project, "alive"):
        found = await api.cleanup(project.folder)
        kinds = {one.kind for one in found}
        assert {"process", "script", "temporary", "lock"} <= kinds
        assert {one.run_id for one in found if one.run_id} == {killed.run_id}
        assert not any(one.done for one in found)
        assert project.left_alive(killed.run_id) != []
        assert len(project.lock_files()) == 2
        assert killed.script is not None
        assert killed.script.exists()

        with anyio.fail_after(LIMIT):
            done = await api.cleanup(project.folder, act=True, grace=1)
        assert all(one.done for one in done)
        assert project.left_alive(killed.run_id) == []
        assert not killed.script.exists()
        assert not (killed.folder / "state.json.x.tmp").exists()
        [kept] = project.lock_files()
        living = recovery.find_run(project.runs, "alive")
        assert kept == f"{living.run_id}.lock"
        assert living.is_alive
        assert all(procs.is_alive(child) for child in living.children())
        assert await api.cleanup(project.folder) == []
        assert [entry["loop"] for entry in await api.status(project.folder) if entry["pid"]] == ["alive"]
    assert recovery.open_run(project.runs, killed.run_id).is_resumable


async def test_the_socket_of_a_killed_process_is_removed(project: Project) -> None:
    project.loop("a", LONG)
    async with _elsewhere(project, "a") as process:
        process.kill()
    socket = recovery.find_run(project.runs, "a").socket
    assert Path(socket) in list(Path(socket).parent.iterdir())
    assert ("socket", socket) in [(one.kind, one.what) for one in await api.cleanup(project.folder)]
    await api.cleanup(project.folder, act=True, grace=1)
    assert Path(socket) not in list(Path(socket).parent.iterdir())


async def test_a_worktree_of_a_killed_run_is_named_and_kept_for_resume(project: Project) -> None:
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(project.folder)]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "start"]):
        await anyio.run_process([*git, *words])
    flag = project.folder.parent / "begun"
    project.loop("a", f"touch {flag}; sleep 30")
    code = RUNNER.replace("session.start(name)", "session.start(name, worktree=True)")
    async with await anyio.open_process([sys.executable, "-c", code, str(project.folder), "a"]) as process:
        await eventually(flag.exists)
        process.kill()
    run = recovery.find_run(project.runs, "a")
    trees = [one for one in await api.cleanup(project.folder, act=True, grace=1) if one.kind == "worktree"]
    [tree] = trees
    assert (tree.run_id, tree.done) == (run.run_id, False)
    assert f"ll-loop resume {run.run_id}" in tree.note
    assert os.listdir(tree.what)
    assert [one.kind for one in await api.cleanup(project.folder)] == ["worktree"]


KILLED_AT_THE_END = """
import os, signal, sys, anyio
from ll_loop.api import Session
async def main():
    async with Session(sys.argv[1]) as session:
        session.bus.listen(lambda record: record["event"] == "loop_complete" and os.kill(os.getpid(), signal.SIGKILL))
        session.start("a", worktree=True)
anyio.run(main)
"""


@pytest.mark.parametrize("work", ["true", "touch work"])
async def test_a_worktree_of_a_run_that_is_over_is_removed_and_its_work_saved(project: Project, work: str) -> None:
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(project.folder)]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "start"]):
        await anyio.run_process([*git, *words])
    project.loop("a", work)
    await anyio.run_process([sys.executable, "-c", KILLED_AT_THE_END, str(project.folder)], check=False)
    assert recovery.find_run(project.runs, "a").status == "completed"
    [told] = [one for one in await api.cleanup(project.folder) if one.kind == "worktree"]
    assert (told.done, await anyio.Path(told.what).is_dir()) == (False, True)
    [tree] = [one for one in await api.cleanup(project.folder, act=True, grace=1) if one.kind == "worktree"]
    assert not await anyio.Path(told.what).exists()
    branches = (await anyio.run_process([*git, "branch", "--list", "ll-loop/*"])).stdout.decode().split()
    if work == "true":
        assert (tree.done, tree.note, branches) == (True, "removed", [])
    else:
        assert tree.note.startswith("kept")
        assert branches[-1] in tree.note
        files = await anyio.run_process([*git, "ls-tree", "--name-only", branches[-1]])
        assert "work" in files.stdout.decode().split()
    assert [one.kind for one in await api.cleanup(project.folder)] == []


# --- prune -------------------------------------------------------------------------------------------------


async def _runs(project: Project, *loops: str) -> list[str]:
    async with Session(project.folder) as session:
        handles = [session.start(name) for name in loops]
    return [handle.run_id for handle in handles]


async def test_prune_moves_what_the_rule_lets_go_and_nothing_without_one(project: Project) -> None:
    project.loop("a", "true")
    project.loop("b", "true")
    old, middle, new, other = await _runs(project, "a", "a", "a", "b")
    with pytest.raises(UsageError):
        api.prune(project.folder, act=True)
    assert [one.run_id for one in api.prune(project.folder, keep=1)] == [old, middle]
    assert api.prune(project.folder, keep=1, older_than=timedelta(hours=1), act=True) == []
    assert len(project.run_folders()) == 4
    text = (project.runs / old / "events.jsonl").read_bytes()
    moved = api.prune(project.folder, keep=1, act=True)
    archive = project.loops / "archive"
    assert [(one.run_id, one.archived) for one in moved] == [(run, str(archive / run)) for run in (old, middle)]
    assert (archive / old / "events.jsonl").read_bytes() == text
    assert {run.run_id for run in api.history(project.folder)} == {new, other}


async def test_prune_leaves_runs_that_live_or_could_go_on(project: Project) -> None:
    project.loop("a", LONG)
    project.loop("b", LONG)
    async with Session(project.folder, grace=0.5) as session:
        cut, living = session.start("a"), session.start("b")
        await eventually(lambda: len(list(project.folder.glob("begun-*"))) == 2)
        cut.cancel()
        await cut.wait()
        assert api.prune(project.folder, keep=0, act=True) == []
        moved = api.prune(project.folder, keep=0, unfinished=True, act=True)
        assert [one.run_id for one in moved] == [cut.run_id]
        assert (project.runs / living.run_id).is_dir()
        living.cancel()


async def test_a_rule_of_age_counts_from_the_beginning_of_a_run(project: Project) -> None:
    project.loop("a", "true")
    [run_id] = await _runs(project, "a")
    rule = upkeep.Rule(older_than=timedelta(days=30))
    assert upkeep.prune(project.runs, rule, act=False) == []
    later = datetime.now(UTC) + timedelta(days=31)
    assert [one.run_id for one in upkeep.prune(project.runs, rule, act=False, now=later)] == [run_id]


async def test_a_run_that_somebody_takes_up_is_not_moved_under_him(project: Project) -> None:
    project.loop("a", "true")
    [run_id] = await _runs(project, "a")
    run = recovery.open_run(project.runs, run_id)
    with upkeep.held(run), pytest.raises(RefusedError), upkeep.held(run):
        pass
    with upkeep.held(run):
        [stays] = upkeep.prune(project.runs, upkeep.Rule(keep=0), act=True)
    assert (stays.archived, "in use" in stays.note) == ("", True)
    assert (project.runs / run_id).is_dir()


def test_the_commands_only_tell_unless_yes_is_said(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    project.loop("a", "true")
    where = ["--project", str(project.folder)]
    subprocess.run([sys.executable, "-m", "ll_loop", "run", "a", *where], check=True, capture_output=True)
    [folder] = project.run_folders()
    assert main(["prune", *where]) == 64
    capfd.readouterr()
    assert main(["prune", "--keep", "0", "--json", *where]) == 0
    assert [one["run_id"] for one in json.loads(capfd.readouterr().out)] == [folder.name]
    assert main(["prune", "--older-than", "30x", *where]) == 64
    assert main(["prune", "--keep", "0", "--older-than", "0s", "--yes", *where]) == 0
    assert not folder.exists()
    assert main(["cleanup", *where]) == 0
    assert "nothing is left behind" in capfd.readouterr().err
