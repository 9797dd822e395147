"""What a child writes: read in bytes, split into lines, told to a sink, its head and tail kept."""

from __future__ import annotations

import os
from typing import Literal, Protocol

from msgspec import Struct

LONGEST_LINE = 16 << 20
_CHUNK = 64 << 10
_CHUNKS_A_TURN = 4  # other runs share this thread
Stream = Literal["stdout", "stderr"]


class Captured(Struct, frozen=True):
    """What a stream said: all of it, or head and tail around a line that tells how much is left out."""

    text: str = ""
    size: int = 0
    truncated: bool = False


class Sink(Protocol):
    """Who hears the output while it arrives. Neither method may block; what they raise ends the child."""

    def lines(self, batch: list[str]) -> None:
        """Complete lines of stdout in order, without their line ends, one batch a read."""

    def raw(self, stream: Stream, data: bytes) -> None:
        """Every byte, before the lines that it completes."""


class LineSplitter:
    """Cuts bytes into lines at LF, whatever the chunks; invalid UTF-8 becomes U+FFFD.

    A line longer than `longest` bytes comes in pieces, cut between characters.
    """

    def __init__(self, longest: int = LONGEST_LINE) -> None:
        self._longest = longest
        self._pending: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes."""
        end = data.rfind(b"\n")
        if end < 0:
            self._pending.append(data)
            self._size += len(data)
            return self._cut() if self._size > self._longest else []
        # LF is never part of a longer sequence, valid or not: decoding all at once equals line by line.
        whole = b"".join((*self._pending, data[:end]))
        self._pending = [data[end + 1 :]]
        self._size = len(data) - end - 1
        return whole.decode("utf-8", "replace").split("\n")

    def rest(self) -> list[str]:
        """The last line, if it had no end."""
        left = b"".join(self._pending)
        self._pending, self._size = [], 0
        return [left.decode("utf-8", "replace")] if left else []

    def _cut(self) -> list[str]:
        left = b"".join(self._pending)
        pieces = []
        while len(left) > self._longest:
            cut = self._longest
            while cut > self._longest - 3 and left[cut] & 0xC0 == 0x80:
                cut -= 1
            pieces.append(left[:cut].decode("utf-8", "replace"))
            left = left[cut:]
        self._pending, self._size = [left], len(left)
        return pieces


def plain_ends(text: str) -> str:
    """The text with LF for every line end: CR LF, and the CR with which a progress bar goes back, are one too."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


class _Kept:
    """The first and the last `keep` bytes of a stream."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._head = bytearray()
        self._tail = bytearray()
        self.size = 0

    def feed(self, data: bytes) -> None:
        self.size += len(data)
        room = self._keep - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        if len(self._tail) > 2 * self._keep:
            del self._tail[: -self._keep]

    def captured(self) -> Captured:
        if self.size == 0:
            return Captured()
        head, tail = self._head, self._tail[-self._keep :]
        left_out = self.size - len(head) - len(tail)
        if not left_out:
            return Captured((head + tail).decode("utf-8", "replace"), self.size)
        gap = f"\n... {left_out} bytes left out ...\n"
        return Captured(
            head.decode("utf-8", "replace") + gap + tail.decode("utf-8", "replace"), self.size, truncated=True
        )


class Pipe:
    """Our end of one of the child's streams."""

    def __init__(self, fd: int, stream: Stream, sink: Sink, keep: int) -> None:
        self.fd = fd
        self.kept = _Kept(keep)
        self.muted = False
        self._stream: Stream = stream
        self._sink = sink
        self._splitter = LineSplitter()

    def read(self) -> bool:
        """Take what is there, within a turn's bound; False when the stream has ended."""
        for _ in range(_CHUNKS_A_TURN):
            try:
                data = os.read(self.fd, _CHUNK)
            except BlockingIOError:
                return True
            if not data:
                return False
            self.kept.feed(data)
            if not self.muted:
                self._tell(data)
            if len(data) < _CHUNK:  # most likely all there was; if not, we are woken again
                return True
        return True

    def finish(self) -> None:
        """Hand over the last line if it had no end."""
        rest = self._splitter.rest()
        if rest and not self.muted:
            self._sink.lines(rest)

    def _tell(self, data: bytes) -> None:
        self._sink.raw(self._stream, data)
        if self._stream == "stdout" and (lines := self._splitter.feed(data)):
            self._sink.lines(lines)
