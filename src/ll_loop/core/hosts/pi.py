"""Pi: `pi --mode json -p`. It may end several times, with retries of its own between: only the last end counts.

Its exit code is 0 whatever happened, and a stream that was cut off looks like an answer, but for its usage of nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from . import told
from .base import (
    Call,
    Launch,
    Line,
    count,
    launch,
    mapping,
    mappings,
    number,
    retry_after_in,
    status_in,
    text,
    texts_of,
)

QUIET = frozenset({"agent_start", "turn_start", "turn_end", "message_start", "message_update", "auto_retry_end"})


class Pi:
    key = "pi"
    binary = "pi"
    markers = ("PI_CODING_AGENT_SESSION",)

    def build(self, call: Call) -> Launch:
        argv = ["pi", "--mode", "json", "-p"]
        if call.model:
            argv += ["--model", call.model]
        if call.effort:
            argv += ["--thinking", "xhigh" if call.effort == "max" else call.effort]
        if call.tools:
            argv += ["--tools", ",".join(call.tools)]
        if call.session:
            argv += ["--session", call.session]
        return launch(call, argv, env={"PI_TELEMETRY": "0"}, cannot=("agent", "schema"))

    def parse(self, line: Line) -> Iterable[told.Event] | None:
        match line.get("type"):
            case "session":
                return (told.Began(text(line.get("id"))),)
            case "message_end":
                return _message(mapping(line.get("message")))
            case "tool_execution_start" | "tool_execution_update" | "tool_execution_end":
                return (told.UsedTool(text(line.get("toolName"))),)
            case "auto_retry_start":
                message = text(line.get("errorMessage"))
                delay = number(line.get("delayMs"))
                return (told.Retries(status_in(message), None if delay is None else delay / 1000, message),)
            case "agent_end":
                return (_end(line.get("messages")),)
            case kind if kind in QUIET:
                return (told.Quiet(),)
            case _:
                return None


def _message(message: Line) -> Iterable[told.Event]:
    if message.get("role") != "assistant":
        return (told.Quiet(),)
    said = texts_of(message.get("content"))
    spent = told.Spent(_usage(mapping(message.get("usage"))), model=text(message.get("model")))
    return (told.Said(said), spent) if said else (spent,)


def _end(messages: object) -> told.Ended:
    ours = [one for one in mappings(messages) if one.get("role") == "assistant"]
    last = ours[-1] if ours else mapping(None)
    message = text(last.get("errorMessage"))
    if last.get("stopReason") == "stop" and not message:
        return told.Ended(ok=True, final=False)
    message = message or text(last.get("stopReason"))
    return told.Ended(False, message, status_in(message), retry_after=retry_after_in(message), final=False)


def _usage(usage: Line) -> told.Usage:
    return told.Usage(*(count(usage.get(name)) for name in ("input", "cacheRead", "cacheWrite", "output")))
