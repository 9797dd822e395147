"""Prompt states in real runs: the scripted host takes the turns, and judges."""

from __future__ import annotations

import json
import os
import textwrap
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from ll_loop import Session, run_many
from ll_loop.files.library import Library
from ll_loop.run.journals import recovery
from ll_loop.run.journals.request import Request, RunResult
from projects import LIMIT, Project, eventually, names, only

ENV = {**os.environ, "LL_HOST_CLI": "fake"}
GOOD = {"verdict": "yes", "confidence": 0.9, "reason": "r", "evidence": "e"}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def write(project: Project, states: str, head: str = "") -> None:
    text = f"name: demo\ninitial: a\nscope: [demo]\n{head}states:\n{textwrap.indent(textwrap.dedent(states), '  ')}"
    (project.loops / "demo.yaml").write_text(
        text + "  done: {terminal: true}\n  bad: {terminal: true, failure: true}\n"
    )


def prompt(*lines: str, more: str = "") -> str:
    body = "\n".join(f"      {line}" for line in ("@@fake", *lines, "@@end"))
    return f"a:\n    action_type: prompt\n    action: |\n{body}\n    capture: w\n{textwrap.indent(more, '    ')}\n"


def judged_as(**opinion: Any) -> str:
    return rf"text @@fake\nresult structured={json.dumps({**GOOD, **opinion})}\n@@end"


async def run(project: Project, env: dict[str, str] = ENV, **wishes: Any) -> tuple[RunResult, list[Any]]:
    async with Session(project.folder, env=env) as session:
        with anyio.fail_after(LIMIT * 3):
            result = await session.start_request(Request("demo", **wishes)).wait()
    return result, project.records(result.run_id)


ROUTES = "on_yes: done\non_no: bad\non_error: bad\non_partial: done\n"


async def test_a_prompt_is_answered_and_judged(project: Project) -> None:
    write(project, prompt(judged_as(), "result in=5 out=3", more=ROUTES))
    result, records = await run(project)
    assert (result.status, result.final_state) == ("completed", "done")
    [action] = only(records, "action_complete")
    assert (action["is_prompt"], action["input_tokens"], action["output_tokens"]) == (True, 5, 3)
    [evaluation] = only(records, "evaluate")
    assert (evaluation["type"], evaluation["verdict"], evaluation["model_backend"]) == ("default", "yes", "fake")


@pytest.mark.parametrize(
    ("state", "head", "asked", "told"),
    [("effort: low\n", "llm: {effort: max}\n", "high", "low"), ("", "llm: {effort: max}\n", "high", "high"),
     ("", "llm: {effort: max}\n", "", "max"), ("", "", "", None)],
)  # fmt: skip
async def test_the_host_hears_how_hard_to_think(
    project: Project, state: str, head: str, asked: str, told: str | None
) -> None:
    write(project, prompt("result in=1 out=1", more=f"next: done\n{state}"), head)
    agent = project.folder / "bin/claude"
    agent.parent.mkdir()
    agent.write_text('#!/bin/sh\necho "$*" > argv\necho \'{"type": "result", "result": "ok"}\'\n')
    agent.chmod(0o755)
    env = {"PATH": f"{agent.parent}:{os.environ['PATH']}", "LL_HOST_CLI": "claude-code"}
    _, records = await run(project, env, effort=asked)
    words = (project.folder / "argv").read_text().split()
    assert (words[words.index("--effort") + 1] if "--effort" in words else None) == told
    assert only(records, "action_complete")[0].get("effort") == told


@pytest.mark.parametrize(
    ("state", "head", "told"),
    [
        ("pruning_profile: {name: slim}\n", "pruning_profile: {name: lean}\n", "1 slim"),
        ("", "pruning_profile: {suppress_catalog: true}\n", "1 default"),
        ("pruning_profile: {enabled: false}\n", "pruning_profile: {name: lean}\n", " "),
        ("", "", " "),
    ],
)
async def test_the_host_hears_of_its_pruning_profile(project: Project, state: str, head: str, told: str) -> None:
    write(project, prompt("result in=1 out=1", more=f"next: done\n{state}"), head)
    agent = project.folder / "bin/claude"
    agent.parent.mkdir()
    said = 'echo "$LL_AUTOMATION $LL_AUTOMATION_PROFILE" > env'
    agent.write_text(f'#!/bin/sh\n{said}\necho \'{{"type": "result", "result": "ok"}}\'\n')
    agent.chmod(0o755)
    path = f"{agent.parent}:{os.environ['PATH']}"
    await run(project, {"PATH": path, "LL_HOST_CLI": "claude-code", "LL_AUTOMATION": "of a run above"})
    assert (project.folder / "env").read_text().removesuffix("\n") == told


async def test_the_result_of_a_host_that_does_not_exit_counts(project: Project) -> None:
    project.file(".ll").mkdir()
    project.file(".ll/ll-config.json").write_text('{"orchestration": {"linger_seconds": 0.2}}')
    write(project, prompt("text fine", "result in=5 out=3", "hang", more="next: done\n"))
    result, records = await run(project)
    assert (result.status, result.usage["input_tokens"]) == ("completed", 5)
    assert only(records, "warning")[0]["message"] == "the host did not exit after its result, and was ended"


async def test_a_failed_host_is_an_error_that_no_judge_is_asked_about(project: Project) -> None:
    write(project, prompt("text half", "result error=boom", more="on_yes: bad\non_no: bad\non_error: done\n"))
    result, records = await run(project)
    assert result.final_state == "done"
    assert only(records, "evaluate")[0]["verdict"] == "error"
    assert "boom" in only(records, "action_complete")[0]["stderr_preview"]
    assert len(only(records, "action_spawned")) == 1


async def test_a_contract_is_judged_by_its_files_and_its_action_is_not_run(project: Project) -> None:
    (project.folder / "made.txt").write_text("x")
    agree = f"same\n@@fake\nresult structured={json.dumps(GOOD)}\n@@end"
    pair = json.dumps({"producer": "made.txt", "consumer": "made.txt", "contract": agree})
    keys = "action: touch ran\n  action_type: contract\n"
    write(project, f"a:\n  {keys}  evaluate: {{type: contract, pairs: [{pair}]}}\n  on_yes: done\n  on_no: bad\n")
    result, records = await run(project)
    assert result.final_state == "done"
    assert only(records, "evaluate")[0]["verdict"] == "yes"
    assert not (project.folder / "ran").exists()


async def test_without_any_host_the_state_fails_and_says_what_to_do(project: Project) -> None:
    write(project, prompt("text x", more="on_error: done\non_yes: bad\n"))
    bare = {"PATH": "/nowhere", "HOME": str(project.folder)}
    result, records = await run(project, bare)
    assert result.final_state == "done"
    assert "no agent host found" in only(records, "action_complete")[0]["stderr_preview"]


async def test_a_shell_state_can_be_judged_by_a_model(project: Project) -> None:
    write(
        project,
        rf"""
        a:
          action: echo fine
          evaluate:
            type: llm_structured
            prompt: |
              @@fake
              result structured={json.dumps({**GOOD, "verdict": "partial"})}
              @@end
          on_partial: done
          on_yes: bad
    """,
    )
    result, records = await run(project)
    assert result.final_state == "done"
    [evaluation] = only(records, "evaluate")
    assert (evaluation["type"], evaluation["verdict"], evaluation["evidence"]) == ("llm_structured", "partial", "e")


async def test_judging_can_be_switched_off(project: Project) -> None:
    write(project, prompt("text x", "result in=1 out=1", more="on_yes: bad\non_no: bad\non_error: done\n"))
    result, records = await run(project, no_llm=True)
    assert result.final_state == "done"
    assert len(only(records, "action_spawned")) == 1


@pytest.mark.parametrize("depth", [0, 2])
async def test_the_wishes_of_a_start_reach_the_host(project: Project, depth: int) -> None:
    (project.folder / "agent").write_text('#!/bin/bash\necho "$1"; cat > prompt\n')
    (project.folder / "agent").chmod(0o755)
    command = f"[{project.folder / 'agent'}, '{{model}}']"
    write(project, f"a: {{action: think, action_type: prompt, host: {{command: {command}}}, next: b, capture: w}}\n"
                   "b: {action: 'test \"${captured.w.output}\" = m7', on_yes: done, on_no: bad}\n")  # fmt: skip
    for level in range(depth):
        (project.loops / "demo.yaml").rename(project.loops / f"kid{level}.yaml")
        write(project, f"a: {{loop: kid{level}, on_yes: done, on_no: bad}}\n")
    result, _ = await run(project, model="m7")
    assert result.final_state == "done"
    assert (project.folder / "prompt").read_text() == "think"


async def test_a_rate_limit_that_the_host_tells_of_is_waited_out(project: Project) -> None:
    more = "max_rate_limit_retries: 1\nrate_limit_backoff_base_seconds: 1\nrate_limit_max_wait_seconds: 1\n"
    more += "rate_limit_long_wait_ladder: [1]\non_rate_limit_exhausted: done\non_yes: bad\non_no: bad\non_error: bad\n"
    write(project, prompt("result error=slow down status=429", more=more))
    result, records = await run(project)
    assert result.final_state == "done"
    assert len(only(records, "action_start")) == 2
    assert only(records, "rate_limit_exhausted")
    assert next(one["why"] for one in only(records, "host_waiting")) == "its rate limit"


async def test_text_about_rate_limits_is_no_rate_limit(project: Project) -> None:
    write(project, prompt("text the rate limit is 429 too many requests", "result in=1 out=1", more="next: done\n"))
    result, records = await run(project)
    assert result.final_state == "done"
    assert len(only(records, "action_start")) == 1


MARKERS = [("CONTEXT_HANDOFF", "handoff"), ("FATAL_ERROR", "error"), ("LOOP_STOP", "interrupted")]


@pytest.mark.parametrize(("marker", "ending"), MARKERS)
async def test_an_agent_acts_on_the_run_by_its_own_words_only(project: Project, marker: str, ending: str) -> None:
    source = f"grep says\\n  assert told == '{marker}: from a test'\\n{marker}: alone"
    read = {"type": "user", "message": {"content": [{"type": "tool_result", "content": source}]}}
    wrote = f"tool Write {json.dumps({'file_path': 'test_x.py', 'content': source})}"
    write(project, prompt(f"raw {json.dumps(read)}", wrote, "text done", "result in=1 out=1", more="next: done\n"))
    assert (await run(project))[0].status == "completed"
    write(project, prompt(f"text {marker}: go on there", "result in=1 out=1", more="next: done\n"))
    assert (await run(project))[0].terminated_by == ending


CUSTOM = "{type: object, properties: {verdict: {type: string, enum: [yes, no, ship]}}}"


def judging(verdict: str, schema: str) -> str:
    says = f"\n@@fake\nresult structured={json.dumps({**GOOD, 'verdict': verdict})}\n@@end"
    evaluate = f"{{type: llm_structured, prompt: {json.dumps(says)}{schema and f', schema: {schema}'}}}"
    return f"a:\n  action: echo fine\n  evaluate: {evaluate}\n  on_yes: bad\n  on_no: bad\n"


@pytest.mark.parametrize(("verdict", "schema"), [("partial", ""), ("blocked", ""), ("ship", CUSTOM)])
async def test_any_verdict_of_a_judge_follows_its_route(project: Project, verdict: str, schema: str) -> None:
    write(project, f"{judging(verdict, schema)}  on_{verdict}: done\n")
    assert (await run(project))[0].final_state == "done"


@pytest.mark.parametrize(("verdict", "schema"), [("partial", ""), ("ship", CUSTOM)])
async def test_a_verdict_that_nothing_takes_is_missed_before_the_run(
    project: Project, verdict: str, schema: str
) -> None:
    write(project, judging(verdict, schema))
    problems = Library(project.folder).check("demo")[1]
    unrouted = [problem for problem in problems if problem.rule in ("eval.verdict-unrouted", "graph.partial-dead-end")]
    assert any(verdict in problem.message for problem in unrouted), problems
    assert (await run(project))[0].terminated_by == "no_route"


async def test_a_resumed_run_does_not_judge_again(project: Project) -> None:
    write(project, prompt(judged_as(), "result in=1 out=1", more="on_yes: b\n") +
                   "b: {action: 'test -e go || sleep 60', on_yes: done, on_no: bad}\n")  # fmt: skip
    async with Session(project.folder, env=ENV, grace=0) as session:
        handle = session.start("demo")
        await eventually(lambda: handle.run is not None and handle.run.root.state == "b")
        await eventually(lambda: project.left_alive(handle.run_id))
        session.shut_down()
    project.file("go").touch()
    async with Session(project.folder, env=ENV) as session:
        [resumed] = session.resume_all([recovery.open_run(project.runs, handle.run_id)])
        result = await resumed.wait()
    assert result.final_state == "done"
    assert names(project.records(handle.run_id)).count("evaluate") == 2


async def test_prompts_run_beside_each_other(project: Project) -> None:
    write(project, prompt(judged_as(), "result in=1 out=1", more=ROUTES))
    for name in ("one", "two", "three"):
        text = (project.loops / "demo.yaml").read_text().replace("demo", name)
        (project.loops / f"{name}.yaml").write_text(text)
    requests = [Request(name, host="fake") for name in ("one", "two", "three")]
    results = await run_many(requests, project=project.folder)
    assert [result.status for result in results] == ["completed"] * 3


RATE = "max_rate_limit_retries: 3\nrate_limit_backoff_base_seconds: 600\n"


def limited(seconds: float) -> str:
    limit = {"status": "rejected", "resetsAt": time.time() + seconds}
    return json.dumps({"type": "rate_limit_event", "rate_limit_info": limit})


async def test_a_told_wait_takes_the_place_of_the_ladder(project: Project) -> None:
    end = '{"type":"result","is_error":true,"result":"slow down","api_error_status":429}'
    agent = f"#!/bin/bash\ntest -e again && echo fine && exit\ntouch again\necho '{limited(2)}'\necho '{end}'\n"
    (project.folder / "agent").write_text(agent)
    (project.folder / "agent").chmod(0o755)
    host = f"host: {{command: [{project.folder / 'agent'}]}}\n"
    write(project, prompt("", more=f"{host}{RATE}on_rate_limit_exhausted: bad\nnext: done\non_error: bad\n"))
    result, records = await run(project)
    assert result.final_state == "done"
    assert len(only(records, "action_start")) == 2


async def test_who_may_not_wait_so_long_gives_up_at_once_and_tells_others(project: Project) -> None:
    more = f"{RATE}rate_limit_max_wait_seconds: 60\non_rate_limit_exhausted: done\nnext: bad\n"
    write(project, prompt(f"raw {limited(3600)}", "result error=slow down status=429", more=more))
    result, records = await run(project)
    assert result.final_state == "done"
    assert only(records, "rate_limit_exhausted")[0]["total_wait_seconds"] == 0
    assert (project.loops / "tmp" / "rate-limit-circuit.json").exists()


async def test_prompts_go_through_the_host_whatever_the_request_path(project: Project) -> None:
    one = prompt("text x", "result in=1 out=1", more="request_path: batch\nnext: b\n")
    write(project, one + one.replace("a:", "b:", 1).replace("next: b", "next: done"))
    result, records = await run(project)
    assert result.status == "completed"
    [told] = only(records, "request_path_downgrade")
    assert told["requested"] == "batch"
