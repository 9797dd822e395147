"""The Agent Client Protocol: JSON-RPC over the pipes of any agent that speaks it. The end is the answer to the prompt.

A conversation of four requests, each sent when the one before is answered: `initialize`, `session/new`,
`session/set_mode` where the agent would refuse by itself, `session/prompt`. The id of a request is its method (and
the session), so what a line means follows from the line alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from . import told
from .base import Call, Launch, Line, count, launch, mapping, mappings, number, status_in, text

INITIALIZE, NEW, MODE, PROMPT = "initialize", "session/new", "session/set_mode", "session/prompt"
ITS_OWN_JUDGE = "auto"
"""The mode in which an agent refuses by itself what it thinks unsafe. In every other one it asks, and is allowed to."""
UNATTENDED = ("bypassPermissions", "full-access", "yolo")
"""What agents call the mode in which they neither ask nor refuse."""
NEEDS_LOGIN, NO_METHOD = -32000, -32601
QUIET = frozenset(
    {
        "agent_thought_chunk",
        "available_commands_update",
        "config_option_update",
        "current_mode_update",
        "plan",
        "user_message_chunk",
    }
)


class Acp(Struct, frozen=True):
    """An agent that speaks the Agent Client Protocol, by its command."""

    command: tuple[str, ...]
    key: str = "acp"
    markers: tuple[str, ...] = ()

    @property
    def binary(self) -> str:
        return self.command[0]

    def build(self, call: Call) -> Launch:
        cannot = ("model", "effort", "agent", "tools", "schema", "session")
        client = {"fs": {"readTextFile": False, "writeTextFile": False}, "terminal": False}
        opening = _request(INITIALIZE, {"protocolVersion": 1, "clientCapabilities": client})
        asked = launch(call, self.command, cannot=cannot)
        return replace(asked, stdin=_line(opening), answer=lambda line: b"".join(answers(call, line)))

    def parse(self, line: Line) -> Iterable[told.Event] | None:
        if "method" in line:
            if line["method"] == "session/update":
                return _update(mapping(mapping(line.get("params")).get("update")))
            return (told.Quiet(),)  # what it asks for; extensions
        if "error" in line:
            # A mode that is refused is no failure: the agent asks, then, and is allowed.
            return (told.Quiet(),) if _is_of(line, MODE) else (_failed(mapping(line["error"])),)
        if "result" not in line:
            return None
        result = mapping(line["result"])
        if _is_of(line, NEW):
            return (told.Began(text(result.get("sessionId"))),)
        return _ended(result) if _is_of(line, PROMPT) else (told.Quiet(),)


# --- what the agent says ---------------------------------------------------------------------------------


def _update(update: Line) -> Iterable[told.Event] | None:
    match update.get("sessionUpdate"):
        case "agent_message_chunk":
            return (told.Said(text(mapping(update.get("content")).get("text")), delta=True),)
        case "tool_call" | "tool_call_update":
            return (told.UsedTool(text(update.get("name")) or text(update.get("title"))),)
        case "usage_update":
            cost = mapping(update.get("cost"))
            usd = number(cost.get("amount")) if cost.get("currency") == "USD" else None
            return (told.Charged(usd),) if usd else (told.Quiet(),)
        case "session_info_update":
            return (_codex_error(mapping(mapping(mapping(update.get("_meta")).get("codex")).get("error"))),)
        case kind if kind in QUIET:
            return (told.Quiet(),)
        case _:
            return None


def _codex_error(error: Line) -> told.Event:
    """Codex ends a turn of failures like a good one; what it told on the way is all there is."""
    message = text(error.get("additionalDetails")) or text(error.get("message"))
    return told.Retries(status_in(message), None, message) if message else told.Quiet()


def _failed(error: Line) -> told.Ended:
    message, code = text(error.get("message")), error.get("code")
    status = 401 if code == NEEDS_LOGIN else code if isinstance(code, int) and 400 <= code < 600 else None
    if mapping(error.get("data")).get("errorKind") == "rate_limit":
        status = 429
    return told.Ended(False, message, status or status_in(message))


def _ended(result: Line) -> Iterable[told.Event]:
    usage, reason = result.get("usage"), text(result.get("stopReason"))
    if isinstance(usage, dict):
        names = ("inputTokens", "cachedReadTokens", "cachedWriteTokens", "outputTokens")
        yield told.Spent(told.Usage(*(count(usage.get(name)) for name in names)), total=True)
    is_good = reason == "end_turn"
    yield told.Ended(is_good, "" if is_good else f"the agent stopped: {reason or 'it does not say why'}")


# --- what is said to it ----------------------------------------------------------------------------------


def answers(call: Call, line: Line) -> Iterable[bytes]:
    """What is to be written to the agent when it has written this line."""
    if "method" in line:
        if "id" in line:
            yield _line({"jsonrpc": "2.0", "id": line["id"], **_granted(line)})
    elif _is_of(line, INITIALIZE) and "result" in line:
        yield _line(_request(NEW, {"cwd": call.cwd, "mcpServers": []}))
    elif _is_of(line, NEW) and "result" in line:
        result = mapping(line["result"])
        session, mode = text(result.get("sessionId")), _unattended(mapping(result.get("modes")))
        yield _line(_request(MODE, {"modeId": mode}, session) if mode else _prompt(call, session))
    elif _is_of(line, MODE):
        yield _line(_prompt(call, str(line["id"]).removeprefix(f"{MODE} ")))


def _granted(line: Line) -> Line:
    """The answer to a request of the agent: it may do what it asks to do, once; it gets nothing else from us."""
    if line["method"] != "session/request_permission":
        return {"error": {"code": NO_METHOD, "message": f"no such method here: {line['method']}"}}
    options = mappings(mapping(line.get("params")).get("options"))
    kinds = {text(one.get("kind")): one.get("optionId") for one in options}
    chosen = kinds.get("allow_once") or kinds.get("allow_always")
    return {"result": {"outcome": {"outcome": "selected", "optionId": chosen} if chosen else {"outcome": "cancelled"}}}


def _unattended(modes: Line) -> str:
    """The mode to change to; empty to leave it."""
    if modes.get("currentModeId") != ITS_OWN_JUDGE:
        return ""  # Gemini would say that it changed, as if in answer to the prompt
    known = [text(mode.get("id")) for mode in mappings(modes.get("availableModes"))]
    return next((one for one in UNATTENDED if one in known), "")


def _prompt(call: Call, session: str) -> Line:
    return _request(PROMPT, {"prompt": [{"type": "text", "text": call.prompt}]}, session)


def _request(method: str, params: Mapping[str, Any], session: str = "") -> Line:
    """A request; one of a session carries it in its id as well."""
    if not session:
        return {"jsonrpc": "2.0", "id": method, "method": method, "params": params}
    return {**_request(method, {"sessionId": session, **params}), "id": f"{method} {session}"}


def _is_of(line: Line, method: str) -> bool:
    """Whether a line answers a request of that method."""
    return text(line.get("id")).partition(" ")[0] == method


def _line(message: Line) -> bytes:
    return json.dumps(message).encode() + b"\n"
