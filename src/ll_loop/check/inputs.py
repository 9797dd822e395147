"""Rules over the values that a loop asks for: is there anything that gives them?"""

from __future__ import annotations

from collections.abc import Iterator

from ..core.template import problems, references
from ..files.keys import did_you_mean
from ..files.nodes import Map, Mark
from .subject import Finding, Subject, items

Findings = Iterator[Finding]

_GIVEN = frozenset(
    {
        "run_dir",
        "input_hash",
        "max_steps",
        "max_iterations",
        "include",
        "readiness_threshold",
        "outcome_threshold",
        "design_tokens_context",
        "design_guidance_context",
    }
)
"""Context values that every run has or may have."""


def scope_unresolved(subject: Subject) -> Findings:
    """A scope is filled in before the run from its context alone."""
    known = _declared(subject)
    for entry, at in _entries(subject):
        for _, message, hint in problems(entry):
            yield Finding(("scope",), f"`scope`: {message}", hint, at)
        for used in references(entry):
            name = used.path[0] if used.path else ""
            if used.namespace != "context" and not used.guarded:
                message = f"`scope`: `{used.text}` is not known before the run, which is refused"
                yield Finding(("scope",), message, "only `${context.KEY}` is", at)
            elif name not in known and not used.guarded:
                message = f"`scope`: nothing gives `{used.text}` a value; without one the run is refused"
                hint = did_you_mean(name, known - _GIVEN, few=0) or f"add `{name}` to `context` or `parameters`"
                yield Finding(("scope",), message, hint, at)


def _entries(subject: Subject) -> list[tuple[str, Mark]]:
    scope = subject.data.get("scope")
    if isinstance(scope, str):
        return [(scope, subject.data.values_at["scope"])]
    return [(entry, at) for entry, at in items(scope) if isinstance(entry, str)]


def _declared(subject: Subject) -> frozenset[str]:
    """The context keys that the file names in any place that gives or asks for them."""
    context, parameters = subject.block("context") or Map(), subject.block("parameters") or Map()
    required = subject.data.get("required_inputs")
    asked = [required] if isinstance(required, str) else required if isinstance(required, list) else []
    return _GIVEN | context.keys() | parameters.keys() | {str(key) for key in asked} | {_input_key(subject)}


def _input_key(subject: Subject) -> str:
    return subject.data.text("input_key") or "input"
