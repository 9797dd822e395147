"""Calls of tools of MCP servers: which server, what it is told, and what its answer means as an action's result.

A call is an action like any other: the server is a child of ours, started for it and ended with it. The exit code is 0
for a result, 1 for an error, 2 for a definition that cannot be used, 127 for a server that is not there, 124 when time
is up; the output is the result as one line of JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anyio
from msgspec import Struct

from ...core.effects import ActionDone, RunAction
from ...core.model import EMPTY
from ...errors import LoopError
from .. import files
from ..children.feed import Feed
from ..children.process import NOT_FOUND, TIMED_OUT, Command, Finished, Spawner
from ..children.procs import Identity
from ..children.tree import Grace

if TYPE_CHECKING:
    from types import ModuleType

NAME = ".mcp.json"
LONGEST = 1 << 20
ERROR, UNUSABLE = 1, 2
SETTLE = 2.0
"""Seconds in which a server may end by itself once its input has ended; then it is told to."""
_LAST_WORDS = 4096
_NEEDED = "MCP tools need the package `mcp`: pip install 'll-loop[mcp]'"


class Server(Struct, frozen=True):
    """How a server is started, as `.mcp.json` says."""

    name: str
    command: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = EMPTY


class CallFailed(Exception):  # noqa: N818 - how a call ends, never seen outside
    """A call that gave no result of the tool: the exit code that says so, and why."""

    def __init__(
        self, exit_code: int, text: str, timeout_kind: Literal["wall", "idle"] | None = None, workdir: str | None = None
    ) -> None:
        super().__init__(text)
        self.exit_code = exit_code
        self.timeout_kind = timeout_kind
        self.workdir = workdir


class Caller(Struct, frozen=True):
    """What the calls of one run have in common."""

    spawner: Spawner
    cwd: Path
    env: Mapping[str, str]
    marker: str
    grace: Grace | None = None

    async def call(
        self, action: RunAction, heard: Callable[[bytes], None], started: Callable[[Identity], None]
    ) -> ActionDone:
        """Call the tool that `action` names. Cancelled, it leaves nothing of the server behind.

        `heard` gets what the server writes to stderr, `started` its process; what they raise is raised.
        """
        begun = anyio.current_time()
        words = _LastWords(heard)
        try:
            server, tool = await _find(self.cwd, action.text)
            client = await _client()
            result = await self._speak(client, server, tool, action, words, started)
        except CallFailed as failed:
            return _failure(failed, words.text, anyio.current_time() - begun)
        code = ERROR if result.get("isError") is True else 0
        return ActionDone(code, _line(result), duration_ms=round((anyio.current_time() - begun) * 1000))

    async def _speak(
        self,
        client: ModuleType,
        server: Server,
        tool: str,
        action: RunAction,
        words: _LastWords,
        started: Callable[[Identity], None],
    ) -> Mapping[str, Any]:
        feed, over = Feed(), anyio.Event()
        wire = client.Wire(feed, words.hear)
        ended: list[Finished | LoopError] = []

        async def serve() -> None:
            try:
                command = self._command(server, feed, action)
                ended.append(await self.spawner.run(command, wire, started=started, grace=self.grace))
            except LoopError as error:  # raised again below, without a group around it
                ended.append(error)
            finally:
                wire.end()
                over.set()

        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(serve)
                with anyio.move_on_after(action.timeout or math.inf) as limit:
                    answer = await client.talk(wire, tool, action.arguments or {})
                    if answer is None:
                        await over.wait()
                feed.end()
                with anyio.move_on_after(SETTLE):
                    await over.wait()
                tasks.cancel_scope.cancel()
        finally:
            wire.close()
        if ended and isinstance(ended[0], LoopError):
            raise ended[0]
        if limit.cancelled_caught:
            raise CallFailed(TIMED_OUT, f"server `{server.name}` gave no answer within {action.timeout:g} s", "wall")
        if isinstance(answer, Mapping):
            return answer
        raise self._no_answer(server, answer, ended[0] if ended else None)

    def _no_answer(self, server: Server, said: str | None, ended: object) -> CallFailed:
        name = f"server `{server.name}`"
        if said is not None or not isinstance(ended, Finished):
            return CallFailed(ERROR, f"{name}: {said or 'it does not answer any more'}")
        if ended.spawn_error is not None:
            gone = str(self.cwd) if ended.workdir_gone else None
            return CallFailed(ended.exit_code, f"{name}: {ended.spawn_error}", workdir=gone)
        if ended.timeout_kind is not None:
            return CallFailed(TIMED_OUT, f"{name} was silent for too long", ended.timeout_kind)
        return CallFailed(ERROR, f"{name} ended with exit code {ended.exit_code} before it answered")

    def _command(self, server: Server, feed: Feed, action: RunAction) -> Command:
        return Command(
            argv=(server.command, *server.args),
            cwd=str(self.cwd),
            env={**self.env, "PWD": str(self.cwd), **server.env},
            idle_timeout=action.idle_timeout or None,
            stdin=feed,
            keep=_LAST_WORDS,
            marker=self.marker,
        )


class _LastWords:
    """Passes on what a server writes to stderr, and keeps the end of it: it tells why there is no answer."""

    def __init__(self, heard: Callable[[bytes], None]) -> None:
        self._heard = heard
        self._kept = bytearray()

    @property
    def text(self) -> str:
        return self._kept.decode(errors="replace")

    def hear(self, data: bytes) -> None:
        self._heard(data)
        self._kept += data
        del self._kept[:-_LAST_WORDS]


def _failure(failed: CallFailed, stderr: str, duration: float) -> ActionDone:
    """What was wrong, in the form of a tool's own error."""
    result = {"isError": True, "content": [{"type": "text", "text": str(failed)}]}
    return ActionDone(
        failed.exit_code,
        _line(result),
        stderr or str(failed),
        round(duration * 1000),
        failed.timeout_kind,
        workdir=failed.workdir,
    )


def _line(result: Mapping[str, Any]) -> str:
    return json.dumps(result, ensure_ascii=False) + "\n"


# --- definitions -------------------------------------------------------------------------------------------


async def _find(cwd: Path, action: str) -> tuple[Server, str]:
    """The server and the tool that an action names. Raises CallFailed."""
    name, _, tool = action.strip().partition("/")
    if not name or not tool:
        raise CallFailed(UNUSABLE, f"an MCP tool is named SERVER/TOOL, not {action!r}")
    try:
        text = await files.read_text(cwd / NAME, limit=LONGEST)
    except OSError as error:
        raise CallFailed(UNUSABLE, f"cannot read {NAME}: {error.strerror}") from error
    if text is None:
        raise CallFailed(NOT_FOUND, f"no {NAME} in {cwd}")
    servers = _servers(text)
    if name not in servers:
        raise CallFailed(NOT_FOUND, f"no server `{name}` in {NAME}; it has {', '.join(servers) or 'none'}")
    return _server(name, servers[name]), tool


def _servers(text: str) -> Mapping[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CallFailed(UNUSABLE, f"{NAME} is not JSON: {error}") from error
    servers = document.get("mcpServers") if isinstance(document, dict) else None
    if not isinstance(servers, dict):
        raise CallFailed(UNUSABLE, f"{NAME} has no mapping `mcpServers`")
    return servers


def _server(name: str, given: object) -> Server:
    definition = given if isinstance(given, dict) else {}
    command, args, env = definition.get("command"), definition.get("args", []), definition.get("env", {})
    if not isinstance(command, str) or not command:
        raise CallFailed(UNUSABLE, f"server `{name}` has no `command` in {NAME}: only servers over stdio can be used")
    if not isinstance(args, list) or not isinstance(env, dict):
        raise CallFailed(UNUSABLE, f"server `{name}` in {NAME}: `args` must be a list and `env` a mapping")
    return Server(name, command, tuple(map(str, args)), {str(key): str(value) for key, value in env.items()})


async def _client() -> ModuleType:
    """The module that speaks with servers. CallFailed without the package `mcp`.

    Importing that takes a second, which only runs that call tools pay; in a thread, so that others go on meanwhile.
    """
    try:
        return await anyio.to_thread.run_sync(_import_client)
    except ModuleNotFoundError as error:
        raise CallFailed(ERROR, _NEEDED) from error


def _import_client() -> ModuleType:
    from . import mcp_client  # late: it is slow to import, and its package is optional

    return mcp_client
