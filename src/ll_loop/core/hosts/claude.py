"""Claude Code: `claude -p --output-format stream-json`. The end of a turn is the `result` line."""

from __future__ import annotations

import json
from collections.abc import Iterable

from . import told
from .base import Call, Launch, Line, count, launch, mapping, mappings, number, text, texts_of

SYNTHETIC = "<synthetic>"
"""The model of a message that the command line made up itself, to tell of an error."""


class Claude:
    key = "claude-code"
    binary = "claude"
    markers = (
        "CLAUDECODE",
        "CLAUDE_CODE_ENTRYPOINT",
        "CLAUDE_CODE_SSE_PORT",
        "CLAUDE_CODE_SESSION",
        "CLAUDE_CODE_CHILD",
    )

    def build(self, call: Call) -> Launch:
        argv = ["claude", "-p", "--verbose", "--output-format", "stream-json", "--dangerously-skip-permissions"]
        if call.agent:
            argv += ["--agent", call.agent]
        if call.tools:
            argv += ["--tools", ",".join(call.tools)]
        if call.model:
            argv += ["--model", call.model]
        if call.effort:
            argv += ["--effort", call.effort]
        if call.session:
            argv += ["--resume", call.session]
        if call.schema is not None:
            argv += ["--json-schema", json.dumps(call.schema), "--no-session-persistence"]
        env = {
            "CLAUDE_CODE_MAX_RETRIES": "0",
            "CLAUDE_BASH_MAINTAIN_PROJECT_WORKING_DIR": "1",
            "DISABLE_AUTOUPDATER": "1",
        }
        return launch(call, argv, env=env)

    def parse(self, line: Line) -> Iterable[told.Event] | None:
        match line.get("type"):
            case "system":
                return _system(line)
            case "assistant":
                return _assistant(line)
            case "user" | "stream_event":
                return (told.UsedTool(),)
            case "rate_limit_event":
                info = mapping(line.get("rate_limit_info"))
                rejected = info.get("status") == "rejected"
                return (told.Limited(rejected, number(info.get("resetsAt")), text(info.get("rateLimitType"))),)
            case "result":
                return _result(line)
            case _:
                return None


def _system(line: Line) -> Iterable[told.Event]:
    match line.get("subtype"):
        case "init":
            return (told.Began(text(line.get("session_id")), text(line.get("model"))),)
        case "api_retry":
            delay = number(line.get("retry_delay_ms"))
            status = count(line.get("error_status"))
            return (told.Retries(status, None if delay is None else delay / 1000, text(line.get("error"))),)
        case _:
            return (told.Quiet(),)


def _assistant(line: Line) -> Iterable[told.Event]:
    message = mapping(line.get("message"))
    if line.get("is_api_error_message") is True or message.get("model") == SYNTHETIC:
        return (told.Quiet(),)  # an error, told again by the result
    content = message.get("content")
    said = texts_of(content)
    tools = [text(block.get("name")) for block in mappings(content) if block.get("type") == "tool_use"]
    return (*([told.Said(said)] if said else []), *map(told.UsedTool, tools)) or (told.Quiet(),)


def _result(line: Line) -> Iterable[told.Event]:
    usage = line.get("usage")
    if isinstance(usage, dict):
        model, usd = text(line.get("model")), number(line.get("total_cost_usd"))
        yield told.Spent(_usage(usage), total=True, model=model, usd=usd)
    failed = line.get("is_error") is True
    message = text(line.get("error")) or text(line.get("result")) or text(line.get("terminal_reason"))
    if line.get("subtype") == "error_max_structured_output_retries":
        failed, message = True, "no answer fitted the schema"
    status = count(line.get("api_error_status"))
    answer, structured = text(line.get("result")), line.get("structured_output")
    yield told.Ended(not failed, message if failed else "", status, answer, structured)


def _usage(usage: Line) -> told.Usage:
    names = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
    return told.Usage(*(count(usage.get(name)) for name in names))
