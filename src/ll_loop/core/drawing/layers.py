"""Puts the states of a loop into rows: each below those that lead to it, except where a way leads back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

Edges = Mapping[str, Sequence[str]]
"""The targets of every state, in order; a state is not a target of itself."""


def rows_of(edges: Edges, initial: str) -> list[list[str]]:
    """The states in rows, the initial one in the first; within a row near to those that lead to them."""
    forward = _forward(edges, [initial, *edges])
    depth = _depths(forward, edges)
    rows: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for name in edges:
        rows[depth[name]].append(name)
    return _ordered(rows, forward)


def _forward(edges: Edges, starts: Iterable[str]) -> dict[str, list[str]]:
    """The edges without those that lead back to a state on the way to them."""
    forward: dict[str, list[str]] = {name: [] for name in edges}
    done: set[str] = set()
    for start in starts:
        if start not in edges or start in done:
            continue
        way, under_way = [(start, iter(edges[start]))], {start}
        while way:
            name, rest = way[-1]
            target = next(rest, None)
            if target is None:
                way.pop()
                under_way.discard(name)
                done.add(name)
            elif target not in under_way:
                forward[name].append(target)
                if target not in done:
                    way.append((target, iter(edges[target])))
                    under_way.add(target)
    return forward


def _depths(forward: Edges, names: Iterable[str]) -> dict[str, int]:
    """How many forward edges lead to each state, along the longest way."""
    waiting = dict.fromkeys(names, 0)
    for targets in forward.values():
        for target in targets:
            waiting[target] += 1
    depth = dict.fromkeys(waiting, 0)
    ready = [name for name, count in waiting.items() if not count]
    while ready:
        name = ready.pop()
        for target in forward[name]:
            depth[target] = max(depth[target], depth[name] + 1)
            waiting[target] -= 1
            if not waiting[target]:
                ready.append(target)
    return depth


def _ordered(rows: list[list[str]], forward: Edges) -> list[list[str]]:
    """Each row in the order of the middle of those above that lead to it."""
    above: dict[str, list[str]] = {name: [] for row in rows for name in row}
    for name, targets in forward.items():
        for target in targets:
            above[target].append(name)
    place: dict[str, float] = {}
    ordered = []
    for row in rows:
        middle = {name: _middle([place[one] for one in above[name] if one in place], index, len(row))
                  for index, name in enumerate(row)}  # fmt: skip
        ordered.append(sorted(row, key=lambda name: middle[name]))
        place.update((name, (index + 0.5) / len(row)) for index, name in enumerate(ordered[-1]))
    return ordered


def _middle(places: Sequence[float], index: int, count: int) -> float:
    return sum(places) / len(places) if places else (index + 0.5) / count


def split(rows: Iterable[Sequence[str]], widths: Mapping[str, int], room: int, gap: int) -> list[list[str]]:
    """The rows, those that are wider than `room` broken into several."""
    broken: list[list[str]] = []
    for row in rows:
        broken.append([])
        taken = 0
        for name in row:
            if broken[-1] and taken + gap + widths[name] > room:
                broken.append([])
                taken = 0
            taken += widths[name] + (gap if broken[-1] else 0)
            broken[-1].append(name)
    return broken
