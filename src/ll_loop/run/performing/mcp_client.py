"""Speaks with an MCP server through the official client session, over the pipes of a child of ours.

To be imported late (`mcp_tool.call`): the package `mcp` is optional, and slow to import.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.lowlevel
import mcp_types as types
from mcp.client.session import ClientSession
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage

from ... import __version__
from ..children.feed import Feed
from ..children.pipes import Stream

logging.getLogger("mcp").addHandler(logging.NullHandler())  # else what it logs is written over the display

Result = Mapping[str, Any]


class Wire:
    """Both ways to a server: a sink of its output, and streams of messages for the session.

    Lines that are no messages (banners, logs) are passed over. `heard` gets what the server writes to stderr.
    """

    def __init__(self, feed: Feed, heard: Callable[[bytes], None]) -> None:
        self.outbox = _Outbox(feed)
        self._heard = heard
        self._send, self.inbox = anyio.create_memory_object_stream[SessionMessage | Exception](math.inf)

    def lines(self, batch: list[str]) -> None:
        for line in batch:
            with suppress(ValueError):
                message = types.jsonrpc_message_adapter.validate_json(line, by_name=False)
                with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # the session is over
                    self._send.send_nowait(SessionMessage(message))

    def raw(self, stream: Stream, data: bytes) -> None:
        if stream == "stderr":
            self._heard(data)

    def end(self) -> None:
        """The server says no more."""
        self._send.close()

    def close(self) -> None:
        self._send.close()
        self.inbox.close()


class _Outbox:
    """The session's messages on their way to the server's stdin."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    async def send(self, item: SessionMessage, /) -> None:
        self._feed.put(item.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
        await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Nothing to do: whoever started the server ends its input."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


async def talk(wire: Wire, tool: str, arguments: Mapping[str, Any]) -> Result | str | None:
    """Call a tool: its result, or why there is none. None: the server went away before it answered."""
    me = types.Implementation(name="ll-loop", version=__version__)
    async with ClientSession(wire.inbox, wire.outbox, client_info=me) as session:
        try:
            await session.initialize()
            parameters = types.CallToolRequestParams(name=tool, arguments=dict(arguments))
            result = await session.send_request(types.CallToolRequest(params=parameters), types.CallToolResult)
        except MCPError as error:
            return None if error.code == types.CONNECTION_CLOSED else f"the server answered: {error.message}"
        except (RuntimeError, ValueError) as error:  # another protocol version; a result that is none
            return f"the server cannot be understood: {error}"
    return result.model_dump(mode="json", by_alias=True, exclude_unset=True)
