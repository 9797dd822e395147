"""Loops run with the real agent command lines, offline, against a model's API of our own (`tests/hosts`)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from hosts.model_api import CACHED, INPUT, OUTPUT
from hosts.setups import MODEL, SETUPS
from ll_loop.core.hosts.table import BY_NAME
from projects import Project, only

ROOT = Path(__file__).parents[1]
PATIENCE = 120.0
"""Seconds for a case; the slowest takes some ten when the machine is quiet."""
NAMESPACE = ("unshare", "--map-root-user", "--net")


@cache
def folder_of_commands() -> Path:
    script = ROOT / "scripts" / "host-clis"
    found = subprocess.run(["bash", script, "--where"], check=True, capture_output=True, text=True)
    return Path(found.stdout.strip())


def require(host: str) -> None:
    """Skip a test whose command line is missing; in CI it fails."""
    if not (folder_of_commands() / BY_NAME[host].binary).exists():
        why = f"the command line of {host} is not installed: scripts/host-clis"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)


@cache
def can_be_alone() -> bool:
    """Whether a network namespace of our own may be made here."""
    return bool(shutil.which("unshare")) and subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0


State = Mapping[str, Any]
ASK: State = {"action_type": "prompt", "action": "say hi", "capture": "w", "next": "done", "on_error": "failed"}


class Case:
    """A loop, and a host with a scenario to run it with."""

    def __init__(self, folder: Path, host: str) -> None:
        self.folder = folder
        self.host = host
        self.project = Project(folder / "project")

    def start(self, scenario: str, backend: str = "asyncio", **states: State) -> subprocess.Popen[str]:
        """Begin to run a loop of these states, by default of one prompt."""
        states = states or {"ask": ASK}
        ends = {"done": {"terminal": True}, "failed": {"terminal": True, "failure": True}}
        loop = {"name": "talk", "initial": next(iter(states)), "scope": ["talk"], "states": {**states, **ends}}
        (self.project.loops / "talk.yaml").write_text(json.dumps(loop))  # JSON is YAML
        named = () if any("host" in state for state in states.values()) else ("--host", self.host)
        model = ("--model", MODEL[self.host]) if self.host in MODEL else ()
        alone = can_be_alone()
        command = [*(NAMESPACE if alone else ()), sys.executable, "-m", "hosts", self.host, scenario, str(self.folder)]
        return subprocess.Popen(
            [*command, folder_of_commands(), "talk", "--json", "--backend", backend, *named, *model],
            cwd=ROOT / "tests",
            env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"} | ({"ALONE": "1"} if alone else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """Wait for the end of the run: what it tells of itself."""
        out, err = process.communicate(timeout=PATIENCE)
        assert out, err
        run: dict[str, Any] = json.loads(out)["runs"][0]
        return run

    def run(self, scenario: str, backend: str = "asyncio", **states: State) -> dict[str, Any]:
        with self.start(scenario, backend, **states) as process:
            return self.finish(process)

    def run_until_first_action(self, scenario: str) -> dict[str, Any]:
        """Run until the first turn is over; a run that goes on, as one that waits to try again, is stopped then."""
        with self.start(scenario) as process:
            wait_for(lambda: process.poll() is not None or self.actions)
            process.send_signal(signal.SIGTERM)
            return self.finish(process)

    @property
    def records(self) -> list[Any]:
        journals = self.project.runs.glob("*/events.jsonl")
        return [record for path in journals for record in self.project.records(path.parent.name)]

    @property
    def actions(self) -> list[Any]:
        return only(self.records, "action_complete")

    @property
    def replies(self) -> list[Any]:
        """What came of each turn of the host."""
        answers = [record["answer"] for record in only(self.records, "outcome")]
        return [answer["reply"] for answer in answers if "reply" in answer]

    @property
    def turns(self) -> int:
        """How many requests of turns the model's API got."""
        return sum(request["turn"] for request in self.requests)

    @property
    def requests(self) -> list[Any]:
        return [json.loads(line) for line in (self.folder / "requests.jsonl").read_text().splitlines()]

    def left_behind(self) -> list[str]:
        """Processes that still are in the project."""
        found = []
        for link in Path("/proc").glob("[0-9]*/cwd"):
            try:
                is_ours = os.readlink(link).startswith(str(self.folder))
                words = (link.parent / "cmdline").read_bytes() if is_ours else b""
            except OSError:  # it is gone
                continue
            if words:
                found.append(words.replace(b"\0", b" ").decode(errors="replace"))
        return found


@pytest.fixture
def case(request: pytest.FixtureRequest, host: str, tmp_path: Path) -> Iterator[Case]:
    """A case of the host that the test is told; whatever happens in it, no process is left when it is over."""
    require(host)
    case = Case(tmp_path, host)
    yield case
    assert case.left_behind() == []


every_host = pytest.mark.parametrize("host", list(SETUPS))
every_host_but_opencode = pytest.mark.parametrize("host", [host for host in SETUPS if host != "opencode"])
quick_hosts = pytest.mark.parametrize("host", ["claude-code", "codex"])
"""Those that start in less than a second; the others take part where they are peculiar."""
quick_hosts_and_opencode = pytest.mark.parametrize("host", ["claude-code", "codex", "opencode"])


@quick_hosts
def test_a_prompt_is_answered(case: Case) -> None:
    run = case.run("ok")
    assert (run["status"], run["final_state"]) == ("completed", "done")
    assert case.turns == 1
    [action] = case.actions
    assert (action["exit_code"], action["output_preview"]) == (0, "FAKE-OK")
    assert tokens(action) == (INPUT, CACHED, OUTPUT)


@every_host
def test_an_agent_uses_its_tools_in_the_project(case: Case) -> None:
    run = case.run("tool", backend="trio")
    assert (run["status"], run["final_state"]) == ("completed", "done")
    assert case.project.lines("proof.txt") == ["TOOL-RAN"]
    [action], [reply] = case.actions, case.replies
    assert action["output_preview"] == "DONE-TOOL"
    assert tokens(action) == (2 * INPUT, 2 * CACHED, 2 * OUTPUT)
    assert reply["tools"] > 0
    assert reply["session"]
    assert "unknown" not in reply


WISHES: Mapping[str, State] = {
    "claude-code": {"model": "opus", "effort": "high", "agent": "general-purpose", "tools": ["Bash", "Read"]},
    "codex": {"model": "gpt-5", "effort": "high"},
    "pi": {"model": "m", "effort": "high", "tools": ["bash", "read"]},
}


@pytest.mark.parametrize("host", list(WISHES))
def test_an_agent_understands_what_a_state_asks_for(case: Case) -> None:
    run = case.run("ok", ask={**ASK, **WISHES[case.host]})
    assert (run["status"], run["final_state"]) == ("completed", "done")
    [reply] = case.replies
    assert (reply["asked_model"], reply.get("left_out")) == (WISHES[case.host]["model"], None)


@every_host_but_opencode  # it takes ten seconds for two prompts
def test_a_session_is_gone_on_with(case: Case) -> None:
    going_on = {**ASK, "session_mode": "continue"}
    run = case.run("ok", one={**going_on, "next": "two"}, two={**going_on, "action": "go on"})
    assert (run["status"], run["final_state"]) == ("completed", "done")
    assert [request["remembers"] for request in case.requests if request["turn"]] == [False, True]


@quick_hosts
def test_an_agent_judges(case: Case) -> None:
    judge = {"type": "llm_structured", "prompt": "Do the tests pass?"}
    look = {"action": "echo all 12 tests passed", "evaluate": judge, "on_yes": "done", "on_no": "failed"}
    run = case.run("verdict", look={**look, "on_error": "failed"})
    assert (run["status"], run["final_state"]) == ("completed", "done")
    [evaluation] = only(case.records, "evaluate")
    assert (evaluation["verdict"], evaluation["confidence"]) == ("yes", 0.9)


@quick_hosts_and_opencode
def test_a_refused_key_is_told_at_once(case: Case) -> None:
    run = case.run("e401")
    assert (run["status"], run["final_state"]) == ("failed", "failed")
    assert case.turns == 1
    [reply] = case.replies
    assert (reply["failure"], reply["status"]) == ("auth", 401)


@quick_hosts
def test_an_error_of_the_server_is_tried_again_by_us_only(case: Case) -> None:
    run = case.run_until_first_action("e500")
    assert (run["status"], run["final_state"]) == ("interrupted", "ask")  # it waits before the next try
    assert case.turns == 1
    [reply] = case.replies
    assert reply["failure"] == "server"


PATIENT: State = {
    **ASK,
    "max_rate_limit_retries": 1,
    "rate_limit_backoff_base_seconds": 1,
    "on_rate_limit_exhausted": "failed",
}


@every_host_but_opencode  # nothing keeps it from trying again by itself
def test_a_rate_limit_is_waited_out_by_us(case: Case) -> None:
    run = case.run("r429", ask=PATIENT)
    assert (run["status"], run["final_state"]) == ("completed", "done")
    assert [action["exit_code"] != 0 for action in case.actions] == [True, False]
    assert case.turns == 2
    assert case.replies[0]["failure"] == "quota"
    assert case.actions[1]["output_preview"] == "AFTER-429"


@pytest.mark.parametrize("host", ["opencode"])
def test_an_agent_that_tries_again_by_itself_hides_a_rate_limit(case: Case) -> None:
    run = case.run("r429", ask=PATIENT)
    assert (run["status"], run["final_state"]) == ("completed", "done")
    assert (case.turns, [action["output_preview"] for action in case.actions]) == (2, ["AFTER-429"])


@pytest.mark.parametrize("host", ["opencode"])
def test_an_agent_that_tries_again_by_itself_is_bounded_by_its_silence(case: Case) -> None:
    run = case.run("e500", ask={**ASK, "idle_timeout": 12})
    assert (run["status"], run["final_state"], case.actions[0]["exit_code"]) == ("failed", "failed", 124)
    assert case.turns > 0


@quick_hosts
def test_a_rate_limit_with_a_time_to_wait_is_waited_out_by_us(case: Case) -> None:
    run = case.run("r429-after-2", ask=PATIENT)
    assert (run["status"], run["final_state"]) == ("completed", "done")
    assert case.turns == 2


@pytest.mark.parametrize("host", ["claude-code"])
def test_a_subscription_that_is_used_up_is_waited_for_as_long_as_told(case: Case) -> None:
    run = case.run("used-up", ask=PATIENT)
    assert (run["status"], run["final_state"]) == ("completed", "done")
    assert case.replies[0]["failure"] == "quota"
    second = datetime.fromisoformat(only(case.records, "action_start")[1]["ts"])
    assert second.timestamp() >= case.replies[0]["resets_at"]


@every_host
def test_an_answer_that_was_cut_off_is_no_plain_success(case: Case) -> None:
    case.run_until_first_action("cut")
    reply = case.replies[0]
    assert reply.get("failure") or reply["suspect"]
    assert reply.get("error") != "the turn failed"
    assert case.turns < (60 if case.host == "opencode" else 10)  # which would ask for ever


@every_host
def test_a_stopped_run_ends_the_agent_and_its_tool(case: Case) -> None:
    with case.start("slow-tool") as process:
        wait_for(case.project.file("tool.pid").exists, process)
        process.send_signal(signal.SIGTERM)
        run = case.finish(process)
    assert (run["status"], run["exit_code"]) == ("interrupted", 143)


@quick_hosts
def test_what_an_agent_of_a_killed_run_left_is_ended_before_it_is_asked_again(case: Case) -> None:
    with case.start("slow-tool-once") as process:
        wait_for(case.project.file("tool.pid").exists, process)
        assert case.left_behind()
        process.send_signal(signal.SIGUSR1)
        run = case.finish(process)
    assert (run["status"], run["final_state"]) == ("completed", "done")
    assert case.turns == 2


@quick_hosts
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_agent_that_falls_silent_is_ended(case: Case, backend: str) -> None:
    run = case.run("hang", backend, ask={**ASK, "idle_timeout": 4})
    assert (run["status"], run["final_state"]) == ("failed", "failed")
    assert case.actions[0]["exit_code"] == 124


@quick_hosts
def test_what_a_tool_left_in_the_background_ends_with_the_turn(case: Case) -> None:
    run = case.run("background")
    assert (run["status"], run["final_state"]) == ("completed", "done")
    assert case.project.file("tool.pid").exists()


@quick_hosts
def test_a_background_process_that_holds_the_output_is_not_waited_for(case: Case) -> None:
    run = case.run("background-holding-output")
    assert (run["status"], run["final_state"]) == ("completed", "done")
    assert case.project.file("tool.pid").exists()


GEMINI_ACP = {"acp": ["gemini", "--acp", "--skip-trust"]}


@pytest.mark.parametrize("host", ["gemini"])
def test_an_agent_is_reached_by_its_protocol(case: Case) -> None:
    run = case.run("tool", ask={**ASK, "host": GEMINI_ACP})
    assert (run["status"], run["final_state"]) == ("completed", "done")
    assert case.project.lines("proof.txt") == ["TOOL-RAN"]
    [reply] = case.replies
    assert (case.actions[0]["output_preview"], reply["host"]) == ("DONE-TOOL", "acp")
    assert not {"unknown", "left_out"} & reply.keys()


@pytest.mark.parametrize("host", ["gemini"])
def test_a_failure_is_told_by_its_protocol(case: Case) -> None:
    run = case.run("e401", ask={**ASK, "host": GEMINI_ACP})
    assert (run["status"], run["final_state"]) == ("failed", "failed")
    assert case.replies[0]["failure"] == "auth"


def tokens(action: Any) -> tuple[int, int, int]:
    return action["input_tokens"], action["cache_read_tokens"], action["output_tokens"]


def wait_for(true: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Wait until something holds that no event tells of, while the process runs."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
