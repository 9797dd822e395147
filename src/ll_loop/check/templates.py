"""Rules over templates: what is certain to fail, what bash would see wrongly, what lets a value become program text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..core.template import Reference, problems, references
from ..files.nodes import Map
from .subject import Finding, StateView, Subject

Findings = Iterator[Finding]

_DEFAULT = re.compile(r"(?<!\$)\$\{[^}]*:-[^}]*\}")
_DOUBLE = re.compile(r"\$\$(?:\(|[A-Za-z_])")
_COUNT_OR_ZERO = re.compile(r"\bgrep\b[^\n|;&()]*\s-[A-Za-z]*c[A-Za-z]*\b[^\n|;&()]*\|\|\s*(?:echo|printf)\s+['\"]?0")
_TRUSTED = frozenset({"run_dir", "promoted_artifact"})
_MARKER = re.compile(r"#[ \t]*ll-lint:\s*mr11-ok(?P<rest>[^\n]*)")
_MARKER_REST = re.compile(r"\(\s*(?P<name>[^()\s]+\.[^()\s]+)\s*\)(?=.*\b[A-Z]+-\d+\b).*")
_HEREDOC = re.compile(r"(?<!<)<<-?[ \t]*(?P<quote>['\"]?)(?P<word>[^'\"\s<>&|;()]+)(?P=quote)[^\n]*\n")
_PYTHON = re.compile(r"\bpython[\d.]*\b")
_PYTHON_TEXT = re.compile(r"\bpython[\d.]*(?:[ \t]+-[A-Za-z]+)*?[ \t]+-[A-Za-z]*c\s+(?P<quote>['\"])")


def _templates(subject: Subject) -> Iterator[tuple[StateView, tuple[str, ...], Map, str]]:
    """(state, path below it, mapping, key) of every text that is rendered and whose failure ends a state."""
    for state in subject:
        for key in ("action", "append_to_messages", "loop", "worktree"):
            if isinstance(state.data.get(key), str):
                yield state, (key,), state.data, key
        evaluate, bindings = state.block("evaluate") or Map(), state.block("with") or Map()
        for key in ("source", "prompt", "target", "previous", "reference", "tolerance", "history_file"):
            if isinstance(evaluate.get(key), str) and not _literal(state, key):
                yield state, ("evaluate", key), evaluate, key
        for key, value in bindings.items():
            if isinstance(value, str):
                yield state, ("with", key), bindings, key


def _literal(state: StateView, key: str) -> bool:
    return (key == "target" and state.evaluator == "output_json") or (
        key == "prompt" and state.evaluator != "llm_structured"
    )


def namespace(subject: Subject) -> Findings:
    for state, steps, data, key in _templates(subject):
        text = data[key]
        for offset, message, hint in problems(text):
            if not _DEFAULT.match(text, offset):
                yield Finding(state.steps(*steps), f"state `{state.name}`: {message}", hint, data.place(key, offset))


def bash_default(subject: Subject) -> Findings:
    for state in subject:
        for match in _DEFAULT.finditer(state.action):
            hint = f"write `$${match[0][1:]}` to leave it to bash"
            yield _at(state, match.start(), f"`{match[0]}` is no reference", hint)


def double_dollar(subject: Subject) -> Findings:
    for state in _shell_states(subject):
        for match in _DOUBLE.finditer(state.action):
            what = f"bash reads `$$` as its process id: `{match[0]}`"
            yield _at(state, match.start(), what, "write one `$`; only `${` is escaped")


def count_or_zero(subject: Subject) -> Findings:
    what = "`grep -c` prints 0 and fails when nothing matches: this prints two lines"
    for state in _shell_states(subject):
        for match in _COUNT_OR_ZERO.finditer(state.action):
            yield _at(state, match.start(), what, "write `|| true` in place of the second 0")


def unsafe_place(subject: Subject) -> Findings:
    if not subject.data.get("safe_interpolation"):
        return
    from ..core.shell.quoting import unsafe_places  # here, because only loops that ask for it pay for reading scripts

    for state in _shell_states(subject):
        for offset, message, hint in unsafe_places(state.action):
            yield _at(state, offset, message, hint)


def _at(state: StateView, offset: int, what: str, hint: str) -> Finding:
    """Something wrong at `offset` in the text of a state's action."""
    return Finding(state.steps("action"), f"state `{state.name}`: {what}", hint, state.data.place("action", offset))


def _shell_states(subject: Subject) -> Iterator[StateView]:
    return (state for state in subject if state.kind == "shell")


# --- values that become program text ---------------------------------------------------------------------


def raw_interpolation(subject: Subject) -> Findings:
    if subject.data.get("safe_interpolation"):
        return
    for state in _shell_states(subject):
        markers = _markers(state.action)
        for raw in _raw_values(state.action):
            if not raw.is_excused(state.action, markers):
                what = f"the value of `{raw.reference.text}` becomes {raw.what} text"
                yield _at(state, raw.reference.start, what, raw.hint)


def marker_stale(subject: Subject) -> Findings:
    for state in _shell_states(subject):
        markers = _markers(state.action)
        raws = _raw_values(state.action) if markers else ()
        used = {raw.name for raw in raws if raw.is_excused(state.action, markers)}
        for marker in markers:
            if marker.name not in used:
                what = f"the exemption of `{marker.name}` exempts nothing"
                yield _at(state, marker.start, what, "remove it, or correct the name")


def marker_malformed(subject: Subject) -> Findings:
    for state in _shell_states(subject):
        for match in _MARKER.finditer(state.action):
            if _marked_name(match) is None:
                what = "an exemption needs a name in parentheses, a reason and a ticket"
                yield _at(state, match.start(), what, "write `# ll-lint: mr11-ok(context.key) REASON ABC-12`")


class _Span(NamedTuple):
    """A part of a script that bash hands on as it is, or that Python reads."""

    start: int
    stop: int
    python: bool

    def holds(self, offset: int) -> bool:
        return self.start <= offset < self.stop


class _Marker(NamedTuple):
    """A well-formed exemption: the value named, where it stands, and in which line (from 0)."""

    name: str
    start: int
    line: int


class _Raw(NamedTuple):
    """A value that a script takes in unquoted."""

    reference: Reference
    python: bool

    @property
    def name(self) -> str:
        return ".".join((self.reference.namespace, *self.reference.path))

    @property
    def what(self) -> str:
        return "Python" if self.python else "shell"

    @property
    def hint(self) -> str:
        if self.python:
            return f"pass it as an argument, `${{{self.name}:shell}}`, and read `sys.argv`"
        return f"write `{self.reference.text[:-1]}:shell}}`, outside quotes"

    def is_excused(self, text: str, markers: Iterable[_Marker]) -> bool:
        """In Python a marker anywhere in the action counts; else on the same line, or in the comments right above."""
        lines = {marker.line for marker in markers if marker.name == self.name}
        if self.python or not lines:
            return bool(lines)
        return any(line in lines for line in _lines_about(text, self.reference.start))


def _raw_values(text: str) -> Iterator[_Raw]:
    """Every bare one, and of those inside a Python text the first of each name."""
    found = references(text)
    spans = _spans(text) if found else []
    seen: set[str] = set()
    for reference in found:
        inside = [span for span in spans if span.holds(reference.start)]
        raw = _Raw(reference, any(span.python for span in inside))
        if raw.python:
            if raw.name not in seen and _untrusted_in_python(reference):
                seen.add(raw.name)
                yield raw
        elif not inside and _untrusted(reference) and _is_bare(text, reference):
            yield raw


def _untrusted(reference: Reference) -> bool:
    first = reference.path[0] if reference.path else ""
    match reference.namespace:
        case "captured":
            return True
        case "prev":
            return first in ("output", "stderr")
        case "context":
            return first not in _TRUSTED and not first.startswith("_")
        case _:
            return False


def _untrusted_in_python(reference: Reference) -> bool:
    return _untrusted(reference) or reference.namespace in ("env", "param", "messages")


def _is_bare(text: str, reference: Reference) -> bool:
    line = text[text.rfind("\n", 0, reference.start) + 1 : reference.start]
    return not (reference.shell or line.count("'") % 2 or line.lstrip().startswith("#"))


def _spans(text: str) -> list[_Span]:
    """The bodies of here-documents that are quoted or go to Python, and the texts of `python3 -c`."""
    documents = _here_documents(text) if "<<" in text else ()
    return [*documents, *(_python_texts(text) if "python" in text else ())]


def _here_documents(text: str) -> Iterator[_Span]:
    position = 0
    while match := _HEREDOC.search(text, position):
        line = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
        python = _PYTHON.search(line) is not None
        end = re.compile(rf"^\t*{re.escape(match['word'])}$", re.MULTILINE).search(text, match.end())
        position = end.end() if end else len(text)
        if python or match["quote"]:
            yield _Span(match.end(), end.start() if end else len(text), python)


def _python_texts(text: str) -> Iterator[_Span]:
    for match in _PYTHON_TEXT.finditer(text):
        closing = r"(?<!\\)\"" if match["quote"] == '"' else "'"
        end = re.compile(closing).search(text, match.end())
        yield _Span(match.end(), end.start() if end else len(text), True)


def _markers(text: str) -> list[_Marker]:
    return [
        _Marker(name, match.start(), text.count("\n", 0, match.start()))
        for match in _MARKER.finditer(text)
        if (name := _marked_name(match)) is not None
    ]


def _marked_name(marker: re.Match[str]) -> str | None:
    """The value that a marker exempts; None if it breaks the grammar."""
    rest = _MARKER_REST.fullmatch(marker["rest"].rstrip())
    return None if rest is None or "${" in marker["rest"] else rest["name"]


def _lines_about(text: str, offset: int) -> Iterator[int]:
    """The line of `offset`, and the run of comment lines directly above it."""
    line = text.count("\n", 0, offset)
    lines = text.split("\n")
    yield line
    while line > 0 and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        yield line
