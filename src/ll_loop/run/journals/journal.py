"""The journal: what a run went through, one JSON record a line, in `events.jsonl`.

`append` encodes a record, `flush` hands it to the system (a killed process loses nothing of that), `commit` waits
until it is on the disk (a power cut loses nothing of that). Commits of all runs of a session share one thread hop.

Every record has the keys `event`, `ts`, `run_id`, `loop`, its own fields, then `seq` and `crc` (CRC-32 of all that
stands before it in the line). A line that was torn by a crash is cut off when the journal is opened again. What the
disk took only half of is cut off at once, and the journal takes nothing more.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
from msgspec import Struct, field

from ...core.events import Event
from ...core.secrets import NONE, Secrets
from ...errors import CannotCreateError, LoopError, RefusedError, StorageError
from ...files.config.places import JOURNAL

NAME = JOURNAL
VERSION = 1
"""Of the records' meaning; the first record of a run carries it. Raised when an earlier ll-loop would misread them."""
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
    except (ValueError, TypeError):  # such a number, or a key that is no text
        text = _encoder.encode(finite(record))
    body = text[:-1].encode(errors="backslashreplace")
    return b'%b,"crc":"%08x"}\n' % (body, zlib.crc32(body))


def finite(value: Any) -> Any:
    """The value with texts in place of the numbers that JSON does not know."""
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def as_read_back(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as a journal gives them back: sequences are lists, keys are texts, dates are texts."""
    found: dict[str, Any] = decode(encode(values)) or {}
    return found


PLAIN = frozenset(
    {"event", "ts", "run_id", "loop", "seq", "depth", "path", "fingerprint", "batch", "socket", "owner", "script",
     "cwd", "state", "from", "to", "from_state", "final_state", "status", "terminated_by", "by", "kind", "type",
     "verdict", "policy"}
)  # fmt: skip
"""Fields of records that the engine itself goes by: nothing in them is anybody's secret."""

CUT = frozenset({"output_preview", "stderr_preview", "llm_prompt", "llm_raw_output", "raw_preview"})
"""Fields of records that show a part of a text, if they are not shorter than `LONG` characters."""
LONG = 250


class Journal:
    """One run's journal, open for appending. One process has it at a time (an exclusive `flock`).

    It may be closed and opened again in between; whoever appended meanwhile has taken the run over. Of its `secrets`,
    marks are written, and told to the listener.
    """

    def __init__(self, folder: Path, run_id: str, loop: str, listener: Listener, *, seq: int = 0) -> None:
        self.path = folder / NAME
        self.run_id = run_id
        self.loop = loop
        self.seq = seq
        self.secrets: Secrets = NONE
        self._listener = listener
        self._held: list[Record] = []
        self._fd = -1
        self._end = 0
        self._broken = ""
        self.unsynced = False
        self.has_child = False
        """Whether a process was started for what is under way."""
        self.unnamed = True
        """Whether the file's name may be lost in a power cut."""

    def continue_at(self, end: int, seq: int) -> None:
        """Go on with a journal that was read: it has `end` bytes, and `seq` is its last record's number."""
        self._end, self.seq, self.unnamed = end, seq, False

    def open(self) -> None:
        """Open the file, making it if need be. RefusedError if another process has it, or had it since."""
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CannotCreateError(f"cannot create {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise RefusedError(f"run {self.run_id} is in use by another process") from error
        if os.fstat(fd).st_size != self._end:
            os.close(fd)
            raise RefusedError(f"run {self.run_id} was taken over by somebody else a moment ago")
        self._fd = fd

    def cut(self, torn: int) -> None:
        """Cut off a torn last line of `torn` bytes, and say so."""
        os.ftruncate(self._fd, self._end - torn)
        self._end -= torn
        self.append("journal_repaired", {"bytes": torn})

    @property
    def fd(self) -> int:
        return self._fd

    def append(self, name: str, fields: Mapping[str, Any], *, ts: str = "", loop: str = "", depth: int = 0) -> Record:
        """Add a record, in memory until `flush`. The listener hears of it when it has been written."""
        self.seq += 1
        if name in ("action_spawned", "outcome"):
            self.has_child = name == "action_spawned"
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
        """Write what was added. StorageError if the disk refuses, or has refused before."""
        held, self._held = self._held, []
        if self._broken:
            raise StorageError(self._broken)
        if not held:
            return
        if self._fd < 0:
            self._reopen()
        lines = list(map(self._line, held))
        data = b"".join(line for _, line in lines)
        self.unsynced = True
        try:
            written = os.write(self._fd, data)
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._fd, self._end)  # half a record must never stand before another
            raise self.give_up(f"cannot write {self.path}: {error.strerror}") from error
        self._end += len(data)
        for record, _ in lines:
            self._listener(record)

    def _line(self, record: Record) -> tuple[Record, bytes]:
        """A record as it is written, with marks for secrets, and its line."""
        if not self.secrets:
            return record, encode(record)
        for key in CUT & record.keys():
            if record[key] and len(record[key]) >= LONG:
                record[key] = self.secrets.excerpt(record[key])
        line = encode(record)
        if not self.secrets.are_in(line):
            return record, line
        mask = self.secrets.document
        record = {key: value if key in PLAIN else mask(value) for key, value in record.items()}
        return record, encode(record)

    def _reopen(self) -> None:
        try:
            self.open()
        except LoopError as error:
            self._broken = str(error)  # what was held is lost: nothing may stand behind the gap
            raise

    def give_up(self, why: str) -> StorageError:
        """Take nothing more: the disk failed. Returns the error to raise."""
        self._broken = why
        return StorageError(why, hint="once the disk is well, `ll-loop resume` goes on from the last record")

    def close(self) -> None:
        """Close the file; idempotent. What was not flushed is written, if the disk takes it."""
        with suppress(LoopError):
            self.flush()
        if self._fd >= 0:
            with suppress(OSError):
                os.close(self._fd)
            self._fd = -1


LAST = 2048
"""Bytes at the end of a journal in which the word is looked for that its run is over."""
NEAR = 16 * 1024
"""Bytes at either end of a journal that are read at once; of most runs they tell how it ended."""

FAST = 0.001
"""Seconds below which a sync is shorter than the way to a thread and back, so that it is done at once."""


class _Round(Struct, eq=False):
    """One group commit: the journals in it, and how it went. `turn` wakes the task that is to lead it."""

    journals: list[Journal] = field(default_factory=list)
    turn: anyio.Event = field(default_factory=anyio.Event)
    done: anyio.Event = field(default_factory=anyio.Event)
    errors: dict[Journal, OSError] = field(default_factory=dict)
    took: float = 0.0


class Committer:
    """Group commit: all journals that ask while the disk is busy are synced together in the next round.

    The first to ask leads its round: it makes the thread hop for all. While the disk answers in less than `fast`
    seconds there is no hop: it would take longer than the sync.
    """

    def __init__(self, fast: float = FAST) -> None:
        self.rounds = 0
        self._fast = fast
        self._next: _Round | None = None
        self._busy = False
        self._took = fast
        self._limiter = anyio.CapacityLimiter(1)

    async def commit(self, journal: Journal) -> None:
        """Return when all that was appended to `journal` is on the disk. StorageError if it cannot be.

        It is not cut off by cancellation: a sync under way cannot be taken back.
        """
        journal.flush()
        if not journal.unsynced:
            return
        with anyio.CancelScope(shield=True):
            errors = await self._synced(journal)
        error = errors.get(journal)
        if error is not None:
            raise journal.give_up(f"cannot sync {journal.path}: {error.strerror}") from error

    async def _synced(self, journal: Journal) -> Mapping[Journal, OSError]:
        group = self._next
        if group is None:
            group = self._next = _Round()
            group.journals.append(journal)
            return await self._lead(group)
        if journal not in group.journals:
            group.journals.append(journal)
        await group.done.wait()
        return group.errors

    async def _lead(self, group: _Round) -> Mapping[Journal, OSError]:
        if self._busy:
            await group.turn.wait()
        self._busy, self._next = True, None
        self.rounds += 1
        targets = [_target(one) for one in group.journals]
        try:
            if self._took < self._fast and not any(unnamed for _, _, unnamed in targets):
                _sync(group, targets)
            else:
                await anyio.to_thread.run_sync(_sync, group, targets, limiter=self._limiter)
            self._took = group.took
        except BaseException:  # the event loop itself is being torn down: nobody may believe in this round
            group.errors = dict.fromkeys(group.journals, OSError(errno.EINTR, "the sync was cut off"))
            raise
        finally:
            self._hand_over(group)
        return group.errors

    def _hand_over(self, group: _Round) -> None:
        group.done.set()
        self._busy = self._next is not None
        if self._next is not None:
            self._next.turn.set()


def _target(journal: Journal) -> tuple[Journal, int, bool]:
    """What a round has to sync of a journal; what comes from now on is the next round's."""
    unnamed, journal.unsynced, journal.unnamed = journal.unnamed, False, False
    return journal, journal.fd, unnamed


def _sync(group: _Round, targets: list[tuple[Journal, int, bool]]) -> None:
    start = time.perf_counter()
    folders: set[Path] = set()
    for journal, fd, unnamed in targets:
        try:
            _datasync(fd)
            if unnamed:
                folders |= {journal.path.parent, journal.path.parent.parent}
        except OSError as error:  # of a journal closed meanwhile nobody asks any more
            group.errors[journal] = error
    group.took = time.perf_counter() - start
    for folder in folders:
        with suppress(OSError):  # not every file system can do it, and the data are safe
            sync_folder(folder)


_datasync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# --- reading -----------------------------------------------------------------------------------------------


class JournalText(Struct, frozen=True):
    """A journal as read: its good records, and how many bytes of a torn last line follow them."""

    records: tuple[Record, ...]
    good: int
    torn: int


def read(path: Path) -> JournalText:
    """Read a journal. StorageError when it is missing, or damaged anywhere but in its last line."""
    return _parsed(path, _bytes_of(path, 0, None))


def _bytes_of(path: Path, start: int, end: int | None) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read() if end is None else file.read(end - start)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


def _parsed(path: Path, data: bytes) -> JournalText:
    records: list[Record] = []
    good = 0
    for start, line in _lines(data):
        record = decode(line)
        if record is None:
            if start + len(line) < len(data):
                raise _damaged(path, f"record {len(records) + 1}")
            break
        records.append(record)
        good = start + len(line)
    return JournalText(tuple(records), good, len(data) - good)


def _damaged(path: Path, what: str) -> StorageError:
    return StorageError(f"{path}: {what} is damaged", hint="restore the file from a copy")


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


class Tail:
    """A journal that may still grow, read once from its first record on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end = 0

    def more(self) -> Sequence[Record]:
        """The records that came since the last call. A half-written last line is left for the next one.

        StorageError if a record is damaged, or the file is gone.
        """
        data = _bytes_of(self.path, self.end, None)
        whole = data[: data.rfind(b"\n") + 1]
        self.end += len(whole)
        return _parsed(self.path, whole).records


_OVER = ("loop_complete", "run_withdrawn")
_LAST_WORDS = [b'\n{"event":"%b",' % name.encode() for name in (*_OVER, "run_claimed", "run_resumed")]


def says_that_it_is_over(path: Path) -> bool:
    """Whether the last records of a journal say that its run is over. If they say nothing, it still may be."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        data = os.pread(fd, LAST, max(0, os.fstat(fd).st_size - LAST))
    except OSError:
        return False
    finally:
        os.close(fd)
    at = max(map(data.rfind, _LAST_WORDS))
    record = decode(data[at + 1 : data.find(b"\n", at + 1) + 1]) if at >= 0 else None
    return record is not None and record["event"] in _OVER and "depth" not in record


class Ends:
    """A journal as it was when this was made, read from its two ends: what nobody asks for is not looked at.

    A project has hundreds of journals, of which a listing wants to know the first record and one of the last.
    """

    def __init__(self, path: Path) -> None:
        """StorageError when it is missing or its first record is no good."""
        self.path = path
        try:
            self.size = path.stat().st_size
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}") from error
        self._start = max(0, self.size - NEAR)
        self._tail = _bytes_of(path, self._start, self.size)
        self.first = self._first()

    def _first(self) -> Record:
        data = self._tail if self._start == 0 else _bytes_of(self.path, 0, min(NEAR, self._start))
        while b"\n" not in data and len(data) < self.size:
            data = _bytes_of(self.path, 0, min(self.size, 4 * len(data)))
        record = decode(data[: data.find(b"\n") + 1])
        if record is None or record["event"] != "run_created":
            raise StorageError(f"{self.path}: the first record is missing, so nothing is known of the run")
        if record.get("version", VERSION) > VERSION:
            message = f"{self.path}: a later ll-loop has written this (journal version {record['version']})"
            raise StorageError(message, hint=f"this ll-loop reads version {VERSION}; nothing was changed")
        return record

    def last(self, *names: str) -> Record | None:
        """The last record of one of these names, those of sub-loops apart. StorageError if it is damaged."""
        found = self._last_in(self._tail, names)
        if found is None and self._start > 0:
            self._start, self._tail = 0, _bytes_of(self.path, 0, self.size)
            found = self._last_in(self._tail, names)
        return found

    def text(self) -> JournalText:
        """All of it. StorageError if any record but the last is damaged."""
        return _parsed(self.path, _bytes_of(self.path, 0, self.size))

    def _last_in(self, data: bytes, names: Iterable[str]) -> Record | None:
        beginnings = [b'\n{"event":"%b",' % name.encode() for name in names]
        end = len(data)
        while (at := max(data.rfind(beginning, 0, end) for beginning in beginnings)) >= 0:
            line_end = data.find(b"\n", at + 1) + 1 or len(data)
            record = decode(data[at + 1 : line_end])
            if record is not None and "depth" not in record:
                return record
            if record is None and line_end < len(data):
                raise _damaged(self.path, "a record")
            end = at + 1
        return self.first if self._start == 0 and "run_created" in names else None
