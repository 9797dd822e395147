"""Sub-loops that work on a branch, in a worktree of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import anyio
import pytest

from ll_loop import api
from ll_loop.run.journals import recovery
from ll_loop.run.journals.request import RunResult
from ll_loop.run.session import Session
from projects import LIMIT, Repo, appears, names, only


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    made = Repo(tmp_path / "project")
    made.file("seed").write_text("seed")
    made.loop("child", "touch made; git add made; git commit -qm made")
    parent(made, "topic")
    made.commit()
    made.git("branch", "topic")
    return made


def parent(repo: Repo, worktree: str, routes: str = "on_yes: done, on_no: bad, on_error: failed") -> None:
    (repo.loops / "a.yaml").write_text(
        "name: a\ninitial: work\nscope: [x]\ncontext: {branch: topic}\nstates:\n"
        f"  work: {{loop: child, worktree: '{worktree}', {routes}}}\n"
        "  done: {terminal: true}\n  bad: {terminal: true, failure: true}\n  failed: {terminal: true, failure: true}\n"
    )


async def run(repo: Repo) -> RunResult:
    async with Session(repo.folder, env=repo.env) as session:
        with anyio.fail_after(LIMIT):
            return await session.start("a").wait()


def on_branch(repo: Repo) -> set[str]:
    return set(repo.git("ls-tree", "--name-only", "topic").split())


def trees(repo: Repo) -> int:
    return repo.git("worktree", "list").count("\n")


@pytest.mark.parametrize("action", ["touch made; git add made; git commit -qm made", "touch made"])
async def test_what_the_sub_loop_does_is_on_its_branch_and_nowhere_else(repo: Repo, action: str) -> None:
    repo.loop("child", f"pwd > {repo.folder.parent}/where; {action}")
    result = await run(repo)
    assert result.final_state == "done"
    [attached] = only(repo.records(result.run_id), "sub_loop_worktree_attached")
    [detached] = only(repo.records(result.run_id), "sub_loop_worktree_detached")
    assert attached["branch"] == detached["branch"] == "topic"
    assert (repo.folder.parent / "where").read_text().strip() == attached["path"] == detached["path"]
    assert "made" in on_branch(repo)
    assert not repo.file("made").exists()
    assert not Path(attached["path"]).exists()  # noqa: ASYNC240 - a look, not a wait
    assert trees(repo) == 1


async def test_a_branch_to_which_nothing_was_done_stays(repo: Repo) -> None:
    repo.loop("child", "true")
    before = repo.git("rev-parse", "topic")
    assert (await run(repo)).final_state == "done"
    assert repo.git("rev-parse", "topic") == before


async def test_loops_below_work_there_too_and_the_state_s_own_loop_does_not(repo: Repo) -> None:
    repo.loop("grandchild", "touch below")
    (repo.loops / "child.yaml").write_text(
        "name: child\ninitial: a\nstates:\n  a: {loop: grandchild, on_yes: done, on_no: done}\n"
        "  done: {terminal: true}\n"
    )
    text = (repo.loops / "a.yaml").read_text()
    own = "  own: {action: touch own, on_yes: done}\n  done:"
    (repo.loops / "a.yaml").write_text(text.replace("on_yes: done", "on_yes: own").replace("  done:", own))
    assert (await run(repo)).final_state == "done"
    assert "below" in on_branch(repo)
    assert repo.file("own").exists()


@pytest.mark.parametrize(
    ("worktree", "routes", "final", "ended"),
    [
        ("nowhere", "on_yes: done, on_no: bad, on_error: failed", "failed", "terminal"),
        ("nowhere", "on_yes: done, on_no: bad", "bad", "terminal"),
        ("nowhere", "on_yes: done", "work", "error"),
        ("main", "on_yes: done, on_no: bad", "bad", "terminal"),
    ],
)
async def test_without_its_worktree_the_sub_loop_does_not_begin(
    repo: Repo, worktree: str, routes: str, final: str, ended: str
) -> None:
    repo.git("branch", "-M", "main")
    parent(repo, worktree, routes)
    result = await run(repo)
    assert (result.final_state, result.terminated_by) == (final, ended)
    [error] = only(repo.records(result.run_id), "sub_loop_worktree_error")
    assert error["branch"] == worktree
    assert worktree in error["error"]
    assert trees(repo) == 1


async def test_an_empty_branch_means_no_worktree(repo: Repo) -> None:
    parent(repo, "${context.no_branch:default=}")
    result = await run(repo)
    assert "sub_loop_worktree_attached" not in names(repo.records(result.run_id))
    assert repo.file("made").exists()


async def test_a_child_that_cannot_begin_leaves_no_worktree(repo: Repo) -> None:
    text = (repo.loops / "a.yaml").read_text()
    (repo.loops / "a.yaml").write_text(text.replace("loop: child", "loop: '${context.who}'"))
    async with Session(repo.folder, env=repo.env) as session:
        with anyio.fail_after(LIMIT):
            result = await session.start("a", context={"who": "nobody"}).wait()
    assert result.final_state == "failed"
    assert "sub_loop_worktree_detached" in names(repo.records(result.run_id))
    assert trees(repo) == 1


async def test_an_end_of_the_whole_run_puts_the_worktree_away(repo: Repo) -> None:
    repo.loop("child", "touch made; echo FATAL_ERROR: no more")
    result = await run(repo)
    assert (result.terminated_by, trees(repo)) == ("error", 1)
    assert "made" in on_branch(repo)


async def test_a_run_in_a_worktree_and_its_sub_loop_in_another_each_keep_their_work(repo: Repo) -> None:
    repo.loop("child", "pwd; touch made", "touch loose")
    text = (repo.loops / "a.yaml").read_text()
    states = "initial: own\nstates:\n  own: {action: 'pwd; touch own', next: work}\n"
    more = "  after: {action: 'pwd; test -e own -a ! -e made', on_yes: done, on_no: failed}\n  done:"
    text = text.replace("initial: work\n", "").replace("states:\n", states).replace("on_yes: done", "on_yes: after")
    (repo.loops / "a.yaml").write_text(text.replace("  done:", more))
    async with Session(repo.folder, env=repo.env) as session:
        with anyio.fail_after(LIMIT):
            result = await session.start("a", worktree=True).wait()
    assert result.final_state == "done"
    own, child, after = (record["line"] for record in only(repo.records(result.run_id), "action_output"))
    assert own == after == result.worktree["path"]
    assert child not in (own, str(repo.folder))
    assert on_branch(repo) >= {"seed", "made", "loose"}
    kept = set(repo.git("ls-tree", "--name-only", result.worktree["branch"]).split())
    assert kept >= {"seed", "own"}
    assert not kept & {"made", "loose"}
    assert not on_branch(repo) & {"own"}
    assert trees(repo) == 1
    assert not {path.name for path in repo.folder.iterdir()} & {"own", "made", "loose"}


@pytest.mark.parametrize("worktree", [False, True])
async def test_an_interrupted_sub_loop_goes_on_with_its_work(repo: Repo, worktree: bool) -> None:
    flag = repo.folder.parent / "flag"
    repo.loop("child", "touch first", f"touch {flag}.on; test -e first && test -e {flag} || sleep 60", "touch last")
    async with Session(repo.folder, env=repo.env, grace=0) as session:
        handle = session.start("a", worktree=worktree)
        await appears(flag.with_name("flag.on"))
        session.shut_down()
        with anyio.fail_after(LIMIT):
            assert (await handle.wait()).status == "interrupted"
    assert trees(repo) == 1
    flag.touch()
    async with Session(repo.folder, env=repo.env) as session:
        with anyio.fail_after(LIMIT):
            result = await session.resume(recovery.find_run(repo.runs, handle.run_id)).wait()
    assert result.final_state == "done"
    assert on_branch(repo) >= {"first", "last"}
    assert trees(repo) == 1


@pytest.fixture
def start(repo: Repo) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a process with the run, which ends with the test."""
    with ExitStack() as stack:

        def begin(*words: str) -> subprocess.Popen[bytes]:
            argv = [sys.executable, "-m", "ll_loop", "run", "a", "--quiet", *words]
            process = stack.enter_context(subprocess.Popen(argv, cwd=repo.folder, env=repo.env))
            stack.callback(process.kill)
            return process

        yield begin


@pytest.mark.parametrize("words", [[], ["--worktree"]])
async def test_a_killed_sub_loop_goes_on_in_the_same_place(
    repo: Repo, start: Callable[..., subprocess.Popen[bytes]], words: list[str]
) -> None:
    flag = repo.folder.parent / "flag"
    repo.loop("child", "touch first", f"touch {flag}.on; test -e first && test -e {flag} || sleep 60", "touch last")
    process = start(*words)
    await appears(flag.with_name("flag.on"))
    process.kill()
    process.wait()
    assert trees(repo) == 2 + len(words)
    flag.touch()
    async with Session(repo.folder, env=repo.env) as session:
        with anyio.fail_after(LIMIT):
            [again] = api.resume(session)
            assert (await again.wait()).final_state == "done"
    assert on_branch(repo) >= {"first", "last"}
    assert trees(repo) == 1
