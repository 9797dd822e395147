"""Calls of ll-loop within a shell action: what the call of an attempt that was cut off has done is not done again.

An action knows which attempt at which entry of its state it is; a run that it starts writes that down. In a later
attempt, a start that asks for the same gets those runs in the order in which they were made, each once an attempt.
Agents are no shell actions: what they do in another attempt is another thing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.effects import RunAction
from ...core.secrets import Secrets
from ...errors import StorageError
from . import recovery
from .journal import as_read_back
from .recovery import StoredRun
from .request import Request

ACTION = "LL_LOOP_ACTION"
"""The variable that tells a call of which attempt it is, and at what."""


def told_to(action: RunAction) -> dict[bytes, bytes]:
    """What tells the calls within an action what they are a part of."""
    return {ACTION.encode(): f"{action.attempt} {action.visit}".encode()}


class Calls:
    """The runs that a process starts as a part of an action of the run `above` it, if `env` says that it is one."""

    def __init__(self, env: Mapping[str, str], above: Sequence[str], runs: Path) -> None:
        attempt, _, self._visit = env.get(ACTION, "").partition(" ")
        self._attempt = int(attempt) if above and attempt.isdecimal() else 0
        self._parent = above[-1] if above else ""
        self._runs = runs

    def told(self) -> dict[str, Any]:
        """What a run's first record says of the call that it is."""
        return {"call": {"visit": self._visit, "attempt": self._attempt}} if self._attempt else {}

    def earlier(self, path: str, request: Request, secrets: Secrets) -> Iterator[StoredRun]:
        """The runs that earlier attempts had started for this request, oldest first, each given once an attempt.

        StorageError if the disk refuses to note that one was given.
        """
        if self._attempt < 2:
            return
        wanted = secrets.document(as_read_back(request.to_json()))
        for stored in recovery.stored_runs(self._runs, recovery.run_ids(self._runs)):
            created = stored.created
            same = created["path"] == path and created["request"] == wanted
            if same and self._is_of_earlier(stored) and self._take(stored):
                yield stored

    def _is_of_earlier(self, stored: StoredRun) -> bool:
        call = stored.created.get("call")
        if stored.parent != self._parent or call is None or "forked_from" in stored.created:
            return False
        return bool(call["visit"] == self._visit and call["attempt"] < self._attempt)

    def _take(self, stored: StoredRun) -> bool:
        """Note in its folder that the run was given to this attempt; False if another call of it got it already."""
        path = stored.folder / f"given.{self._attempt}"
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            return False
        except OSError as error:
            raise StorageError(f"cannot create {path}: {error.strerror}") from error
        return True
