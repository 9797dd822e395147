"""What one agent session leaves to the next: handoffs with successors in the same run, and continued sessions."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import anyio
import pytest

from ll_loop import Session
from ll_loop.run.journals import recovery
from ll_loop.run.journals.request import Request, RunResult
from projects import LIMIT, Project, appears, names, only

AGENT = """\
#!/bin/bash
# An agent whose N-th call, told by a file, prints the N-th of its answers; it keeps its prompts and its words.
number=$(($(cat calls 2>/dev/null || echo 0) + 1)); echo $number > calls
cat > prompt-$number; echo "$*" >> words
answer=$(sed -n "${number}p" answers)
echo '{"type":"system","subtype":"init","model":"m","session_id":"session-'$number'"}'
echo '{"type":"assistant","message":{"content":[{"type":"text","text":"'"$answer"'"}]}}'
usage='"input_tokens":10,"output_tokens":1,"cache_read_input_tokens":0,"cache_creation_input_tokens":0'
echo '{"type":"result","usage":{'"$usage"'}}'
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "project")
    made.file("agent").write_text(AGENT)
    made.file("agent").chmod(0o755)
    return made


def write(project: Project, states: str, *answers: str, head: str = "") -> None:
    project.file("answers").write_text("".join(f"{answer}\n" for answer in answers))
    text = f"name: demo\ninitial: a\nscope: [demo]\n{head}states:\n{textwrap.indent(textwrap.dedent(states), '  ')}"
    text = text.replace("PROMPT", 'action_type: prompt, host: {command: [./agent, "s={session}"]}')
    (project.loops / "demo.yaml").write_text(text + "  done: {terminal: true}\n")


async def run(project: Project, **wishes: Any) -> tuple[RunResult, list[Any]]:
    async with Session(project.folder) as session:
        with anyio.fail_after(LIMIT * 3):
            result = await session.start_request(Request("demo", **wishes)).wait()
    return result, project.records(result.run_id)


SPAWN = "on_handoff: spawn\n"


async def test_a_successor_takes_over_in_the_same_run(project: Project) -> None:
    write(project, "a: {PROMPT, action: Do it., next: done}\n", "CONTEXT_HANDOFF: half is done", "all done", head=SPAWN)
    result, records = await run(project, max_tokens=1000)
    assert (result.status, result.iterations, result.usage["tokens"]) == ("completed", 2, 22)
    assert project.file("prompt-1").read_text() == "Do it."
    handed_over = project.file("prompt-2").read_text()
    assert "half is done" in handed_over
    assert handed_over.endswith("\n\nDo it.")
    [spawned] = only(records, "handoff_spawned")
    assert (spawned["state"], spawned["successor"], spawned["of"]) == ("a", 1, 3)
    assert names(records).count("loop_complete") == 1
    assert len({record["run_id"] for record in records}) == 1


@pytest.mark.parametrize(
    ("head", "wishes", "most"),
    [("", {}, 3), ("config: {automation: {max_continuations: 1}}\n", {}, 1), ("", {"max_successors": 0}, 0),
     ("config: {continuation: {max_continuations: 1}}\n", {"max_successors": 2}, 2)],
)  # fmt: skip
async def test_there_are_only_so_many_successors(project: Project, head: str, wishes: Any, most: int) -> None:
    answers = [f"CONTEXT_HANDOFF: part {number}" for number in range(1, 9)]
    write(project, "a: {PROMPT, action: Do it., next: done}\n", *answers, head=SPAWN + head)
    result, records = await run(project, **wishes)
    assert (result.status, result.terminated_by, result.exit_code) == ("awaiting_continuation", "handoff", 1)
    assert len(only(records, "handoff_spawned")) == most
    assert dict(result.handoff) == {"state": "a", "continuation": f"part {most + 1}", "successors": most}


async def test_the_project_says_how_many_successors_there_are(project: Project) -> None:
    (project.folder / ".ll").mkdir()
    (project.folder / ".ll" / "ll-config.json").write_text('{"automation": {"max_continuations": 1}}')
    write(project, "a: {PROMPT, action: Do it., next: done}\n", *["CONTEXT_HANDOFF: on"] * 3, head=SPAWN)
    assert (await run(project))[0].handoff["successors"] == 1


async def test_a_successor_spends_what_is_left_of_the_budget(project: Project) -> None:
    write(project, "a: {PROMPT, action: Do it., next: done}\n", *["CONTEXT_HANDOFF: on"] * 9, head=SPAWN)
    result, _ = await run(project, max_tokens=15, max_successors=9)
    assert (result.terminated_by, result.usage["tokens"]) == ("budget_exceeded", 22)


async def test_a_successor_takes_over_inside_a_sub_loop(project: Project) -> None:
    write(project, "a: {loop: inner, on_yes: done, on_no: done}\n", "CONTEXT_HANDOFF: half", "done", head=SPAWN)
    call = "a: {action_type: prompt, host: {command: [./agent]}, action: Do it., next: done}"
    inner = f"name: inner\ninitial: a\nscope: [demo]\nstates:\n  {call}\n  done: {{terminal: true}}\n"
    (project.loops / "inner.yaml").write_text(inner)
    result, records = await run(project)
    assert (result.status, len(only(records, "handoff_spawned"))) == ("completed", 1)


async def test_a_person_s_resume_hands_over_too_and_counts_anew(project: Project) -> None:
    write(project, "a: {PROMPT, action: Do it., next: done}\n", *["CONTEXT_HANDOFF: the rest"] * 3, "fine", head=SPAWN)
    result, _ = await run(project, max_successors=1)
    assert result.status == "awaiting_continuation"
    async with Session(project.folder) as session:
        [resumed] = session.resume_all([recovery.open_run(project.runs, result.run_id)])
        assert (await resumed.wait()).status == "completed"
    assert "the rest" in project.file("prompt-3").read_text()
    assert "the rest" in project.file("prompt-4").read_text()


async def test_a_killed_successor_is_resumed_with_what_it_was_given(project: Project) -> None:
    write(project, "a: {PROMPT, action: Do it., next: done}\n", "CONTEXT_HANDOFF: the rest", "fine", head=SPAWN)
    stop = "test $number != 2 || { touch here; exec sleep 60; }\n"
    project.file("agent").write_text(AGENT.replace("answer=$(", stop + "answer=$("))
    async with Session(project.folder, grace=0) as session:
        handle = session.start("demo")
        await appears(project.file("here"))
        session.shut_down()
    project.file("agent").write_text(AGENT)
    async with Session(project.folder) as session:
        [resumed] = session.resume_all([recovery.open_run(project.runs, handle.run_id)])
        assert (await resumed.wait()).status == "completed"
    assert "the rest" in project.file("prompt-3").read_text()


# --- continued sessions ----------------------------------------------------------------------------------------

CONTINUE = "session_mode: continue\n"


async def test_a_prompt_continues_the_session_of_the_one_before(project: Project) -> None:
    write(
        project,
        """\
        a: {PROMPT, action: one, next: b}
        b: {action: 'true', next: c}
        c: {PROMPT, action: two, next: d}
        d: {PROMPT, action: three, session_mode: fresh, next: e}
        e: {PROMPT, action: four, next: done}
        """,
        "x", "x", "x", "x",
        head=CONTINUE,
    )  # fmt: skip
    result, records = await run(project)
    assert result.status == "completed"
    assert project.lines("words") == ["s=", "s=session-1", "s=", "s="]
    assert only(records, "warning") == []


async def test_a_single_state_continues_its_own_session(project: Project) -> None:
    write(project, "a: {PROMPT, action: one, session_mode: continue, next: b}\n"
                   "b: {action: 'test $(cat calls) = 3', on_yes: done, on_no: a}\n", "x", "x", "x")  # fmt: skip
    assert (await run(project))[0].status == "completed"
    assert project.lines("words") == ["s=", "s=session-1", "s=session-2"]


async def test_a_session_is_continued_by_its_own_host_only(project: Project) -> None:
    write(project, "a: {PROMPT, action: one, next: b}\n"
                   "b: {action_type: prompt, action: two, host: fake, next: done}\n", "x", head=CONTINUE)  # fmt: skip
    result, records = await run(project)
    assert result.status == "completed"
    assert only(records, "warning") == []


async def test_a_failed_prompt_leaves_the_session_before_it_to_be_continued(project: Project) -> None:
    write(project, "a: {PROMPT, action: one, next: b}\n"
                   "b: {PROMPT, action: two, next: c, on_error: b2}\n"
                   "b2: {PROMPT, action: three, next: done}\n"
                   "c: {PROMPT, action: three, next: done}\n", "x", "x", "x", head=CONTINUE)  # fmt: skip
    text = project.file("agent").read_text()
    project.file("agent").write_text(text.replace("answer=$(", "test $number != 2 || exit 1\nanswer=$("))
    assert (await run(project))[0].status == "completed"
    assert project.lines("words") == ["s=", "s=session-1", "s=session-1"]


async def test_a_host_that_knows_no_sessions_is_told_of_in_a_warning(project: Project) -> None:
    write(project, "a: {PROMPT, action: one, next: b}\nb: {PROMPT, action: two, next: done}\n", "x", "x", head=CONTINUE)
    loop = project.loops / "demo.yaml"
    loop.write_text(loop.read_text().replace(', "s={session}"', ""))
    _, records = await run(project)
    [warning] = only(records, "warning")
    assert "session" in warning["message"]
