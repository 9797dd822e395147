"""Rules over the text of actions: what loses results, hides how work ended, or gets in the way of other runs."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping

from ..core.model import OPERATORS
from ..files.keys import EVALUATOR_NEEDS, VISIBILITIES
from ..files.nodes import Map
from .subject import Finding, StateView, Subject

Findings = Iterator[Finding]


def _at(state: StateView, offset: int, message: str, hint: str) -> Finding:
    """A finding at a place within the action."""
    return Finding(state.steps("action"), f"state `{state.name}`: {message}", hint, state.data.place("action", offset))


# --- files that runs share -------------------------------------------------------------------------------

_SHARED = re.compile(r"\.loops/tmp/[\w./-]+")


def shared_tmp(subject: Subject) -> Findings:
    for state in subject:
        for match in _SHARED.finditer(state.action):
            message = f"`{match[0]}` is shared with every other run"
            yield _at(state, match.start(), message, "use a file below `${context.run_dir:shell}`")


def progress_path_written(subject: Subject) -> Findings:
    for state in subject:
        for path in _watched(subject):
            end = "" if path.endswith("/") else r"(?![\w-]|\.\w)"
            found = re.search(rf"(?<![\w.-]){re.escape(path)}{end}", state.action)
            if found:
                message = f"`{path}` is watched for progress; if this writes it, the circuit never trips"
                yield _at(state, found.start(), message, "add it to `exclude_paths`, or stop watching it")


def _watched(subject: Subject) -> list[str]:
    """The paths of `progress_paths` that are not excluded; a leading `${...}/` may be any folder."""
    watched, excluded = (
        [re.sub(r"^\$\{[^}]*\}/", "", str(path)) for path in _listed(subject.repeated_failure, key)]
        for key in ("progress_paths", "exclude_paths")
    )
    return [path for path in dict.fromkeys(watched) if path and path not in excluded]


def _listed(block: Map | None, key: str) -> list[object]:
    found = block.get(key) if block is not None else None
    return found if isinstance(found, list) else [found] if isinstance(found, str) else []


# --- failures that nobody hears of -----------------------------------------------------------------------

_PARSES_JSON = re.compile(r"\bjson\.loads?\(")
_CATCHES = re.compile(r"\bexcept\s+(?:json\.)?(?:JSONDecodeError|ValueError|Exception)\b")
_EXITS_0 = re.compile(r"\bexit\(0\)")


def parse_swallow(subject: Subject) -> Findings:
    for state in subject:
        text = state.action
        if state.kind != "shell" or "json.load" not in text or _has_error_route(state):
            continue
        caught = _CATCHES.search(text)
        if caught and _PARSES_JSON.search(text) and _EXITS_0.search(text):
            message = "text that is no JSON ends the action with exit code 0, as if all were well"
            yield _at(state, caught.start(), message, "exit with 1 there and add `on_error`")


def _has_error_route(state: StateView) -> bool:
    return "error" in state.shorthands or "_error" in (state.block("route") or Map())


_ABANDONS = re.compile(r"- ?\\?\[!\\?\]|(?i:\[x\].{0,80}abandon)|max_step_attempts", re.DOTALL)
_TELLS_ABANDONED = re.compile(r'"abandoned"\s*:')
_SUCCESS = re.compile(r'"verdict"\s*:\s*"success"|\bverdict\s*=\s*success\b')


def abandonment_hidden(subject: Subject) -> Findings:
    if any(_TELLS_ABANDONED.search(state.action) for state in subject):
        return
    for state in subject:
        if found := _ABANDONS.search(state.action):
            message = "work may be given up here, and no action ever reports it"
            yield _at(state, found.start(), message, 'write how much was given up as `"abandoned": N` into the result')
            return


def hardcoded_success(subject: Subject) -> Findings:
    for state in subject:
        text = state.action.lower()
        found = _SUCCESS.search(text) if "verdict" in text else None
        if found and "abandon" not in text:
            message = "the verdict `success` is written whatever has happened"
            yield _at(state, found.start(), message, "let it depend on what was abandoned or failed")


# --- gates that decide by themselves ---------------------------------------------------------------------

_STRING = r"(?:'[^'\n]*'|\"[^\"\n]*\")"
_COLLECTION = re.compile(rf"[\[({{]\s*(?P<items>{_STRING}(?:\s*,\s*{_STRING}){{2,}})\s*,?\s*[\])}}]")
_TABLES: Mapping[str, frozenset[str]] = {
    "operators": frozenset(OPERATORS),
    "visibilities": frozenset(VISIBILITIES),
    "evaluators": frozenset(EVALUATOR_NEEDS),
    "keys of evaluators": frozenset(key for keys in EVALUATOR_NEEDS.values() for key in keys),
}
_IMPORTS_TABLE = re.compile(r"\bimport\b[^\n]*\b(?:[A-Z]+_)+[A-Z]+\b")


def gate_restates_table(subject: Subject) -> Findings:
    for state in subject:
        text = state.action
        if state.data.get("action_type") != "shell" or "python3" not in text or _IMPORTS_TABLE.search(text):
            continue
        for match in _COLLECTION.finditer(text):
            words = {word[1:-1] for word in re.findall(_STRING, match["items"])}
            table = next((name for name, known in _TABLES.items() if words <= known), None)
            if table and len(words) > 2:
                message = f"a list of {table} of the loop format, which will not follow when the format grows"
                yield _at(state, match.start(), message, "ask `ll-loop validate --json` about the file instead")


_INCREMENT = re.compile(r"\$\(\((?:[^()]|\([^()]*\))*\+\s*1\s*\)\)|\(\(\s*\w+\s*(?:\+\+|\+=\s*1)\s*\)\)")
_WRITES = re.compile(r"\b(?:echo|printf)\b[^|;&\n]{0,400}>")
_HOLDS: Mapping[str, Callable[[float, float], bool]] = {word: getattr(operator, word) for word in OPERATORS}


def zero_retry_budget(subject: Subject) -> Findings:
    for state in subject:
        block = state.block("evaluate") or Map()
        holds, target = _HOLDS.get(str(block.get("operator"))), _literal_number(block)
        if state.evaluator != "output_numeric" or holds is None or target is None or holds(1, target):
            continue
        if _INCREMENT.search(state.action) and _WRITES.search(state.action):
            said = f"{block['operator']} {target:g}"
            message = f"state `{state.name}`: the counter is 1 at its first look, and `{said}` is already false"
            yield Finding(state.steps("evaluate"), message, "compare before counting, or raise the target")


def _literal_number(block: Map) -> float | None:
    text = block.text("target") or ""
    return float(text) if re.fullmatch(r"\s*-?\d+(?:\.\d+)?\s*", text) else None
