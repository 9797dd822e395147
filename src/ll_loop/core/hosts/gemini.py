"""Gemini CLI: `gemini -o stream-json`. The end of a turn is `result`; its exit code is an HTTP status modulo 256."""

from __future__ import annotations

from collections.abc import Iterable

from . import told
from .base import Call, Launch, Line, count, launch, less, mapping, retry_after_in, status_in, text


class Gemini:
    key = "gemini"
    binary = "gemini"
    markers = ("GEMINI_CLI",)

    def build(self, call: Call) -> Launch:
        argv = ["gemini", "--skip-trust", "--approval-mode", "yolo", "-o", "stream-json"]
        if call.model:
            argv += ["-m", call.model]
        if call.session:
            argv += ["--resume", call.session]
        env = {"GEMINI_CLI_NO_RELAUNCH": "true"}  # else the process that we know is not the agent, and ignores SIGTERM
        return launch(call, argv, env=env, cannot=("agent", "tools", "schema", "effort"))

    def parse(self, line: Line) -> Iterable[told.Event] | None:
        match line.get("type"):
            case "init":
                return (told.Began(text(line.get("session_id")), text(line.get("model"))),)
            case "message":
                is_ours = line.get("role") == "assistant"
                return (told.Said(text(line.get("content")), line.get("delta") is True) if is_ours else told.Quiet(),)
            case "tool_use" | "tool_result":
                return (told.UsedTool(text(line.get("tool_name"))),)
            case "error":
                return (told.Trouble(text(line.get("message"))),)
            case "result":
                return _result(line)
            case _:
                return None


def _result(line: Line) -> Iterable[told.Event]:
    stats = mapping(line.get("stats"))
    models = list(mapping(stats.get("models")))
    yield told.Spent(_usage(stats), total=True, model=text(models[-1]) if models else "")
    error = mapping(line.get("error"))
    message = text(error.get("message"))
    ok = line.get("status") == "success"
    status = None if ok else status_in(message) or (429 if "rate limit" in message.lower() else None)
    yield told.Ended(ok, "" if ok else message, status, retry_after=retry_after_in(message))


def _usage(stats: Line) -> told.Usage:
    read, whole = count(stats.get("cached")), count(stats.get("input_tokens"))
    uncached = count(stats.get("input"))
    if uncached is None:
        uncached = less(whole, read)
    return told.Usage(uncached, read, 0, count(stats.get("output_tokens")))
