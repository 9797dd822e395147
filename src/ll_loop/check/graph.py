"""Rules over the graph: targets, ways out, what can be reached, verdicts without a route."""

from __future__ import annotations

from collections.abc import Iterator

from ..core.model import CURRENT, FAILURE_NAMES, Routes
from ..core.routing import UNCERTAIN, route
from ..files.building.states import verdict_of
from ..files.keys import misspelt_verdict
from ..files.nodes import Map, Mark
from .subject import Finding, StateView, Subject, Target, nearest
from .verdicts import verdicts_of

Findings = Iterator[Finding]


def initial_unknown(subject: Subject) -> Findings:
    name = subject.data.text("initial")
    if name and name not in subject.names:
        yield Finding(("initial",), f"`initial` names no state: `{name}`", nearest(name, subject.names))


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
            hint = nearest(target.name, subject.names)
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
            message = f"state `{state.name}` can't be reached from `initial`"
            yield Finding(state.steps(), message, "route to it, or remove it")


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
            message = f"state `{state.name}`: a judged state without {' and '.join(missing)}"
            yield Finding(state.steps(), message, f"add {' and '.join(missing)}")


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
    for state, routes in _judged(subject):
        named = _named_elsewhere(state)
        lost = [f"`{word}`" for word in verdicts_of(state) or () if word not in named and route(routes, word) is None]
        if lost:
            message = f"state `{state.name}`: no route takes {' or '.join(lost)}; the run ends there"
            yield Finding(state.steps(), message, f"add {' and '.join(f'`on_{word[1:]}' for word in lost)}")


def _named_elsewhere(state: StateView) -> frozenset[str]:
    """Verdicts that have a fallback of their own, or rules of their own."""
    match state.kind:
        case "loop" | "human_approval":
            return frozenset({"timeout", "edit"})
        case "learning":
            return frozenset({"yes", "no", "blocked"})
        case _ if state.llm_judged and "yes" in state.shorthands and not state.has("route"):
            return frozenset({"no", "partial", "blocked", "cannot_judge"})
        case _:
            return frozenset({"partial", "blocked", "cannot_judge"})


def no_takes_error(subject: Subject) -> Findings:
    for state, routes in _judged(subject):
        written = routes.on if routes.table is None else routes.table
        error = route(routes, "error")
        if "no" not in (verdicts_of(state) or ()) or written.keys() & {"no", "_"} or state.llm_judged:
            continue
        if error is not None and route(routes, "no") == error:
            message = f"state `{state.name}`: the verdict `no` has no route and is treated as an error: `{error}`"
            yield Finding(state.steps(), message, f"say so with `on_no: {error}`", _error_at(state))


def _error_at(state: StateView) -> Mark | None:
    return next((target.at for target in state.targets if target.keys[-1] in ("on_error", "_error")), None)


def never_taken(subject: Subject) -> Findings:
    for state, _ in _judged(subject):
        verdicts = verdicts_of(state)
        for target in state.targets if verdicts is not None else ():
            word = _verdict_of(target, state)
            if word and verdicts is not None and word.removesuffix(UNCERTAIN) not in (*verdicts, "error"):
                key = ".".join(target.keys)
                message = f"state `{state.name}`: `{key}` is never taken: `{word}` is no verdict of this state"
                yield Finding(state.steps(), message, f"its verdicts are {', '.join((*verdicts, 'error'))}", target.at)


def _verdict_of(target: Target, state: StateView) -> str:
    """The verdict that a target is the route of, empty for a catch-all, a misspelt key or a target of another kind."""
    if target.keys[0] == "route":
        return target.keys[1] if not target.keys[1].startswith("_") else ""
    return "" if misspelt_verdict(target.keys[0]) else verdict_of(target.keys[0], state.data) or ""


def dropped_route(subject: Subject) -> Findings:
    for state in subject:
        for key in state.block("route") or Map():
            if key.startswith("_") and key not in ("_", "_error"):
                message = f"state `{state.name}`: `route.{key}` is ignored, as is every key that begins with `_`"
                at = state.data["route"].keys_at[key]
                yield Finding(state.steps(), message, "`_` is any other verdict, `_error` is `error`", at)


def next_hides(subject: Subject) -> Findings:
    for state in subject:
        if not state.data.get("next") or state.kind in ("human_approval", "learning"):
            continue
        hidden = [t for t in state.targets if _verdict_of(t, state) not in ("", "error")]
        if hidden:
            keys = ", ".join(f"`{'.'.join(target.keys)}`" for target in hidden)
            message = f"state `{state.name}`: `next` goes on without judging and hides {keys}"
            yield Finding(state.steps(), message, "keep the one or the other", hidden[0].at)


def _judged(subject: Subject) -> Iterator[tuple[StateView, Routes]]:
    """The states whose verdict picks the next state, with their routes; not those with no way out at all."""
    for state in subject:
        built = subject.loop.states.get(state.name) if subject.loop is not None else None
        if built is None or built.routes.next or state.terminal or not _has_way_out(state):
            continue
        if built.evaluate is not None or not state.has("evaluate"):
            yield state, built.routes


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
