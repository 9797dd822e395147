"""The built-in loops on real input: real commands, real repositories, real files, on both backends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from ll_loop.api import RunHandle, RunResult, Session, find_run
from ll_loop.core.context import Namespaces, initial_context
from ll_loop.core.model import Loop, Prompt, State
from ll_loop.core.template import references, render
from ll_loop.files.library import Library, bundled_loops

NAMES = sorted(path.stem for path in bundled_loops().glob("*.yaml"))
HOSTILE = 'it\'s "$(touch {mark})" `touch {mark}`; touch {mark} &\n-x'


# --- all of them -----------------------------------------------------------------------------------------


def scripts_of(loop: Loop) -> list[State]:
    """The states whose actions are bash; a prompt holds values as they are."""
    return [state for state in loop.states.values() if not isinstance(state.work, Prompt)]


@pytest.mark.parametrize("name", NAMES)
def test_a_built_in_loop_draws_no_complaint(name: str, tmp_path: Path) -> None:
    loop, problems = Library(tmp_path).check(name, built_in=True)
    assert loop is not None
    assert problems == ()


@pytest.mark.parametrize("name", NAMES)
def test_a_built_in_loop_says_what_it_is_for_and_what_it_takes(name: str, tmp_path: Path) -> None:
    loop = Library(tmp_path).load(name, built_in=True).loop
    assert loop.name == name
    assert loop.description
    assert loop.meta["category"]
    assert loop.scope
    assert set(loop.required_inputs) <= loop.parameters.keys()
    assert all(parameter.description for parameter in loop.parameters.values())


@pytest.mark.parametrize("name", NAMES)
def test_every_reference_of_a_built_in_loop_is_quoted_for_the_shell(name: str, tmp_path: Path) -> None:
    loop = Library(tmp_path).load(name, built_in=True).loop
    used = [reference for state in scripts_of(loop) for reference in references(state.template)]
    assert [one.text for one in used if not one.shell and one.namespace != "state"] == []


@pytest.mark.parametrize("value", ["1", HOSTILE])
@pytest.mark.parametrize("name", NAMES)
def test_every_action_renders_to_valid_bash_whatever_the_values_are(name: str, value: str, tmp_path: Path) -> None:
    loop = Library(tmp_path).load(name, built_in=True).loop
    given = dict.fromkeys(loop.parameters, value)
    context = initial_context(loop, overrides=given, extras={"run_dir": f"{tmp_path}/it's/"})
    captured = {state.capture: {"output": value} for state in loop.states.values() if state.capture}
    for state in scripts_of(loop):
        text = render(state.template, Namespaces(context=context, captured=captured, iteration=1))
        checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, ""), state.name


# --- helpers ---------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with an awkward name."""
    folder = tmp_path / "it's a project"
    folder.mkdir()
    return folder


async def run(project: Path, loop: str, delay: float | None = None, **context: Any) -> tuple[RunResult, str]:
    """Run a built-in loop; its result and all that its actions printed."""
    async with Session(project, grace=2) as session:
        handle = session.start(loop, context=context, delay=delay)
        with anyio.fail_after(30):
            result = await handle.wait()
    return result, printed(handle.folder)


def printed(folder: Path) -> str:
    log = folder / "output.log"
    return log.read_text() if log.exists() else ""


def names_in(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def git(where: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=where, text=True, capture_output=True, check=True).stdout.strip()


def captures(handle_folder: Path) -> Any:
    return json.loads((handle_folder / "state.json").read_text())["captured"]


# --- flake-hunter ----------------------------------------------------------------------------------------

FLAKY = "n=$(cat n 2>/dev/null || echo 0); n=$((n+1)); echo $n > n; echo run $n; case $n in {red}) exit 3;; esac"


async def test_a_steady_test_is_run_as_often_as_asked(project: Path) -> None:
    result, text = await run(project, "flake-hunter", command=FLAKY.format(red="none"), green=4)
    assert (result.final_state, result.exit_code) == ("steady", 0)
    assert (project / "n").read_text() == "4\n"
    assert text.endswith("4 of 4 green in a row after 4 attempts; none was red\n")


async def test_a_red_attempt_starts_the_count_again_and_is_reported(project: Path) -> None:
    result, text = await run(project, "flake-hunter", command=FLAKY.format(red="2|4"), green=3)
    assert (result.final_state, result.exit_code) == ("steady", 0)
    assert (project / "n").read_text() == "7\n"
    assert text.endswith("3 of 3 green in a row after 7 attempts; 2 red, attempts 2 4\n")
    assert "attempt 4: red (exit 3)\n" in text
    assert names_in(result.run_dir) == ["attempt-2.log", "attempt-4.log", "attempts.txt"]
    assert (Path(result.run_dir) / "attempt-4.log").read_text() == "run 4\n"


async def test_a_flaky_test_fails_at_the_cap_and_a_broken_one_is_called_broken(project: Path) -> None:
    result, text = await run(project, "flake-hunter", command=FLAKY.format(red="2|4"), green=3, attempts=5)
    assert (result.final_state, result.exit_code) == ("flaky", 2)
    assert "2 red, attempts 2 4" in text
    result, text = await run(project, "flake-hunter", command="exit 1", green=2, attempts=3)
    assert (result.final_state, result.exit_code) == ("broken", 2)
    assert "3 red, attempts 1 2 3" in text


async def test_numbers_that_make_no_sense_are_refused(project: Path) -> None:
    for context in ({"green": "many"}, {"green": 0}, {"green": 5, "attempts": 4}, {"attempts": 2001}):
        result, _ = await run(project, "flake-hunter", command="touch ran", **context)
        assert (result.final_state, result.exit_code) == ("bad_input", 2)
    assert not (project / "ran").exists()


# --- bisect ----------------------------------------------------------------------------------------------


@pytest.fixture
def history(project: Path) -> tuple[Path, list[str]]:
    """A repository of 12 commits, the ninth of which breaks `check.sh`, with an unfinished change on top."""
    git(project, "init", "--quiet", "-b", "main")
    git(project, "config", "user.name", "T")
    git(project, "config", "user.email", "t@example.org")
    (project / ".gitignore").write_text(".loops/\n")
    (project / "part").mkdir()
    commits = []
    for number in range(1, 13):
        (project / "part" / "value").write_text(f"{number}\n")
        (project / "part" / "check.sh").write_text(f"test $(cat value) -lt 9 # {number}\n")
        git(project, "add", ".")
        git(project, "commit", "--quiet", "-m", f"commit {number}")
        commits.append(git(project, "rev-parse", "HEAD"))
    (project / "part" / "value").write_text("my own change\n")
    return project, commits


async def test_bisect_finds_the_first_bad_commit_and_leaves_the_checkout_alone(
    history: tuple[Path, list[str]],
) -> None:
    project, commits = history
    async with Session(project, grace=2) as session:
        handle = session.start("bisect", context={"command": "cd part && bash check.sh", "good": commits[0]})
        result = await handle.wait()
    text = printed(handle.folder)
    assert (result.final_state, result.exit_code) == ("found", 0), text
    assert captures(handle.folder)["first_bad"]["output"] == commits[8]
    assert "commit 9 (T, " in text.splitlines()[-1]
    assert (project / "part" / "value").read_text() == "my own change\n"
    assert git(project, "symbolic-ref", "HEAD") == "refs/heads/main"
    assert git(project, "rev-parse", "HEAD") == commits[-1]
    assert len(git(project, "worktree", "list").splitlines()) == 1
    assert git(project, "for-each-ref", "--format=%(refname)") == "refs/heads/main"
    assert not (Path(result.run_dir) / "scratch").exists()


async def test_bisect_works_from_a_subfolder_and_over_commits_that_change_files(
    history: tuple[Path, list[str]],
) -> None:
    project, commits = history
    (project / "part" / ".loops").mkdir()
    command = "echo scribble >> check.sh; bash -c 'test $(cat value) -lt 9'"
    result, text = await run(project / "part", "bisect", command=command, good=commits[2], bad=commits[10])
    assert (result.final_state, result.exit_code) == ("found", 0), text
    assert "first bad commit" in text
    assert "commit 9 (T, " in text.splitlines()[-1]


async def test_bisect_refuses_ends_that_are_not_good_and_bad(history: tuple[Path, list[str]]) -> None:
    project, commits = history
    command = "cd part && bash check.sh"
    result, text = await run(project, "bisect", command=command, good=commits[0], bad=commits[3])
    assert (result.final_state, result.exit_code) == ("undecided", 2)
    assert "does not fail on the bad commit" in text
    result, text = await run(project, "bisect", command=command, good=commits[9])
    assert (result.final_state, result.exit_code) == ("undecided", 2)
    assert "does not pass on the good commit" in text
    result, text = await run(project, "bisect", command=command, good="--all")
    assert (result.final_state, result.exit_code) == ("bad_input", 2)
    result, text = await run(project, "bisect", command=command, good=commits[5], bad=commits[3])
    assert (result.final_state, result.exit_code) == ("bad_input", 2)
    assert "is no ancestor" in text
    assert len(git(project, "worktree", "list").splitlines()) == 1


async def test_a_bisect_that_is_cut_off_leaves_no_worktree_and_can_go_on(history: tuple[Path, list[str]]) -> None:
    project, commits = history
    slow = (
        "if git bisect log > /dev/null 2>&1; then echo bisecting; test -e '../../../../../go' || sleep 60; fi;"
        "cd part && bash check.sh"
    )
    async with Session(project, grace=5) as session:
        handle = session.start("bisect", context={"command": slow, "good": commits[0]})
        await heard(handle, "bisecting")
        handle.cancel()
        result = await handle.wait()
    assert (result.status, result.resumable) == ("interrupted", True)
    assert len(git(project, "worktree", "list").splitlines()) == 1
    (project / "go").touch()
    resumed = await resume(project, handle.run_id)
    assert (resumed.final_state, resumed.exit_code) == ("found", 0)
    assert captures(handle.folder)["first_bad"]["output"] == commits[8]


async def heard(handle: RunHandle, line: str) -> None:
    """Wait until an action of the run has printed this line."""
    with anyio.fail_after(10):
        async for record in handle.events():
            if record["event"] == "action_output" and record["line"] == line:
                return
    raise AssertionError(f"the run ended without saying {line!r}")


async def resume(project: Path, run_id: str) -> RunResult:
    async with Session(project, grace=2) as session:
        with anyio.fail_after(30):
            return await session.resume(find_run(session.runs, run_id)).wait()


# --- metric-down -----------------------------------------------------------------------------------------

HALVE = "echo $METRIC >> seen; echo $(( $(cat m) / 2 )) > m; exit 1"


async def test_a_metric_is_driven_down_to_its_target(project: Path) -> None:
    (project / "m").write_text("20\n")
    result, text = await run(project, "metric-down", metric='echo "found $(cat m) errors"', fix=HALVE, target=3)
    assert (result.final_state, result.exit_code) == ("done", 0), text
    assert text.splitlines()[-1] == "20 -> 10 -> 5 -> 2: the target 3 is reached"
    assert (project / "seen").read_text() == "20\n10\n5\n"
    assert "the fix command exited with 1" in text


async def test_a_metric_that_stalls_ends_the_loop_as_a_failure(project: Path) -> None:
    (project / "m").write_text("20\n")
    fix = "n=$(cat m); test $n -le 5 || echo $((n / 2)) > m"
    result, text = await run(project, "metric-down", metric="cat m", fix=fix)
    assert (result.final_state, result.exit_code) == ("stalled", 2), text
    assert text.splitlines()[-1] == "20 -> 10 -> 5 -> 5: stalled before the target 0"


async def test_patience_allows_rounds_without_progress(project: Path) -> None:
    (project / "m").write_text("20\n")
    fix = "echo x >> rounds; test $(wc -l < rounds) -lt 3 || echo 4 > m"
    result, text = await run(project, "metric-down", metric="cat m", fix=fix, target=4, patience=3)
    assert (result.final_state, result.exit_code) == ("done", 0), text
    result, text = await run(project, "metric-down", metric="cat m", fix="true", target=4)
    assert "nothing to do: it is 4 already" in text
    assert result.exit_code == 0


async def test_a_metric_that_fails_or_prints_no_number_is_no_evidence(project: Path) -> None:
    for metric in ("echo 0; exit 1", "echo none", "true"):
        result, text = await run(project, "metric-down", metric=metric, fix="touch fixed")
        assert (result.final_state, result.exit_code) == ("failed", 2)
        assert "there is no number to go by" in text
    assert not (project / "fixed").exists()


# --- keep-green ------------------------------------------------------------------------------------------


async def test_checks_that_go_red_are_fixed_and_green_again(project: Path) -> None:
    checks = "# what must hold\ntrue\n\ntest ! -e broken\ntest ! -e 'broken too'\n"
    (project / "broken").touch()
    (project / "broken too").touch()
    fix = 'echo "$RED_CHECK" >> fixed; cat "$RED_LOG" >> fixed; rm -f broken*'
    result, text = await run(project, "keep-green", checks=checks, fix=fix, delay=0)
    assert (result.terminated_by, result.exit_code) == ("max_iterations_reached", 1), text
    assert (project / "fixed").read_text() == "test ! -e broken\n"
    assert "RED    test ! -e 'broken too' (exit 1)\n" in text
    assert "first red: test ! -e broken\n" in text
    assert text.splitlines()[-1] == "pass 20, 19 of them green"


async def test_without_a_fix_red_checks_are_named_and_looked_at_again(project: Path) -> None:
    (project / "keep.yaml").write_text(
        "name: keep\nfrom: keep-green\nmax_iterations: 3\nbackoff: 0.01\ncontext:\n  checks: |\n    exit 7\n"
    )
    result, text = await run(project, "keep.yaml")
    assert (result.terminated_by, result.exit_code) == ("max_iterations_reached", 1)
    assert text.count("RED    exit 7 (exit 7)\nfirst red: exit 7\n") == 3
    assert "pass 3, 0 of them green\n" in text
    assert text.splitlines()[-1] == "no fix command; looking again later"


async def test_a_list_without_checks_is_an_error_and_not_green(project: Path) -> None:
    result, _ = await run(project, "keep-green", checks="# none\n", delay=0)
    assert (result.exit_code, result.terminated_by) == (1, "error")
    assert result.error == "keep-green has no check to run"


# --- queue-worker ----------------------------------------------------------------------------------------


async def test_a_queue_is_worked_through_and_failed_items_are_kept(project: Path) -> None:
    (project / "q").write_text("one\nit's $(touch hacked) two\n\nbad\nthree")
    command = 'test "$ITEM" != bad && printf "<%s>\\n" {item} >> out'
    result, text = await run(project, "queue-worker", queue="q", command=command)
    assert (result.final_state, result.exit_code) == ("some_failed", 2), text
    assert (project / "out").read_text() == "<one>\n<it's $(touch hacked) two>\n<three>\n"
    assert (project / "q.done").read_text() == "one\nit's $(touch hacked) two\nthree\n"
    assert (project / "q.failed").read_text() == "bad\n"
    assert (project / "q").read_text() == "one\nit's $(touch hacked) two\n\nbad\nthree"
    assert "3 done, 1 failed" in text
    assert not (project / "hacked").exists()
    assert not (project / "q.doing").exists()


async def test_a_second_run_does_only_what_is_left(project: Path) -> None:
    (project / "q").write_text("one\ntwo\nthree\n")
    (project / "q.done").write_text("one")
    (project / "q.failed").write_text("two\n")
    result, text = await run(project, "queue-worker", queue="q", command="echo {item} >> out")
    assert (result.final_state, result.exit_code) == ("some_failed", 2), text
    assert (project / "out").read_text() == "three\n"
    assert (project / "q.done").read_text() == "one\nthree\n"
    (project / "q.failed").unlink()
    result, text = await run(project, "queue-worker", queue="q", command="echo {item} >> out")
    assert (result.final_state, result.exit_code) == ("done", 0), text
    assert (project / "out").read_text() == "three\ntwo\n"
    assert "3 done, 0 failed" in text


@pytest.mark.parametrize("again", ["resume", "start"])
async def test_an_item_in_flight_is_put_back_when_the_run_is_cut_off(project: Path, again: str) -> None:
    (project / "q").write_text("one\ntwo\nthree\n")
    command = "echo {item} >> out; if test {item} = two && ! test -e go; then echo at {item}; sleep 60; fi"
    async with Session(project, grace=2) as session:
        handle = session.start("queue-worker", context={"queue": "q", "command": command})
        await heard(handle, "at two")
        handle.cancel()
        assert (await handle.wait()).status == "interrupted"
    assert (project / "q.done").read_text() == "one\n"
    assert (project / "q.doing").read_text() == "two\n"
    (project / "go").touch()
    if again == "resume":
        result = await resume(project, handle.run_id)
    else:
        result, text = await run(project, "queue-worker", queue="q", command=command)
        assert "was cut off, put back: two\n" in text
    assert (result.final_state, result.exit_code) == ("done", 0)
    assert (project / "out").read_text() == "one\ntwo\ntwo\nthree\n"
    assert (project / "q.done").read_text() == "one\ntwo\nthree\n"
    assert (project / "q.failed").read_text() == ""


WORKER = """
import sys
import anyio
from ll_loop.api import Session

async def main(project, command):
    async with Session(project) as session:
        run = session.start("queue-worker", context={"queue": "q", "command": command})
        print(run.run_id)
        async for record in run.events():
            if record["event"] == "action_output":
                print(record["line"], flush=True)

anyio.run(main, *sys.argv[1:])
"""


def test_no_item_is_lost_or_done_twice_when_everything_is_killed(project: Path) -> None:
    (project / "q").write_text("one\ntwo\nthree\n")
    command = "echo {item} >> out; if test {item} = two && ! test -e go; then echo at {item}; sleep 60; fi"
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(project), command], stdout=subprocess.PIPE, text=True
    ) as engine:
        assert engine.stdout is not None
        run_id = engine.stdout.readline().strip()
        assert "at two\n" in iter(engine.stdout.readline, "")
        engine.kill()
    (project / "go").touch()
    result = anyio.run(resume, project, run_id)
    assert (result.final_state, result.exit_code) == ("done", 0)
    assert (project / "out").read_text() == "one\ntwo\ntwo\nthree\n"
    assert (project / "q.done").read_text() == "one\ntwo\nthree\n"


async def test_a_queue_that_is_not_there_is_a_failure_and_an_empty_one_is_done(project: Path) -> None:
    result, text = await run(project, "queue-worker", queue="none", command="touch ran")
    assert (result.final_state, result.exit_code) == ("no_queue", 2)
    assert "no such queue: none" in text
    (project / "q").touch()
    result, text = await run(project, "queue-worker", queue="q", command="touch ran")
    assert (result.final_state, result.exit_code) == ("done", 0)
    assert "0 done, 0 failed" in text
    assert not (project / "ran").exists()


# --- retry-until -----------------------------------------------------------------------------------------


async def test_a_command_is_tried_until_it_succeeds(project: Path) -> None:
    result, text = await run(project, "retry-until", command=FLAKY.format(red="1|2"), pause=0)
    assert (result.final_state, result.exit_code) == ("done", 0), text
    assert text.splitlines()[-1] == "try 3 succeeded"


async def test_tries_have_an_end(project: Path) -> None:
    result, text = await run(project, "retry-until", command="exit 7", tries=3, pause=0)
    assert (result.final_state, result.exit_code) == ("gave_up", 2)
    assert text.splitlines()[-1] == "gave up after 3 tries; exit codes: 7, 7, 7"
