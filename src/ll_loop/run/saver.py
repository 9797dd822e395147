"""Keeps `state.json` of all runs nearly current, off the runs' own path. A cache: the journal has it all."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import anyio
import msgspec
from anyio.lowlevel import checkpoint

from ..core.snapshot import snapshot
from . import files
from .handle import RunHandle
from .journals.journal import finite, now, plain

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
                    self.save(handle)
                    await checkpoint()

    def save(self, handle: RunHandle) -> None:
        """Write one run's file now, if it has begun."""
        if handle.run is None:
            return
        handle.dirty = False
        document = handle.secrets.document(snapshot(handle.run, updated_at=now()))
        with suppress(OSError):
            files.replace_text(handle.folder / "state.json", _text(document))


def _text(document: dict[str, Any]) -> str:
    try:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False, default=plain)
    except (ValueError, TypeError):  # a number or a key that JSON does not know
        text = json.dumps(finite(document), ensure_ascii=False, default=plain)
    try:
        return msgspec.json.format(text, indent=1)
    except UnicodeEncodeError:  # a value that is no UTF-8
        return json.dumps(json.loads(text), indent=1)
