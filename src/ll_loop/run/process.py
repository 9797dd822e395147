"""The one primitive that runs every child: own session, bounded memory, finished when it exited, nothing left.

A `Spawner` belongs to a session and knows its live children. What a command means, which environment it gets
and how its result is judged is for others; which processes are which is `ll_loop.run.procs`.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import TracebackType
from typing import IO, Literal, Protocol

import anyio
import anyio.lowlevel
from msgspec import Struct

from ll_loop.errors import StorageError
from ll_loop.run import procs
from ll_loop.run.feed import Feed
from ll_loop.run.procs import Identity

TIMED_OUT = 124
NOT_FOUND = 127
NOT_RUNNABLE = 126
UNKNOWN = 255
"""The exit code when the system could not tell it: never 0."""

LONGEST_LINE = 16 << 20
_CHUNK = 64 << 10
_CHUNKS_A_TURN = 4  # other runs share this thread
_DRAIN = 0.05  # seconds for what is still on its way when the leader has exited
_QUIET = 0.01  # within that, a pipe as quiet as this has said everything
_LEFTOVER_GRACE = 0.5
_KILL_BOUND = 2.0  # seconds for SIGKILL to work, then a process counts as unkillable
_STARVED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT, errno.EIO})
"""What is wrong with the machine, and not with the command: taken for the command's failure, it would be routed."""
_STARVED_HINT = "once the system has room again, `ll-loop resume` goes on with this action"
_POLL = 0.02  # where the system cannot wake us when a process ends

Stream = Literal["stdout", "stderr"]
TimeoutKind = Literal["wall", "idle"]


# --- values ----------------------------------------------------------------------------------------------


class Command(Struct, frozen=True):
    """What to run. Limits are seconds; None or 0 is no limit. `stdin` empty means /dev/null, a `Feed` a pipe.

    `keep` is how many bytes of each stream's head and of its tail stay in memory. `marker` is the
    `NAME=value` in `env` by which a process of this command is known even after it left the session.
    With `allow_background`, what outlives the leader may stay.
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


class Captured(Struct, frozen=True):
    """What a stream said: all of it, or head and tail around a line that tells how much is left out."""

    text: str = ""
    size: int = 0
    truncated: bool = False


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
            notes.append(f"ended {len(self.leftovers)} background process(es) that the action left behind: {pids}")
        if self.unkillable:
            pids = ", ".join(str(left.pid) for left in self.unkillable)
            notes.append(f"could not end process(es) {pids}")
        return "; ".join(notes)


class Sink(Protocol):
    """Who hears the output while it arrives. Neither method may block; what they raise ends the child."""

    def lines(self, batch: list[str]) -> None:
        """Complete lines of stdout in order, without their line ends, one batch a read."""

    def raw(self, stream: Stream, data: bytes) -> None:
        """Every byte, before the lines that it completes."""


class Grace:
    """How long a process may take to end after SIGTERM; `cut` ends the patience of everyone at once."""

    def __init__(self, seconds: float = 5.0) -> None:
        self.seconds = seconds
        self._waits: set[anyio.CancelScope] = set()

    def cut(self) -> None:
        """From now on, and for those already waiting, there is no grace. To be called in the event loop."""
        self.seconds = 0.0
        for wait in self._waits:
            wait.cancel()

    @contextlib.contextmanager
    def limit(self, at_most: float = math.inf) -> Iterator[None]:
        """Shield the block from cancellation, and leave it when the grace is over."""
        deadline = anyio.current_time() + min(self.seconds, at_most)
        with anyio.CancelScope(deadline=deadline, shield=True) as wait:
            self._waits.add(wait)
            try:
                yield
            finally:
                self._waits.discard(wait)


class Signals:
    """Sends signals. Tests hand in a deaf one."""

    def group(self, leader: Identity, sig: int) -> None:
        """To the whole group that `leader` opened; the caller knows that the number is still its own."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader.pid, sig)

    def one(self, identity: Identity, sig: int) -> None:
        procs.send_signal(identity, sig)


# --- output ----------------------------------------------------------------------------------------------


class LineSplitter:
    """Cuts bytes into lines at LF, whatever the chunks; invalid UTF-8 becomes U+FFFD.

    A line longer than `longest` bytes comes in pieces, cut between characters.
    """

    def __init__(self, longest: int = LONGEST_LINE) -> None:
        self._longest = longest
        self._pending: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes."""
        end = data.rfind(b"\n")
        if end < 0:
            self._pending.append(data)
            self._size += len(data)
            return self._cut() if self._size > self._longest else []
        # LF is never part of a longer sequence, valid or not: decoding all at once equals line by line.
        whole = b"".join((*self._pending, data[:end]))
        self._pending = [data[end + 1 :]]
        self._size = len(data) - end - 1
        return whole.decode("utf-8", "replace").split("\n")

    def rest(self) -> list[str]:
        """The last line, if it had no end."""
        left = b"".join(self._pending)
        self._pending, self._size = [], 0
        return [left.decode("utf-8", "replace")] if left else []

    def _cut(self) -> list[str]:
        left = b"".join(self._pending)
        pieces = []
        while len(left) > self._longest:
            cut = self._longest
            while cut > self._longest - 3 and left[cut] & 0xC0 == 0x80:
                cut -= 1
            pieces.append(left[:cut].decode("utf-8", "replace"))
            left = left[cut:]
        self._pending, self._size = [left], len(left)
        return pieces


class _Kept:
    """The first and the last `keep` bytes of a stream."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._head = bytearray()
        self._tail = bytearray()
        self.size = 0

    def feed(self, data: bytes) -> None:
        self.size += len(data)
        room = self._keep - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        if len(self._tail) > 2 * self._keep:
            del self._tail[: -self._keep]

    def captured(self) -> Captured:
        if self.size == 0:
            return Captured()
        head, tail = self._head, self._tail[-self._keep :]
        left_out = self.size - len(head) - len(tail)
        if not left_out:
            return Captured((head + tail).decode("utf-8", "replace"), self.size)
        gap = f"\n... {left_out} bytes left out ...\n"
        return Captured(
            head.decode("utf-8", "replace") + gap + tail.decode("utf-8", "replace"), self.size, truncated=True
        )


class _Pipe:
    """Our end of one of the child's streams."""

    def __init__(self, fd: int, stream: Stream, sink: Sink, keep: int) -> None:
        self.fd = fd
        self.kept = _Kept(keep)
        self.muted = False
        self._stream: Stream = stream
        self._sink = sink
        self._splitter = LineSplitter()

    def read(self) -> bool:
        """Take what is there, within a turn's bound; False when the stream has ended."""
        for _ in range(_CHUNKS_A_TURN):
            try:
                data = os.read(self.fd, _CHUNK)
            except BlockingIOError:
                return True
            if not data:
                return False
            self.kept.feed(data)
            if not self.muted:
                self._tell(data)
            if len(data) < _CHUNK:  # most likely all there was; if not, we are woken again
                return True
        return True

    def finish(self) -> None:
        """Hand over the last line if it had no end."""
        rest = self._splitter.rest()
        if rest and not self.muted:
            self._sink.lines(rest)

    def _tell(self, data: bytes) -> None:
        self._sink.raw(self._stream, data)
        if self._stream == "stdout" and (lines := self._splitter.feed(data)):
            self._sink.lines(lines)


# --- waiting ---------------------------------------------------------------------------------------------

if sys.platform == "linux":

    class _Poller:
        """Pipes and processes behind one descriptor. A key is a pipe's descriptor, or a process's handle."""

        def __init__(self) -> None:
            self._epoll = select.epoll()
            self._handles: set[int] = set()
            self.fileno = self._epoll.fileno

        def add_pipe(self, fd: int, *, to_write: bool = False) -> None:
            self._epoll.register(fd, select.EPOLLOUT if to_write else select.EPOLLIN)

        def drop_pipe(self, fd: int, *, to_write: bool = False) -> None:
            self._epoll.unregister(fd)

        def add_process(self, pid: int) -> int:
            handle = os.pidfd_open(pid)
            self._handles.add(handle)
            self._epoll.register(handle, select.EPOLLIN)
            return handle

        def drop_process(self, key: int) -> None:
            self._handles.discard(key)
            os.close(key)

        def poll(self) -> list[int]:
            return [key for key, _ in self._epoll.poll(0)]

        def close(self) -> None:
            self._epoll.close()
            for handle in self._handles:
                os.close(handle)
            self._handles.clear()

else:

    class _Poller:
        """Pipes and processes behind one descriptor. A key is a pipe's descriptor, or minus a pid."""

        def __init__(self) -> None:
            self._queue = select.kqueue()
            self.fileno = self._queue.fileno

        def add_pipe(self, fd: int, *, to_write: bool = False) -> None:
            self._change(fd, select.KQ_FILTER_WRITE if to_write else select.KQ_FILTER_READ, select.KQ_EV_ADD)

        def drop_pipe(self, fd: int, *, to_write: bool = False) -> None:
            self._change(fd, select.KQ_FILTER_WRITE if to_write else select.KQ_FILTER_READ, select.KQ_EV_DELETE)

        def add_process(self, pid: int) -> int:
            self._change(pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD | select.KQ_EV_ONESHOT)
            return -pid

        def drop_process(self, key: int) -> None:
            with contextlib.suppress(OSError):  # it fired, and was dropped by that
                self._change(-key, select.KQ_FILTER_PROC, select.KQ_EV_DELETE)

        def poll(self) -> list[int]:
            events = self._queue.control(None, 64, 0)
            return [-e.ident if e.filter == select.KQ_FILTER_PROC else e.ident for e in events]

        def close(self) -> None:
            self._queue.close()

        def _change(self, ident: int, kind: int, flags: int) -> None:
            note = select.KQ_NOTE_EXIT if kind == select.KQ_FILTER_PROC else 0
            self._queue.control([select.kevent(ident, kind, flags, note)], 0)


class _Watch:
    """Reads pipes and notes the end of processes, all in the task that awaits `turn`."""

    def __init__(self) -> None:
        self.ended: set[Identity] = set()
        self._poller = _Poller()
        self._pipes: dict[int, _Pipe] = {}
        self._feeds: dict[int, Feed] = {}
        self._followed: dict[int, Identity] = {}
        self._polled: set[Identity] = set()

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._poller.close()

    def has_pipes(self) -> bool:
        return bool(self._pipes)

    def add(self, pipe: _Pipe) -> None:
        self._poller.add_pipe(pipe.fd)
        self._pipes[pipe.fd] = pipe

    def feed(self, fd: int, feed: Feed) -> None:
        """Write to the pipe what is put into `feed`; closing the descriptor is its own business."""
        feed.attach(fd, lambda: self._wants_to_write(fd, feed))

    def _wants_to_write(self, fd: int, feed: Feed) -> None:
        if fd not in self._feeds:
            self._poller.add_pipe(fd, to_write=True)  # this wakes the task that waits for the poller
            self._feeds[fd] = feed

    def follow(self, identity: Identity, *, unreaped: bool = False) -> None:
        """From now on `ended` tells whether this process is over; an `unreaped` child needs no second look."""
        if identity in self.ended or identity in self._polled or identity in self._followed.values():
            return
        try:
            key = self._poller.add_process(identity.pid)
        except ProcessLookupError:
            self.ended.add(identity)
        except OSError:  # an old kernel, a sandbox, or no descriptor left: look now and then
            self._polled.add(identity)
        else:
            self._followed[key] = identity
            if not unreaped and not procs.is_alive(identity):  # a successor has the pid, or it has just ended
                self._end_of(key)

    async def turn(self) -> None:
        """Wait until something happens, then take it in. Cancellation loses nothing."""
        if self._polled:
            with anyio.move_on_after(_POLL):
                await anyio.wait_readable(self._poller.fileno())
        else:
            await anyio.wait_readable(self._poller.fileno())
        self.take()

    async def gone(self, identities: Iterable[Identity]) -> None:
        """Wait until all of these processes are over."""
        awaited = set(identities)
        for identity in awaited:
            self.follow(identity)
        while not awaited <= self.ended:
            await self.turn()

    def take(self) -> None:
        """Take in what has happened, without waiting."""
        for key in self._poller.poll():
            if key in self._followed:
                self._end_of(key)
            elif (pipe := self._pipes.get(key)) and not pipe.read():
                self._poller.drop_pipe(key)
                del self._pipes[key]
            elif feed := self._feeds.pop(key, None):
                self._poller.drop_pipe(key, to_write=True)
                if feed.write():
                    self._wants_to_write(key, feed)
        if self._polled:
            over = {identity for identity in self._polled if not procs.is_alive(identity)}
            self._polled -= over
            self.ended |= over

    def _end_of(self, key: int) -> None:
        self.ended.add(self._followed.pop(key))
        self._poller.drop_process(key)


# --- ending ----------------------------------------------------------------------------------------------


class _Tree:
    """All processes that a leader brought about, as far as they can be known, noted before they scatter.

    `live` are pids of other leaders, `kept` sessions that may stay: neither are orphans to be ended.
    """

    def __init__(
        self,
        leader: Identity | None,
        grace: Grace,
        *,
        marker: str = "",
        live: Collection[int] = (),
        kept: Collection[int] = (),
        signals: Signals | None = None,
    ) -> None:
        self.leader = leader
        self.grace = grace
        self._others: tuple[Identity, ...] = ()
        self._noted: set[Identity] = set()
        self._marker = marker
        self._live = live
        self._kept = kept
        self._signals = signals or Signals()
        self._session: list[procs.Row] = []

    def add(self, others: Iterable[Identity]) -> None:
        """Name processes outside the leader's session that are to be asked before they are killed."""
        self._others += tuple(others)
        self._noted.update(self._others)

    def look(self) -> list[Identity]:
        """Note who belongs to the tree as of now, reap what ended and is ours, return the living."""
        table = procs.read_table()
        self._session = procs.rows_of_session(self.leader, table) if self.leader else []
        roots = {row.pid for row in self._session}
        roots |= {i.pid for i in self._noted if (row := table.get(i.pid)) and row.start == i.start}
        roots |= {row.pid for row in table.values() if self._is_orphan(row)}
        rows = [*(table[pid] for pid in roots), *procs.below(roots, table)]
        self._noted.update(row.identity for row in rows)
        for row in rows:
            if row.zombie and row.parent == os.getpid() and row.identity != self.leader:
                _reap(row.pid)
        return [row.identity for row in rows if not row.zombie]

    def ask(self) -> None:
        """SIGTERM to the group, to other groups of its session, and to what was named."""
        self._signal_group(signal.SIGTERM)
        members = {row.identity for row in self._session}
        apart = [row.identity for row in self._session if self.leader and row.group != self.leader.pid]
        for identity in (*apart, *(other for other in self._others if other not in members)):
            self._signals.one(identity, signal.SIGTERM)

    def kill(self, alive: Iterable[Identity]) -> None:
        """SIGKILL to the group, then to each of `alive`."""
        self._signal_group(signal.SIGKILL)
        for identity in alive:
            self._signals.one(identity, signal.SIGKILL)

    def asked(self) -> list[Identity]:
        """Those of the asked who are still alive."""
        alive = set(self.look())
        return [i for i in (*(row.identity for row in self._session), *self._others) if i in alive]

    def _signal_group(self, sig: int) -> None:
        # A group with a member (a leader not reaped yet is one) keeps its number: no stranger can have it.
        if self.leader and any(row.group == self.leader.pid for row in self._session):
            self._signals.group(self.leader, sig)

    def _is_orphan(self, row: procs.Row) -> bool:
        if row.parent != os.getpid() or row.zombie or row.pid in self._live or row.session in self._kept:
            return False
        return row.session != os.getsid(0) and procs.carries(row.identity, self._marker)


def _reap(pid: int) -> tuple[int, int] | None:
    """Take the exit status and the peak memory (MB) of this one child; None if there is none to be had."""
    try:
        done, status, usage = os.wait4(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return (os.waitstatus_to_exitcode(status), _peak_mb(usage.ru_maxrss)) if done else None


def _peak_mb(peak: int) -> int:
    """The most memory of a child or of one of those below it, 0 if it cannot be told.

    A child begins as a copy of this process, and its peak with ours: only what is above that is its own.
    """
    ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // ((1 << 20) if sys.platform == "darwin" else 1024) if peak > ours else 0


async def _end(tree: _Tree, watch: _Watch, at_most: float = math.inf) -> tuple[Identity, ...]:
    """SIGTERM, the grace, SIGKILL for all that is left, and the proof: returns who is alive nevertheless."""
    if tree.look():
        tree.ask()
        with tree.grace.limit(at_most):
            while asked := tree.asked():
                await watch.gone(asked)
    with anyio.CancelScope(deadline=anyio.current_time() + _KILL_BOUND, shield=True):
        while alive := tree.look():
            tree.kill(alive)
            await watch.gone(alive)
    return tuple(tree.look())


async def end_tree(
    leader: Identity | None, others: Iterable[Identity] = (), *, grace: Grace, marker: str = ""
) -> tuple[Identity, ...]:
    """End what a dead run left: `leader`'s session, `others`, all below them, and orphans with `marker`.

    The session and `others` get SIGTERM and the grace, then everything gets SIGKILL. Shielded from
    cancellation; takes at most the grace and two seconds. Returns those that could not be ended.
    """
    tree = _Tree(leader, grace, marker=marker)
    tree.add(others)
    with _Watch() as watch:
        unkillable = await _end(tree, watch)
    if leader and procs.parent_of(leader.pid) == os.getpid() and not procs.is_alive(leader):
        _reap(leader.pid)
    return unkillable


# --- running ---------------------------------------------------------------------------------------------


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
    given: bytes | Feed, watch: _Watch, ours: contextlib.ExitStack, theirs: contextlib.ExitStack
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

    def __init__(self, command: Command, sink: Sink) -> None:
        """Spawn. Raises OSError, or ValueError for a NUL in the arguments, with nothing left open."""
        self.begun = anyio.current_time()
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            out, child_out = _pipe(ours, theirs)
            err, child_err = _pipe(ours, theirs)
            self.watch = ours.enter_context(_Watch())
            stdin = _stdin(command.stdin, self.watch, ours, theirs)
            self._popen = _spawn(command, stdin, child_out, child_err)
            self._open = ours.pop_all()
        self.exit_code: int | None = None
        self.status_lost = False
        self.peak_mb = 0
        self.identity = procs.identity_of(self._popen.pid) or Identity(self._popen.pid, 0, procs.boot_id())
        self.out = _Pipe(out, "stdout", sink, command.keep)
        self.err = _Pipe(err, "stderr", sink, command.keep)
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

    async def end(self, tree: _Tree) -> tuple[Identity, ...]:
        """End the tree and take in its last words; shielded, bounded. Returns the unkillable."""
        unkillable = await _end(tree, self.watch)
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
            found = _reap(self._popen.pid)
            self.status_lost = found is None
            code, self.peak_mb = (UNKNOWN, 0) if found is None else found
            # The attribute is set whatever came of it: otherwise the object warns, and waits, when collected.
            self._popen.returncode = self.exit_code = code
        return self.exit_code

    def close(self, tree: _Tree) -> None:
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
            child = _Child(command, sink)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in _STARVED:
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

    async def _finish(self, command: Command, child: _Child, tree: _Tree) -> Finished:
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

    async def _cut_down(self, child: _Child, tree: _Tree) -> None:
        if child.exit_code is not None:  # it had ended, and so had what it left
            return
        self.unkillable.extend(await child.end(tree))
        child.reap()
        child.finish()

    async def _end_leftovers(self, leftovers: Iterable[Identity], tree: _Tree) -> tuple[Identity, ...]:
        tree.add(leftovers)
        with _Watch() as watch:
            return await _end(tree, watch, _LEFTOVER_GRACE)

    def _leftovers(self, leader: Identity, marker: str) -> Iterator[Identity]:
        """Background processes of a leader that was reaped; what ended among them is reaped.

        This comes after every command, so it looks at the group's number and at our own children only:
        those that left the group, or were started by a process that ended, have come to us as orphans.
        """
        seen = set()
        if not procs.LINUX or _group_exists(leader.pid):
            rows = procs.rows_of_session(leader, procs.read_table())
            seen = {row.pid for row in rows if not row.zombie}
            yield from (row.identity for row in rows if not row.zombie)
        for pid in procs.adopted_pids():
            if pid in self._live or pid in seen or (row := procs.read_row(pid)) is None:
                continue
            ours = row.session == leader.pid
            if row.zombie:
                if ours or row.session in self._live or row.session in self._kept or self._is_unknown(row):
                    _reap(pid)
            elif ours or (self._is_elsewhere(row) and procs.carries(row.identity, marker)):
                yield row.identity

    async def end_strays(self) -> tuple[Identity, ...]:
        """End orphans that nothing ties to a command; for the end of a session, and only if it is `sole`.

        Returns those that were found. Bounded and shielded like all ending.
        """
        rows = filter(None, map(procs.read_row, procs.adopted_pids()))
        strays = [row.identity for row in rows if row.pid not in self._live and self._is_unknown(row)]
        if strays:
            tree = _Tree(None, self.grace, live=self._live, kept=self._kept, signals=self._signals)
            self.unkillable.extend(await self._end_leftovers(strays, tree))
        return tuple(strays)

    def _is_unknown(self, row: procs.Row) -> bool:
        return self._sole and self._is_elsewhere(row)

    def _is_elsewhere(self, row: procs.Row) -> bool:
        return not (row.session in self._live or row.session in self._kept or row.session == os.getsid(0))

    def _tree(self, leader: Identity, command: Command, grace: Grace | None) -> _Tree:
        return _Tree(
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


def _group_exists(pgid: int) -> bool:
    try:
        os.killpg(pgid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _never_ran(command: Command, error: OSError | ValueError) -> Finished:
    gone = not os.path.isdir(command.cwd)
    missing = isinstance(error, FileNotFoundError) and not gone
    reason = f"working directory is gone: {command.cwd}" if gone else f"cannot run {command.argv[0]}: {error}"
    return Finished(NOT_FOUND if missing else NOT_RUNNABLE, spawn_error=reason, workdir_gone=gone)
