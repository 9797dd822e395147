"""What the configuration, program.md and their flags do to runs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from ll_loop import api
from ll_loop.api import Request, Session
from ll_loop.core.simulate import Play
from ll_loop.errors import DefinitionError, RefusedError
from ll_loop.files.library import Library
from ll_loop.run.children.procs import own_identity
from ll_loop.run.locking.locks import normalise
from ll_loop.run.locking.mirror import Mirror
from projects import Project

SAY = "context:\n  topic: none\ninput_key: topic\n"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def configure(project: Project, **sections: Any) -> None:
    folder = project.folder / ".ll"
    folder.mkdir(exist_ok=True)
    (folder / "ll-config.json").write_text(json.dumps(sections))


def git(project: Project, env: Mapping[str, str] | None, *commands: Sequence[str]) -> None:
    for words in commands:
        subprocess.run(["git", *words], cwd=project.folder, env=env, check=True)


async def run(project: Project, *names: str, **options: Any) -> None:
    async with Session(project.folder, grace=1) as session:
        handles = [session.start(name, **options) for name in names]
    assert [handle.result.status for handle in handles if handle.result] == ["completed"] * len(names)


# --- loops -------------------------------------------------------------------------------------------------


async def test_loops_and_runs_are_where_the_configuration_says(tmp_path: Path) -> None:
    project = Project(tmp_path / "elsewhere")
    project.loop("a", "true")
    folder = tmp_path / "project"
    folder.mkdir()
    (tmp_path / "elsewhere" / ".loops").rename(folder / "automation")
    moved = Project(folder)
    configure(moved, loops={"loops_dir": "automation"})
    assert [entry.name for entry in Library(folder).list() if not entry.built_in] == ["a"]
    await run(moved, "a")
    [stored] = api.history(folder)
    assert stored.folder.parent == folder / "automation" / "runs"
    assert api.stored_state(folder, stored.run_id)["status"] == "completed"
    assert (folder / "automation" / ".running").is_dir()
    assert list((folder / ".loops").iterdir()) == []


async def test_files_of_runs_are_no_change_of_the_tree_wherever_they_are(project: Project) -> None:
    project.loops.rename(project.folder / "automation")
    configure(project, loops={"loops_dir": "automation"})
    text = (
        "name: a\ninitial: look\nscope: [x]\nmax_steps: 3\nstates:\n"
        "  look:\n    action_type: shell\n    action: date +%N > ${context.run_dir}/n\n"
        "    evaluate: {type: diff_stall}\n    on_yes: look\n    on_no: done\n  done: {terminal: true}\n"
    )
    (project.folder / "automation" / "a.yaml").write_text(text)
    git(project, None, ["init", "-q"])
    await run(project, "a")


async def test_a_run_waits_for_other_processes_as_long_as_the_configuration_says(project: Project) -> None:
    project.loop("a", "touch ran", scope="src")
    configure(project, loops={"queue_wait_timeout_seconds": 1})
    other = Mirror(project.locks, identity=own_identity(), fold_case=False, sweeps=False)
    paths = [str(path) for path in normalise(["src"], project.folder)]
    assert await other.claim("other", "other", paths, False) is None
    async with Session(project.folder) as session:
        with anyio.fail_after(10):
            result = await session.start("a").wait()
    assert (result.status, result.exit_code, result.error) == ("refused", 75, "the scope of a was not free within 1 s")
    await other.drop("other")
    assert not project.file("ran").exists()


async def test_the_pause_between_steps_is_that_of_the_project_unless_the_start_says_otherwise(
    project: Project,
) -> None:
    project.loop("a", "true", head="backoff: 0\n")
    configure(project, loops={"run_defaults": {"delay": 4}})
    session = Session(project.folder)
    assert session.prepare(Request("a")).loop.backoff == 4
    assert session.prepare(Request("a", delay=0)).loop.backoff == 0


# --- context -----------------------------------------------------------------------------------------------


async def test_thresholds_come_from_the_loop_then_the_project_and_reach_sub_loops(project: Project) -> None:
    show = 'echo "$0 ${context.readiness_threshold} ${context.outcome_threshold} ${context.include:default=-}" >> said'
    project.loop("kid", show.replace("$0", "kid"))
    project.loop(
        "own", show.replace("$0", "own"), head="config: {commands: {confidence_gate: {outcome_threshold: 5}}}\n"
    )
    project.loop("a", show.replace("$0", "top"))
    text = (project.loops / "a.yaml").read_text()
    calls = "  kid: {loop: kid, with: {x: 1}, next: own}\n  own: {loop: own, next: done}\n"
    (project.loops / "a.yaml").write_text(text.replace("next: done", "next: kid").replace("  done:", calls + "  done:"))
    configure(
        project,
        commands={"confidence_gate": {"readiness_threshold": 91, "outcome_threshold": 61}},
        loops={"run_defaults": {"include": "src"}},
    )
    await run(project, "a")
    assert project.lines("said") == ["top 91 61 src", "kid 91 61 -", "own 91 5 -"]


async def test_a_program_wins_over_the_input_and_is_beaten_by_context(project: Project) -> None:
    project.loop("a", 'echo "${context.topic} ${context.budget} ${context.size}" > said', head=SAY)
    (project.folder / ".ll").mkdir()
    (project.folder / ".ll" / "program.md").write_text("## Benchmark\ntopic: stolen\nsize: 1\n## Budget\nten\n")
    async with Session(project.folder) as session:
        session.start_request(Request("a", "mine", texts=(("size", "2"),)))
    assert project.lines("said") == ["stolen ten 2"]


async def test_another_program_can_be_named(project: Project) -> None:
    project.loop("a", "echo ${context.budget} > said")
    (project.folder / "other.md").write_text("## Budget\nother\n")
    await run(project, "a", program_md=project.folder / "other.md")
    assert project.lines("said") == ["other"]


def test_simulate_fills_the_context_as_a_run_does(project: Project) -> None:
    project.loop("a", "echo ${context.budget} ${context.readiness_threshold}")
    configure(project, commands={"confidence_gate": {"readiness_threshold": 7}})
    (project.folder / ".ll" / "program.md").write_text("## Budget\nten\n")
    actions = [
        event.fields["action"]
        for event in api.simulate(Library(project.folder), Request("a"), Play("all-pass").answer)
        if event.name == "action_start"
    ]
    assert actions == ["echo ten 7\n"]


# --- environment -------------------------------------------------------------------------------------------


async def test_actions_see_what_the_env_file_sets_unless_the_process_says_otherwise(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.loop("a", 'echo "$FROM_FILE $FROM_BOTH ${env.FROM_FILE}" > said')
    (project.folder / ".env").write_text('FROM_FILE="of the file"\nFROM_BOTH=file\n')
    monkeypatch.setenv("FROM_BOTH", "process")
    await run(project, "a")
    assert project.lines("said") == ["of the file process of the file"]
    assert "FROM_FILE" not in os.environ


@pytest.mark.parametrize("flag", [None, 50])
async def test_actions_learn_the_handoff_threshold(project: Project, flag: int | None) -> None:
    project.loop("a", 'echo "$LL_HANDOFF_THRESHOLD $LL_CONTEXT_LIMIT" > said', head="config: {handoff_threshold: 42}\n")
    env = {**os.environ, "LL_HANDOFF_THRESHOLD": "33"}
    async with Session(project.folder, env=env) as session:
        session.start_request(Request("a", handoff_threshold=flag, context_limit=flag and 1000))
    assert project.lines("said") == [f"{flag} 1000" if flag else "42 "]


# --- worktrees ---------------------------------------------------------------------------------------------


async def test_worktrees_are_where_the_configuration_says_with_the_files_it_names(project: Project) -> None:
    project.loop("a", "pwd > /dev/stderr; pwd; cat secret.txt .env 2>&1", route="next")
    configure(project, automation={"worktree_base": "../trees"}, parallel={"worktree_copy_files": ["secret.txt"]})
    identity = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env = {**os.environ, **identity}
    git(project, env, ["init", "-q"], ["add", "."], ["commit", "-q", "-m", "start"])
    project.file("secret.txt").write_text("copied\n")
    project.file(".env").write_text("NOT=copied\n")
    async with Session(project.folder, env=env) as session:
        handle = session.start("a", worktree=True)
    assert handle.result is not None
    said = [record["line"] for record in project.records(handle.run_id) if record["event"] == "action_output"]
    assert any(line.startswith(f"{project.folder.parent}/trees/a-") for line in said)
    assert "copied" in said
    assert "cat: .env: No such file or directory" in said


# --- what is wrong -----------------------------------------------------------------------------------------


def test_nothing_starts_under_a_wrong_configuration(project: Project) -> None:
    project.loop("a", "true")
    configure(project, loops={"loops_dir": 5})
    with pytest.raises(DefinitionError, match="loops_dir"):
        Session(project.folder)
    with pytest.raises(DefinitionError, match="loops_dir"):
        Library(project.folder)
    with pytest.raises(DefinitionError, match="loops_dir"):
        api.history(project.folder)


async def test_a_given_configuration_counts_and_nothing_is_read(project: Project) -> None:
    configure(project, loops={"loops_dir": 5})
    assert Session(project.folder, config=api.Config()).loops_dir == project.loops


# --- caps --------------------------------------------------------------------------------------------------


async def test_a_run_makes_as_many_passes_as_its_start_says(project: Project) -> None:
    project.loop("a", "echo ran >> said", head="maintain: true\nmax_steps: 50\n")
    async with Session(project.folder) as session:
        result = await session.start("a", max_iterations=2).wait()
    assert (result.terminated_by, result.resumable) == ("max_iterations_reached", True)
    assert len(project.lines("said")) == 2


async def test_a_raised_pass_cap_lets_a_run_go_on(project: Project) -> None:
    project.loop("a", "echo ran >> said", head="maintain: true\nmax_steps: 50\nmax_iterations: 1\n")
    async with Session(project.folder) as session:
        first = await session.start("a").wait()
        stored = api.stored_run(project.folder, first.run_id)
        with pytest.raises(RefusedError, match="pass cap") as refused:
            session.resume(stored, max_steps=90)
        assert refused.value.hint == "raise it: --max-iterations 2"
        result = await session.resume(stored, max_iterations=3).wait()
    assert (result.terminated_by, len(project.lines("said"))) == ("max_iterations_reached", 3)
    async with Session(project.folder) as session:
        [again] = api.resume(session, first.run_id, max_iterations=4)
    assert again.result is not None
    assert len(project.lines("said")) == 4


async def test_a_cap_can_be_raised_before_the_first_state(project: Project) -> None:
    """Also when the run is cut off again before it begins, or after it did."""
    project.loop("a", "echo 1 >> said", "echo 2 >> said; test -e go || exit 1", "echo 3 >> said", head="max_steps: 1\n")
    async with Session(project.folder) as session:
        waiting = session.start("a")
        waiting.cancel()
    assert (waiting.status, project.lines("said")) == ("interrupted", [])
    async with Session(project.folder) as session:
        [again] = api.resume(session, waiting.run_id, max_steps=2)
        again.cancel()
    assert project.lines("said") == []
    async with Session(project.folder) as session:
        [third] = api.resume(session, waiting.run_id)
    assert third.result is not None
    assert (third.result.terminated_by, project.lines("said")) == ("max_steps", ["1", "2"])
    project.file("go").touch()
    async with Session(project.folder) as session:
        [fourth] = api.resume(session, waiting.run_id, max_steps=9)
    assert fourth.result is not None
    assert (fourth.result.status, project.lines("said")) == ("completed", ["1", "2", "3"])
