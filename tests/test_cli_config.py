"""The command `config`, and what the other commands say and do about the configuration."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from command_line import Ll, command_line
from ll_loop.cli.terminal import look_at

LOOP = """\
name: a
description: Says what it was told.
scope: [a/]
initial: say
max_steps: 9
states:
  say: {action: 'echo ${context.budget:default=none:shell}', on_yes: done, on_no: done}
  done: {terminal: true}
"""


@pytest.fixture
def ll(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ll:
    """Give the command line some words in a project with the loop `a`."""
    write(tmp_path, ".loops/a.yaml", LOOP)
    return command_line(tmp_path, capfd, monkeypatch)


def write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def configure(folder: Path, **sections: Any) -> None:
    write(folder, ".ll/ll-config.json", json.dumps(sections))


def row(out: str, key: str) -> list[str]:
    [found] = [line.split(maxsplit=2) for line in out.splitlines() if line.startswith(f"{key} ")]
    return found[1:]


def test_config_shows_every_value_and_where_it_comes_from(ll: Ll, tmp_path: Path) -> None:
    configure(tmp_path, loops={"run_defaults": {"delay": 2}}, advisor={"timeout_seconds": 5})
    code, out, err = ll("config", "--show-origin")
    assert (code, err) == (0, "")
    assert row(out, "loops.run_defaults.delay") == ["2.0", ".ll/ll-config.json:1"]
    assert row(out, "loops.loops_dir") == ['".loops"', "default"]
    assert row(out, "advisor.timeout_seconds") == ["5.0", ".ll/ll-config.json:1  not used yet"]
    assert row(ll("config")[1], "loops.run_defaults.delay") == ["2.0"]
    assert "advisor.timeout_seconds" in out
    assert "extensions" not in out, "nothing uses it, and nobody gave it"
    assert out.splitlines()[-1].endswith(" keys that nothing uses yet: --json has all")


def test_config_as_json_is_for_programs(ll: Ll, tmp_path: Path) -> None:
    configure(tmp_path, cli={"color": False}, lops={})
    code, out, _ = ll("config", "--json")
    document = json.loads(out)
    assert (code, document["files"]) == (0, [".ll/ll-config.json"])
    color = document["values"]["cli.color"]
    assert (color["value"], color["origin"], color["used"]) == (False, ".ll/ll-config.json:1", True)
    assert [problem["hint"] for problem in document["problems"]] == ["did you mean `loops`?"]


def test_config_tells_what_is_wrong_and_still_shows_the_rest(ll: Ll, tmp_path: Path) -> None:
    configure(tmp_path, loops={"loops_dir": 5, "run_defaults": {"include": "src"}})
    code, out, err = ll("config")
    assert code == 65
    assert err == ".ll/ll-config.json:1:25: `loops.loops_dir` must be text\n"
    assert row(out, "loops.run_defaults.include") == ['"src"']


@pytest.mark.parametrize("words", [("run", "a"), ("list",), ("validate", "a"), ("status",), ("history",)])
def test_a_wrong_configuration_ends_every_other_command(ll: Ll, tmp_path: Path, words: tuple[str, ...]) -> None:
    write(tmp_path, ".ll/ll-config.json", "{loops: 1}")
    code, out, err = ll(*words)
    assert (code, out) == (65, "")
    assert err == ".ll/ll-config.json:1:2: not JSON: expecting property name enclosed in double quotes\n"


def test_a_run_counts_the_warnings_that_validate_tells(ll: Ll, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = "  ask: {action_type: prompt, action: x, model_hint: coding, on_yes: done, on_no: done, on_partial: done}\n"
    write(tmp_path, ".loops/a.yaml", LOOP.replace("on_no: done", "on_no: ask") + ask)
    told = {}
    for host in ("claude-code", "opencode"):
        monkeypatch.setenv("LL_HOST_CLI", host)
        told[host] = len(json.loads(ll("validate", "a", "--json").out)["violations"])
        first = ll("run", "a").err.splitlines()[0]
        assert first.startswith(f"{told[host]} warning") or not told[host]
    assert told["opencode"] == told["claude-code"] + 1


def test_a_run_says_once_that_the_configuration_has_warnings(ll: Ll, tmp_path: Path) -> None:
    configure(tmp_path, loops={"loop_dir": "x"})
    code, _, err = ll("run", "a")
    assert code == 0
    place = ".ll/ll-config.json:1:12: warning: unknown key `loops.loop_dir`"
    assert err.splitlines()[:2] == [place, "hint: did you mean `loops_dir`?"]
    configure(tmp_path, loops={"loop_dir": "x"}, zzz=1)
    assert "2 warnings about the configuration: see `ll-loop config`" in ll("run", "a")[2].splitlines()
    assert ll("run", "a", "--quiet")[2] == ""
    assert "2 warnings about the configuration: see `ll-loop config`" in ll("validate", "a")[2].splitlines()


def test_a_configured_folder_of_loops_counts_for_every_command(ll: Ll, tmp_path: Path) -> None:
    configure(tmp_path, loops={"loops_dir": "tools/loops"})
    write(tmp_path, "tools/loops/b.yaml", LOOP.replace("name: a", "name: b"))
    assert ll("validate", "b")[0] == 0
    assert ll("run", "a")[0] == 66
    run_id = json.loads(ll("run", "b", "--json")[1])["runs"][0]["run_id"]
    assert json.loads(ll("history", "--json")[1])[0]["run_id"] == run_id
    assert json.loads(ll("status", run_id, "--json")[1])["status"] == "completed"
    assert "loop_complete" in ll("history", run_id)[1]


def test_another_program_is_named_from_where_one_stands(ll: Ll, tmp_path: Path) -> None:
    write(tmp_path, "steer.md", "## Budget\nten\n## Bugdet\n1\n")
    write(tmp_path, "sub/steer.md", "## Budget\neleven\n")
    code, out, err = ll("run", "a", "--program-md", "steer.md", "--dry-run")
    doubt = "steer.md:3:1: warning: the section `Bugdet` means nothing"
    assert (code, "  budget: ten" in out, doubt in err) == (0, True, True)
    assert doubt in ll("run", "a", "--program-md", "steer.md")[2].splitlines()
    code, _, err = ll("run", "a", "--program-md", "other.md")
    assert (code, err) == (66, f"Error: no such program.md: {tmp_path}/other.md\n")


def test_a_pass_cap_is_said_to_do_nothing_where_there_are_no_passes(ll: Ll, tmp_path: Path) -> None:
    code, _, err = ll("run", "a", "--max-iterations", "2")
    assert code == 0
    assert "warning: --max-iterations has no effect: a has no `maintain`, so it makes one pass" in err.splitlines()


def test_caps_of_passes_can_be_set_and_raised(ll: Ll, tmp_path: Path) -> None:
    write(tmp_path, ".loops/m.yaml", LOOP.replace("name: a", "name: m\nmaintain: true"))
    code, _, err = ll("run-many", "m", "--max-iterations", "1")
    assert code == 1
    assert "--max-iterations N" in err
    assert ll("resume", "m")[0] == 75
    code, out, _ = ll("resume", "m", "--max-iterations", "2", "--json")
    [result] = json.loads(out)["runs"]
    assert (code, result["terminated_by"], result["iterations"]) == (1, "max_iterations_reached", 4)
    assert ll("run", "m", "--max-iterations", "0")[0] == 64


def test_a_handoff_threshold_is_a_percentage(ll: Ll) -> None:
    assert ll("run", "a", "--handoff-threshold", "101")[0] == 64
    assert ll("run", "a", "--handoff-threshold", "100", "--context-limit", "1000")[0] == 0


@pytest.mark.parametrize(
    ("env", "colour", "expected"),
    [
        ({}, True, False),
        ({"FORCE_COLOR": "1"}, True, True),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "0"}, True, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
    ],
)
def test_colour_away_from_a_terminal_is_a_wish_of_the_environment(
    tmp_path: Path, env: dict[str, str], colour: bool, expected: bool
) -> None:
    with (tmp_path / "out").open("w") as file:
        assert look_at(file.fileno(), env, colour=colour).colour is expected


def test_a_terminal_has_no_colour_where_the_configuration_says_so() -> None:
    ours, theirs = pty.openpty()
    try:
        assert look_at(theirs, {"TERM": "xterm"}).colour
        assert not look_at(theirs, {"TERM": "xterm"}, colour=False).colour
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("colour", [True, False])
def test_a_run_takes_its_colours_from_the_configuration(ll: Ll, tmp_path: Path, colour: bool) -> None:
    configure(tmp_path, cli={"color": colour})
    env = {"PATH": os.environ["PATH"], "TERM": "xterm", "LANG": "C.UTF-8"}
    assert ("\x1b[32m" in on_a_terminal(["run", "a"], tmp_path, env)) is colour


def on_a_terminal(words: list[str], folder: Path, env: dict[str, str]) -> str:
    """What a command writes on a terminal."""
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as screen:
        process = subprocess.Popen(
            [sys.executable, "-m", "ll_loop", *words], cwd=folder, env=env, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        text = b""
        while process.poll() is None or select.select([screen], [], [], 0)[0]:
            try:
                text += screen.read(65536)
            except OSError:  # nobody has the other end any more
                break
        assert process.wait(20) == 0
    return text.decode()
