"""Rules over `${captured...}`: is the value there when a state asks for it?"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from ..core.template import Reference, references
from ..files.keys import did_you_mean
from ..files.nodes import Map, Mark
from .subject import Finding, StateView, Subject

Findings = Iterator[Finding]

_OWN_NAME_KINDS = frozenset({"loop", "human_approval"})
_SUB_LOOP_FIELDS = frozenset({"output", "exit_code", "verdict"})


class _Use(Struct, frozen=True):
    """One reference to a capture that must exist."""

    state: StateView
    reference: Reference
    at: Mark

    @property
    def name(self) -> str:
        return self.reference.path[0]

    def finding(self, message: str, hint: str = "", **more: object) -> Finding:
        text = f"state `{self.state.name}`: {message}"
        severity = more.get("severity")
        return Finding(self.state.steps("action"), text, hint, self.at, "warning" if severity == "warning" else None)


def _uses(subject: Subject) -> Iterator[_Use]:
    for state in subject:
        if state.kind == "loop":
            continue
        block = state.block("evaluate")
        for data, key in ((state.data, "action"), (block or Map(), "source")):
            text = data.get(key)
            for reference in references(text) if isinstance(text, str) else ():
                if reference.namespace == "captured" and not reference.guarded:
                    yield _Use(state, reference, data.place(key, reference.start))


def _capturing(subject: Subject, name: str) -> frozenset[str]:
    """The states that store something under `name` by `capture:`."""
    return frozenset(state.name for state in subject if state.data.text("capture") == name)


def _own_name(subject: Subject, name: str) -> bool:
    state = subject.states.get(name)
    return state is not None and state.kind in _OWN_NAME_KINDS


def missing(subject: Subject) -> Findings:
    names = {name for state in subject if (name := state.data.text("capture"))}
    own = {state.name for state in subject if state.kind in _OWN_NAME_KINDS}
    softly = any(state.kind == "loop" for state in subject)
    for use in _uses(subject):
        if use.name not in names | own:
            message = f"nothing is captured as `{use.name}`"
            hint = did_you_mean(use.name, names | own, few=0) or "a guard makes it optional: `?` or `:default=`"
            yield use.finding(message, hint, severity="warning" if softly else None)


def sub_loop_own_name(subject: Subject) -> Findings:
    callers = {name: state for state in subject if state.kind == "loop" and (name := state.data.text("capture"))}
    for use in _uses(subject):
        caller = callers.get(use.name)
        field = use.reference.path[1:]
        if caller is not None and not (len(field) == 1 and field[0] in _SUB_LOOP_FIELDS):
            rest = ".".join(field)
            message = f"`{use.name}` holds the sub-loop's output, not its captures: `{use.reference.text}`"
            yield use.finding(message, f"its captures are under its state: `${{captured.{caller.name}.{rest}}}`")


def bypass(subject: Subject) -> Findings:
    initial = subject.data.text("initial") or ""
    for use in _uses(subject):
        capturing = _capturing(subject, use.name)
        if capturing and use.state.name in subject.reachable([initial], without=capturing):
            others = ", ".join(f"`{name}`" for name in sorted(capturing))
            yield use.finding(f"`{use.name}` is not set on a path that skips {others}", _GUARD)


def implicit_bypass(subject: Subject) -> Findings:
    initial = subject.data.text("initial") or ""
    for use in _uses(subject):
        if not _capturing(subject, use.name) and _own_name(subject, use.name):
            skipping = subject.reachable([initial], without=frozenset({use.name}))
            if use.state.name in skipping:
                yield use.finding(f"`{use.name}` is not set on a path that skips that state", _GUARD)


_GUARD = "guard it with `?` or `:default=TEXT`, or capture on every path"
