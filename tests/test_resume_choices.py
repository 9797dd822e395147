"""Resuming what failed, or from another place; and what nobody can know: said aloud, or asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from ll_loop import api
from ll_loop.cli.doubting import decide
from ll_loop.cli.words import note
from ll_loop.core.model import OnResume
from ll_loop.core.replay import ReplayError
from ll_loop.errors import NotFoundError, RefusedError, UsageError
from ll_loop.run.session import Session
from projects import Project, appears, eventually, only


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


async def test_the_failed_runs_of_a_batch_are_started_anew_as_they_were_asked_for(project: Project) -> None:
    project.loop("good", "echo good >> ran")
    bad = project.loops / "bad.yaml"
    bad.write_text(
        "name: bad\ninitial: a\nscope: [bad]\ncontext: {n: 1}\nstates:\n"
        "  a: {action: 'echo ${context.n} >> ran; test -e mended', on_yes: done, on_no: failed}\n"
        "  done: {terminal: true}\n  failed: {terminal: true}\n"
    )
    async with Session(project.folder) as session:
        handles = [session.start("bad", context={"n": 7}), session.start("good")]
        batch = session.batch
    assert [handle.status for handle in handles] == ["failed", "completed"]
    project.file("mended").touch()
    async with Session(project.folder) as session:
        [again] = api.resume(session, batch, failed=True)
        assert (await again.wait()).status == "completed"
    assert again.run_id != handles[0].run_id
    assert sorted(project.lines("ran")) == ["7", "7", "good"]
    async with Session(project.folder) as session:
        with pytest.raises(NotFoundError, match="no run of that batch failed"):
            api.resume(session, failed=True)  # the last batch is the one that went well


@pytest.mark.parametrize(
    ("policy", "said"), [("rerun", "runs again, attempt 2"), ("skip", "is skipped"), ("fail", "the run fails")]
)
async def test_an_action_in_doubt_is_told_aloud_on_resume(project: Project, policy: str, said: str) -> None:
    project.loop("a", "test -e go && exit; touch begun; sleep 30")
    path = project.loops / "a.yaml"
    path.write_text(path.read_text().replace("    next: done\n", f"    next: done\n    on_resume: {policy}\n"))
    async with Session(project.folder, grace=0.5) as session:
        run = session.start("a")
        await appears(project.file("begun"))
        run.cancel()
    project.file("go").touch()
    async with Session(project.folder) as session:
        [again] = api.resume(session, "a")
        await again.wait()
    [resumed] = only(project.records(run.run_id), "run_resumed")
    assert "the action of s1 was cut off" in note(resumed)
    assert said in note(resumed)


# --- asking ------------------------------------------------------------------------------------------------


async def _cut_off(project: Project, *names: str) -> list[str]:
    """Runs of these loops whose actions were cut off: each acts once more if it is told to."""
    for name in names:
        project.loop(name, f"test -e go && echo again >> {name}.ran && exit; touch {name}.begun; sleep 30", "true")
        path = project.loops / f"{name}.yaml"
        path.write_text(path.read_text().replace("    next: s2\n", "    next: s2\n    on_resume: ask\n"))
    async with Session(project.folder, grace=0.5) as session:
        runs = [session.start(name) for name in names]
        for name in names:
            await appears(project.file(f"{name}.begun"))
        session.shut_down()
    project.file("go").touch()
    return [run.run_id for run in runs]


async def test_a_run_whose_state_wants_somebody_asked_does_not_go_on_by_itself(project: Project) -> None:
    [run_id] = await _cut_off(project, "a")
    before = project.records(run_id)
    async with Session(project.folder) as session:
        with pytest.raises(RefusedError, match="the action of s1 was cut off") as refused:
            api.resume(session)
    assert f"`ll-loop resume {run_id} --in-doubt rerun|skip|fail`" in refused.value.hint
    assert project.records(run_id) == before
    assert [(one.run_id, one.state, one.attempt) for one in api.doubts(project.folder)] == [(run_id, "s1", 1)]
    assert (await api.why(project.folder, run_id))["resume"]["does"] == (
        "asks what to do with s1: --in-doubt rerun|skip|fail"
    )


@pytest.mark.parametrize(
    ("word", "status", "ran"), [("rerun", "completed", ["again"]), ("skip", "completed", []), ("fail", "failed", [])]
)
async def test_the_answer_decides_and_is_written_down(
    project: Project, word: OnResume, status: str, ran: list[str]
) -> None:
    [run_id] = await _cut_off(project, "a")
    async with Session(project.folder) as session:
        [run] = api.resume(session, in_doubt=word)
    assert (run.status, project.lines("a.ran") if project.file("a.ran").exists() else []) == (status, ran)
    [resumed] = only(project.records(run_id), "run_resumed")
    assert (resumed["policy"], resumed["in_doubt"]) == (word, word)
    steps = list(api.replay(project.folder, run_id))
    assert steps[-1]["terminated_by"] == ("terminal" if status == "completed" else "error")


class Typed:
    """Somebody who types these lines."""

    def __init__(self, *lines: str) -> None:
        self.lines = list(lines)

    def __enter__(self) -> Typed:
        return self

    def __exit__(self, *_: object) -> None: ...

    async def ready(self) -> None: ...

    async def read(self) -> str:
        return self.lines.pop(0) if self.lines else ""


async def test_at_a_terminal_each_run_is_asked_for(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    one, two = await _cut_off(project, "a", "b")
    said = await decide(api.doubts(project.folder), Typed("what?\n", "skip\n", "R\n"))
    assert said == {one: "skip", two: "rerun"}
    shown = capfd.readouterr().err
    assert "test -e go && echo again >> b.ran" in shown
    async with Session(project.folder) as session:
        runs = api.resume(session, in_doubt=said)
    assert [run.status for run in runs] == ["completed", "completed"]
    assert (project.file("a.ran").exists(), project.lines("b.ran")) == (False, ["again"])


async def test_no_answer_is_no_decision(project: Project) -> None:
    await _cut_off(project, "a")
    assert await decide(api.doubts(project.folder), Typed()) == {}
    assert api.doubts(project.folder, "nobody") == []


# --- from another place ------------------------------------------------------------------------------------

BUILD = """\
name: build
initial: plan
scope: [src]
context: {{n: 1{more}}}
max_steps: 20
states:
  plan: {{action: 'echo plan >> ran; echo made', capture: plan, next: make}}
  make: {{action: 'echo make >> ran; {make}', on_yes: ship, on_no: failed}}
  ship: {{action: '{ship}', next: done}}
  done: {{terminal: true}}
  failed: {{terminal: true, failure: true}}
"""
GOOD = "echo ship ${captured.plan.output} ${context.n} ${context.to} >> ran"


def _build(project: Project, *, make: str = "false", ship: str = "true", more: str = "") -> None:
    (project.loops / "build.yaml").write_text(BUILD.format(make=make, ship=ship, more=more))


async def test_a_failed_run_goes_on_at_a_state_of_its_mended_loop(project: Project) -> None:
    _build(project)
    async with Session(project.folder) as session:
        run = session.start("build", context={"n": 7})
    assert run.status == "failed"
    _build(project, ship=GOOD, more=", to: shop")
    async with Session(project.folder) as session:
        [again] = api.resume(session, run.run_id, from_state="ship")
        result = await again.wait()
    assert (result.status, result.iterations) == ("completed", 3)
    assert project.lines("ran") == ["plan", "make", "ship made 7 shop"]
    steps = list(api.replay(project.folder, run.run_id))
    assert steps[-1]["terminated_by"] == "terminal"


async def test_a_run_that_was_moved_on_goes_on_like_any_other(project: Project) -> None:
    """Its journal begins under one file and goes on under another."""
    _build(project, make="touch begun; sleep 30")
    async with Session(project.folder, grace=0.5) as session:
        run = session.start("build", context={"n": 7})
        await appears(project.file("begun"))
        run.cancel()
    project.file("begun").unlink()
    _build(project, make="true", ship="test -e go || { touch begun; sleep 30; }; " + GOOD, more=", to: shop")
    path = project.loops / "build.yaml"
    path.write_text(path.read_text().replace("scope: [src]", "scope: ['${context.to}']"))
    async with Session(project.folder) as session:
        with pytest.raises(ReplayError, match="was changed since") as refused:
            api.resume(session)
    assert f"`ll-loop resume {run.run_id} --from STATE`; the states of build are now: plan, make, ship, done" in (
        refused.value.hint
    )
    async with Session(project.folder, grace=0.5) as session:
        [again] = api.resume(session, from_state="make")
        await appears(project.file("begun"))
        again.cancel()
    project.file("go").touch()
    async with Session(project.folder) as session:
        [last] = api.resume(session)
    assert last.status == "completed"
    assert project.lines("ran") == ["plan", "make", "make", "ship made 7 shop"]
    resumed = only(project.records(run.run_id), "run_resumed")
    assert [record.get("policy") for record in resumed] == ["leave", "rerun"]
    assert "the run goes on from make" in note(resumed[0])


async def test_a_journal_is_gone_through_again_when_its_loop_file_is_another(project: Project) -> None:
    _build(project, make="true")
    async with Session(project.folder) as session:
        run = session.start("build")
    _build(project, make="something else", more=", to: shop")
    assert list(api.replay(project.folder, run.run_id))[-1]["terminated_by"] == "terminal"


async def test_a_run_is_moved_on_only_where_that_can_be_done(project: Project) -> None:
    _build(project)
    async with Session(project.folder) as session:
        run = session.start("build")
    before = project.records(run.run_id)
    async with Session(project.folder) as session:
        with pytest.raises(UsageError, match="has no state `shop`") as wrong:
            api.resume(session, run.run_id, from_state="shop")
        assert wrong.value.hint == "its states are: plan, make, ship, done, failed"
        with pytest.raises(UsageError, match="started anew"):
            api.resume(session, run.run_id, from_state="ship", failed=True)
    assert project.records(run.run_id) == before
    _build(project, make="true")
    async with Session(project.folder) as session:
        well = session.start("build")
    async with Session(project.folder) as session:
        with pytest.raises(RefusedError, match="has ended"):
            api.resume(session, well.run_id, from_state="ship")


async def test_a_sub_loop_that_is_over_may_be_changed(project: Project) -> None:
    project.loop("inner", "echo inner >> ran")
    (project.loops / "outer.yaml").write_text(
        "name: outer\ninitial: a\nscope: [src]\nstates:\n  a: {loop: inner, on_success: b, on_failure: done}\n"
        "  b: {action: 'test -e go && exit; touch begun; sleep 30', next: done}\n  done: {terminal: true}\n"
    )
    async with Session(project.folder, grace=0.5) as session:
        run = session.start("outer")
        await appears(project.file("begun"))
        run.cancel()
    project.file("go").touch()
    project.loop("inner", "false")
    async with Session(project.folder) as session:
        [again] = api.resume(session)
    assert (again.status, project.lines("ran")) == ("completed", ["inner"])


# --- other values ------------------------------------------------------------------------------------------

SAYS = "echo ${context.n} ${context.new:default=-} $LL_HANDOFF_THRESHOLD >> said"


async def _cut_off_saying(project: Project, head: str, *actions: str) -> str:
    project.loop("a", *actions, head=f"context: {{n: 1, api_key: none}}\n{head}")
    async with Session(project.folder, grace=0) as session:
        run = session.start("a")
        await appears(project.file("begun"))
        if "backoff" in head:
            await eventually(lambda: only(project.records(run.run_id), "route"))
        run.cancel()
    return run.run_id


@pytest.mark.parametrize(
    ("head", "actions", "said"),
    [
        ("", [SAYS, f"{SAYS}; touch begun; test -e go || sleep 60", SAYS], ["1 -", "1 -", "2 x 70", "2 x 70"]),
        ("backoff: 60\n", [f"{SAYS}; touch begun", SAYS, SAYS], ["1 -", "2 x 70", "2 x 70"]),
    ],
    ids=["in an action", "in a pause"],
)
async def test_a_run_goes_on_with_other_values_and_another_pause(
    project: Project, head: str, actions: list[str], said: list[str]
) -> None:
    run_id = await _cut_off_saying(project, head, *actions)
    project.file("go").touch()
    async with Session(project.folder) as session:
        [again] = api.resume(session, context=[("n", " 2"), ("new", "x")], delay=0, handoff_threshold=70)
        assert (await again.wait()).status == "completed"
    assert project.lines("said") == said
    [resumed] = only(project.records(run_id), "run_resumed")
    assert (resumed["values"], resumed["backoff"]) == ({"n": 2, "new": "x"}, 0)


async def test_other_values_outlive_a_second_crash(project: Project) -> None:
    project.loop("block", "touch held; sleep 60", scope="a")
    await _cut_off_saying(project, "", f"{SAYS}; touch begun; test -e go || sleep 60", SAYS)
    project.file("go").touch()
    async with Session(project.folder, grace=0) as session:
        session.start("block")
        await appears(project.file("held"))
        api.resume(session, "a", context={"n": 2})
        session.shut_down()  # while the run waits for its scope
    async with Session(project.folder) as session:
        [again] = api.resume(session, "a", context={"new": "y"})
        await again.wait()
    assert project.lines("said") == ["1 -", "2 y", "2 y"]


async def test_values_are_replaced_where_a_failed_run_is_started_anew(project: Project) -> None:
    project.loop("a", f"{SAYS}; test ${{context.n}} = 3", head="context: {n: 1}\nmax_steps: 1\n", route="on_yes")
    async with Session(project.folder) as session:
        await session.start("a", context={"n": 2, "new": "kept"}).wait()
    for number in (4, 3):
        async with Session(project.folder) as session:
            [again] = api.resume(session, failed=True, context=[("n", str(number))])
            await again.wait()
    assert project.lines("said") == ["2 kept", "4 kept", "3 kept"]
    assert again.status == "completed"


async def test_a_secret_value_is_not_taken_by_a_resume(project: Project) -> None:
    await _cut_off_saying(project, "", "touch begun; sleep 60")
    async with Session(project.folder) as session:
        with pytest.raises(UsageError, match="takes no secret value, and LL_CTX_api_key is one"):
            api.resume(session, context={"api_key": "sk-1234567890"})
