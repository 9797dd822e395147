"""Following a run from outside: its journal is read, the process that has it says when there is more."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import anyio
import anyio.abc

from ..journals import recovery
from ..journals.journal import NAME, Record, Tail
from ..journals.recovery import StoredRun
from .sockets import BROKEN, encoded

POLL = 0.2
"""Seconds between two looks at the journal of a process that cannot be reached."""


class Follower:
    """The records of a run from its first, in batches: what is there, then more whenever its journal grows.

    An async iterator, to be used as an async context manager. Ends when the run is over or dead; it may be queued, or
    be taken up by another process meanwhile. The journal is what is read, the live process only says when: so nothing
    is missed and nothing comes twice. Raises NotFoundError, StorageError.
    """

    def __init__(self, runs: Path, wanted: str) -> None:
        self._run = recovery.find_run(runs, wanted)
        self._tail = Tail(self._run.folder / NAME)
        self._stream: anyio.abc.SocketStream | None = None
        self._began = False
        self._ended = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._disconnect()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[Record]:
        if self._ended:
            raise StopAsyncIteration
        if self._began:
            await self._growth()
        if self._stream is None:
            self._began = True
            await self._watch()
        return self._tail.more()  # after the watch began: from here on every growth is told

    async def _growth(self) -> None:
        """Return when there may be more to read; without a stream if nothing tells of it any more."""
        if self._stream is None:
            await anyio.sleep(POLL)
            return
        try:
            await self._stream.receive()
        except BROKEN:
            await self._disconnect()

    async def _watch(self) -> None:
        self._run = StoredRun(self._run.folder)
        self._ended = not self._run.is_alive
        if self._ended or not self._run.socket:
            return
        with suppress(*BROKEN):
            self._stream = await anyio.connect_unix(self._run.socket)
            await self._stream.send(encoded({"watch": self._run.run_id}))
            await self._stream.receive()
            return
        await self._disconnect()

    async def _disconnect(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await anyio.aclose_forcefully(stream)
