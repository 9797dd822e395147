"""Rules over the graph: targets, ways out, what can be reached, verdicts without a route."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..core.model import CURRENT, FAILURE_NAMES
from ..core.routing import route
from ..files.keys import did_you_mean
from .subject import Finding, StateView, Subject

Findings = Iterator[Finding]

_YES_NO = ("yes", "no")
_VERDICTS: Mapping[str, tuple[str, ...]] = {
    "exit_code": _YES_NO,
    "output_contains": _YES_NO,
    "output_numeric": _YES_NO,
    "output_json": _YES_NO,
    "convergence": ("target", "progress", "stall"),
    "diff_stall": _YES_NO,
    "score_stall": _YES_NO,
    "open_question_stall": _YES_NO,
    "action_stall": _YES_NO,
    "harbor_scorer": _YES_NO,
    "mcp_result": ("success", "tool_error", "not_found", "timeout"),
    "comparator": ("yes", "no", "tie", "no_baseline"),
}
"""What an evaluator that asks no open question can say. `error` is left out: ending the run is what most mean by it."""


def initial_unknown(subject: Subject) -> Findings:
    name = subject.data.text("initial")
    if name and name not in subject.names:
        yield Finding(("initial",), f"`initial` names no state: `{name}`", did_you_mean(name, subject.names))


def no_terminal(subject: Subject) -> Findings:
    if not any(state.terminal for state in subject):
        yield Finding(("states",), "no state has `terminal: true`", "the loop could never end")


def unknown_target(subject: Subject) -> Findings:
    for state in subject:
        seen: set[str] = set()
        for target in state.targets:
            if target.name in subject.names or target.name == CURRENT or target.name in seen:
                continue
            seen.add(target.name)
            key = ".".join(target.keys)
            message = f"state `{state.name}`: `{key}` names no state: `{target.name}`"
            hint = did_you_mean(target.name, subject.names)
            if "${" in target.name:
                hint = "a target is a fixed name; choose with `classify` and `route`"
            yield Finding(state.steps(), message, hint, target.at)


def shorthand_and_route(subject: Subject) -> Findings:
    for state in subject:
        hidden = [t for t in state.targets if t.keys[0].startswith("on_") and _is_verdict_key(t.keys[0])]
        if state.has("route") and hidden:
            keys = ", ".join(f"`{target.keys[0]}`" for target in hidden)
            message = f"state `{state.name}`: `route` hides {keys}"
            yield Finding(state.steps(), message, "move them into `route`", hidden[0].at)


def _is_verdict_key(key: str) -> bool:
    others = ("on_error", "on_maintain", "on_retry_exhausted", "on_rate_limit_exhausted", "on_throttle_hard")
    return key not in others


def no_transition(subject: Subject) -> Findings:
    for state in subject:
        if not _has_way_out(state):
            message = f"state `{state.name}` has no way out"
            yield Finding(state.steps(), message, "add `next`, `on_yes` and `on_no`, `route`, or `terminal: true`")


def _has_way_out(state: StateView) -> bool:
    ways = state.shorthands.keys() - {"error"}
    return bool(ways or "route" in state.data or state.data.get("next") or state.terminal or state.kind == "loop")


def unreachable(subject: Subject) -> Findings:
    if not subject.entries:
        return
    reached = subject.reachable(subject.entries | _guard_targets(subject))
    for state in subject:
        if state.name not in reached:
            yield Finding(state.steps(), f"state `{state.name}` can't be reached from `initial`")


def _guard_targets(subject: Subject) -> set[str]:
    guard = subject.block("host_guard")
    if guard is None:
        return set()
    names = (guard.text(key) for key in ("pressure_state", "on_abort_route", "budget_state"))
    return {name for name in names if name}


def failure_undiagnosed(subject: Subject) -> Findings:
    for state in subject:
        if not _is_failure(state) or state.name in subject.limit_handlers:
            continue
        before = [other for other in subject if state.name in other.next_states and other.name != state.name]
        if before and all(other.kind == "nothing" for other in before):
            message = f"the failure `{state.name}` is reached only from states that do nothing"
            yield Finding(state.steps(), message, "let a state before it say what went wrong")


def _is_failure(state: StateView) -> bool:
    declared = state.data.get("failure")
    return state.terminal and bool(state.name in FAILURE_NAMES if declared is None else declared)


def terminal_action(subject: Subject) -> Findings:
    for state in subject:
        if state.terminal and state.action and state.name not in subject.limit_handlers:
            message = f"the action of the terminal `{state.name}` never runs"
            yield Finding(state.steps("action"), message, "move it to a state before")


def partial_dead_end(subject: Subject) -> Findings:
    for state in subject:
        ways = state.shorthands
        plain = not (state.has("next") or "route" in state.data or state.terminal)
        missing = [f"`on_{word}`" for word in ("no", "partial") if word not in ways]
        if state.llm_judged and plain and "yes" in ways and missing:
            yield Finding(state.steps(), f"state `{state.name}`: a judged state without {' and '.join(missing)}")


def classify_no_default(subject: Subject) -> Findings:
    for state in subject:
        table = state.block("route")
        if state.evaluator == "classify" and table is not None and "_" not in table:
            message = f"state `{state.name}`: `classify` with a `route` that has no catch-all"
            yield Finding(state.steps(), message, "add `_: STATE`")


def abstention_unrouted(subject: Subject) -> Findings:
    for state in subject:
        block = state.block("evaluate")
        abstains = state.evaluator == "llm_structured" or (
            state.evaluator == "exit_code" and block is not None and bool(block.get("abstain_on_exit_3"))
        )
        table = state.block("route")
        routed = {"cannot_judge", "_error"} & table.keys() if table is not None else set()
        ways = state.shorthands.keys() & {"cannot_judge", "error"} if table is None else set()
        if abstains and not state.has("next") and not (routed or ways):
            message = f"state `{state.name}`: nothing takes `cannot_judge`"
            yield Finding(state.steps(), message, "add `on_cannot_judge` or `on_error`")


def verdict_unrouted(subject: Subject) -> Findings:
    for state in subject:
        built = subject.loop.states.get(state.name) if subject.loop is not None else None
        if built is None or built.routes.next or state.terminal or state.kind not in ("nothing", "shell"):
            continue
        if not _has_way_out(state):
            continue
        default = "exit_code" if state.kind == "shell" else ""
        if built.evaluate is None and state.has("evaluate"):
            continue
        verdicts = _VERDICTS.get(state.evaluator or default, ("yes",) if state.kind == "nothing" else ())
        lost = [f"`{word}`" for word in verdicts if route(built.routes, word) is None]
        if lost:
            message = f"state `{state.name}`: no route takes {' or '.join(lost)}; the run ends there"
            yield Finding(state.steps(), message)


def next_swallows_failure(subject: Subject) -> Findings:
    """One finding a loop: nearly every loop has such states, and mostly on purpose."""
    found = [
        state
        for state in subject
        if state.kind == "shell" and state.data.get("next") and not state.terminal and "error" not in state.shorthands
    ]
    if found:
        names = ", ".join(f"`{state.name}`" for state in found)
        message = f"a failed, timed-out or killed action goes on to `next`: {names}"
        yield Finding(found[0].steps("next"), message, "add `on_error` where that matters")
