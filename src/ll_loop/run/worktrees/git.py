"""git as a child that never asks, never hangs and never writes shared configuration; and one gate per repository.

`git` runs one command and returns what it said. `git_write` also waits, bounded, while another git holds a lock
file. `Gate` lets one writer of ours at a time into a repository, over tasks and over processes. What worktrees
are for is left to `worktree`.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from msgspec import Struct

from ...errors import RefusedError, UsageError
from ..children.pipes import Stream
from ..children.process import Command, Spawner
from ..children.tree import Grace

LOCK_NAME = "ll-loop.lock"
PATIENCE = 10.0
"""Seconds that another git may keep a lock file from us."""
_SINGLE_QUOTED = re.compile(r"'[^']*'")
_DOUBLE_QUOTED = re.compile(r'"(?:[^"\\`$]|\\.|\$(?!\())*"')
_AND_THEN = re.compile(r"&&|;|\n")
_REMOTE = frozenset({"clone", "fetch", "ls-remote", "pull", "push", "submodule"})
_MORE = re.compile(r"[|<>()`]|(?<!&)&(?!&)")
_POLL = 0.02
_GRACE = 2.0
_REF_MOVED = re.compile(r"cannot lock ref '.+?': is at [0-9a-f]+ but expected [0-9a-f]+")
_LOCK_HELD = re.compile(r"Unable to create '(?P<path>.+?\.lock)': File exists")

_REPOSITORY_VARIABLES = frozenset(
    {
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_COMMON_DIR",
        "GIT_DIR",
        "GIT_GRAFT_FILE",
        "GIT_IMPLICIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_INTERNAL_SUPER_PREFIX",
        "GIT_LITERAL_PATHSPECS",
        "GIT_NAMESPACE",
        "GIT_OBJECT_DIRECTORY",
        "GIT_PREFIX",
        "GIT_QUARANTINE_PATH",
        "GIT_SHALLOW_FILE",
        "GIT_WORK_TREE",
    }
)
"""Set when ll-loop is itself started by a git hook: they would point every command at the wrong repository."""

_QUIET = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "",
    "SSH_ASKPASS_REQUIRE": "never",
    "GCM_INTERACTIVE": "never",
    "GIT_EDITOR": ":",
    "GIT_OPTIONAL_LOCKS": "0",
    "LC_ALL": "C",
}


class GitResult(Struct, frozen=True):
    """What one git command said. Bytes that are no UTF-8 survive as surrogates, so paths round-trip."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        return self.exit_code == 0

    @property
    def complaint(self) -> str:
        """The last line of stderr that says something, for a person."""
        lines = [line for line in self.stderr.splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"git ended with exit code {self.exit_code}"


def git_environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """`env` (by default this process's) without the variables that name a repository, and with no way to ask."""
    given = os.environ if env is None else env
    return {name: value for name, value in given.items() if name not in _REPOSITORY_VARIABLES} | _QUIET


async def git(
    cwd: Path,
    *args: str,
    timeout: float = 60.0,
    env: Mapping[str, str] | None = None,
    extra: Mapping[str, str] | None = None,
    spawner: Spawner | None = None,
) -> GitResult:
    """What `git args` says in `cwd`; a failing command is a result, not an exception.

    `extra` is laid over the cleaned environment; `spawner` is the session's, if there is one. No prompt, no
    terminal, no editor, own session. Raises UsageError without a git on PATH or without `cwd`, RefusedError
    after `timeout` seconds. Cancelled or late, the command is ended with all its descendants (SIGTERM first,
    so that git removes its lock files).
    """
    said = _Said()
    command = Command(("git", *args), str(cwd), git_environment(env) | dict(extra or {}), timeout)
    finished = await (spawner or Spawner()).run(command, said, grace=Grace(_GRACE))
    if finished.workdir_gone:
        raise UsageError(f"{cwd}: no such directory")
    if finished.spawn_error:
        raise UsageError(f"git is needed: {finished.spawn_error}", hint="install git 2.34 or newer")
    if finished.timeout_kind:
        raise RefusedError(f"`git {shlex.join(args[:2])}` did not finish within {timeout:g} s")
    return GitResult(finished.exit_code, said.text("stdout"), said.text("stderr"))


class _Said:
    """Everything that git prints, byte for byte."""

    def __init__(self) -> None:
        self._bytes: dict[Stream, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}

    def lines(self, batch: list[str]) -> None:
        """Paths may contain line ends and need not be UTF-8: only the raw bytes will do."""

    def raw(self, stream: Stream, data: bytes) -> None:
        self._bytes[stream] += data

    def text(self, stream: Stream) -> str:
        return self._bytes[stream].decode("utf-8", "surrogateescape")


async def git_write(
    cwd: Path,
    *args: str,
    timeout: float = 60.0,
    env: Mapping[str, str] | None = None,
    extra: Mapping[str, str] | None = None,
    patience: float = PATIENCE,
    spawner: Spawner | None = None,
) -> GitResult:
    """Like `git`, but when somebody else's lock file is in the way, again once that file is gone.

    Raises RefusedError if it is still there after `patience` seconds. The file is never deleted: it may belong
    to a git that is at work.
    """
    give_up_at = anyio.current_time() + patience
    while True:
        result = await git(cwd, *args, timeout=timeout, env=env, extra=extra, spawner=spawner)
        lock = None if result.ok else _lock_in_the_way(cwd, result.stderr)
        if lock is None:
            return result
        if not await _is_gone(lock, give_up_at):
            raise RefusedError(
                f"{lock} was in the way for {patience:g} s: another git is at work, or was killed",
                hint=f"if no git is running: rm {shlex.quote(str(lock))}",
            )


async def has_made_way(cwd: Path, stderr: str, give_up_at: float) -> bool:
    """Whether a git in `cwd` gave up because of another one (by what it said), which has gone its way since.

    Waits for that until `give_up_at`, by the clock of the event loop.
    """
    lock = _lock_in_the_way(cwd, stderr)
    if lock is not None:
        return await _is_gone(lock, give_up_at)
    # Between its look at HEAD and its lock, somebody else's commit came first.
    return _REF_MOVED.search(stderr) is not None and anyio.current_time() < give_up_at


def _lock_in_the_way(cwd: Path, stderr: str) -> Path | None:
    found = _LOCK_HELD.search(stderr)
    return cwd / found["path"] if found else None


async def _is_gone(lock: Path, give_up_at: float) -> bool:
    while anyio.current_time() < give_up_at:
        await anyio.sleep(_POLL)
        if not await anyio.Path(lock).exists():
            return True
    return False


def is_only_git(script: str) -> bool:
    """Whether a shell script does nothing but call git, one command after the other, and none that asks a server.

    Such a script may be run once more, and others may wait for it.
    """
    if "git" not in script:
        return False
    bare = _DOUBLE_QUOTED.sub("''", _SINGLE_QUOTED.sub("''", script))
    commands = [command.split() for command in _AND_THEN.split(bare) if command.strip()]
    if not commands or _MORE.search(bare):
        return False
    return all(words[0] == "git" and _REMOTE.isdisjoint(words) for words in commands)


class Git(Struct, frozen=True):
    """`git` and `git_write` with what they need: the environment, the session's spawner, the patience."""

    env: Mapping[str, str] | None = None
    spawner: Spawner | None = None
    patience: float = PATIENCE

    async def ask(self, cwd: Path, *args: str, extra: Mapping[str, str] | None = None) -> GitResult:
        return await git(cwd, *args, env=self.env, extra=extra, spawner=self.spawner)

    async def tell(
        self, cwd: Path, *args: str, timeout: float = 60.0, extra: Mapping[str, str] | None = None
    ) -> GitResult:
        return await git_write(
            cwd,
            *args,
            timeout=timeout,
            env=self.env,
            extra=extra,
            patience=self.patience,
            spawner=self.spawner,
        )


class Gate:
    """One writer of ours at a time in each repository: tasks queue in order, other processes by `flock`.

    Share one gate between all that work in one process. It is advisory and does not hinder other gits.
    """

    def __init__(self, *, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._locks: dict[str, anyio.Lock] = {}

    @asynccontextmanager
    async def hold(self, common_dir: Path) -> AsyncIterator[None]:
        """Inside, no other ll-loop writes to the repository whose common git directory this is.

        Raises RefusedError when another process keeps it longer than `patience` seconds. The queue of tasks is
        unbounded because every holder's work is bounded. Not re-entrant.
        """
        async with self._lock_of(common_dir):
            descriptor = os.open(common_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                await self._flock(descriptor, common_dir)
                yield
            finally:
                os.close(descriptor)

    def _lock_of(self, common_dir: Path) -> anyio.Lock:
        return self._locks.setdefault(os.path.realpath(common_dir), anyio.Lock())

    async def _flock(self, descriptor: int, common_dir: Path) -> None:
        give_up_at = anyio.current_time() + self._patience
        while not _flocked(descriptor):
            if anyio.current_time() >= give_up_at:
                raise RefusedError(
                    f"another ll-loop has kept {common_dir / LOCK_NAME} for {self._patience:g} s",
                    hint="try again when it is done",
                )
            await anyio.sleep(_POLL)


def _flocked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
