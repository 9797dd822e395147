"""What a diagram shows of a loop: all of it or its main ways, with or without labels, more or less of each state."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from ..model import CURRENT, Loop, State
from .mermaid import edges

SIDEWAYS = frozenset({"error", "_error", "partial", "blocked", "timeout"})
"""Verdicts that lead away from the main ways."""


class Facets(Struct, frozen=True):
    """`detail`: only names of states, the first line of what they do too, or all of that."""

    labels: bool = True
    detail: Literal["title", "line", "full"] = "line"
    scope: Literal["main", "full"] = "full"


def main_part(loop: Loop) -> Loop:
    """The loop with its main ways only, and the states that they lead to."""
    states = {name: _trimmed(state) for name, state in loop.states.items()}
    reached, found = {loop.initial}, [loop.initial]
    while found:
        name = found.pop()
        ways = {name if target == CURRENT else target for _, target in edges(states[name])} if name in states else set()
        found += ways - reached
        reached |= ways
    return replace(loop, states={name: state for name, state in states.items() if name in reached})


def _trimmed(state: State) -> State:
    routes = state.routes
    on = {verdict: target for verdict, target in routes.on.items() if verdict not in SIDEWAYS}
    table = routes.table
    if table is not None:
        table = {verdict: target for verdict, target in table.items() if verdict not in SIDEWAYS}
    return replace(
        state,
        routes=replace(routes, on=on, table=table),
        retry=None,
        on_retry_exhausted=None,
        rate_limit=None,
        throttle=None,
        on_maintain=None,
    )
