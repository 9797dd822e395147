"""Codex: `codex exec --json`. The end of a turn is `turn.completed` or `turn.failed`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from . import told
from .base import FILES, Call, Launch, Line, count, launch, less, mapping, retry_after_in, status_in, text

RECONNECTS = re.compile(r"Reconnecting\W+\d+/\d+\s*\(?(.*?)\)?$", re.DOTALL)
BUSY = "high demand"
"""What a server error is called in its messages, which name no status then."""


class Codex:
    key = "codex"
    binary = "codex"
    markers = ("CODEX_SANDBOX", "CODEX_THREAD", "CODEX_INTERNAL")

    def build(self, call: Call) -> Launch:
        argv = ["codex", "exec", "--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
        argv += ["-C", call.cwd]
        if call.model:
            argv += ["--model", call.model]
        if call.effort:
            argv += ["-c", f"model_reasoning_effort={json.dumps(call.effort)}"]
        files = {}
        if call.schema is not None:
            files["schema.json"] = json.dumps(call.schema)
            argv += ["--output-schema", f"{FILES}/schema.json"]
        argv += ["resume", call.session, "-"] if call.session else ["-"]
        return launch(call, argv, files=files, cannot=("agent", "tools"))

    def parse(self, line: Line) -> Iterable[told.Event] | None:
        match line.get("type"):
            case "thread.started":
                return (told.Began(text(line.get("thread_id"))),)
            case "turn.started":
                return (told.Quiet(),)
            case "item.started" | "item.updated":
                return (told.UsedTool(text(mapping(line.get("item")).get("type"))),)
            case "item.completed":
                return _item(mapping(line.get("item")))
            case "turn.completed":
                return (told.Spent(_usage(mapping(line.get("usage"))), total=True), told.Ended(ok=True))
            case "turn.failed":
                return (_failed(text(mapping(line.get("error")).get("message"))),)
            case "error":
                return (_error(text(line.get("message"))),)
            case _:
                return None


def _item(item: Line) -> Iterable[told.Event]:
    match item.get("type"):
        case "agent_message":
            return (told.Said(text(item.get("text"))),)
        case "error":
            return (told.Quiet(),)  # a remark, as that it does not know a model's size
        case kind:
            return (told.UsedTool(text(kind)),)


def _error(message: str) -> told.Event:
    found = RECONNECTS.match(message)
    if found is None:
        return told.Trouble(message)
    return told.Retries(_status(found[1]), retry_after_in(found[1]), found[1])


def _failed(message: str) -> told.Ended:
    return told.Ended(False, message, _status(message), retry_after=retry_after_in(message))


def _status(message: str) -> int | None:
    return 500 if BUSY in message else status_in(message)


def _usage(usage: Line) -> told.Usage:
    """Its input counts what came from the cache as well."""
    names = ("input_tokens", "cached_input_tokens", "cache_write_input_tokens", "output_tokens")
    whole, read, written, output = (count(usage.get(name)) for name in names)
    return told.Usage(less(whole, read, written), read, written, output)
