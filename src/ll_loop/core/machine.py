"""The machine: decides what a run does next. It never awaits, reads no clock, opens no file.

    decision = begin(loop, context, ...)            # events to record, an effect to perform
    decision = advance(decision.run, outcome)       # the effect's outcome in, the next effect out

A run whose `ending` is set has no further effect. `interrupt` closes a run in the middle (its state stays current),
`resume` opens it again. The same calls with the same values give the same decisions, so a journal of outcomes is
enough to rebuild a run (`ll_loop.core.replay`).

Inside, a move is a chain of steps: each returns the next step, a `Wait` for an answer, or None when the run ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from . import actions, events, limits, retries, stalls, subloops
from .effects import (
    ActionDone,
    Answer,
    Breathe,
    Effect,
    Loaded,
    LoadFailed,
    Outcome,
    Probed,
    ProbeFile,
    ProbeTree,
    Rested,
)
from .effects import Sleep as SleepEffect
from .events import Event
from .frame import After, Frame, Run, StopAsked
from .model import (
    EMPTY,
    DiffStall,
    Ending,
    Loop,
    Nothing,
    Prompt,
    ScoreStall,
    Shell,
    SubLoop,
    TerminatedBy,
    Unsupported,
)
from .move import EndRun, Move, Wait, assign, without
from .routing import ABSTAINED, HOLDS, abstention_fallback, route, takes_abstention
from .template import TemplateError
from .verdicts import Evaluation, EvaluatorError, Look, default_evaluation, evaluate

RESUMABLE: frozenset[TerminatedBy] = frozenset(
    {"interrupted", "user_stopped", "handoff", "max_steps", "max_iterations_reached", "queue_timeout"}
)
"""Endings after which a run may go on; after a cap only once the cap was raised."""

LONGEST_STRETCH = 64
"""States in a row that need no answer before other runs get a turn."""

Step = Callable[[Move], "Next"]
Next = Step | Wait | None


@dataclass(frozen=True, slots=True)
class Decision:
    """What a run does next: tell `events`, then perform `effect` (None when the run has ended)."""

    run: Run
    effect: Effect | None
    events: tuple[Event, ...]


# --- the ways in -------------------------------------------------------------------------------------------


def begin(
    loop: Loop,
    context: Mapping[str, Any],
    *,
    env: Mapping[str, str] = EMPTY,
    ts: str = "",
    origin: Mapping[str, Any] = EMPTY,
) -> Decision:
    """Start a run. `env` holds the environment values that templates may name, `origin` fields of `loop_start`."""
    frame = Frame(loop=loop, context=context, state=loop.initial, started_at=ts)
    move = Move(Run((frame,), env=env), 0.0, ts, 0.5)
    move.emit(events.loop_start(origin))
    return _follow(move, _turn)


def advance(run: Run, outcome: Outcome) -> Decision:
    """Go on with the outcome of the effect under way; ValueError if the answer is not one to that effect."""
    if run.waiting is None:
        raise ValueError(f"{run!r} waits for nothing")
    move = Move(run, outcome.at, outcome.ts, outcome.chance)
    return _follow(move, partial(_ANSWERED[run.after], answer=outcome.answer))


def interrupt(
    run: Run,
    at: float,
    ts: str,
    *,
    by: TerminatedBy = "interrupted",
    signal: int = 0,
    error: str | None = None,
) -> Decision:
    """Close a run in the middle. No route is taken: the state stays current, and `resume` enters it again."""
    move = Move(run, at, ts, 0.5)
    _end_all(move, by, error=error, signal=signal)
    return Decision(replace(_settled(move, None), waiting=run.waiting, after=run.after), None, tuple(move.events))


def resume(run: Run, at: float, ts: str, *, started: bool = True, max_steps: int | None = None) -> Decision:
    """Open a closed or killed run again; `max_steps` replaces the loop's step cap.

    An action that may have `started` is entered again as the next attempt (or skipped, or fails the run, as its
    state's `on_resume` says); any other effect under way is asked for again.
    """
    ended_by = run.ending.by if run.ending else None
    continuation = run.ending.continuation if run.ending else None
    move = Move(replace(run, stop=None, ending=None), at, ts, 0.5)
    root = move.frames[0]
    for name, fields in (events.loop_resume(root.state, root.iteration, continuation), events.loop_start({})):
        move.events.append(Event(name, fields, root.loop.name, 0))
    if max_steps is not None:
        _raise_cap(move, max_steps)
    if started and run.waiting is not None and run.after in ("action", "flush"):
        return _follow(move, partial(_reenter, flush=run.after == "flush"))
    if run.waiting is not None:
        return _follow(move, lambda _: Wait(run.waiting, run.after) if run.waiting else None)
    if ended_by is not None:
        _reopen(move.frame)
    return _follow(move, _turn)


def with_overrides(loop: Loop, overrides: Mapping[str, Any]) -> Loop:
    """The loop with what a start or a resume asked for in place of its own `max_steps` and `backoff`."""
    return replace(loop, **overrides) if overrides else loop


def _raise_cap(move: Move, max_steps: int) -> None:
    root = move.frames[0] if len(move.frames) == 1 else move.frames[0].copy()
    root.loop = with_overrides(root.loop, {"max_steps": max_steps})
    move.frames[0] = root


def _reopen(frame: Frame) -> None:
    frame.state = frame.pre_cap_state or frame.state
    frame.pre_cap_state = frame.cap = frame.came_from = None


def _reenter(move: Move, *, flush: bool) -> Next:
    frame = move.frame
    match move.state.on_resume:
        case "fail":
            raise EndRun("error", f"state {frame.state!r} was cut off, and its on_resume says fail")
        case "skip":
            move.warn(f"state {frame.state!r} was cut off; skipped, as its on_resume says")
            return partial(_acted, answer=ActionDone(0))
        case "rerun":
            frame.attempt += 1
            return partial(_enter, flush=flush)


# --- following steps ---------------------------------------------------------------------------------------


def _follow(move: Move, step: Step) -> Decision:
    following: Next = step
    turns = 0
    while True:
        try:
            following = following(move) if callable(following) else following
        except EndRun as end:
            following = _finish(move, end.by, str(end))
        turns += following is _turn
        if turns > LONGEST_STRETCH:
            following = Wait(Breathe(), "breathe")
        if not callable(following):
            return Decision(_settled(move, following), following.effect if following else None, tuple(move.events))


def _settled(move: Move, wait: Wait | None) -> Run:
    return Run(
        frames=tuple(move.frames),
        env=move.env,
        at=move.at,
        ts=move.ts,
        waiting=wait.effect if wait else None,
        after=wait.after if wait else "nothing",
        stop=move.stop,
        ending=move.ending,
    )


# --- between states ----------------------------------------------------------------------------------------


def _turn(move: Move) -> Next:
    if move.stop is not None:
        return _stopped(move)
    frame = move.frame
    if _has_arrived(frame):
        return _finish(move, frame.cap or "terminal")
    for limit in limits.LIMITS:
        match limit(move):
            case limits.Stop(flush=True) | limits.Handle(flush=True):
                return partial(_enter, flush=True)
            case limits.Stop(by):
                return _finish(move, by)
            case limits.Handle() as handle:
                limits.enter_handler(move, handle)
    if frame.state not in frame.loop.states:
        raise EndRun("no_route", f"No state is called {frame.state!r}")
    _count_retry(frame)
    if frame.current.terminal and not _is_handler(frame):
        return _maintained(move) if frame.loop.maintain else _finish(move, frame.cap or "terminal")
    return _retried(move) or _enter


def _has_arrived(frame: Frame) -> bool:
    state = frame.loop.states.get(frame.state)
    return state is not None and state.terminal and not frame.loop.maintain and not _is_handler(frame)


def _is_handler(frame: Frame) -> bool:
    match frame.cap:
        case "max_steps":
            return frame.state == frame.loop.on_max_steps
        case "max_iterations_reached":
            return frame.state == frame.loop.on_max_iterations
        case None:
            return False


def _count_retry(frame: Frame) -> None:
    before, frame.repeated_in_place = frame.repeated_in_place, False
    if frame.came_from is None:
        return
    if frame.came_from != frame.state:
        frame.retries = without(frame.retries, frame.came_from)
        frame.throttled = without(frame.throttled, frame.came_from)
    elif not before:
        frame.retries = assign(frame.retries, frame.state, frame.retries.get(frame.state, 0) + 1)


def _retried(move: Move) -> Step | None:
    frame, retry = move.frame, move.state.retry
    count = frame.retries.get(frame.state, 0)
    if retry is None or count <= retry.limit:
        return None
    move.emit(events.retry_exhausted(frame.state, count, retry.then))
    frame.retries = without(frame.retries, frame.state)
    frame.state = retry.then
    return _turn


def _maintained(move: Move) -> Step:
    frame = move.frame
    frame.iteration += 1
    frame.passes += 1
    target = frame.current.on_maintain or frame.loop.initial
    move.emit(events.route(frame.state, target, "maintain"))
    frame.state = target
    return _turn


# --- in a state --------------------------------------------------------------------------------------------


def _enter(move: Move, *, flush: bool = False) -> Next:
    frame = move.frame
    frame.iteration += 1
    frame.just_routed = False
    move.emit(events.state_enter(frame.state, frame.iteration, frame.passes, flushed=flush, attempt=frame.attempt))
    actions.prepare(move)
    if flush:
        found = actions.start(move, flush=True)
        return found if isinstance(found, Wait) else _turn
    match move.state.work:
        case SubLoop() as work:
            return _wait_or_leave(subloops.start(move, work))
        case Shell() | Prompt():
            return _wait_or_leave(actions.start(move))
        case Unsupported(kind):
            raise EndRun("error", f"state {frame.state!r}: {kind} is not available in this version")
        case Nothing():
            if move.state.routes.next is not None:
                return partial(_leave, target=move.target(move.state.routes.next))
            return _judge


def _wait_or_leave(found: Wait | str | None) -> Next:
    return found if isinstance(found, Wait) else partial(_leave, target=found)


def _acted(move: Move, answer: Answer) -> Next:
    done = _expect(ActionDone, answer)
    if done.workdir is not None:
        move.emit(events.workdir_vanished(move.frame.state, done.workdir))
        raise EndRun("workdir_vanished", f"Working directory vanished: {done.workdir}")
    move.frame.turn = replace(move.frame.turn, done=done)
    target = actions.note(move, done)
    if target is None:
        target = actions.throttle(move)
    if target is not None:
        return partial(_leave, target=target)
    return _judge if move.state.routes.next is None else partial(_after_next, done=done)


def _flushed(move: Move, answer: Answer) -> Next:
    done = _expect(ActionDone, answer)
    actions.note(move, done)
    return _turn


def _after_next(move: Move, done: ActionDone) -> Next:
    """The way out of a state with `next`: nothing is judged."""
    actions.remember(move, done)
    found = retries.after_failure(move, done)
    if found is not None:
        return _wait_or_leave(found)
    state = move.state
    if done.exit_code and state.routes.on_error is not None:
        if done.exit_code > 0 and not _is_retryable(move, done) and state.on_retry_exhausted is not None:
            return partial(_leave, target=state.on_retry_exhausted)
        return partial(_leave, target=move.target(state.routes.on_error))
    if done.exit_code < 0:
        move.ask_to_stop(StopAsked("system_signal"))
        return partial(_leave, target=None)
    if done.exit_code:
        move.warn(f"the action ended with exit code {done.exit_code}; `next` goes on without `on_error`")
    return partial(_leave, target=move.target(state.routes.next))


def _is_retryable(move: Move, done: ActionDone) -> bool:
    codes = move.state.retryable_exit_codes
    return codes is None or done.exit_code in codes


# --- judging -----------------------------------------------------------------------------------------------


def _judge(move: Move) -> Next:
    frame, state = move.frame, move.state
    done = frame.turn.done
    if state.evaluate is None and done is None:
        actions.remember(move, None)
        frame.turn = replace(frame.turn, verdict="yes")
        return _check_stall
    if state.evaluate is not None and (done is None or done.exit_code != 124):
        match state.evaluate.by:
            case DiffStall(scope=scope):
                return Wait(ProbeTree(scope), "probe")
            case ScoreStall(history_file=template):
                return Wait(ProbeFile(_history_file(move, template)), "probe")
            case _:
                pass
    return partial(_evaluated, probe=None)


def _history_file(move: Move, template: str) -> str:
    try:
        return move.render(template)
    except TemplateError:
        return ""  # unresolvable: as if there were no history yet


def _probed(move: Move, answer: Answer) -> Next:
    return partial(_evaluated, probe=_expect(Probed, answer))


def _evaluated(move: Move, probe: Probed | None) -> Next:
    frame, state = move.frame, move.state
    done = frame.turn.done
    try:
        evaluation = _evaluate(move, done, probe)
    except EvaluatorError as error:
        raise EndRun("no_route", str(error)) from error
    move.emit(events.evaluate(evaluation.type, evaluation.verdict, evaluation.details))
    actions.remember(move, done)
    frame.last = {"verdict": evaluation.verdict, "details": dict(evaluation.details)}
    frame.turn = replace(frame.turn, verdict=evaluation.verdict)
    if state.capture and state.capture in frame.captured:
        kept = assign(frame.captured[state.capture], "verdict", evaluation.verdict)
        frame.captured = assign(frame.captured, state.capture, kept)
    return _check_stall


def _evaluate(move: Move, done: ActionDone | None, probe: Probed | None) -> Evaluation:
    frame, state = move.frame, move.state
    look = Look(
        output=done.output if done else "",
        exit_code=done.exit_code if done else 0,
        scope=move.scope(),
        memory=frame.memory.get(frame.state, EMPTY),
        probe=_seen(probe),
    )
    if state.evaluate is None:
        return default_evaluation(state.work, look)
    evaluation, memory = evaluate(state.evaluate, look)
    if memory:
        frame.memory = assign(frame.memory, frame.state, memory)
    return evaluation


def _seen(probe: Probed | None) -> str | dict[str, str] | None:
    if probe is None:
        return None
    return {"error": probe.error} if probe.error is not None else probe.value


def _check_stall(move: Move) -> Next:
    return stalls.probe_for_progress(move) or partial(_stall_checked, fingerprint=None)


def _stall_probed(move: Move, answer: Answer) -> Next:
    return partial(_stall_checked, fingerprint=_expect(Probed, answer).value)


def _stall_checked(move: Move, fingerprint: str | None) -> Next:
    stalls.note_progress(move, fingerprint)
    stalled = stalls.detect(move)
    done = move.frame.turn.done
    found = retries.after_failure(move, done) if done else None
    if found is not None:
        return _wait_or_leave(found)
    return partial(_leave, target=stalled if stalled is not None else _target_of_verdict(move, done))


def _target_of_verdict(move: Move, done: ActionDone | None) -> str | None:
    frame, state = move.frame, move.state
    verdict = frame.turn.verdict
    if verdict == "error" and done is not None and not _is_retryable(move, done):
        target = state.on_retry_exhausted or move.target(state.routes.on_error)
        if target is not None:
            return target
    if verdict.startswith(ABSTAINED) and not takes_abstention(state.routes, verdict):
        held = frame.held.get(frame.state, 0)
        if held < HOLDS:
            frame.held = assign(frame.held, frame.state, held + 1)
            return frame.state
        frame.held = without(frame.held, frame.state)
        return move.target(abstention_fallback(state.routes))
    frame.held = without(frame.held, frame.state)
    return move.target(route(state.routes, verdict), result=frame.last)


# --- leaving a state ---------------------------------------------------------------------------------------


def _leave(move: Move, target: str | None) -> Next:
    frame = move.frame
    if move.stop is not None and move.stop.by in ("error", "handoff"):
        return _stopped(move)
    if target is None and frame.loop.maintain:
        target = move.state.on_maintain or frame.loop.initial
    if target is None:
        if move.stop is not None:
            return _stopped(move)
        if frame.cap is not None:
            return _finish(move, frame.cap)
        raise EndRun("no_route", "No valid transition")
    move.emit(events.route(frame.state, target))
    _count_edge(move, target)
    frame.came_from, frame.state, frame.just_routed, frame.attempt = frame.state, target, True, 1
    if frame.loop.backoff > 0 and move.stop is None:
        return Wait(SleepEffect(frame.loop.backoff, "backoff"), "backoff")
    return _turn


def _count_edge(move: Move, target: str) -> None:
    frame = move.frame
    edge = f"{frame.state}->{target}"
    count = frame.edges.get(edge, 0) + 1
    frame.edges = assign(frame.edges, edge, count)
    limit = frame.loop.max_edge_revisits
    if count > limit:
        move.emit(events.cycle_detected(frame.state, target, count, limit))
        raise EndRun("cycle_detected", f"Cycle detected: edge {edge} traversed {count} times (limit: {limit})")


def _rate_limit_rested(move: Move, answer: Answer) -> Next:
    _expect(Rested, answer)
    return retries.go_on_waiting(move) or _again


def _server_error_rested(move: Move, answer: Answer) -> Next:
    _expect(Rested, answer)
    retries.after_server_wait(move)
    return _again


def _again(move: Move) -> Next:
    """Enter the state again in place: it costs no retry and no throttle count."""
    frame = move.frame
    frame.repeated_in_place = True
    count = frame.throttled.get(frame.state, 0)
    if count:
        frame.throttled = assign(frame.throttled, frame.state, count - 1)
    return partial(_leave, target=frame.state)


def _rested(move: Move, answer: Answer) -> Next:
    _expect(Rested, answer)
    return _turn


def _loaded(move: Move, answer: Answer) -> Next:
    if not isinstance(answer, Loaded | LoadFailed):
        raise ValueError(f"not an answer to loading a sub-loop: {answer!r}")
    target = subloops.loaded(move, answer)
    return _turn if target is None else partial(_leave, target=target)


# --- endings -----------------------------------------------------------------------------------------------


def _stopped(move: Move) -> Next:
    assert move.stop is not None
    asked = move.stop
    match asked.by:
        case "error":
            _end_all(move, "error", error=asked.text)
        case "handoff":
            frame = move.frame
            move.emit(events.handoff_detected(frame.state, frame.iteration, asked.text or ""))
            keeps = move.frames[0].loop.on_handoff != "terminate"
            _end_all(move, "handoff", continuation=asked.text or "" if keeps else None)
        case "interrupted":
            _end_all(move, "interrupted", asked=True)
        case "system_signal":
            _end_all(move, "system_signal")
    return None


def _finish(move: Move, by: TerminatedBy, error: str | None = None) -> Next:
    """End the frame under way: a sub-loop goes back to its parent, the outermost loop ends the run."""
    if len(move.frames) == 1:
        _end_all(move, by, error=error)
        return None
    ending = _ending(move.frame, by, error=error)
    move.emit(events.loop_complete(ending, move.frame.iteration))
    target = subloops.ended(move, ending)
    return partial(_leave, target=target)


def _end_all(move: Move, by: TerminatedBy, **more: Any) -> None:
    """End every frame for the same reason; they stay on the stack, so that a resume finds them."""
    for frame in reversed(move.frames):
        ending = _ending(frame, by, **more)
        name, fields = events.loop_complete(ending, frame.iteration)
        move.events.append(Event(name, fields, frame.loop.name, frame.depth))
        move.ending = ending


def _ending(frame: Frame, by: TerminatedBy, **more: Any) -> Ending:
    state = frame.loop.states.get(frame.state)
    arrived = by in ("terminal", "max_steps", "max_iterations_reached")
    failed = arrived and state is not None and state.failure
    return Ending(by, frame.state, failure_terminal=failed, **more)


def _expect(kind: type[Any], answer: Answer) -> Any:
    if not isinstance(answer, kind):
        raise ValueError(f"expected {kind.__name__}, got {answer!r}")
    return answer


_ANSWERED: Mapping[After, Callable[..., Next]] = {
    "action": _acted,
    "flush": _flushed,
    "probe": _probed,
    "stall": _stall_probed,
    "rate_limit": _rate_limit_rested,
    "server_error": _server_error_rested,
    "backoff": _rested,
    "breathe": _rested,
    "load": _loaded,
}
