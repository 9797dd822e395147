"""What an interactive child reads: bytes that are put in now and written when the child takes them."""

from __future__ import annotations

import os
from collections.abc import Callable

_CHUNK = 64 << 10


class Feed:
    """Our end of a child's stdin. Nothing here ever waits, so neither side can lock the other out.

    What the child does not read is held in memory; `is_broken` tells that it will never read again.
    """

    def __init__(self) -> None:
        self.is_broken = False
        self._held = bytearray()
        self._fd = -1
        self._ended = False
        self._wants: Callable[[], None] = _nothing

    def put(self, data: bytes) -> None:
        """Add what the child is to read next. What is put in after the end, or once it is broken, is dropped."""
        if self.is_broken or self._ended:
            return
        self._held += data
        self._wants()

    def end(self) -> None:
        """The child's input ends after what was put in."""
        self._ended = True
        self._wants()

    # What follows is for the spawner.

    def attach(self, fd: int, wants: Callable[[], None]) -> None:
        """Take over the descriptor; `wants` is called when there is something to do with it."""
        os.set_blocking(fd, False)
        self._fd, self._wants = fd, wants
        if self._held or self._ended:
            wants()

    def write(self) -> bool:
        """Write what the child takes at once; False when there is nothing more to write for now."""
        try:
            while self._held:
                del self._held[: os.write(self._fd, self._held[:_CHUNK])]
        except BlockingIOError:
            return True
        except OSError:
            self.is_broken = True
        if self._ended or self.is_broken:
            self.detach()
        return False

    def detach(self) -> None:
        """Close the descriptor; idempotent."""
        self._wants = _nothing
        self._held.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _nothing() -> None:
    pass
