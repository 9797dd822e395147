"""Scope locks on disk, for other processes and for recovery: one JSON file a run in `.loops/.running`.

Within a process `locks` decides; its answer is never read back from here. A lock stands only for a run that
has all it needs, so nothing is held on disk while waiting; one that waits for other processes has its place in the
line there, so that they go on in the order in which they came. Files have the format that earlier engines write and
honour, with keys on top that identify the owner beyond its pid. All admission happens under `flock` of
`.acquire.lock`, which is never deleted. No name written here but a lock's ends in `.lock`, since earlier
engines read whatever does, and no `.pid` or `.state.json` is written, since they would act on it.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
from msgspec import Struct
from msgspec.structs import replace

from ...errors import RefusedError, StorageError
from ..children import procs
from ..children.procs import Identity
from .dirwatch import Bell, Watch
from .lockfile import GATE, LOCK, PLACE, Foreign, Notice, clear_away, found_in, read, still_stands, why_void
from .locks import FOLD_CASE, components, overlaps

PATIENCE = 10.0
POLL = 0.1
FLOOR = 0.5
"""As `POLL`, where changes are told: for what no event tells of."""
TURN = 2.0
"""Seconds in which a process takes what is free and its turn; after that, others pass it."""
_PAUSES = (0.001, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
_SCRATCH = ".acquire.new"  # one name is enough, since one process at a time is past the gate


class _Wish(Struct, frozen=True):
    """What a run asks for, or has."""

    run_id: str
    loop_name: str
    scope: tuple[str, ...]
    singleton: bool = False
    derived_from: tuple[str, ...] = ()
    waits: bool = False
    asked: int = 0


class Mirror:
    """The locks of one session in one directory. `identity` is the process that holds them.

    What is put right on the way (locks of the dead, damaged files) is handed to `notify` in the event loop,
    or else kept in `notices`. `fold_case` as in `Locks`. In seconds: `patience` with the gate, and
    `poll` between looks at what no event tells of (by default, less often where the system tells of changes).

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
        poll: float | None = None,
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
        self._held: dict[str, tuple[_Wish, int]] = {}  # what is ours and the inodes of its files, by run id
        self._left: dict[str, int] = {}  # inodes of what was given back and could not be removed
        self._waiting: dict[str, _Wish] = {}  # those of ours that stand in the line
        self._idle: dict[tuple[int, int, int], float] = {}  # since when it has been the turn of others
        self._watch = Watch(running_dir)

    def __repr__(self) -> str:
        return f"<Mirror of {len(self._held)} runs in {self._dir}>"

    async def claim(
        self,
        run_id: str,
        loop_name: str,
        scope: Sequence[str],
        singleton: bool = False,
        *,
        derived_from: Sequence[str] = (),
        waits: bool = False,
        asked: int = 0,
    ) -> Foreign | None:
        """One attempt to lock `scope`, absolute paths, against other processes: None, or who is in the way.

        Those are locks, and the places of runs that asked before; with `waits`, the run takes a place. `asked` is
        when it did (`time.monotonic_ns`), by default now. This mirror's own locks are no obstacle, nor are those of the
        runs in `derived_from`, outermost first; those who share in one of them have a line of their own. Raises
        RefusedError if the gate stays shut for `patience`, StorageError if the disk refuses.
        Cancelled or failed, it leaves no file.
        """
        before = self._waiting.get(run_id)
        asked = asked or (before.asked if before is not None else time.monotonic_ns())
        wish = _Wish(run_id, loop_name, tuple(scope), singleton, tuple(derived_from), waits, asked)
        try:
            foreign = await self._through_gate(wish)
            await anyio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            self.drop_nowait(run_id)
            self.leave_line(run_id)
            raise
        return foreign

    async def wait_for_change(self, foreign: Foreign, timeout: float | None) -> None:
        """Returns when another claim is worth while: the file changed, its owner ended, or time is up.

        On Linux and macOS the change is an event, on Linux the owner's end too; the rest is looked for.
        """
        bell = Bell()
        with anyio.move_on_after(timeout), self._watch.watching() as is_told:
            pause = self._poll or (FLOOR if is_told else POLL)
            async with anyio.create_task_group() as group:
                group.start_soon(_ring_at_exit_of, foreign.pid, bell)
                group.start_soon(self._watch.ring, bell)
                while still_stands(foreign):
                    with anyio.move_on_after(pause):
                        await bell.heard()
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
        if run_id in self._held:
            _, self._left[run_id] = self._held.pop(run_id)
            self._remove_left()

    def _remove_left(self) -> None:
        """Remove the files of what was given back; what the system refuses is tried again with every claim."""
        for run_id, inode in list(self._left.items()):
            with suppress(OSError):
                _unlink_own(self._file_of(run_id, LOCK), inode)
                del self._left[run_id]

    def leave_line(self, run_id: str) -> None:
        """Give up the run's place in the line, if it has one: those behind it move up."""
        if run_id in self._waiting:
            del self._waiting[run_id]
            with suppress(OSError):
                os.unlink(self._file_of(run_id, PLACE))

    def others_wait(self) -> bool:
        """Whether runs of other processes stand in a line."""
        own = {f"{run_id}{PLACE}" for run_id in self._waiting}
        with suppress(FileNotFoundError):
            return any(name.endswith(PLACE) and name not in own for name in os.listdir(self._dir))
        return False

    def line_up(
        self,
        run_id: str,
        loop_name: str,
        scope: Sequence[str],
        singleton: bool = False,
        *,
        derived_from: Sequence[str] = (),
        asked: int,
    ) -> None:
        """Give a run that will claim in a moment its place in the line now, if the gate is open: see `claim`."""
        wish = _Wish(run_id, loop_name, tuple(scope), singleton, tuple(derived_from), True, asked)
        with suppress(OSError), _gate(self._dir):  # its claim does the same
            self._stand_in_line(wish)

    def holders(self) -> list[Foreign]:
        """Every lock that counts at this moment, our own included, by file name. Changes nothing."""
        return [lock for lock in found_in(self._dir, ()) if not lock.place and not why_void(lock)]

    def holder_among(self, run_ids: Sequence[str]) -> Foreign | None:
        """The lock of the first of these runs that has one."""
        found = (read(self._dir / f"{run_id}{LOCK}") for run_id in run_ids)
        return next((lock for lock in found if lock is not None), None)

    def void_locks(self) -> list[tuple[Foreign, str]]:
        """Every lock and every place that does not count any more, and why. Changes nothing."""
        return [(lock, reason) for lock in found_in(self._dir, ()) if (reason := why_void(lock))]

    def clear(self, lock: Foreign) -> bool:
        """Clear a lock away that still does not count; False if it counts by now, or the gate is shut."""
        try:
            with _gate(self._dir):
                again = read(lock.file)
                return again is None or (again.stamp == lock.stamp and clear_away(again) is not None)
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
                raise StorageError(f"cannot write {error.filename or self._dir / GATE}: {error.strerror}") from error
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
            self._remove_left()
            others = list(self._others(wish, notices))
            found = self._in_the_way(wish, others)
            if found is None:
                self._take(wish)
            elif wish.waits and wish.run_id not in self._waiting:
                self._stand_in_line(wish)
            return found

    def _others(self, wish: _Wish, notices: list[Notice]) -> Iterator[Foreign]:
        """What counts of other processes; what does not is cleared away."""
        for lock in found_in(self._dir, {*wish.derived_from, *self._held, *self._waiting, *self._left}):
            killed = self._is_killed(lock)
            notice = None if killed else clear_away(lock)
            if notice is not None:
                notices.append(notice)
            elif not (lock.place and lock.trouble):
                yield replace(lock, killed=killed)

    def _is_killed(self, lock: Foreign) -> bool:
        if not self._sweeps or not lock.is_ours or lock.owner is None or lock.place or lock.stamp in self._swept:
            return False
        return lock.owner.boot == procs.boot_id() and bool(why_void(lock))

    def _in_the_way(self, wish: _Wish, others: Sequence[Foreign]) -> Foreign | None:
        holder = next((one for one in others if not one.place and self._conflict(wish, one)), None)
        if holder is not None:
            return holder
        within = self._shared_by(wish)
        ahead = (one for one in others if 0 < one.place < wish.asked and one.within == within)
        return next((one for one in ahead if self._conflict(wish, one) and not self._lets_pass(one, others)), None)

    def _shared_by(self, wish: _Wish) -> str:
        """The nearest run above that has a lock, in which the wish shares: who waits for that waits for this too."""
        above = reversed(wish.derived_from)
        return next((run_id for run_id in above if os.path.exists(self._file_of(run_id, LOCK))), "")

    def _conflict(self, wish: _Wish, lock: Foreign) -> bool:
        if lock.run_id == wish.run_id or lock.trouble:
            return True
        return self._exclude(wish, _Wish(lock.run_id, lock.holder, lock.scope, lock.singleton))

    def _exclude(self, one: _Wish, other: _Wish) -> bool:
        if one.singleton and other.singleton and one.loop_name == other.loop_name:
            return True
        theirs = [components(path, fold_case=self._fold_case) for path in other.scope]
        ours = [components(path, fold_case=self._fold_case) for path in one.scope]
        return any(overlaps(mine, path) for mine in ours for path in theirs)

    def _lets_pass(self, first: Foreign, others: Iterable[Foreign]) -> bool:
        """Whether it has been the turn of somebody for too long: a stopped process must not keep everybody waiting."""
        wish = _Wish(first.run_id, first.holder, first.scope, first.singleton)
        before = [one for one in others if not one.place or (one.place < first.place and one.within == first.within)]
        theirs = any(self._conflict(wish, one) for one in before)
        ours = any(self._exclude(wish, held) for held, _ in self._held.values())
        earlier = any(self._exclude(wish, one) for one in self._waiting.values() if one.asked < first.place)
        if theirs or ours or earlier:
            self._idle.pop(first.stamp, None)
            return False
        now = anyio.current_time()
        return now - self._idle.setdefault(first.stamp, now) >= TURN

    def _take(self, wish: _Wish) -> None:
        self._held[wish.run_id] = (wish, self._write(self._content(wish)))
        self._publish(wish.run_id, LOCK)
        self.leave_line(wish.run_id)

    def _stand_in_line(self, wish: _Wish) -> None:
        self._waiting[wish.run_id] = wish
        within = self._shared_by(wish)
        self._write(self._content(wish) | {"place": wish.asked} | ({"within": within} if within else {}))
        self._publish(wish.run_id, PLACE)

    def _write(self, content: dict[str, Any]) -> int:
        """Write a file aside; its inode."""
        scratch = os.path.join(self._dir, _SCRATCH)
        with suppress(FileNotFoundError):
            os.unlink(scratch)
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with open(fd, "wb") as target:
            target.write(json.dumps(content).encode())
            return os.fstat(fd).st_ino

    def _publish(self, run_id: str, suffix: str) -> None:
        os.replace(os.path.join(self._dir, _SCRATCH), self._file_of(run_id, suffix))

    def _content(self, wish: _Wish) -> dict[str, Any]:
        record: dict[str, Any] = {
            "loop_name": wish.loop_name,
            "scope": wish.scope,
            "pid": self._identity.pid,
            "started_at": datetime.now(UTC).isoformat(timespec="microseconds"),
        }
        if wish.singleton:
            record["singleton"] = True
        return record | {"start": self._identity.start, "boot": self._identity.boot, "run_id": wish.run_id}

    def _file_of(self, run_id: str, suffix: str) -> str:
        return os.path.join(self._dir, f"{run_id}{suffix}")


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
    with suppress(FileNotFoundError):
        if os.lstat(file).st_ino == inode:
            os.unlink(file)


async def _ring_at_exit_of(pid: int, bell: Bell) -> None:
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
    bell.ring()
