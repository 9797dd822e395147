"""Runs an engine's command line many times in one process, each time in a fork of it.

    python worker.py MODULE:FUNCTION [MODULE...]      (the modules are imported once, in advance)

Reads one JSON document a line, {"cwd", "words", "limit"}, answers with one, {"code"}: the exit code, null when it took
more than `limit` seconds. What the engine prints goes to `out.txt` and `err.txt` beside its project. Standard library
only: each engine runs it with the interpreter of its own environment.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

Entry = Callable[[], Any]


def run(entry: Entry, cwd: str, words: list[str], limit: float) -> int | None:
    pid = os.fork()
    if pid == 0:
        os._exit(_child(entry, cwd, words))
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(pid, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, limit)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    signal.setitimer(signal.ITIMER_REAL, 0)
    return None if code == -signal.SIGKILL else code


def _child(entry: Entry, cwd: str, words: list[str]) -> int:
    os.setsid()
    os.chdir(cwd)
    for fd, name in ((1, "../out.txt"), (2, "../err.txt")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), fd)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["ll-loop", *words]
    try:
        code = entry()
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - the outermost frame of a fork
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


def main() -> None:
    module, _, function = sys.argv[1].partition(":")
    entry: Entry = getattr(importlib.import_module(module), function)
    for name in sys.argv[2:]:
        importlib.import_module(name)
    for line in sys.stdin:
        code = run(entry, **json.loads(line))
        sys.stdout.write(json.dumps({"code": code}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
