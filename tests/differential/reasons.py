"""What ll-loop does differently on purpose: a function each, with its reason (docs/compatibility.md).

A function sees the case, both traces and the first difference; what follows after a deliberate difference is not
compared any more.
"""

from __future__ import annotations

from collections.abc import Callable

from .case import Case
from .traces import Difference, Trace

Reason = Callable[[Case, Trace, Trace, Difference], bool]


def the_terminal_wins_over_a_cap(case: Case, old: Trace, ours: Trace, found: Difference) -> bool:
    mine, theirs = _event(found.ours), _event(found.old)
    if mine.get("event") == "loop_complete" and mine.get("terminated_by") in (
        "terminal",
        "max_steps",
        "max_iterations_reached",
    ):
        capped = theirs.get("event") in ("max_steps_summary", "max_iterations_reached_summary")
        return capped or theirs.get("terminated_by") in ("max_steps", "max_iterations_reached")
    return False


def a_handoff_ends_with_loop_complete(case: Case, old: Trace, ours: Trace, found: Difference) -> bool:
    return found.old is None and _event(found.ours).get("terminated_by") == "handoff"


def current_works_in_every_target(case: Case, old: Trace, ours: Trace, found: Difference) -> bool:
    return _event(found.old).get("to") == "$current"


def an_invalid_sub_loop_is_refused(case: Case, old: Trace, ours: Trace, found: Difference) -> bool:
    warnings = [str(event["message"]) for event in ours.events if event["event"] == "warning"]
    began = _event(found.old).get("event") == "loop_start"
    return began and any("can't run" in text for text in [ours.said, *warnings])


def a_state_of_a_sub_loop_has_a_memory_of_its_own(case: Case, old: Trace, ours: Trace, found: Difference) -> bool:
    """There, all that are called without `with:` share one; so it takes two such evaluators, or calls of both kinds."""
    mine = _event(found.ours)
    states = [state for loop in case.loops.values() for state in loop.get("states", {}).values()]
    calls = ["with" in state or "context_passthrough" in state for state in states if "loop" in state]
    shared = sum("_stall" in str(state.get("evaluate")) for state in states) > 1 or any(calls)
    return "depth" in mine and mine.get("type") in ("action_stall", "diff_stall") and not all(calls) and shared


REASONS: dict[Reason, str] = {
    the_terminal_wins_over_a_cap: "who arrives has arrived",
    a_handoff_ends_with_loop_complete: "a handoff ends with `loop_complete`, and exits with 1",
    current_works_in_every_target: "`$current` works in every target",
    a_state_of_a_sub_loop_has_a_memory_of_its_own: "a state of a sub-loop has a memory of its own",
    an_invalid_sub_loop_is_refused: "an invalid sub-loop is refused",
}


def explain(case: Case, old: Trace, ours: Trace, found: Difference) -> str | None:
    """The reason of a deliberate difference, None if it is none."""
    return next((REASONS[why] for why in REASONS if why(case, old, ours, found)), None)


def _event(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}
