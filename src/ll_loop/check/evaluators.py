"""Rules over `evaluate:` blocks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import product

from ..core.model import OPERATORS
from ..files.keys import EVALUATE, EVALUATOR_NEEDS, EVALUATOR_TAKES, did_you_mean
from ..files.nodes import Map
from .subject import Finding, StateView, Subject, number_in

Findings = Iterator[Finding]
Find = Callable[[Subject], Findings]


def _blocks(subject: Subject) -> Iterator[tuple[StateView, Map, str]]:
    """(state, block, type) of every block of a known type."""
    for state in subject:
        block = state.block("evaluate")
        if block is not None and state.evaluator in EVALUATOR_NEEDS:
            yield state, block, state.evaluator


def type_unknown(subject: Subject) -> Findings:
    for state in subject:
        block, kind = state.block("evaluate"), state.evaluator
        if block is not None and kind and kind not in EVALUATOR_NEEDS:
            hint = did_you_mean(kind, EVALUATOR_NEEDS) or f"types are {', '.join(EVALUATOR_NEEDS)}"
            message = f"state `{state.name}`: no evaluator `{kind}`"
            yield Finding(state.steps("evaluate"), message, hint, block.values_at["type"])


def required_field(subject: Subject) -> Findings:
    for state, block, kind in _blocks(subject):
        for key in EVALUATOR_NEEDS[kind]:
            if block.get(key) is None:
                message = f"state `{state.name}`: the evaluator `{kind}` needs `{key}`"
                yield Finding(state.steps("evaluate"), message, f"add `{key}`", block.values_at["type"])


def key_unused(subject: Subject) -> Findings:
    for state, block, kind in _blocks(subject):
        for key in block.keys() & EVALUATE - _taken(kind) - {"type", "source"}:
            users = ", ".join(f"`{one}`" for one in EVALUATOR_NEEDS if key in _taken(one))
            message = f"state `{state.name}`: the evaluator `{kind}` does not look at `{key}`"
            yield Finding(state.steps("evaluate"), message, f"{users} would", block.keys_at[key])


def _taken(kind: str) -> frozenset[str]:
    return frozenset(EVALUATOR_NEEDS[kind] + EVALUATOR_TAKES[kind])


def operator(subject: Subject) -> Findings:
    for state, block, _ in _blocks(subject):
        word = block.get("operator")
        if word is not None and word not in OPERATORS:
            message = f"state `{state.name}`: no operator `{word}`"
            yield Finding(state.steps("evaluate", "operator"), message, f"operators are {', '.join(OPERATORS)}")


def direction(subject: Subject) -> Findings:
    for state, block, kind in _blocks(subject):
        word = block.get("direction")
        if kind == "convergence" and word is not None and word not in ("minimize", "maximize"):
            message = f"state `{state.name}`: no direction `{word}`"
            hint = did_you_mean(str(word), ("minimize", "maximize")) or "use minimize or maximize"
            yield Finding(state.steps("evaluate", "direction"), message, hint)


def bounded(key: str, kinds: frozenset[str], least: float, most: float | None = None) -> Find:
    """A rule: the number under `key` of the evaluators `kinds` lies from `least` to `most`."""
    wanted = f"at least {least:g}" if most is None else f"from {least:g} to {most:g}"

    def find(subject: Subject) -> Findings:
        for state, block, kind in _blocks(subject):
            value = number_in(block, key)
            if kind in kinds and value is not None and not (least <= value and (most is None or value <= most)):
                message = f"state `{state.name}`: `{key}` must be {wanted}"
                yield Finding(state.steps("evaluate", key), message, "leave it out for the default")

    return find


def evidence_words(subject: Subject) -> Findings:
    for state, block, kind in _blocks(subject):
        prompt = block.get("prompt")
        if kind in ("llm_structured", "advisor_consult") and isinstance(prompt, str):
            text = prompt.lower()
            if not any(word in text for word in ("verbatim", "quote", "evidence")):
                message = f"state `{state.name}`: the judge's prompt asks for no evidence"
                yield Finding(state.steps("evaluate", "prompt"), message, "ask it to quote what it saw")


def never_interpolated(subject: Subject) -> Findings:
    for (state, block, _), key in product(_blocks(subject), ("pattern", "path")):
        value = block.get(key)
        if isinstance(value, str) and "${" in value:
            message = f"state `{state.name}`: `{key}` is taken literally, `${{...}}` included"
            yield Finding(state.steps("evaluate", key), message, "compare in the action, and judge what it prints")


def pattern_plain(subject: Subject) -> Findings:
    for state, block, kind in _blocks(subject):
        pattern = block.get("pattern")
        if kind == "output_contains" and isinstance(pattern, str) and (fault := _fault(pattern)):
            message = f"state `{state.name}`: `pattern` is no regular expression ({fault}) and is taken as plain text"
            hint = f"write '{re.escape(pattern)}' if that is meant"
            yield Finding(state.steps("evaluate", "pattern"), message, hint)


def _fault(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        return error.msg
    return ""


def literal_target(subject: Subject) -> Findings:
    """Numbers written as text that are none: the run would end at this state."""
    for state, block, kind in _blocks(subject):
        target = block.get("target")
        if not isinstance(target, str):
            continue
        if kind == "output_json" and "${" in target:
            message = f"state `{state.name}`: the target of `output_json` is taken literally, `${{...}}` included"
            yield Finding(state.steps("evaluate", "target"), message, "compare in the action, and judge what it prints")
        elif kind in ("output_numeric", "convergence") and "${" not in target and not _is_numeric(target):
            message = f"state `{state.name}`: `target: {target}` is no number"
            yield Finding(state.steps("evaluate", "target"), message, "write digits, or a reference to a value")


def _is_numeric(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def action_stall_default(subject: Subject) -> Findings:
    for state, block, kind in _blocks(subject):
        if kind == "action_stall" and not block.get("track"):
            message = f"state `{state.name}`: `action_stall` without `track` always finds a stall"
            yield Finding(state.steps("evaluate"), message, "name what to watch, for instance `track: [prev.output]`")


def own_previous(subject: Subject) -> Findings:
    for state, block, kind in _blocks(subject):
        name, previous = state.data.text("capture"), block.get("previous")
        if kind == "convergence" and name and isinstance(previous, str) and f"${{captured.{name}." in previous:
            message = f"state `{state.name}`: `previous` is this state's own capture, so every round is a stall"
            yield Finding(state.steps("evaluate", "previous"), message, "capture the last value in another state")
