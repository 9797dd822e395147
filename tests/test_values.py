"""Context values and captures as variables of shell actions: on real runs, whatever their size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from ll_loop.api import history
from ll_loop.core.effects import Values
from ll_loop.errors import DefinitionError
from ll_loop.files.library import Library
from ll_loop.run.journals.request import RunResult
from ll_loop.run.performing.exports import EACH, FILES, TOTAL, Exports
from ll_loop.run.session import Session
from projects import LIMIT, Project, only


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


async def run(project: Project, name: str, **context: object) -> RunResult:
    async with Session(project.folder) as session:
        with anyio.fail_after(LIMIT):
            return await session.start(name, context=context).wait()


async def test_values_and_captures_reach_an_action_as_variables(project: Project) -> None:
    head = "context: {title: it's $HOME, limits: {cpu: 2}}\n"
    shown = 'echo "$LL_CTX_title, $LL_CTX_limits__cpu, $LL_CAP_c $LL_CAP_c__exit_code" > out'
    project.loop("a", "echo one; exit 3", shown, head=head)
    text = (project.loops / "a.yaml").read_text()
    (project.loops / "a.yaml").write_text(text.replace("    next: s2\n", "    next: s2\n    capture: c\n"))
    assert (await run(project, "a")).exit_code == 0
    assert project.lines("out") == ["it's $HOME, 2, one 3"]


@pytest.mark.parametrize(("value", "data"), [("a\udcffb", b"a\xffb"), ("\ud800", b"\xed\xa0\x80"), ("\0x", b"x")])
@pytest.mark.parametrize("large", [False, True])
async def test_a_value_that_is_no_utf_8_reaches_actions_as_it_came(
    project: Project, value: str, data: bytes, large: bool
) -> None:
    shown = 'if test "$LL_CTX_odd_FILE"; then cat "$LL_CTX_odd_FILE"; else printf %s "$LL_CTX_odd"; fi > out'
    project.loop("a", shown, "printf %s '${context.odd}' > pasted; cat pasted")
    odd = value * (EACH if large else 1)
    result = await run(project, "a", odd=odd, **{"k\ud800": odd})
    assert result.exit_code == 0
    assert project.file("out").read_bytes() == data * (EACH if large else 1)
    if "\0" not in value:
        assert project.file("pasted").read_bytes() == data * (EACH if large else 1)
    state = json.loads((project.runs / result.run_id / "state.json").read_bytes())
    assert state["status"] == "completed"
    assert history(project.folder)[0].status == "completed"


def test_bytes_of_the_command_line_are_passed_on(project: Project) -> None:
    project.loop("a", "printf %s '${context.odd}' > out")
    argv = [sys.executable, "-m", "ll_loop", "run", "a", "--json", "--context", os.fsdecode(b"odd=\xff\xfe")]
    done = subprocess.run(argv, cwd=project.folder, capture_output=True, timeout=60, check=False)
    assert (done.returncode, json.loads(done.stdout)["exit_code"]) == (0, 0), done.stderr
    assert project.file("out").read_bytes() == b"\xff\xfe"


async def test_a_large_value_comes_as_a_private_file_that_goes_with_the_run(project: Project) -> None:
    value = "x" * (EACH + 1)
    shown = 'stat -c %a "$LL_CTX_big_FILE" >> mode; printf %s "$LL_CTX_big" | wc -c >> mode'
    project.loop("a", f'cp "$LL_CTX_big_FILE" out; {shown}')
    result = await run(project, "a", big=value)
    assert result.exit_code == 0
    assert project.file("out").read_text() == value
    assert project.lines("mode") == ["600", "0"]
    assert not (project.runs / result.run_id / "values").exists()


async def test_a_context_too_large_for_the_system_does_not_stop_the_run(project: Project) -> None:
    project.loop("a", 'echo "$LL_VALUES_OMITTED, $(cat "$LL_CTX_k0_FILE" | wc -c), $LL_CTX_run_dir" > out')
    many = {f"k{n}": "x" * 20_000 for n in range(400)}
    result = await run(project, "a", **many)
    omitted, read, run_dir = project.lines("out")[0].split(", ")
    assert result.exit_code == 0
    assert run_dir == f"{project.runs / result.run_id}/artifacts/"
    assert int(read) in (0, 20_000)
    assert 400 - FILES - TOTAL // 20_000 <= int(omitted) < 400


SAFE = """\
name: safe
initial: a
scope: [safe]
safe_interpolation: true
context: {title: none}
states:
  a:
    action: |
      printf '%s|' ${context.title} "${context.title}" '${context.title}' > out
      cat >> out <<'EOF'
      $HOME ${context.title}
      EOF
    next: done
  done: {terminal: true}
"""


@pytest.mark.parametrize("title", ["$(touch PWNED)`touch PWNED`'\"", "\nEOF\ntouch PWNED\n", "'; touch PWNED; '", ""])
async def test_a_safe_loop_prints_its_values_and_never_runs_them(project: Project, title: str) -> None:
    (project.loops / "safe.yaml").write_text(SAFE)
    assert (await run(project, "safe", title=title)).exit_code == 0
    assert project.file("out").read_text() == f"{title}|" * 3 + f"$HOME {title}\n"
    assert not project.file("PWNED").exists()


async def test_a_safe_loop_prints_values_larger_than_a_variable_can_be(project: Project) -> None:
    title = "$(touch PWNED)\n" * 40_000 + "\n\n"
    (project.loops / "safe.yaml").write_text(SAFE)
    result = await run(project, "safe", title=title)
    assert result.exit_code == 0
    assert project.file("out").read_text() == f"{title}|" * 3 + f"$HOME {title}\n"
    start = only(project.records(result.run_id), "action_start")[0]
    assert "touch" not in start["action"], "the event shows the program, not the values"


def test_a_safe_loop_with_a_place_that_cannot_be_made_safe_is_refused_at_its_line(project: Project) -> None:
    (project.loops / "safe.yaml").write_text(SAFE.replace("printf '%s|'", "eval"))
    with pytest.raises(DefinitionError) as refused:
        Library(project.folder).load("safe")
    found = [problem for problem in refused.value.problems if problem.rule == "template.unsafe-place"]
    assert [(problem.line, "`eval` evaluates" in problem.message) for problem in found] == [(9, True)]


async def test_a_run_within_an_action_does_not_see_the_outer_values(project: Project) -> None:
    project.loop("a", 'echo "<$LL_CTX_outer>" > out')
    async with Session(project.folder, env={"PATH": "/usr/bin:/bin", "LL_CTX_outer": "x"}) as session:
        with anyio.fail_after(LIMIT):
            assert (await session.start("a").wait()).exit_code == 0
    assert project.lines("out") == ["<>"]


async def test_unchanged_values_are_looked_at_once(tmp_path: Path) -> None:
    exports = Exports(tmp_path / "values", {})
    values = Values({f"k{n}": "v" for n in range(20)}, {"c": {"output": "x"}})
    first = await exports.environment(values)
    assert await exports.environment(Values(values.context, values.captured)) is first
    captured = {**values.captured, "d": {"output": "new"}}
    second = await exports.environment(Values(values.context, captured))
    assert second.env == first.env | {b"LL_CAP_d": b"new"}


async def test_what_no_variable_can_hold_does_not_stop_an_action(tmp_path: Path, project: Project) -> None:
    project.loop("a", 'echo "$LL_CTX_odd" > out')
    assert (await run(project, "a", odd="a\0b")).exit_code == 0
    assert project.lines("out") == ["ab"]
    halved = await Exports(tmp_path / "values", {}).environment(Values({"half": "\ud800\udc80"}))
    assert halved.env == {b"LL_CTX_half": b"\xed\xa0\x80\xed\xb2\x80"}
