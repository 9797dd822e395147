"""How another process reaches the runs of this one: a private Unix socket, one JSON line each way.

    {"stop": "<run id>", "grace": 2}    ends that run alone; answers with its result once it has ended
    {"status": true}                    answers with where every run is
    {"why": "<run id>"}                 answers with what that run waits for (`ll_loop.run.ipc.why`)
    {"watch": "<run id>"}               answers with a line whenever its journal has grown, until the run has ended
    {"spent": "<run id>", "by": "<caller>", "tally": {…}}
                                        what a call within that run's action has spent: answers with what is left
    {"approve": "<run id>", "answer": "yes"}
                                        answers that run's question to a person, with `text` for a reason or an edit

The socket's path stands in each run's journal (`run_created`, `run_claimed`). What a dead process left is read from
the journals alone. Nobody is signalled from here: a process ends its own children, and only those.
"""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import anyio
import anyio.abc

from ...core.tally import tally_from_json
from ...errors import LoopError, NotFoundError
from ..handle import RunHandle
from ..purse import Purse
from . import why
from .sockets import BROKEN, bind, encoded, read_line, unlink

LONGEST_REQUEST = 64 * 1024
PATIENCE = 5.0
"""Seconds that a peer has for saying what it wants, and that we wait for a snapshot."""
LAST_WORDS = 1.0
"""Seconds for answers under way when the session ends."""


class Control:
    """The listening end. `path` is empty until `listen`, and stays so where no socket can be made."""

    def __init__(self, runs: Sequence[RunHandle], purse: Purse) -> None:
        self.path = ""
        self._runs = runs
        self._purse = purse
        self._socket: socket.socket | None = None
        self._asked = False
        self._closed = False
        self._hearing: set[anyio.CancelScope] = set()

    def listen(self, services: anyio.abc.TaskGroup) -> None:
        """Make the socket and serve it in `services` until `close`. Only the first call does anything.

        Runs do not depend on it: if the system refuses, there is none.
        """
        if self._asked:
            return
        self._asked = True
        try:
            self._socket, self.path = bind()
        except OSError:
            return
        services.start_soon(self._serve, self._socket)

    def close(self) -> None:
        """Hear no more requests; answers under way are given yet."""
        self._closed = True
        for scope in self._hearing:
            scope.cancel()

    async def _serve(self, listening: socket.socket) -> None:
        try:
            with anyio.CancelScope(shield=True):  # runs that are being cancelled still answer; `close` ends it
                async with anyio.create_task_group() as talks:
                    with self._hears():
                        while True:
                            await anyio.wait_readable(listening)
                            with suppress(OSError):
                                talks.start_soon(self._talk, listening.accept()[0])
                    talks.cancel_scope.deadline = anyio.current_time() + LAST_WORDS
        finally:
            listening.close()
            unlink(self.path)

    @contextmanager
    def _hears(self, seconds: float = math.inf) -> Iterator[None]:
        """A scope that `close` ends, and time."""
        with anyio.move_on_after(seconds) as scope:
            self._hearing.add(scope)
            if self._closed:
                scope.cancel()
            try:
                yield
            finally:
                self._hearing.discard(scope)

    async def _talk(self, connection: socket.socket) -> None:
        with suppress(*BROKEN):
            async with await anyio.abc.UNIXSocketStream.from_socket(connection) as stream:
                line = b""
                with self._hears(PATIENCE):
                    line = await read_line(stream, LONGEST_REQUEST)
                if line:
                    await self._reply(stream, line)

    async def _reply(self, stream: anyio.abc.ByteSendStream, line: bytes) -> None:
        try:
            request = json.loads(line)
        except ValueError:
            request = None
        match request:
            case {"watch": str(run_id)}:
                await self._watch(stream, run_id)
            case _:
                await stream.send(encoded(await self._answer_or_error(request)))

    async def _watch(self, stream: anyio.abc.ByteSendStream, run_id: str) -> None:
        """Say that there is more to read, once for all that came since it was said before."""
        try:
            changes = (handle := self._handle(run_id)).changes()
        except NotFoundError:
            return
        try:
            await stream.send(encoded({"watching": run_id}))
            async for _ in changes:
                await stream.send(encoded({"grown": run_id}))
        finally:
            handle.forget(changes)

    async def _answer_or_error(self, request: object) -> Mapping[str, Any]:
        try:
            return await self._answer(request)
        except LoopError as error:
            return {"error": str(error)}

    async def _answer(self, request: object) -> Mapping[str, Any]:
        more = request if isinstance(request, dict) else {}
        match request:
            case {"stop": str(run_id)}:
                return await self._stop(run_id, more.get("grace"))
            case {"approve": str(run_id), "answer": str(word)}:
                return await self._approve(run_id, word, more.get("text", ""))
            case {"spent": str(run_id), "by": str(caller), "tally": dict(tally)}:
                return self._spent(run_id, caller, tally)
            case {"status": True}:
                return {"runs": [why.entry_of(handle) for handle in self._runs]}
            case {"why": str(run_id)}:
                return self._why(run_id)
            case None:
                return {"error": "not JSON"}
            case _:
                return {"error": "not a request"}

    def _handle(self, run_id: str) -> RunHandle:
        for one in reversed(self._runs):
            if one.run_id == run_id:
                return one
        raise NotFoundError(f"no such run here: {run_id}")

    def _why(self, run_id: str) -> Mapping[str, Any]:
        return {"why": why.facts(self._handle(run_id), self._runs)}

    def _spent(self, run_id: str, caller: str, tally: Mapping[str, Any]) -> Mapping[str, Any]:
        handle = self._handle(run_id)
        try:
            self._purse.note(run_id, caller, tally_from_json(tally))
        except (KeyError, TypeError):
            return {"error": "not a tally"}
        return {"left": self._purse.left(handle)}

    async def _approve(self, run_id: str, word: str, text: object) -> Mapping[str, Any]:
        handle = self._handle(run_id)
        question = handle.question
        await handle.approve(word, str(text))
        return {"answered": question}

    async def _stop(self, run_id: str, grace: object) -> Mapping[str, Any]:
        handle = self._handle(run_id)
        if grace is not None and (not isinstance(grace, int | float) or not grace >= 0):
            return {"error": f"a grace is a number of seconds, not {grace!r}"}
        handle.cancel("user_stopped", grace=None if grace is None else float(grace))
        return {"result": (await handle.wait()).to_json()}
