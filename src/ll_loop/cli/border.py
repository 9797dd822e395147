"""The border: a command line comes in, an exit code goes out, and whatever went wrong is said in a few lines.

Commands that wait for something run in an event loop on the backend asked for. The others answer at once: starting
an event loop would cost more than their answer.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Coroutine, Sequence
from typing import Any

from .app import SHORT, app

WAITING = frozenset(
    {"run", "run-many", "resume", "stop", "status", "approve", "test", "why", "queue", "logs", "attach", "cleanup"}
)
BACKENDS = ("asyncio", "trio")


def main(argv: Sequence[str]) -> int:
    """Obey a command line. Every error ends here; nothing that a user does gives a traceback."""
    words = list(argv) or ["--help"]
    if words[0] == "help":
        words = [*words[1:2], "--help"]
    words[0] = SHORT.get(words[0], words[0])
    try:
        return _obey(words)
    except SystemExit:
        return 0  # click's way of saying that nobody reads its help any more
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as error:  # noqa: BLE001 - the outermost frame
        from .complaints import complain  # 0.01 s that only errors need

        return complain(error, words, tuple(app.commands), runs=_waits(words))
    finally:
        _flush()


def _obey(words: list[str]) -> int:
    def command() -> Coroutine[Any, Any, Any]:
        return app.main(words, prog_name="ll-loop", standalone_mode=False)

    if not _waits(words):
        return _answer(command())
    import anyio  # 0.05 s that `--help` need not pay

    async def wait() -> int:
        return int(await command() or 0)

    return anyio.run(wait, backend=_backend(words))


def _answer(command: Coroutine[Any, Any, Any]) -> int:
    """The result of a coroutine that waits for nothing."""
    try:
        command.send(None)
    except StopIteration as end:
        return int(end.value or 0)
    command.close()
    raise RuntimeError("a command that should answer at once waits for something")


def _waits(words: list[str]) -> bool:
    if {"--help", "-h"} & set(_options(words)):
        return False
    if words[0] == "list":
        return "--running" in _options(words)  # which asks the processes that have runs
    return words[0] in WAITING or (not words[0].startswith("-") and words[0] not in app.commands)


def _options(words: list[str]) -> list[str]:
    return words[: words.index("--")] if "--" in words else words


def _backend(words: list[str]) -> str:
    """What `--backend` says; the command complains later about a value that does not exist."""
    wanted = ""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--backend":
            wanted = following
        elif word.startswith("--backend="):
            wanted = word.partition("=")[2]
    return wanted if wanted in BACKENDS else BACKENDS[0]


def _flush() -> None:
    """Hand over what is still held; a reader that has gone is no error, not at the very end of the process either."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:  # the caller has closed it
            continue
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
