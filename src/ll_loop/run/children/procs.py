"""Who a process is: pid, start time and boot. Nothing here trusts a bare pid, and nothing here awaits.

Linux reads /proc itself; other systems ask psutil. Ending processes is `ll_loop.run.children.process`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

LINUX = sys.platform == "linux"
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37


class Identity(Struct, frozen=True):
    """One process for all time: a recycled pid has another start, a restarted machine another boot.

    `start` is in clock ticks since boot on Linux, in epoch seconds elsewhere: only compare it.
    """

    pid: int
    start: float
    boot: str


class Row(NamedTuple):
    """What the process table says about one process at one moment."""

    pid: int
    parent: int
    group: int
    session: int
    start: float
    zombie: bool

    @property
    def identity(self) -> Identity:
        return Identity(self.pid, self.start, boot_id())


Table = dict[int, Row]


# --- reading the system's table --------------------------------------------------------------------------

if sys.platform == "linux":

    def read_row(pid: int) -> Row | None:
        """The table's row of `pid` as of now, zombies included; None if there is no such process."""
        try:
            fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            data = os.read(fd, 4096)
        except OSError:  # it ended between the two calls
            return None
        finally:
            os.close(fd)
        fields = data[data.rfind(b")") + 2 :].split(b" ", 20)  # the name may hold blanks and brackets
        parent, group, session = map(int, fields[1:4])
        return Row(pid, parent, group, session, float(fields[19]), fields[0] in b"ZXx")

    def _ticks() -> int:
        """The present moment as `Identity.start` counts."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // (1_000_000_000 // os.sysconf("SC_CLK_TCK"))

    def _all_pids() -> list[int]:
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]

    def _epoch_start(row: Row) -> float:
        since_boot = row.start / os.sysconf("SC_CLK_TCK")
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot

    def _environment_has(pid: int, marker: str) -> bool:
        try:
            block = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False
        return os.fsencode(marker) in block.split(b"\0")

    def _name_of(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
        except OSError:
            return ""

    def _owner_of(pid: int) -> int:
        try:
            return os.stat(f"/proc/{pid}").st_uid
        except OSError:
            return -1

    @functools.cache
    def boot_id() -> str:
        """Names this boot of the machine."""
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()

else:

    def _ticks() -> int:
        raise NotImplementedError("the table here counts in another way")

    def read_row(pid: int) -> Row | None:
        """The table's row of `pid` as of now, zombies included; None if there is no such process."""
        import psutil  # inside: not a dependency on Linux

        try:
            process = psutil.Process(pid)
            zombie = process.status() == psutil.STATUS_ZOMBIE
            group, session = os.getpgid(pid), os.getsid(pid)
            return Row(pid, process.ppid(), group, session, process.create_time(), zombie)
        except (psutil.Error, OSError):
            return None

    def _all_pids() -> list[int]:
        import psutil  # inside: not a dependency on Linux

        return psutil.pids()

    def _epoch_start(row: Row) -> float:
        return row.start

    def _environment_has(pid: int, marker: str) -> bool:
        import psutil  # inside: not a dependency on Linux

        name, _, value = marker.partition("=")
        try:
            return psutil.Process(pid).environ().get(name) == value
        except (psutil.Error, OSError):
            return False

    def _name_of(pid: int) -> str:
        return ""

    def _owner_of(pid: int) -> int:
        import psutil  # inside: not a dependency on Linux

        try:
            return psutil.Process(pid).uids().effective
        except (psutil.Error, OSError):
            return -1

    @functools.cache
    def boot_id() -> str:
        """Names this boot of the machine."""
        import psutil  # inside: not a dependency on Linux

        return str(int(psutil.boot_time()))


def read_table() -> Table:
    """All processes as of now, by one pass: a few milliseconds on a busy machine."""
    rows = (read_row(pid) for pid in _all_pids())
    return {row.pid: row for row in rows if row is not None}


# --- one process -----------------------------------------------------------------------------------------


def own_identity() -> Identity:
    """This very process; not kept, since a fork is another one."""
    own = identity_of(os.getpid())
    if own is None:
        raise RuntimeError("this system has no readable process table")
    return own


def identity_of(pid: int) -> Identity | None:
    """Who has `pid` now; None if nobody. A zombie still has an identity."""
    row = read_row(pid) if pid > 0 else None
    return row.identity if row else None


class Births:
    """Tells who new children are by the clock: the table takes a millisecond to tell of one that is in its `exec`.

    The first one is looked up as well. Where clock and table do not agree (or have no common measure), all are.
    """

    def __init__(self) -> None:
        self._agree: bool | None = None if LINUX else False

    def now(self) -> int:
        """The moment, to be taken right before a child is started."""
        return 0 if self._agree is False else _ticks()

    def identity_of(self, pid: int, begun: int) -> Identity | None:
        """Who an unreaped child is that was started since `begun`."""
        if self._agree is False or _ticks() != begun:  # in which of two ticks it began, only the table knows
            return identity_of(pid)
        if self._agree:
            return Identity(pid, float(begun), boot_id())
        found = identity_of(pid)
        if found is not None:
            self._agree = found.start == begun
        return found


def is_alive(identity: Identity) -> bool:
    """Whether exactly this process still runs: not a zombie, not a successor with the same pid."""
    if identity.pid <= 0 or identity.boot != boot_id():
        return False
    row = read_row(identity.pid)
    if row is None:
        return is_unreadable(identity.pid)
    return row.start == identity.start and not row.zombie


def is_unreadable(pid: int) -> bool:
    """Whether there is a process that we may signal though the table did not tell: for want of a descriptor, say.

    What is not proven dead is alive: somebody else's lock must not be taken because we could not look.
    """
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def parent_of(pid: int) -> int | None:
    row = read_row(pid) if pid > 0 else None
    return row.parent if row else None


def session_of(pid: int) -> int | None:
    row = read_row(pid) if pid > 0 else None
    return row.session if row else None


def name_of(identity: Identity) -> str:
    """The name of the program that a process runs; empty once it has ended."""
    return _name_of(identity.pid) if is_alive(identity) else ""


def carries(identity: Identity, marker: str) -> bool:
    """Whether the environment that `identity` was started with holds `marker` (`NAME=value`).

    Ask this only about processes that are orphans of ours: nobody else's environment is to be read.
    """
    return bool(marker) and _environment_has(identity.pid, marker) and is_alive(identity)


def send_signal(identity: Identity, sig: int) -> bool:
    """Send `sig` to exactly this process; False if it is gone or not ours to signal."""
    if not is_alive(identity):
        return False
    if sys.platform == "linux":
        try:
            handle = os.pidfd_open(identity.pid)
        except ProcessLookupError:
            return False
        except OSError:  # an old kernel, or a sandbox that forbids it
            return _kill(identity.pid, sig)
        try:
            # The handle is looked at again: from here on no successor can take the signal.
            return is_alive(identity) and _send_through(handle, sig)
        finally:
            os.close(handle)
    return _kill(identity.pid, sig)


def _kill(pid: int, sig: int) -> bool:
    try:
        os.kill(pid, sig)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if sys.platform == "linux":

    def _send_through(handle: int, sig: int) -> bool:
        try:
            signal.pidfd_send_signal(handle, sig)
        except (ProcessLookupError, PermissionError):
            return False
        return True


# --- families --------------------------------------------------------------------------------------------


def below(roots: Iterable[int], table: Table) -> list[Row]:
    """Every process under `roots` by the table's parent links, parents before their children."""
    by_parent: dict[int, list[Row]] = {}
    for row in table.values():
        by_parent.setdefault(row.parent, []).append(row)
    found: list[Row] = []
    seen = set(roots)
    todo = list(seen)
    while todo:
        fresh = [row for row in by_parent.get(todo.pop(), ()) if row.pid not in seen]
        seen.update(row.pid for row in fresh)
        todo.extend(row.pid for row in fresh)
        found.extend(fresh)
    return found


def descendants(pid: int) -> list[Identity]:
    """The whole tree below `pid`, from one look at the table, children before grandchildren."""
    return [row.identity for row in below([pid], read_table())]


def child_pids(pid: int) -> list[int]:
    """Pids of the direct children of `pid`, zombies included; cheap on Linux when it is ourselves."""
    if LINUX and pid == os.getpid():
        with contextlib.suppress(FileNotFoundError):  # a kernel without these files
            return [child for task in os.listdir("/proc/self/task") for child in _children_of_task(task)]
    return [row.pid for row in read_table().values() if row.parent == pid]


def adopted_pids() -> list[int]:
    """The children of our main thread: on Linux every orphan that comes to us is among them.

    It is asked after every action, so it costs microseconds, and is empty where there are no sub-reapers.
    """
    if not LINUX:
        return []
    try:
        return _children_of_task(str(os.getpid()))
    except FileNotFoundError:
        return child_pids(os.getpid())


def _children_of_task(task: str) -> list[int]:
    try:
        fd = os.open(f"/proc/self/task/{task}/children", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        if os.path.exists(f"/proc/self/task/{task}"):
            raise
        return []  # the thread has ended
    try:
        data = b""
        while chunk := os.read(fd, 16384):
            data += chunk
    finally:
        os.close(fd)
    return [int(pid) for pid in data.split()]


def children(pid: int) -> list[Identity]:
    """The direct children of `pid`, zombies included."""
    found = (identity_of(child) for child in child_pids(pid))
    return [identity for identity in found if identity is not None]


def ancestors(pid: int) -> list[Identity]:
    """Who is above `pid` now, parents first: one of them is who gets its orphans."""
    found: list[Identity] = []
    row = read_row(pid)
    while row is not None and (above := read_row(row.parent) if row.parent > 0 else None):
        found.append(above.identity)
        row = above
    return found


def rows_of_session(leader: Identity, table: Table) -> list[Row]:
    """The rows of the session that `leader` opened; empty if its number belongs to another session by now."""
    if leader.boot != boot_id():
        return []
    first = table.get(leader.pid)
    if first is not None and first.start != leader.start:
        return []
    return [row for row in table.values() if row.session == leader.pid and row.start >= leader.start]


# --- orphans ---------------------------------------------------------------------------------------------


def orphans_of(
    marker: str, leaders: Collection[Identity], since: float, above: Collection[Identity] = ()
) -> list[Identity]:
    """What a dead run left alive: our user's processes begun at `since` (as `Identity.start`) that are its own.

    Its own are those in a session opened by one of `leaders`, whoever their parent is, and those orphans whose
    environment holds `marker` (`LL_LOOP_RUN_ID=<run id>`). Only orphans' environments are read: processes whose
    parent is pid 1, this process, the user's service manager or one of `above`, the ancestors that the run's process
    had (any of them may be a sub-reaper). Descendants of what is returned are not listed.
    """
    table = read_table()
    keepers = {1, os.getpid()} | {row.pid for row in table.values() if row.parent == 1 and _is_manager(row.pid)}
    keepers |= {one.pid for one in above if (row := table.get(one.pid)) and row.identity == one}
    members = {row.pid for leader in leaders for row in rows_of_session(leader, table)}
    tops = {pid for pid in members if table[pid].parent not in members}
    candidates = [
        row
        for row in table.values()
        if (row.pid in tops or row.parent in keepers) and not row.zombie and _owner_of(row.pid) == os.getuid()
        if row.pid != os.getpid() and row.start >= since
    ]
    return [row.identity for row in candidates if row.pid in tops or carries(row.identity, marker)]


def _is_manager(pid: int) -> bool:
    return _name_of(pid) == "systemd" and _owner_of(pid) == os.getuid()


def become_subreaper() -> Callable[[], None]:
    """Have orphaned descendants come to this process instead of pid 1; returns what undoes it.

    Does nothing where the system has no such thing (it is Linux's). Undo in the reverse order of asking.
    """
    if not LINUX:
        return _nothing
    libc = ctypes.CDLL(None, use_errno=True)
    former = ctypes.c_int(0)
    if libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(former), 0, 0, 0) != 0 or former.value:
        return _nothing
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        return _nothing
    return functools.partial(_stop_reaping, libc)


def _stop_reaping(libc: ctypes.CDLL) -> None:
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _nothing() -> None:
    pass
