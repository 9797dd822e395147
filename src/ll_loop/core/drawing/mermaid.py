"""A loop as a Mermaid state diagram, for people who would rather see it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ..model import CURRENT, Loop, State, SubLoop

_PLAIN = re.compile(r"[A-Za-z]\w*", re.ASCII)
_RESERVED = frozenset({"state", "end", "note", "direction", "as", "class", "classDef", "click", "default", "style"})


def edges(state: State) -> Iterator[tuple[str, str]]:
    """The ways out of a state as label and target, in the order in which they are looked at."""
    routes = state.routes
    if routes.next is not None:
        yield "next", routes.next
    yield from (routes.on if routes.table is None else routes.table).items()
    if routes.table is not None and routes.on_error is not None and "_error" not in routes.table:
        yield "error", routes.on_error
    if state.retry is not None:
        yield f"after {state.retry.limit} retries", state.retry.then
    rests = (
        ("retry exhausted", state.on_retry_exhausted),
        ("rate limit exhausted", state.rate_limit.then if state.rate_limit else None),
        ("throttled", state.throttle.then if state.throttle else None),
        ("maintain", state.on_maintain),
    )
    yield from ((label, target) for label, target in rests if target is not None)


def mermaid(loop: Loop) -> str:
    """The loop as the text of a `stateDiagram-v2`. Targets that are templates are shown as notes of their own."""
    ids = {name: _id(name, index) for index, name in enumerate(loop.states)}
    lines = ["stateDiagram-v2"]
    for state in loop.states.values():
        lines += _declaration(state, ids[state.name])
    if loop.initial in ids:
        lines.append(f"    [*] --> {ids[loop.initial]}")
    for state in loop.states.values():
        lines += _arrows(state, ids)
        if state.terminal:
            lines.append(f"    {ids[state.name]} --> [*]")
    failures = [ids[state.name] for state in loop.states.values() if state.terminal and state.failure]
    if failures:
        lines += ["    classDef failure stroke:#c33,stroke-width:2px", f"    class {','.join(failures)} failure"]
    return "\n".join(lines) + "\n"


def _id(name: str, index: int) -> str:
    return name if _PLAIN.fullmatch(name) and name not in _RESERVED else f"s{index}_"


def _declaration(state: State, identifier: str) -> Iterator[str]:
    text = state.name
    if isinstance(state.work, SubLoop):
        text = f"{state.name} (loop {state.work.name})"
    if text != identifier:
        yield f'    state "{_label(text)}" as {identifier}'


def _arrows(state: State, ids: Mapping[str, str]) -> Iterator[str]:
    """The arrows of a state; labels that lead to the same target share one."""
    labels: dict[str, list[str]] = {}
    for label, target in edges(state):
        labels.setdefault(state.name if target == CURRENT else target, []).append(label_words(label))
    for target, words in labels.items():
        if target in ids:
            yield f"    {ids[state.name]} --> {ids[target]}: {_label(' / '.join(words))}"
        else:
            yield f"    note right of {ids[state.name]}: {_label(' / '.join(words))} to {_label(target)}"


def label_words(label: str) -> str:
    """The label of an edge for people."""
    return {"_": "otherwise", "_error": "error"}.get(label, label)


def _label(text: str) -> str:
    """A text that Mermaid takes as it is: its own signs become entities."""
    signs = {'"': "#quot;", ";": "#59;", ":": "#58;", "#": "#35;", "{": "#123;", "}": "#125;", "\n": " "}
    return "".join(signs.get(character, character) for character in text)
