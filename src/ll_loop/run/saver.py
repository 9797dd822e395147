"""Keeps `state.json` of all runs nearly current, off the runs' own path. A cache: the journal has it all."""

from __future__ import annotations

import json
from contextlib import suppress

import anyio

from ..core.snapshot import snapshot
from . import files
from .handle import RunHandle
from .journal import now, plain

SAVE_EVERY = 0.25
"""Seconds between two looks at whose file is out of date."""


class StateSaver:
    """Writes the files of those runs (of `handles`) that were marked."""

    def __init__(self, handles: list[RunHandle]) -> None:
        self._handles = handles
        self._news = anyio.Event()
        self._scope = anyio.CancelScope()

    def mark(self, handle: RunHandle) -> None:
        """The run has moved on."""
        handle.dirty = True
        self._news.set()

    def close(self) -> None:
        """Let `serve` return."""
        self._scope.cancel()

    async def serve(self) -> None:
        """Write what was marked, a few times a second at most, until `close`."""
        with self._scope:
            while True:
                await self._news.wait()
                await anyio.sleep(SAVE_EVERY)
                self._news = anyio.Event()
                for handle in [one for one in self._handles if one.dirty and one.result is None]:
                    await self.save(handle)

    async def save(self, handle: RunHandle) -> None:
        """Write one run's file now, if it has begun."""
        if handle.run is None:
            return
        handle.dirty = False
        document = snapshot(handle.run, updated_at=now())
        with suppress(OSError):
            text = json.dumps(document, indent=1, ensure_ascii=False, default=plain)
            await files.replace_text(handle.folder / "state.json", text)
