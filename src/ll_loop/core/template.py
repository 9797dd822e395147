"""The one grammar for `${...}`: the check, the pre-flight and the run all read their templates here.

    reference = "${" path suffixes "}"        path = namespace "." segment { "." segment } | "messages"
    suffixes  = ":default=" text, "?", ":shell" in any order; "$${" stands for a literal "${"

A template is cut into literal text and references once and kept; rendering is one pass from left to right,
and what was put in is never looked at again. Where values come from is left to a `Scope`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Protocol

from msgspec import Struct

from ll_loop.errors import LoopError

NAMESPACES: Mapping[str, frozenset[str] | None] = MappingProxyType(
    {
        "context": None,
        "captured": None,
        "prev": frozenset({"output", "exit_code", "state", "timeout_kind"}),
        "result": None,
        "state": frozenset({"name", "iteration"}),
        "loop": frozenset({"name", "started_at", "elapsed_ms", "elapsed"}),
        "env": None,
        "messages": None,
        "param": None,
    }
)
"""Every namespace, and its members where they are fixed."""

_MARK = re.compile(r"\$\$\{|\$\{")
_KNOWN = tuple(f"{name}." for name in NAMESPACES)
_ESCAPE_HINT = "write $${...} for text that the shell is to see as ${...}"


class TemplateError(LoopError):
    """A template that cannot be rendered."""


class MissingValue(TemplateError):  # noqa: N818 - says what happened
    """A path that leads nowhere; with `?` or `:default=` the reference is satisfied without it."""

    def __init__(self, message: str, namespace: str, path: tuple[str, ...], *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.namespace = namespace
        self.path = path


class HeredocCollision(TemplateError):  # noqa: N818 - says what happened
    """A value would end a here-document early and run its rest as shell. No `on_error` may catch it."""

    def __init__(self, state: str, terminator: str, *, hint: str = "") -> None:
        super().__init__(
            f"Heredoc terminator collision in state '{state}': an interpolated value contains a line "
            f"exactly equal to the heredoc terminator '{terminator}', which would silently close the heredoc "
            "early and execute the remainder of the payload as shell.",
            hint=hint,
        )
        self.state = state
        self.terminator = terminator


class Scope(Protocol):
    """Where references find their values."""

    def lookup(self, namespace: str, path: tuple[str, ...]) -> Any:
        """The value at `path`, which may be None; raises `MissingValue` if there is none."""


class Reference(Struct, frozen=True):
    """One `${...}` of a template: all of its text and its offset. What follows `env.` is one segment."""

    text: str
    start: int
    namespace: str
    path: tuple[str, ...]
    default: str | None = None
    optional: bool = False
    shell: bool = False

    @property
    def guarded(self) -> bool:
        """Whether a missing value is no error."""
        return self.optional or self.default is not None


class _Fault(Struct, frozen=True):
    """A `${` that breaks the grammar: rendering up to it raises its message."""

    start: int
    message: str
    hint: str


_Piece = str | Reference | _Fault


def references(template: str) -> list[Reference]:
    """The grammatical references of a template, in order; what an escape `$${` hides is not among them."""
    return [piece for piece in _parse(template) if isinstance(piece, Reference)]


def pieces_of(template: str) -> tuple[str | Reference, ...]:
    """A template as literal texts and references by turns; raises `TemplateError` where it breaks the grammar."""
    pieces = _parse(template)
    for piece in pieces:
        if isinstance(piece, _Fault):
            raise TemplateError(piece.message, hint=piece.hint)
    return tuple(piece for piece in pieces if not isinstance(piece, _Fault))


def problems(template: str) -> list[tuple[int, str, str]]:
    """What is certain to fail when this template is rendered: (offset, message, hint), in order.

    Values are not known here, so a path that may or may not exist is no problem; a namespace or a fixed
    member that does not exist is one, unless the reference is guarded by `?` or `:default=`.
    """
    found = (_problem(piece) for piece in _parse(template))
    return [problem for problem in found if problem is not None]


def render(template: str, scope: Scope) -> str:
    """The template with every reference replaced by its value as text.

    null is the empty text; booleans, lists and mappings appear in Python notation. Raises `TemplateError` at
    the first reference that is wrong, `MissingValue` if it leads nowhere, `HeredocCollision` if a value would
    end a here-document of the template.
    """
    if "$" not in template:
        return template
    pieces = _parse(template)
    texts = [_text_at(piece, scope) for piece in pieces]
    if "<<" in template:
        _guard_heredocs(template, pieces, texts, scope)
    return "".join(texts)


def render_value(value: Any, scope: Scope) -> Any:
    """The value with every text inside it rendered, at any depth; mapping keys stay as they are."""
    match value:
        case str():
            return render(value, scope)
        case Mapping():
            return {key: render_value(item, scope) for key, item in value.items()}
        case list() | tuple():
            return [render_value(item, scope) for item in value]
        case _:
            return value


def plain(value: Any) -> Any:
    """The value with read-only mappings and tuples turned into dicts and lists, at any depth."""
    match value:
        case Mapping():
            return {key: plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case _:
            return value


def text_of(value: Any) -> str:
    """How a value appears inside a text."""
    match value:
        case None:
            return ""
        case str():
            return value
        case _:
            return str(plain(value))


def missing(namespace: str, path: tuple[str, ...], depth: int | None = None) -> MissingValue:
    """The error for a path that broke off at the segment `depth` (default: the last)."""
    shown = ".".join(path if depth is None else path[: depth + 1])
    if namespace not in NAMESPACES:
        return MissingValue(f"Unknown namespace: {namespace}", namespace, path, hint=_namespace_hint())
    if namespace == "env":
        return MissingValue(f"Environment variable '{shown}' is not set", namespace, path, hint=_guard_hint(namespace))
    return MissingValue(f"Path '{shown}' not found in {namespace}", namespace, path, hint=_guard_hint(namespace))


# --- reading ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _parse(template: str) -> tuple[_Piece, ...]:
    """Literal texts (escapes resolved) and references by turns."""
    pieces: list[_Piece] = []
    literal = ""
    position = 0
    while mark := _MARK.search(template, position):
        literal += template[position : mark.start()]
        position = mark.end()
        piece = "${" if mark.group() == "$${" else _reference_at(template, mark.start())
        if isinstance(piece, str):
            literal += piece
            continue
        if literal:
            pieces.append(literal)
            literal = ""
        pieces.append(piece)
        position = template.find("}", position) + 1 or len(template)
    literal += template[position:]
    return (*pieces, literal) if literal else tuple(pieces)


def _reference_at(template: str, start: int) -> _Piece:
    """What the `${` at `start` opens; one that is never closed is plain text unless it names a namespace."""
    end = template.find("}", start)
    if end >= 0:
        return _read_reference(template[start : end + 1], start)
    if template.startswith(_KNOWN, start + 2):
        line = template[start:].split("\n", 1)[0]
        return _Fault(start, f"Unclosed reference: {line}", "add the missing }")
    return "${"


def _read_reference(text: str, start: int) -> Reference | _Fault:
    body, shell = _cut(text[2:-1], ":shell")
    body, assign, default = body.partition(":default=")
    if assign:
        body, quoted = _cut(body, ":shell")
        body, both = _cut(body, "?")
        if both or "{" in default:
            why = "`?` and `:default=` exclude each other" if both else "a default holds no {"
            return _Fault(start, f"Invalid variable: {text} ({why})", _ESCAPE_HINT)
        optional = False
    else:
        body, optional = _cut(body, "?")
        body, quoted = _cut(body, ":shell")
    namespace, dot, rest = body.partition(".")
    if not dot and namespace != "messages":
        return _Fault(start, f"Invalid variable: {text} (expected namespace.path)", _ESCAPE_HINT)
    whole = namespace == "env"
    path = () if not dot else (rest,) if whole else tuple(rest.split("."))
    return Reference(text, start, namespace, path, default if assign else None, optional, shell or quoted)


def _cut(text: str, suffix: str) -> tuple[str, bool]:
    return (text.removesuffix(suffix), True) if text.endswith(suffix) else (text, False)


def _problem(piece: _Piece) -> tuple[int, str, str] | None:
    match piece:
        case _Fault(start, message, hint):
            return start, message, hint
        case Reference(text, start, namespace) if not piece.guarded:
            if namespace not in NAMESPACES:
                return start, f"Unknown namespace: {namespace} in {text}", _namespace_hint()
            members = NAMESPACES[namespace]
            if members is not None and not (len(piece.path) == 1 and piece.path[0] in members):
                hint = f"{namespace} has {', '.join(sorted(members))}"
                return start, f"Path '{'.'.join(piece.path)}' not found in {namespace}", hint
    return None


def _namespace_hint() -> str:
    return f"namespaces are {', '.join(NAMESPACES)}; {_ESCAPE_HINT}"


def _guard_hint(namespace: str) -> str:
    guard = "append ? or :default=TEXT to the reference if it may be missing"
    return f"pass it with --context KEY=VALUE, or {guard}" if namespace == "context" else guard


# --- rendering -------------------------------------------------------------------------------------------


def _text_at(piece: _Piece, scope: Scope) -> str:
    match piece:
        case str():
            return piece
        case _Fault(_, message, hint):
            raise TemplateError(message, hint=hint)
        case Reference():
            text = _value_of(piece, scope)
            return shlex.quote(text) if piece.shell else text


def _value_of(reference: Reference, scope: Scope) -> str:
    try:
        return text_of(scope.lookup(reference.namespace, reference.path))
    except MissingValue:
        if reference.guarded:
            return reference.default or ""
        raise


# --- here-documents --------------------------------------------------------------------------------------

_HOLE = "\0"
_OPENER = re.compile(
    r"(?<!<)<<(?P<tabs>-?)[ \t]*"
    r"(?:'(?P<single>[^'\n]+)'|\"(?P<double>[^\"\n]+)\"|\\?(?P<bare>[^\s;&|<>()'\"\\$`\0]+))"
)


class _Body(Struct, frozen=True):
    """The text of one here-document: slices of the template's pieces, as (index, from, to)."""

    terminator: str
    tabs: bool
    slices: tuple[tuple[int, int, int], ...]


def _guard_heredocs(template: str, pieces: tuple[_Piece, ...], texts: Sequence[str], scope: Scope) -> None:
    """Refuse values that add a line equal to the end mark of a here-document they stand in.

    A body as written holds no such line, so any that appears came with a value.
    """
    for body in _bodies(template):
        filled = "".join(
            texts[index][start:stop] if isinstance(pieces[index], str) else texts[index]
            for index, start, stop in body.slices
        )
        lines = (line.lstrip("\t") if body.tabs else line for line in filled.split("\n"))
        if body.terminator in lines:
            names = ", ".join(p.text for i, _, _ in body.slices if isinstance(p := pieces[i], Reference))
            raise HeredocCollision(_state_name(scope), body.terminator, hint=f"the here-document holds {names}")


def _state_name(scope: Scope) -> str:
    try:
        return text_of(scope.lookup("state", ("name",)))
    except MissingValue:
        return ""


@lru_cache(maxsize=1024)
def _bodies(template: str) -> tuple[_Body, ...]:
    """Every here-document that holds a reference.

    Found on the template with a hole for each reference. An opener inside a body or a comment is taken for
    one as well: that can only make the guard stricter, never let a body slip.
    """
    pieces = _parse(template)
    skeleton = "".join(piece if isinstance(piece, str) else _HOLE for piece in pieces)
    found = (
        _Body(terminator, tabs, tuple(_slices(pieces, start, stop)))
        for terminator, tabs, start, stop in _heredoc_spans(skeleton)
        if _HOLE in skeleton[start:stop]
    )
    return tuple(found)


def _heredoc_spans(skeleton: str) -> Iterator[tuple[str, bool, int, int]]:
    """(terminator, whether leading tabs are dropped, start, stop) of each body."""
    offset = 0
    for line in skeleton.split("\n"):
        start = offset = offset + len(line) + 1
        for opener in _OPENER.finditer(line):
            if line.count("((", 0, opener.start()) > line.count("))", 0, opener.start()):
                continue  # a shift inside $(( ))
            terminator = opener["single"] or opener["double"] or opener["bare"]
            tabs = bool(opener["tabs"])
            stop, following = _end_of_body(skeleton, start, terminator, tabs)
            yield terminator, tabs, start, stop
            start = following


def _end_of_body(skeleton: str, start: int, terminator: str, tabs: bool) -> tuple[int, int]:
    """Where the body that begins at `start` stops, and where the text after its end mark begins."""
    indent = r"\t*" if tabs else ""
    end = re.compile(rf"^{indent}{re.escape(terminator)}$", re.MULTILINE).search(skeleton, start)
    return (end.start(), end.end() + 1) if end else (len(skeleton), len(skeleton))


def _slices(pieces: Sequence[_Piece], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    offset = 0
    for index, piece in enumerate(pieces):
        length = len(piece) if isinstance(piece, str) else 1
        first, last = max(start - offset, 0), min(stop - offset, length)
        if first < last:
            yield index, first, last
        offset += length
