"""The Agent Client Protocol: JSON-RPC over the pipes of any agent that speaks it. The end is the answer to the prompt.

A conversation of requests, each sent when the one before is answered: `initialize`, `session/new` (`session/resume` or
`session/load` to go on with one, if the agent can), what is to be set up (the mode where the agent would refuse by
itself, model, effort), `session/prompt`. The id of a request is its method (and the session), so what a line means
follows from the line alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from . import told
from .base import Call, Launch, Line, count, launch, mapping, mappings, number, status_in, text

INITIALIZE, NEW, RESUME, LOAD = "initialize", "session/new", "session/resume", "session/load"
PROMPT, CANCEL = "session/prompt", "session/cancel"
SETTLED = "_ll-loop/settled"
"""A request that no agent knows: some go on recalling a session after they called it loaded, but not after this."""
MODE, MODEL, OPTION = "session/set_mode", "session/set_model", "session/set_config_option"
ITS_OWN_JUDGE = "auto"
"""The mode in which an agent refuses by itself what it thinks unsafe. In every other one it asks, and is allowed to."""
UNATTENDED = ("bypassPermissions", "full-access", "yolo")
"""What agents call the mode in which they neither ask nor refuse."""
EFFORT = "thought_level"
"""The category of the option that says how hard to think."""
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
        client = {"fs": {"readTextFile": False, "writeTextFile": False}, "terminal": False}
        opening = _request(INITIALIZE, {"protocolVersion": 1, "clientCapabilities": client})
        asked = launch(call, self.command, cannot=("agent", "tools", "schema"))
        return replace(asked, stdin=_line(opening), talk=Conversation(call))

    def parse(self, line: Line) -> Iterable[told.Event] | None:
        if "method" in line:
            if line["method"] == "session/update":
                return _update(mapping(mapping(line.get("params")).get("update")))
            return (told.Quiet(),)  # what it asks for; extensions
        if _is_of(line, SETTLED):
            return (told.Began(_session_in(line)),)
        if "error" in line:
            # What cannot be set up is no failure, nor that a session is gone: the prompt is sent all the same.
            is_end = not _is_of(line, RESUME, LOAD, MODE, MODEL, OPTION)
            return (_failed(mapping(line["error"])),) if is_end else (told.Quiet(),)
        if "result" not in line:
            return None
        result = mapping(line["result"])
        if _is_of(line, INITIALIZE):
            return (told.Recalls(),)
        if _is_of(line, NEW, RESUME):
            return (told.Began(_session_in(line)),)
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


class Conversation:
    """Our side of one turn. `left_out` names what of the call the agent turned out not to be able to do."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._session = ""
        self._steps: list[tuple[str, str, Line]] = []
        self._under_way = ""
        self.left_out: tuple[str, ...] = ()

    def answer(self, line: Line) -> bytes:
        """What is to be written to the agent when it has written this line."""
        if "method" in line:
            return _line({"jsonrpc": "2.0", "id": line["id"], **_granted(line)}) if "id" in line else b""
        result = mapping(line.get("result"))
        if _is_of(line, INITIALIZE) and "result" in line:
            return self._open(mapping(result.get("agentCapabilities")))
        if _is_of(line, RESUME, LOAD) and "error" in line:
            return self._open({})
        if _is_of(line, NEW, RESUME, LOAD) and "result" in line:
            self._session = _session_in(line)
            self._steps = [*self._set_up(result)]
            return _line(_request(SETTLED, {}, self._session)) if _is_of(line, LOAD) else self._next()
        if _is_of(line, SETTLED, MODE, MODEL, OPTION):
            if "error" in line:
                self._leave_out(self._under_way)
            return self._next()
        return b""

    def cancel(self) -> bytes:
        """What asks the agent to break off its turn: it ends what its tools do, and answers the prompt."""
        if not self._session:
            return b""
        return _line({"jsonrpc": "2.0", "method": CANCEL, "params": {"sessionId": self._session}})

    def _open(self, agent: Line) -> bytes:
        place, session = {"cwd": self._call.cwd, "mcpServers": []}, self._call.session
        resumes, loads = "resume" in mapping(agent.get("sessionCapabilities")), agent.get("loadSession") is True
        if session and (resumes or loads):
            return _line(_request(RESUME if resumes else LOAD, place, session))
        self._leave_out("session" if session else "")
        return _line(_request(NEW, place))

    def _set_up(self, opened: Line) -> Iterator[tuple[str, str, Line]]:
        """The requests, by what of the call they are for, that make the session as the call wants it."""
        if mode := _unattended(mapping(opened.get("modes"))):
            yield "", MODE, {"modeId": mode}
        for name, category, wanted in (("model", "model", self._call.model), ("effort", EFFORT, self._call.effort)):
            option = _option(opened, category)
            if wanted and option:
                yield name, OPTION, {"configId": option, "value": wanted}
            elif wanted and name == "model" and "models" in opened:
                yield name, MODEL, {"modelId": wanted}
            elif wanted:
                self._leave_out(name)

    def _next(self) -> bytes:
        """The next step of setting up, or the prompt."""
        if not self._steps:
            prompt = {"prompt": [{"type": "text", "text": self._call.prompt}]}
            return _line(_request(PROMPT, prompt, self._session))
        self._under_way, method, params = self._steps.pop(0)
        return _line(_request(method, params, self._session))

    def _leave_out(self, name: str) -> None:
        self.left_out += (name,) if name and name not in self.left_out else ()


def _option(opened: Line, category: str) -> str:
    """The id of the session's option of this category; empty if it has none."""
    options = mappings(opened.get("configOptions"))
    return next((text(option.get("id")) for option in options if option.get("category") == category), "")


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


def _request(method: str, params: Mapping[str, Any], session: str = "") -> Line:
    """A request; one of a session carries it in its id as well."""
    if not session:
        return {"jsonrpc": "2.0", "id": method, "method": method, "params": params}
    return {**_request(method, {"sessionId": session, **params}), "id": f"{method} {session}"}


def _session_in(line: Line) -> str:
    """The session that the answer to one of the requests that open one is about."""
    return text(mapping(line.get("result")).get("sessionId")) or text(line.get("id")).partition(" ")[2]


def _is_of(line: Line, *methods: str) -> bool:
    """Whether a line answers a request of one of these methods."""
    return text(line.get("id")).partition(" ")[0] in methods


def _line(message: Line) -> bytes:
    return json.dumps(message).encode() + b"\n"
