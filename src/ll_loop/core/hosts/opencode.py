"""OpenCode: `opencode run --format json`. Nothing marks the end of a turn but a step that finished with `stop`."""

from __future__ import annotations

from collections.abc import Iterable

from .base import (
    Began,
    Call,
    Ended,
    HostEvent,
    Launch,
    Line,
    Quiet,
    Said,
    Spent,
    Usage,
    UsedTool,
    count,
    mapping,
    number,
    text,
)

TITLE = "ll-loop"
"""Given, so that no request is spent on finding one."""


class OpenCode:
    key = "opencode"
    binary = "opencode"
    markers = ("OPENCODE=", "OPENCODE_PID", "OPENCODE_RUN_ID", "OPENCODE_CLIENT")

    def build(self, call: Call) -> Launch:
        argv = ["opencode", "run", "--format", "json", "--auto", "--title", TITLE]
        if call.model:
            argv += ["--model", call.model]
        if call.agent:
            argv += ["--agent", call.agent]
        if call.session:
            argv += ["--session", call.session]
        asked = (("tools", call.tools), ("schema", call.schema))
        return Launch(
            argv=tuple(argv),
            stdin=call.prompt.encode(errors="replace"),
            env={"OPENCODE_DISABLE_AUTOUPDATE": "1"},
            left_out=tuple(name for name, value in asked if value),
        )

    def parse(self, line: Line) -> Iterable[HostEvent] | None:
        began = Began(text(line.get("sessionID")))
        part = mapping(line.get("part"))
        match line.get("type"):
            case "step_start":
                return (began,)
            case "text":
                return (began, Said(text(part.get("text"))))
            case "reasoning":
                return (Quiet(),)
            case "tool_use":
                return (began, UsedTool(text(part.get("tool"))))
            case "step_finish":
                spent = Spent(_usage(mapping(part.get("tokens"))), usd=number(part.get("cost")) or None)
                return (began, spent, Ended(ok=True)) if part.get("reason") == "stop" else (began, spent)
            case "error":
                return (began, _failed(mapping(line.get("error"))))
            case _:
                return None


def _failed(error: Line) -> Ended:
    data = mapping(error.get("data"))
    message = text(data.get("message")) or text(error.get("name")) or "the turn failed"
    headers = mapping(data.get("responseHeaders"))
    after = text(headers.get("retry-after"))
    return Ended(False, message, count(data.get("statusCode")), retry_after=float(after) if after.isdecimal() else None)


def _usage(tokens: Line) -> Usage:
    cache = mapping(tokens.get("cache"))
    parts = (tokens.get("input"), cache.get("read"), cache.get("write"), tokens.get("output"))
    return Usage(*map(count, parts))
