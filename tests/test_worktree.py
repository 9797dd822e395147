"""Runs in their own checkout: nothing is left of a clean one, nothing is lost of any other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from ll_loop.errors import CannotCreateError, LoopError, RefusedError, UsageError
from ll_loop.run.children import procs
from ll_loop.run.worktrees.checkout import WorktreeRecord
from ll_loop.run.worktrees.git import Gate, git, git_write, is_only_git
from ll_loop.run.worktrees.worktree import Kept, Lease, Removed, Worktrees, slug

IDENTITY = {
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
}


class Repo:
    """A scratch repository, driven by plain blocking git."""

    def __init__(self, root: Path, env: Mapping[str, str]) -> None:
        self.root = root
        self.env = dict(env)

    def git(self, *args: str, cwd: Path | None = None) -> str:
        return self.sh("git", *args, cwd=cwd)

    def sh(self, *argv: str, cwd: Path | None = None) -> str:
        done = subprocess.run(
            argv, cwd=cwd or self.root, env=self.env | IDENTITY, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def commit(self, *, cwd: Path | None = None, **files: str) -> str:
        for name, text in files.items():
            write((cwd or self.root) / name.replace("__", "/"), text)
        self.git("add", "--all", "--force", cwd=cwd)
        self.git("commit", "--quiet", "--message", "more", cwd=cwd)
        return self.git("rev-parse", "HEAD", cwd=cwd)

    def branches(self) -> list[str]:
        return self.git("for-each-ref", "--format=%(refname:short)", "refs/heads").split()

    def worktrees(self) -> list[str]:
        listed = self.git("worktree", "list", "--porcelain").splitlines()
        return [line.removeprefix("worktree ") for line in listed if line.startswith("worktree ")]

    def of(self, project: Path | None = None, **more: object) -> Worktrees:
        options = {"env": self.env, "patience": 2.0} | more
        return Worktrees(project or self.root, **options)  # type: ignore[arg-type]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def there(*parts: str) -> bool:
    return Path(*parts).exists()


async def process_named_in(file: Path) -> procs.Identity:
    with anyio.fail_after(5):
        while True:
            text = await anyio.Path(file).read_text() if there(str(file)) else ""
            if identity := procs.identity_of(int(text or 0)):
                return identity
            await anyio.sleep(0.01)


def script(path: Path, text: str) -> Path:
    write(path, f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "home"),
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
    }


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Repo(tmp_path_factory.mktemp("template"), {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": "/dev/null"})
    made.git("init", "--quiet", "--initial-branch=trunk", "--template=")
    write(made.root / ".gitignore", ".env\nbuild/\n.claude/\n")
    made.commit(readme="one\n", src__main="print(1)\n")
    made.git("gc", "--quiet")
    return made.root


@pytest.fixture
def repo(tmp_path: Path, env: dict[str, str], template: Path) -> Repo:
    shutil.copytree(template, tmp_path / "project")
    return Repo(tmp_path / "project", env)


@pytest.fixture(autouse=True)
def place_and_environment_stay() -> Iterator[None]:
    before = os.getcwd(), dict(os.environ)
    yield
    # pytest itself keeps the name of the phase in the environment
    environ = {**os.environ, "PYTEST_CURRENT_TEST": before[1].get("PYTEST_CURRENT_TEST", "")}
    assert (os.getcwd(), environ) == (before[0], {"PYTEST_CURRENT_TEST": "", **before[1]})


@asynccontextmanager
async def in_use(worktrees: Worktrees, name: str = "fix") -> AsyncIterator[tuple[WorktreeRecord, Lease]]:
    record = await worktrees.plan("run-1", name)
    async with worktrees.use(record) as lease:
        yield record, lease


def nothing_left(repo: Repo) -> None:
    assert repo.branches() == ["trunk"]
    assert repo.worktrees() == [str(repo.root)]
    assert not repo.root.with_name("project.ll-loop").exists()


# --- the ordinary ways to end ----------------------------------------------------------------------------


async def test_a_clean_run_leaves_neither_directory_nor_branch_nor_configuration(repo: Repo) -> None:
    config = (repo.root / ".git/config").read_bytes()
    async with in_use(repo.of()) as (record, lease):
        assert (lease.project / "src/main").read_text() == "print(1)\n"
        assert f"locked ll-loop run {record.run_id}" in repo.git("worktree", "list", "--porcelain")
        write(lease.project / "build/out", "ignored, so disposable")
    assert lease.outcome == Removed()
    nothing_left(repo)
    assert (repo.root / ".git/config").read_bytes() == config
    assert repo.git("status", "--porcelain") == ""


async def test_the_printed_command_brings_everything_back(repo: Repo, tmp_path: Path) -> None:
    async with in_use(repo.of()) as (record, lease):
        write(lease.project / "readme", "two\n")
        write(lease.project / "new dir/nö\n\"te'", "untracked")
        (lease.project / "src/main").unlink()
        repo.commit(cwd=lease.project / "new dir", committed="c")
        write(lease.project / "new dir/staged", "s")
        repo.git("add", "new dir/staged", cwd=lease.project)
    assert isinstance(lease.outcome, Kept)
    assert (lease.outcome.branch, lease.outcome.path) == (record.branch, None)
    assert not there(record.path)
    for command in lease.outcome.commands:
        repo.sh("bash", "-c", command, cwd=tmp_path)
    assert (repo.root / "readme").read_text() == "two\n"
    assert (repo.root / "new dir/nö\n\"te'").read_text() == "untracked"
    assert (repo.root / "new dir/committed").read_text() == "c"
    assert (repo.root / "new dir/staged").read_text() == "s"
    assert not (repo.root / "src/main").exists()


async def test_work_left_is_one_commit_in_the_users_name_without_hooks_or_signature(repo: Repo, tmp_path: Path) -> None:
    repo.git("config", "user.name", "Grace")
    repo.git("config", "commit.gpgsign", "true")
    repo.git("config", "gpg.program", str(script(tmp_path / "gpg", "exec sleep 60")))
    script(repo.root / ".git/hooks/pre-commit", "exit 1")
    async with in_use(repo.of()) as (record, lease):
        write(lease.project / "note", "n")
    assert isinstance(lease.outcome, Kept)
    said = repo.git("log", "--format=%an <%ae> %s", f"{record.base}..{record.branch}")
    assert said == "Grace <ll-loop@localhost> ll-loop: work left by run run-1"


async def test_commits_that_were_merged_meanwhile_need_no_branch(repo: Repo) -> None:
    async with in_use(repo.of()) as (record, lease):
        repo.commit(cwd=lease.project, more="m")
        repo.git("merge", "--quiet", record.branch)
    assert lease.outcome == Removed()
    nothing_left(repo)


async def test_a_failing_run_loses_nothing_either(repo: Repo) -> None:
    leases = []

    async def fail() -> None:
        async with in_use(repo.of()) as (_, lease):
            leases.append(lease)
            write(lease.project / "note", "n")
            raise ValueError("the run failed")

    with pytest.raises(ValueError, match="the run failed"):
        await fail()
    assert isinstance(leases[0].outcome, Kept)
    assert repo.git("show", f"{leases[0].outcome.branch}:note") == "n"


async def test_a_cancelled_run_is_finished_before_the_cancellation_goes_on(repo: Repo) -> None:
    leases = []
    with anyio.CancelScope() as scope:
        async with in_use(repo.of()) as (_, lease):
            leases.append(lease)
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert leases[0].outcome == Removed()
    nothing_left(repo)


async def test_finishing_has_an_end_and_what_is_not_done_stays(repo: Repo, tmp_path: Path) -> None:
    env = repo.env | {"PATH": f"{tmp_path}/bin:{repo.env['PATH']}"}
    worktrees = repo.of(env=env, clean_up=0.2)
    async with in_use(worktrees) as (record, lease):
        script(tmp_path / "bin/git", "exec sleep 60")
    assert isinstance(lease.outcome, Kept)
    assert lease.outcome.path == record.path
    assert there(record.path, "readme")
    assert await repo.of().finish(record) == Removed()


# --- what is never committed, and what is never deleted --------------------------------------------------


async def test_listed_files_come_along_and_unchanged_they_go_again(repo: Repo, tmp_path: Path) -> None:
    write(repo.root / ".env", "SECRET=1")
    write(repo.root / "local/deep/a", "a")
    (repo.root / "local/link").symlink_to("deep/a")
    write(repo.root / "readme", "tracked, so the commit's text counts")
    script(repo.root / "tool", "true")
    async with in_use(repo.of(copy_files=(".env", "local", "tool", "readme", "missing"))) as (_, lease):
        assert (lease.project / ".env").stat().st_mode & 0o777 == 0o600
        assert (lease.project / "tool").stat().st_mode & 0o111
        assert (lease.project / "local/deep/a").read_text() == "a"
        assert os.readlink(lease.project / "local/link") == "deep/a"
        assert (lease.project / "readme").read_text() == "one\n"
        assert not (lease.project / "missing").exists()
    assert lease.outcome == Removed()


@pytest.mark.parametrize("change", ["edited", "new", "staged", "in a subdirectory"])
async def test_a_changed_secret_keeps_the_directory_and_is_in_no_commit(repo: Repo, change: str) -> None:
    if change == "edited":
        write(repo.root / ".env", "SECRET=1")
    async with in_use(repo.of()) as (record, lease):
        place = lease.project / ("backend/.env" if change == "in a subdirectory" else ".env")
        if change != "edited":
            write(lease.project / ".gitignore", "")
        write(place, "SECRET=2")
        write(lease.project / "readme", "two\n")
        if change == "staged":
            repo.git("add", "--force", ".env", cwd=lease.project)
    assert isinstance(lease.outcome, Kept)
    assert lease.outcome.path == record.path
    assert ".env" in lease.outcome.reason
    (command,) = lease.outcome.commands
    assert repo.sh("bash", "-c", f"{command} && cat readme {place}") == "two\nSECRET=2"
    assert repo.git("log", "--all", "--format=%s", "--", ".env", "backend/.env") == ""
    assert f"locked ll-loop run {record.run_id}" in repo.git("worktree", "list", "--porcelain")


async def test_an_unresolved_conflict_stays_where_it_is(repo: Repo) -> None:
    async with in_use(repo.of()) as (record, lease):
        repo.commit(cwd=lease.project, readme="theirs\n")
        repo.commit(readme="ours\n")
        with pytest.raises(AssertionError):
            repo.git("merge", "trunk", cwd=lease.project)
    assert isinstance(lease.outcome, Kept)
    assert lease.outcome.path == record.path
    assert "<<<<<<<" in repo.sh("cat", f"{record.path}/readme")


async def test_a_repository_inside_stays_with_its_commits(repo: Repo) -> None:
    async with in_use(repo.of()) as (record, lease):
        (lease.project / "clone").mkdir()
        repo.git("init", "--quiet", cwd=lease.project / "clone")
        repo.commit(cwd=lease.project / "clone", inner="i")
    assert isinstance(lease.outcome, Kept)
    assert lease.outcome.path == record.path
    assert there(record.path, "clone/inner")


async def test_a_deleted_git_file_never_leads_to_commits_in_the_tree_around(repo: Repo) -> None:
    head = repo.git("rev-parse", "HEAD")
    async with in_use(repo.of(base_dir=Path("build/trees"))) as (record, lease):
        assert Path(record.path).is_relative_to(repo.root)
        (lease.project / ".git").unlink()
        write(lease.project / "note", "n")
    assert isinstance(lease.outcome, Kept)
    assert lease.outcome.path == record.path
    assert there(record.path, "note")
    assert repo.git("rev-parse", "HEAD", record.branch).split() == [head, head]
    with pytest.raises(RefusedError):
        await repo.of().adopt(record)


@pytest.mark.parametrize("how", ["detached", "other branch"])
async def test_work_on_another_head_ends_up_on_a_branch(repo: Repo, how: str) -> None:
    async with in_use(repo.of()) as (record, lease):
        repo.git("checkout", "--quiet", *(["--detach"] if how == "detached" else ["-b", "idea"]), cwd=lease.project)
        repo.commit(cwd=lease.project, more="m")
    assert isinstance(lease.outcome, Kept)
    assert lease.outcome.branch == (record.branch if how == "detached" else "idea")
    assert lease.outcome.path is None
    assert repo.git("show", f"{lease.outcome.branch}:more") == "m"


async def test_a_head_that_left_the_runs_branch_keeps_the_directory(repo: Repo) -> None:
    async with in_use(repo.of()) as (record, lease):
        repo.commit(cwd=lease.project, first="1")
        repo.git("checkout", "--quiet", "--detach", "HEAD~1", cwd=lease.project)
        repo.commit(cwd=lease.project, second="2")
    assert isinstance(lease.outcome, Kept)
    assert lease.outcome.path == record.path


@pytest.mark.parametrize("deed", ["nothing", "a commit", "a detached commit"])
async def test_a_directory_deleted_by_somebody_costs_no_commit(repo: Repo, deed: str) -> None:
    async with in_use(repo.of()) as (_, lease):
        if deed == "a detached commit":
            repo.git("checkout", "--quiet", "--detach", cwd=lease.project)
        if deed != "nothing":
            repo.commit(cwd=lease.project, more="m")
        shutil.rmtree(lease.project)
    if deed == "nothing":
        assert lease.outcome == Removed()
        nothing_left(repo)
    else:
        assert isinstance(lease.outcome, Kept)
        assert repo.git("show", f"{lease.outcome.branch}:more") == "m"
        assert repo.worktrees() == [str(repo.root)]


async def test_a_lock_file_left_by_a_killed_git_does_not_hinder_saving(repo: Repo) -> None:
    async with in_use(repo.of()) as (_, lease):
        write(lease.project / "note", "n")
        write(Path(repo.git("rev-parse", "--absolute-git-dir", cwd=lease.project), "index.lock"), "")
    assert isinstance(lease.outcome, Kept)
    assert repo.git("show", f"{lease.outcome.branch}:note") == "n"


# --- in the face of others -------------------------------------------------------------------------------


async def test_pruning_and_sweeping_from_the_main_tree_does_no_harm(repo: Repo) -> None:
    async with in_use(repo.of()) as (_, lease):
        repo.sh("bash", "-c", "git worktree prune --expire=now; rm -rf .worktrees/*; git clean -dffxq")
        write(lease.project / "note", "n")
        assert "note" in repo.git("status", "--porcelain", cwd=lease.project)
    assert isinstance(lease.outcome, Kept)


async def test_many_runs_of_two_sessions_never_share_a_path_or_branch(repo: Repo) -> None:
    records: list[WorktreeRecord] = []
    all_there = anyio.Event()

    async def run(worktrees: Worktrees) -> None:
        async with in_use(worktrees, "same") as (record, _):
            records.append(record)
            if len(records) == 6:
                all_there.set()
            await all_there.wait()

    async with anyio.create_task_group() as group:
        for worktrees in (repo.of(patience=10), repo.of(patience=10)):
            for _ in range(3):
                group.start_soon(run, worktrees)
    assert len({record.path for record in records}) == len({record.branch for record in records}) == 6
    nothing_left(repo)


async def test_a_taken_name_is_passed_over_in_planning_and_refused_in_making(repo: Repo) -> None:
    repo.git("branch", "ll-loop/fix-aa")
    repo.git("branch", "ll-loop/fix-cc")
    tokens = iter(["aa", "bb", "cc"])
    worktrees = repo.of(token=lambda: next(tokens))
    record = await worktrees.plan("run-1", "fix")
    assert record.branch == "ll-loop/fix-bb"
    for branch, path in (("ll-loop/fix-cc", record.path), (record.branch, str(repo.root))):
        taken = WorktreeRecord(path, branch, record.base, record.repo, "", "run-1")
        with pytest.raises(RefusedError, match="exists already"):
            await worktrees.create(taken)
    assert repo.branches() == ["ll-loop/fix-aa", "ll-loop/fix-cc", "trunk"]
    assert (repo.root / "readme").exists()


async def test_a_branch_called_like_our_directory_of_branches_is_no_obstacle(repo: Repo) -> None:
    repo.git("branch", "ll-loop")
    async with in_use(repo.of()) as (record, lease):
        assert record.branch.startswith("ll-loop-fix-")
    assert lease.outcome == Removed()
    assert repo.branches() == ["ll-loop", "trunk"]


async def test_leftovers_are_ours_alone(repo: Repo, tmp_path: Path) -> None:
    repo.git("worktree", "add", "--quiet", str(tmp_path / "theirs"), "-b", "theirs")
    worktrees = repo.of()
    async with in_use(worktrees) as (record, _):
        (found,) = await repo.of().leftovers()
        assert (found.path, found.branch, found.run_id) == (record.path, record.branch, "run-1")
        assert found.present
        assert found.record == record
    assert await worktrees.leftovers() == []


# --- names and places ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fix/the thing", "fix-the-thing"),
        ("-rf", "rf"),
        ("naïve ☃ loop", "naive-loop"),
        ("修复", "loop"),
        ("", "loop"),
        ("..", "loop"),
        ("a.lock", "a-lock"),
        ("x" * 200, "x" * 40),
        ("@{u}~1^:?*[\\", "u-1"),
    ],
)
def test_any_name_becomes_a_safe_one(name: str, expected: str) -> None:
    assert slug(name) == expected


async def test_a_loop_with_an_awkward_name_runs_in_a_worktree(repo: Repo) -> None:
    async with in_use(repo.of(), "--force/ ☃ " + "x" * 200) as (record, lease):
        assert record.branch in repo.branches()
        assert len(Path(record.path).name) < 60
    assert lease.outcome == Removed()


async def test_a_run_starts_at_the_present_commit_even_of_a_detached_head(repo: Repo) -> None:
    repo.git("checkout", "--quiet", "--detach")
    head = repo.commit(more="m")
    async with in_use(repo.of()) as (record, lease):
        assert record.base == head
        assert (lease.project / "more").exists()
        write(lease.project / "note", "n")
    assert isinstance(lease.outcome, Kept)
    repo.sh("bash", "-c", lease.outcome.commands[0])
    assert (repo.root / "note").exists()


async def test_a_project_in_a_subdirectory_has_its_place_in_the_worktree(repo: Repo) -> None:
    write(repo.root / "src/.env", "SECRET=1")
    worktrees = repo.of(repo.root / "src")
    await worktrees.check()
    async with in_use(worktrees) as (record, lease):
        assert lease.project == Path(record.path, "src")
        assert (lease.project / ".env").read_text() == "SECRET=1"
    assert lease.outcome == Removed()
    nothing_left(repo)


async def test_a_project_in_a_linked_worktree_of_a_bare_repository_works(repo: Repo, tmp_path: Path) -> None:
    repo.git("clone", "--quiet", "--bare", str(repo.root), str(tmp_path / "bare.git"))
    repo.git("worktree", "add", "--quiet", str(tmp_path / "tree"), "-b", "t", cwd=tmp_path / "bare.git")
    worktrees = repo.of(tmp_path / "tree")
    await worktrees.check()
    async with in_use(worktrees) as (record, lease):
        assert record.path.startswith(f"{tmp_path}/tree.ll-loop/")
        write(lease.project / "note", "n")
    assert isinstance(lease.outcome, Kept)
    repo.sh("bash", "-c", lease.outcome.commands[0])
    assert (tmp_path / "tree/note").exists()


async def test_submodules_stay_empty_and_a_submodule_can_be_the_project(repo: Repo, tmp_path: Path) -> None:
    local = ("-c", "protocol.file.allow=always")
    repo.git("clone", "--quiet", str(repo.root), str(tmp_path / "library"))
    repo.git(*local, "submodule", "--quiet", "add", str(tmp_path / "library"), "module")
    repo.commit()
    async with in_use(repo.of()) as (_, lease):
        assert list((lease.project / "module").iterdir()) == []
    assert lease.outcome == Removed()
    async with in_use(repo.of(repo.root / "module")) as (record, lease):
        assert not Path(record.path).is_relative_to(repo.root)
        write(lease.project / "note", "n")
    assert isinstance(lease.outcome, Kept)
    repo.sh("bash", "-c", lease.outcome.commands[0])
    assert (repo.root / "module/note").exists()
    async with in_use(repo.of()) as (record, lease):
        repo.git(*local, "submodule", "--quiet", "update", "--init", cwd=lease.project)
        repo.commit(cwd=lease.project / "module", own="o")
    assert isinstance(lease.outcome, Kept)
    assert lease.outcome.path == record.path


# --- refusals before anything starts ---------------------------------------------------------------------


def no_repository(repo: Repo) -> Path:
    (repo.root.parent / "plain").mkdir()
    return repo.root.parent / "plain"


def no_commits(repo: Repo) -> Path:
    repo.git("init", "--quiet", "../empty")
    return repo.root.parent / "empty"


def bare(repo: Repo) -> Path:
    repo.git("init", "--quiet", "--bare", "../bare")
    return repo.root.parent / "bare"


def uncommitted(repo: Repo) -> Path:
    write(repo.root / "new/file", "")
    return repo.root / "new"


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (no_repository, "needs a git repository; .*/plain is not in one"),
        (no_commits, "needs at least one commit to start from"),
        (bare, "is a bare repository"),
        (uncommitted, "no file in it is committed yet"),
    ],
)
async def test_what_can_not_have_a_worktree_is_refused_in_a_sentence(
    repo: Repo, kind: Callable[[Repo], Path], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        await repo.of(kind(repo)).check()
    assert caught.value.hint


async def test_a_missing_git_and_a_listed_file_outside_are_refused(repo: Repo, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="git is needed"):
        await repo.of(env={"PATH": str(tmp_path)}).check()
    for name in ("../x", "/etc/passwd"):
        with pytest.raises(UsageError, match="relative to the project"):
            await repo.of(copy_files=(name,)).check()
    await repo.of().check()


# --- failures, deaths and second attempts ----------------------------------------------------------------


@pytest.mark.parametrize("obstacle", ["full disk", "failing hook", "copy in the way"])
async def test_what_can_not_be_made_leaves_nothing_behind(repo: Repo, tmp_path: Path, obstacle: str) -> None:
    env = repo.env
    if obstacle == "full disk":
        repo.commit(big="x" * 200_000)
        real = shutil.which("git", path=env["PATH"])
        script(tmp_path / "bin/git", f'trap "" XFSZ; ulimit -f 64; exec {real} "$@"')
        env = env | {"PATH": f"{tmp_path}/bin:{env['PATH']}"}
    elif obstacle == "failing hook":
        script(repo.root / ".git/hooks/post-checkout", "echo no >&2; exit 1")
    else:
        write(repo.root / ".ll", "a file where a listed file needs a directory")
        repo.commit()
        (repo.root / ".ll").unlink()
        write(repo.root / ".ll/ll.local.md", "")
    worktrees = repo.of(env=env)
    record = await worktrees.plan("run-1", "fix")
    with pytest.raises(CannotCreateError):
        await worktrees.create(record)
    nothing_left(repo)


async def test_cancelling_the_making_leaves_nothing_behind(repo: Repo, tmp_path: Path) -> None:
    script(repo.root / ".git/hooks/post-checkout", f"echo $$ > {tmp_path}/pid; exec sleep 60")
    worktrees = repo.of()
    record = await worktrees.plan("run-1", "fix")
    async with anyio.create_task_group() as group:
        group.start_soon(worktrees.create, record)
        hook = await process_named_in(tmp_path / "pid")
        group.cancel_scope.cancel()
    nothing_left(repo)
    assert not procs.is_alive(hook)


DIES = """
import sys, os, anyio
from pathlib import Path
from ll_loop.run.worktrees.checkout import WorktreeRecord
from ll_loop.run.worktrees.worktree import Worktrees
async def main(deed, project, *fields):
    worktrees, record = Worktrees(Path(project)), WorktreeRecord(*fields)
    if deed == "create":
        await worktrees.create(record)
    else:
        await worktrees.finish(record)
anyio.run(main, *sys.argv[1:])
"""


def killed(repo: Repo, tmp_path: Path, deed: str, at: str, record: WorktreeRecord) -> None:
    """Have another process do it, and die by kill -9 while its git does `at`."""
    real = shutil.which("git", path=repo.env["PATH"])
    half = f"rm -f {record.path}/readme" if at == "remove" else ":"
    script(tmp_path / "deadly/git", f'case " $* " in *" {at} "*) {half}; kill -9 $PPID; exit;; esac\nexec {real} "$@"')
    fields = (record.path, record.branch, record.base, record.repo, record.subdir, record.run_id)
    done = subprocess.run(
        [sys.executable, "-c", DIES, deed, str(repo.root), *fields],
        env=repo.env | {"PATH": f"{tmp_path}/deadly:{repo.env['PATH']}"},
        check=False,
    )
    assert done.returncode == -9


@pytest.mark.parametrize("at", ["add", "checkout"])
async def test_what_a_killed_process_never_finished_making_is_taken_back(repo: Repo, tmp_path: Path, at: str) -> None:
    record = await repo.of().plan("run-1", "fix")
    killed(repo, tmp_path, "create", at, record)
    assert (record.branch in repo.branches()) == (at == "checkout")
    assert await repo.of().finish(record) == Removed()
    nothing_left(repo)


@pytest.mark.parametrize("at", ["update-ref", "remove"])
async def test_a_death_while_finishing_loses_nothing_and_the_next_finds_it(repo: Repo, tmp_path: Path, at: str) -> None:
    worktrees = repo.of()
    record = await worktrees.plan("run-1", "fix")
    write(await worktrees.create(record) / "note", "n")
    killed(repo, tmp_path, "finish", at, record)
    (found,) = await worktrees.leftovers()
    assert found.record == record
    outcome = await worktrees.finish(record)
    assert isinstance(outcome, Kept)
    assert outcome.path is None
    assert repo.git("show", f"{record.branch}:note") == "n"
    assert repo.git("show", f"{record.branch}:readme") == "one"
    assert repo.worktrees() == [str(repo.root)]


async def test_a_second_attempt_takes_up_the_same_worktree(repo: Repo) -> None:
    worktrees = repo.of()
    record = await worktrees.plan("run-1", "fix")
    write(await worktrees.create(record) / "note", "n")
    repo.git("worktree", "unlock", record.path)
    async with worktrees.use(record, adopt=True) as lease:
        assert (lease.project / "note").read_text() == "n"
        assert "locked ll-loop run run-1" in repo.git("worktree", "list", "--porcelain")
    assert isinstance(lease.outcome, Kept)
    assert lease.outcome.path is None
    async with worktrees.use(record, adopt=True) as lease:
        assert (lease.project / "note").read_text() == "n"
        (lease.project / "note").unlink()
    assert isinstance(lease.outcome, Kept)


async def test_a_worktree_that_is_gone_or_somebody_elses_is_not_taken_up(repo: Repo) -> None:
    worktrees = repo.of()
    record = await worktrees.plan("run-1", "fix")
    with pytest.raises(RefusedError, match="is gone"):
        await worktrees.adopt(record)
    await worktrees.create(record)
    repo.git("worktree", "unlock", record.path)
    repo.git("worktree", "lock", "--reason", "mine now", record.path)
    with pytest.raises(RefusedError, match="mine now"):
        await worktrees.adopt(record)


# --- git as a child --------------------------------------------------------------------------------------


async def test_git_never_asks_and_never_hangs(repo: Repo, tmp_path: Path) -> None:
    said = await git(repo.root, "credential", "fill", env=repo.env, timeout=10)
    assert not said.ok
    alias = f"alias.hang=!sleep 60 & echo $! > {tmp_path}/pid; cat; wait"

    async def hang() -> None:
        with pytest.raises(RefusedError, match=r"did not finish within 0\.5 s"):
            await git(repo.root, "-c", alias, "hang", env=repo.env, timeout=0.5)

    async with anyio.create_task_group() as group:
        group.start_soon(hang)
        child = await process_named_in(tmp_path / "pid")
        assert procs.is_alive(child)
    assert not procs.is_alive(child)


async def test_the_variables_of_a_git_hook_do_not_lead_astray(repo: Repo, tmp_path: Path) -> None:
    env = repo.env | {"GIT_DIR": str(tmp_path / "elsewhere"), "GIT_INDEX_FILE": str(tmp_path / "index")}
    async with in_use(repo.of(env=env)) as (_, lease):
        write(lease.project / "note", "n")
    assert isinstance(lease.outcome, Kept)
    assert not (tmp_path / "index").exists()


async def test_somebody_elses_lock_file_is_waited_for_and_never_deleted(repo: Repo) -> None:
    lock = repo.root / ".git/index.lock"
    write(lock, "")
    write(repo.root / "note", "n")
    with pytest.raises(RefusedError, match=r"index\.lock was in the way for 0\.1 s"):
        await git_write(repo.root, "add", "note", env=repo.env, patience=0.1)
    async with anyio.create_task_group() as group:

        async def add() -> None:
            assert (await git_write(repo.root, "add", "note", env=repo.env, patience=5)).ok

        group.start_soon(add)
        await anyio.sleep(0.1)
        lock.unlink()
    assert repo.git("status", "--porcelain") == "A  note"


async def test_one_writer_at_a_time_over_tasks_and_over_processes(repo: Repo) -> None:
    common = repo.root / ".git"
    inside: list[int] = []

    async def work(gate: Gate, number: int) -> None:
        async with gate.hold(common):
            inside.append(number)
            await anyio.sleep(0.02)
            assert inside[-1] == number

    async with anyio.create_task_group() as group:
        for gate in (Gate(), Gate()):
            for number in range(3):
                group.start_soon(work, gate, number * 2 + id(gate))
    assert len(inside) == 6
    with elsewhere_held(common), pytest.raises(RefusedError, match="another ll-loop"):
        async with Gate(patience=0.05).hold(common):
            pytest.fail("two are inside")
    async with Gate(patience=1).hold(common):
        pass


@contextmanager
def elsewhere_held(common: Path) -> Iterator[None]:
    hold = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    argv = [sys.executable, "-c", hold, str(common / "ll-loop.lock")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        yield
        holder.stdin.close()


async def test_errors_of_ours_are_of_one_family(repo: Repo, tmp_path: Path) -> None:
    with pytest.raises(LoopError, match="no such directory"):
        await git(tmp_path / "nowhere", "status", env=repo.env)


@pytest.mark.parametrize(
    ("script", "only"),
    [
        ("git add -A && git commit -qm 'fix(core): a; b | c'", True),
        ('git add a\ngit commit -m "in $PWD (all)"\n', True),
        ("git add a; git commit -m 'push'", True),
        ("git commit -m one; git push", False),
        ("make && git commit -m one", False),
        ("git commit -m one || true", False),
        ('git commit -m "$(make)"', False),
        ("git commit -m one & git status", False),
        ("git log > log", False),
        ("gitk", False),
        ("", False),
    ],
)
def test_a_script_of_git_commands_alone_is_known(script: str, only: bool) -> None:
    assert is_only_git(script) is only
