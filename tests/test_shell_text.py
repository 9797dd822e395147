"""What reaches bash, from the text in a loop file to the script that runs: whole runs, on both backends."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from ll_loop.errors import DefinitionError, NotFoundError
from ll_loop.files.library import Library
from ll_loop.run.handle import RunHandle
from ll_loop.run.journals.request import RunResult
from ll_loop.run.session import Session
from projects import LIMIT, Project, only

HEAD = "name: {name}\ndescription: A sample.\nscope: [{name}]\ninitial: a\n"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def write(project: Project, text: str, name: str = "a") -> str:
    (project.loops / f"{name}.yaml").write_text(HEAD.format(name=name) + text)
    return name


async def run(project: Project, name: str = "a", **more: object) -> tuple[RunResult, RunHandle]:
    async with Session(project.folder) as session:
        handle = session.start(name, **more)  # type: ignore[arg-type]
        with anyio.fail_after(LIMIT):
            return await handle.wait(), handle


def outputs(project: Project, result: RunResult) -> list[str]:
    """The lines that the actions of a run printed."""
    return [str(record["line"]) for record in only(project.records(result.run_id), "action_output")]


STATES = "states:\n  a:\n    action: |\n{action}    next: done\n    on_error: failed\n  done: {{terminal: true}}\n"
STATES += "  failed: {{terminal: true}}\n"


def script(text: str) -> str:
    return STATES.format(action="".join(f"      {line}\n" for line in text.splitlines()))


# --- values ------------------------------------------------------------------------------------------------


async def test_a_command_in_a_quoted_value_is_printed_and_not_run(project: Project) -> None:
    value = "$(touch run) `touch run`; touch run # ' \" \\"
    write(project, script("printf '%s\\n' ${context.v:shell}"))
    result, _ = await run(project, context={"v": value})
    assert outputs(project, result) == [value]
    assert not project.file("run").exists()


async def test_a_reference_in_a_value_is_not_filled_in(project: Project) -> None:
    value = "${captured.nope.output} ${context.v}"
    write(project, script("printf '%s\\n' ${context.v:shell}"))
    result, _ = await run(project, context={"v": value})
    assert (result.exit_code, outputs(project, result)) == (0, [value])


async def test_a_value_that_would_end_a_here_document_stops_the_run_before_its_script(project: Project) -> None:
    write(project, script("touch ran\ncat <<EOF\n${context.v}\nEOF"))
    result, _ = await run(project, context={"v": "one\nEOF\ntouch injected"})
    assert (result.terminated_by, result.final_state) == ("error", "a")
    assert "'EOF'" in str(result.error)
    assert not project.file("ran").exists()
    assert not project.file("injected").exists()


async def test_a_script_of_300_kilobytes_runs(project: Project) -> None:
    write(project, script("printf %s ${context.v:shell} | wc -c"))
    result, _ = await run(project, context={"v": "x " * 150_000})
    assert [line.strip() for line in outputs(project, result)] == ["300000"]


async def test_a_captured_line_has_no_line_end_and_keeps_those_inside(project: Project) -> None:
    more = "  b: {action: 'printf \"[%s]\\n\" ${captured.k.output:shell} ${captured.l.output:shell}', next: done}\n"
    text = "states:\n  a: {action: 'seq 9 | head -1', capture: k, next: c}\n"
    text += "  c: {action: 'seq 2; echo', capture: l, next: b}\n" + more + "  done: {terminal: true}\n"
    write(project, text)
    result, _ = await run(project)
    assert outputs(project, result)[-3:] == ["[1]", "[1", "2]"]


async def test_every_kind_of_line_end_is_one(project: Project) -> None:
    bars = r'printf "10%%\r20%%\rdos\r\nunix\n\r\n"; printf "e\r\n" >&2'
    text = f"states:\n  a: {{action: '{bars}', capture: k, next: b}}\n"
    show = 'printf %s "${captured.k.output}" | tr "\\n" ,; printf %s ${captured.k.stderr:shell} | od -An -c'
    write(project, f"{text}  b: {{action: '{show}', next: done}}\n  done: {{terminal: true}}\n")
    result, _ = await run(project)
    assert outputs(project, result) == ["10%", "20%", "dos", "unix", "", "10%,20%,dos,unix   e  \\n"]


async def test_the_run_folder_is_absolute_wherever_the_project_was_named_from(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(project, script("echo ${context.run_dir:shell}; touch ${context.run_dir:shell}here"))
    monkeypatch.chdir(project.folder.parent)
    async with Session(project.folder.name) as session:
        handle = session.start("a")
        result = await handle.wait()
    assert outputs(project, result) == [f"{handle.artifacts}/"]
    assert handle.artifacts.is_absolute()
    assert (handle.artifacts / "here").exists()


# --- what is bash's own ------------------------------------------------------------------------------------


async def test_escaped_braces_and_plain_dollars_reach_bash(project: Project) -> None:
    write(project, script('X=; A=(1 2); echo "$${X:-unset} $${#A[@]} $(echo sub) $((1 + 1)) $X"'))
    result, _ = await run(project)
    assert outputs(project, result) == ["unset 2 sub 2"]


@pytest.mark.parametrize("text", ["echo ${X:-0}", "# ${X:-0}", "echo $$(date)"])
async def test_what_bash_would_never_see_as_meant_is_refused_with_the_way_out(project: Project, text: str) -> None:
    write(project, script(f"touch ran\n{text}"))
    async with Session(project.folder) as session:
        with pytest.raises(DefinitionError) as raised:
            session.start("a")
    (error,) = [problem for problem in raised.value.problems if problem.severity == "error"]
    assert error.line == 9
    assert "$" in error.hint
    assert not project.file("ran").exists()


@pytest.mark.parametrize("text", ["${F##*.}", "${A[@]}", "${#s}", "${HOME}"])
async def test_other_bash_braces_are_warned_of_and_take_the_error_route(project: Project, text: str) -> None:
    write(project, script(f"echo {text}"))
    async with Session(project.folder) as session:
        (problem,) = [p for p in session.library.check("a")[1] if p.rule == "template.namespace"]
        result = await session.start("a").wait()
    assert (problem.line, "$${" in problem.hint) == (8, True)
    assert (result.final_state, only(project.records(result.run_id), "action_start")) == ("failed", [])


def test_counting_matches_with_a_fallback_is_warned_of(project: Project) -> None:
    write(project, script("n=$(grep -c x file || echo 0)"))
    library = Library(project.folder)
    assert [p.line for p in library.check("a")[1] if p.rule == "lint.count-or-zero"] == [8]
    write(project, script("n=$(grep -c x file || true); grep -q x file || echo 0"))
    assert "lint.count-or-zero" not in {p.rule for p in library.check("a")[1]}


# --- what is not there -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["${context.x:default=false}", "${context.x?}", "${context.x:shell:default=q}"])
async def test_a_guarded_value_may_be_missing_for_the_check_and_for_the_run(project: Project, text: str) -> None:
    write(project, script(f"echo [{text}]"))
    async with Session(project.folder) as session:
        assert session.library.check("a")[0] is not None
        result = await session.start("a").wait()
    assert result.exit_code == 0
    assert outputs(project, result) in (["[false]"], ["[]"], ["[q]"])


@pytest.mark.parametrize("text", ["${context.x}", "${context.x:shell}", "${context.x.y}"])
async def test_an_unguarded_value_is_demanded_before_the_run(project: Project, text: str) -> None:
    write(project, script(f"touch ran\necho {text}"))
    async with Session(project.folder) as session:
        with pytest.raises(NotFoundError, match="needs a value: x"):
            session.start("a")
    assert not project.run_folders()


FIELDS = {
    "target": "action: echo 3, evaluate: {type: output_numeric, operator: eq, target: '${context.v}'}",
    "source": "action: echo no, evaluate: {type: output_contains, pattern: '^3$', source: '${context.v}'}",
    "previous": "action: echo 2, evaluate: {type: convergence, target: 0, previous: '${context.v}'}",
    "reference": "action: echo 2, evaluate: {type: convergence, target: 0, reference: '${context.v}'}",
    "tolerance": "action: echo 2, evaluate: {type: convergence, target: 0, tolerance: '${context.v}'}",
    "loop": "loop: 'kid-${context.v}'",
}


@pytest.mark.parametrize("field", FIELDS)
async def test_a_reference_is_filled_in_wherever_it_may_stand(project: Project, field: str) -> None:
    write(project, script("true"), "kid-3")
    ways = "on_yes: done, on_no: failed, on_error: failed, on_progress: done, on_target: done, on_stall: failed"
    ends = "  done: {terminal: true}\n  failed: {terminal: true}\n"
    write(project, f"states:\n  a: {{{FIELDS[field]}, {ways}}}\n{ends}")
    result, _ = await run(project, context={"v": 3})
    assert result.final_state == "done", result


@pytest.mark.parametrize(("field", "ends"), [("target", "no_route"), ("reference", "failed"), ("loop", "failed")])
async def test_a_reference_that_leads_nowhere_is_never_taken_for_text(project: Project, field: str, ends: str) -> None:
    ways = "on_yes: done, on_no: done, on_error: failed, on_progress: done, on_target: done, on_stall: done"
    states = f"  a: {{{FIELDS[field]}, {ways}}}\n  done: {{terminal: true}}\n  failed: {{terminal: true}}\n"
    write(project, "states:\n" + states.replace("context.v", "captured.gone.output"))
    result, _ = await run(project)
    assert ends in (result.final_state, result.terminated_by), result
