"""Rules over words that are read as something else, or not at all, when they are misspelt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ..files.keys import ARTIFACT_MODES, EFFORTS, REQUEST_PATHS, SESSION_MODES, did_you_mean
from ..files.nodes import Map
from .subject import Finding, Subject, nearest

Findings = Iterator[Finding]
Find = Callable[[Subject], Findings]


def loop_word(allowed: Iterable[str], *keys: str) -> Find:
    """A rule: what stands under `keys`, at the top level or in a block of it, is one of the words `allowed`."""

    def find(subject: Subject) -> Findings:
        block = subject.block(keys[0]) if len(keys) > 1 else subject.data
        yield from _wrong(block or Map(), keys[-1], tuple(allowed), keys, "")

    return find


def state_word(allowed: Iterable[str], key: str) -> Find:
    """A rule: what a state has under `key` is one of the words `allowed`."""

    def find(subject: Subject) -> Findings:
        for state in subject:
            yield from _wrong(state.data, key, tuple(allowed), state.steps(key), f"state `{state.name}`: ")

    return find


def _wrong(data: Map, key: str, allowed: tuple[str, ...], steps: tuple[str | int, ...], where: str) -> Findings:
    word = data.get(key)
    if word is not None and word not in allowed and "${" not in str(word):
        shown = data.text(key) or str(word)
        hint = nearest(shown, allowed)
        yield Finding(steps, f"{where}`{key}: {shown}` means nothing", hint)


loop_session_mode = loop_word(SESSION_MODES, "session_mode")
loop_effort = loop_word(EFFORTS, "llm", "effort")
artifact_mode = loop_word(ARTIFACT_MODES, "artifact_mode")
session_mode = state_word(SESSION_MODES, "session_mode")
effort = state_word(EFFORTS, "effort")
request_path = state_word(REQUEST_PATHS, "request_path")


def learning_inert(subject: Subject) -> Findings:
    """`type: learning` and the block `learning` mean something together only."""
    for state in subject:
        word, block = state.data.get("type"), state.block("learning")
        if word is not None and word != "learning":
            message = f"state `{state.name}`: `type: {word}` means nothing"
            hint = did_you_mean(str(word), ("learning",), few=0) or "only `type: learning` is known"
            yield Finding(state.steps("type"), message, hint)
        elif (word is None) != (block is None):
            given, missing = ("type: learning", "learning") if block is None else ("learning", "type: learning")
            message = f"state `{state.name}`: `{given}` without `{missing}` is ignored"
            yield Finding(state.steps(given.split(":")[0]), message, f"add `{missing}`")
