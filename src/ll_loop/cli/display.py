"""The live display on stderr: one of a few views of what a `Tracker` says, drawn ten times a second at most.

It reads the session's records and never makes a run wait: what it cannot draw in time is drawn late or not at all.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from . import words
from .asking import Asker, Keyboard, is_somebody_there
from .terminal import STDERR, Look, Screen, Sink, cells, clean, columns, cut, look_at, pad
from .tracker import Asks, Began, Ended, Following, Happening, Noted, StepDone, Stopping, Tracker, Waits

if TYPE_CHECKING:
    from ..api import Reader, RunHandle

REFRESH = 0.1
"""Seconds between two drawings."""

WIDEST_STATE = 24


class View(Protocol):
    """One way of showing runs: lines that scroll by, and lines that are redrawn."""

    def feed(self, happening: Happening, look: Look) -> Iterator[str]: ...
    def live(self, look: Look) -> Sequence[str]: ...


class Display:
    """Shows what runs do while they do it. `close` leaves the terminal as it was."""

    def __init__(
        self, handles: list[RunHandle], *, quiet: bool, many: bool, grace: float, colour: bool = True,
        verbose: bool = False,
    ) -> None:  # fmt: skip
        self.tracker = Tracker(handles, time.monotonic)
        self._colour = colour
        self.look = look_at(STDERR, os.environ, colour=colour)
        self.sink = Sink(STDERR)
        self._screen = Screen(self.sink)
        self._view = view_of(self.tracker, self.look, quiet=quiet, many=many, grace=grace)
        self._fed: list[str] = []
        self._verbose, self._many = verbose, many
        self._asker = Asker(handles, Keyboard(live=self.look.live), self._asked) if is_somebody_there() else None

    async def follow(self, reader: Reader) -> None:
        """Show the records of a reader, until it ends."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._tick)
            if self._asker is not None:
                tasks.start_soon(self._asker.serve)
            async for record in reader:
                self._feed(self.tracker.take(record))
                if self._verbose and not self.sink.is_behind:
                    self._fed += spoken(record, self.tracker.runs[record["run_id"]].name if self._many else "")
            tasks.cancel_scope.cancel()
        self._draw()
        if reader.dropped:
            self._fed.append(f"{reader.dropped} records came too fast to be shown; `ll-loop history` has them")

    def close(self) -> None:
        """Take the live lines away; what has scrolled by stays."""
        self._draw()
        self._screen.close()

    async def _tick(self) -> None:
        while True:
            self._draw()
            await anyio.sleep(REFRESH)

    def _draw(self) -> None:
        self._feed(self.tracker.look())
        if self.look.live:
            self.look = look_at(STDERR, os.environ, colour=self._colour)  # it may have been resized
        fed, self._fed = self._fed, []
        self._screen.show(fed, [*self._view.live(self.look), *self._questions()])

    def _asked(self, complaint: str) -> None:
        if complaint and not self.look.live:
            self._fed.append(complaint)
        self._draw()

    def _questions(self) -> list[str]:
        if self._asker is None:
            return []
        self._asker.look()
        return self._asker.lines(self.look) if self.look.live else []

    def _feed(self, happenings: Iterator[Happening]) -> None:
        for happening in happenings:
            if not self.sink.is_behind:
                self._fed += self._view.feed(happening, self.look)


def view_of(tracker: Tracker, look: Look, *, quiet: bool, many: bool, grace: float) -> View:
    """The view for a descriptor that looks so."""
    if quiet:
        return Quiet(grace)
    if many:
        return Table(tracker, grace) if look.live else Notices(grace)
    return Steps(tracker, grace) if look.live else Lines(grace)


def spoken(record: Mapping[str, Any], name: str = "") -> Iterator[str]:
    """What a record says that steps leave out, uncut: the whole action, what it prints, the reason of a verdict."""
    mark, text = "", ""
    match record["event"]:
        case "action_start":
            mark, text = ("> " if record["is_prompt"] else "$ "), record["action"]
        case "action_output":
            text = record["line"]
        case "evaluate":
            text = record.get("reason") or record.get("error") or ""
    head = "    " + "  " * record.get("depth", 0) + (f"{name}: " if name else "") + mark
    for line in text.splitlines():
        if said := clean(line):
            yield head + line[: len(line) - len(line.lstrip(" "))] + said


class Quiet:
    """Nothing but the answer to a signal, and what a run asks."""

    def __init__(self, grace: float) -> None:
        self._grace = grace

    def feed(self, happening: Happening, look: Look) -> Iterator[str]:
        if isinstance(happening, Stopping):
            grace = words.seconds(self._grace, whole=self._grace.is_integer())
            verb = "gets" if happening.runs == 1 else "get"
            text = f"stopping: {words.plural(happening.runs, 'run')} {verb} {grace} (Ctrl-C again: at once)"
            yield look.fit(text)
        if isinstance(happening, Asks):
            yield f"{happening.run.name} asks: {happening.lines[0]}"
            yield from (f"    {line}" for line in happening.lines[1:])
            yield look.fit(f"    answer with: ll-loop approve {happening.run.handle.run_id} yes|no|edit")

    def live(self, look: Look) -> Sequence[str]:
        return ()


# --- one run -----------------------------------------------------------------------------------------------


class Steps(Quiet):
    """One run on a terminal: finished steps scroll by, the one under way ticks below them."""

    def __init__(self, tracker: Tracker, grace: float) -> None:
        super().__init__(grace)
        self._tracker = tracker

    def feed(self, happening: Happening, look: Look) -> Iterator[str]:
        match happening:
            case Began(run):
                yield _ends(run.name, f"step limit {run.handle.loop.max_steps}", look)
            case StepDone(run, step, target, seconds):
                kind, glyph = _mark(step.is_good, look)
                arrow = f"{look.glyphs.arrow} {target}" if target else ""
                parts = (step.line, "") if step.is_good and step.line else (step.outcome, arrow)
                text = "  ".join(part for part in (words.tried(step.attempt), *parts) if part)
                yield _row(run, glyph, kind, step.depth, step.number, step.state, text, words.seconds(seconds), look)
            case Noted(_, text):
                yield look.paint(look.fit(f"  ! {text}"), "yellow")
            case _:
                yield from super().feed(happening, look)

    def live(self, look: Look) -> Sequence[str]:
        return [self._line(run, look) for run in self._tracker.runs.values() if not run.ended]

    def _line(self, run: Following, look: Look) -> str:
        now = self._tracker.clock()
        glyph = look.glyphs.spinner[int(now * 10) % len(look.glyphs.spinner)]
        step, total = run.step, words.seconds(now - run.since, whole=True)
        if step is None or run.waits:
            return _ends(f"  {glyph} {run.name if step is None else step.state} {run.waits}", total, look)
        since = words.seconds(now - step.since, whole=True)
        clock = since if since == total else f"{since}  (total {total})"
        return _row(
            run, glyph, "", step.depth, step.number, step.state, step.line or step.action, clock, look
        )  # fmt: skip


class Lines(Quiet):
    """One run where there is no terminal: a line a step."""

    def feed(self, happening: Happening, look: Look) -> Iterator[str]:
        match happening:
            case StepDone(run, step, target, seconds, ts):
                cap = run.handle.loop.max_steps
                number = f"{step.number}/{cap}" if not step.depth else f"{step.number}"
                facts = [_stamp(ts), run.name, f"step={number}", f"state={step.state}"]
                facts += [f"depth={step.depth}"] if step.depth else []
                facts += [f"attempt={step.attempt}"] if step.attempt > 1 else []
                facts += [f"verdict={step.verdict}"] if step.verdict else []
                facts += [f"exit={step.exit_code}"] if step.exit_code is not None else []
                facts += [f"next={target}"] if target else []
                facts += ["interrupted=yes"] if step.was_cut else []
                yield look.fit(" ".join([*facts, f"dur={seconds:.2f}s"]))
            case Waits(run, holder):
                yield look.fit(f"{run.name}: waits for {holder}")
            case Noted(run, text):
                yield look.fit(f"{run.name}: {text}")
            case _:
                yield from super().feed(happening, look)


# --- many runs ---------------------------------------------------------------------------------------------


class Notices(Quiet):
    """Many runs where there is no terminal: a line when one starts, waits, ends or has something to say."""

    def feed(self, happening: Happening, look: Look) -> Iterator[str]:
        match happening:
            case Began(run):
                yield look.fit(f"{run.name}: started  {run.handle.run_id}")
            case Waits(run, holder):
                yield look.fit(f"{run.name}: waits for {holder}")
            case Ended(run, result):
                took = words.seconds(result.duration_ms / 1000)
                yield look.fit(
                    f"{run.name}: {words.ending_of(result)}  {words.plural(result.iterations, 'step')}  {took}"
                )
            case Noted(run, text):
                yield look.fit(f"{run.name}: {text}")
            case _:
                yield from super().feed(happening, look)


class Table(Quiet):
    """Many runs on a terminal: a line each, as far as the terminal is high."""

    def __init__(self, tracker: Tracker, grace: float) -> None:
        super().__init__(grace)
        self._tracker = tracker

    def feed(self, happening: Happening, look: Look) -> Iterator[str]:
        match happening:
            case Noted(run, text):
                yield look.fit(f"{run.name}: {text}")
            case _:
                yield from super().feed(happening, look)

    def live(self, look: Look) -> Sequence[str]:
        runs = list(self._tracker.runs.values())
        if all(run.ended for run in runs):
            return ()
        room = max(1, look.height - 2)
        shown, rest = runs, []
        if len(runs) > room:
            ordered = sorted(runs, key=_urgency)
            shown, rest = ordered[: room - 1], ordered[room - 1 :]
        lines = columns([self._cells(run, look) for run in shown], right=(3,)) if shown else []
        painted = [look.fit(f"  {line}") for line in lines]
        return [*painted, look.fit(f"  {_more(rest, look)}")] if rest else painted

    def _cells(self, run: Following, look: Look) -> tuple[str, str, str, str, str]:
        now = run.stopped_at or self._tracker.clock()
        elapsed = words.seconds(now - run.since, whole=True)
        name = cut(run.name, max(8, (look.width or 80) // 3), look.glyphs.cut)
        result = run.handle.result
        if result is not None:
            glyph = look.glyphs.done if result.ok else look.glyphs.bad
            return glyph, name, words.ending_of(result), elapsed, ""
        if not run.began:
            return look.glyphs.waits, name, "queued", elapsed, run.waits
        glyph = look.glyphs.spinner[int(now * 10) % len(look.glyphs.spinner)]
        step = run.step
        where = f"{step.number} {step.state}" if step else "starting"
        return glyph, name, cut(where, WIDEST_STATE, look.glyphs.cut), elapsed, run.waits or (step.line if step else "")


def _urgency(run: Following) -> int:
    """Working runs first, then those that wait, then those that are done."""
    return 2 if run.ended else 0 if run.began else 1


def _more(runs: Sequence[Following], look: Look) -> str:
    words_of = {0: "running", 1: "queued", 2: "done"}
    counts = Counter(_urgency(run) for run in runs)
    parts = ", ".join(f"{counts[key]} {words_of[key]}" for key in sorted(counts))
    return f"{look.glyphs.waits} {len(runs)} more: {parts}"


# --- lines -------------------------------------------------------------------------------------------------


def _mark(good: bool | None, look: Look) -> tuple[str, str]:
    """The colour and the sign of a step."""
    if good is None:
        return "yellow", look.glyphs.other
    return ("green", look.glyphs.done) if good else ("red", look.glyphs.bad)


def _row(
    run: Following, glyph: str, colour: str, depth: int, number: int, state: str, text: str, right: str, look: Look
) -> str:
    width = look.width or 80
    room = min(WIDEST_STATE, max(map(cells, run.handle.loop.states), default=8), width // 3)
    name = pad(cut(state, room, look.glyphs.cut), room)
    left = f" {number:>2} {name}  {text}"
    line = _ends(f"  {'  ' * depth}{glyph}{left}", right, look)
    return line.replace(glyph, look.paint(glyph, colour), 1) if colour else line


def _ends(left: str, right: str, look: Look) -> str:
    """A line with something at both of its ends; the left end gives way."""
    width = (look.width or 80) - 1
    if cells(right) + 8 > width:
        return cut(left, width, look.glyphs.cut)
    left = cut(left, width - cells(right) - 1, look.glyphs.cut)
    return pad(left, width - cells(right)) + right


def _stamp(ts: str) -> str:
    return f"{ts[:19]}Z" if ts else ""


# --- records for programs ----------------------------------------------------------------------------------


async def pass_on(
    reader: Reader, sink: Sink, line_of: Callable[[Mapping[str, Any]], str], is_over: Callable[[], bool]
) -> None:
    """Write records as lines, at the pace of whoever reads them, until the reader ends.

    When `is_over`, what is left goes to the sink at once: nobody waits for a program that has stopped reading.
    """
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_keep_pumping, sink)
        async for record in reader:
            line = line_of(record)
            if line:
                sink.put(f"{line}\n")
            while not sink.pump() and sink.is_behind and not is_over():  # noqa: ASYNC110 - pipes give no event
                await anyio.sleep(REFRESH)
        tasks.cancel_scope.cancel()


async def _keep_pumping(sink: Sink) -> None:
    while True:
        sink.pump()
        await anyio.sleep(REFRESH)
