"""A model's API that is none: on 127.0.0.1 it answers the agent command lines as a scenario in the path says.

`/s/SCENARIO/v1/messages` speaks Anthropic's dialect, `/v1/responses` and `/v1/chat/completions` OpenAI's two, and
`/v1beta/models/MODEL:streamGenerateContent` Gemini's. Every answer costs 101 tokens of input, 40 more from the cache,
and 7 of output.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

INPUT, CACHED, OUTPUT = 101, 40, 7
SHELLS = ("Bash", "bash", "exec_command", "shell_command", "shell", "run_shell_command")
"""What the agents call the tool that runs a command, with `command` or `cmd` for the command's text."""

STRUCTURED = "StructuredOutput"
"""What Claude Code calls the tool that an answer to a schema is given by."""

Body = Mapping[str, Any]


# --- scenarios -------------------------------------------------------------------------------------------------


class Say(NamedTuple):
    """An answer in words; `then` its stream goes silent (`hang`) or ends in the middle (`cut`)."""

    text: str
    then: str = ""


class UseShell(NamedTuple):
    """The wish to run a command."""

    command: str


class Judge(NamedTuple):
    """An answer that fits the schema of a judge: by the tool for it, or in words."""

    verdict: str


class Refuse(NamedTuple):
    """An HTTP error."""

    status: int
    retry_after: int | None = None
    limited_for: int | None = None


Answer = Say | UseShell | Judge | Refuse
Scenario = Callable[[int, bool], Answer]
"""What is answered to the nth request (from 1), and whether a tool's result came with it."""


def always(answer: Answer) -> Scenario:
    return lambda number, has_result: answer


def once(answer: Answer, then: Answer) -> Scenario:
    return lambda number, has_result: answer if number == 1 else then


def with_shell(command: str) -> Scenario:
    return lambda number, has_result: Say("DONE-TOOL") if has_result else UseShell(command)


SLOW = "echo $$ > tool.pid; exec sleep 300"
SCENARIOS: Mapping[str, Scenario] = {
    "ok": always(Say("FAKE-OK")),
    "tool": with_shell("echo TOOL-RAN | tee proof.txt"),
    "verdict": lambda number, has_result: Say("DONE") if has_result else Judge("yes"),
    "e401": always(Refuse(401)),
    "e500": always(Refuse(500)),
    "r429": once(Refuse(429), then=Say("AFTER-429")),
    "r429-after-2": once(Refuse(429, retry_after=2), then=Say("AFTER-429")),
    "used-up": once(Refuse(429, limited_for=4), then=Say("AFTER-429")),
    "cut": always(Say("half an ans", then="cut")),
    "hang": always(Say("wait for", then="hang")),
    "slow-tool": with_shell(SLOW),
    "slow-tool-once": once(UseShell(SLOW), then=Say("DONE-TOOL")),
    "background": with_shell("tail -f /dev/null > /dev/null 2>&1 & echo $! > tool.pid"),
    "background-holding-output": with_shell("tail -f /dev/null & echo $! > tool.pid"),
}


# --- dialects --------------------------------------------------------------------------------------------------


class Dialect(NamedTuple):
    """How one API is spoken: where, what a request says, and the lines of an answer's stream."""

    path: str
    has_result: Callable[[Body], bool]
    say: Callable[[Say], Iterable[object]]
    use_tool: Callable[[str, str], Iterable[object]]


def _items(value: object) -> list[Body]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _has_block(body: Body, messages: str, blocks: str, test: Callable[[Body], bool]) -> bool:
    return any(test(block) for message in _items(body.get(messages)) for block in _items(message.get(blocks)))


def _anthropic(block: Body, delta: Body, stop: str) -> Iterator[object]:
    usage = {"input_tokens": INPUT, "cache_creation_input_tokens": 0, "cache_read_input_tokens": CACHED}
    message: Body = {"id": "msg_1", "type": "message", "role": "assistant", "model": "fake", "content": []}
    yield {"type": "message_start", "message": {**message, "usage": {**usage, "output_tokens": 1}}}
    yield {"type": "content_block_start", "index": 0, "content_block": block}
    yield {"type": "content_block_delta", "index": 0, "delta": delta}
    yield {"type": "content_block_stop", "index": 0}
    yield {"type": "message_delta", "delta": {"stop_reason": stop}, "usage": {**usage, "output_tokens": OUTPUT}}
    yield {"type": "message_stop"}


def _anthropic_say(answer: Say) -> Iterable[object]:
    return _anthropic({"type": "text", "text": ""}, {"type": "text_delta", "text": answer.text}, "end_turn")


def _anthropic_use(tool: str, arguments: str) -> Iterable[object]:
    block = {"type": "tool_use", "id": "toolu_1", "name": tool, "input": {}}
    return _anthropic(block, {"type": "input_json_delta", "partial_json": arguments}, "tool_use")


def _responses(item: Body, *deltas: Body) -> Iterator[object]:
    yield {"type": "response.created", "response": {"id": "resp_1"}}
    yield {"type": "response.output_item.added", "output_index": 0, "item": item}
    yield from deltas
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    usage = {
        "input_tokens": INPUT + CACHED,
        "input_tokens_details": {"cached_tokens": CACHED},
        "output_tokens": OUTPUT,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": INPUT + CACHED + OUTPUT,
    }
    yield {"type": "response.completed", "response": {"id": "resp_1", "usage": usage}}


def _responses_say(answer: Say) -> Iterable[object]:
    content = [{"type": "output_text", "text": answer.text, "annotations": []}]
    item = {"type": "message", "role": "assistant", "id": "msg_1", "content": content}
    delta = {"type": "response.output_text.delta", "item_id": "msg_1", "content_index": 0, "delta": answer.text}
    return _responses(item, {**delta, "output_index": 0})


def _responses_use(tool: str, arguments: str) -> Iterable[object]:
    return _responses({"type": "function_call", "id": "fc_1", "call_id": "c1", "name": tool, "arguments": arguments})


def _chat(delta: Body, finish: str) -> Iterator[object]:
    head = {"id": "chat_1", "object": "chat.completion.chunk", "created": 1, "model": "fake"}
    yield {**head, "choices": [{"index": 0, "delta": {"role": "assistant", **delta}, "finish_reason": None}]}
    yield {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}
    usage = {"prompt_tokens": INPUT + CACHED, "completion_tokens": OUTPUT, "total_tokens": INPUT + CACHED + OUTPUT}
    yield {**head, "choices": [], "usage": {**usage, "prompt_tokens_details": {"cached_tokens": CACHED}}}
    yield "[DONE]"


def _chat_say(answer: Say) -> Iterable[object]:
    return _chat({"content": answer.text}, "stop")


def _chat_use(tool: str, arguments: str) -> Iterable[object]:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": tool, "arguments": arguments}}
    return _chat({"content": None, "tool_calls": [call]}, "tool_calls")


def _gemini(part: Body) -> Iterator[object]:
    usage = {"promptTokenCount": INPUT + CACHED, "candidatesTokenCount": OUTPUT, "cachedContentTokenCount": CACHED}
    usage["totalTokenCount"] = INPUT + CACHED + OUTPUT
    content = {"role": "model", "parts": [part]}
    yield {"candidates": [{"index": 0, "content": content}], "modelVersion": "fake"}
    end = {"index": 0, "content": {"role": "model", "parts": [{"text": ""}]}, "finishReason": "STOP"}
    yield {"candidates": [end], "usageMetadata": usage, "modelVersion": "fake"}


def _gemini_use(tool: str, arguments: str) -> Iterable[object]:
    return _gemini({"functionCall": {"name": tool, "args": json.loads(arguments)}})


DIALECTS = (
    Dialect(
        "/v1/messages",
        lambda body: _has_block(body, "messages", "content", lambda block: block.get("type") == "tool_result"),
        _anthropic_say,
        _anthropic_use,
    ),
    Dialect(
        "/v1/responses",
        lambda body: any(item.get("type") == "function_call_output" for item in _items(body.get("input"))),
        _responses_say,
        _responses_use,
    ),
    Dialect(
        "/v1/chat/completions",
        lambda body: any(message.get("role") == "tool" for message in _items(body.get("messages"))),
        _chat_say,
        _chat_use,
    ),
    Dialect(
        ":streamGenerateContent",
        lambda body: _has_block(body, "contents", "parts", lambda part: "functionResponse" in part),
        lambda answer: _gemini({"text": answer.text}),
        _gemini_use,
    ),
)


def _tools(body: Body) -> Iterator[Body]:
    """The tools that a request offers, whichever way it wraps them."""
    for tool in _items(body.get("tools")):
        yield from _items(tool.get("functionDeclarations")) or [tool.get("function") or tool]


def _shell_call(body: Body, command: str) -> tuple[str, str]:
    """The name of the shell tool that a request offers, and the arguments that run a command in it."""
    tool = next(tool for tool in _tools(body) if tool.get("name") in SHELLS)
    schema = tool.get("input_schema") or tool.get("parameters") or tool.get("parametersJsonSchema") or {}
    properties = schema.get("properties", {})
    key = "cmd" if "cmd" in properties else "command"
    is_list = properties.get(key, {}).get("type") == "array"
    return tool["name"], json.dumps({key: ["bash", "-c", command] if is_list else command, "description": "as told"})


def _judge(dialect: Dialect, body: Body, verdict: str) -> Iterable[object]:
    opinion = json.dumps(
        {"verdict": verdict, "confidence": 0.9, "reason": "as told", "evidence": "all 12 tests passed"}
    )
    if any(tool.get("name") == STRUCTURED for tool in _tools(body)):
        return dialect.use_tool(STRUCTURED, opinion)
    return dialect.say(Say(opinion))


# --- the server ------------------------------------------------------------------------------------------------


class Api(ThreadingHTTPServer):
    """Answers until it is shut down. Each request becomes a line of the file `log`."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, log: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.over = threading.Event()
        self._log = log
        self._lock = threading.Lock()
        self._count = 0

    def note(self, path: str, text: bytes = b"", *, is_turn: bool) -> int:
        """Log a request, and whether it `remembers` an answer; returns which it is of those that are part of a turn."""
        with self._lock, self._log.open("a") as file:
            self._count += is_turn
            print(json.dumps({"path": path, "turn": is_turn, "remembers": b"FAKE-OK" in text}), file=file)
            return self._count


class _Handler(BaseHTTPRequestHandler):
    server: Api
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        self.server.note(self.path, is_turn=False)
        self._refuse(Refuse(404))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(text)
        _, _, scenario, *rest = self.path.partition("?")[0].split("/")
        path = "/" + "/".join(rest)
        dialect = next((one for one in DIALECTS if path.endswith(one.path)), None)
        if dialect is None:
            self.do_GET()
            return
        number = self.server.note(self.path, text, is_turn=True)
        answer = SCENARIOS[scenario](number, dialect.has_result(body))
        match answer:
            case Refuse():
                self._refuse(answer)
            case UseShell(command):
                self._stream(dialect.use_tool(*_shell_call(body, command)))
            case Judge(verdict):
                self._stream(_judge(dialect, body, verdict))
            case Say(then=""):
                self._stream(dialect.say(answer))
            case Say():
                self._break_off(dialect, answer)

    def _refuse(self, answer: Refuse) -> None:
        text = json.dumps({"error": {"message": f"refused with {answer.status}", "code": answer.status}}).encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        if answer.retry_after is not None:
            self.send_header("Retry-After", str(answer.retry_after))
        if answer.limited_for is not None:
            self._tell_limit(int(time.time()) + answer.limited_for)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def _tell_limit(self, until: int) -> None:
        """As Anthropic tells subscribers that they have used up their five hours."""
        limit = {"status": "rejected", "reset": until, "5h-status": "rejected", "5h-reset": until, "5h-utilization": 1}
        limit |= {"representative-claim": "five_hour"}
        for name, value in limit.items():
            self.send_header(f"anthropic-ratelimit-unified-{name}", str(value))

    def _stream(self, lines: Iterable[object], *, is_whole: bool = True) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in lines:
            kind = line.get("type") if isinstance(line, dict) else None
            data = line if isinstance(line, str) else json.dumps(line)
            event = f"event: {kind}\n" if kind else ""
            self._write_chunk(f"{event}data: {data}\n\n".encode())
        if is_whole:
            self._write_chunk(b"")

    def _write_chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _break_off(self, dialect: Dialect, answer: Say) -> None:
        """An answer up to its text, and then nothing: for ever, or at the end of the response."""
        lines = list(dialect.say(answer))
        begun = next(number for number, line in enumerate(lines, 1) if answer.text in json.dumps(line))
        self._stream(lines[:begun], is_whole=answer.then == "cut")
        if answer.then == "hang":
            self.server.over.wait()
            self.close_connection = True

    def log_request(self, code: object = "-", size: object = "-") -> None:
        pass


@contextmanager
def serving(log: Path) -> Iterator[str]:
    """The API as long as the block lasts: its address, to which `/s/SCENARIO` is to be added."""
    with Api(log) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.over.set()
            server.shutdown()
            thread.join()
