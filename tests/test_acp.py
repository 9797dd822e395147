"""Agents that speak the Agent Client Protocol: recorded conversations, and a scripted agent as a real process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ll_loop import Request, RunResult, Session
from ll_loop.core.hosts.acp import MODE, NEW, Acp
from ll_loop.core.hosts.base import Call
from ll_loop.core.hosts.turn import Reply, Turn
from projects import LIMIT, Project, only

SAMPLES = Path(__file__).parent / "hosts" / "samples"
AGENT = Path(__file__).parent / "hosts" / "acp_agent.py"
CALL = Call(prompt="say hi", cwd="$CWD")
HOST = Acp(("my-agent",))


# --- recorded conversations ------------------------------------------------------------------------------------


class Recording:
    """A conversation that a client had with an agent, as if that client had been us."""

    def __init__(self, sample: str) -> None:
        self.sent: list[Any] = []
        self.heard: list[Any] = []
        for line in (SAMPLES / f"acp-{sample}.jsonl").read_text().splitlines():
            try:
                record = json.loads(line)
            except ValueError:  # the recording cut long lines off
                if '"result": {"sessionId"' in line:
                    self.heard.append({"id": NEW, "result": {"sessionId": "s"}})
                continue
            (self.sent if record["dir"] == ">" else self.heard).append(record["m"])
        asked = {message["id"]: message for message in self.sent if "method" in message and "id" in message}
        for message in self.heard:
            if "method" not in message and message["id"] in asked:
                message["id"] = our_id(asked[message["id"]])

    def reply(self) -> Reply:
        turn = Turn(HOST, plain=False)
        for message in self.heard:
            if not turn.is_over:
                turn.feed(json.dumps(message))
        return turn.reply(0)

    def answers(self) -> list[Any]:
        hear = conversation()
        return [said for message in self.heard for said in hear(**message)]


def conversation(**call: Any) -> Callable[..., list[Any]]:
    """Gives what is said to an agent that says a line."""
    talk = HOST.build(msgspec.structs.replace(CALL, **call)).talk
    assert talk is not None
    return lambda **line: [json.loads(one) for one in talk.answer({"jsonrpc": "2.0", **line}).splitlines()]


def our_id(request: Any) -> str:
    session = request["params"].get("sessionId")
    return f"{request['method']} {session}" if session else str(request["method"])


RECORDINGS = sorted(path.name.removeprefix("acp-").removesuffix(".jsonl") for path in SAMPLES.glob("acp-*.jsonl"))


@pytest.mark.parametrize(
    ("sample", "tokens"),
    [
        ("claude.tool", (202, 80, 10, 14)),
        ("codex.tool", (202, 80, 0, 14)),
        ("gemini.tool", None),  # it does not tell
        ("opencode.tool", (101, 40, None, 7)),  # those of its last request
    ],
)
def test_a_recorded_turn_gives_its_text_and_its_tokens(sample: str, tokens: tuple[int | None, ...] | None) -> None:
    reply = Recording(sample).reply()
    assert (reply.failure, reply.answer, reply.unknown) == (None, "DONE-TOOL", ())
    assert (reply.usage and reply.usage.parts) == tokens
    assert reply.tools > 0


@pytest.mark.parametrize(
    ("sample", "failure", "status"),
    [
        ("claude.e401", "auth", 401),
        ("codex.e401", "auth", 401),
        ("gemini.e401", "auth", 401),
        ("claude.r429", "quota", 429),
        ("codex.r429ra2", "quota", 429),  # it ends like a good turn
        ("opencode.r429ra2", "quota", None),
        ("opencode.e401", "real", None),  # it names neither a status nor a kind
        ("claude.e500", "server", 500),
    ],
)
def test_a_recorded_failure_is_classed(sample: str, failure: str, status: int | None) -> None:
    reply = Recording(sample).reply()
    assert (reply.failure, reply.status) == (failure, status)
    assert reply.error


@pytest.mark.parametrize("sample", [one for one in RECORDINGS if one.endswith("-cancel")])
def test_a_cancelled_turn_is_no_success(sample: str) -> None:
    assert not Recording(sample).reply().ok


def test_an_agent_that_never_opens_a_session_is_no_success() -> None:
    assert not Recording("pi.tool").reply().ok


@pytest.mark.parametrize("sample", RECORDINGS)
def test_every_recorded_line_is_known(sample: str) -> None:
    assert Recording(sample).reply().unknown == ()


@pytest.mark.parametrize("sample", ["claude.tool", "gemini.tool"])
def test_the_agent_may_do_what_it_asks_for(sample: str) -> None:
    recording = Recording(sample)
    granted = [message["result"] for message in recording.answers() if "result" in message]
    assert granted == [message["result"] for message in recording.sent if "result" in message]
    assert granted


@pytest.mark.parametrize("sample", ["claude.tool", "gemini.tool", "opencode.tool"])
def test_the_agent_is_asked_what_the_recorded_client_asked(sample: str) -> None:
    recording = Recording(sample)
    [theirs] = [message for message in recording.sent if message.get("method") == "session/prompt"]
    [ours] = [message for message in recording.answers() if message.get("method") == "session/prompt"]
    assert ours["params"] == theirs["params"]


# --- what is said to an agent ----------------------------------------------------------------------------------


def said_to(**line: Any) -> list[Any]:
    return conversation()(**line)


def test_an_agent_that_asks_is_left_in_its_mode() -> None:
    modes = {"currentModeId": "default", "availableModes": [{"id": "yolo"}]}
    [prompt] = said_to(id=NEW, result={"sessionId": "s1", "modes": modes})
    assert prompt["method"] == "session/prompt"


def test_an_agent_that_refuses_by_itself_is_told_not_to() -> None:
    modes = {"currentModeId": "auto", "availableModes": [{"id": "plan"}, {"id": "bypassPermissions"}]}
    outcomes: list[dict[str, Any]] = [{"result": {}}, {"error": {"code": -32603, "message": "not as root"}}]
    for outcome in outcomes:
        hear = conversation()
        [request] = hear(id=NEW, result={"sessionId": "s1", "modes": modes})
        assert (request["method"], request["params"]) == (MODE, {"sessionId": "s1", "modeId": "bypassPermissions"})
        [prompt] = hear(id=request["id"], **outcome)
        assert prompt["params"] == {"sessionId": "s1", "prompt": [{"type": "text", "text": "say hi"}]}


OPTIONS = [{"id": "m", "category": "model"}, {"id": "reasoning_effort", "category": "thought_level"}]


@pytest.mark.parametrize(
    ("opened", "requests", "left_out"),
    [
        ({"configOptions": OPTIONS}, [("session/set_config_option", {"configId": "m", "value": "opus"}),
         ("session/set_config_option", {"configId": "reasoning_effort", "value": "high"})], ()),
        ({"models": {"availableModels": []}}, [("session/set_model", {"modelId": "opus"})], ("effort",)),
        ({}, [], ("model", "effort")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("refuses", [False, True])
def test_an_agent_is_asked_for_the_model_and_the_effort_that_it_lets_choose(
    opened: dict[str, Any], requests: list[Any], left_out: tuple[str, ...], *, refuses: bool
) -> None:
    talk = HOST.build(msgspec.structs.replace(CALL, model="opus", effort="high")).talk
    assert talk is not None
    said = json.loads(talk.answer({"id": NEW, "result": {"sessionId": "s1", **opened}}))
    for method, params in requests:
        assert (said["method"], said["params"]) == (method, {"sessionId": "s1", **params})
        said = json.loads(talk.answer({"id": said["id"], **({"error": {}} if refuses else {"result": {}})}))
    assert said["method"] == "session/prompt"
    assert set(talk.left_out) == ({"model", "effort"} if refuses else set(left_out))


@pytest.mark.parametrize(
    ("agent", "method"),
    [
        ({"loadSession": True, "sessionCapabilities": {"resume": {}}}, "session/resume"),
        ({"loadSession": True}, "session/load"),
        ({}, NEW),
    ],
)
def test_a_session_is_gone_on_with_as_the_agent_can_or_begun_anew(agent: dict[str, Any], method: str) -> None:
    hear = conversation(session="s7")
    [request] = hear(id="initialize", result={"agentCapabilities": agent})
    assert (request["method"], request["params"].get("sessionId")) == (method, None if method == NEW else "s7")
    [prompt] = hear(id=request["id"], result={"sessionId": "s8"} if method == NEW else {})
    if method == "session/load":  # nothing that it recalls may be taken for an answer
        [prompt] = hear(id=prompt["id"], error={"code": -32601, "message": "no such method"})
    assert prompt["params"]["sessionId"] == ("s8" if method == NEW else "s7")
    [anew] = conversation(session="s7")(id="session/load s7", error={"code": -32602, "message": "no such session"})
    assert anew["method"] == NEW


def test_requests_that_were_not_offered_are_turned_down() -> None:
    [answer] = said_to(id=7, method="fs/read_text_file", params={"path": "/etc/passwd"})
    assert (answer["id"], answer["error"]["code"]) == (7, -32601)


def test_a_question_without_a_yes_is_cancelled() -> None:
    [answer] = said_to(id=7, method="session/request_permission", params={"options": [{"kind": "reject_once"}]})
    assert answer["result"] == {"outcome": {"outcome": "cancelled"}}


shapes = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(shapes, st.sampled_from(["initialize", NEW, f"{MODE} s", "session/prompt s"]))
def test_no_shape_of_a_line_trips_us(value: Any, identity: str) -> None:
    updates = ["agent_message_chunk", "tool_call", "usage_update", "session_info_update"]
    fields = {"content": value, "cost": value, "_meta": value}
    permission = "session/request_permission"
    lines: list[dict[str, Any]] = [
        {"id": identity, "result": value},
        {"id": identity, "error": value},
        {"id": identity, "result": {"sessionId": value, "modes": value, "usage": value, "stopReason": value}},
        {"id": identity, "error": {"code": value, "message": value, "data": value}},
        {"id": value, "method": permission, "params": value},
        {
            "id": 1,
            "method": permission,
            "params": {"options": [{"kind": value}, {"kind": "allow_once", "optionId": value}]},
        },
        *({"method": "session/update", "params": {"update": {"sessionUpdate": kind, **fields}}} for kind in updates),
        {"method": value, "id": value},
        {"id": value},
    ]
    for line in lines:
        list(HOST.parse(line) or ())
        said_to(**line)


# --- a scripted agent ------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


async def run(project: Project, *more: str, play: str = "ok", text: str = "say hi") -> tuple[RunResult, list[Any]]:
    lines = (
        f"host: {{acp: [{sys.executable}, {AGENT}, {play}]}}",
        "next: done",
        "on_error: failed",
        "capture: w",
        *more,
    )
    state = "".join(f"    {line}\n" for line in (f"action: {text}", "action_type: prompt", *lines))
    ends = "  done: {terminal: true}\n  failed: {terminal: true, failure: true}\n"
    (project.loops / "talk.yaml").write_text(f"name: talk\ninitial: ask\nscope: [talk]\nstates:\n  ask:\n{state}{ends}")
    async with Session(project.folder, grace=0.5) as session:
        with anyio.fail_after(LIMIT * 3):
            result = await session.start_request(Request("talk")).wait()
    records = project.records(result.run_id)
    assert project.left_alive(result.run_id) == []
    return result, records


async def test_a_scripted_agent_takes_a_turn(project: Project) -> None:
    result, records = await run(project)
    assert (result.status, result.final_state) == ("completed", "done")
    [action] = only(records, "action_complete")
    assert action["output_preview"] == "You said: say hi"
    assert (action["input_tokens"], action["output_tokens"]) == (5, 3)
    assert project.lines("asked") == ["granted"]
    assert project.lines("end") == ["of input"]  # it ended by itself when its input did


@pytest.mark.parametrize(
    ("play", "complaint"),
    [
        ("refuse", "Authentication required"),
        ("max_tokens", "the agent stopped: max_tokens"),
        ("die", "exited with code 3"),
        ("banner", "said nothing"),
    ],
)
async def test_an_agent_that_does_not_end_its_turn_fails_the_state(project: Project, play: str, complaint: str) -> None:
    result, records = await run(project, play=play)
    assert result.final_state == "failed"
    assert complaint in only(records, "action_complete")[0]["stderr_preview"]


async def test_an_agent_that_hangs_is_ended_with_its_tool(project: Project) -> None:
    result, records = await run(project, "timeout: 1", play="hang")
    assert result.final_state == "failed"
    assert only(records, "action_complete")[0]["exit_code"] == 124


async def test_an_agent_is_asked_to_break_off_before_it_is_ended(project: Project) -> None:
    result, records = await run(project, "timeout: 1", play="cooperative")
    assert result.final_state == "failed"
    [action] = only(records, "action_complete")
    assert (action["exit_code"], action["stderr_preview"]) == (124, "Action timed out")
    assert (project.lines("end"), project.lines("cancelled")) == (["of input"], ["s1"])


async def test_a_session_is_gone_on_with_and_what_it_recalls_is_no_news(project: Project) -> None:
    prompt = f"{{action_type: prompt, host: {{acp: [{sys.executable}, {AGENT}, ok]}}, action: "
    (project.loops / "talk.yaml").write_text(
        "name: talk\ninitial: one\nscope: [talk]\nsession_mode: continue\nstates:\n"
        f"  one: {prompt} first, next: two}}\n  two: {prompt} second, next: done}}\n  done: {{terminal: true}}\n"
    )
    async with Session(project.folder) as session:
        result = await session.start("talk").wait()
    assert (result.status, project.lines("loaded")) == ("completed", ["s1"])
    records = project.records(result.run_id)
    assert [one["output_preview"] for one in only(records, "action_complete")] == [
        "You said: first", "You said: second"
    ]  # fmt: skip
    assert only(records, "warning") == []


async def test_what_cannot_be_asked_for_is_told(project: Project) -> None:
    _, records = await run(project, "agent: reviewer")
    assert any("agent" in record["message"] for record in only(records, "warning"))


async def test_an_agent_without_a_command_fails_the_state(project: Project) -> None:
    (project.loops / "talk.yaml").write_text(
        "name: talk\ninitial: ask\nscope: [talk]\nstates:\n"
        "  ask: {action: say hi, action_type: prompt, host: {acp: []}, next: done, on_error: failed}\n"
        "  done: {terminal: true}\n  failed: {terminal: true, failure: true}\n"
    )
    async with Session(project.folder) as session:
        result = await session.start_request(Request("talk")).wait()
    assert result.final_state == "failed"
    assert "`acp`" in only(project.records(result.run_id), "action_complete")[0]["stderr_preview"]
