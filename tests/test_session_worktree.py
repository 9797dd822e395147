"""Runs in worktrees of their own that are cut off at any moment: nothing is lost, and what is empty goes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import anyio
import pytest

from ll_loop import api
from ll_loop.run.handle import RunHandle
from ll_loop.run.journals import recovery
from ll_loop.run.results import result_of_stored
from ll_loop.run.session import Session
from projects import LIMIT, Repo, appears, eventually, only

Start = Callable[[], "subprocess.Popen[bytes]"]
RUNNER = """
import sys, anyio
from ll_loop.api import Session
async def main():
    async with Session(sys.argv[1]) as session:
        session.start("a", worktree=True)
anyio.run(main)
"""


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return Repo(tmp_path / "project")


@pytest.fixture
def start(repo: Repo) -> Iterator[Start]:
    """Starts a process with a run in a worktree; it, and a git that was told to hang, end with the test."""
    with ExitStack() as stack:

        def begin() -> subprocess.Popen[bytes]:
            command = [sys.executable, "-c", RUNNER, str(repo.folder)]
            process = stack.enter_context(subprocess.Popen(command, env=repo.env))
            stack.callback(process.kill)
            return process

        yield begin
    repo.hanging.unlink(missing_ok=True)


async def _resumed(repo: Repo, run_id: str) -> RunHandle:
    with anyio.fail_after(LIMIT):
        async with Session(repo.folder, grace=1, env=repo.env) as session:
            [run] = api.resume(session, run_id)
    return run


HANG_ONCE = 'test -e "{0}" && exit; touch "{0}"; sleep 60 & wait'


@pytest.mark.parametrize("work", ["true", "echo half > half-done"])
async def test_a_run_that_was_cut_off_goes_on_with_what_its_worktree_held(repo: Repo, work: str) -> None:
    begun = repo.folder.parent / "begun"
    repo.loop("a", work, HANG_ONCE.format(begun), f"ls > {repo.folder.parent}/names")
    repo.commit()
    async with Session(repo.folder, grace=1, env=repo.env) as session:
        run = session.start("a", worktree=True)
        await appears(begun)
        run.cancel()
    assert repo.worktrees() == 0
    again = await _resumed(repo, run.run_id)
    assert again.status == "completed"
    assert ("half-done" in repo.lines("../names")) == (work != "true")
    assert repo.worktrees() == 0
    assert repo.branches() == (0 if work == "true" else 1)


async def test_a_process_killed_while_it_made_the_worktree_leaves_a_run_that_can_go_on(
    repo: Repo, start: Start
) -> None:
    repo.loop("a", "touch done")
    repo.commit()
    repo.git_hangs("*checkout\\ --force*")
    process = start()
    await appears(repo.hanging)
    process.kill()
    process.wait()
    repo.git_works()
    assert repo.worktrees() == 1  # half made
    run = await _resumed(repo, api.history(repo.folder)[0].run_id)
    assert run.status == "completed"
    assert len(only(repo.records(run.run_id), "worktree_planned")) == 2
    assert (repo.worktrees(), repo.branches()) == (0, 1)


async def test_a_worktree_that_was_removed_without_a_record_of_it_does_not_stop_the_run(repo: Repo) -> None:
    """Its process was killed between removing what was clean and writing that down."""
    begun = repo.folder.parent / "begun"
    repo.loop("a", HANG_ONCE.format(begun), "true")
    repo.commit()
    async with Session(repo.folder, grace=1, env=repo.env) as session:
        run = session.start("a", worktree=True)
        await appears(begun)
        run.cancel()
    journal = run.folder / "events.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert b"worktree_finished" in lines[-1]
    journal.write_bytes(b"".join(lines[:-1]))
    assert (repo.worktrees(), repo.branches()) == (0, 0)
    assert (await _resumed(repo, run.run_id)).status == "completed"
    assert (repo.worktrees(), repo.branches()) == (0, 0)


@pytest.mark.parametrize("work", ["true", "echo work > work"])
async def test_what_a_process_was_killed_removing_is_dealt_with_by_the_next_and_written_down(
    repo: Repo, start: Start, work: str
) -> None:
    repo.loop("a", work)
    repo.commit()
    repo.git_hangs("*worktree\\ remove*")
    process = start()
    await appears(repo.hanging)
    process.kill()
    process.wait()
    repo.git_works()
    killed = api.history(repo.folder)[0]
    assert (repo.worktrees(), killed.status) == (1, "completed")
    repo.loop("b", "true")
    async with Session(repo.folder, env=repo.env) as session:
        session.start("b", worktree=True)
    assert (repo.worktrees(), repo.branches()) == (0, 0 if work == "true" else 1)
    [finished] = only(repo.records(killed.run_id), "worktree_finished")
    assert finished["kept"] == (work != "true")


async def test_a_second_shut_down_does_not_wait_for_git(repo: Repo) -> None:
    begun = repo.folder.parent / "begun"
    repo.loop("a", HANG_ONCE.format(begun))
    repo.commit()
    async with Session(repo.folder, grace=1, env=repo.env) as session:
        run = session.start("a", worktree=True)
        await appears(begun)
        repo.git_hangs("*")
        session.shut_down(15)
        await appears(repo.hanging)
        session.shut_down(15)
        with anyio.fail_after(5):
            result = await run.wait()
    assert (result.exit_code, result.status) == (143, "interrupted")
    assert result.worktree["kept"]
    assert await anyio.Path(result.worktree["path"]).is_dir()
    repo.git_works()
    assert (await _resumed(repo, run.run_id)).status == "completed"
    await eventually(lambda: repo.worktrees() == 0)
    assert recovery.open_run(repo.runs, run.run_id).status == "completed"


async def test_a_worktree_that_somebody_deletes_ends_its_own_run_alone(repo: Repo) -> None:
    gone = repo.folder.parent / "gone"
    repo.loop("a", f'cd / && rm -rf "$OLDPWD" && touch "{gone}"', "true")
    repo.loop("b", f'until test -e "{gone}"; do sleep 0.01; done', "true")
    repo.commit()
    async with Session(repo.folder, grace=1, env=repo.env) as session:
        runs = [session.start(name, worktree=True) for name in "ab"]
        with anyio.fail_after(LIMIT * 3):
            results = [await run.wait() for run in runs]
    assert [result.terminated_by for result in results] == ["workdir_vanished", "terminal"]
    assert (results[0].status, results[0].final_state) == ("failed", "s2")
    assert (repo.worktrees(), repo.branches()) == (0, 0)


async def test_runs_that_commit_at_the_same_time_lose_no_commit(repo: Repo) -> None:
    committing = "for i in 1 2 3 4 5; do echo $i >> {0}.txt; git add {0}.txt; git commit -qm '{0} '$i || exit 1; done"
    names = [repo.loop(name, committing.format(name), route="on_yes") for name in ("n1", "n2", "n3", "n4")]
    repo.commit()
    async with Session(repo.folder, env=repo.env) as session:
        runs = [session.start(name, worktree=True) for name in names]
        results = [await run.wait() for run in runs]
    assert [result.status for result in results] == ["completed"] * 4
    assert [result_of_stored(recovery.open_run(repo.runs, one.run_id)) for one in results] == results
    for name, result in zip(names, results, strict=True):
        subjects = repo.git("log", "--format=%s", result.worktree["branch"]).splitlines()
        assert subjects == [*(f"{name} {number}" for number in (5, 4, 3, 2, 1)), "start"]


async def test_runs_that_commit_in_one_tree_wait_for_the_index(repo: Repo) -> None:
    names = ["n1", "n2", "n3", "n4"]
    for name in names:
        steps = [f"echo {number} >> {name}.txt" + "\n" for number in range(3)]
        commit = f"git add {name}.txt && git commit -qm '{name}' {name}.txt"
        repo.loop(name, *(text for step in steps for text in (step, commit)), route="on_yes")
    repo.commit()
    async with Session(repo.folder, env=repo.env) as session:
        results = [await run.wait() for run in [session.start(name) for name in names]]
    assert [result.status for result in results] == ["completed"] * 4
    subjects = repo.git("log", "--format=%s").split()
    assert sorted(subjects) == sorted(["start", *names * 3])


async def test_an_action_of_git_commands_is_run_again_once_the_lock_of_another_git_is_gone(repo: Repo) -> None:
    repo.loop("a", "git commit -q --allow-empty -m late", route="on_yes")
    repo.commit()
    lock = repo.file(".git/index.lock")
    lock.touch()
    async with Session(repo.folder, env=repo.env) as session:
        run = session.start("a")
        logs = repo.runs / run.run_id
        await eventually(lambda: any("index.lock" in log.read_text() for log in logs.glob("output.log")))
        lock.unlink()
        result = await run.wait()
    assert result.status == "completed"
    assert repo.git("log", "-1", "--format=%s").strip() == "late"


async def test_python_imports_the_sources_of_the_worktree_and_not_those_of_the_main_checkout(repo: Repo) -> None:
    package = repo.file("src/sample")
    package.mkdir(parents=True)
    package.joinpath("__init__.py").write_text("")
    repo.file("pyproject.toml").write_text("[project]\nname = 'sample'\n")
    repo.loop("a", "$LL_PYTHON -c 'import sample; print(sample.__file__)'", scope="work")
    repo.commit()
    env = {**repo.env, "PYTHONPATH": str(repo.file("src"))}  # where an editable install leads to
    async with Session(repo.folder, env=env) as session:
        runs = [session.start("a"), session.start("a", worktree=True)]
        results = [await run.wait() for run in runs]
        trees = [run.worktree for run in runs]
    told = [only(repo.records(result.run_id), "action_output")[0]["line"] for result in results]
    assert trees[1] is not None
    assert told == [f"{root}/src/sample/__init__.py" for root in (repo.folder, trees[1].path)]
