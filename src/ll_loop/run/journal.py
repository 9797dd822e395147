"""The journal: what a run went through, one JSON record a line, in `events.jsonl`.

`append` encodes a record, `flush` hands it to the system (a killed process loses nothing of that), `commit` waits
until it is on the disk (a power cut loses nothing of that). Commits of all runs of a session share one thread hop.

Every record has the keys `event`, `ts`, `run_id`, `loop`, its own fields, then `seq` and `crc` (CRC-32 of all that
stands before it in the line). A line that was torn by a crash is cut off when the journal is opened again.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.abc

from ..core.events import Event
from ..errors import CannotCreateError, RefusedError, StorageError

NAME = "events.jsonl"
Record = dict[str, Any]
Listener = Callable[[Record], None]


def now() -> str:
    """The wall time as records carry it: ISO 8601, UTC, microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def plain(value: Any) -> Any:
    """What JSON makes of a value that it does not know."""
    return dict(value) if isinstance(value, Mapping) else str(value)


_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=plain)


def encode(record: Mapping[str, Any]) -> bytes:
    """One line: the record and its checksum. Numbers that JSON does not know become texts."""
    try:
        text = _encoder.encode(record)
    except ValueError:
        text = _encoder.encode(_finite(record))
    body = text[:-1].encode(errors="backslashreplace")
    return b'%b,"crc":"%08x"}\n' % (body, zlib.crc32(body))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


class Journal:
    """One run's journal, open for appending. One process has it at a time (an exclusive `flock`)."""

    def __init__(self, folder: Path, run_id: str, loop: str, listener: Listener, *, seq: int = 0) -> None:
        self.path = folder / NAME
        self.run_id = run_id
        self.loop = loop
        self.seq = seq
        self._listener = listener
        self._held: list[Record] = []
        self._fd = -1
        self.unsynced = False

    def open(self) -> None:
        """Open the file, making it if need be. RefusedError if another process has it."""
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CannotCreateError(f"cannot create {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise RefusedError(f"run {self.run_id} is in use by another process") from error
        self._fd = fd

    @property
    def fd(self) -> int:
        return self._fd

    def append(self, name: str, fields: Mapping[str, Any], *, ts: str = "", loop: str = "", depth: int = 0) -> Record:
        """Add a record, in memory until `flush`. The listener hears of it when it has been written."""
        self.seq += 1
        record: Record = {"event": name, "ts": ts or now(), "run_id": self.run_id, "loop": loop or self.loop}
        if depth:
            record["depth"] = depth
        record.update(fields)
        record["seq"] = self.seq
        self._held.append(record)
        return record

    def append_events(self, events: Iterable[Event], ts: str) -> None:
        """Add what the machine told."""
        for event in events:
            self.append(event.name, event.fields, ts=ts, loop=event.loop, depth=event.depth)

    def flush(self) -> None:
        """Write what was added. StorageError if the disk refuses."""
        if not self._held:
            return
        if self._fd < 0:
            self.open()
        held, self._held = self._held, []
        data = b"".join(map(encode, held))
        self.unsynced = True
        try:
            written = os.write(self._fd, data)
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}") from error
        for record in held:
            self._listener(record)

    def close(self) -> None:
        """Close the file; idempotent. What was not flushed is written, if the disk takes it."""
        with suppress(StorageError):
            self.flush()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@dataclass(slots=True)
class _Round:
    """One group commit: the journals in it, and how it went."""

    journals: list[Journal] = field(default_factory=list)
    done: anyio.Event = field(default_factory=anyio.Event)
    error: OSError | None = None


class Committer:
    """Group commit: all journals that ask while the disk is busy are synced together in the next round."""

    def __init__(self) -> None:
        self._next: _Round | None = None
        self._limiter = anyio.CapacityLimiter(1)
        self._wake = anyio.Event()
        self._closing = False

    async def commit(self, journal: Journal) -> None:
        """Return when all that was appended to `journal` is on the disk. StorageError if it cannot be."""
        journal.flush()
        if not journal.unsynced:
            return
        if self._next is None:
            self._next = _Round()
            self._wake.set()
        group = self._next
        if journal not in group.journals:
            group.journals.append(journal)
        await group.done.wait()
        if group.error is not None:
            raise StorageError(f"cannot sync {journal.path}: {group.error.strerror}")

    async def serve(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Do the rounds, until `close`. A round under way is never cut off."""
        task_status.started()
        with anyio.CancelScope(shield=True):  # runs that are being cancelled still close their books; `close` ends it
            await self._rounds()

    async def _rounds(self) -> None:
        while not (self._closing and self._next is None):
            if self._next is None:
                await self._wake.wait()
            self._wake = anyio.Event()
            group, self._next = self._next, None
            if group is None:
                continue
            for journal in group.journals:
                journal.unsynced = False
            group.error = await anyio.to_thread.run_sync(
                _sync, [journal.fd for journal in group.journals], limiter=self._limiter
            )
            group.done.set()

    def close(self) -> None:
        """Let `serve` return once nothing is left to do."""
        self._closing = True
        self._wake.set()


def _sync(fds: list[int]) -> OSError | None:
    for fd in fds:
        try:
            _datasync(fd)
        except OSError as error:
            return error
    return None


_datasync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# --- reading -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JournalText:
    """A journal as read: its good records, and how many bytes of a torn last line follow them."""

    records: tuple[Record, ...]
    good: int
    torn: int


def read(path: Path) -> JournalText:
    """Read a journal. StorageError when it is missing, or damaged anywhere but in its last line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    records: list[Record] = []
    good = 0
    for start, line in _lines(data):
        record = decode(line)
        if record is None:
            if start + len(line) < len(data):
                raise StorageError(f"{path}: record {len(records) + 1} is damaged", hint="restore the file from a copy")
            break
        records.append(record)
        good = start + len(line)
    return JournalText(tuple(records), good, len(data) - good)


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    start = 0
    while start < len(data):
        end = data.find(b"\n", start) + 1 or len(data)
        yield start, data[start:end]
        start = end


def decode(line: bytes) -> Record | None:
    """A record from its line; None if the line is torn or damaged."""
    body, mark, rest = line.rpartition(b',"crc":"')
    if not mark or len(rest) != 11 or not rest.endswith(b'"}\n'):
        return None
    if b"%08x" % zlib.crc32(body) != rest[:8]:
        return None
    record: Record = json.loads(body + b"}")
    return record


def cut_torn_end(path: Path, text: JournalText) -> None:
    """Cut off a torn last line, so that the next record begins on a line of its own."""
    if text.torn:
        os.truncate(path, text.good)
