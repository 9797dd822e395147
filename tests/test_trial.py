"""Trying single states from a program: what a notebook can do, and what cancelling leaves."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from ll_loop.api import Request, Trial
from ll_loop.core.excerpt import again, only
from ll_loop.core.model import CURRENT, Loop, RepeatedFailure, Retry, Routes, Shell, State, Throttle
from ll_loop.errors import RefusedError
from ll_loop.run.children import procs
from projects import Project, appears


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


async def test_states_are_tried_one_after_the_other_and_leave_no_run(project: Project) -> None:
    project.loop("two", "echo first; echo other >&2", "exit 3", route="on_yes")
    async with Trial(project.folder) as trial:
        first = await trial.attempt(Request("two"), "s1")
        second = await trial.attempt(Request("two"), "s2")
        scratch = trial.runs
    assert (first.output, first.stderr, first.verdict, first.target, first.ok) == (
        "first",
        "other",
        "yes",
        "s2",
        True,
    )
    assert (second.exit_code, second.verdict, second.target, second.ok) == (3, "error", "", False)
    assert not scratch.exists()
    assert project.run_folders() == []
    assert project.lock_files() == []


async def test_a_cancelled_trial_ends_its_action_and_gives_the_scope_back(project: Project) -> None:
    project.loop("slow", "echo $$ > pid; sleep 60")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_try, project)
        await appears(project.file("pid"))
        tasks.cancel_scope.cancel()
    pid = int(project.lines("pid")[0])
    assert pid not in {row.identity.pid for row in procs.read_table().values() if not row.zombie}
    assert project.lock_files() == []


async def _try(project: Project) -> None:
    async with Trial(project.folder, grace=0.5) as trial:
        await trial.attempt(Request("slow"), "s1")


async def test_two_trials_in_one_scope_exclude_each_other(project: Project) -> None:
    project.loop("slow", "echo $$ > pid; sleep 60")
    async with Trial(project.folder, grace=0.5) as trial, anyio.create_task_group() as tasks:
        tasks.start_soon(trial.attempt, Request("slow", queue=False), "s1")
        await appears(project.file("pid"))
        with pytest.raises(RefusedError):
            await trial.attempt(Request("slow", queue=False), "s1")
        trial.shut_down()


def test_an_excerpt_runs_the_state_once_and_has_no_limits_of_the_loop() -> None:
    state = State(
        "a", Shell("x"), routes=Routes(on={"yes": "b", "no": CURRENT, "error": "a"}), retry=Retry(2, "b"),
        throttle=Throttle(), on_retry_exhausted="b",
    )  # fmt: skip
    loop = Loop("l", "b", {"a": state, "b": State("b", Shell("y"), routes=Routes(next="a"))}, timeout=1, backoff=5,
                maintain=True, max_iterations=1, circuit=RepeatedFailure())  # fmt: skip
    found = only(loop, "a")
    assert found.initial == "a"
    assert found.states["a"].routes.on == {
        "yes": "b",
        "no": again("a"),
        "error": again("a"),
        "cannot_judge": again("a"),
    }
    assert (found.states["a"].retry, found.states["a"].throttle) == (None, None)
    assert found.states["b"].terminal
    assert found.states[again("a")].terminal
    assert (found.timeout, found.backoff, found.maintain, found.max_iterations, found.circuit) == (
        None, 0, False, None, None,
    )  # fmt: skip


def test_what_was_printed_before_comes_from_states_that_print_it() -> None:
    loop = Loop("l", "a", {"a": State("a", Shell("x"), routes=Routes(next="a"))})
    found = only(loop, "a", {"one": "it's ${x}"}, "last")
    first, second = found.states["given 1"], found.states["given 2"]
    assert found.initial == "given 1"
    assert (first.capture, first.routes.next, first.work) == ("one", "given 2", Shell("printf %s 'it'\"'\"'s $${x}'"))
    assert (second.capture, second.routes.next, second.work) == (None, "a", Shell("printf %s last"))
    assert found.max_steps == 3
