"""Putting what a worktree holds into commits on a branch, before its directory goes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import anyio
import anyio.to_thread

from .checkout import (
    CHECKOUT_SECONDS,
    Notes,
    Repository,
    WorktreeRecord,
    admin_folder,
    digests,
    has_content,
    is_there,
    split_nul,
)
from .git import Git, GitResult

_PRIVATE_NAMES = (".env", ".env.local", ".env.*.local")
_UNDER_WAY = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "rebase-merge", "rebase-apply")
_INDEX = "ll-loop.index"
_ADDED = "ll-loop.added"
_DURABLE = ("-c", "core.fsync=all", "-c", "core.fsyncMethod=batch")


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


class NotSavedError(Exception):
    """The worktree has to stay: the message says why."""


class Saving:
    """Puts what a worktree holds into commits on a branch, or raises `NotSavedError`.

    Works on a copy of the index, so that neither a lock file left by a killed git nor a failure half-way
    matters; and names the git directory outright, so that a worktree whose `.git` was deleted can't make us
    commit into the repository around it.
    """

    def __init__(
        self,
        git: Git,
        where: Repository,
        record: WorktreeRecord,
        admin: Path,
        notes: Notes,
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
        if admin_folder(self._where, self._record) != self._admin:
            raise NotSavedError("its .git file was changed")
        for name in _UNDER_WAY:
            if (self._admin / name).exists():
                raise NotSavedError(f"a merge or rebase is under way ({name})")
        shutil.copy2(self._admin / "index", self._admin / _INDEX)  # with its time: git compares it to the files'
        entries = [_Entry.parse(line) for line in split_nul(await self._git("ls-files", "--stage", "-z"))]
        if any(entry.stage != "0" for entry in entries):
            raise NotSavedError("a conflict is not resolved")
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
        directory = Path(self._record.path) if is_there(self._record.path) else self._where.top
        return await self._runner.tell(directory, *args, timeout=CHECKOUT_SECONDS, extra=more)

    async def _git(self, *args: str, extra: Mapping[str, str] | None = None) -> str:
        said = await self._say(*args, extra=extra)
        if not said.ok:
            raise NotSavedError(f"git {args[0]}: {said.complaint}")
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
        staged = split_nul(await self._git("diff", "--cached", "--name-only", "--diff-filter=A", "-z", "HEAD"))
        private = [path for path in staged if self._is_private(path)]
        if private:
            raise NotSavedError(f"{', '.join(private)} is staged, and is not for committing")

    async def _hold_back_copies(self, entries: Iterable[_Entry]) -> None:
        """A listed file that is not as it was when it was copied keeps the directory."""
        tracked = {entry.path for entry in entries}
        now = await anyio.to_thread.run_sync(digests, self._record.project, self._listed, frozenset[str]())
        paths = {name: self._from_root(name) for name, digest in now.items() if self._notes.copies.get(name) != digest}
        changed = [path for path in paths.values() if path not in tracked]
        if changed:
            raise NotSavedError(f"{', '.join(changed)} changed, and is not for committing")

    async def _untracked(self) -> list[str]:
        """What git would add, without the copies (proven unchanged by now)."""
        others = split_nul(await self._git("ls-files", "--others", "--exclude-standard", "-z"))
        copies = {self._from_root(name) for name in self._notes.copies}
        added = [path for path in others if path not in copies]
        private = [path for path in added if self._is_private(path)]
        if private:
            raise NotSavedError(f"{', '.join(private)} is new, and is not for committing")
        return added

    async def _hold_back_repositories(self, entries: Iterable[_Entry], added: Sequence[str]) -> None:
        """A repository inside would be committed as a mere link; its own commits would be lost."""
        inner = [path for path in added if path.endswith("/")]
        modules = [entry.path for entry in entries if entry.mode == "160000"]
        filled = [path for path in modules if has_content(Path(self._record.path, path))]
        if filled:
            differ = ("diff", "--name-only", "--ignore-submodules=none", "-z", self._record.base, "--", *filled)
            inner += split_nul(await self._git(*differ))
        if inner:
            raise NotSavedError(f"{', '.join(inner)} is a repository of its own with work in it")

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
            raise NotSavedError(f"its HEAD has left the branch {self._record.branch}")
        return self._record.branch

    async def _move(self, ref: str, new: str, old: str) -> None:
        if new != old:
            await self._git(*_DURABLE, "update-ref", "-m", "ll-loop: work left", ref, new, old)

    async def _is_ancestor(self, old: str, new: str) -> bool:
        return (await self._say("merge-base", "--is-ancestor", old, new)).ok

    async def _prove(self, entries: Iterable[_Entry]) -> None:
        """Nothing has changed since: the files are those of the index that was committed."""
        if not (await self._say("update-index", "-q", "--refresh")).ok or await self._untracked():
            raise NotSavedError("files in it are still changing")
        await self._hold_back_copies(entries)
