"""OpenCode: `opencode run --format json`. Nothing marks the end of a turn but a step that finished with `stop`."""

from __future__ import annotations

from collections.abc import Iterable

from . import told
from .base import Call, Launch, Line, count, launch, mapping, number, text

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
        return launch(call, argv, env={"OPENCODE_DISABLE_AUTOUPDATE": "1"}, cannot=("tools", "schema", "effort"))

    def parse(self, line: Line) -> Iterable[told.Event] | None:
        began = told.Began(text(line.get("sessionID")))
        part = mapping(line.get("part"))
        match line.get("type"):
            case "step_start":
                return (began,)
            case "text":
                return (began, told.Said(text(part.get("text"))))
            case "reasoning":
                return (told.Quiet(),)
            case "tool_use":
                return (began, told.UsedTool(text(part.get("tool"))))
            case "step_finish":
                spent = told.Spent(_usage(mapping(part.get("tokens"))), usd=number(part.get("cost")) or None)
                return (began, spent, told.Ended(ok=True)) if part.get("reason") == "stop" else (began, spent)
            case "error":
                return (began, _failed(mapping(line.get("error"))))
            case _:
                return None


def _failed(error: Line) -> told.Ended:
    data = mapping(error.get("data"))
    message = text(data.get("message")) or text(error.get("name"))
    headers = mapping(data.get("responseHeaders"))
    after = text(headers.get("retry-after"))
    wait = float(after) if after.isdecimal() else None
    return told.Ended(False, message, count(data.get("statusCode")), retry_after=wait)


def _usage(tokens: Line) -> told.Usage:
    cache = mapping(tokens.get("cache"))
    parts = (tokens.get("input"), cache.get("read"), cache.get("write"), tokens.get("output"))
    return told.Usage(*map(count, parts))
