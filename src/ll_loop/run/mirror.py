"""Scope locks on disk, for other processes and for recovery: one JSON file a run in `.loops/.running`.

Within a process `locks` decides; its answer is never read back from here. A file stands only for a run that
has all it needs, so nothing is held on disk while waiting. Files have the format that earlier engines write and
honour, with keys on top that identify the owner beyond its pid. All admission happens under `flock` of
`.acquire.lock`, which is never deleted. No name written here but a lock's ends in `.lock`, since earlier
engines read whatever does, and no `.pid` or `.state.json` is written, since they would act on it.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
from msgspec import Struct
from msgspec.structs import replace

from ..errors import RefusedError, StorageError
from . import procs
from .locks import FOLD_CASE, components, overlaps
from .procs import Identity

GATE = ".acquire.lock"
PATIENCE = 10.0
POLL = 0.1
GRACE = 5.0
"""For so many seconds a file that makes no sense counts as one that is being written."""
_PAUSES = (0.005, 0.01, 0.02, 0.05)
_LARGEST = 64 * 1024
_LARGEST_PID = 2**31 - 1
_CLOCKS_DIFFER = 2.0
_SCRATCH = ".acquire.new"  # one name is enough, since one process at a time is past the gate


class Foreign(Struct, frozen=True):
    """A lock of somebody else. One with `trouble` can't be understood: it locks everything while it is young.

    `pid` is 0 and `scope` is `/` where the file does not tell. One that is `killed` is of a run of this engine whose
    process is dead; what it started may still be at work.
    """

    holder: str
    run_id: str
    pid: int
    scope: tuple[str, ...]
    file: Path
    since: datetime | None = None
    singleton: bool = False
    trouble: str = ""
    owner: Identity | None = None
    stamp: tuple[int, int, int] = (0, 0, 0)
    is_ours: bool = False
    killed: bool = False

    def __str__(self) -> str:
        if self.pid == 0:
            return f"{self.file}: {self.trouble or f'lock of {self.holder}'}"
        since = f" since {self.since:%Y-%m-%d %H:%M:%S} UTC" if self.since else ""
        return f"`{self.holder}` (pid {self.pid}) holds {', '.join(self.scope)}{since}"


class Notice(Struct, frozen=True):
    """Something in the lock directory that was put right, for a person to know."""

    file: Path
    text: str

    def __str__(self) -> str:
        return f"{self.file}: {self.text}"


class _Wish(Struct, frozen=True):
    run_id: str
    loop_name: str
    scope: tuple[str, ...]
    singleton: bool
    derived_from: frozenset[str]
    fold_case: bool

    def conflicts_with(self, lock: Foreign) -> bool:
        if lock.run_id == self.run_id or lock.trouble:
            return True
        if self.singleton and lock.singleton and lock.holder == self.loop_name:
            return True
        theirs = [components(path, fold_case=self.fold_case) for path in lock.scope]
        ours = [components(path, fold_case=self.fold_case) for path in self.scope]
        return any(overlaps(one, other) for one in ours for other in theirs)


class Mirror:
    """The locks of one session in one directory. `identity` is the process that holds them.

    What is put right on the way (locks of the dead, damaged files) is handed to `notify` in the event loop,
    or else kept in `notices`. `fold_case` as in `Locks`. In seconds: `patience` with the gate, and
    `poll` between looks at what no event tells of.

    With `sweeps`, the lock of a killed run of this engine is not cleared away: a claim that it is in the way of returns
    it, `killed`. The caller ends what that run left at work, says `swept`, and claims again.
    """

    def __init__(
        self,
        running_dir: Path,
        *,
        identity: Identity,
        notify: Callable[[Notice], None] | None = None,
        fold_case: bool = FOLD_CASE,
        patience: float = PATIENCE,
        poll: float = POLL,
        sweeps: bool = False,
    ) -> None:
        self.notices: list[Notice] = []
        self._dir = running_dir
        self._identity = identity
        self._notify = notify or self.notices.append
        self._fold_case = fold_case
        self._patience = patience
        self._poll = poll
        self._sweeps = sweeps
        self._swept: set[tuple[int, int, int]] = set()
        self._inodes: dict[str, int] = {}  # of the files that are ours, by run id

    def __repr__(self) -> str:
        return f"<Mirror of {len(self._inodes)} runs in {self._dir}>"

    async def claim(
        self,
        run_id: str,
        loop_name: str,
        scope: Sequence[str],
        singleton: bool = False,
        *,
        derived_from: frozenset[str] = frozenset(),
    ) -> Foreign | None:
        """One attempt to lock `scope`, absolute paths, against other processes: None, or who is in the way.

        This mirror's own locks are no obstacle, nor are those of the runs in `derived_from`. Raises
        RefusedError if the gate stays shut for `patience`, StorageError if the disk refuses. Cancelled or
        failed, it leaves no file.
        """
        wish = _Wish(run_id, loop_name, tuple(scope), singleton, derived_from, self._fold_case)
        try:
            foreign = await self._through_gate(wish)
            await anyio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            self.drop_nowait(run_id)
            raise
        return foreign

    async def wait_for_change(self, foreign: Foreign, timeout: float | None) -> None:
        """Returns when another claim is worth while: the file changed, its owner ended, or time is up.

        The owner's end is an event on Linux; all else is looked at every `poll` seconds, on the spot.
        """
        with anyio.move_on_after(timeout):
            async with anyio.create_task_group() as group:
                gone = anyio.Event()
                group.start_soon(_set_at_exit_of, foreign.pid, gone)
                while not gone.is_set() and _still_stands(foreign):
                    with anyio.move_on_after(self._poll):
                        await gone.wait()
                group.cancel_scope.cancel()

    def swept(self, killed: Foreign) -> None:
        """Nothing of this run is alive any more: its lock is to be cleared away."""
        self._swept.add(killed.stamp)

    async def drop(self, run_id: str) -> None:
        """Removes the run's lock file, also while being cancelled. Twice is once."""
        self.drop_nowait(run_id)  # 20 µs: handing it to a thread would cost five times as much
        await anyio.lowlevel.checkpoint()

    def drop_nowait(self, run_id: str) -> None:
        """As `drop`, without giving others a turn. A file that somebody else has put in its place stays."""
        inode = self._inodes.get(run_id)
        if inode is not None:
            _unlink_own(self._file_of(run_id), inode)
            del self._inodes[run_id]

    def holders(self) -> list[Foreign]:
        """Every lock that counts at this moment, our own included, by file name. Changes nothing."""
        return [lock for lock in _locks_in(self._dir, ()) if not _why_void(lock)]

    def void_locks(self) -> list[tuple[Foreign, str]]:
        """Every lock that does not count any more, and why. Changes nothing."""
        return [(lock, reason) for lock in _locks_in(self._dir, ()) if (reason := _why_void(lock))]

    def clear(self, lock: Foreign) -> bool:
        """Clear a lock away that still does not count; False if it counts by now, or the gate is shut."""
        try:
            with _gate(self._dir):
                again = _read(lock.file)
                return again is None or (again.stamp == lock.stamp and _clear_away(again) is not None)
        except BlockingIOError:
            return False

    async def _through_gate(self, wish: _Wish) -> Foreign | None:
        deadline = anyio.current_time() + self._patience
        pauses = iter(_PAUSES)
        while True:
            notices: list[Notice] = []
            try:
                return self._attempt(wish, notices)
            except BlockingIOError:
                if anyio.current_time() >= deadline:
                    raise self._gate_is_shut() from None
                await anyio.sleep(next(pauses, _PAUSES[-1]))
            except OSError as error:
                raise StorageError(f"{error.filename or self._dir / GATE}: {error.strerror}") from error
            finally:
                for notice in notices:
                    self._notify(notice)

    def _gate_is_shut(self) -> RefusedError:
        return RefusedError(
            f"{self._dir / GATE}: another process has kept it locked for {self._patience:g} s",
            hint="that takes milliseconds: look for a stopped process with `fuser` or `lsof`",
        )

    # --- past the gate: a few system calls, less than the way to a thread and back ---

    def _attempt(self, wish: _Wish, notices: list[Notice]) -> Foreign | None:
        with _gate(self._dir):
            found: Foreign | None = None
            for lock in _locks_in(self._dir, wish.derived_from.union(self._inodes)):
                killed = self._is_killed(lock)
                notice = None if killed else _clear_away(lock)
                if notice is not None:
                    notices.append(notice)
                elif found is None and wish.conflicts_with(lock):
                    found = replace(lock, killed=killed)
            if found is None:
                self._write(wish)
            return found

    def _is_killed(self, lock: Foreign) -> bool:
        if not self._sweeps or not lock.is_ours or lock.owner is None or lock.stamp in self._swept:
            return False
        return lock.owner.boot == procs.boot_id() and bool(_why_void(lock))

    def _write(self, wish: _Wish) -> None:
        scratch, file = os.path.join(self._dir, _SCRATCH), self._file_of(wish.run_id)
        with suppress(FileNotFoundError):
            os.unlink(scratch)
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with open(fd, "wb") as target:
            target.write(self._content(wish))
            inode = os.fstat(fd).st_ino
        self._inodes[wish.run_id] = inode
        os.replace(scratch, file)

    def _content(self, wish: _Wish) -> bytes:
        record: dict[str, Any] = {
            "loop_name": wish.loop_name,
            "scope": wish.scope,
            "pid": self._identity.pid,
            "started_at": datetime.now(UTC).isoformat(timespec="microseconds"),
        }
        if wish.singleton:
            record["singleton"] = True
        record |= {"start": self._identity.start, "boot": self._identity.boot, "run_id": wish.run_id}
        return json.dumps(record).encode()

    def _file_of(self, run_id: str) -> str:
        return os.path.join(self._dir, f"{run_id}.lock")


@contextmanager
def _gate(directory: Path) -> Iterator[None]:
    """Keeps other processes out. Raises BlockingIOError while one of them is in."""
    path, flags = os.path.join(directory, GATE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o666)
    except FileNotFoundError:
        os.makedirs(directory, exist_ok=True)
        fd = os.open(path, flags, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_file_at(path, fd):
            raise BlockingIOError(f"{path} was replaced")
        yield
    finally:
        os.close(fd)


def _is_file_at(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def _unlink_own(file: str, inode: int) -> None:
    with suppress(OSError):
        if os.lstat(file).st_ino == inode:
            os.unlink(file)


# --- reading what is there -------------------------------------------------------------------------------


def _locks_in(directory: Path, known: Collection[str]) -> Iterator[Foreign]:
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    for name in sorted(name for name in names if name.endswith(".lock") and name[:-5] not in known):
        lock = _read(directory / name) if name != GATE else None
        if lock is not None:
            yield lock


def _read(file: Path) -> Foreign | None:
    """What the file says; None if it is gone."""
    try:
        status = os.lstat(file)
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        return _parsed(file, _bytes_of(file, status), stamp)
    except FileNotFoundError:
        return None
    except PermissionError:
        if status.st_uid != os.geteuid():  # its owner may well be alive: there is no proof to the contrary
            return Foreign(f"user {status.st_uid}", file.stem, 0, ("/",), file, stamp=stamp)
        trouble = "not readable"
    except (ValueError, TypeError, RecursionError, OSError) as error:
        trouble = f"damaged: {_in_short(error)}"
    return Foreign("unknown", file.stem, 0, ("/",), file, trouble=trouble, stamp=stamp)


def _in_short(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return (error.strerror if isinstance(error, OSError) else "") or str(error)


def _bytes_of(file: Path, status: os.stat_result) -> bytes:
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    if status.st_size > _LARGEST:
        raise ValueError("too large")
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.read(fd, _LARGEST + 1)
    finally:
        os.close(fd)


def _parsed(file: Path, data: bytes, stamp: tuple[int, int, int]) -> Foreign:
    if not data.strip():
        raise ValueError("empty")
    record: Any = json.loads(data)
    if not isinstance(record, dict):
        raise TypeError("not a JSON object")
    pid, scope, name = record.get("pid"), record.get("scope"), record.get("loop_name")
    if type(pid) is not int or not 0 < pid <= _LARGEST_PID:
        raise ValueError(f"pid is {str(pid)[:40]!r}")
    if not isinstance(scope, list) or not all(isinstance(path, str) and path[:1] == "/" for path in scope):
        raise ValueError("scope is no list of absolute paths")
    return Foreign(
        holder=name if isinstance(name, str) else "unknown",
        run_id=file.stem,
        pid=pid,
        scope=tuple(os.path.normpath(path) for path in scope),
        file=file,
        since=_time_in(record.get("started_at")),
        singleton=record.get("singleton") is True,
        owner=_identity_in(record, pid),
        stamp=stamp,
        is_ours=record.get("run_id") == file.stem,
    )


def _time_in(value: Any) -> datetime | None:
    try:
        time_ = datetime.fromisoformat(value)
        return (time_ if time_.tzinfo else time_.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return None


def _identity_in(record: dict[str, Any], pid: int) -> Identity | None:
    start, boot = record.get("start"), record.get("boot")
    if isinstance(start, int | float) and isinstance(boot, str):
        return Identity(pid, start, boot)
    return None


# --- whether it counts -----------------------------------------------------------------------------------


def _clear_away(lock: Foreign) -> Notice | None:
    """Removes a lock that does not count, keeping the file if it is only damaged; None if it counts."""
    why = _why_void(lock)
    if not why:
        return None
    if not lock.trouble:
        with suppress(OSError):
            os.unlink(lock.file)
        return Notice(lock.file, f"removed the lock of `{lock.holder}`: {why}")
    aside = lock.file.with_name(f"{lock.file.name}.damaged")
    try:
        os.rename(lock.file, aside)
    except OSError:  # what can't be put aside is not passed over either
        return None
    return Notice(lock.file, f"{why}; now {aside.name}")


def _why_void(lock: Foreign) -> str:
    if lock.trouble:
        age = time.time() - lock.stamp[1] / 1e9
        return lock.trouble if abs(age) >= GRACE else ""
    return _why_dead(lock) if lock.pid else ""


def _why_dead(lock: Foreign) -> str:
    """Why the owner of a lock can't be alive any more; empty while that is not proven."""
    if lock.owner is not None and lock.owner.boot != procs.boot_id():
        return f"process {lock.pid} ran before the last start of this machine"
    try:
        os.kill(lock.pid, 0)
        hidden = False
    except ProcessLookupError:
        return f"process {lock.pid} is gone"
    except PermissionError:
        hidden = True  # another user's; some systems show nothing more of it
    row = procs.read_row(lock.pid)
    if row is None:
        return "" if hidden else f"process {lock.pid} is gone"
    if row.zombie:
        return f"process {lock.pid} has ended"
    if lock.owner is not None:
        return "" if row.start == lock.owner.start else f"pid {lock.pid} is another process by now"
    return _why_too_young(lock, row)


def _why_too_young(lock: Foreign, row: procs.Row) -> str:
    """For files that tell a pid only: a process that began after the lock did not write it.

    Wall clocks get set, so a process that calls itself an engine is believed all the same.
    """
    if lock.since is None or procs._epoch_start(row) <= lock.since.timestamp() + _CLOCKS_DIFFER:
        return ""
    if _looks_like_engine(lock.pid):
        return ""
    return f"pid {lock.pid} is another process by now, begun after the lock was written"


def _looks_like_engine(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"ll-loop" in words or b"little_loops" in words or b"ll_loop" in words


# --- waiting ---------------------------------------------------------------------------------------------


def _still_stands(lock: Foreign) -> bool:
    try:
        status = os.lstat(lock.file)
    except OSError:
        return False
    return (status.st_ino, status.st_mtime_ns, status.st_size) == lock.stamp and not _why_void(lock)


async def _set_at_exit_of(pid: int, gone: anyio.Event) -> None:
    """Where the system can't tell, or there is no such process, it does nothing."""
    if sys.platform != "linux" or pid == 0:
        return
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        await anyio.wait_readable(handle)
    finally:
        os.close(handle)
    gone.set()
