"""Rules over what agent hosts and judges are told: models, sessions, guards."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..files.keys import MODEL_HINTS
from .subject import Finding, StateView, Subject

Findings = Iterator[Finding]


def haiku_generator(subject: Subject) -> Findings:
    for state in subject:
        if state.llm_judged:
            continue
        model, hint = state.data.get("model"), state.data.get("model_hint")
        if isinstance(model, str) and "haiku" in model.lower():
            yield _small(state, "model", model)
        if hint == "burst":
            yield _small(state, "model_hint", hint)


def _small(state: StateView, key: str, word: str) -> Finding:
    message = f"state `{state.name}`: `{key}: {word}` takes the smallest model for work that is not just judged"
    return Finding(state.steps(key), message, "keep small models for judges")


def session_continuity(subject: Subject) -> Findings:
    for state in subject:
        mode = state.data.get("session_mode") or subject.data.get("session_mode")
        if state.evaluator == "llm_structured" and mode == "continue":
            message = f"state `{state.name}`: the judge is told the session before, and may believe instead of look"
            at = state.data.values_at.get("session_mode") or subject.data.values_at["session_mode"]
            yield Finding(state.steps("session_mode"), message, "say `session_mode: fresh` for this state", at)


def request_path_downgraded(subject: Subject) -> Findings:
    for state in subject:
        path = state.data.get("request_path")
        if path in ("sdk", "batch"):
            message = f"state `{state.name}`: `request_path: {path}` goes through the agent host all the same"
            yield Finding(state.steps("request_path"), message, "this version sends no requests of its own")


def guard_word(key: str, *allowed: str) -> Callable[[Subject], Findings]:
    """A rule: the guard `key`, of the loop or of a state, is one of the words `allowed`."""
    hint = f"use {', '.join(allowed[:-1])} or {allowed[-1]}"

    def find(subject: Subject) -> Findings:
        word = subject.data.get(key)
        if word is not None and word not in allowed:
            yield Finding((key,), f"no `{key}` called `{subject.data.text(key) or word}`", hint)
        for state in subject:
            if state.has(key) and state.data[key] not in allowed:
                word = state.data.text(key) or state.data[key]
                yield Finding(state.steps(key), f"state `{state.name}`: no `{key}` called `{word}`", hint)

    return find


# --- models that a host does not have --------------------------------------------------------------------


def loop_hint_unresolved(subject: Subject) -> Findings:
    llm = subject.block("llm")
    hint = llm.get("model_hint") if llm is not None else None
    users = any(state.uses_model and not (state.has("model") or state.has("model_hint")) for state in subject)
    if users and _is_unresolved(subject, hint):
        yield Finding(("llm", "model_hint"), f"the agent host has no model for the hint `{hint}`", _NAME_A_MODEL)


def state_hint_unresolved(subject: Subject) -> Findings:
    for state in subject:
        hint = state.data.get("model_hint")
        if state.uses_model and _is_unresolved(subject, hint):
            message = f"state `{state.name}`: the agent host has no model for the hint `{hint}`"
            yield Finding(state.steps("model_hint"), message, _NAME_A_MODEL)


_NAME_A_MODEL = "name a `model` of that host instead"


def _is_unresolved(subject: Subject, hint: object) -> bool:
    """Nothing is said while no host is known, nor of words that are no hints."""
    return hint in MODEL_HINTS and subject.model_hints is not None and hint not in subject.model_hints
