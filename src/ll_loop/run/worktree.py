"""A run's own checkout: made on a fresh branch, removed when nothing is left in it, otherwise kept in plain sight.

The rule above all others: a directory is deleted only when everything in it that git doesn't ignore is in a
commit that a branch holds. What can't be saved so (changed secrets, conflicts, repositories inside) stays where
it is. The user's page is docs/worktrees.md; when runs get a worktree is for others to decide.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import stat
import unicodedata
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import anyio
import anyio.to_thread
from msgspec import Struct, field, to_builtins

from ..errors import CannotCreateError, LoopError, RefusedError, UsageError
from .git import Gate, Git, GitResult
from .process import Grace, Spawner

COPY_FILES = (".env", ".claude/settings.local.json", ".ll/ll.local.md")
OLDEST_GIT = (2, 34)
BRANCHES = "ll-loop"
LOCK_REASON = "ll-loop run "

_PRIVATE_NAMES = (".env", ".env.local", ".env.*.local")
_UNDER_WAY = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "rebase-merge", "rebase-apply")
_NOTES = "ll-loop.json"
_INDEX = "ll-loop.index"
_ADDED = "ll-loop.added"
_DURABLE = ("-c", "core.fsync=all", "-c", "core.fsyncMethod=batch")
_CHECKOUT_SECONDS = 600.0
_DISCARD_SECONDS = 30.0


# --- values ----------------------------------------------------------------------------------------------


class WorktreeRecord(Struct, frozen=True):
    """One run's worktree as a run's journal keeps it; enough to find, adopt or finish it after a crash.

    `path` and `repo` (the tree that the run was started from) are absolute, `base` is the commit it starts
    at, `subdir` the project's place within the repository, empty for its root.
    """

    path: str
    branch: str
    base: str
    repo: str
    subdir: str
    run_id: str

    @property
    def project(self) -> Path:
        """The directory inside the worktree that corresponds to the project's root."""
        return Path(self.path, self.subdir)


class Removed(Struct, frozen=True):
    """Nothing was left: directory and branch are gone."""


class Kept(Struct, frozen=True):
    """Work is left on `branch`; with a `path`, (some of) it is only there. `commands` bring all of it back."""

    branch: str
    path: str | None
    commands: tuple[str, ...]
    reason: str


Outcome = Removed | Kept


class Lease(Struct):
    """A worktree in use. `outcome` is set when the `use` block has ended; `keep` says why it has to stay as it is."""

    project: Path
    outcome: Outcome | None = None
    keep: str = ""


class Leftover(Struct, frozen=True):
    """A worktree of ours that git knows of, alive or not. `record` is None if it was never finished being made."""

    path: str
    branch: str
    run_id: str
    present: bool
    record: WorktreeRecord | None


class _Repository(Struct, frozen=True):
    top: Path
    common: Path
    subdir: str


class _Registration(Struct, frozen=True):
    """One entry of `git worktree list`; `lock` is the reason, None if it isn't locked."""

    path: str
    branch: str = ""
    lock: str | None = None


class _Notes(Struct, frozen=True):
    """What we know of a finished worktree; kept in its administrative directory, out of the checkout.

    `copies` maps each listed file (relative to the project) to its digest when it was copied. `settled` says
    that all of it was proven saved: what a crash left of the directory since then is to be removed.
    """

    record: WorktreeRecord
    copies: Mapping[str, str] = field(default_factory=dict)
    settled: bool = False


class _Entry(NamedTuple):
    """One line of `git ls-files --stage`; a stage other than 0 is a conflict, mode 160000 a repository."""

    mode: str
    stage: str
    path: str

    @classmethod
    def parse(cls, line: str) -> _Entry:
        facts, path = line.split("\t", 1)
        mode, _, stage = facts.split(" ")
        return cls(mode, stage, path)


class _NotSavedError(Exception):
    """The worktree has to stay: the message says why."""


def random_token() -> str:
    """What makes a name nobody else's: eight hexadecimal digits."""
    return secrets.token_hex(4)


# --- the worktrees of one project ------------------------------------------------------------------------


class Worktrees:
    """Makes, finishes and takes up again the worktrees of one project's runs.

    `base_dir` (relative to the project) is where they go; by default a directory beside the repository.
    `copy_files` are paths relative to the project that git doesn't track but a run needs. `gate` is to be
    shared by everyone in the process. `env` is git's environment, by default this process's at each call.
    """

    def __init__(
        self,
        project: Path,
        base_dir: Path | None = None,
        copy_files: Sequence[str] = COPY_FILES,
        *,
        gate: Gate | None = None,
        env: Mapping[str, str] | None = None,
        spawner: Spawner | None = None,
        token: Callable[[], str] = random_token,
        patience: float = 10.0,
        clean_up: float = 60.0,
    ) -> None:
        self._project = _real(project)
        self._base_dir = base_dir
        self._copy_files = tuple(PurePosixPath(name).as_posix() for name in copy_files)
        self._gate = gate or Gate(patience=patience)
        self._git = Git(env, spawner, patience)
        self._token = token
        self._clean_up = Grace(clean_up)

    def hurry(self) -> None:
        """Clean-ups under way or to come are not waited for: what they would have dealt with stays where it is."""
        self._clean_up.cut()

    async def check(self) -> None:
        """Raise UsageError, with what to do about it, if no run of this project could have a worktree."""
        for name in self._copy_files:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or name == ".":
                raise UsageError(f"files to copy are named relative to the project: {name}")
        said = await self._git.ask(self._project, "--version")
        version = tuple(int(number) for number in re.findall(r"\d+", said.stdout)[:2])
        if version < OLDEST_GIT:
            raise UsageError(f"a worktree needs git 2.34 or newer, this is {said.stdout.strip()}")
        where = await self._locate(self._project)
        base = await self._start(where)
        if where.subdir and not (await self._git.ask(where.top, "cat-file", "-e", f"{base}:{where.subdir}")).ok:
            raise UsageError(
                f"a worktree of {where.subdir} would lack it: no file in it is committed yet",
                hint=f"git add {shlex.quote(where.subdir)}; git commit",
            )

    async def plan(self, run_id: str, loop_name: str) -> WorktreeRecord:
        """A worktree under a name that nobody has, starting at the project's present commit. Makes nothing.

        Write the record down, then `create` it: whatever happens between, it can be found again.
        """
        where = await self._locate(self._project)
        base = await self._start(where)
        place = await self._place(where)
        listed = await self._git.ask(
            where.top, "for-each-ref", "--format=%(refname:lstrip=2)", f"refs/heads/{BRANCHES}"
        )
        taken = set(listed.stdout.splitlines())
        prefix = f"{BRANCHES}-" if BRANCHES in taken else f"{BRANCHES}/"  # a branch can't be a directory as well
        while True:
            name = f"{slug(loop_name)}-{self._token()}"
            if f"{prefix}{name}" not in taken and not _is_there(place / name):
                return WorktreeRecord(str(place / name), f"{prefix}{name}", base, str(where.top), where.subdir, run_id)

    async def create(self, record: WorktreeRecord) -> Path:
        """Make a planned worktree, locked, with the listed files copied; returns the project's place in it.

        Raises RefusedError if its path or branch is taken, CannotCreateError if git or the disk refuses. After
        a failure or a cancellation nothing of it is left: no directory, no branch.
        """
        where = await self._locate(Path(record.repo))
        ours = False
        try:
            async with self._gate.hold(where.common):
                await self._refuse_if_taken(where, record)
                ours = True
                await self._add(where, record, "-b", record.branch, record.path, record.base)
            await self._fill(where, record)
        except BaseException:
            if ours:
                # a failure here must not hide the first one; `finish` and `leftovers` still find the rest
                with suppress(LoopError, OSError), anyio.move_on_after(_DISCARD_SECONDS, shield=True):
                    await self._discard(where, record)
            raise
        return record.project

    async def adopt(self, record: WorktreeRecord) -> Path:
        """The worktree of an earlier attempt again: the same directory, or made anew from the branch kept of it.

        Raises RefusedError if neither is there or somebody else has locked the directory or uses the branch.
        """
        where = await self._locate(Path(record.repo))
        known = (await self._registrations(where)).get(record.path)
        if known and known.lock is not None and known.lock != f"{LOCK_REASON}{record.run_id}":
            raise RefusedError(f"{record.path} is locked by somebody else: {known.lock or 'no reason given'}")
        admin = _admin_of(where, record.path)
        notes, here = _read_notes(admin), _is_there(record.path)
        if known and here and notes and not notes.settled:
            if _admin(where, record) != admin:
                raise RefusedError(f"the .git file of {record.path} was changed", hint="git worktree repair")
            if known.lock is None:
                await self._must(
                    where.top, "worktree", "lock", "--reason", f"{LOCK_REASON}{record.run_id}", record.path
                )
            return record.project
        if here and not known:
            raise RefusedError(f"git no longer knows {record.path}", hint=f"git -C {record.repo} worktree repair")
        return await self._made_anew(where, record)

    async def finish(self, record: WorktreeRecord) -> Outcome:
        """Save what is left, then remove the worktree; or keep it where it can't be proven saved.

        Commits left on the branch, and uncommitted or untracked files (committed there as one more), keep the
        branch. Changed copies, a conflict, a repository inside, or any failure keep the directory, locked. May
        be called again, and for the remains of a killed run. A cancellation leaves it for another call.
        """
        try:
            where = await self._locate(Path(record.repo))
            return await self._settle(where, record)
        except OSError as error:
            return _kept_in_place(record, f"{error.filename or 'saving it'}: {error.strerror}")
        except (_NotSavedError, LoopError) as error:
            return _kept_in_place(record, str(error))

    @asynccontextmanager
    async def use(self, record: WorktreeRecord, *, adopt: bool = False) -> AsyncIterator[Lease]:
        """A worktree for the length of a block; then `lease.outcome` says what became of it.

        Finishing is shielded from cancellation and bounded: what is not done in time stays where it is.
        """
        lease = Lease(await (self.adopt(record) if adopt else self.create(record)))
        try:
            yield lease
        finally:
            lease.outcome = _kept_in_place(record, lease.keep or "there was no time to clean it up")
            if not lease.keep:
                with self._clean_up.limit():
                    lease.outcome = await self.finish(record)

    async def leftovers(self) -> list[Leftover]:
        """Every worktree of ours in this repository, whichever process made it, in git's order."""
        where = await self._locate(self._project)
        found = []
        for known in (await self._registrations(where)).values():
            notes = _read_notes(_admin_of(where, known.path))
            if notes or (known.lock or "").startswith(LOCK_REASON):
                run_id = notes.record.run_id if notes else (known.lock or "").removeprefix(LOCK_REASON)
                record = notes.record if notes else None
                found.append(Leftover(known.path, known.branch, run_id, _is_there(known.path), record))
        return found

    # --- where things are ------------------------------------------------------------------------------

    async def _must(self, cwd: Path, *args: str, timeout: float = 60.0) -> str:
        """Stdout of a git command that writes; CannotCreateError if it fails."""
        said = await self._git.tell(cwd, *args, timeout=timeout)
        if not said.ok:
            raise CannotCreateError(f"git {args[0]}: {said.complaint}")
        return said.stdout

    async def _locate(self, directory: Path) -> _Repository:
        said = await self._git.ask(
            directory, "rev-parse", "--path-format=absolute",
            "--is-inside-work-tree", "--git-common-dir", "--show-toplevel", "--show-prefix",
        )  # fmt: skip
        if said.ok:
            _, common, top, prefix = said.stdout.split("\n")[:4]
            return _Repository(Path(top), _real(common), prefix.rstrip("/"))
        if said.stdout.startswith("false"):
            raise UsageError(
                f"a worktree needs a checkout to start from; {directory} is a bare repository or inside .git",
                hint="run it in a checkout of that repository",
            )
        hint = "git init, or run without a worktree" if "not a git repository" in said.stderr else said.complaint
        raise UsageError(f"a worktree needs a git repository; {directory} is not in one", hint=hint)

    async def _start(self, where: _Repository) -> str:
        base = await self._commit(where, "HEAD")
        if base is None:
            raise UsageError(
                "a worktree needs at least one commit to start from", hint="git commit --allow-empty -m start"
            )
        return base

    async def _commit(self, where: _Repository, name: str) -> str | None:
        said = await self._git.ask(where.top, "rev-parse", "--quiet", "--verify", f"{name}^{{commit}}")
        return said.stdout.strip() if said.ok else None

    async def _place(self, where: _Repository) -> Path:
        """Beside the repository; where that would be inside another checkout, or is read-only, in the state home.

        Never inside a `.git` (agent hosts refuse to edit there) and never inside the checkout itself.
        """
        if self._base_dir is not None:
            return _real(self._project / self._base_dir)
        main = where.common.parent if where.common.name == ".git" else where.top
        around = await self._git.ask(main.parent, "rev-parse", "--is-inside-work-tree")
        if around.stdout.strip() != "true" and os.access(main.parent, os.W_OK):
            return main.parent / f"{main.name}.ll-loop"
        env = os.environ if self._git.env is None else self._git.env
        home = Path(env.get("XDG_STATE_HOME") or Path(env.get("HOME") or Path.home(), ".local", "state"))
        mark = hashlib.sha256(os.fsencode(where.common)).hexdigest()[:8]
        return _real(home) / "ll-loop" / "worktrees" / f"{slug(main.name)}-{mark}"

    async def _registrations(self, where: _Repository) -> dict[str, _Registration]:
        said = await self._git.ask(where.top, "worktree", "list", "--porcelain")
        if not said.ok:
            raise RefusedError(f"git worktree list: {said.complaint}")
        return {entry.path: entry for entry in _parse_list(said.stdout)}

    # --- making ----------------------------------------------------------------------------------------

    async def _refuse_if_taken(self, where: _Repository, record: WorktreeRecord) -> None:
        branch = f"refs/heads/{record.branch}"
        if (await self._git.ask(where.top, "show-ref", "--verify", "--quiet", branch)).ok:
            raise RefusedError(f"a branch {record.branch} exists already")
        if _is_there(record.path) or record.path in await self._registrations(where):
            raise RefusedError(f"{record.path} exists already")

    async def _add(self, where: _Repository, record: WorktreeRecord, *target: str) -> None:
        """Register a worktree, locked, without its files: short, so that the gate is never held for long."""
        lock = ("--lock", "--reason", f"{LOCK_REASON}{record.run_id}")
        try:
            os.makedirs(Path(record.path).parent, exist_ok=True)
        except OSError as error:
            raise CannotCreateError(f"{Path(record.path).parent}: {error.strerror}") from error
        await self._must(where.top, "worktree", "add", "--quiet", "--no-checkout", *lock, *target)

    async def _fill(self, where: _Repository, record: WorktreeRecord) -> None:
        tree = Path(record.path)
        checkout = ("checkout", "--force", "--quiet", "--no-recurse-submodules", record.branch, "--")
        await self._must(tree, *checkout, timeout=_CHECKOUT_SECONDS)
        if not record.project.is_dir():
            raise CannotCreateError(f"{record.subdir} is not in the commit {record.base[:12]}")
        tracked = await self._tracked(record.project, self._copy_files)
        source = Path(record.repo, record.subdir)
        admin = _admin(where, record)
        if admin is None:
            raise CannotCreateError(f"{record.path} was changed while it was being made")
        try:
            copies = await anyio.to_thread.run_sync(_copy, source, record.project, self._copy_files, tracked)
            _write_notes(admin, _Notes(record, copies))
        except OSError as error:
            raise CannotCreateError(f"could not copy into the worktree: {error}") from error

    async def _tracked(self, directory: Path, names: Sequence[str]) -> frozenset[str]:
        """Which files under `names` (relative to `directory`) git tracks: they come with the commit."""
        if not names:
            return frozenset()
        said = await self._git.ask(directory, "ls-files", "-z", "--", *names, extra={"GIT_LITERAL_PATHSPECS": "1"})
        return frozenset(_split(said.stdout))

    async def _made_anew(self, where: _Repository, record: WorktreeRecord) -> Path:
        """Replace what is provably saved, or was never finished, by a fresh checkout of the branch."""
        tip = await self._commit(where, f"refs/heads/{record.branch}")
        if tip is None:
            raise RefusedError(
                f"the worktree of run {record.run_id} is gone, and so is its branch {record.branch}",
                hint="start the run again",
            )
        async with self._gate.hold(where.common):
            await self._drop(where, record)
            await self._add(where, record, record.path, record.branch)
        await self._fill(where, record)
        return record.project

    async def _discard(self, where: _Repository, record: WorktreeRecord) -> None:
        """Take back a worktree that no action has run in."""
        async with self._gate.hold(where.common):
            await self._drop(where, record)
            await self._git.tell(where.top, "update-ref", "-d", f"refs/heads/{record.branch}", record.base)

    async def _drop(self, where: _Repository, record: WorktreeRecord) -> None:
        """Remove directory and registration, locked or not, whole or in pieces. Hold the gate."""
        remove = ("worktree", "remove", "--force", "--force", record.path)
        said = await self._git.tell(where.top, *remove, timeout=_CHECKOUT_SECONDS)
        if _is_there(record.path):
            await anyio.to_thread.run_sync(shutil.rmtree, record.path)
            said = await self._git.tell(where.top, *remove)
        if not said.ok and record.path in await self._registrations(where):
            raise RefusedError(f"git worktree remove: {said.complaint}")
        _remove_if_empty(Path(record.path).parent)

    # --- finishing -------------------------------------------------------------------------------------

    async def _settle(self, where: _Repository, record: WorktreeRecord) -> Outcome:
        known = (await self._registrations(where)).get(record.path)
        here = _is_there(record.path)
        if known is None:
            if here:
                raise _NotSavedError("git no longer knows this directory")
            async with self._gate.hold(where.common):
                _remove_if_empty(Path(record.path).parent)
            return await self._settle_branches(where, record)
        admin = _admin_of(where, record.path)
        notes = _read_notes(admin)
        if notes is None or admin is None:
            if here and known.lock != f"{LOCK_REASON}{record.run_id}":
                raise _NotSavedError("it is not marked as ours")
            await self._discard(where, record)
            return await self._settle_branches(where, record)
        carrier = record.branch
        if not notes.settled:
            carrier = await _Saving(self._git, where, record, admin, notes, self._copy_files).save(here)
            _write_notes(admin, _Notes(record, notes.copies, settled=True))
        async with self._gate.hold(where.common):
            await self._drop(where, record)
        return await self._settle_branches(where, record, carrier)

    async def _settle_branches(self, where: _Repository, record: WorktreeRecord, carrier: str = "") -> Outcome:
        """Delete the run's branch if it adds nothing; name those that hold work found nowhere else."""
        tips = {name: await self._commit(where, f"refs/heads/{name}") for name in (record.branch, carrier) if name}
        kept = [name for name, tip in tips.items() if tip and await self._is_unmerged(where, record, name, tip)]
        own = tips[record.branch]
        if own and record.branch not in kept:
            await self._delete_branch(where, record, own)
        if not kept:
            return Removed()
        commands = tuple(f"git -C {shlex.quote(record.repo)} merge {shlex.quote(name)}" for name in kept)
        return Kept(kept[0], None, commands, "it holds commits that are on no other branch")

    async def _is_unmerged(self, where: _Repository, record: WorktreeRecord, branch: str, tip: str) -> bool:
        """Whether `tip` adds to the base what no other branch, local or remote, has (ours don't count)."""
        beyond = await self._git.ask(where.top, "rev-list", "--count", f"{record.base}..{tip}")
        if beyond.stdout.strip() == "0":
            return False
        holders = await self._git.ask(
            where.top, "for-each-ref", f"--contains={tip}", "--format=%(refname)", "refs/heads", "refs/remotes"
        )
        ours = (f"refs/heads/{BRANCHES}/", f"refs/heads/{BRANCHES}-")
        return all(name == f"refs/heads/{branch}" or name.startswith(ours) for name in holders.stdout.splitlines())

    async def _delete_branch(self, where: _Repository, record: WorktreeRecord, tip: str) -> None:
        """Without touching the configuration, only if it is still at `tip`, and not under somebody's feet."""
        async with self._gate.hold(where.common):
            if all(entry.branch != record.branch for entry in (await self._registrations(where)).values()):
                await self._git.tell(where.top, "update-ref", "-d", f"refs/heads/{record.branch}", tip)


# --- saving what a run left ------------------------------------------------------------------------------


class _Saving:
    """Puts what a worktree holds into commits on a branch, or raises `_NotSavedError`.

    Works on a copy of the index, so that neither a lock file left by a killed git nor a failure half-way
    matters; and names the git directory outright, so that a worktree whose `.git` was deleted can't make us
    commit into the repository around it.
    """

    def __init__(
        self,
        git: Git,
        where: _Repository,
        record: WorktreeRecord,
        admin: Path,
        notes: _Notes,
        copy_files: Sequence[str],
    ) -> None:
        self._runner = git
        self._where = where
        self._record = record
        self._admin = admin
        self._notes = notes
        self._listed = tuple(dict.fromkeys((*copy_files, *notes.copies)))
        self._inside = {
            "GIT_DIR": str(admin),
            "GIT_WORK_TREE": record.path,
            "GIT_INDEX_FILE": str(admin / _INDEX),
            "GIT_LITERAL_PATHSPECS": "1",
        }

    async def save(self, here: bool) -> str:
        """The branch that holds the work now; when the directory is not `here` any more, only its commits."""
        head = await self._head("HEAD^{commit}")
        if not here:
            return await self._place(head, head)
        if _admin(self._where, self._record) != self._admin:
            raise _NotSavedError("its .git file was changed")
        for name in _UNDER_WAY:
            if (self._admin / name).exists():
                raise _NotSavedError(f"a merge or rebase is under way ({name})")
        shutil.copy2(self._admin / "index", self._admin / _INDEX)  # with its time: git compares it to the files'
        entries = [_Entry.parse(line) for line in _split(await self._git("ls-files", "--stage", "-z"))]
        if any(entry.stage != "0" for entry in entries):
            raise _NotSavedError("a conflict is not resolved")
        await self._hold_back_staged_secrets()
        await self._hold_back_copies(entries)
        added = await self._untracked()
        await self._hold_back_repositories(entries, added)
        tip = await self._tip(head, added)
        await self._prove(entries)
        carrier = await self._place(head, tip)
        os.replace(self._admin / _INDEX, self._admin / "index")
        return carrier

    async def _say(self, *args: str, extra: Mapping[str, str] | None = None) -> GitResult:
        more = self._inside | dict(extra or {})
        directory = Path(self._record.path) if _is_there(self._record.path) else self._where.top
        return await self._runner.tell(directory, *args, timeout=_CHECKOUT_SECONDS, extra=more)

    async def _git(self, *args: str, extra: Mapping[str, str] | None = None) -> str:
        said = await self._say(*args, extra=extra)
        if not said.ok:
            raise _NotSavedError(f"git {args[0]}: {said.complaint}")
        return said.stdout

    async def _head(self, name: str) -> str:
        return (await self._git("rev-parse", "--verify", name)).strip()

    def _is_private(self, path: str) -> bool:
        listed = [self._from_root(name) for name in self._listed]
        if any(path == name or path.startswith(f"{name}/") for name in listed):
            return True
        return any(fnmatchcase(PurePosixPath(path).name, pattern) for pattern in _PRIVATE_NAMES)

    def _from_root(self, name: str) -> str:
        return str(PurePosixPath(self._record.subdir, name))

    async def _hold_back_staged_secrets(self) -> None:
        """Listed files and secrets are never committed, unless the project itself tracks them."""
        staged = _split(await self._git("diff", "--cached", "--name-only", "--diff-filter=A", "-z", "HEAD"))
        private = [path for path in staged if self._is_private(path)]
        if private:
            raise _NotSavedError(f"{', '.join(private)} is staged, and is not for committing")

    async def _hold_back_copies(self, entries: Iterable[_Entry]) -> None:
        """A listed file that is not as it was when it was copied keeps the directory."""
        tracked = {entry.path for entry in entries}
        now = await anyio.to_thread.run_sync(_digests, self._record.project, self._listed, frozenset[str]())
        paths = {name: self._from_root(name) for name, digest in now.items() if self._notes.copies.get(name) != digest}
        changed = [path for path in paths.values() if path not in tracked]
        if changed:
            raise _NotSavedError(f"{', '.join(changed)} changed, and is not for committing")

    async def _untracked(self) -> list[str]:
        """What git would add, without the copies (proven unchanged by now)."""
        others = _split(await self._git("ls-files", "--others", "--exclude-standard", "-z"))
        copies = {self._from_root(name) for name in self._notes.copies}
        added = [path for path in others if path not in copies]
        private = [path for path in added if self._is_private(path)]
        if private:
            raise _NotSavedError(f"{', '.join(private)} is new, and is not for committing")
        return added

    async def _hold_back_repositories(self, entries: Iterable[_Entry], added: Sequence[str]) -> None:
        """A repository inside would be committed as a mere link; its own commits would be lost."""
        inner = [path for path in added if path.endswith("/")]
        modules = [entry.path for entry in entries if entry.mode == "160000"]
        filled = [path for path in modules if _has_content(Path(self._record.path, path))]
        if filled:
            differ = ("diff", "--name-only", "--ignore-submodules=none", "-z", self._record.base, "--", *filled)
            inner += _split(await self._git(*differ))
        if inner:
            raise _NotSavedError(f"{', '.join(inner)} is a repository of its own with work in it")

    async def _tip(self, head: str, added: Sequence[str]) -> str:
        """`head`, or a commit on top of it that holds whatever isn't committed."""
        await self._git(*_DURABLE, "add", "--update", "--", self._record.path)
        if added:
            names = self._admin / _ADDED
            names.write_bytes(b"".join(os.fsencode(path) + b"\0" for path in added))
            await self._git(*_DURABLE, "add", f"--pathspec-from-file={names}", "--pathspec-file-nul")
        tree = (await self._git(*_DURABLE, "write-tree")).strip()
        if tree == await self._head(f"{head}^{{tree}}"):
            return head
        message = f"ll-loop: work left by run {self._record.run_id}"
        commit = ("commit-tree", "--no-gpg-sign", "-p", head, "-m", message, tree)
        return (await self._git(*_DURABLE, *commit, extra=await self._identity())).strip()

    async def _identity(self) -> dict[str, str]:
        """Who commits, for what the user hasn't said; nothing is written to any configuration."""
        extra = {}
        for key, value in (("name", "ll-loop"), ("email", "ll-loop@localhost")):
            if not (await self._say("config", "--get", f"user.{key}")).stdout.strip():
                given = os.environ if self._runner.env is None else self._runner.env
                for role in ("AUTHOR", "COMMITTER"):
                    variable = f"GIT_{role}_{key.upper()}"
                    extra[variable] = given.get(variable) or value
        return extra

    async def _place(self, head: str, tip: str) -> str:
        """Make sure that a branch holds `tip`; which one."""
        said = await self._say("symbolic-ref", "--quiet", "--short", "HEAD")
        current, ours = said.stdout.strip(), f"refs/heads/{self._record.branch}"
        if current == self._record.branch:
            await self._move(ours, tip, head)
            return current
        if current and tip == head:
            return current
        said = await self._say("rev-parse", "--quiet", "--verify", ours)
        at = said.stdout.strip() if said.ok else None
        if at is None or await self._is_ancestor(at, tip):
            await self._move(ours, tip, at or "0" * len(tip))
        elif not await self._is_ancestor(tip, at):
            raise _NotSavedError(f"its HEAD has left the branch {self._record.branch}")
        return self._record.branch

    async def _move(self, ref: str, new: str, old: str) -> None:
        if new != old:
            await self._git(*_DURABLE, "update-ref", "-m", "ll-loop: work left", ref, new, old)

    async def _is_ancestor(self, old: str, new: str) -> bool:
        return (await self._say("merge-base", "--is-ancestor", old, new)).ok

    async def _prove(self, entries: Iterable[_Entry]) -> None:
        """Nothing has changed since: the files are those of the index that was committed."""
        if not (await self._say("update-index", "-q", "--refresh")).ok or await self._untracked():
            raise _NotSavedError("files in it are still changing")
        await self._hold_back_copies(entries)


# --- names and lists -------------------------------------------------------------------------------------


def slug(name: str) -> str:
    """At most 40 characters of a name that are safe in a branch, in a path and as an argument; never empty."""
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_]+", "-", ascii_only)[:60].strip("-_")[:40].strip("-_") or "loop"


def _parse_list(porcelain: str) -> Iterator[_Registration]:
    for block in porcelain.split("\n\n"):
        keys = dict(line.partition(" ")[::2] for line in block.splitlines())
        if "worktree" in keys:
            branch = keys.get("branch", "").removeprefix("refs/heads/")
            yield _Registration(keys["worktree"], branch, keys.get("locked"))


def _split(listing: str) -> list[str]:
    return [part for part in listing.split("\0") if part]


def _kept_in_place(record: WorktreeRecord, reason: str) -> Kept:
    if _is_there(record.path):
        return Kept(record.branch, record.path, (f"cd {shlex.quote(record.path)}",), reason)
    merge = f"git -C {shlex.quote(record.repo)} merge {shlex.quote(record.branch)}"
    return Kept(record.branch, None, (merge,), reason)


def _real(path: str | Path) -> Path:
    return Path(os.path.realpath(path))


def _is_there(path: str | Path) -> bool:
    return os.path.lexists(path)


# --- a worktree's administrative directory ---------------------------------------------------------------


def _admin(where: _Repository, record: WorktreeRecord) -> Path | None:
    """`<common>/worktrees/<id>` as the worktree's own `.git` file names it; None if it names anything else."""
    try:
        text = Path(record.path, ".git").read_text("utf-8", "surrogateescape")
    except OSError:
        return None
    admin = _real(Path(record.path, text.removeprefix("gitdir:").strip()))
    return admin if admin == _admin_of(where, record.path) else None


def _admin_of(where: _Repository, path: str) -> Path | None:
    """`<common>/worktrees/<id>` of the worktree at `path`, whether or not that is still there."""
    for pointer in (where.common / "worktrees").glob("*/gitdir"):
        try:
            target = pointer.read_text("utf-8", "surrogateescape").strip()
        except FileNotFoundError:  # another worktree, removed at this moment
            continue
        if os.path.normpath(pointer.parent / target) == str(Path(path, ".git")):
            return pointer.parent
    return None


def _read_notes(admin: Path | None) -> _Notes | None:
    if admin is None:
        return None
    try:
        data = json.loads((admin / _NOTES).read_bytes())
        return _Notes(WorktreeRecord(**data["record"]), data["copies"], data["settled"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise RefusedError(f"{admin / _NOTES} can't be read: {error}") from error


def _write_notes(admin: Path, notes: _Notes) -> None:
    """Replaced as a whole and on disk when this returns."""
    temporary = admin / f"{_NOTES}.tmp"
    with open(temporary, "w", encoding="ascii") as file:
        json.dump(to_builtins(notes), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, admin / _NOTES)


# --- files that are copied -------------------------------------------------------------------------------


def _files(root: Path, names: Iterable[str], skip: Collection[str]) -> Iterator[str]:
    """The regular files and links at and under `names`, relative to `root`; links are not followed."""
    for name in names:
        found = root / name
        if found.is_dir() and not found.is_symlink():
            yield from _files(root, sorted(f"{name}/{child}" for child in os.listdir(found)), skip)
        elif name not in skip and (found.is_symlink() or found.is_file()):
            yield name


def _digests(root: Path, names: Iterable[str], skip: Collection[str]) -> dict[str, str]:
    return {name: _digest(root / name) for name in _files(root, names, skip)}


def _digest(path: Path) -> str:
    if path.is_symlink():
        return f"link:{os.readlink(path)}"
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _copy(source: Path, target: Path, names: Sequence[str], tracked: Collection[str]) -> dict[str, str]:
    """Copy what exists of `names`, links as links, `.env` files for the owner alone; the digests of the copies."""
    copies = {}
    for name in _files(source, names, tracked):
        place = target / name
        if _through_link(target, name) or os.path.lexists(place):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if (source / name).is_symlink():
            os.symlink(os.readlink(source / name), place)
        else:
            _copy_file(source / name, place)
        copies[name] = _digest(place)
    return copies


def _copy_file(source: Path, place: Path) -> None:
    secret = place.name.startswith(".env")
    descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(source, "rb") as reader, open(descriptor, "wb") as writer:
        shutil.copyfileobj(reader, writer)
        os.fchmod(descriptor, 0o600 if secret else stat.S_IMODE(os.fstat(reader.fileno()).st_mode))


def _through_link(root: Path, name: str) -> bool:
    """Whether writing there would leave the worktree by a link that the project tracks."""
    return any((root / parent).is_symlink() for parent in list(PurePosixPath(name).parents)[:-1])


def _has_content(directory: Path) -> bool:
    return directory.is_dir() and any(directory.iterdir())


def _remove_if_empty(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError:
        return
