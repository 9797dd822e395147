"""Lines of box-drawing characters on a grid: those of one net join where they meet, those of two pass each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from .cells import cells_of

_UP, _DOWN, _LEFT, _RIGHT = 1, 2, 4, 8
_SIGNS: Mapping[int, str] = {
    _UP: "│", _DOWN: "│", _UP | _DOWN: "│",
    _LEFT: "─", _RIGHT: "─", _LEFT | _RIGHT: "─",
    _UP | _LEFT: "┘", _UP | _RIGHT: "└", _DOWN | _LEFT: "┐", _DOWN | _RIGHT: "┌",
    _UP | _DOWN | _LEFT: "┤", _UP | _DOWN | _RIGHT: "├",
    _LEFT | _RIGHT | _UP: "┴", _LEFT | _RIGHT | _DOWN: "┬",
    _UP | _DOWN | _LEFT | _RIGHT: "┼",
}  # fmt: skip
_ASCII = str.maketrans({**dict.fromkeys("┌┐└┘├┤┬┴┼", "+"), "─": "-", "│": "|", "▼": "v", "→": ">", "◉": "@", "✗": "x",
                        "↺": "^", "…": "~"})  # fmt: skip

_Key = TypeVar("_Key")


class Canvas:
    """A grid that grows as it is drawn on. Text hides lines."""

    def __init__(self) -> None:
        self._text: dict[tuple[int, int], str] = {}
        self._lines: dict[tuple[int, int], dict[str, int]] = {}

    def write(self, x: int, y: int, text: str) -> None:
        for character in text:
            if cells_of(character):
                self._text[x, y] = character
                if cells_of(character) == 2:
                    self._text[x + 1, y] = ""
            else:
                self._text[x - 1, y] = self._text.get((x - 1, y), "") + character
            x += cells_of(character)

    def horizontal(self, net: str, left: int, right: int, y: int) -> None:
        for x in range(left, right + 1):
            self._add(net, x, y, (_LEFT if x > left else 0) | (_RIGHT if x < right else 0))

    def vertical(self, net: str, x: int, top: int, bottom: int) -> None:
        for y in range(top, bottom + 1):
            self._add(net, x, y, (_UP if y > top else 0) | (_DOWN if y < bottom else 0))

    def _add(self, net: str, x: int, y: int, arms: int) -> None:
        cell = self._lines.setdefault((x, y), {})
        cell[net] = cell.get(net, 0) | arms

    def lines(self) -> list[str]:
        """What was drawn, without blanks at the ends of lines."""
        places = [*self._text, *self._lines]
        width = max((x for x, _ in places), default=-1) + 1
        height = max((y for _, y in places), default=-1) + 1
        return ["".join(self._sign(x, y) for x in range(width)).rstrip() for y in range(height)]

    def _sign(self, x: int, y: int) -> str:
        text = self._text.get((x, y))
        if text is not None:
            return text
        arms = [found for found in self._lines.get((x, y), {}).values() if found]
        if len(arms) > 1 and _UP | _DOWN in arms:
            return "│"  # it passes over the others
        joined = 0
        for one in arms:
            joined |= one
        return _SIGNS.get(joined, " ")


def lanes_for(spans: Mapping[_Key, tuple[int, int]]) -> dict[_Key, int]:
    """A lane for each span, counted from 0, so that no two in a lane overlap; short ones get the first lanes."""
    lanes: dict[_Key, int] = {}
    taken: list[list[tuple[int, int]]] = []
    for key, (low, high) in sorted(spans.items(), key=lambda item: item[1][1] - item[1][0]):
        lane = next((n for n, used in enumerate(taken) if all(high < a or b < low for a, b in used)), len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append((low, high))
        lanes[key] = lane
    return lanes


def tracks_for(spans: Sequence[tuple[int, int]]) -> list[int | None]:
    """A line of the gap for each span of columns, so that no two on a line touch; None for one that goes straight."""
    wide = {index: (low - 1, high + 1) for index, (low, high) in enumerate(spans) if low < high}
    tracks = lanes_for(wide)
    return [tracks.get(index) for index in range(len(spans))]


def to_ascii(line: str) -> str:
    """The line without box-drawing characters."""
    return line.translate(_ASCII)
