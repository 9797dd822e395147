"""A loop cut down to one of its states, to see what that state does and where it would lead."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from types import MappingProxyType

from msgspec.structs import replace

from .model import CURRENT, EMPTY, Loop, Nothing, RateLimit, Routes, Shell, State
from .routing import ABSTAINED
from .template import references


def again(name: str) -> str:
    """What stands in the excerpt for going to the state itself."""
    return f"{name} (again)"


def only(loop: Loop, name: str, captured: Mapping[str, str] = EMPTY, prev: str | None = None) -> Loop:
    """The loop that runs the state `name` once and ends at whatever state that leads to.

    Before it, a state for each of `captured` prints the text that is kept under that name, the last one what
    `${prev.output}` shows. Nothing is retried or waited for. KeyError if there is no such state.
    """
    state = loop.states[name]
    given = [*captured.items(), *([] if prev is None else [(None, prev)])]
    names = [*(f"given {index}" for index in range(1, len(given) + 1)), name]
    states = {other: State(other, Nothing(), terminal=True) for other in (*loop.states, again(name))}
    for index, (key, text) in enumerate(given):
        states[names[index]] = State(
            names[index], Shell(_saying(text)), capture=key, routes=Routes(next=names[index + 1])
        )
    states[name] = _once(state)
    return replace(
        loop,
        initial=names[0],
        states=MappingProxyType(states),
        required_inputs=tuple(key for key in loop.required_inputs if key in _needed(state)),
        max_steps=len(names),
        on_max_steps=None,
        max_iterations=None,
        on_max_iterations=None,
        timeout=None,
        on_timeout=None,
        timeout_reserve=0,
        backoff=0,
        maintain=False,
        circuit=None,
    )


def _saying(text: str) -> str:
    return "printf %s " + shlex.quote(text).replace("${", "$${")


def _needed(state: State) -> set[str]:
    return {ref.path[0] for ref in references(state.template) if ref.namespace == "context"}


def _once(state: State) -> State:
    """The state without anything that would have it run twice."""
    routes, name = state.routes, state.name
    on = {verdict: _elsewhere(target, name) for verdict, target in routes.on.items()}
    table = None if routes.table is None else {v: _elsewhere(target, name) for v, target in routes.table.items()}
    (on if table is None else table).setdefault(ABSTAINED, again(name))
    limited = state.rate_limit is not None or state.is_prompt
    then = state.rate_limit.then if state.rate_limit is not None else None
    return replace(
        state,
        routes=Routes(None if routes.next is None else _elsewhere(routes.next, name), on, table),
        retry=None,
        on_retry_exhausted=None if state.on_retry_exhausted is None else _elsewhere(state.on_retry_exhausted, name),
        rate_limit=RateLimit(0, max_wait=0, then=None if then is None else _elsewhere(then, name)) if limited else None,
        throttle=None,
        terminal=False,
    )


def _elsewhere(target: str, name: str) -> str:
    return again(name) if target in (CURRENT, name) else target
