"""Turns of agents as real processes: a host that plays a script, and hosts that behave badly."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import anyio
import pytest

from ll_loop.core.hosts.base import Call
from ll_loop.core.hosts.claude import Claude
from ll_loop.core.hosts.codex import Codex
from ll_loop.core.hosts.command import AnyCommand
from ll_loop.core.hosts.opencode import OpenCode
from ll_loop.run.agents.asking import choose_host
from ll_loop.run.agents.hosting import Hosts, Limits, host_env
from ll_loop.run.children import procs
from ll_loop.run.children.pipes import Stream
from ll_loop.run.children.process import Spawner
from ll_loop.run.children.procs import Identity
from ll_loop.run.children.tree import Grace

FAKE = AnyCommand((sys.executable, "-m", "ll_loop", "fake-host"))
SAY_OK = '{"type":"result","is_error":false,"result":"ok","usage":{"input_tokens":1,"output_tokens":1}}'


class Notes:
    """Hears a turn."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.bytes = b""

    def lines(self, batch: list[str]) -> None:
        self.text += batch

    def raw(self, stream: Stream, data: bytes) -> None:
        self.bytes += data


def hosts(folder: Path, **env: str) -> Hosts:
    path = {"PATH": os.environ["PATH"], "LL_LOOP_RUN_ID": "r1", **env}
    return Hosts(Spawner(), env=path, folder=folder, marker="LL_LOOP_RUN_ID=r1", grace=Grace(0.2))


def scripted(*lines: str) -> str:
    return "\n".join(("please", "@@fake", *lines, "@@end"))


def bash(script: str) -> AnyCommand:
    return AnyCommand(("bash", "-c", script))


def is_gone(pid: int) -> bool:
    row = procs.read_row(pid)
    return row is None or row.zombie


async def test_a_script_in_the_prompt_is_played_and_read(tmp_path: Path) -> None:
    prompt = scripted("init model=m session=s", r"text one\ntwo", "tool Read {}", "result in=3 out=2 cache=1 create=0")
    notes = Notes()
    answered = await hosts(tmp_path).ask(FAKE, Call(prompt=prompt, cwd=str(tmp_path)), notes)
    reply = answered.reply
    assert (answered.exit_code, reply.ok, reply.output) == (0, True, "one\ntwo")
    assert (reply.session, reply.model, reply.tools) == ("s", "m", 1)
    assert reply.usage is not None
    assert reply.usage.parts == (3, 1, 0, 2)
    assert notes.text == ["one", "two"]
    assert b"@@fake" not in notes.bytes


async def test_an_error_at_the_end_of_the_stream_is_a_failure_whatever_the_exit_code(tmp_path: Path) -> None:
    prompt = scripted("text half", "result error=Overloaded status=529")
    answered = await hosts(tmp_path).ask(FAKE, Call(prompt=prompt, cwd=str(tmp_path)), Notes())
    assert (answered.exit_code, answered.reply.failure, answered.reply.error) == (1, "server", "Overloaded")


async def test_an_exit_code_after_a_good_end_does_not_spoil_it(tmp_path: Path) -> None:
    prompt = scripted("text fine", "result in=1 out=1", "exit 3")
    answered = await hosts(tmp_path).ask(FAKE, Call(prompt=prompt, cwd=str(tmp_path)), Notes())
    assert (answered.exit_code, answered.reply.ok) == (0, True)


async def test_a_long_prompt_reaches_the_host_whole(tmp_path: Path) -> None:
    host = bash("wc -c")
    answered = await hosts(tmp_path).ask(host, Call(prompt="-x" * 200_000, cwd=str(tmp_path)), Notes())
    assert answered.reply.output.strip() == "400000"


async def test_a_host_that_does_not_exit_after_its_end_is_ended_with_what_it_left(tmp_path: Path) -> None:
    host = bash(f"echo '{SAY_OK}'; setsid sleep 600 & echo $! > pid; sleep 0.5; touch later; wait")
    started: list[Identity] = []
    answered = await hosts(tmp_path).ask(
        host, Call(prompt="p", cwd=str(tmp_path)), Notes(), started=started.append, limits=Limits(wall=60, linger=1.5)
    )
    assert (answered.exit_code, answered.reply.ok, answered.cut) == (0, True, "")
    assert (tmp_path / "later").exists()  # it had its time
    assert answered.duration < 30
    assert not procs.is_alive(started[0])
    assert is_gone(int((tmp_path / "pid").read_text()))


async def test_a_host_that_only_goes_in_circles_is_ended(tmp_path: Path) -> None:
    step = '{"type":"step_finish","part":{"reason":"unknown","tokens":{"input":0,"output":0,"cache":{"read":0}}}}'
    host = bash(f"while :; do echo '{step}'; done")

    class Circling(AnyCommand, frozen=True):
        def parse(self, line):  # type: ignore[no-untyped-def]
            from ll_loop.core.hosts.opencode import OpenCode

            return OpenCode().parse(line)

    answered = await hosts(tmp_path).ask(Circling(host.command), Call(prompt="p", cwd=str(tmp_path)), Notes())
    assert (answered.exit_code, answered.cut, answered.reply.ok) == (124, "stalled", False)


async def test_a_host_that_gets_nowhere_for_too_long_is_ended(tmp_path: Path) -> None:
    host = bash("""while :; do echo '{"type":"system","subtype":"hook"}'; sleep 0.02; done""")
    call = Call(prompt="p", cwd=str(tmp_path))
    answered = await hosts(tmp_path).ask(host, call, Notes(), limits=Limits(stalled=0.3))
    assert (answered.exit_code, answered.cut) == (124, "stalled")


async def test_silence_and_time_have_limits(tmp_path: Path) -> None:
    for limits, kind in ((Limits(idle=0.2), "idle"), (Limits(wall=0.2), "wall")):
        call = Call(prompt=scripted("text half", "hang"), cwd=str(tmp_path))
        answered = await hosts(tmp_path).ask(bash("echo hello; sleep 60"), call, Notes(), limits=limits)
        assert (answered.exit_code, answered.cut, answered.reply.ok) == (124, kind, False)


async def test_cancelling_a_turn_ends_the_host_and_its_tools(tmp_path: Path) -> None:
    started: list[Identity] = []
    host = bash("setsid sleep 600 & echo $! > pid; echo begun; wait")
    begun = anyio.Event()

    class Waits(Notes):
        def lines(self, batch: list[str]) -> None:
            begun.set()

    async with anyio.create_task_group() as tasks:
        call = Call(prompt="p", cwd=str(tmp_path))

        async def ask() -> None:
            await hosts(tmp_path).ask(host, call, Waits(), started=started.append)

        tasks.start_soon(ask)
        await begun.wait()
        tasks.cancel_scope.cancel()
    assert not procs.is_alive(started[0])
    assert is_gone(int((tmp_path / "pid").read_text()))


async def test_a_missing_host_is_told(tmp_path: Path) -> None:
    call = Call(prompt="p", cwd=str(tmp_path))
    answered = await hosts(tmp_path).ask(AnyCommand(("no-such-agent",)), call, Notes())
    assert answered.exit_code == 127
    assert "no-such-agent" in answered.reply.error


async def test_the_files_of_a_call_are_there_for_the_call_and_private(tmp_path: Path) -> None:
    binaries = tmp_path / "bin"
    binaries.mkdir()
    fake = binaries / "codex"
    fake.write_text('#!/bin/bash\nwhile [ "$1" != --output-schema ]; do shift; done\ncat "$2"; stat -c %a "${2%/*}"\n')
    fake.chmod(0o755)
    asked = hosts(tmp_path / "run", PATH=f"{binaries}:{os.environ['PATH']}")
    call = Call(prompt="p", cwd=str(tmp_path), schema={"type": "object"})
    reply = (await asked.ask(Codex(), call, Notes())).reply
    assert json.loads(reply.output.splitlines()[0].removesuffix("700")) == {"type": "object"}
    assert list((tmp_path / "run").iterdir()) == []


def test_a_host_gets_what_it_needs_and_no_marks_of_an_agent_above_it() -> None:
    env = {"PATH": "/bin", "HOME": "/h", "ANTHROPIC_API_KEY": "k", "CLAUDECODE": "1", "CLAUDE_CODE_ENTRYPOINT": "cli",
           "DATABASE_PASSWORD": "p", "MY_OWN": "1", "LC_ALL": "C", "LL_LOOP_RUN_ID": "r"}  # fmt: skip
    opencode = host_env({"OPENCODE": "1", "OPENCODE_PID": "7", "OPENCODE_CONFIG": "mine"}, OpenCode())
    assert "OPENCODE_CONFIG" in opencode
    assert not {"OPENCODE", "OPENCODE_PID"} & set(opencode)
    passed = host_env(env, Claude(), ("MY_*",))
    assert {"PATH", "HOME", "ANTHROPIC_API_KEY", "MY_OWN", "LC_ALL", "LL_LOOP_RUN_ID"} <= set(passed)
    assert not {"CLAUDECODE", "CLAUDE_CODE_ENTRYPOINT", "DATABASE_PASSWORD"} & set(passed)
    assert passed["LL_NON_INTERACTIVE"] == "1"


async def test_a_host_that_is_started_from_inside_an_agent_is_not_told_so(tmp_path: Path) -> None:
    (tmp_path / "claude").write_text("#!/bin/bash\nenv\n")
    (tmp_path / "claude").chmod(0o755)
    above = {"CLAUDECODE": "1", "CLAUDE_CODE_ENTRYPOINT": "cli", "MY_PASSWORD": "p", "CLAUDE_CONFIG_DIR": "/c"}
    asked = hosts(tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}", **above)
    said = (await asked.ask(Claude(), Call(prompt="p", cwd=str(tmp_path)), Notes())).reply.output.splitlines()
    assert {"CLAUDE_CONFIG_DIR=/c", "CLAUDE_CODE_MAX_RETRIES=0", "LL_LOOP_RUN_ID=r1"} <= set(said)
    assert not [line for line in said if line.startswith(("CLAUDECODE", "CLAUDE_CODE_ENTRYPOINT", "MY_"))]


@pytest.mark.parametrize(
    ("wanted", "env", "configured", "chosen"),
    [
        ("pi", {"LL_HOST_CLI": "codex"}, "gemini", "pi"),
        ("", {"LL_HOST_CLI": "codex", "LL_HOOK_HOST": "pi"}, "gemini", "codex"),
        ("", {"LL_HOOK_HOST": "pi"}, "gemini", "pi"),
        ("", {}, "gemini", "gemini"),
        ("", {}, "", "opencode"),  # the only one on PATH
    ],
)
def test_the_host_is_the_first_that_is_given(
    tmp_path: Path, wanted: str, env: dict[str, str], configured: str, chosen: str
) -> None:
    (tmp_path / "opencode").touch(0o755)
    assert choose_host(wanted, {"PATH": str(tmp_path), **env}, configured).key == chosen


@pytest.mark.parametrize(
    ("script", "complaint"),
    [("dance", "unknown directive: dance"), ("result in=x", "needs a number"), ("exit 1\ntext more", "can follow")],
)
async def test_a_script_that_makes_no_sense_is_a_failure_that_says_why(
    tmp_path: Path, script: str, complaint: str
) -> None:
    call = Call(prompt=scripted(*script.split("\n")), cwd=str(tmp_path))
    answered = await hosts(tmp_path).ask(FAKE, call, Notes())
    assert not answered.reply.ok
    assert complaint in answered.reply.error
