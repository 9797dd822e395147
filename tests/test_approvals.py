"""States that ask a person: what is asked and told, where answers lead, who may answer, and what a resume does."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from ll_loop import api
from ll_loop.core.effects import AskHuman, HumanReply
from ll_loop.core.model import EMPTY, Loop
from ll_loop.core.simulate import SCENARIOS, Play
from ll_loop.errors import RefusedError, UsageError
from ll_loop.run.handle import RunHandle
from ll_loop.run.session import Session
from ll_loop.testing import Script, play
from loops_gen import library_in, load
from projects import LIMIT, Project, eventually, names, only

ASK = "action_type: human_approval, action: 'Ship ${context.what}?', timeout: 60"
ENDS = "".join(f"  {name}: {{terminal: true}}\n" for name in ("shipped", "kept", "edited", "late", "other", "failed"))


def asking(tmp_path: Path, routes: str, more: str = "") -> Loop:
    text = f"{more}context: {{what: it}}\nstates:\n  a: {{{ASK}, {routes}}}\n{ENDS}"
    return load(library_in(tmp_path), text)


# --- where answers lead ------------------------------------------------------------------------------------

PLAIN = "on_yes: shipped, on_no: kept"
ALL = f"{PLAIN}, on_edit: edited, on_timeout: late"
TABLE = 'route: {"yes": shipped, "no": kept, _: other}'
EDIT, TIMEOUT = HumanReply("edit", edit="that"), HumanReply("timeout")


@pytest.mark.parametrize(
    ("routes", "reply", "target"),
    [
        (PLAIN, HumanReply("approve"), "shipped"),
        (PLAIN, HumanReply("reject"), "kept"),
        (PLAIN, EDIT, "shipped"),
        (PLAIN, TIMEOUT, "kept"),
        (ALL, EDIT, "edited"),
        (ALL, TIMEOUT, "late"),
        (TABLE, HumanReply("approve"), "shipped"),
        (TABLE, EDIT, "other"),
        (TABLE, TIMEOUT, "other"),
        ('route: {"yes": shipped, "no": kept}', EDIT, "shipped"),
        ('route: {"yes": shipped, "no": kept}', TIMEOUT, "kept"),
        (f"{PLAIN}, on_edit: $current, max_retries: 1, on_retry_exhausted: other", EDIT, "other"),
    ],
)
def test_an_answer_leads_where_its_verdict_does(tmp_path: Path, routes: str, reply: HumanReply, target: str) -> None:
    _, run = play(asking(tmp_path, routes), Script({"a": reply}).answer, context={"what": "it"})
    assert run.root.state == target


def test_the_question_the_answer_and_the_capture_say_it_all(tmp_path: Path) -> None:
    reply = HumanReply("reject", reason="too late")
    events, run = play(asking(tmp_path, ALL), Script({"a": reply}).answer, context={"what": "v2"})
    assert [event.name for event in events] == [
        "loop_start", "state_enter", "human_approval_requested", "human_approval_resolved", "route", "loop_complete",
    ]  # fmt: skip
    asked = {"state": "a", "alert_id": "a-1", "prompt": "Ship v2?", "timeout": 60, "deadline_ts": ""}
    assert events[2].fields == {**asked, "captured_context": {}}
    assert events[3].fields == {
        "state": "a", "alert_id": "a-1", "verdict": "reject", "elapsed_seconds": 0, "route": "kept",
        "reason": "too late",
    }  # fmt: skip
    assert run.root.captured == {"a": {"output": "", "verdict": "reject", "edit": None, "reason": "too late"}}
    assert run.root.prev is None


def test_an_edit_is_the_output_of_the_state(tmp_path: Path) -> None:
    _, run = play(asking(tmp_path, ALL), Script({"a": "v3 instead"}).answer, context={"what": "v2"})
    assert run.root.captured["a"] == {"output": "v3 instead", "verdict": "edit", "edit": "v3 instead", "reason": None}


def test_nobody_is_asked_where_nobody_is(tmp_path: Path) -> None:
    script = Script(anyone=False)
    events, run = play(asking(tmp_path, ALL), script.answer, context={"what": "v2"})
    assert run.root.state == "late"
    assert "human_approval_requested" not in [event.name for event in events]
    assert run.root.captured["a"]["reason"] == "headless"
    assert not any(isinstance(effect, AskHuman) for effect in script.performed)


def _asked(loop: Loop) -> AskHuman:
    script = Script()
    play(loop, script.answer, context={"what": "it"})
    return next(effect for effect in script.performed if isinstance(effect, AskHuman))


def test_a_question_waits_no_longer_than_its_loop_has_left(tmp_path: Path) -> None:
    assert _asked(asking(tmp_path, PLAIN, "timeout: 20\n")).timeout == 20
    assert _asked(asking(tmp_path, PLAIN, "timeout: 100\n")).timeout == 60
    loop = load(library_in(tmp_path), f"states:\n  a: {{action_type: human_approval, action: Go?, {PLAIN}}}\n{ENDS}")
    assert _asked(loop).timeout == 1800


def test_a_question_that_cannot_be_made_takes_the_error_route(tmp_path: Path) -> None:
    text = (
        f"states:\n  a: {{action_type: human_approval, action: '${{env.NO_SUCH_NAME}}?', on_error: failed, {PLAIN}}}\n"
    )
    script = Script()
    events, run = play(load(library_in(tmp_path), text + ENDS), script.answer)
    assert run.root.state == "failed"
    assert "action_error" in [event.name for event in events]
    assert script.performed == []


def test_a_simulation_answers_as_its_scenario_says(tmp_path: Path) -> None:
    loop = asking(tmp_path, ALL)
    ends = {name: play(loop, Play(name).answer, context=loop.context)[1].root.state for name in SCENARIOS}
    assert ends == {
        "all-pass": "shipped", "all-fail": "kept", "all-error": "late", "first-fail": "kept", "alternating": "shipped",
    }  # fmt: skip


# --- runs --------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Project:
    found = Project(tmp_path / "project")
    write(found, "ship", ALL)
    return found


def write(project: Project, name: str, routes: str, ask: str = ASK, more: str = "") -> None:
    text = (
        f"name: {name}\ninitial: a\nscope: [{name}]\ncontext: {{what: it}}\n{more}states:\n  a: {{{ask}, {routes}}}\n"
    )
    (project.loops / f"{name}.yaml").write_text(text + ENDS)


async def asks(run: RunHandle) -> Mapping[str, Any]:
    await eventually(lambda: run.question)
    return run.question or EMPTY


async def test_a_run_waits_for_its_answer_and_takes_the_first_one(project: Project) -> None:
    async with Session(project.folder, attended=True) as session:
        run = session.start("ship")
        assert await asks(run) == {"id": "a-1", "state": "a", "text": "Ship it?"}
        with pytest.raises(UsageError, match="no answer"):
            await run.approve("perhaps")
        with pytest.raises(UsageError, match="needs the new text"):
            await run.approve("edit")
        await run.approve("no", "not on a Friday")
        with pytest.raises(RefusedError, match="asks nothing"):
            await run.approve("yes")
        assert (await run.wait()).final_state == "kept"
    resolved = only(project.records(run.run_id), "human_approval_resolved")[0]
    assert (resolved["verdict"], resolved["reason"]) == ("reject", "not on a Friday")


async def test_a_session_that_nobody_attends_waits_for_nobody(project: Project) -> None:
    async with Session(project.folder) as session:
        run = session.start("ship")
        assert (await run.wait()).final_state == "late"
    assert only(project.records(run.run_id), "human_approval_resolved")[0]["reason"] == "headless"


async def test_the_configuration_says_who_is_there_and_how_long_questions_wait(project: Project) -> None:
    project.file(".ll").mkdir()
    project.file(".ll/ll-config.json").write_text('{"hitl": {"channel": "eventbus", "default_timeout": 7}}')
    write(project, "plain", ALL, ask="action_type: human_approval, action: Go?")
    async with Session(project.folder) as session:
        run = session.start("plain")
        assert await asks(run)
        await run.approve("yes")
        assert (await run.wait()).final_state == "shipped"
    assert only(project.records(run.run_id), "human_approval_requested")[0]["timeout"] == 7


async def test_a_question_times_out(project: Project) -> None:
    write(project, "quick", ALL, ask="action_type: human_approval, action: Go?, timeout: 0.05")
    async with Session(project.folder, attended=True) as session:
        run = session.start("quick")
        assert (await run.wait()).final_state == "late"
        assert run.question is None
    assert only(project.records(run.run_id), "human_approval_resolved")[0]["reason"] is None


async def test_any_other_process_sees_the_question_and_answers_it(project: Project) -> None:
    async with Session(project.folder, attended=True) as session:
        run, second = session.start("ship"), session.start("ship", lock=False)
        question = await asks(run)
        [entry, _] = await api.status(project.folder)
        assert entry["question"] == question
        await asks(second)
        with pytest.raises(UsageError, match="2 runs of ship ask"):
            await api.approve(project.folder, "ship", "yes")
        with pytest.raises(UsageError, match="no answer"):
            await api.approve(project.folder, run.run_id, "maybe")
        assert await api.approve(project.folder, run.run_id, "edit", "something else") == question
        assert (await run.wait()).final_state == "edited"
        await api.approve(project.folder, "ship", "yes")
        assert (await second.wait()).final_state == "shipped"
        with pytest.raises(RefusedError, match="has ended already"):
            await api.approve(project.folder, run.run_id, "yes")


async def test_a_run_that_asks_nothing_cannot_be_answered(project: Project) -> None:
    project.loop("busy", "touch begun; sleep 30")
    async with Session(project.folder, grace=1) as session:
        run = session.start("busy")
        await eventually(project.file("begun").exists)
        with pytest.raises(RefusedError, match="asks nothing"):
            await api.approve(project.folder, "busy", "yes")
        run.cancel()


async def test_a_run_is_stopped_while_it_asks_and_asks_again_when_resumed(project: Project) -> None:
    async with Session(project.folder, attended=True) as session:
        run = session.start("ship")
        question = await asks(run)
        with anyio.fail_after(LIMIT):
            [result] = await api.stop(project.folder, "ship")
        assert (result.status, result.final_state, result.resumable) == ("user_stopped", "a", True)
        with pytest.raises(RefusedError):
            await run.approve("yes")
    assert [one["verdict"] for one in only(project.records(run.run_id), "human_approval_resolved")] == ["shutdown"]
    async with Session(project.folder, attended=True) as session:
        [again] = api.resume(session, run.run_id)
        assert await asks(again) == question
        await again.approve("y")
        assert (await again.wait()).final_state == "shipped"
    told = project.records(run.run_id)
    assert len(only(told, "state_enter")) == 1
    assert len(only(told, "human_approval_requested")) == 2


CRASHING = """
import os, sys, anyio
from ll_loop.api import Session
async def main():
    async with Session(sys.argv[1], attended=True) as session:
        run = session.start("two")
        async for record in run.events():
            if record["event"] == "human_approval_requested":
                if record["state"] == "b":
                    os.kill(os.getpid(), 9)
                await run.approve("edit", "so be it")
anyio.run(main)
"""


async def test_a_killed_run_keeps_its_answers_and_puts_only_the_open_question_again(project: Project) -> None:
    more = "action_type: human_approval, action: 'And ${captured.a.output}?', timeout: 60, on_yes: shipped, on_no: kept"
    write(project, "two", "on_yes: b, on_no: kept", more="")
    text = (project.loops / "two.yaml").read_text().replace(ENDS, f"  b: {{{more}}}\n{ENDS}")
    (project.loops / "two.yaml").write_text(text)
    died = await anyio.run_process([sys.executable, "-c", CRASHING, str(project.folder)], check=False)
    assert died.returncode == -9, died.stderr.decode()
    async with Session(project.folder, attended=True) as session:
        [run] = api.resume(session, "two")
        assert await asks(run) == {"id": "b-2", "state": "b", "text": "And so be it?"}
        await run.approve("yes")
        assert (await run.wait()).final_state == "shipped"
    asked = [record["state"] for record in only(project.records(run.run_id), "human_approval_requested")]
    assert asked == ["a", "b", "b"]
    assert names(project.records(run.run_id)).count("state_enter") == 2


async def test_a_run_resumed_where_nobody_is_goes_on_at_once(project: Project) -> None:
    async with Session(project.folder, attended=True) as session:
        run = session.start("ship")
        await asks(run)
        session.shut_down()
    async with Session(project.folder) as session:
        [again] = api.resume(session, run.run_id)
        with anyio.fail_after(LIMIT):
            assert (await again.wait()).final_state == "late"


async def test_the_answer_wakes_a_program_that_listens(project: Project) -> None:
    """A program may answer from the events alone."""
    async with Session(project.folder, attended=True) as session:
        run = session.start("ship")
        async with anyio.create_task_group() as tasks:
            async for record in run.events():
                if record["event"] == "human_approval_requested":
                    tasks.start_soon(run.approve, "yes")
        assert (await run.wait()).final_state == "shipped"
