"""Hearing that something changed in a directory: inotify on Linux, kqueue on macOS, elsewhere nothing is heard.

What is heard is a hint: whoever waits looks for itself, and looks now and then without being told.
"""

from __future__ import annotations

import ctypes
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import anyio

_CHANGES = 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
"""IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE, IN_DELETE_SELF, IN_MOVE_SELF."""
_ENOUGH = 64 * 1024


class Source(Protocol):
    """A descriptor that is readable once something has changed."""

    def fileno(self) -> int: ...
    def drain(self) -> None:
        """Take note of the changes so far."""

    def close(self) -> None: ...


class Bell:
    """Rung by many, heard by one: rings that nobody waited for are heard by the next wait, as one."""

    def __init__(self) -> None:
        self._rung = anyio.Event()

    def ring(self) -> None:
        self._rung.set()

    async def heard(self) -> None:
        """Return once it was rung since the last time."""
        await self._rung.wait()
        self._rung = anyio.Event()


class Watch:
    """The changes in one directory, for any number of waiters with one descriptor, and none while nobody waits."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._source: Source | None = None
        self._waiters = 0
        self._told: anyio.Event | None = None

    """X"""

    @contextmanager
    def watching(self) -> Iterator[bool]:
        """While entered, no change goes unheard; whether any is heard at all."""
        if not self._waiters:
            self._source = _source_of(self._directory)
        self._waiters += 1
        try:
            yield self._source is not None
        finally:
            self._waiters -= 1
            if not self._waiters and self._source is not None:
                self._source.close()
                self._source = None

    async def ring(self, bell: Bell) -> None:
        """Ring at every change, until cancelled. To be used while `watching`."""
        while self._source is not None:
            await self._changed(self._source)
            bell.ring()

    async def _changed(self, source: Source) -> None:
        if self._told is not None:
            await self._told.wait()
            return
        self._told = told = anyio.Event()
        try:
            await anyio.wait_readable(source.fileno())
            source.drain()
        finally:
            self._told = None
            told.set()


def _source_of(directory: Path) -> Source | None:
    """None if the system has none to give."""
    with suppress(OSError):
        if sys.platform == "linux":
            return _Inotify(directory)
        if sys.platform == "darwin":
            return _Kqueue(directory)
    return None


if sys.platform == "linux":

    class _Inotify:
        def __init__(self, directory: Path) -> None:
            libc = ctypes.CDLL(None, use_errno=True)
            self._fd = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
            if self._fd < 0:
                raise OSError(ctypes.get_errno(), "inotify_init1")
            if libc.inotify_add_watch(self._fd, os.fsencode(directory), _CHANGES) < 0:
                self.close()
                raise OSError(ctypes.get_errno(), "inotify_add_watch")

        def fileno(self) -> int:
            return self._fd

        def drain(self) -> None:
            with suppress(BlockingIOError):
                os.read(self._fd, _ENOUGH)

        def close(self) -> None:
            os.close(self._fd)


if sys.platform == "darwin":

    class _Kqueue:
        def __init__(self, directory: Path) -> None:
            self._directory = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
            self._queue = select.kqueue()
            wanted = select.KQ_NOTE_WRITE | select.KQ_NOTE_DELETE | select.KQ_NOTE_RENAME
            flags = select.KQ_EV_ADD | select.KQ_EV_CLEAR
            self._queue.control([select.kevent(self._directory, select.KQ_FILTER_VNODE, flags, wanted)], 0)

        def fileno(self) -> int:
            return self._queue.fileno()

        def drain(self) -> None:
            self._queue.control([], 1, 0)

        def close(self) -> None:
            self._queue.close()
            os.close(self._directory)
