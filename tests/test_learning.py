"""Learning states: which records count, what is explored, and where they lead."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ll_loop.core.effects import ActionDone, Learned, RunAction
from ll_loop.core.learning import slug
from ll_loop.core.model import Loop
from ll_loop.run.performing.records import read_learning
from ll_loop.run.session import Session
from ll_loop.testing import Script, play
from loops_gen import library_in, lines, load, story
from projects import Project, names, only

ROUTES = "on_yes: known, on_blocked: blocked, on_no: no"
ENDS = "".join(f"  {name}: {{terminal: true}}\n" for name in ("known", "blocked", "no"))
PROVEN, REFUTED, STALE, MISSING = Learned("proven"), Learned("refuted"), Learned("stale"), Learned()


def learning(tmp_path: Path, block: str, routes: str = ROUTES, head: str = "") -> Loop:
    text = f"{head}states:\n  a: {{type: learning, learning: {{{block}}}, {routes}}}\n{ENDS}"
    return load(library_in(tmp_path), text)


def test_everything_proven_is_yes(tmp_path: Path) -> None:
    script = Script(learned={"x": PROVEN, "y api": PROVEN})
    events, _ = play(learning(tmp_path, "targets: [x, y api]"), script.answer)
    assert story(events) == lines("""
        loop_start
        state_enter a 1
        learning_target_proven state=a target=x
        learning_target_proven state=a target=y api
        learning_complete state=a targets=['x', 'y api']
        route a known
        loop_complete terminal known 1
    """)


def test_what_is_unknown_is_explored_and_looked_up_again(tmp_path: Path) -> None:
    script = Script(learned={"x": [MISSING, STALE, PROVEN]})
    events, _ = play(learning(tmp_path, "targets: [x]"), script.answer)
    assert story(events)[2:-1] == lines("""
        learning_target_stale state=a target=x cause=missing
        learning_explore_invoked state=a target=x attempt=1
        action_start /ll:explore-api x
        action_complete 0
        learning_target_stale state=a target=x cause=stale
        learning_explore_invoked state=a target=x attempt=2
        action_start /ll:explore-api x
        action_complete 0
        learning_target_proven state=a target=x
        learning_complete state=a targets=['x']
        route a known
    """)
    explored = [effect for effect in script.performed if isinstance(effect, RunAction)]
    assert [(one.text, one.prompt, one.state) for one in explored] == [("/ll:explore-api x", True, "a")] * 2
    assert all(event.fields["is_prompt"] for event in events if event.name == "action_complete")


@pytest.mark.parametrize(
    ("known", "routes", "target", "reason"),
    [
        (REFUTED, ROUTES, "blocked", "refuted"),
        (MISSING, ROUTES, "blocked", "retries_exhausted"),
        (STALE, "on_yes: known, on_no: no", "no", "retries_exhausted"),
    ],
)
def test_what_cannot_be_proven_blocks(tmp_path: Path, known: Learned, routes: str, target: str, reason: str) -> None:
    script = Script(learned={"x": PROVEN, "y": known})
    events, run = play(learning(tmp_path, "targets: [x, y, z], max_retries: 0", routes), script.answer)
    assert run.root.state == target
    [blocked] = [event.fields for event in events if event.name == "learning_blocked"]
    assert blocked == {"state": "a", "target": "y", "reason": reason}


def test_targets_and_retries_may_come_from_the_context(tmp_path: Path) -> None:
    block = "targets_csv: '${context.what}', max_retries: 5, max_retries_expr: '${context.times}'"
    loop = learning(tmp_path, block, head="context: {what: ' x ,, y', times: '1'}\n")
    script = Script(learned={"x": PROVEN})
    events, _ = play(loop, script.answer, context=loop.context)
    assert [event.fields["target"] for event in events if event.name == "learning_target_proven"] == ["x"]
    assert [event.fields["attempt"] for event in events if event.name == "learning_explore_invoked"] == [1]


def test_no_targets_at_all_are_said_to_prove_nothing(tmp_path: Path) -> None:
    loop = learning(tmp_path, "targets_csv: '${context.what}'", head="context: {what: ''}\n")
    events, run = play(loop, Script().answer, context=loop.context)
    assert run.root.state == "known"
    assert "nothing had to be proven" in next(event for event in events if event.name == "warning").fields["message"]


def test_a_number_that_is_none_ends_the_run(tmp_path: Path) -> None:
    loop = learning(tmp_path, "targets: [x], max_retries_expr: '${context.times}'", head="context: {times: often}\n")
    _, run = play(loop, Script().answer, context=loop.context)
    assert run.ending is not None
    assert (run.ending.by, "no whole number" in (run.ending.error or "")) == ("error", True)


def test_a_stop_that_an_exploration_asks_for_stops_the_run(tmp_path: Path) -> None:
    stop = ActionDone(0, "LOOP_STOP: enough", marked=("LOOP_STOP: enough",))
    events, run = play(learning(tmp_path, "targets: [x]"), Script({"a": stop}).answer)
    assert [event.name for event in events].count("action_start") == 1
    assert run.ending is not None
    assert (run.ending.by, run.ending.state, run.ending.asked) == ("interrupted", "a", True)


# --- records -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("alpha api", "alpha-api"),
        ("Foo Bar/Baz v2.0!", "foo-barbaz-v20"),
        ("Ünïcode--X_y", "ünïcode-x_y"),
        ("../../etc/passwd", "etcpasswd"),
    ],
)
def test_the_name_of_a_record_follows_from_its_target(target: str, name: str) -> None:
    assert slug(target) == name


def write(folder: Path, name: str, text: str) -> None:
    (folder / ".ll" / "learning-tests").mkdir(parents=True, exist_ok=True)
    (folder / ".ll" / "learning-tests" / f"{name}.md").write_text(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("---\ntarget: x\ndate: 2020-01-01\nstatus: proven\n---\nWhat was found out.\n", PROVEN),
        ("---\nstatus: refuted\n---\n", REFUTED),
        ("---\nstatus: stale\n---", STALE),
    ],
)
async def test_a_record_tells_its_status(tmp_path: Path, text: str, found: Learned) -> None:
    write(tmp_path, "my-api", text)
    assert await read_learning(tmp_path, "My API") == found


async def test_no_record_is_no_error(tmp_path: Path) -> None:
    assert await read_learning(tmp_path, "x") == MISSING


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("status: proven\n", "no front matter"),
        ("---\nstatus: proven\n", "no front matter"),
        ("---\ntarget: [\n---\n", "while parsing"),
        ("---\ndate: 2020-13-45\n---\n", "month"),
        ("---\nstatus: perhaps\n---\n", "'perhaps'"),
        ("---\n- x\n---\n", "None"),
    ],
)
async def test_a_damaged_record_is_no_missing_one(tmp_path: Path, text: str, why: str) -> None:
    write(tmp_path, "x", text)
    found = await read_learning(tmp_path, "x")
    assert found.status is None
    assert why in (found.error or "")


# --- runs --------------------------------------------------------------------------------------------------


def write_loop(project: Project) -> None:
    head = "name: learn\ninitial: a\nscope: [x]\nstates:\n"
    state = f"  a: {{type: learning, learning: {{targets: [My API]}}, {ROUTES}}}\n"
    (project.loops / "learn.yaml").write_text(head + state + ENDS)


async def test_a_run_reads_the_records_of_its_project(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    write_loop(project)
    nobody = {"PATH": "/no/programs"}
    async with Session(project.folder, env=nobody) as session:
        without = session.start("learn")
        assert (await without.wait()).final_state == "blocked"  # there is nobody who could explore
        write(project.folder, "my-api", "---\nstatus: proven\n---\n")
        proven = session.start("learn")
        assert (await proven.wait()).final_state == "known"
        write(project.folder, "my-api", "no record")
        damaged = await session.start("learn").wait()
        assert (damaged.terminated_by, "'My API' cannot be read" in str(damaged.error)) == ("error", True)
    assert names(project.records(without.run_id)).count("learning_explore_invoked") == 2
    assert "no agent host" in only(project.records(without.run_id), "action_complete")[0]["stderr_preview"]
    assert "action_start" not in names(project.records(proven.run_id))


def days_ago(days: int) -> str:
    return str(datetime.now(UTC).date() - timedelta(days))


@pytest.mark.parametrize(
    ("settings", "record", "holds"),
    [
        ({"enabled": False}, "date: 2020-01-01", True),
        ({}, f"date: {days_ago(29)}", True),
        ({}, f"date: {days_ago(31)}", False),
        ({}, f"date: '{days_ago(29)}T10:00:00Z'", True),
        ({}, "date: soon", False),
        ({}, "target: My API", False),
        ({"stale_after_days": 40}, f"date: {days_ago(31)}", True),
        ({}, f"date: {days_ago(300)}\nproven_package: left-pad\nproven_version: 1.2.0", True),
        ({}, f"date: {days_ago(370)}\nproven_package: left-pad\nproven_version: 1.2.0", False),
        ({}, f"date: {days_ago(1)}\nproven_package: left-pad\nproven_version: 1.1.0", False),
        ({"version_aware_staleness": False}, f"date: {days_ago(1)}\nproven_package: x-py\nproven_version: 2", True),
        ({}, f"date: {days_ago(70)}\nproven_package: x-py\nproven_version: 3", True),
        ({"version_match_backstop_multiplier": 2}, f"date: {days_ago(70)}\nproven_package: x-py\nproven_version: 3",
         False),
        ({}, f"date: {days_ago(70)}\nproven_package: nobody\nproven_version: 3", False),
    ],
)  # fmt: skip
async def test_what_was_learned_holds_as_long_as_the_project_says(
    tmp_path: Path, settings: dict[str, Any], record: str, holds: bool
) -> None:
    project = Project(tmp_path / "project")
    write_loop(project)
    write(project.folder, "my-api", f"---\nstatus: proven\n{record}\n---\n")
    (project.folder / ".ll" / "ll-config.json").write_text(
        json.dumps({"learning_tests": {"enabled": True, **settings}})
    )
    package = project.folder / "node_modules" / "left-pad" / "package.json"
    package.parent.mkdir(parents=True)
    package.write_text('{"version": "1.2.0"}')
    distribution = project.folder / ".venv/lib/python3.12/site-packages/x_py-3.dist-info/METADATA"
    distribution.parent.mkdir(parents=True)
    distribution.write_text("Metadata-Version: 2.1\nName: x-py\nVersion: 3\n")
    async with Session(project.folder, env={"PATH": "/no/programs"}) as session:
        assert (await session.start("learn").wait()).final_state == ("known" if holds else "blocked")


EXPLORER = """#!/bin/bash
mkdir -p .ll/learning-tests
printf -- '---\\nstatus: proven\\n---\\n' > .ll/learning-tests/my-api.md
cat > asked
echo '{"type": "result", "subtype": "success", "is_error": false, "result": "it works"}'
"""


async def test_an_agent_explores_what_is_unknown(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    write_loop(project)
    host = project.file("bin") / "claude"
    host.parent.mkdir()
    host.write_text(EXPLORER)
    host.chmod(0o755)
    env = {**os.environ, "PATH": f"{host.parent}:{os.environ['PATH']}", "LL_HOST_CLI": "claude-code"}
    async with Session(project.folder, env=env) as session:
        run = session.start("learn")
        assert (await run.wait()).final_state == "known"
    assert "/ll:explore-api My API" in project.file("asked").read_text()
    told = names(project.records(run.run_id))
    assert [name for name in told if name.startswith("learning")] == [
        "learning_target_stale", "learning_explore_invoked", "learning_target_proven", "learning_complete",
    ]  # fmt: skip
