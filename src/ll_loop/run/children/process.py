"""The one primitive that runs every child: own session, bounded memory, finished when it exited, nothing left.

A `Spawner` belongs to a session and knows its live children. What a command means, which environment it gets
and how its result is judged is for others; which processes are which is `ll_loop.run.children.procs`.
"""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import IO, Literal

import anyio
import anyio.lowlevel
from msgspec import Struct

from ...errors import StorageError
from ..files import STARVED
from . import procs
from .feed import Feed
from .pipes import Captured, Pipe, Sink
from .procs import Identity
from .tree import LEFTOVER_GRACE, Grace, Signals, Tree, end_noted, group_exists, reap
from .watch import Watch

TIMED_OUT = 124
NOT_FOUND = 127
NOT_RUNNABLE = 126
UNKNOWN = 255
"""The exit code when the system could not tell it: never 0."""
_DRAIN = 0.05  # seconds for what is still on its way when the leader has exited
_PARTING = 1.0  # seconds for a leader that was told that it is to go
_QUIET = 0.01  # within that, a pipe as quiet as this has said everything
_STARVED_HINT = "once the system has room again, `ll-loop resume` goes on with this action"
TimeoutKind = Literal["wall", "idle"]


class Command(Struct, frozen=True):
    """What to run. Limits are seconds; None or 0 is no limit. `stdin` empty means /dev/null, a `Feed` a pipe.

    `keep` is how many bytes of each stream's head and of its tail stay in memory. `marker` is the
    `NAME=value` in `env` by which a process of this command is known even after it left the session.
    With `allow_background`, what outlives the leader may stay. `farewell` is called before the leader is ended; it has
    a second, of its grace, to go by itself then.
    """

    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str] | Mapping[bytes, bytes]
    timeout: float | None = None
    idle_timeout: float | None = None
    stdin: bytes | Feed = b""
    keep: int = 1 << 20
    marker: str = ""
    allow_background: bool = False
    farewell: Callable[[], None] | None = None


class Finished(Struct, frozen=True):
    """How a command ended. `exit_code` is negative for a signal, 124 when a limit was reached.

    `leftovers` are background processes that outlived the leader: ended, unless they were allowed to stay.
    `unkillable` are processes that were still there after SIGKILL. `spawn_error` says why nothing was run
    (or that the exit status is unknown); `workdir_gone` that it was for want of the working directory. `peak_mb` is
    the most memory that one of its processes had, 0 where that cannot be told.
    """

    exit_code: int
    stdout: Captured = Captured()
    stderr: Captured = Captured()
    duration: float = 0.0
    timeout_kind: TimeoutKind | None = None
    leftovers: tuple[Identity, ...] = ()
    unkillable: tuple[Identity, ...] = ()
    spawn_error: str | None = None
    workdir_gone: bool = False
    peak_mb: int = 0

    @property
    def note(self) -> str:
        """What there is to say of processes besides the command's own; mostly nothing."""
        notes = []
        if self.leftovers:
            pids = ", ".join(str(left.pid) for left in self.leftovers)
            notes.append(f"ended what the action left behind in the background: pid {pids}")
        if self.unkillable:
            pids = ", ".join(str(left.pid) for left in self.unkillable)
            notes.append(f"could not end pid {pids}")
        return "; ".join(notes)


def _spawn(command: Command, stdin: IO[bytes] | int, stdout: int, stderr: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command.argv,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        cwd=command.cwd,
        env=command.env,
        start_new_session=True,  # also: the terminal's Ctrl-C reaches us alone
    )


@contextlib.contextmanager
def _input(data: bytes) -> Iterator[IO[bytes] | int]:
    """A file, not a pipe: the child may read all, some or nothing of it, and nobody has to feed it."""
    if not data:
        yield subprocess.DEVNULL
        return
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        yield file


def _stdin(
    given: bytes | Feed, watch: Watch, ours: contextlib.ExitStack, theirs: contextlib.ExitStack
) -> IO[bytes] | int:
    if isinstance(given, bytes):
        return theirs.enter_context(_input(given))
    read, write = os.pipe()
    theirs.callback(os.close, read)
    ours.callback(given.detach)
    watch.feed(write, given)
    return read


class _Child:
    """A spawned leader with its pipes. After `close`, no descriptor and no unreaped leader is left."""

    def __init__(self, command: Command, sink: Sink, births: procs.Births) -> None:
        """Spawn. Raises OSError, or ValueError for a NUL in the arguments, with nothing left open."""
        self.begun = anyio.current_time()
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            out, child_out = _pipe(ours, theirs)
            err, child_err = _pipe(ours, theirs)
            self.watch = ours.enter_context(Watch())
            stdin = _stdin(command.stdin, self.watch, ours, theirs)
            moment = births.now()
            self._popen = _spawn(command, stdin, child_out, child_err)
            self._open = ours.pop_all()
        self._farewell = command.farewell
        self.identity = births.identity_of(self._popen.pid, moment) or Identity(self._popen.pid, 0, procs.boot_id())
        self.exit_code: int | None = None
        self.status_lost = False
        self.peak_mb = 0
        self.out = Pipe(out, "stdout", sink, command.keep)
        self.err = Pipe(err, "stderr", sink, command.keep)
        self.watch.add(self.out)
        self.watch.add(self.err)
        self.watch.follow(self.identity, unreaped=True)

    @property
    def exited(self) -> bool:
        return self.identity in self.watch.ended

    async def wait(self, timeout: float | None, idle_timeout: float | None) -> TimeoutKind | None:
        """Until the leader has exited (None) or a limit is reached; the leader is not reaped yet."""
        now = anyio.current_time()
        wall, idle = now + (timeout or math.inf), idle_timeout or math.inf
        heard = 0
        with anyio.CancelScope(deadline=min(wall, now + idle)) as limit:
            while not self.exited:
                await self.watch.turn()
                size = self.out.kept.size + self.err.kept.size
                if idle_timeout and size > heard:
                    heard = size
                    limit.deadline = min(wall, anyio.current_time() + idle)
        if not self.exited:
            self.watch.take()  # it may have ended in the very moment of its deadline
        if self.exited:
            return None
        return "wall" if anyio.current_time() >= wall else "idle"

    async def drain(self) -> None:
        """What is on its way when the leader has exited; not more, for a background child may write for ever."""
        if self.watch.has_pipes():
            self.watch.take()
        if not self.watch.has_pipes():
            return
        with anyio.move_on_after(_DRAIN):
            quiet = False
            while self.watch.has_pipes() and not quiet:
                with anyio.move_on_after(_QUIET) as pause:
                    await self.watch.turn()
                quiet = pause.cancelled_caught

    async def end(self, tree: Tree) -> tuple[Identity, ...]:
        """End the tree and take in its last words; shielded, bounded. Returns the unkillable."""
        if self._farewell is not None and not self.exited:
            self._farewell()
            with tree.grace.limit(_PARTING):
                while not self.exited:
                    await self.watch.turn()
        unkillable = await end_noted(tree, self.watch)
        with anyio.CancelScope(shield=True):  # `drain` has its own bound
            await self.drain()
        return unkillable

    def finish(self) -> None:
        """Hand over what is incomplete and stop listening."""
        self.out.finish()
        self._open.close()

    def mute(self) -> None:
        """Go on reading, so that the child can write and end, but tell the sink nothing."""
        self.out.muted = self.err.muted = True

    def reap(self) -> int:
        """Take the leader's exit status; UNKNOWN if there is none to be had."""
        if self.exit_code is None:
            found = reap(self._popen.pid)
            self.status_lost = found is None
            code, self.peak_mb = (UNKNOWN, 0) if found is None else found
            # The attribute is set whatever came of it: otherwise the object warns, and waits, when collected.
            self._popen.returncode = self.exit_code = code
        return self.exit_code

    def close(self, tree: Tree) -> None:
        """Release everything; if the leader was not dealt with, because the event loop itself fails, kill."""
        self._open.close()
        if self.exit_code is None:
            tree.kill(tree.look())
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(0.1)
            self.reap()
            tree.look()  # reaps the others


def _pipe(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[int, int]:
    read, write = os.pipe()
    ours.callback(os.close, read)
    theirs.callback(os.close, write)
    os.set_blocking(read, False)
    return read, write


class Spawner:
    """Runs the children of one session and knows which are alive.

    Within its `with` block this process is a sub-reaper: orphans of its children come to it, and are ended.
    `unkillable` lists what could not be ended, cancelled commands included.

    With `sole`, no one else in this process starts children in sessions of their own: then those that nothing
    identifies are orphans as well (a daemon that dropped its marker, or was over before anyone looked).
    Without it, as in a notebook, they may be the host's and are left alone.
    """

    def __init__(self, grace: Grace | None = None, *, sole: bool = False, signals: Signals | None = None) -> None:
        self.grace = grace or Grace()
        self._sole = sole
        self.unkillable: list[Identity] = []
        self._signals = signals or Signals()
        self._live: dict[int, Identity] = {}
        self._births = procs.Births()
        self._kept: set[int] = set()  # sessions with background processes that were allowed to stay
        self._undo: Callable[[], None] | None = None

    def __enter__(self) -> Spawner:
        self._undo = procs.become_subreaper()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._undo:
            self._undo()

    def __repr__(self) -> str:
        return f"<Spawner {len(self._live)} running>"

    @property
    def live(self) -> tuple[Identity, ...]:
        """The leaders that have not been reaped."""
        return tuple(self._live.values())

    async def run(
        self,
        command: Command,
        sink: Sink,
        *,
        started: Callable[[Identity], None] | None = None,
        grace: Grace | None = None,
    ) -> Finished:
        """Run `command` until its process exits, reaches a limit or is cancelled.

        `started` is called once the process exists, before anything else happens. Cancellation, and whatever
        `sink` or `started` raise, end the whole tree (SIGTERM, `grace`, SIGKILL) before they are passed on.
        The output counts until the leader's exit plus a moment: background processes are not waited for,
        and the pipes are closed on them. StorageError if the machine has no room to start it (descriptors,
        memory, processes, disk).
        """
        await anyio.lowlevel.checkpoint_if_cancelled()
        cancelled = anyio.get_cancelled_exc_class()
        try:
            child = _Child(command, sink, self._births)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in STARVED:
                raise StorageError(f"cannot start {command.argv[0]}: {error.strerror}", hint=_STARVED_HINT) from error
            return _never_ran(command, error)
        self._adopt(child.identity)
        tree = self._tree(child.identity, command, grace)
        try:
            if started:
                started(child.identity)
            return await self._finish(command, child, tree)
        except GeneratorExit:  # nothing can be awaited any more: `close` kills
            raise
        except BaseException as error:
            if not isinstance(error, cancelled):
                child.mute()
            await self._cut_down(child, tree)
            raise
        finally:
            child.close(tree)
            self._forget(child.identity)

    async def _finish(self, command: Command, child: _Child, tree: Tree) -> Finished:
        kind = await child.wait(command.timeout, command.idle_timeout)
        unkillable = await child.end(tree) if kind else ()
        if not kind:
            with anyio.CancelScope(shield=True):  # it has done its work, which must not be taken for cut off
                await child.drain()
        child.finish()
        duration = anyio.current_time() - child.begun
        code = child.reap()
        self._forget(child.identity)
        leftovers = () if kind else self._left_by(child.identity, command)
        if command.allow_background:
            self._kept.update(sid for identity in leftovers if (sid := procs.session_of(identity.pid)))
        elif leftovers:
            unkillable = await self._end_leftovers(leftovers, tree)
        self.unkillable.extend(unkillable)
        return Finished(
            exit_code=TIMED_OUT if kind else code,
            stdout=child.out.kept.captured(),
            stderr=child.err.kept.captured(),
            duration=duration,
            timeout_kind=kind,
            leftovers=leftovers,
            unkillable=unkillable,
            spawn_error="the exit status was lost" if child.status_lost and not kind else None,
            peak_mb=child.peak_mb,
        )

    def _left_by(self, leader: Identity, command: Command) -> tuple[Identity, ...]:
        try:
            return tuple(self._leftovers(leader, command.marker))
        except OSError as error:
            what = f"cannot look for what {command.argv[0]} left behind: {error.strerror}"
            raise StorageError(what, hint=_STARVED_HINT) from error

    async def _cut_down(self, child: _Child, tree: Tree) -> None:
        if child.exit_code is not None:  # it had ended, and so had what it left
            return
        self.unkillable.extend(await child.end(tree))
        child.reap()
        child.finish()

    async def _end_leftovers(self, leftovers: Iterable[Identity], tree: Tree) -> tuple[Identity, ...]:
        tree.add(leftovers)
        with Watch() as watch:
            return await end_noted(tree, watch, LEFTOVER_GRACE)

    def _leftovers(self, leader: Identity, marker: str) -> Iterator[Identity]:
        """Background processes of a leader that was reaped; what ended among them is reaped.

        This comes after every command, so it looks at the group's number and at our own children only:
        those that left the group, or were started by a process that ended, have come to us as orphans.
        """
        seen = set()
        if not procs.LINUX or group_exists(leader.pid):
            rows = procs.rows_of_session(leader, procs.read_table())
            seen = {row.pid for row in rows if not row.zombie}
            yield from (row.identity for row in rows if not row.zombie)
        for pid in procs.adopted_pids():
            if pid in self._live or pid in seen or (row := procs.read_row(pid)) is None:
                continue
            ours = row.session == leader.pid
            if row.zombie:
                if ours or row.session in self._live or row.session in self._kept or self._is_unknown(row):
                    reap(pid)
            elif ours or (self._is_elsewhere(row) and procs.carries(row.identity, marker)):
                yield row.identity

    async def end_strays(self) -> tuple[Identity, ...]:
        """End orphans that nothing ties to a command; for the end of a session, and only if it is `sole`.

        Returns those that were found. Bounded and shielded like all ending.
        """
        try:
            strays = self._strays()
        except OSError:  # no descriptor free, and nobody can be told: those that just ended give theirs back
            await anyio.lowlevel.checkpoint()
            strays = self._strays()
        if strays:
            tree = Tree(None, self.grace, live=self._live, kept=self._kept, signals=self._signals)
            self.unkillable.extend(await self._end_leftovers(strays, tree))
        return tuple(strays)

    def _strays(self) -> list[Identity]:
        rows = filter(None, map(procs.read_row, procs.adopted_pids()))
        return [row.identity for row in rows if row.pid not in self._live and self._is_unknown(row)]

    def _is_unknown(self, row: procs.Row) -> bool:
        return self._sole and self._is_elsewhere(row)

    def _is_elsewhere(self, row: procs.Row) -> bool:
        return not (row.session in self._live or row.session in self._kept or row.session == os.getsid(0))

    def _tree(self, leader: Identity, command: Command, grace: Grace | None) -> Tree:
        return Tree(
            leader,
            grace or self.grace,
            marker=command.marker,
            live=self._live,
            kept=self._kept,
            signals=self._signals,
        )

    def _adopt(self, leader: Identity) -> None:
        self._live[leader.pid] = leader
        self._kept.discard(leader.pid)

    def _forget(self, leader: Identity) -> None:
        if self._live.get(leader.pid) is leader:
            del self._live[leader.pid]


def _never_ran(command: Command, error: OSError | ValueError) -> Finished:
    gone = not os.path.isdir(command.cwd)
    missing = isinstance(error, FileNotFoundError) and not gone
    reason = f"working directory is gone: {command.cwd}" if gone else f"cannot run {command.argv[0]}: {error}"
    return Finished(NOT_FOUND if missing else NOT_RUNNABLE, spawn_error=reason, workdir_gone=gone)
