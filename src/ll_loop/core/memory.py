"""The machine's own limits: memory that is nearly used up, and memory that a loop's actions have used in sum.

Pressure is looked at before prompts only: they start the large programs. Which share of the memory is used is read by
the performer; where it cannot be read, nothing happens.
"""

from __future__ import annotations

from msgspec.structs import replace

from . import events
from .effects import ActionDone, Probed, ReadMemory, Sleep
from .model import HostGuard
from .move import EndRun, Move, Wait


def look(move: Move) -> Wait | None:
    """Read the memory before a prompt."""
    guarded = move.state.is_prompt and _guard(move).enabled
    return Wait(ReadMemory(), "memory") if guarded else None


def _guard(move: Move) -> HostGuard:
    """What the loop says, and of the outermost one what was asked for at the start."""
    guard, wishes = move.frame.loop.host_guard, move.frames[0].loop.wishes
    if wishes.no_host_guard:
        return replace(guard, enabled=False)
    if wishes.host_guard_budget_mb is None or len(move.frames) > 1:
        return guard
    return replace(guard, budget_mb=wishes.host_guard_budget_mb)


def weigh(move: Move, seen: Probed) -> Wait | str | None:
    """A pause, a state to go to instead, or None to go on; ends the loop if it is to be aborted."""
    frame, guard = move.frame, _guard(move)
    if seen.value is None:
        return None
    used = float(seen.value)
    if used >= guard.critical_pct:
        frame.under_pressure = True
        move.emit(events.host_pressure(frame.state, used, guard.on_pressure))
        return _critical(move, guard, used)
    if frame.under_pressure and used < guard.warn_pct:
        frame.under_pressure = False
        move.emit(events.host_pressure_relieved(frame.state, used))
    return _cool_down(move, guard, used) if used >= guard.warn_pct else None


def _critical(move: Move, guard: HostGuard, used: float) -> Wait | str:
    frame = move.frame
    match guard.on_pressure:
        case "route" if guard.pressure_state is not None:
            return guard.pressure_state
        case "abort":
            move.emit(events.host_pressure_abort(frame.state, used))
            frame.state = guard.on_abort_route or frame.state
            raise EndRun("host_pressure_abort", f"Host memory at {used:g} % (limit: {guard.critical_pct:g} %)")
        case _:
            return _cool_down(move, guard, used)


def _cool_down(move: Move, guard: HostGuard, used: float) -> Wait:
    seconds = guard.cooldown_ms / 1000
    move.emit(events.host_cooldown(move.frame.state, used, seconds))
    return Wait(Sleep(seconds, "memory"), "cooled")


def account(move: Move, done: ActionDone) -> None:
    """Add an action's peak to the sum, where the loop has a budget."""
    frame, guard = move.frame, _guard(move)
    if not guard.budget_mb or not guard.enabled:
        return
    frame.used_mb += done.peak_mb
    move.emit(events.host_subproc_rss(frame.state, done.peak_mb, frame.used_mb, guard.budget_mb))


def over_budget(move: Move, target: str | None) -> str | None:
    """Where a state leads once the budget has been passed: it says so once."""
    frame, guard = move.frame, _guard(move)
    if not guard.budget_mb or frame.budget_told or frame.used_mb <= guard.budget_mb:
        return target
    frame.budget_told = True
    routed = guard.budget_state if guard.on_budget_exceeded == "route" else None
    action = f"route:{routed}" if routed else "abort"
    move.emit(events.host_budget_exceeded(frame.state, frame.used_mb, guard.budget_mb, action))
    if routed is None:
        raise EndRun("host_budget_exceeded", f"Actions used {frame.used_mb} MB (budget: {guard.budget_mb:g} MB)")
    return routed
