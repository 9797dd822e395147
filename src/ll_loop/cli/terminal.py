"""Where text goes: file descriptors that never make a run wait, terminals and their manners.

A reader that is slow only makes its own text late; one that has gone makes it vanish. Neither is an error.
"""

from __future__ import annotations

import errno
import os
import re
import select
import stat
from collections.abc import Mapping, Sequence

from msgspec import Struct

from ..core.drawing.cells import cells as cells
from ..core.drawing.cells import cut as cut
from ..core.drawing.cells import pad as pad
from ..errors import StorageError

STDOUT, STDERR = 1, 2
PATIENCE = 256 * 1024
"""Bytes that may wait for a slow reader before `Sink.is_behind`."""

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_COLOURS = {"red": "31", "green": "32", "yellow": "33", "dim": "2", "bold": "1"}


FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What a write says that nobody will read, though nobody has gone."""


class Sink:
    """Writes to a file descriptor what its reader takes, and holds the rest."""

    def __init__(self, fd: int) -> None:
        self.is_closed = False
        self._refused = ""
        self._fd = fd
        self._held = bytearray()
        self._chunk = _chunk(fd)

    @property
    def is_behind(self) -> bool:
        """Whether so much is held that more should not be added."""
        return len(self._held) > PATIENCE

    def put(self, text: str) -> None:
        """Add text; nothing is written before `pump` or `finish`."""
        if not self.is_closed:
            self._held += text.encode(errors="backslashreplace")

    def pump(self) -> bool:
        """Write what the reader takes without waiting. True when nothing is held."""
        while self._held and self._is_ready(0):
            self._write()
        return not self._held

    def finish(self) -> None:
        """Write all that is held, waiting for the reader as long as it is there."""
        while self._held and self._is_ready(None):
            self._write()

    def check(self) -> None:
        """StorageError if what was written went to a disk that has not taken it. A reader that has gone is no error."""
        if self._refused:
            raise StorageError(f"cannot write the output: {self._refused}")

    def _is_ready(self, timeout: float | None) -> bool:
        try:
            return bool(select.select([], [self._fd], [], timeout)[1])
        except (OSError, ValueError):
            self._close()
            return False

    def _write(self) -> None:
        try:
            written = os.write(self._fd, self._held[: self._chunk])
        except BlockingIOError:
            return  # somebody else made it non-blocking
        except OSError as error:
            self._refused = str(error.strerror) if error.errno in FULL else ""
            self._close()
        else:
            del self._held[:written]

    def _close(self) -> None:
        self.is_closed = True
        self._held.clear()


def say(*lines: str, fd: int = STDOUT) -> None:
    """Write lines at once; if nobody reads them (any more), they are not missed.

    StorageError if stdout is a file and its disk is full.
    """
    sink = Sink(fd)
    sink.put("".join(f"{line}\n" for line in lines))
    sink.finish()
    if fd == STDOUT:
        sink.check()


def _chunk(fd: int) -> int:
    """How much a descriptor that is ready takes without blocking: a page for pipes, less for terminals."""
    try:
        kind = os.fstat(fd).st_mode
    except OSError:
        return 1
    if stat.S_ISREG(kind):
        return 1 << 20
    return select.PIPE_BUF if stat.S_ISFIFO(kind) else 256


# --- terminals ---------------------------------------------------------------------------------------------


class Glyphs(Struct, frozen=True):
    """The signs of the display, in a form that the terminal's character set has."""

    done: str = "✓"
    bad: str = "✗"
    other: str = "•"
    waits: str = "…"
    arrow: str = "→"
    cut: str = "…"
    spinner: str = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


ASCII = Glyphs("+", "x", "*", ".", "->", "~", "|/-\\")


class Look(Struct, frozen=True):
    """How text to one descriptor may look. `width` None means that lines are not cut."""

    live: bool = False
    colour: bool = False
    width: int | None = None
    height: int = 24
    glyphs: Glyphs = Glyphs()

    def paint(self, text: str, colour: str) -> str:
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if self.colour and text else text

    def fit(self, text: str) -> str:
        """One line, no wider than the terminal."""
        return cut(text, self.width - 1, self.glyphs.cut) if self.width else text


def look_at(fd: int, env: Mapping[str, str], *, colour: bool = True) -> Look:
    """The manners of a descriptor now: what is behind it, COLUMNS, LINES, NO_COLOR, FORCE_COLOR, TERM and the character
    set. With `colour` false there is none unless FORCE_COLOR asks for it.
    """
    try:
        terminal = os.isatty(fd) and env.get("TERM", "dumb") != "dumb"
    except OSError:
        terminal = False
    width, height = _size(fd, env) if terminal else (_number(env, "COLUMNS"), 24)
    colour = (terminal and colour) or env.get("FORCE_COLOR", "0") not in ("", "0")
    glyphs = Glyphs() if _is_utf8(env) else ASCII
    return Look(terminal, colour and not env.get("NO_COLOR"), width, height, glyphs)


def _size(fd: int, env: Mapping[str, str]) -> tuple[int, int]:
    try:
        columns, lines = os.get_terminal_size(fd)
    except OSError:
        columns, lines = 0, 0
    return _number(env, "COLUMNS") or columns or 80, _number(env, "LINES") or lines or 24


def _number(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and int(text) > 0 else None


def _is_utf8(env: Mapping[str, str]) -> bool:
    locale = env.get("LC_ALL") or env.get("LC_CTYPE") or env.get("LANG") or ""
    return locale.upper() not in ("C", "POSIX") and not ("." in locale and "UTF" not in locale.upper())


# --- text --------------------------------------------------------------------------------------------------


def clean(text: str) -> str:
    """A text from elsewhere as one harmless line: no escape sequences, no control characters."""
    return _CONTROLS.sub(" ", _ESCAPES.sub("", text)).strip()


def columns(rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), gap: int = 2) -> list[str]:
    """Rows as aligned lines; the columns numbered in `right` are set flush right."""
    widths = [max(map(cells, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        parts = [
            " " * (width - cells(text)) + text if index in right else pad(text, width)
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((" " * gap).join(parts).rstrip())
    return lines


def table(
    rows: Sequence[Sequence[str]], width: int | None, *, right: Sequence[int] = (), spare: Sequence[int] = ()
) -> list[str]:
    """Rows as aligned lines; of the columns numbered in `spare`, as many go as have to for lines below `width`."""
    kept = list(range(len(rows[0])))
    gone = iter(spare)
    while True:
        shown = [[row[index] for index in kept] for row in rows]
        lines = columns(shown, right=[place for place, index in enumerate(kept) if index in right])
        if width is None or max(map(cells, lines)) < width or (last := next(gone, None)) is None:
            return lines
        kept.remove(last)


class Screen:
    """A terminal, or what stands for one: lines that scroll by and, below them, a few that are redrawn."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self._live: list[str] = []
        self._late: list[str] = []

    def show(self, feed: Sequence[str], live: Sequence[str]) -> None:
        """Let `feed` scroll by, then draw `live` in place of what was drawn before. Never waits."""
        if not self.sink.pump():
            if not self.sink.is_behind:
                self._late += feed
            return
        feed, self._late = [*self._late, *feed], []
        if feed or list(live) != self._live:
            self.sink.put(self._erase() + "".join(f"{line}\n" for line in feed) + _drawn(live))
            self._live = list(live)
            self.sink.pump()

    def close(self) -> None:
        """Take the redrawn lines away, so that the terminal goes on as if they had never been."""
        self.sink.put(self._erase() + "".join(f"{line}\n" for line in self._late))
        self._live, self._late = [], []

    def _erase(self) -> str:
        return "\r\x1b[J" if self._live else ""


def _drawn(live: Sequence[str]) -> str:
    """Lines with the cursor left at their beginning: there an echoed `^C` breaks nothing, and a line that a narrower
    terminal has wrapped needs no counting of rows."""
    if not live:
        return ""
    return "\n".join(live) + "\r" + (f"\x1b[{len(live) - 1}A" if len(live) > 1 else "")
