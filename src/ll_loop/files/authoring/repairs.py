"""What is to stand in place of a word that a complaint points at, where only one thing can be meant.

The complaints know nothing of this: a rule becomes repairable by a line in `REPAIRS`. Whether a repair helps and breaks
nothing is not decided here: `fixes` tries it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from msgspec import Struct

from ..keys import (
    ACTION_TYPES,
    EVALUATE,
    EVALUATOR_NEEDS,
    OTHER_TARGETS,
    PARAMETER_TYPES,
    STATE,
    TOP_LEVEL,
    VERDICT_KEYS,
    VISIBILITIES,
)
from ..nodes import Map, Mark

_ANYWHERE = TOP_LEVEL | STATE | EVALUATE
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?")
_FIXED_VERDICTS = frozenset({"exit_code", "output_contains", "output_numeric", "output_json"})
_OPERATORS = {
    "==": "eq", "=": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge",
    "lte": "le", "gte": "ge", "equals": "eq",
}  # fmt: skip
_TYPES = {"str": "string", "int": "integer", "bool": "boolean", "float": "number"}


class Word(Struct, frozen=True):
    """A scalar of a file: as written (with its quotes), as read, and the mapping whose key it is, if it is one."""

    raw: str
    value: str
    holder: Map | None = None

    @property
    def quote(self) -> str:
        return self.raw[0] if self.raw[:1] in ("'", '"') else ""


Repair = Callable[[Word], str | None]
"""What is to be written instead; None if that is not certain."""


# --- words and keys ----------------------------------------------------------------------------------------


def one_slip(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that is a single slip away from `word`: a letter more, less, other, or two swapped."""
    near = [other for other in known if _is_one_slip(word, other)]
    return near[0] if len(near) == 1 and len(word) > 3 else None


def _is_one_slip(word: str, other: str) -> bool:
    if abs(len(word) - len(other)) > 1 or word == other:
        return False
    start = next((i for i, (a, b) in enumerate(zip(word, other, strict=False)) if a != b), min(len(word), len(other)))
    here, there = word[start:], other[start:]
    return (
        here[1:] == there[1:]
        or here[1:] == there
        or here == there[1:]
        or (here[:2] == there[1::-1] and here[2:] == there[2:])
    )


def requoted(word: Word, new: str) -> str:
    """`new` within the quotes that `word` has."""
    return f"{word.quote}{new}{word.quote}"


def _key(*known: Iterable[str]) -> Repair:
    """A repair: a misspelt key becomes the known one, if the mapping has not that one already."""
    names = frozenset().union(*known)

    def repair(word: Word) -> str | None:
        if word.holder is None or word.value in _ANYWHERE:
            return None
        new = _respelt(word.value, names)
        return requoted(word, new) if new and new not in word.holder else None

    return repair


def _respelt(word: str, known: frozenset[str]) -> str | None:
    plain = word.strip().lower().replace("-", "_").replace(" ", "_")
    return plain if plain in known else one_slip(word, known)


def _one_of(known: Iterable[str], others: Mapping[str, str] | None = None) -> Repair:
    """A repair: a misspelt value becomes the one that is meant; `others` has what other languages call them."""
    names = frozenset(known)

    def repair(word: Word) -> str | None:
        new = (others or {}).get(word.value) or _respelt(word.value, names)
        return requoted(word, new) if new else None

    return repair


_state_key = _key(STATE)
_verdict_key = _key(VERDICT_KEYS, OTHER_TARGETS)


def _key_of_state(word: Word) -> str | None:
    """As `_key`; but `on_<word>` may be meant where an evaluator can say any word."""
    if not word.value.startswith("on_"):
        return _state_key(word)
    return _verdict_key(word) if word.holder is not None and _has_fixed_verdicts(word.holder) else None


def _has_fixed_verdicts(state: Map) -> bool:
    evaluate = state.get("evaluate")
    if isinstance(evaluate, Map):
        return evaluate.get("type") in _FIXED_VERDICTS
    return evaluate is None and not {"loop", "fragment"} & state.keys()


# --- quotes ------------------------------------------------------------------------------------------------


def _other_quotes(word: Word) -> str | None:
    """A number out of its quotes, or into quotes what should be text and looks like something else."""
    if word.quote:
        number = word.value.strip()
        return number if _NUMBER.fullmatch(number) else None
    return json.dumps(word.raw, ensure_ascii=False) if word.raw and "\n" not in word.raw else None


def _bare_true(word: Word) -> str | None:
    """`"true"` without its quotes; `"false"` counts as true, so that to unquote it would change the loop."""
    return "true" if word.quote and word.value.lower() in ("true", "yes", "on") else None


REPAIRS: Mapping[str, Repair] = {
    "doc.unknown-key": _key(TOP_LEVEL),
    "doc.visibility": _one_of(VISIBILITIES),
    "eval.operator": _one_of((), _OPERATORS),
    "eval.type-unknown": _one_of(EVALUATOR_NEEDS),
    "eval.unknown-key": _key(EVALUATE),
    "load.not-boolean": _bare_true,
    "load.shape": _other_quotes,
    "params.type": _one_of(PARAMETER_TYPES, _TYPES),
    "state.action-type": _one_of(ACTION_TYPES),
    "state.unknown-key": _key_of_state,
}
"""By the rule of the complaint."""


# --- what is right, but no longer written so ---------------------------------------------------------------


class Renewal(Struct, frozen=True):
    """A key at `at` that has a better spelling, in quotes if `quoted`, of the same meaning."""

    at: Mark
    new: str
    quoted: bool = False


OLD_SPELLING = "old-spelling"
"""Stands for a rule in what is told of renewals: there is no complaint about them."""

_OLD_KEYS = {"on_success": "on_yes", "on_failure": "on_no"}


def renewals(data: Map) -> Iterator[Renewal]:
    """The old spellings of one file, as read and before anything is resolved."""
    if "max_iterations" in data and not {"max_steps", "on_max_iterations", "from"} & data.keys():
        yield Renewal(data.keys_at["max_iterations"], "max_steps")
    for block in ("states", "state_defs", "fragments"):
        states = data.get(block)
        for state in states.values() if isinstance(states, Map) else ():
            if isinstance(state, Map):
                yield from _of_state(state)


def _of_state(state: Map) -> Iterator[Renewal]:
    for old, new in _OLD_KEYS.items():
        if old in state and new not in state:
            yield Renewal(state.keys_at[old], new)
    route = state.get("route")
    for verdict in ("yes", "no", "on", "off"):
        if isinstance(route, Map) and verdict in route:
            yield Renewal(route.keys_at[verdict], verdict, quoted=True)  # bare, little-loops reads a boolean
