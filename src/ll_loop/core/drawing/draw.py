"""A loop as a diagram of characters, no wider than it is told.

States are boxes in rows. Every way out leaves its box at the bottom, beside its label, and enters its target at the
top: straight through the gap between two rows, or by a lane at the side, back ways on the left, long ways down on the
right. Ways to the same target share their lines. Where there is no room for that, the loop becomes a list.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from ..model import CURRENT, HumanApproval, Learning, Loop, McpTool, Nothing, Prompt, Shell, State, SubLoop
from .cells import cells, cut, pad
from .facets import Facets, main_part
from .layers import rows_of, split
from .mermaid import edges, label_words
from .wires import Canvas, lanes_for, to_ascii, tracks_for

GAP = 3
DETAIL = 30
WHOLE = 60
_ALL = Facets()
LEAST = 12
"""Columns below which a box says nothing."""


class _Port(Struct):
    label: str
    target: str
    x: int = 0


class _Box(Struct):
    name: str
    lines: list[str]
    ports: list[_Port]
    width: int = 0
    row: int = 0
    x: int = 0
    entry: int = 0


class _Net(Struct, frozen=True):
    """What enters one target by one gap, or leaves for its lane by one gap: the columns that a line has to join.

    `above` are the columns that it reaches at the top of the gap, `below` at its bottom; `lane` is that of the lane.
    """

    target: str
    above: tuple[int, ...] = ()
    below: tuple[int, ...] = ()
    enters: bool = False

    @property
    def span(self) -> tuple[int, int]:
        columns = (*self.above, *self.below)
        return min(columns), max(columns)


def draw(loop: Loop, width: int, *, plain: bool = False, facets: Facets = _ALL) -> list[str]:
    """The lines of the diagram, none longer than `width` columns; `plain` uses nothing but ASCII."""
    loop = main_part(loop) if facets.scope == "main" else loop
    room = width
    lines: list[str] | None = None
    while room >= LEAST and lines is None:
        drawing = _Drawing(loop, room, facets)
        excess = drawing.width - width
        if excess <= 0:
            lines = drawing.lines()
        room -= max(excess, 1)
    if lines is None:
        lines = list(_listed(loop, width))
    return [to_ascii(line) for line in lines] if plain else lines


class _Drawing:
    """Boxes no wider than `room`, and the lanes beside them."""

    def __init__(self, loop: Loop, room: int, facets: Facets) -> None:
        self.boxes = {state.name: _box(state, loop, room - 2, facets) for state in loop.states.values()}
        targets = {name: [port.target for port in box.ports] for name, box in self.boxes.items()}
        widths = {name: box.width for name, box in self.boxes.items()}
        self.rows = split(rows_of(targets, loop.initial), widths, room, GAP)
        for index, row in enumerate(self.rows):
            for name in row:
                self.boxes[name].row = index
        self.fits = all(box.width <= room for box in self.boxes.values())
        self.back, self.down = self._lanes(back=True), self._lanes(back=False)
        self.left = 2 * (max(self.back.values(), default=-1) + 1)
        self.inner = max((self._row_width(row) for row in self.rows), default=0)
        right = 2 * (max(self.down.values(), default=-1) + 1)
        self.width = self.left + self.inner + right + (0 if self.fits else room)

    def _row_width(self, row: Sequence[str]) -> int:
        return sum(self.boxes[name].width for name in row) + GAP * (len(row) - 1)

    def _sources(self, target: str) -> Iterator[tuple[_Box, _Port]]:
        for box in self.boxes.values():
            yield from ((box, port) for port in box.ports if port.target == target)

    def _lanes(self, *, back: bool) -> dict[str, int]:
        """The lane of each target that is reached by one on this side, 0 being next to the boxes."""
        spans: dict[str, tuple[int, int]] = {}
        for name, box in self.boxes.items():
            rows = [source.row for source, _ in self._sources(name) if self._goes_by_lane(source, box, back=back)]
            if rows:
                gaps = [*rows, box.row - 1]
                spans[name] = (min(gaps), max(gaps))
        return lanes_for(spans)

    @staticmethod
    def _goes_by_lane(source: _Box, target: _Box, *, back: bool) -> bool:
        return source.row >= target.row if back else source.row < target.row - 1

    # --- placing ---------------------------------------------------------------------------------------------

    def lines(self) -> list[str]:
        """The diagram."""
        self._place()
        gaps = {gap: list(self._nets(gap)) for gap in range(-1, len(self.rows))}
        tracks = {gap: tracks_for([net.span for net in nets]) for gap, nets in gaps.items()}
        canvas, lane_ends = Canvas(), dict[tuple[str, int], list[int]]()
        y = 0
        for gap in range(-1, len(self.rows)):
            if gap >= 0:
                y = self._draw_row(canvas, self.rows[gap], y)
            y = self._draw_gap(canvas, gaps[gap], tracks[gap], y, lane_ends)
        for (target, x), ys in lane_ends.items():
            canvas.vertical(target, x, min(ys), max(ys))
        return canvas.lines()

    def _place(self) -> None:
        for row in self.rows:
            x = self.left + (self.inner - self._row_width(row)) // 2
            for name in row:
                box = self.boxes[name]
                box.x = x
                x += box.width + GAP
                at = box.x + 2
                for port in box.ports:
                    port.x = at
                    at += cells(port.label) + 4
        for box in self.boxes.values():
            box.entry = self._entry(box)

    def _entry(self, box: _Box) -> int:
        """Where ways enter a box: under one that comes straight down if there is one, never under another's."""
        above = self.rows[box.row - 1] if box.row else []
        ports = [port for name in above for port in self.boxes[name].ports]
        inside = range(box.x + 1, box.x + box.width - 1)
        middle = box.x + box.width // 2
        own = [port.x for port in ports if port.target == box.name and port.x in inside]
        taken = {port.x for port in ports if port.target != box.name}
        free = [x for x in inside if x not in taken]
        return min(own or free or [middle], key=lambda x: abs(x - middle))

    def _lane_x(self, target: str, *, back: bool) -> int:
        lane = 2 * (self.back if back else self.down)[target]
        return self.left - 2 - lane if back else self.left + self.inner + 1 + lane

    def _nets(self, gap: int) -> Iterator[_Net]:
        """Everything that runs through the gap below the row `gap`."""
        for name, box in self.boxes.items():
            sources = list(self._sources(name))
            straight = [port.x for source, port in sources if source.row == gap == box.row - 1]
            for back in (True, False):
                here = [port.x for source, port in sources
                        if source.row == gap and self._goes_by_lane(source, box, back=back)]  # fmt: skip
                if here:
                    lane = (self._lane_x(name, back=back),)
                    yield _Net(name, (*here, *lane), ()) if back else _Net(name, tuple(here), lane)
            if gap == box.row - 1 and sources:
                up = (self._lane_x(name, back=True),) if name in self.back else ()
                down = (self._lane_x(name, back=False),) if name in self.down else ()
                yield _Net(name, (*straight, *down), (box.entry, *up), enters=True)

    # --- drawing ---------------------------------------------------------------------------------------------

    def _draw_row(self, canvas: Canvas, row: Sequence[str], y: int) -> int:
        height = max(len(self.boxes[name].lines) for name in row) + 2
        for name in row:
            box = self.boxes[name]
            inner = box.width - 2
            canvas.write(box.x, y, f"┌{'─' * inner}┐")
            for index in range(height - 2):
                text = box.lines[index] if index < len(box.lines) else ""
                canvas.write(box.x, y + 1 + index, f"│ {pad(text, inner - 2)} │")
            canvas.write(box.x, y + height - 1, _bottom(box))
        return y + height

    def _draw_gap(
        self,
        canvas: Canvas,
        nets: Sequence[_Net],
        tracks: Sequence[int | None],
        y: int,
        lane_ends: dict[tuple[str, int], list[int]],
    ) -> int:
        """Draw the lines of a gap whose first line is `y`; returns the line after it."""
        last = y + max((track + 1 for track in tracks if track is not None), default=0)
        sides = {self._lane_x(name, back=True) for name in self.back}
        sides |= {self._lane_x(name, back=False) for name in self.down}
        for net, track in zip(nets, tracks, strict=True):
            at = y if track is None else y + track
            canvas.horizontal(net.target, *net.span, at)
            for x in net.above:
                if x in sides:
                    lane_ends.setdefault((net.target, x), []).append(at)
                else:
                    canvas.vertical(net.target, x, y - 1, at)
            for x in net.below:
                if x in sides:
                    lane_ends.setdefault((net.target, x), []).append(at)
                else:
                    canvas.vertical(net.target, x, at, last)
            if net.enters:
                canvas.write(self.boxes[net.target].entry, last, "▼")
        return last + any(net.enters for net in nets)


# --- boxes -----------------------------------------------------------------------------------------------------


def _box(state: State, loop: Loop, most: int, facets: Facets) -> _Box:
    ports, lines = _ports(state, loop, labels=facets.labels)
    title = f"{'→ ' if state.name == loop.initial else ''}{state.name}{_mark(state)}"
    lines = [title, *_details(state, facets), *_handles(state.name, loop), *lines]
    widest = WHOLE if facets.detail == "full" else DETAIL
    if ports:
        longest = (most - 1) // len(ports) - 4
        ports = [_Port(cut(port.label, longest), port.target) for port in ports]
    wanted = max(cells(title) + 2, min(widest, max(map(cells, lines))) + 2, sum(cells(p.label) + 4 for p in ports) + 1)
    needs = sum(max(1, cells(port.label)) + 4 for port in ports) + 1
    inner = max(min(wanted, most), needs)
    return _Box(state.name, [cut(line, inner - 2) for line in lines], ports, inner + 2)


def _mark(state: State) -> str:
    return (" ✗" if state.failure else " ◉") if state.terminal else ""


def _details(state: State, facets: Facets) -> list[str]:
    if facets.detail == "full" and state.template:
        mark, _, first = _detail(state).partition(" ")
        words = "\n".join(_printable(line) for line in state.template.splitlines() if line.strip()) or first
        wrapped = (part for line in words.split("\n") for part in textwrap.wrap(line, WHOLE - 2))
        return [f"{' ' if index else mark} {line}" for index, line in enumerate(wrapped)]
    detail = "" if facets.detail == "title" else _detail(state)
    return [detail] if detail else []


def _detail(state: State) -> str:
    match state.work:
        case Nothing():
            return ""
        case Shell(action):
            return f"$ {_first_line(action)}"
        case Prompt(action):
            return f"> {_first_line(action)}"
        case SubLoop(name):
            return f"loop {name}"
        case McpTool(tool):
            return f"tool {_first_line(tool)}"
        case HumanApproval(question):
            return f"? {_first_line(question)}"
        case Learning():
            return "learning"


def _handles(name: str, loop: Loop) -> Iterator[str]:
    """What brings a run here without a way that could be drawn."""
    breaker = loop.circuit.then if loop.circuit else None
    for key, target in (("max_steps", loop.on_max_steps), ("max_iterations", loop.on_max_iterations),
                        ("timeout", loop.on_timeout), ("repeated failure", breaker)):  # fmt: skip
        if target == name:
            yield f"(at {key})"


def _first_line(text: str) -> str:
    words = next((line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")), "")
    return _printable(words)


def _printable(line: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in line).split())


def _ports(state: State, loop: Loop, *, labels: bool) -> tuple[list[_Port], list[str]]:
    """The ways out to other states, and a line each for those that lead nowhere that can be drawn."""
    ways: dict[str, list[str]] = {}
    for label, target in edges(state):
        ways.setdefault(state.name if target == CURRENT else target, []).append(label_words(label))
    ports, lines = [], []
    for target, words in ways.items():
        label = "/".join(words) if labels else ""
        if target == state.name:
            lines.append(f"↺ {label}".rstrip())
        elif target in loop.states:
            ports.append(_Port(label, target))
        else:
            lines.append(f"{label} → {_first_line(target)}".lstrip())
    return ports, lines


def _bottom(box: _Box) -> str:
    ways = "".join(f"─┬ {port.label} " if port.label else "─┬──" for port in box.ports)
    return f"└{ways}{'─' * (box.width - 2 - cells(ways))}┘"


def _listed(loop: Loop, width: int) -> Iterator[str]:
    """The loop as a list: where a diagram has no room."""
    for state in loop.states.values():
        start = "→ " if state.name == loop.initial else "  "
        yield cut(f"{start}{state.name}{_mark(state)}", width)
        ways: Mapping[str, None] = dict.fromkeys(f"{label_words(label)} → {target}" for label, target in edges(state))
        yield from (cut(f"    {way}", width) for way in ways)
