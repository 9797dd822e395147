"""Calls of MCP tools: a real server as a child, its answers as verdicts, and nothing left of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from ll_loop.core.effects import RunAction
from ll_loop.core.model import Loop
from ll_loop.run.children import procs
from ll_loop.run.journals.request import RunResult
from ll_loop.run.session import Session
from ll_loop.testing import Script, play
from loops_gen import library_in, load
from projects import LIMIT, Project, eventually, names, only

HERE = Path(__file__).parent
ROUTE = "route: {success: good, tool_error: bad, not_found: gone, timeout: late, _: other}"
ENDS = "".join(f"  {name}: {{terminal: true}}\n" for name in ("good", "bad", "gone", "late", "other"))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path / "project")
    servers = {
        "demo": {"command": sys.executable, "args": [str(HERE / "mcp_server.py")]},
        "small": {"command": sys.executable, "args": ["-S", str(HERE / "mcp_small.py")], "env": {"FLAVOUR": "mint"}},
        "absent": {"command": "/no/such/program"},
        "remote": {"type": "http", "url": "http://localhost:1/"},
        "mute": {"command": "sleep", "args": ["60"]},
        "dead": {"command": "bash", "args": ["-c", "echo no such luck >&2; exit 4"]},
    }
    project.file(".mcp.json").write_text(json.dumps({"mcpServers": servers}))
    return project


def write(project: Project, tool: str, more: str = "") -> str:
    head = "name: call\ninitial: a\nscope: [x]\ncontext: {two: 2}\nstates:\n"
    (project.loops / "call.yaml").write_text(
        f"{head}  a: {{action_type: mcp_tool, action: '{tool}', capture: got, {more}{ROUTE}}}\n{ENDS}"
    )
    return "call"


async def called(project: Project, tool: str, more: str = "") -> tuple[RunResult, dict[str, Any], dict[str, Any]]:
    """How the run ended, what its action was told to have done, and how it was judged."""
    async with Session(project.folder, grace=1) as session:
        run = session.start(write(project, tool, more))
        with anyio.fail_after(6 * LIMIT):  # importing the official package takes its time
            result = await run.wait()
        assert project.left_alive(run.run_id) == []
    records = project.records(run.run_id)
    return result, only(records, "action_complete")[0], only(records, "evaluate")[0]


# --- servers -----------------------------------------------------------------------------------------------


async def test_tools_of_a_real_server_are_called(project: Project) -> None:
    """One that is made with the official package."""
    result, action, verdict = await called(project, "demo/add", "params: {a: 40, b: '${context.two}'}, ")
    assert (result.final_state, action["exit_code"], action["is_prompt"]) == ("good", 0, False)
    envelope = json.loads(action["output_preview"])
    assert envelope == {
        "content": [{"type": "text", "text": "42"}],
        "isError": False,
        "structuredContent": {"result": 42},
    }
    assert (verdict["type"], verdict["verdict"], verdict["envelope"]) == ("default", "success", envelope)
    assert action["stderr_preview"] is None


async def test_a_tool_of_a_real_server_that_fails_is_a_tool_error(project: Project) -> None:
    result, action, verdict = await called(project, "demo/boom")
    assert (result.final_state, action["exit_code"], verdict["verdict"]) == ("bad", 1, "tool_error")
    assert "boom" in verdict["envelope"]["content"][0]["text"]


async def test_a_server_runs_where_the_run_does_with_its_own_variables(project: Project) -> None:
    _, action, _ = await called(project, "small/where")
    assert json.loads(action["output_preview"])["content"][0]["text"] == f"mint {project.folder}"


async def test_what_is_larger_than_any_pipe_goes_and_comes_whole(project: Project) -> None:
    async with Session(project.folder) as session:
        run = session.start(write(project, "small/long", "params: {size: 3000000}, "))
        assert (await run.wait()).final_state == "good"
        assert run.run is not None
        assert len(json.loads(run.run.root.captured["got"]["output"])["content"][0]["text"]) == 3000000
        write(project, "small/slow-to-read", "params: {text: '${context.long}'}, ")
        run = session.start("call", context={"long": "y" * 1000000})
        assert (await run.wait()).final_state == "good"
        assert '"1000000"' in only(project.records(run.run_id), "action_complete")[0]["output_preview"]


@pytest.mark.parametrize(("tool", "said"), [("small/nothing", "no tool"), ("small/nonsense", "cannot be understood")])
async def test_an_answer_that_is_no_result_is_a_tool_error(project: Project, tool: str, said: str) -> None:
    result, action, verdict = await called(project, tool)
    assert (result.final_state, action["exit_code"], verdict["verdict"]) == ("bad", 1, "tool_error")
    assert said in verdict["envelope"]["content"][0]["text"]


async def test_a_server_that_dies_in_a_call_is_a_tool_error_with_its_last_words(project: Project) -> None:
    result, action, verdict = await called(project, "small/die")
    assert (result.final_state, action["exit_code"], verdict["verdict"]) == ("bad", 1, "tool_error")
    assert "exit code 3" in action["output_preview"]
    assert "I am dying" in action["stderr_preview"]


def left_alive(project: Project) -> list[int]:
    pids = [int(pid) for pid in project.file("pids").read_text().split()]
    assert len(pids) == 2
    return [pid for pid in pids if (row := procs.read_row(pid)) and not row.zombie]


async def test_time_that_is_up_ends_the_server_and_what_it_started(project: Project) -> None:
    result, action, verdict = await called(project, "small/sleep", "timeout: 2, ")
    assert (result.final_state, action["exit_code"], verdict["verdict"]) == ("late", 124, "timeout")
    assert left_alive(project) == []


async def test_a_run_that_is_cut_off_in_a_call_leaves_nothing(project: Project) -> None:
    async with Session(project.folder, grace=1) as session:
        run = session.start(write(project, "small/sleep"))
        await eventually(project.file("pids").exists)
        run.cancel()
        with anyio.fail_after(LIMIT):
            assert (await run.wait()).status == "interrupted"
    assert left_alive(project) == []
    assert "action_complete" not in names(project.records(run.run_id))


# --- servers that are none ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "more", "state", "code", "text"),
    [
        ("nobody/x", "", "gone", 127, "no server `nobody`"),
        ("absent/x", "", "gone", 127, "/no/such/program"),
        ("remote/x", "", "bad", 2, "no `command`"),
        ("demo", "", "bad", 2, "SERVER/TOOL"),
        ("dead/x", "", "bad", 1, "exit code 4"),
        ("mute/x", "timeout: 0.3, ", "late", 124, "no answer within 0.3 s"),
        ("mute/x", "idle_timeout: 0.3, ", "late", 124, "silent for too long"),
    ],
)
async def test_what_is_wrong_with_a_server_is_told(
    project: Project, tool: str, more: str, state: str, code: int, text: str
) -> None:
    result, action, _ = await called(project, tool, more)
    assert (result.final_state, action["exit_code"]) == (state, code)
    assert text in action["output_preview"]


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [(None, 127, "no .mcp.json"), ("{", 2, "not JSON"), ("[]", 2, "mcpServers"), ('{"mcpServers": 1}', 2, "mapping")],
)
async def test_what_is_wrong_with_the_file_of_servers_is_told(
    project: Project, text: str | None, code: int, said: str
) -> None:
    path = project.file(".mcp.json")
    path.unlink() if text is None else path.write_text(text)
    _, action, _ = await called(project, "demo/add")
    assert action["exit_code"] == code
    assert said in action["output_preview"]


# --- as an action ------------------------------------------------------------------------------------------


def calling(tmp_path: Path, more: str) -> Loop:
    text = f"states:\n  a: {{action_type: mcp_tool, action: 's/${{context.tool}}', {more}}}\n{ENDS}"
    return load(library_in(tmp_path), f"context: {{tool: look}}\n{text}")


def effect_of(loop: Loop) -> RunAction:
    script = Script()
    play(loop, script.answer, context=loop.context)
    return next(effect for effect in script.performed if isinstance(effect, RunAction))


def test_a_call_has_half_a_minute_unless_the_loop_says_otherwise(tmp_path: Path) -> None:
    effect = effect_of(calling(tmp_path, "params: {deep: [{x: '${context.tool}'}]}, next: good"))
    assert (effect.text, effect.timeout) == ("s/look", 30)
    assert effect.arguments == {"deep": [{"x": "look"}]}
    assert effect_of(calling(tmp_path, "timeout: 90, next: good")).timeout == 90


def test_arguments_that_cannot_be_filled_in_take_the_error_route(tmp_path: Path) -> None:
    loop = calling(tmp_path, "params: {x: '${env.NO_SUCH_NAME}'}, next: good, on_error: bad")
    assert play(loop, Script().answer, context=loop.context)[1].root.state == "bad"


def test_a_project_without_the_package_is_told_how_to_get_it(project: Project) -> None:
    """The package is optional: a call in an interpreter without it says what to install."""
    write(project, "small/where")
    code = (
        "import sys; sys.modules['mcp'] = sys.modules['mcp_types'] = None\n"
        "from ll_loop.cli.border import main; sys.exit(main(['run', 'call', '--quiet']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=project.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [run] = project.run_folders()
    [action] = only(project.records(run.name), "action_complete")
    assert "pip install 'll-loop[mcp]'" in action["output_preview"]
