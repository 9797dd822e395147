"""Who hears of what happens: readers of the records of a session's runs.

Publishing never waits. Each reader has a bounded buffer; what does not fit is dropped and counted, and the reader is
told so. A late reader gets a snapshot of the runs first, then every record from there on, without a gap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Self

import anyio

Record = Mapping[str, Any]
BUFFER = 10_000


class Reader:
    """One reader's records, as an async iterator; ends when the session closes. `dropped` counts what was lost."""

    def __init__(self, bus: Bus, wanted: Callable[[Record], bool], size: int, run_id: str | None = None) -> None:
        self.dropped = 0
        self.run_id = run_id
        self._bus = bus
        self._wanted = wanted
        self._size = size
        self._held: deque[Record] = deque()
        self._news = anyio.Event()
        self._closed = False

    def offer(self, record: Record) -> None:
        """Take a record if it is wanted and there is room; called by the bus."""
        if not self._wanted(record):
            return
        if len(self._held) >= self._size:
            self.dropped += 1
            return
        self._held.append(record)
        self._news.set()

    def close(self) -> None:
        """No more records will come; what is held can still be read."""
        self._closed = True
        self._bus.forget(self)
        self._news.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Record:
        while not self._held:
            if self._closed:
                raise StopAsyncIteration
            self._news = anyio.Event()
            await self._news.wait()
        return self._held.popleft()


class Bus:
    """Hands each record to every reader and to every `listener` (a plain function that must not block)."""

    def __init__(self) -> None:
        self._readers: dict[str | None, list[Reader]] = {}  # by the run that they are about; None: by all
        self._listeners: list[Callable[[Record], None]] = []

    def publish(self, record: Record) -> None:
        for listener in self._listeners:
            listener(record)
        for about in (None, record["run_id"]):
            for reader in self._readers.get(about, ()):
                reader.offer(record)

    def listen(self, listener: Callable[[Record], None]) -> None:
        """Call `listener` with every record from now on."""
        self._listeners.append(listener)

    def subscribe(
        self,
        snapshot: list[Record],
        wanted: Callable[[Record], bool] = lambda _: True,
        size: int = BUFFER,
        *,
        run_id: str | None = None,
    ) -> Reader:
        """A reader, of one run's records if `run_id` is given, that gets `snapshot` first.

        The caller makes the snapshot in the same breath. Readers of other runs cost a record nothing.
        """
        reader = Reader(self, wanted, size + len(snapshot), run_id)
        for record in snapshot:
            reader.offer(record)
        self._readers.setdefault(run_id, []).append(reader)
        return reader

    def forget(self, reader: Reader) -> None:
        fellows = self._readers.get(reader.run_id, [])
        if reader in fellows:
            fellows.remove(reader)
        if not fellows:
            self._readers.pop(reader.run_id, None)

    def close(self) -> None:
        """Every reader ends once it has read what it holds."""
        for reader in [one for fellows in self._readers.values() for one in fellows]:
            reader.close()
