"""What stands in the directory of locks, and whether it counts: files of ours, of earlier engines, and rubbish.

Of each run that has its scope there is a lock (`….lock`), of each that waits for other processes its place in the line
(`….place`), which earlier engines do not look at. Nothing here changes anything but `clear_away`.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec import Struct

from ..children import procs
from ..children.procs import Identity
from ..files import STARVED
from .locks import components

GATE = ".acquire.lock"
LOCK, PLACE = ".lock", ".place"
GRACE = 5.0
"""For so many seconds a file that makes no sense counts as one that is being written."""
_LARGEST = 64 * 1024
_LARGEST_PID = 2**31 - 1
_CLOCKS_DIFFER = 2.0


class Foreign(Struct, frozen=True):
    """A lock of somebody else. One with `trouble` can't be understood: it locks everything while it is young.

    `pid` is 0 and `scope` is `/` where the file does not tell. One that is `killed` is of a run of this engine whose
    process is dead; what it started may still be at work. One with a `place` is no lock, but a place in the line:
    of those who share in the lock of the run `within` if an action of that run asks, else in the common one.
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
    place: int = 0
    within: str = ""

    def covers(self, paths: Iterable[str]) -> bool:
        """Whether these absolute paths lie in its scope."""
        within = [components(path) for path in self.scope]
        return all(any(components(path)[: len(one)] == one for one in within) for path in paths)

    def __str__(self) -> str:
        if self.pid == 0:
            return f"{self.file}: {self.trouble or f'lock of {self.holder}'}"
        if self.place:
            return f"`{self.holder}` (pid {self.pid}) is before it in the line for {', '.join(self.scope)}"
        since = f" since {self.since:%Y-%m-%d %H:%M:%S} UTC" if self.since else ""
        return f"`{self.holder}` (pid {self.pid}) holds {', '.join(self.scope)}{since}"


class Notice(Struct, frozen=True):
    """Something in the lock directory that was put right, for a person to know."""

    file: Path
    text: str

    def __str__(self) -> str:
        return f"{self.file}: {self.text}"


# --- reading what is there -------------------------------------------------------------------------------


def found_in(directory: Path, known: Collection[str]) -> Iterator[Foreign]:
    """Locks and places, by file name, but for those of the runs that are `known`."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    for name in sorted(names):
        stem, suffix = os.path.splitext(name)
        if suffix not in (LOCK, PLACE) or name == GATE or stem in known:
            continue
        lock = read(directory / name)
        if lock is not None:
            yield lock


def read(file: Path) -> Foreign | None:
    """What the file says; None if it is gone. OSError if the machine lacks what reading takes."""
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
        if isinstance(error, OSError) and error.errno in STARVED:
            raise  # nothing is wrong with the file
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
        place=_place_in(record) if file.suffix == PLACE else 0,
        within=str(record.get("within", "")),
    )


def _place_in(record: dict[str, Any]) -> int:
    place = record.get("place")
    if type(place) is not int or place < 1:
        raise ValueError(f"place is {str(place)[:40]!r}")
    return place


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


def clear_away(lock: Foreign) -> Notice | None:
    """Removes a lock that does not count, keeping the file if it is only damaged; None if it counts."""
    why = why_void(lock)
    if not why:
        return None
    if not lock.trouble:
        with suppress(OSError):
            os.unlink(lock.file)
        what = "place in the line" if lock.place else "lock"
        return Notice(lock.file, f"removed the {what} of `{lock.holder}`: {why}")
    aside = lock.file.with_name(f"{lock.file.name}.damaged")
    try:
        os.rename(lock.file, aside)
    except OSError:  # what can't be put aside is not passed over either
        return None
    return Notice(lock.file, f"{why}; now {aside.name}")


def why_void(lock: Foreign) -> str:
    """Why a lock or a place counts no more; empty while it does."""
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
        return "" if hidden or procs.is_unreadable(lock.pid) else f"process {lock.pid} is gone"
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


def still_stands(lock: Foreign) -> bool:
    """Whether the file is as it was read, and counts."""
    try:
        status = os.lstat(lock.file)
    except OSError:
        return False
    return (status.st_ino, status.st_mtime_ns, status.st_size) == lock.stamp and not why_void(lock)
