"""The process behind `--background` (`python -m ll_loop.cli.detached`): it reads an errand, and nobody waits for it.

Until it has reported what became of the start, its words go to the command that started it; then to a log file.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio

from .. import api
from ..api import Errand, RunHandle, Session
from ..core.endings import combined_exit_code
from ..errors import CannotCreateError
from . import runs
from .complaints import complain
from .running import Outlook
from .terminal import STDERR, STDOUT

STDIN = 0
FOLDER = "background"


def main() -> int:
    """Leave the process that was started behind, and do the errand."""
    errand = Errand.from_json(json.load(sys.stdin))
    if os.fork():
        os._exit(0)  # whoever waits for this process has waited enough; its child is no leader of a session
    _redirect(os.open(os.devnull, os.O_RDWR), STDIN)
    reporter = Reporter()
    try:
        return anyio.run(_work, errand, reporter, backend=errand.backend)
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as error:  # noqa: BLE001 - the outermost frame
        code = complain(error, ["run"], (), runs=True)
        reporter.tell({"runs": [], "exit_code": code})
        return code


class Reporter:
    """Our end of the pipe to the command that waits for the report; it is told once."""

    def __init__(self) -> None:
        self._told = False

    def tell(self, report: dict[str, Any]) -> bool:
        """Say what became of the start; False if the command has gone. Later reports are nobody's business."""
        if self._told:
            return True
        self._told = True
        try:
            os.write(STDOUT, json.dumps(report).encode())
        except OSError:
            return False
        finally:
            _redirect(os.open(os.devnull, os.O_RDWR), STDOUT)
        return True


async def _work(errand: Errand, reporter: Reporter) -> int:
    session = runs.session_of(errand)
    async with api.signals(session), session:
        outlook = Outlook(session, errand, runs.Telling())
        handles = runs.starter_of(errand)(session)
        for handle in handles:
            await handle.settled()
        log = _take_to_log(session, handles)
        if not reporter.tell(_report(handles, log)):
            session.shut_down()  # the command was interrupted: it said of no run that it goes on
        results = await outlook.watch(handles)
    return outlook.tell(results)


def _take_to_log(session: Session, handles: Sequence[RunHandle]) -> str:
    """Send what is said from here on to a file, unless there is nothing more to say."""
    if all(handle.result is not None for handle in handles):
        _redirect(os.open(os.devnull, os.O_RDWR), STDERR)
        return ""
    path = Path(session.loops_dir) / FOLDER / f"{session.batch}.log"
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotCreateError(f"cannot create {path}: {error.strerror}") from error
    _redirect(fd, STDERR)
    return str(path)


def _report(handles: Sequence[RunHandle], log: str) -> dict[str, Any]:
    ended = [handle.result.exit_code for handle in handles if handle.result is not None]
    return {
        "runs": [_standing(handle) for handle in handles],
        "pid": os.getpid(),
        "log": log,
        "exit_code": combined_exit_code(ended),
    }


def _standing(handle: RunHandle) -> dict[str, Any]:
    result = handle.result
    return {
        "run_id": handle.run_id,
        "loop": handle.loop.name,
        "status": handle.status if handle.status != "queued" or handle.place or handle.waits_for_slot else "running",
        "place": handle.place,
        "waits_for": handle.waits_for,
        "exit_code": None if result is None else result.exit_code,
        "error": None if result is None else result.error,
        "hint": "" if result is None else result.hint,
    }


def _redirect(source: int, target: int) -> None:
    os.dup2(source, target)
    if source > STDERR:
        os.close(source)


if __name__ == "__main__":
    sys.exit(main())
