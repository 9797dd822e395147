"""The scripted host as a command: plays the script that stands in its prompt."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence

from ..core.hosts import script
from ..errors import UsageError

FOR_EVER = 10**8
"""Seconds."""


def play(words: Sequence[str]) -> int:
    """Do what the script in `words`, or in the text on stdin, says; returns its exit code."""
    try:
        for step in list(script.plays(script.find(_texts(words)))):
            match step.kind:
                case "stdout" | "stderr":
                    print(step.value, file=getattr(sys, step.kind), flush=True)
                case "sleep":
                    time.sleep(float(step.value))
                case "exit":
                    return int(step.value)
                case "hang":
                    time.sleep(FOR_EVER)
    except script.ScriptError as error:
        raise UsageError(f"the script makes no sense: {error}") from error
    return 0


def _texts(words: Sequence[str]) -> Iterator[str]:
    """The places where a script may be; stdin is read only if it is in none of the words."""
    yield from words
    if sys.stdin is not None and not sys.stdin.isatty():
        yield sys.stdin.buffer.read().decode(errors="replace")
