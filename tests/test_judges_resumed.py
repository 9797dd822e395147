"""Judges whose process is killed between two of their answers: what was answered is never asked for again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from projects import Project, only

JUDGE = """\
#!/bin/bash
# Notes every question; at the one that the file `deadly` names, the engine is killed while it waits for the answer.
cat > /dev/null
echo asked >> questions
if [ "$(wc -l < questions)" = "$(cat deadly 2>/dev/null)" ]; then rm deadly; kill -9 $PPID; exec sleep 60; fi
echo '{"type":"result","structured_output":ANSWER,"usage":{"input_tokens":1,"output_tokens":1}}'
"""
DUEL = '{"verdict_a":"yes","verdict_b":"yes","confidence":1,"reason":"both"}'
PAIR = '{"verdict":"yes","confidence":1,"reason":"same"}'
OPINION = '{"verdict":"yes","confidence":1,"reason":"r","evidence":"new"}'


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path / "project")
    (made.folder / "base").mkdir()
    made.file("base").joinpath("output.txt").write_text("old")
    made.file("a").write_text("one side")
    return made


def write(project: Project, answer: str, evaluate: str, routes: str) -> None:
    project.file("agent").write_text(JUDGE.replace("ANSWER", answer))
    project.file("agent").chmod(0o755)
    (project.loops / "demo.yaml").write_text(
        f"name: demo\ninitial: a\nscope: [demo]\nstates:\n  a:\n    action: 'echo new; echo ran >> actions'\n"
        f"    host: {{command: [./agent]}}\n    evaluate: {{{evaluate}}}\n{routes}"
        "  b: {action: 'test ! -e deadly || { rm deadly; kill -9 $PPID; sleep 60; }', on_yes: done, on_no: bad}\n"
        "  done: {terminal: true}\n  bad: {terminal: true, failure: true}\n"
    )


def ll(project: Project, *words: str) -> int:
    argv = [sys.executable, "-m", "ll_loop", *words]
    done = subprocess.run(argv, cwd=project.folder, env=os.environ, capture_output=True, timeout=60, check=False)
    return done.returncode


ROUTES = "    on_yes: b\n    on_no: bad\n    on_error: bad\n    on_partial: bad\n    on_blocked: bad\n"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    ("answer", "evaluate", "routes", "questions"),
    [
        (OPINION, "type: llm_structured, prompt: Good?", ROUTES, 1),
        (
            PAIR,
            "type: contract, pairs: [{producer: a, consumer: a}, {producer: a, consumer: a}]",
            "    on_yes: b\n    on_no: bad\n    on_error: bad\n",
            2,
        ),
        (
            DUEL,
            "type: comparator, baseline_path: base, min_pairs: 3",
            "    route: {yes: bad, no: bad, tie: b, no_baseline: bad, _error: bad}\n",
            3,
        ),
    ],
    ids=["llm_structured", "contract", "comparator"],
)
def test_a_killed_judge_is_asked_only_what_it_had_not_answered(
    project: Project, backend: str, answer: str, evaluate: str, routes: str, questions: int
) -> None:
    write(project, answer, evaluate, routes)
    project.file("deadly").write_text(str(questions))
    assert ll(project, "run", "demo", "--backend", backend) == -9
    assert len(project.lines("questions")) == questions
    assert ll(project, "resume", "--backend", backend) == 0
    assert len(project.lines("questions")) == questions + 1  # the one that was cut off
    assert project.lines("actions") == ["ran"]  # what was judged was not done again


def test_after_its_last_answer_a_judge_is_not_asked_again(project: Project) -> None:
    write(project, OPINION, "type: llm_structured, prompt: Good?", ROUTES)
    project.file("deadly").write_text("99")  # only the next state kills
    assert ll(project, "run", "demo") == -9
    assert ll(project, "resume") == 0
    assert project.lines("questions") == ["asked"]
    records = project.records(project.run_folders()[0].name)
    [judged] = only(records, "evaluate")[:1]
    assert judged["verdict"] == "yes"
