"""Questions of runs, put to the person at the terminal: one at a time, in the order in which they came."""

from __future__ import annotations

import codecs
import os
import termios
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, Self

import anyio

from ..errors import LoopError
from .terminal import STDERR, Look, clean

if TYPE_CHECKING:
    from ..api import RunHandle

STDIN = 0
BACKGROUND = 1.0
"""Seconds between two looks whether a program in the background has the terminal again."""

_HOW = "y, n [REASON] or e TEXT"
_ENTER, _RUB_OUT, _RUB_LINE, _ESCAPE = "\r\n", "\x7f\b", "\x15", "\x1b"


def is_somebody_there() -> bool:
    """Whether a person can be asked: both what we read and where questions are shown are terminals."""
    try:
        return os.isatty(STDIN) and os.isatty(STDERR)
    except OSError:
        return False


class Keys(Protocol):
    """What a person types. While it is entered, the terminal is as typing needs it."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    async def ready(self) -> None:
        """Return when the terminal is ours; to be awaited before entering."""

    async def read(self) -> str:
        """What was typed since, at least one character; empty when nothing more can come."""


class Keyboard:
    """The terminal at stdin. When `live`, keys come one by one and are not echoed: the display draws them."""

    def __init__(self, *, live: bool) -> None:
        self._live = live
        self._before: Any = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def __enter__(self) -> Self:
        if self._live:
            self._before, mode = termios.tcgetattr(STDIN), termios.tcgetattr(STDIN)
            mode[3] &= ~(termios.ICANON | termios.ECHO)
            termios.tcsetattr(STDIN, termios.TCSAFLUSH, mode)  # what was typed before the question is no answer to it
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None and _is_foreground():  # in the background this would stop us
            termios.tcsetattr(STDIN, termios.TCSADRAIN, self._before)
        self._before = None

    async def ready(self) -> None:
        while not _is_foreground():  # noqa: ASYNC110 - nothing tells of it
            await anyio.sleep(BACKGROUND)

    async def read(self) -> str:
        while True:
            await self.ready()
            await anyio.wait_readable(STDIN)
            try:
                data = os.read(STDIN, 1024)
            except OSError:
                return ""
            text = self._decoder.decode(data)
            if text or not data:
                return text


def _is_foreground() -> bool:
    """Whether reading the terminal would not stop us."""
    try:
        return os.tcgetpgrp(STDIN) == os.getpgrp()
    except OSError:
        return True


class Asker:
    """Who asks. `changed` is called when there is something else to draw, with what was wrong with an answer."""

    def __init__(self, handles: Sequence[RunHandle], keys: Keys, changed: Callable[[str], None]) -> None:
        self._handles = handles
        self._keys = keys
        self._changed = changed
        self._queue: list[tuple[RunHandle, str]] = []
        self._typed = ""
        self._said = ""
        self._news = anyio.Event()
        self._talk: anyio.CancelScope | None = None
        self._is_listening = False

    def look(self) -> None:
        """See which questions are open now: some have been answered from elsewhere, or have timed out."""
        before = self._queue[:1]
        asking = {(run, question["id"]): None for run in self._handles if (question := run.question) is not None}
        kept = [one for one in self._queue if one in asking]
        self._queue = kept + [one for one in asking if one not in kept]
        if self._queue[:1] != before:
            self._typed = self._said = ""
        if self._queue:
            self._news.set()
        elif self._talk is not None:
            self._talk.cancel()

    def lines(self, look: Look) -> list[str]:
        """The question whose turn it is, and what has been typed; nothing if none is open, or no key would be heard."""
        if not self._queue or not self._is_listening or (question := self._queue[0][0].question) is None:
            return []
        rest = f"  ({len(self._queue) - 1} more)" if len(self._queue) > 1 else ""
        asked = f"? {self._queue[0][0].loop.name}: {clean(question['text'])}"
        hint = self._said or _HOW
        return [
            look.paint(look.fit(asked), "bold"),
            look.fit(f"  {hint}{rest}: {clean(self._typed)}_"),
        ]

    async def serve(self) -> None:
        """Ask, whenever there is something to ask, until cancelled or the terminal is gone."""
        while True:
            while not self._queue:
                self._news = anyio.Event()
                await self._news.wait()
            await self._keys.ready()
            with self._keys, anyio.CancelScope() as self._talk, self._listening():
                while self._queue:
                    self._changed(self._said)
                    text = await self._keys.read()
                    if not text:
                        return
                    for line in self._take(text):
                        await self._answer(line)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        self._is_listening = True
        try:
            yield
        finally:
            self._is_listening = False

    def _take(self, text: str) -> Iterator[str]:
        """Edit the line with what was typed; the lines that it completes."""
        for key in text.partition(_ESCAPE)[0]:  # arrow keys and the like mean nothing here
            if key in _ENTER:
                line, self._typed = self._typed, ""
                yield line
            elif key in _RUB_OUT:
                self._typed = self._typed[:-1]
            elif key == _RUB_LINE:
                self._typed = ""
            elif key.isprintable():
                self._typed += key

    async def _answer(self, line: str) -> None:
        word, _, text = line.strip().partition(" ")
        if not self._queue or not word:
            return
        run, _ = self._queue[0]
        try:
            await run.approve(word, text)
            self._said = ""
        except LoopError as error:
            self._said = f"{clean(str(error))}; {_HOW}"
        self.look()
