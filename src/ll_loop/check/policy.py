"""Rules over `context.policy_rules`: the table that says which state the scores of dimensions lead to."""

from __future__ import annotations

import re
from collections.abc import Iterator

from msgspec import Struct

from ..files.keys import did_you_mean
from ..files.nodes import Map, Mark
from .subject import Finding, Subject, nearest

Findings = Iterator[Finding]

_STEPS = ("context", "policy_rules")
_RULE = re.compile(r"(?P<when>.+?)\s*->\s*(?P<then>[\w-]+)")
_CONDITION = re.compile(r"(?P<dimension>[\w -]*\w)\s*:\s*(?P<operator>>=|<=|==|!=|<|>)\s*(?P<value>.+)")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_ALWAYS_SCORED = frozenset({"aggregate"})


class _Row(Struct, frozen=True):
    """One line of the table: its dimensions (none for `*`) and its state, or neither if it can't be read."""

    text: str
    at: Mark
    dimensions: tuple[str, ...] = ()
    then: str = ""


def dimension_unscored(subject: Subject) -> Findings:
    rows = list(_rows(subject))
    if not all(row.then for row in rows):
        return
    scored, seen = _scored(subject), set[str]()
    for row in rows:
        for name in row.dimensions:
            if name not in scored and name not in seen:
                seen.add(name)
                message = f"nothing scores `{name}`, so its rules never hold"
                hint = (
                    did_you_mean(name, scored, few=0)
                    or "list it in `rubric_dimensions`, or write `rubric-dim-NAME.txt`"
                )
                yield Finding(_STEPS, message, hint, row.at)


def row_malformed(subject: Subject) -> Findings:
    for row in _rows(subject):
        if not row.then:
            hint = "a rule is `dimension:>=80 & other:==text -> state`, or `* -> state`"
            yield Finding(_STEPS, f"no rule: `{row.text}`", hint, row.at)


def target_unknown(subject: Subject) -> Findings:
    for row in _rows(subject):
        if row.then and row.then not in subject.names and not _is_routed(subject, row.then):
            hint = nearest(row.then, subject.names)
            yield Finding(_STEPS, f"`policy_rules` names no state: `{row.then}`", hint, row.at)


def _is_routed(subject: Subject, word: str) -> bool:
    """Whether some `route` takes the word, which then need not be a state."""
    return any(word in (state.block("route") or {}) or word in state.shorthands for state in subject)


def _rows(subject: Subject) -> Iterator[_Row]:
    context = subject.block("context") or Map()
    table = context.get("policy_rules")
    offset = 0
    for line in table.splitlines(keepends=True) if isinstance(table, str) else ():
        text = line.strip()
        if text and not text.startswith("#"):
            yield _row(text, context.place("policy_rules", offset))
        offset += len(line)


def _row(text: str, at: Mark) -> _Row:
    rule = _RULE.fullmatch(text)
    if rule is None:
        return _Row(text, at)
    if rule["when"] == "*":
        return _Row(text, at, (), rule["then"])
    conditions = [_CONDITION.fullmatch(part.strip()) for part in rule["when"].split("&")]
    names = tuple(one["dimension"].strip() for one in conditions if one is not None and _is_comparable(one))
    return _Row(text, at, names, rule["then"]) if len(names) == len(conditions) else _Row(text, at)


def _is_comparable(condition: re.Match[str]) -> bool:
    return condition["operator"] in ("==", "!=") or _NUMBER.fullmatch(condition["value"].strip()) is not None


def _scored(subject: Subject) -> frozenset[str]:
    context = subject.block("context") or Map()
    rubric, frontmatter = (context.get(f"{kind}_dimensions") for kind in ("rubric", "frontmatter"))
    listed = rubric.split("|") if isinstance(rubric, str) else []
    typed = [entry.partition(":")[0] for entry in frontmatter.split("|")] if isinstance(frontmatter, str) else []
    scripts = "\n".join(state.action for state in subject if state.kind == "shell")
    written = re.findall(r"rubric-dim-(.+?)\.txt", scripts)
    return _ALWAYS_SCORED | {name.strip().lower().replace(" ", "-") for name in (*listed, *typed)} | set(written)
