"""Loops as diagrams of characters: they fit, and whoever follows a line arrives where the loop would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from ll_loop.core.drawing.cells import cells
from ll_loop.core.drawing.draw import draw
from ll_loop.core.drawing.facets import Facets, main_part
from ll_loop.core.drawing.mermaid import edges
from ll_loop.core.model import CURRENT, Loop, Routes, Shell, State, SubLoop
from ll_loop.files.library import Library, bundled_loops
from loops_gen import family

DONE = State("done", terminal=True)
ARMS = {
    "│": "ud", "─": "lr", "┌": "dr", "┐": "dl", "└": "ur", "┘": "ul", "├": "udr", "┤": "udl", "┬": "lrd", "┴": "lru",
    "┼": "udlr", "▼": "u",
}  # fmt: skip
STEPS = {"u": (0, -1), "d": (0, 1), "l": (-1, 0), "r": (1, 0)}
BACK = {"u": "d", "d": "u", "l": "r", "r": "l"}


def loop_of(*states: State) -> Loop:
    return Loop("sample", states[0].name, {state.name: state for state in states})


def shell(name: str, **targets: str) -> State:
    return State(name, Shell("true"), routes=Routes(on=targets))


def test_a_loop_becomes_boxes_and_lines() -> None:
    check = State("check", Shell("make test"), routes=Routes(on={"yes": "done", "no": "fix"}))
    fix = State("fix", Shell("make fix"), routes=Routes(next="check"))
    assert draw(loop_of(check, fix, DONE), 80) == [
        "┌──────────────┐",
        "│              ▼",
        "│      ┌──────────────┐",
        "│      │ → check      │",
        "│      │ $ make test  │",
        "│      └─┬ yes ─┬ no ─┘",
        "│       ┌│──────┘",
        "│       │└──────────────┐",
        "│       ▼               ▼",
        "│ ┌────────────┐   ┌────────┐",
        "│ │ fix        │   │ done ◉ │",
        "│ │ $ make fix │   │        │",
        "│ └─┬ next ────┘   └────────┘",
        "└───┘",
    ]


def _reaches(lines: list[str], loop: Loop) -> bool:
    """Whether every label of every box leads, by its line, to the box of its target."""
    grid = {(x, y): sign for y, line in enumerate(lines) for x, sign in enumerate(line)}
    tops = {}
    bottoms = {}
    for name in loop.states:
        (x, y) = _title_of(name, lines)
        tops[name] = (x, y - 1)
        bottoms[name] = y + next(n for n in range(1, 20) if lines[y + n][x - 2] == "└")
    for state in loop.states.values():
        wanted: dict[str, None] = {}
        for _, target in edges(state):
            target = state.name if target == CURRENT else target
            if target != state.name and target in loop.states:
                wanted[target] = None
        x, y = _title_of(state.name, lines)[0] - 2, bottoms[state.name]
        end = lines[y].index("┘", x)
        ports = [at for at in range(x, end) if lines[y][at] == "┬"]
        found = [_arrow(grid, (port, y)) for port in ports]
        assert len(ports) == len(wanted)
        for (ax, ay), target in zip(found, wanted, strict=True):
            left, top = tops[target][0] - 2, tops[target][1]
            assert ay == top - 1, f"{state.name} -> {target}"
            assert left < ax < lines[top].index("┐", left)
    return True


def _title_of(name: str, lines: list[str]) -> tuple[int, int]:
    """Where the text of a box begins."""
    for y, line in enumerate(lines):
        for title in (f"│ {name} ", f"│ → {name} "):
            if title in line and lines[y - 1][line.index(title)] == "┌":
                return line.index(title) + 2, y
    raise AssertionError(f"{name} is not drawn")


def _arrow(grid: dict[tuple[int, int], str], port: tuple[int, int]) -> tuple[int, int]:
    """The one arrow that the line from a port leads to."""
    arrows: set[tuple[int, int]] = set()
    seen: set[tuple[int, int, str]] = set()
    waiting = [(*port, "d")]
    while waiting:
        x, y, way = waiting.pop()
        x, y = x + STEPS[way][0], y + STEPS[way][1]
        if (x, y, way) in seen:
            continue
        seen.add((x, y, way))
        sign = grid.get((x, y), " ")
        if sign == "│" and way in "lr":
            waiting.append((x, y, way))  # it passes below
        elif BACK[way] in ARMS.get(sign, ""):
            if sign == "▼":
                arrows.add((x, y))
            elif not (sign == "┬" and way == "u"):
                waiting += [(x, y, arm) for arm in ARMS[sign] if arm != BACK[way]]
        else:
            raise AssertionError(f"a line ends at {x}, {y}: {sign!r}")
    assert len(arrows) == 1, f"the line from {port} leads to {arrows}"
    return arrows.pop()


@pytest.mark.parametrize("path", sorted(bundled_loops().glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("width", [40, 60, 100, 160])
def test_a_built_in_loop_fits_and_its_lines_lead_where_the_loop_goes(path: Path, width: int, tmp_path: Path) -> None:
    loop = Library(tmp_path).load(str(path)).loop
    lines = draw(loop, width)
    assert max(map(cells, lines)) <= width
    if any("┌" in line for line in lines):
        assert _reaches(lines, loop)


@pytest.mark.parametrize("seed", range(60))
def test_lines_of_loops_made_at_random_lead_where_the_loop_goes(seed: int) -> None:
    loop, _ = family(seed)
    for width in (50, 120):
        lines = draw(loop, width)
        assert max(map(cells, lines)) <= width
        if any("┌" in line for line in lines):
            assert _reaches(lines, loop)


@pytest.mark.parametrize("width", [1, 5, 12, 20, 30])
def test_what_has_no_room_for_boxes_becomes_a_list(width: int) -> None:
    loop = loop_of(shell("a_long_name", yes="done", no="done", error="b"), shell("b", yes="done"), DONE)
    assert max(map(cells, draw(loop, width))) <= width
    assert draw(loop, 12) == ["→ a_long_na…", "    yes → d…", "    no → do…", "    error →…", "  b", "    yes → d…",
                              "  done ◉"]  # fmt: skip


def test_many_states_in_a_row_are_broken_into_rows_that_fit() -> None:
    fan = [f"s{number}" for number in range(12)]
    first = State("first", Shell("true"), routes=Routes(table=dict(zip(fan[:4], fan[:4], strict=True))))
    rest = [shell(name, yes="done", no=fan[(index + 1) % 12]) for index, name in enumerate(fan)]
    loop = loop_of(first, *rest, DONE)
    lines = draw(loop, 60)
    assert max(map(len, lines)) <= 60
    assert _reaches(lines, loop)


def test_a_state_that_repeats_itself_and_a_target_known_only_in_a_run_are_told_inside_the_box() -> None:
    state = State("poll", Shell("true"), routes=Routes(table={"no": "$current", "yes": "done", "_": "${prev.output}"}))
    lines = draw(loop_of(state, DONE), 60)
    assert "  │ ↺ no" in "\n".join(f"  {line}" for line in lines)
    assert any("otherwise → ${prev.output}" in line for line in lines)


def test_ends_failures_sub_loops_and_handlers_can_be_told_apart() -> None:
    states = (State("call", SubLoop("kid"), routes=Routes(on={"yes": "done", "no": "failed"})),
              State("tell", Shell("true"), routes=Routes(next="done")), DONE,
              State("failed", terminal=True, failure=True))  # fmt: skip
    text = "\n".join(draw(Loop("x", "call", {s.name: s for s in states}, on_max_steps="tell"), 80))
    for part in ("→ call", "loop kid", "(at max_steps)", "done ◉", "failed ✗"):
        assert part in text


@pytest.mark.parametrize("detail", ["title", "line", "full"])
@pytest.mark.parametrize("labels", [True, False])
def test_lines_lead_where_the_loop_goes_whatever_is_shown(detail: Any, labels: bool) -> None:
    loop = loop_of(shell("a", yes="done", no="b", error="c"), shell("b", yes="a", no="c"), shell("c", yes="done"), DONE)
    facets = Facets(labels=labels, detail=detail)
    assert _reaches(draw(loop, 70, facets=facets), loop)
    main = main_part(loop)
    assert _reaches(draw(loop, 70, facets=replace(facets, scope="main")), main)
    assert set(main.states) == {"a", "b", "c", "done"}


def test_a_plain_diagram_holds_nothing_but_ascii() -> None:
    loop = loop_of(shell("a", yes="done", no="b"), shell("b", yes="a", no="b"), DONE)
    text = "\n".join(draw(loop, 60, plain=True))
    assert text.isascii()
    assert "> a" in text
    assert "| done @ |" in text


def test_wide_characters_take_their_room() -> None:
    loop = loop_of(State("prüfen", Shell("echo 測試測試"), routes=Routes(next="done")), DONE)
    lines = draw(loop, 60)
    box = [line for line in lines if line.startswith(("┌─", "│ "))][:3]
    assert len({cells(line) for line in box}) == 1
