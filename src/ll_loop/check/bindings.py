"""Rules that compare what a state hands over with what a sub-loop or a fragment declares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec import Struct

from ..files.document import Document
from ..files.nodes import Map, Mark
from .subject import Finding, StateView, Subject, nearest
from .values import fits

Findings = Iterator[Finding]

_GIVEN_AT_RUN_TIME = frozenset({"run_dir", "loop_name", "started_at", "input_hash"})


class _Call(Struct, frozen=True):
    """One handing over: the state, what it binds, and what is declared on the other side."""

    state: StateView
    what: str
    bindings: Map
    declared: Map
    at: Mark


def _sub_loops(subject: Subject) -> Iterator[_Call]:
    for name, child in subject.children.items():
        state = subject.states[name]
        bindings = state.block("with")
        if child is not None and bindings:
            yield _Call(state, f"loop `{state.data.text('loop')}`", bindings, _declared(child), state.at("with"))


def _declared(child: Document) -> Map:
    found = child.data.get("parameters")
    return found if isinstance(found, Map) else Map()


def _fragments(subject: Subject) -> Iterator[_Call]:
    for state in subject:
        use = state.fragment
        if use is not None and use.parameters:
            bindings = use.bindings if use.bindings is not None else Map(use.with_at)
            yield _Call(state, f"fragment `{use.name}`", bindings, use.parameters, use.with_at)


def _unknown(calls: Iterator[_Call]) -> Findings:
    for call in calls:
        for key in call.bindings if call.declared else ():
            if key not in call.declared:
                message = f"state `{call.state.name}`: {call.what} has no parameter `{key}`"
                hint = nearest(key, call.declared)
                yield Finding(call.state.steps("with", key), message, hint, call.bindings.keys_at[key])


def _missing(calls: Iterator[_Call], given: frozenset[str] = frozenset()) -> Findings:
    for call in calls:
        for key, spec in call.declared.items():
            if isinstance(spec, Map) and spec.get("required") and key not in call.bindings and key not in given:
                message = f"state `{call.state.name}`: {call.what} needs `{key}`"
                yield Finding(call.state.steps("with"), message, f"add `{key}` to `with`", call.at)


def unresolved(subject: Subject) -> Findings:
    for name, child in subject.children.items():
        if child is None:
            wanted = subject.states[name].data.text("loop")
            yield Finding(("states", name, "loop"), f"state `{name}`: no loop `{wanted}`", "`ll-loop list` shows all")


def cycle(subject: Subject) -> Findings:
    for name in sorted(subject.cycles):
        message = f"state `{name}`: this sub-loop can run the loop it is called from"
        yield Finding(("states", name, "loop"), message, "make sure that some way out of the circle is taken")


def required_unbound(subject: Subject) -> Findings:
    """A call that hands over nothing at all; with some bindings, what is missing is an error."""
    for name, child in subject.children.items():
        state = subject.states[name].data
        if child is None or state.get("with") or state.get("context_passthrough"):
            continue
        wanted = [key for key, spec in _declared(child).items() if isinstance(spec, Map) and spec.get("required")]
        for key in wanted if child.data.get("context") is None else set(wanted) - child.data["context"].keys():
            message = f"state `{name}`: the loop `{state.text('loop')}` needs `{key}` and is handed nothing"
            yield Finding(("states", name, "loop"), message, f"add `with: {{{key}: ...}}`")


def artifact_inert(subject: Subject) -> Findings:
    if subject.callers:
        others = ", ".join(f"`{file}`" for file in subject.callers)
        message = f"`artifact_output` is for a loop that is run itself; as a sub-loop of {others} it gives none"
        yield Finding(("artifact_output",), message, "declare it in the loop that is run")


def sub_loop_unknown(subject: Subject) -> Findings:
    return _unknown(_sub_loops(subject))


def sub_loop_missing(subject: Subject) -> Findings:
    return _missing(_sub_loops(subject))


def fragment_unknown(subject: Subject) -> Findings:
    return _unknown(_fragments(subject))


def fragment_missing(subject: Subject) -> Findings:
    return _missing(_fragments(subject), _GIVEN_AT_RUN_TIME)


def with_type(subject: Subject) -> Findings:
    for call in (*_sub_loops(subject), *_fragments(subject)):
        for key, value in call.bindings.items():
            spec = call.declared.get(key)
            if isinstance(spec, Map) and not _fits(value, spec):
                message = f"state `{call.state.name}`: `{key}` of {call.what} must be {_described(spec)}, not {value!r}"
                yield Finding(
                    call.state.steps("with", key),
                    message,
                    "write it so, or hand over a reference",
                    call.bindings.values_at[key],
                )


def _fits(value: object, spec: Mapping[str, object]) -> bool:
    kind = spec.get("type")
    return not isinstance(kind, str) or fits(value, kind, spec.get("values"))


def _described(spec: Mapping[str, object]) -> str:
    values = spec.get("values")
    if spec.get("type") == "enum" and isinstance(values, list):
        return "one of " + ", ".join(str(value) for value in values)
    return f"of type {spec.get('type')}"
