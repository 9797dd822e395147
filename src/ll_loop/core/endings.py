"""One table from an `Ending` to what it means elsewhere: the status word and the exit code (docs/compatibility.md)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from .model import Ending, Status

OK, STOPPED, FAILED, INTERNAL, STORAGE, REFUSED = 0, 1, 2, 70, 74, 75


def status_of(ending: Ending) -> Status:
    """The status word stored with a run that ended so."""
    match ending.by:
        case "terminal":
            return "failed" if ending.failure_terminal else "completed"
        case "max_steps" | "max_iterations_reached" | "interrupted" | "queue_timeout" | "budget_exceeded":
            return "interrupted"
        case "timeout":
            return "timed_out"
        case "user_stopped":
            return "user_stopped"
        case "handoff":
            return "awaiting_continuation" if ending.continuation is not None else "failed"
        case (
            "system_signal"
            | "cycle_detected"
            | "stall_detected"
            | "error"
            | "no_route"
            | "workdir_vanished"
            | "host_pressure_abort"
            | "host_budget_exceeded"
            | "cost_ceiling_exceeded"
            | "internal_error"
        ):
            return "failed"
        case _:
            assert_never(ending.by)


def exit_code_of(ending: Ending) -> int:
    """The exit code of a run that ended so."""
    match ending.by:
        case "terminal" | "max_steps" | "max_iterations_reached" if ending.failure_terminal:
            return FAILED
        case "terminal":
            return OK
        case "interrupted" if ending.error is not None:
            return STORAGE
        case "interrupted":
            return OK if ending.asked else 128 + (ending.signal or 2)
        case "internal_error":
            return INTERNAL
        case "queue_timeout":
            return REFUSED
        case (
            "max_steps"
            | "max_iterations_reached"
            | "timeout"
            | "user_stopped"
            | "system_signal"
            | "handoff"
            | "cycle_detected"
            | "stall_detected"
            | "error"
            | "no_route"
            | "workdir_vanished"
            | "host_pressure_abort"
            | "host_budget_exceeded"
            | "cost_ceiling_exceeded"
            | "budget_exceeded"
        ):
            return STOPPED
        case _:
            assert_never(ending.by)


def combined_exit_code(codes: Iterable[int]) -> int:
    """The exit code of a batch: the first of the codes below that any run has, else 0."""
    seen = set(codes)
    return next((code for code in (70, 74, 73, 143, 130, 129, 75, 66, 65, 64, 1, 2) if code in seen), 0)
