"""A run's own checkout: made on a fresh branch, removed when nothing is left in it, otherwise kept in plain sight.

The rule above all others: a directory is deleted only when everything in it that git doesn't ignore is in a
commit that a branch holds. What can't be saved so (changed secrets, conflicts, repositories inside) stays where
it is. The user's page is docs/worktrees.md; when runs get a worktree is for others to decide.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shlex
import shutil
import unicodedata
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path, PurePosixPath

import anyio
import anyio.to_thread
from msgspec import Struct
from msgspec.structs import replace

from ...errors import CannotCreateError, LoopError, RefusedError, UsageError
from ..children.process import Spawner
from ..children.tree import Grace
from .checkout import (
    CHECKOUT_SECONDS,
    Notes,
    Registration,
    Repository,
    WorktreeRecord,
    admin_folder,
    admin_of,
    copy,
    is_there,
    read_notes,
    real_path,
    remove_if_empty,
    split_nul,
    write_notes,
)
from .git import Gate, Git
from .saving import NotSavedError, Saving

COPY_FILES = (".env", ".claude/settings.local.json", ".ll/ll.local.md")
OLDEST_GIT = (2, 34)
BRANCHES = "ll-loop"
LOCK_REASON = "ll-loop run "
_DISCARD_SECONDS = 30.0
_NO_TIME = "there was no time to clean it up"


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


def random_token() -> str:
    """What makes a name nobody else's: eight hexadecimal digits."""
    return secrets.token_hex(4)


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
        self._project = real_path(project)
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
            if f"{prefix}{name}" not in taken and not is_there(place / name):
                return WorktreeRecord(str(place / name), f"{prefix}{name}", base, str(where.top), where.subdir, run_id)

    async def borrow(self, run_id: str, branch: str) -> WorktreeRecord:
        """A worktree for a branch that is there already. Makes nothing: `adopt` it.

        What a killed attempt of the run left of one is put away first. RefusedError if there is no such branch.
        """
        where = await self._locate(self._project)
        base = await self._commit(where, f"refs/heads/{branch}")
        if base is None:
            raise RefusedError(f"there is no branch {branch}")
        path = str(await self._place(where) / f"{slug(branch)}-{self._token()}")
        record = WorktreeRecord(path, branch, base, str(where.top), where.subdir, run_id, borrowed=True)
        for left in await self.leftovers():
            if (left.run_id, left.branch) == (run_id, branch):
                await self.put_away(left.record or replace(record, path=left.path))
        return record

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
        admin = admin_of(where, record.path)
        notes, here = read_notes(admin), is_there(record.path)
        if known and here and notes and not notes.settled:
            if admin_folder(where, record) != admin:
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
        except (NotSavedError, LoopError) as error:
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
            lease.outcome = _kept_in_place(record, lease.keep or _NO_TIME)
            if not lease.keep:
                lease.outcome = await self.put_away(record)

    async def put_away(self, record: WorktreeRecord) -> Outcome:
        """`finish` it, cancelled or not; what is not done in time stays where it is."""
        with self._clean_up.limit():
            return await self.finish(record)
        return _kept_in_place(record, _NO_TIME)

    async def leftovers(self) -> list[Leftover]:
        """Every worktree of ours in this repository, whichever process made it, in git's order."""
        where = await self._locate(self._project)
        found = []
        for known in (await self._registrations(where)).values():
            notes = read_notes(admin_of(where, known.path))
            if notes or (known.lock or "").startswith(LOCK_REASON):
                run_id = notes.record.run_id if notes else (known.lock or "").removeprefix(LOCK_REASON)
                record = notes.record if notes else None
                found.append(Leftover(known.path, known.branch, run_id, is_there(known.path), record))
        return found

    # --- where things are ------------------------------------------------------------------------------

    async def _must(self, cwd: Path, *args: str, timeout: float = 60.0) -> str:
        """Stdout of a git command that writes; CannotCreateError if it fails."""
        said = await self._git.tell(cwd, *args, timeout=timeout)
        if not said.ok:
            raise CannotCreateError(f"git {args[0]}: {said.complaint}")
        return said.stdout

    async def _locate(self, directory: Path) -> Repository:
        said = await self._git.ask(
            directory, "rev-parse", "--path-format=absolute",
            "--is-inside-work-tree", "--git-common-dir", "--show-toplevel", "--show-prefix",
        )  # fmt: skip
        if said.ok:
            _, common, top, prefix = said.stdout.split("\n")[:4]
            return Repository(Path(top), real_path(common), prefix.rstrip("/"))
        if said.stdout.startswith("false"):
            raise UsageError(
                f"a worktree needs a checkout to start from; {directory} is a bare repository or inside .git",
                hint="run it in a checkout of that repository",
            )
        hint = "git init, or run without a worktree" if "not a git repository" in said.stderr else said.complaint
        raise UsageError(f"a worktree needs a git repository; {directory} is not in one", hint=hint)

    async def _start(self, where: Repository) -> str:
        base = await self._commit(where, "HEAD")
        if base is None:
            raise UsageError(
                "a worktree needs at least one commit to start from", hint="git commit --allow-empty -m start"
            )
        return base

    async def _commit(self, where: Repository, name: str) -> str | None:
        said = await self._git.ask(where.top, "rev-parse", "--quiet", "--verify", f"{name}^{{commit}}")
        return said.stdout.strip() if said.ok else None

    async def _place(self, where: Repository) -> Path:
        """Beside the repository; where that would be inside another checkout, or is read-only, in the state home.

        Never inside a `.git` (agent hosts refuse to edit there) and never inside the checkout itself.
        """
        if self._base_dir is not None:
            return real_path(self._project / self._base_dir)
        main = where.common.parent if where.common.name == ".git" else where.top
        around = await self._git.ask(main.parent, "rev-parse", "--is-inside-work-tree")
        if around.stdout.strip() != "true" and os.access(main.parent, os.W_OK):
            return main.parent / f"{main.name}.ll-loop"
        env = os.environ if self._git.env is None else self._git.env
        home = Path(env.get("XDG_STATE_HOME") or Path(env.get("HOME") or Path.home(), ".local", "state"))
        mark = hashlib.sha256(os.fsencode(where.common)).hexdigest()[:8]
        return real_path(home) / "ll-loop" / "worktrees" / f"{slug(main.name)}-{mark}"

    async def _registrations(self, where: Repository) -> dict[str, Registration]:
        said = await self._git.ask(where.top, "worktree", "list", "--porcelain")
        if not said.ok:
            raise RefusedError(f"git worktree list: {said.complaint}")
        return {entry.path: entry for entry in _parse_list(said.stdout)}

    # --- making ----------------------------------------------------------------------------------------

    async def _refuse_if_taken(self, where: Repository, record: WorktreeRecord) -> None:
        branch = f"refs/heads/{record.branch}"
        if (await self._git.ask(where.top, "show-ref", "--verify", "--quiet", branch)).ok:
            raise RefusedError(f"a branch {record.branch} exists already")
        if is_there(record.path) or record.path in await self._registrations(where):
            raise RefusedError(f"{record.path} exists already")

    async def _add(self, where: Repository, record: WorktreeRecord, *target: str) -> None:
        """Register a worktree, locked, without its files: short, so that the gate is never held for long."""
        lock = ("--lock", "--reason", f"{LOCK_REASON}{record.run_id}")
        try:
            os.makedirs(Path(record.path).parent, exist_ok=True)
        except OSError as error:
            raise CannotCreateError(f"{Path(record.path).parent}: {error.strerror}") from error
        await self._must(where.top, "worktree", "add", "--quiet", "--no-checkout", *lock, *target)

    async def _fill(self, where: Repository, record: WorktreeRecord) -> None:
        tree = Path(record.path)
        checkout = ("checkout", "--force", "--quiet", "--no-recurse-submodules", record.branch, "--")
        await self._must(tree, *checkout, timeout=CHECKOUT_SECONDS)
        if not record.project.is_dir():
            raise CannotCreateError(f"{record.subdir} is not in the commit {record.base[:12]}")
        tracked = await self._tracked(record.project, self._copy_files)
        source = Path(record.repo, record.subdir)
        admin = admin_folder(where, record)
        if admin is None:
            raise CannotCreateError(f"{record.path} was changed while it was being made")
        try:
            copies = await anyio.to_thread.run_sync(copy, source, record.project, self._copy_files, tracked)
            write_notes(admin, Notes(record, copies))
        except OSError as error:
            raise CannotCreateError(f"could not copy into the worktree: {error}") from error

    async def _tracked(self, directory: Path, names: Sequence[str]) -> frozenset[str]:
        """Which files under `names` (relative to `directory`) git tracks: they come with the commit."""
        if not names:
            return frozenset()
        said = await self._git.ask(directory, "ls-files", "-z", "--", *names, extra={"GIT_LITERAL_PATHSPECS": "1"})
        return frozenset(split_nul(said.stdout))

    async def _made_anew(self, where: Repository, record: WorktreeRecord) -> Path:
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

    async def _discard(self, where: Repository, record: WorktreeRecord) -> None:
        """Take back a worktree that no action has run in."""
        async with self._gate.hold(where.common):
            await self._drop(where, record)
            if not record.borrowed:
                await self._git.tell(where.top, "update-ref", "-d", f"refs/heads/{record.branch}", record.base)

    async def _drop(self, where: Repository, record: WorktreeRecord) -> None:
        """Remove directory and registration, locked or not, whole or in pieces. Hold the gate."""
        remove = ("worktree", "remove", "--force", "--force", record.path)
        said = await self._git.tell(where.top, *remove, timeout=CHECKOUT_SECONDS)
        if is_there(record.path):
            await anyio.to_thread.run_sync(shutil.rmtree, record.path)
            said = await self._git.tell(where.top, *remove)
        if not said.ok and record.path in await self._registrations(where):
            raise RefusedError(f"git worktree remove: {said.complaint}")
        remove_if_empty(Path(record.path).parent)

    # --- finishing -------------------------------------------------------------------------------------

    async def _settle(self, where: Repository, record: WorktreeRecord) -> Outcome:
        known = (await self._registrations(where)).get(record.path)
        here = is_there(record.path)
        if known is None:
            if here:
                raise NotSavedError("git no longer knows this directory")
            async with self._gate.hold(where.common):
                remove_if_empty(Path(record.path).parent)
            return await self._settle_branches(where, record)
        admin = admin_of(where, record.path)
        notes = read_notes(admin)
        if notes is None or admin is None:
            if here and known.lock != f"{LOCK_REASON}{record.run_id}":
                raise NotSavedError("it is not marked as ours")
            await self._discard(where, record)
            return await self._settle_branches(where, record)
        carrier = record.branch
        if not notes.settled:
            carrier = await Saving(self._git, where, record, admin, notes, self._copy_files).save(here)
            write_notes(admin, Notes(record, notes.copies, settled=True))
        async with self._gate.hold(where.common):
            await self._drop(where, record)
        return await self._settle_branches(where, record, carrier)

    async def _settle_branches(self, where: Repository, record: WorktreeRecord, carrier: str = "") -> Outcome:
        """Delete the run's branch if it adds nothing; name those that hold work found nowhere else."""
        names = {name for name in (record.branch, carrier) if name}
        if record.borrowed:  # its branch is the user's own, and holds what was done
            names.discard(record.branch)
        tips = {name: await self._commit(where, f"refs/heads/{name}") for name in names}
        kept = [name for name, tip in tips.items() if tip and await self._is_unmerged(where, record, name, tip)]
        own = tips.get(record.branch)
        if own and record.branch not in kept:
            await self._delete_branch(where, record, own)
        if not kept:
            return Removed()
        commands = tuple(f"git -C {shlex.quote(record.repo)} merge {shlex.quote(name)}" for name in kept)
        return Kept(kept[0], None, commands, "it holds commits that are on no other branch")

    async def _is_unmerged(self, where: Repository, record: WorktreeRecord, branch: str, tip: str) -> bool:
        """Whether `tip` adds to the base what no other branch, local or remote, has (ours don't count)."""
        beyond = await self._git.ask(where.top, "rev-list", "--count", f"{record.base}..{tip}")
        if beyond.stdout.strip() == "0":
            return False
        holders = await self._git.ask(
            where.top, "for-each-ref", f"--contains={tip}", "--format=%(refname)", "refs/heads", "refs/remotes"
        )
        ours = (f"refs/heads/{BRANCHES}/", f"refs/heads/{BRANCHES}-")
        return all(name == f"refs/heads/{branch}" or name.startswith(ours) for name in holders.stdout.splitlines())

    async def _delete_branch(self, where: Repository, record: WorktreeRecord, tip: str) -> None:
        """Without touching the configuration, only if it is still at `tip`, and not under somebody's feet."""
        async with self._gate.hold(where.common):
            if all(entry.branch != record.branch for entry in (await self._registrations(where)).values()):
                await self._git.tell(where.top, "update-ref", "-d", f"refs/heads/{record.branch}", tip)


def slug(name: str) -> str:
    """At most 40 characters of a name that are safe in a branch, in a path and as an argument; never empty."""
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_]+", "-", ascii_only)[:60].strip("-_")[:40].strip("-_") or "loop"


def _parse_list(porcelain: str) -> Iterator[Registration]:
    for block in porcelain.split("\n\n"):
        keys = dict(line.partition(" ")[::2] for line in block.splitlines())
        if "worktree" in keys:
            branch = keys.get("branch", "").removeprefix("refs/heads/")
            yield Registration(keys["worktree"], branch, keys.get("locked"))


def _kept_in_place(record: WorktreeRecord, reason: str) -> Kept:
    if is_there(record.path):
        return Kept(record.branch, record.path, (f"cd {shlex.quote(record.path)}",), reason)
    merge = f"git -C {shlex.quote(record.repo)} merge {shlex.quote(record.branch)}"
    return Kept(record.branch, None, (merge,), reason)
