"""What the command line promises: every mistake in a file is named, every option means what its help says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ll_loop.cli.border import main
from ll_loop.core.endings import combined_exit_code
from ll_loop.files.library import Library
from ll_loop.run.journals.request import Request
from projects import Project

HEAD = "name: {name}\ndescription: A sample.\nscope: [s/]\ninitial: a\n"
STATES = "states:\n  a: {action: 'touch ran', on_yes: done, on_no: done, on_error: done}\n  done: {terminal: true}\n"
Write = Callable[..., Library]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


@pytest.fixture
def write(project: Project) -> Write:
    """Write a loop; a library that looks at the project anew."""

    def begin(text: str = STATES, name: str = "top") -> Library:
        (project.loops / f"{name}.yaml").write_text(HEAD.format(name=name) + text)
        return Library(project.folder)

    return begin


# --- files -------------------------------------------------------------------------------------------------

UNKNOWN = {
    "of the loop": ("stats: 1\n" + STATES, 5),
    "of a state": (STATES.replace("{action:", "{acton: x, action:"), 6),
    "of an evaluator": (STATES.replace("{action:", "{evaluate: {type: exit_code, patern: x}, action:"), 6),
    "of a throttle": (STATES.replace("{action:", "{throttle: {hard: 3}, action:"), 6),
    "of the circuit": ("circuit: {repeated: {}}\n" + STATES, 5),
    "of the breaker": ("circuit: {repeated_failure: {windw: 3}}\n" + STATES, 5),
    "of a parameter": ("parameters:\n  p: {type: string, defalt: x}\n" + STATES, 6),
    "of the judge": ("llm: {modl: x}\n" + STATES, 5),
    "of the deliverable": ("artifact_output: {from: x, frm: y}\n" + STATES, 5),
    "of a pruning profile": (STATES.replace("{action:", "{pruning_profile: {nam: x}, action:"), 6),
    "of a list's item": ("targets: [{file: a.yaml, states: [{nme: x}]}]\n" + STATES, 5),
    "of a pair": (STATES.replace("{action:", "{evaluate: {type: contract, pairs: [{producr: x}]}, action:"), 6),
}


@pytest.mark.parametrize(("text", "line"), UNKNOWN.values(), ids=UNKNOWN.keys())
def test_a_key_that_nothing_reads_is_named_at_every_depth(write: Write, text: str, line: int) -> None:
    loop, problems = write(text).check("top")
    assert loop is not None
    assert [problem.line for problem in problems if problem.rule.endswith("unknown-key")] == [line]


def call(name: str) -> str:
    return STATES.replace("action: 'touch ran'", f"loop: {name}")


def test_a_missing_sub_loop_is_found_five_levels_down(write: Write) -> None:
    for level in range(5):
        library = write(call(f"kid{level + 1}" if level < 4 else "gone"), f"kid{level}")
    loop, problems = library.check("kid0")
    assert loop is None
    assert any("`gone`" in problem.message for problem in problems)


def test_a_missing_sub_loop_is_found_in_a_fragment_and_in_a_parent(write: Write, project: Project) -> None:
    fragment = "fragments: {f: {loop: gone}}\n" + STATES.replace("action: 'touch ran'", "fragment: f")
    assert write(fragment).check("top")[0] is None
    write(call("gone"), "parent")
    (project.loops / "top.yaml").write_text("name: top\nfrom: parent\n")
    assert Library(project.folder).check("top")[0] is None


def test_a_circle_of_sub_loops_is_found_at_any_length(write: Write) -> None:
    for level in range(5):
        library = write(call(f"kid{(level + 1) % 5}"), f"kid{level}")
    assert "subloop.cycle" in {problem.rule for problem in library.check("kid0")[1]}


def test_complaints_are_the_same_cold_and_warm_and_in_any_order(write: Write, project: Project) -> None:
    texts = {f"l{number}": text for number, (text, _) in enumerate(UNKNOWN.values())}
    for name, text in texts.items():
        write(text, name)
    cold = {name: Library(project.folder).check(name)[1] for name in texts}
    warm = Library(project.folder)
    for order in (list(texts), list(texts)[::-1], sorted(texts, key=hash)):
        assert {name: warm.check(name)[1] for name in order} == cold


# --- options -----------------------------------------------------------------------------------------------

REQUESTS = st.builds(
    Request,
    st.text(min_size=1),
    input=st.none() | st.text(),
    context=st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text())),
    texts=st.lists(st.tuples(st.text(), st.text())).map(tuple),
    max_steps=st.none() | st.integers(1),
    delay=st.none() | st.floats(0, allow_infinity=False),
    worktree=st.booleans(),
    queue=st.booleans(),
    queue_timeout=st.none() | st.floats(0, allow_infinity=False),
    lock=st.booleans(),
    max_iterations=st.none() | st.integers(1),
    program_md=st.none() | st.text(),
    handoff_threshold=st.none() | st.integers(1, 100),
    context_limit=st.none() | st.integers(1),
)


@given(REQUESTS)
def test_a_request_is_the_same_after_it_was_written_down(request: Request) -> None:
    assert Request.from_json(json.loads(json.dumps(request.to_json()))) == request


GIVEN: dict[str, dict[str, Any]] = {
    "--context=k=v": {"texts": (("k", "v"),)},
    "--max-steps=3": {"max_steps": 3},
    "--max-iterations=2": {"max_iterations": 2},
    "--delay=0": {"delay": 0},
    "--worktree": {"worktree": True},
    "--queue": {"queue": True},
    "--queue-timeout=0": {"queue": True, "queue_timeout": 0},
    "--no-lock": {"lock": False},
}


@pytest.mark.parametrize("option", GIVEN)
def test_an_option_of_a_start_stands_in_its_record(write: Write, project: Project, option: str) -> None:
    """What the run was asked for is what a resume and the history know of it."""
    write("context: {k: x}\n" + STATES)
    subprocess.run(["git", "init", "-q", project.folder], check=True)
    commit = ["-c", "user.name=n", "-c", "user.email=e", "commit", "-q", "--allow-empty", "-m", "start"]
    subprocess.run(["git", "-C", project.folder, *commit], check=True)
    assert main(["run", "top", option, "--project", str(project.folder)]) == 0
    (run,) = project.run_folders()
    asked = Request.from_json(project.records(run.name)[0]["request"])
    assert {key: getattr(asked, key) for key in GIVEN[option]} == GIVEN[option]


@pytest.mark.parametrize(
    "words",
    [
        ["--max-steps", "0"],
        ["--delay", "-1"],
        ["--delay", "inf"],
        ["--queue-timeout", "-1"],
        ["--queue-timeout", "nan"],
        ["--grace", "inf"],
    ],
)
def test_a_number_that_means_nothing_is_refused(write: Write, project: Project, words: list[str]) -> None:
    write()
    assert main(["run", "top", *words, "--project", str(project.folder)]) == 64
    assert not project.file("ran").exists()


def test_no_delay_and_no_waiting_time_mean_none(write: Write, project: Project) -> None:
    write("backoff: 60\n" + STATES)
    assert main(["run", "top", "--delay", "0", "--queue-timeout", "0", "--project", str(project.folder)]) == 0


def test_a_dry_run_starts_no_process_and_makes_no_file(write: Write, project: Project) -> None:
    write("context: {x: 1}\n" + STATES)
    before = sorted(project.folder.rglob("*"))
    code = (
        "import sys\n"
        "sys.addaudithook(lambda event, args: (event in ('subprocess.Popen', 'os.fork', 'os.posix_spawn', 'os.mkdir')\n"
        "    or event == 'open' and args[1] and set('wax+') & set(args[1])) and print('AUDIT', event, args))\n"
        "from ll_loop.cli.border import main\n"
        "sys.exit(main(['run', 'top', '--dry-run']))\n"
    )
    argv = [sys.executable, "-B", "-c", code]
    done = subprocess.run(argv, cwd=project.folder, capture_output=True, text=True, check=False)
    assert (done.returncode, "AUDIT" in done.stdout) == (0, False), done
    assert sorted(project.folder.rglob("*")) == before


# --- places ------------------------------------------------------------------------------------------------


def test_without_git_and_outside_of_a_project_it_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").write_text(HEAD.format(name="loop") + STATES)
    (tmp_path / "bin").mkdir()
    for name in ("bash", "touch"):
        found = next(path for path in (Path("/usr/bin", name), Path("/bin", name)) if path.exists())
        (tmp_path / "bin" / name).symlink_to(found)
    env = {key: value for key, value in os.environ.items() if key != "COLUMNS"} | {"PATH": str(tmp_path / "bin")}

    def say(*words: str) -> tuple[int, str]:
        argv = [sys.executable, "-m", "ll_loop", *words]
        done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    assert say("--help")[0] == 0
    assert say("validate", "./loop.yaml")[0] == 0
    assert say("list")[0] == 0
    assert say("run", "./loop.yaml")[0] == 0
    assert (tmp_path / "ran").exists()
    code, text = say("run", "./loop.yaml", "--worktree")
    assert code != 0
    assert "git" in text
    code, text = say("run", "gone")
    assert (code, "gone" in text) == (66, True)


@pytest.mark.parametrize("code", [64, 65, 66, 70, 73, 74, 75, 129, 130, 143, 1, 2])
def test_a_batch_with_a_bad_run_is_never_a_success(code: int) -> None:
    assert combined_exit_code([0, code, 0]) == code
