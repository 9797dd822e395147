"""The live display: what it draws from records, and that it never makes a run wait."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ll_loop.api import RunHandle
from ll_loop.cli.display import view_of
from ll_loop.cli.terminal import ASCII, Look, Screen, Sink, cells, clean, cut, look_at
from ll_loop.cli.tracker import StepDone, Tracker
from ll_loop.core.model import Loop, State
from ll_loop.run.bus import Bus
from ll_loop.run.journals.request import Request, RunResult


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Play:
    """Runs that exist only as records; `tell` says what happened in one of them."""

    def __init__(self, *names: str) -> None:
        states = {name: State(name) for name in ("bump", "check", "done")}
        self.handles = [
            RunHandle(Path("runs"), Bus(), f"id-{name}", Loop(name, "bump", states, max_steps=20), Request(name), 0)
            for name in names
        ]
        self.clock = Clock()
        self.tracker = Tracker(self.handles, self.clock)

    def view(self, look: Look, *, many: bool = False, quiet: bool = False, grace: float = 5.0) -> View:
        return View(self, look, many=many, quiet=quiet, grace=grace)

    def end(self, index: int, status: str = "completed", by: str = "terminal", code: int = 0) -> None:
        handle = self.handles[index]
        handle.finish(RunResult(handle.run_id, handle.loop.name, status, by, "done", 3, code, 400, "runs/"))


class View:
    """One view of a play, and all lines that it let scroll by."""

    def __init__(self, play: Play, look: Look, *, many: bool, quiet: bool, grace: float) -> None:
        self.lines: list[str] = []
        self._play = play
        self._look = look
        self._view = view_of(play.tracker, look, quiet=quiet, many=many, grace=grace)

    def tell(self, *events: tuple[str, dict[str, Any]], run: int = 0, depth: int = 0) -> None:
        handle = self._play.handles[run]
        for name, fields in events:
            record = {"event": name, "ts": "2026-11-22T13:43:09.1+00:00", "run_id": handle.run_id, **fields}
            self._play.tracker.hear(record)
            for happening in self._play.tracker.take({**record, "depth": depth} if depth else record):
                self.lines += self._view.feed(happening, self._look)

    def look(self) -> None:
        for happening in self._play.tracker.look():
            self.lines += self._view.feed(happening, self._look)

    def live(self) -> list[str]:
        return list(self._view.live(self._look))


def enter(state: str, number: int) -> tuple[str, dict[str, Any]]:
    return "state_enter", {"state": state, "iteration": number, "iteration_count": 1}


def acted(code: int) -> tuple[str, dict[str, Any]]:
    return "action_complete", {"exit_code": code, "duration_ms": 7, "output_preview": None, "stderr_preview": None}


START: tuple[str, dict[str, Any]] = ("loop_start", {})
ACTION: tuple[str, dict[str, Any]] = ("action_start", {"action": "echo one\necho two", "is_prompt": False})
WIDE = Look(live=True, width=60)


def output(line: str) -> tuple[str, dict[str, Any]]:
    return "action_output", {"line": line}


def route(source: str, target: str) -> tuple[str, dict[str, Any]]:
    return "route", {"from": source, "to": target}


# --- one run -------------------------------------------------------------------------------------------------


async def test_finished_steps_scroll_by_and_the_live_one_ticks() -> None:
    play = Play("counter")
    view = play.view(WIDE)
    view.tell(START, enter("bump", 1), ACTION)
    play.clock.now += 3
    assert view.live()[0].split()[1:] == ["1", "bump", "echo", "one", "3s"]
    view.tell(output("n is 1"), acted(0), route("bump", "check"))
    view.tell(enter("check", 2), acted(1), ("evaluate", {"type": "exit_code", "verdict": "no"}))
    view.tell(route("check", "bump"))
    assert [line.rstrip() for line in view.lines] == [
        "counter                                       step limit 20",
        "  ✓  1 bump   n is 1                                   3.0s",
        "  ✗  2 check  exit 1  → bump                           0.0s",
    ]


@pytest.mark.parametrize("width", [40, 60, 200])
@pytest.mark.parametrize("many", [False, True])
async def test_no_line_is_wider_than_the_terminal(width: int, many: bool) -> None:
    play = Play("a-loop-with-quite-a-long-name-for-a-narrow-terminal", "二番目のループの名前")
    view = play.view(Look(live=True, width=width, height=10), many=many)
    for run in (0, 1):
        view.tell(START, enter("bump", 1), ACTION, output("日本語 " * 30), run=run)
        view.tell(("warning", {"state": "bump", "message": "something " * 20}), run=run)
        live = view.live()
        view.tell(acted(0), route("bump", "check" * 30), run=run)
        assert max(map(cells, [*live, *view.lines])) < width


async def test_what_an_action_prints_cannot_move_the_cursor() -> None:
    play = Play("counter")
    view = play.view(WIDE)
    view.tell(START, enter("bump", 1), ACTION, output("\x1b[2J\x1b]0;title\x07red\x1b[31m\r\n\tend"))
    view.tell(acted(0), route("bump", "check"))
    assert "\x1b" not in "".join(view.lines)
    assert "red end" in view.lines[-1]


async def test_steps_of_sub_loops_are_set_in() -> None:
    view = Play("counter").view(WIDE)
    view.tell(START, enter("bump", 1))
    view.tell(enter("check", 1), acted(0), route("check", "done"), depth=1)
    view.tell(route("bump", "done"))
    assert [line.index("✓") for line in view.lines[1:]] == [4, 2]


async def test_without_a_terminal_a_step_is_one_line_of_facts() -> None:
    play = Play("counter")
    view = play.view(Look())
    view.tell(START, enter("check", 6), ACTION)
    play.clock.now += 0.01
    view.tell(acted(0), ("evaluate", {"type": "exit_code", "verdict": "yes"}), route("check", "done"))
    assert view.lines == ["2026-11-22T13:43:09Z counter step=6/20 state=check verdict=yes exit=0 next=done dur=0.01s"]
    assert view.live() == []


async def test_a_step_that_was_cut_off_is_no_success() -> None:
    view = Play("counter").view(WIDE)
    view.tell(START, enter("check", 1), ACTION, output("half"))
    view.tell(("loop_complete", {"terminated_by": "interrupted", "final_state": "check", "iterations": 1}))
    assert "• " in view.lines[-1]
    assert "interrupted" in view.lines[-1]


async def test_the_tracker_times_a_step_by_its_own_clock() -> None:
    play = Play("counter")
    stream: Iterator[Any] = iter(())
    for name, fields, later in (
        (*START, 1.0),
        (*enter("bump", 1), 2.5),
        (*route("bump", "check"), 0.0),
    ):
        stream = play.tracker.take({"event": name, "ts": "", "run_id": "id-counter", **fields})
        happenings = list(stream)
        play.clock.now += later
    (done,) = happenings
    assert isinstance(done, StepDone)
    assert (done.step.state, done.target, done.seconds) == ("bump", "check", 2.5)


async def test_a_state_that_is_tried_again_after_a_break_says_so() -> None:
    again: list[tuple[str, dict[str, Any]]] = [
        ("loop_resume", {"from_state": "bump", "iteration": 2}),
        ("state_enter", {"state": "bump", "iteration": 3, "attempt": 2}),
        ("route", {"from": "bump", "to": "check"}),
    ]
    drawn, plain = Play("fix").view(Look(live=True, width=60)), Play("fix").view(Look())
    drawn.tell(*again)
    plain.tell(*again)
    assert [" ".join(line.split()) for line in drawn.lines] == [
        "! goes on after step 2, in bump",
        "✓ 3 bump attempt 2 → check 0.0s",
    ]
    assert " state=bump attempt=2 next=check " in plain.lines[1]


# --- many runs -----------------------------------------------------------------------------------------------


async def test_many_runs_are_a_line_each_as_far_as_the_terminal_is_high() -> None:
    play = Play(*(f"loop{number:02}" for number in range(40)))
    view = play.view(Look(live=True, width=80, height=8), many=True)
    for run in range(2):
        view.tell(START, enter("bump", 1), run=run)
    for run in range(2, 9):
        view.tell(START, run=run)
        play.end(run)
    view.look()
    live = view.live()
    assert len(live) == 6
    assert [line.split()[1] for line in live[:5]] == ["loop00", "loop01", "loop09", "loop10", "loop11"]
    assert live[5] == "  … 35 more: 28 queued, 7 done"


async def test_a_waiting_run_says_what_it_waits_for() -> None:
    play = Play("first", "second")
    view = play.view(Look(), many=True)
    view.tell(START)
    play.handles[1].waits_for = "id-first"
    view.tell(("scope_waiting", {"holder": "id-first"}), run=1)
    play.end(0)
    view.look()
    assert view.lines == [
        "first: started  id-first",
        "second: waits for first",
        "first: done  3 steps  0.4s",
    ]


@pytest.mark.parametrize(("grace", "said"), [(5.0, "5s"), (0.2, "0.2s"), (0.0, "0s")])
async def test_a_signal_is_answered_even_when_quiet(grace: float, said: str) -> None:
    play = Play("first", "second")
    view = play.view(Look(), many=True, quiet=True, grace=grace)
    view.tell(START)
    for handle in play.handles:
        handle.cancel("interrupted", 2)
    view.look()
    view.look()
    assert view.lines == [f"stopping: 2 runs get {said} (Ctrl-C again: at once)"]


# --- terminals and pipes -------------------------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue  # the test has closed it


def test_a_reader_that_does_not_read_makes_nobody_wait(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    sink = Sink(writer)
    sink.put("x" * 2_000_000)
    assert not sink.pump()
    assert sink.is_behind
    taken = 0
    while not sink.pump():
        taken += len(os.read(reader, 65536))
    assert taken > 1_000_000


def test_a_reader_that_has_gone_is_no_error(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(reader)
    sink = Sink(writer)
    sink.put("text")
    sink.finish()
    assert sink.is_closed
    sink.put("more")
    assert sink.pump()


def test_the_redrawn_lines_are_taken_away_at_the_end(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    screen = Screen(Sink(writer))
    screen.show(["fed"], ["live 1", "live 2"])
    screen.show([], ["live 3", "live 4"])
    screen.close()
    screen.sink.finish()
    back = "\r\x1b[1A"
    assert os.read(reader, 1000).decode() == f"fed\nlive 1\nlive 2{back}\r\x1b[Jlive 3\nlive 4{back}\r\x1b[J"


def test_nothing_is_written_when_nothing_has_changed(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    screen = Screen(Sink(writer))
    screen.show([], ["same"])
    screen.show([], ["same"])
    assert os.read(reader, 1000) == b"same\r"


def test_a_look_follows_the_environment(pipe: tuple[int, int]) -> None:
    assert look_at(pipe[1], {"TERM": "xterm"}) == Look()
    assert look_at(pipe[1], {"COLUMNS": "40"}).width == 40
    assert look_at(pipe[1], {"LC_ALL": "C"}).glyphs == ASCII


def test_colour_needs_a_terminal_and_no_objection() -> None:
    main, other = os.openpty()
    try:
        assert look_at(other, {"TERM": "xterm", "COLUMNS": "50"}) == Look(True, True, 50, 24)
        assert not look_at(other, {"TERM": "xterm", "NO_COLOR": "1"}).colour
        assert not look_at(other, {"TERM": "dumb"}).live
    finally:
        os.close(main)
        os.close(other)


@pytest.mark.parametrize(
    ("text", "width", "fitted"),
    [("abcdef", 6, "abcdef"), ("abcdef", 5, "abcd…"), ("日本語", 5, "日本…"), ("日本語", 4, "日…"), ("ab", 0, "")],
)
def test_texts_are_cut_by_columns(text: str, width: int, fitted: str) -> None:
    assert cut(text, width) == fitted


def test_foreign_text_becomes_one_harmless_line() -> None:
    assert clean(" a\tb\x1b[1;31mc\x1b[0m\x00\r\nd ") == "a bc d"
