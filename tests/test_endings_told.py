"""What a whole run tells of itself is so: where it went, what it did, and why it ended. Whole runs, both backends."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import anyio
import pytest

from ll_loop import api
from ll_loop.core.endings import exit_code_of, status_of
from ll_loop.core.model import Ending, Status, TerminatedBy
from ll_loop.files.library import Library
from ll_loop.run.journals.request import Request, RunResult
from ll_loop.run.session import Session
from projects import LIMIT, Project, eventually, only

HEAD = "name: {name}\ndescription: A sample.\nscope: [{name}]\ninitial: a\n"
ENDS = "  done: {terminal: true}\n  failed: {terminal: true}\n"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def write(project: Project, states: str, name: str = "a", head: str = "") -> None:
    lines = "".join(f"  {line.strip()}\n" for line in states.strip().splitlines())
    (project.loops / f"{name}.yaml").write_text(HEAD.format(name=name) + head + "states:\n" + lines + ENDS)


async def run(project: Project, name: str = "a") -> RunResult:
    async with Session(project.folder) as session:
        with anyio.fail_after(LIMIT):
            return await session.start(name).wait()


def outputs(project: Project, result: RunResult) -> list[str]:
    return [str(record["line"]) for record in only(project.records(result.run_id), "action_output")]


def warnings(project: Project, result: RunResult) -> list[str]:
    return [str(record["message"]) for record in only(project.records(result.run_id), "warning")]


# --- what states hand on -----------------------------------------------------------------------------------


async def test_a_next_state_is_what_prev_and_its_capture_show(project: Project) -> None:
    write(
        project,
        """
        a: {action: 'echo first', next: b}
        b: {action: 'echo second; exit 3', capture: k, next: c}
        c: {action: 'echo "${prev.state} ${prev.exit_code} ${captured.k.exit_code} ${captured.k.output}"', next: done}
        """,
    )
    assert outputs(project, await run(project))[-1] == "b 3 3 second"


async def test_a_sub_loop_tells_of_its_latest_call_only(project: Project) -> None:
    write(project, "a: {action: 'test -e twice', on_yes: done, on_no: failed}", "kid")
    write(
        project,
        """
        a: {loop: kid, on_yes: b, on_no: b}
        b: {action: 'echo "[${captured.a.failure_terminal?}] ${captured.a.terminated_by}"; test -e twice', on_yes: done,
        on_no: c}
        c: {action: 'touch twice', next: a}
        """,
    )
    assert outputs(project, await run(project)) == ["[True] terminal", "[] terminal"]


async def test_a_sub_loop_lives_in_the_world_of_its_parent(project: Project) -> None:
    tell = "pwd; echo $LL_LOOP_RUN_ID $LL_LOOP_RUN_IDS $LL_PYTHON $OWN; echo ${context.run_dir}"
    write(project, f"a: {{action: '{tell}', next: done}}", "kid")
    write(project, f"a: {{action: '{tell}', next: b}}\n b: {{loop: kid, with: {{x: 1}}, on_yes: c, on_no: failed}}")
    more = "  c: {loop: kid, context_passthrough: true, on_yes: d, on_no: failed}\n"
    with (project.loops / "a.yaml").open("a") as file:
        file.write(f"{more}  d: {{action: '{tell}', next: done}}\n")
    async with Session(project.folder, env={"PATH": "/usr/bin:/bin", "OWN": "mine"}) as session:
        result = await session.start("a").wait()
    told = outputs(project, result)
    assert told[:3] == told[3:6] == told[6:9] == told[9:]
    assert (len(told), told[0], result.run_id in told[1], " mine" in told[1]) == (12, str(project.folder), True, True)
    with_input = only(project.records(result.run_id), "run_created")[0]["context"]
    assert told[2] == with_input["run_dir"]


# --- markers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("marker", "ended"),
    [("FATAL_ERROR: no", "error"), ("LOOP_STOP: no", "interrupted"), ("CONTEXT_HANDOFF: no", "handoff")],
)
async def test_a_marker_counts_however_deep_it_is_printed(project: Project, marker: str, ended: str) -> None:
    project.file("deep.sh").write_text(f"bash -c 'bash -c \"echo {marker}\"; true'; true\n")
    write(project, "a: {action: 'bash deep.sh; true', next: b}\n b: {action: 'true', next: done}")
    result = await run(project)
    assert result.terminated_by == ended, result
    assert [record["state"] for record in only(project.records(result.run_id), "state_enter")] == ["a"]


async def test_a_marker_on_stderr_is_only_text(project: Project) -> None:
    write(project, "a: {action: 'echo \"FATAL_ERROR: no\" >&2', next: done}")
    assert (await run(project)).exit_code == 0


# --- endings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", get_args(TerminatedBy))
@pytest.mark.parametrize("failure", [False, True])
def test_every_ending_has_a_status_and_an_exit_code(by: TerminatedBy, failure: bool) -> None:
    for signal in (0, 1, 2, 15):
        ending = Ending(by, "a", failure_terminal=failure, signal=signal)
        assert status_of(ending) in get_args(Status)
        assert exit_code_of(ending) in (0, 1, 2, 70, 75, 129, 130, 143)
        assert (exit_code_of(ending) == 0) == (by == "terminal" and not failure)


async def test_a_run_that_ran_nothing_says_so(project: Project) -> None:
    write(project, "a: {next: b}\n b: {on_yes: done, on_no: failed}")
    result = await run(project)
    assert result.exit_code == 0
    assert warnings(project, result) == ["the run has come to its end without running anything"]


async def test_work_in_a_sub_loop_is_work(project: Project) -> None:
    write(project, "a: {action: 'true', next: done, on_error: failed}", "kid")
    write(project, "a: {loop: kid, on_yes: done, on_no: failed}")
    assert warnings(project, await run(project)) == []


def test_a_terminals_action_is_said_never_to_run(project: Project) -> None:
    write(project, "a: {action: 'true', on_yes: end, on_no: end}\n end: {terminal: true, action: 'touch ran'}")
    (problem,) = [p for p in Library(project.folder).check("a")[1] if p.rule == "graph.terminal-action"]
    assert problem.line == 7


async def test_a_run_cut_off_between_two_states_says_that_it_was_cut_off(project: Project) -> None:
    write(project, "a: {action: 'touch begun', next: b}\n b: {action: 'true', next: done}", head="backoff: 60\n")
    async with Session(project.folder) as session:
        handle = session.start("a")
        await eventually(lambda: only(project.records(handle.run_id), "route"))
        handle.cancel()
        result = await handle.wait()
    assert (result.terminated_by, result.final_state, result.exit_code) == ("interrupted", "b", 130)
    async with Session(project.folder) as session:
        (again,) = api.resume(session, handle.run_id)
        assert (again.loop.max_steps, again.loop.backoff) == (50, 60)
        again.cancel()


# --- stalls ------------------------------------------------------------------------------------------------

PING_PONG = """
a: {action: 'false', on_yes: done, on_no: work, on_error: failed}
work: {action: 'WORK', next: a}
"""


@pytest.mark.parametrize(
    ("work", "ended"),
    [
        ("true", "stall_detected"),
        ("echo more >> src/log; date +%N > bookkeeping", "stall_detected"),
        ("echo more >> src/code", "max_steps"),
    ],
    ids=["nothing changes", "only what is excluded changes", "the work progresses"],
)
async def test_check_and_work_in_turns_stall_unless_something_changes(project: Project, work: str, ended: str) -> None:
    paths = "progress_paths: [src/code, src/log], exclude_paths: [src/log]"
    head = f"max_steps: 12\ncircuit: {{repeated_failure: {{window: 3, {paths}}}}}\n"
    write(project, PING_PONG.replace("WORK", work), head=head)
    project.file("src").mkdir()
    for name in ("code", "log"):
        project.file(f"src/{name}").touch()
    result = await run(project)
    assert (result.terminated_by, result.iterations) == (ended, 5 if ended == "stall_detected" else 12)


# --- a batch -----------------------------------------------------------------------------------------------


async def test_the_time_limit_of_one_leaves_the_rest_of_its_batch_alone(project: Project) -> None:
    for name in "bcd":
        project.loop(name, f"echo {name} >> done-{name}")
    slow = "a: {action: 'exec sleep 60', timeout: 0.1, on_yes: done, on_error: b}"
    write(project, f"{slow}\n b: {{action: 'true', next: b}}", head="max_steps: 3\n")
    results = await api.run_many([Request(name) for name in "bacd"], project=project.folder)
    assert [(result.loop, result.exit_code) for result in results] == [("b", 0), ("a", 1), ("c", 0), ("d", 0)]
    assert only(project.records(results[1].run_id), "action_complete")[0]["exit_code"] == 124
    assert [project.lines(f"done-{name}") for name in "bcd"] == [["b"], ["c"], ["d"]]
    async with Session(project.folder) as session:
        assert [handle.run_id for handle in api.resume(session, max_steps=4)] == [results[1].run_id]
