"""A real MCP server over stdio for tests, made with the official package."""

from __future__ import annotations

from mcp.server.mcpserver import MCPServer

server = MCPServer("demo")


@server.tool()
def add(a: int, b: int) -> int:
    return a + b


@server.tool()
def boom() -> str:
    raise ValueError("kaput")


if __name__ == "__main__":
    server.run("stdio")
