"""Pi: `pi --mode json -p`. It may end several times, with retries of its own between: only the last end counts.

Its exit code is 0 whatever happened, and a stream that was cut off looks like an answer, but for its usage of nothing.
"""

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
    Retries,
    Said,
    Spent,
    Usage,
    UsedTool,
    count,
    mapping,
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
        if call.tools:
            argv += ["--tools", ",".join(call.tools)]
        if call.session:
            argv += ["--session", call.session]
        asked = (("agent", call.agent), ("schema", call.schema))
        return Launch(
            argv=tuple(argv),
            stdin=call.prompt.encode(errors="replace"),
            env={"PI_TELEMETRY": "0"},
            left_out=tuple(name for name, value in asked if value),
        )

    def parse(self, line: Line) -> Iterable[HostEvent] | None:
        match line.get("type"):
            case "session":
                return (Began(text(line.get("id"))),)
            case "message_end":
                return _message(mapping(line.get("message")))
            case "tool_execution_start" | "tool_execution_update" | "tool_execution_end":
                return (UsedTool(text(line.get("toolName"))),)
            case "auto_retry_start":
                message = text(line.get("errorMessage"))
                delay = number(line.get("delayMs"))
                return (Retries(status_in(message), None if delay is None else delay / 1000, message),)
            case "agent_end":
                return (_end(line.get("messages")),)
            case kind if kind in QUIET:
                return (Quiet(),)
            case _:
                return None


def _message(message: Line) -> Iterable[HostEvent]:
    if message.get("role") != "assistant":
        return (Quiet(),)
    said = texts_of(message.get("content"))
    spent = Spent(_usage(mapping(message.get("usage"))), model=text(message.get("model")))
    return (Said(said), spent) if said else (spent,)


def _end(messages: object) -> Ended:
    ours = [
        one for one in map(mapping, messages if isinstance(messages, list) else ()) if one.get("role") == "assistant"
    ]
    last = ours[-1] if ours else mapping(None)
    message = text(last.get("errorMessage"))
    if last.get("stopReason") == "stop" and not message:
        return Ended(ok=True, final=False)
    message = message or text(last.get("stopReason")) or "the turn failed"
    return Ended(False, message, status_in(message), retry_after=retry_after_in(message), final=False)


def _usage(usage: Line) -> Usage:
    return Usage(*(count(usage.get(name)) for name in ("input", "cacheRead", "cacheWrite", "output")))
