"""What prompts may cost: ceilings of states, budgets of runs and batches, and what is reported of them."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import anyio
import pytest

from ll_loop import Session
from ll_loop.errors import RefusedError
from ll_loop.run.journals import recovery
from ll_loop.run.journals.request import Request, RunResult
from projects import LIMIT, Project, eventually, names, only

HAIKU = "init model=claude-haiku-4-5"
"""A million tokens in cost 1 dollar, a million out 5."""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def prompts(project: Project, name: str, *scripts: str, more: str = "") -> str:
    """A loop whose states are prompts, one after the other; `more` stands in each."""
    text = f"name: {name}\ninitial: s1\nscope: [{name}]\nstates:\n"
    for number, script in enumerate(scripts, 1):
        lines = textwrap.indent("\n".join(("@@fake", *script.split(";"), "@@end")), "      ")
        following = f"s{number + 1}" if number < len(scripts) else "done"
        text += f"  s{number}:\n    action_type: prompt\n    action: |\n{lines}\n{more}    next: {following}\n"
    (project.loops / f"{name}.yaml").write_text(text + "  done: {terminal: true}\n")
    return name


async def run(project: Project, name: str, **wishes: Any) -> tuple[RunResult, list[Any]]:
    async with Session(project.folder) as session:
        with anyio.fail_after(LIMIT * 3):
            result = await session.start_request(Request(name, host="fake", **wishes)).wait()
    return result, project.records(result.run_id)


async def resume(project: Project, run_id: str, **wishes: Any) -> RunResult:
    async with Session(project.folder, **wishes) as session:
        with anyio.fail_after(LIMIT * 3):
            return await session.resume(recovery.open_run(project.runs, run_id)).wait()


DEAR = f"{HAIKU};text ok;result in=1000000 out=0"


async def test_no_prompt_is_started_once_the_dollars_are_spent(project: Project) -> None:
    prompts(project, "demo", DEAR, DEAR, DEAR)
    result, records = await run(project, "demo", max_usd=1.5)
    assert (result.terminated_by, result.status, result.exit_code) == ("budget_exceeded", "interrupted", 1)
    assert (result.final_state, result.resumable) == ("s3", True)
    assert result.error == "budget used up: $2.00 of $1.50 are spent"
    assert len(only(records, "action_spawned")) == 2


async def test_a_run_goes_on_with_more_budget_and_its_counts_go_on(project: Project) -> None:
    prompts(project, "demo", DEAR, DEAR, DEAR)
    stopped, _ = await run(project, "demo", max_usd=1)
    with pytest.raises(RefusedError, match=r"would end at once: budget used up: \$1.00 of \$1.00"):
        await resume(project, stopped.run_id)
    stopped = await resume(project, stopped.run_id, max_usd=2)
    assert (stopped.terminated_by, stopped.usage["cost_usd"]) == ("budget_exceeded", 2)
    result = await resume(project, stopped.run_id, max_usd=9)
    assert (result.status, result.usage["cost_usd"], result.usage["turns"]) == ("completed", 3, 3)
    assert names(project.records(result.run_id)).count("action_start") == 3


async def test_tokens_are_bounded_too(project: Project) -> None:
    prompts(project, "demo", "text ok;result in=5 out=3 cache=2", "text ok;result in=1 out=1")
    result, _ = await run(project, "demo", max_tokens=10)
    assert result.error == "budget used up: 10 of 10 tokens are spent"


async def test_a_question_to_a_judge_is_not_asked_without_budget(project: Project) -> None:
    (project.loops / "demo.yaml").write_text(
        "name: demo\ninitial: a\nscope: [demo]\nstates:\n"
        "  a: {action_type: prompt, action: hello, on_yes: done, on_no: done}\n  done: {terminal: true}\n"
    )
    result, records = await run(project, "demo", max_tokens=1)
    assert (result.terminated_by, len(only(records, "action_spawned"))) == ("budget_exceeded", 1)


async def test_after_the_deadline_no_action_is_started(project: Project) -> None:
    project.loop("demo", "echo one", "echo two")
    result, records = await run(project, "demo", deadline=0)
    assert (result.terminated_by, result.exit_code) == ("budget_exceeded", 1)
    assert not only(records, "action_spawned")
    assert (await resume(project, result.run_id, deadline=600)).status == "completed"


async def test_a_batch_shares_its_budget_and_starts_no_run_without(project: Project) -> None:
    for name in ("one", "two", "three"):
        prompts(project, name, DEAR, DEAR)
    async with Session(project.folder, jobs=1, max_usd=3) as session:
        handles = [session.start_request(Request(name, host="fake")) for name in ("one", "two", "three")]
        results = [await handle.wait() for handle in handles]
    assert [result.terminated_by for result in results] == ["terminal", "budget_exceeded", "budget_exceeded"]
    assert results[1].error == "budget of the batch used up: $3.00 of $3.00 are spent"
    assert [result.exit_code for result in results] == [0, 1, 1]
    assert results[2].resumable
    assert not only(project.records(results[2].run_id), "state_enter")


async def test_a_batch_goes_on_with_more_and_remembers_what_its_ended_runs_spent(project: Project) -> None:
    for name in ("one", "two"):
        prompts(project, name, DEAR, DEAR)
    async with Session(project.folder, jobs=1, max_usd=3) as session:
        handles = [session.start_request(Request(name, host="fake")) for name in ("one", "two")]
        results = [await handle.wait() for handle in handles]
    with pytest.raises(RefusedError, match=r"\$3.00 of \$3.00"):
        await resume(project, results[1].run_id)
    with pytest.raises(RefusedError, match=r"\$3.00 of \$2.50"):
        await resume(project, results[1].run_id, max_usd=2.5)
    assert (await resume(project, results[1].run_id, max_usd=3.5)).status == "completed"


async def test_an_unknown_price_is_said_once_and_is_not_zero(project: Project) -> None:
    script = "init model=mystery;text ok;result in=7 out=1"
    prompts(project, "demo", script, script)
    result, records = await run(project, "demo", max_usd=1)
    assert result.status == "completed"
    [warning] = only(records, "warning")
    assert "the price of mystery is not known" in warning["message"]
    assert (result.usage["cost_usd"], result.usage["unpriced_models"]) == (None, ["mystery"])


async def test_a_hosts_own_figure_wins(project: Project) -> None:
    raw = 'raw {"type":"result","is_error":false,"result":"ok","usage":{"input_tokens":9},"total_cost_usd":0.25}'
    prompts(project, "demo", f"{HAIKU};text ok;{raw}")
    result, _ = await run(project, "demo")
    assert (result.usage["cost_usd"], result.usage["tokens"], result.usage["known_tokens"]) == (0.25, None, 9)


async def test_what_a_turn_cost_that_was_cut_off_is_unknown(project: Project) -> None:
    prompts(project, "demo", DEAR, f"{HAIKU};text ok;sleep 60;result in=1 out=1")
    async with Session(project.folder, grace=0) as session:
        handle = session.start_request(Request("demo", host="fake"))
        await eventually(lambda: len(only(project.records(handle.run_id), "action_spawned")) == 2)
        session.shut_down()
    first = (await handle.wait()).usage
    assert (first["turns"], first["cost_usd"], first["known_cost_usd"]) == (2, None, 1.0)
    async with Session(project.folder, max_usd=1) as session:  # another budget: it ends before the next turn
        resumed = session.resume(recovery.open_run(project.runs, handle.run_id))
        again = (await resumed.wait()).usage
    assert (again["turns"], again["known_cost_usd"]) == (2, 1.0)  # and is counted once


async def test_a_shell_run_tells_no_usage(project: Project) -> None:
    project.loop("demo", "true")
    result, records = await run(project, "demo")
    assert "usage" not in result.to_json()
    assert "usage" not in only(records, "loop_complete")[0]


# --- ceilings of states --------------------------------------------------------------------------------------

CEILING = "    cost_ceiling: {cost_warn_at: 1, cost_ceiling_per_state: 1.5}\n"


async def test_a_state_above_its_ceiling_ends_the_run(project: Project) -> None:
    prompts(project, "demo", f"{HAIKU};text ok;result in=2000000 out=0", more=CEILING)
    result, records = await run(project, "demo")
    assert (result.terminated_by, result.status, result.exit_code) == ("cost_ceiling_exceeded", "failed", 1)
    assert "more than its ceiling of $1.5" in (result.error or "")
    [event] = only(records, "cost_ceiling_exceeded")
    assert (event["cost_usd"], event["cost_ceiling_per_state"], event["action"]) == (2, 1.5, "abort")
    assert len(only(records, "cost_ceiling_warn")) == 1
    assert not only(records, "route")


async def test_a_ceiling_counts_its_own_state_and_warns_once(project: Project) -> None:
    prompts(project, "demo", DEAR, DEAR, more=CEILING)
    result, records = await run(project, "demo")
    assert result.status == "completed"
    assert [event["state"] for event in only(records, "cost_ceiling_warn")] == ["s1", "s2"]


async def test_a_ceiling_that_cannot_be_kept_says_so(project: Project) -> None:
    prompts(project, "demo", "init model=mystery;text ok;result in=7 out=1", more=CEILING)
    _, records = await run(project, "demo")
    assert only(records, "cost_ceiling_unknown")[0]["reason"] == "no price is known for mystery"


# --- calls within actions ----------------------------------------------------------------------------------


async def test_what_a_call_within_an_action_spends_is_spent_by_the_run_above(project: Project) -> None:
    """Of three dollars the run has spent one itself; its call gets two, and then nobody gets any more."""
    prompts(project, "inner", DEAR, DEAR, DEAR)
    prompts(project, "outer", DEAR, DEAR)
    path = project.loops / "outer.yaml"
    call = "  call: {action: 'll-loop run inner --host fake --quiet 2> said; true', next: s2}\n"
    path.write_text(path.read_text().replace("next: s2", "next: call").replace("  done:", f"{call}  done:"))
    result, _ = await run(project, "outer", max_usd=3)
    [inner] = [one for one in recovery.stored_runs(project.runs, recovery.run_ids(project.runs)) if one.parent]
    assert (inner.loop, inner.parent, inner.state) == ("inner", result.run_id, "s3")
    assert "budget of the run above used up: $2.00 of $2.00 are spent" in project.file("said").read_text()
    assert (result.terminated_by, result.final_state) == ("budget_exceeded", "s2")
    assert result.error == "budget used up: $3.00 of $3.00 are spent"
    async with Session(project.folder, max_usd=3) as session:  # and that is not forgotten
        with pytest.raises(RefusedError, match=r"\$3.00 of \$3.00 are spent"):
            session.resume(recovery.open_run(project.runs, result.run_id))
