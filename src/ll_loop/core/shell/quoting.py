"""Rendering in which no value becomes text that bash parses: a reference becomes a quoted variable.

    echo ${context.title}        echo "${LL_CTX_title}"
    echo "in ${context.title}"   echo "in ${LL_CTX_title}"
    echo 'in ${context.title}'   echo 'in '"${LL_CTX_title}"''

The values go along with the script, to be passed in the environment. How a place is quoted is found by `script`; a
place where that isn't enough, since bash or another program would evaluate the value itself, is refused (`hazards`).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from functools import lru_cache

from msgspec import Struct

from ..template import MissingValue, Reference, Scope, TemplateError, pieces_of, text_of
from ..variables import OTHER, name_of
from . import hazards
from .script import HOLE, Edit, Kind, Script, Unclear

_AROUND: Mapping[Kind, tuple[str, str]] = {
    "bare": ('"', '"'),
    "double": ("", ""),
    "single": ("'\"", "\"'"),
    "ansi": ("'\"", "\"$'"),
    "heredoc": ("", ""),
    "quoted heredoc": ("", ""),
    "comment": ("", ""),
}


class Rendered(Struct, frozen=True):
    """A script, and the values of the variables that it refers to."""

    text: str
    values: Mapping[str, str]


class _Slot(Struct, frozen=True):
    reference: Reference
    kind: Kind


class _Plan(Struct, frozen=True):
    parts: tuple[str | _Slot, ...] = ()
    problems: tuple[tuple[int, str, str], ...] = ()


def unsafe_places(template: str) -> tuple[tuple[int, str, str], ...]:
    """(offset, message, hint) of every reference of a script that cannot be made safe, in order.

    A template that breaks the grammar has other problems: none are told here.
    """
    try:
        return _plan(template).problems
    except TemplateError:
        return ()


def render_quoted(template: str, scope: Scope) -> Rendered:
    """The script with every reference as a quoted variable, and the variables' values.

    A missing value without `?` or `:default=` raises `MissingValue`, a place that cannot be made safe `TemplateError`.
    `:shell` asks for one word: outside quotes that is what any value is, elsewhere the value is passed quoted.
    """
    plan = _plan(template)
    if plan.problems:
        _, message, hint = plan.problems[0]
        raise TemplateError(message, hint=hint)
    values: dict[str, str] = {}
    text = "".join(part if isinstance(part, str) else _filled(part, scope, values) for part in plan.parts)
    return Rendered(text, values)


def _filled(slot: _Slot, scope: Scope, values: dict[str, str]) -> str:
    name, text = _variable(slot, scope, values)
    values[name] = text
    before, after = _AROUND[slot.kind]
    return f"{before}${{{name}}}{after}"


def _variable(slot: _Slot, scope: Scope, values: Mapping[str, str]) -> tuple[str, str]:
    reference = slot.reference
    namespace, path = reference.namespace, reference.path
    quoted = reference.shell and slot.kind != "bare"
    try:
        value = scope.lookup(namespace, path)
    except MissingValue:
        if not reference.guarded:
            raise
        text, own = reference.default or "", False
    else:
        text = text_of(value)
        own = namespace in ("context", "captured") and not quoted and not isinstance(value, Mapping)
    if own:
        return name_of(namespace, path), text
    text = shlex.quote(text) if quoted else text
    numbered = (f"{OTHER}{number}" for number in range(1, len(values) + 2))
    return next(name for name in numbered if values.get(name, text) == text), text


# --- what is known of a template before its values are -------------------------------------------------------


@lru_cache(maxsize=1024)
def _plan(template: str) -> _Plan:
    pieces = pieces_of(template)
    references = [piece for piece in pieces if isinstance(piece, Reference)]
    skeleton = "".join(HOLE if isinstance(piece, Reference) else piece for piece in pieces)
    if not references:
        return _Plan((skeleton,))
    if skeleton.count(HOLE) != len(references):
        return _Plan(problems=tuple(_problem(one, "the script holds a NUL character") for one in references))
    try:
        script = Script(skeleton)
    except Unclear as why:
        return _Plan(problems=tuple(_problem(one, str(why)) for one in references))
    by_place = dict(zip([place.at for place in script.places], references, strict=True))
    problems = [_problem(by_place[at], why) for at, why in _refused(skeleton, script)]
    slots = {place.at: _Slot(by_place[place.at], place.kind) for place in script.places}
    return _Plan(tuple(_parts(skeleton, slots, script.edits)), tuple(sorted(set(problems))))


def _refused(skeleton: str, script: Script) -> Iterator[tuple[int, str]]:
    reasons: dict[int, str] = {}
    for place in script.places:
        if place.refused:
            reasons.setdefault(place.at, place.refused)
    found = [refusal for command in script.commands for refusal in hazards.refusals(command)]
    for at, why in (*found, *hazards.is_assigned_where_numbers_are_declared(skeleton, script.commands)):
        reasons.setdefault(at, why)
    comments = {place.at for place in script.places if place.kind == "comment"}
    return ((at, why) for at, why in sorted(reasons.items()) if at not in comments)


def _parts(skeleton: str, slots: Mapping[int, _Slot], edits: list[Edit]) -> Iterator[str | _Slot]:
    changes: list[tuple[int, int, str | _Slot]] = [(at, at + 1, slot) for at, slot in slots.items()]
    changes += [(edit.start, edit.stop, edit.text) for edit in edits]
    done = 0
    for start, stop, part in sorted(changes, key=lambda change: change[0]):
        yield skeleton[done:start]
        yield part
        done = stop
    yield skeleton[done:]


def _problem(reference: Reference, why: str) -> tuple[int, str, str]:
    owned = reference.namespace in ("context", "captured") and bool(reference.path)
    hint = _hint(name_of(reference.namespace, reference.path), why) if owned else ""
    return reference.start, f"`{reference.text}` cannot be made safe here: {why}", hint


def _hint(name: str, why: str) -> str:
    if "program text" in why:
        return f"let that program read {name} from its environment"
    if "arithmetic" in why or "number" in why or "index" in why:
        return f"${name} holds the value: test that it is a number before bash evaluates it"
    if "option" in why:
        return "write something before it that ends the options, as `printf '%s' ...` does"
    return f"${name} holds the value: test it before bash evaluates it"
