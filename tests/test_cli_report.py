"""What is said at the end: the endings in words, reasons, what to do next, and the exit codes of errors."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from ll_loop.cli import report, words
from ll_loop.cli.complaints import complain
from ll_loop.cli.terminal import Look, cells
from ll_loop.core.model import TerminatedBy
from ll_loop.errors import CannotCreateError, LoopError, NotFoundError, RefusedError, StorageError
from ll_loop.run.journals.request import RunResult

KEPT: dict[str, Any] = {
    "kept": True,
    "reason": "it has changes",
    "path": "/somewhere/with/a/rather/long/path/to/a/worktree",
    "commands": ["git -C /somewhere/with/a/rather/long/path merge ll-loop/fix-12345678"],
}
FAILING = {"state": "check", "exit_code": 3, "output_preview": "a\nb\nc\nd\ne\nf", "stderr_preview": "why\x1b[31m not"}


def result_of(**more: Any) -> RunResult:
    facts: dict[str, Any] = {
        "run_id": "20261122T134309-fix-0a1b2c3d",
        "loop": "fix",
        "status": "completed",
        "terminated_by": "terminal",
        "final_state": "done",
        "iterations": 4,
        "exit_code": 0,
        "duration_ms": 65_000,
        "run_dir": "/p/.loops/runs/x/artifacts/",
    }
    return RunResult(**{**facts, **more})


@pytest.mark.parametrize("by", get_args(TerminatedBy))
def test_every_ending_has_a_name_of_its_own(by: TerminatedBy) -> None:
    named = words.ending(by)
    assert named != by or by == "interrupted"
    assert all(words.ending(other) != named for other in get_args(TerminatedBy) if other != by)


def test_success_is_one_line() -> None:
    lines = list(report.of_one(result_of(), None, Look()))
    assert lines == ["done in 4 steps, 1m 05s  run 20261122T134309-fix-0a1b2c3d"]


def test_a_failure_shows_the_end_of_both_streams_of_its_action() -> None:
    failed = result_of(terminated_by="no_route", status="failed", final_state="check", exit_code=1, error="No way")
    assert list(report.of_one(failed, FAILING, Look()))[1:] == [
        "  No way",
        "  check: exit 3",
        "    stdout: b",
        "    stdout: c",
        "    stdout: d",
        "    stdout: e",
        "    stdout: f",
        "    stderr: why not",
    ]


def test_a_defect_says_where_the_whole_story_is() -> None:
    defect = result_of(terminated_by="internal_error", status="failed", exit_code=70, error="TypeError: x")
    assert "  the whole story: /p/.loops/runs/x/internal-error.log" in report.of_one(defect, None, Look())


def test_the_resume_command_fits_the_terminal() -> None:
    interrupted = result_of(terminated_by="interrupted", status="interrupted", exit_code=130, resumable=True)
    wide, narrow = (list(report.of_one(interrupted, None, Look(width=width)))[-1] for width in (80, 40))
    assert wide == "resume with: ll-loop resume 20261122T134309-fix-0a1b2c3d"
    assert narrow == "resume with: ll-loop resume fix"


def test_the_commands_of_a_kept_worktree_are_whole() -> None:
    lines = list(report.of_many([result_of(worktree=KEPT), result_of()], {}, Look(width=50)))
    assert lines[-4:] == ["fix:", "  kept its branch (it has changes):", f"    {KEPT['commands'][0]}", "2 runs: 2 done"]


def test_a_worktree_that_stays_is_told_from_its_branch() -> None:
    kept = {**KEPT, "commands": ["cd /somewhere"]}
    assert list(report.of_one(result_of(worktree=kept), None, Look()))[1:] == [
        "kept its worktree (it has changes):",
        "  cd /somewhere",
    ]


def test_a_narrow_table_gives_up_whole_columns_first() -> None:
    lines = [next(iter(report.of_many([result_of()], {}, Look(width=width)))) for width in (120, 60, 40, 25, 20)]
    assert [line.split() for line in lines] == [
        ["loop", "ended", "state", "steps", "time", "run"],
        ["loop", "ended", "state", "steps", "time"],
        ["loop", "ended", "state", "steps", "time"],
        ["loop", "ended", "state"],
        ["loop", "ended"],
    ]


@pytest.mark.parametrize("width", [40, 60, 120])
def test_the_report_is_no_wider_than_the_terminal(width: int) -> None:
    bad = {"terminated_by": "error", "status": "failed", "exit_code": 1, "error": "something long " * 20}
    results = [result_of(loop="a-loop-with-quite-a-long-name" * 2, run_id=f"id-{n}", **bad) for n in range(20)]
    lines = list(report.of_many(results, {"id-0": FAILING}, Look(width=width)))
    assert max(map(cells, lines)) < width
    assert lines[-1] == "20 runs: 20 failed: error"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFoundError("no"), 66),
        (CannotCreateError("no"), 73),
        (StorageError("no"), 74),
        (RefusedError("no"), 75),
        (KeyboardInterrupt(), 130),
        (BaseExceptionGroup("", [NotFoundError("no"), ExceptionGroup("", [NotFoundError("no")])]), 66),
        (BaseExceptionGroup("", [LoopError("no"), KeyboardInterrupt()]), 130),
        (ZeroDivisionError("no"), 70),
    ],
    ids=repr,
)
def test_each_kind_of_error_has_its_exit_code(
    error: BaseException, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert complain(error, ["run", "x"], ["run"], runs=True) == code
    assert capfd.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0s"), (9.94, "9.9s"), (12.7, "12s"), (65, "1m 05s"), (3720, "1h 02m")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert words.seconds(seconds) == text
