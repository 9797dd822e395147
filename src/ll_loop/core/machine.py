"""The machine: decides what a run does next. It never awaits, reads no clock, opens no file.

    decision = begin(loop, context, ...)            # events to record, an effect to perform
    decision = advance(decision.run, outcome)       # the effect's outcome in, the next effect out

A run whose `ending` is set has no further effect. `interrupt` closes a run in the middle (its state stays current),
`resume` opens it again. The same calls with the same values give the same decisions, so a journal of outcomes is
enough to rebuild a run (`ll_loop.core.replay`).

Inside, a move is a chain of steps: each returns the next step, a `Wait` for an answer, or None when the run ended.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from . import (
    actions,
    approvals,
    artifacts,
    events,
    guards,
    judging,
    learning,
    limits,
    memory,
    retries,
    spending,
    stalls,
    subloops,
)
from .effects import (
    ActionDone,
    Answer,
    AskHuman,
    Breathe,
    Effect,
    Loaded,
    LoadFailed,
    ModelSaid,
    Outcome,
    Probed,
    ProbeFile,
    ProbeTree,
    Rested,
    RunAction,
    Written,
)
from .effects import Sleep as SleepEffect
from .endings import status_of
from .events import Event
from .frame import After, Frame, Run, StopAsked
from .model import (
    EMPTY,
    DiffStall,
    Ending,
    HumanApproval,
    Learning,
    Loop,
    McpTool,
    Nothing,
    Prompt,
    ScoreStall,
    Shell,
    SubLoop,
    TerminatedBy,
    Unsupported,
    Wishes,
)
from .move import EndRun, Move, Wait, assign, expect, without
from .routing import ABSTAINED, HOLDS, abstention_fallback, route, takes_abstention
from .tally import merged, spent_to_json
from .template import TemplateError
from .verdicts import Evaluation, EvaluatorError, Look, default_evaluation, evaluate

CAPS: Mapping[TerminatedBy, str] = MappingProxyType(
    {"max_steps": "max_steps", "max_iterations_reached": "max_iterations"}
)
"""Endings at a cap, and the cap that has to be raised before the run can go on."""

BUDGETS = ("budget", "shared")
"""What a resume can raise besides caps: see `Loop`. A mapping of limits, which replace those that it names."""

RESUMABLE: frozenset[TerminatedBy] = frozenset(
    {"interrupted", "user_stopped", "handoff", "queue_timeout", "budget_exceeded", *CAPS}
)
"""Endings after which a run may go on; after a cap or a budget only once that was raised."""

LONGEST_STRETCH = 64
"""States in a row that need no answer before other runs get a turn."""

Step = Callable[[Move], "Next"]
Next = Step | Wait | None


class Decision(Struct, frozen=True):
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
    extras: Mapping[str, Any] = EMPTY,
) -> Decision:
    """Start a run. `env` holds the environment values that templates may name, `origin` fields of `loop_start`,
    `extras` what the contexts of its sub-loops get where they lack it.
    """
    frame = Frame(loop=loop, context=context, state=loop.initial, started_at=ts)
    move = Move(Run((frame,), env=env, extras=extras), 0.0, ts, 0.5)
    move.emit(events.loop_start(origin))
    return _follow(move, _turn)


def advance(run: Run, outcome: Outcome) -> Decision:
    """Go on with the outcome of the effect under way; ValueError if the answer is not one to that effect."""
    if run.waiting is None or run.ending is not None:
        raise ValueError(f"{run!r} waits for nothing")
    move = Move(run, outcome.at, outcome.ts, outcome.chance)
    spending.book(move, outcome.answer)
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
    """Close a run in the middle. No route is taken: the state stays current, and `resume` enters it again.

    ValueError if the run has ended already.
    """
    if run.ending is not None:
        raise ValueError(f"{run!r} cannot be interrupted")
    move = Move(run, at, ts, 0.5)
    if isinstance(run.waiting, AskHuman):
        approvals.withdraw(move)
    _end_all(move, by, error=error, signal=signal)
    return Decision(replace(_settled(move, None), waiting=run.waiting, after=run.after), None, tuple(move.events))


def resume(
    run: Run,
    at: float,
    ts: str,
    *,
    started: bool = True,
    **raised: Any,
) -> Decision:
    """Open a closed or killed run again; `raised` are those of `CAPS` and `BUDGETS` that replace the loop's own.

    An action that may have `started` is entered again as the next attempt (or skipped, or fails the run, as its
    state's `on_resume` says); a question to a person is put again, any other effect is asked for again. A run that
    ended for good, or whose cap would end it at once, ends again as it did.
    """
    ending = run.ending
    over = ending is not None and run.waiting is None
    move = Move(replace(run, stop=None if over else run.stop, ending=None), at, ts, 0.5)
    _raise_caps(move, raised)
    goes_on = ending is None or _goes_on(ending, move.frames[0])
    if over and goes_on:
        _reopen(move.frame)
    root = move.frames[0]
    continuation = ending.continuation if ending else None
    for name, fields in (events.loop_resume(root.state, root.iteration, continuation), events.loop_start({})):
        move.events.append(Event(name, fields, root.loop.name, 0))
    if ending is not None and not goes_on:
        return _follow(move, partial(_end_again, ending=ending))
    if run.waiting is None:
        return _follow(move, _turn)
    if started and isinstance(run.waiting, RunAction):
        return _follow(move, partial(_reenter, after=run.after))
    if isinstance(run.waiting, AskHuman):
        return _follow(move, approvals.ask)
    waiting = Wait(run.waiting, run.after)
    return _follow(move, lambda _: waiting)


def _goes_on(ending: Ending, root: Frame) -> bool:
    match ending.by:
        case "max_steps":
            return root.iteration < root.loop.max_steps
        case "max_iterations_reached":
            return root.loop.max_iterations is None or root.passes < root.loop.max_iterations
        case by:
            return by in RESUMABLE and status_of(ending) != "failed"


def _end_again(move: Move, *, ending: Ending) -> None:
    root = move.frames[0]
    name, fields = events.loop_complete(ending, root.iteration)
    move.events.append(Event(name, fields, root.loop.name, 0))
    move.ending = ending


def with_overrides(loop: Loop, overrides: Mapping[str, Any]) -> Loop:
    """The loop with what a start or a resume asked for in place of its own caps and `backoff`."""
    if not overrides:
        return loop
    given = dict(overrides)
    if isinstance(wishes := given.get("wishes"), Mapping):
        given["wishes"] = Wishes(**wishes)
    for name in BUDGETS:
        if isinstance(raised := given.get(name), Mapping):
            given[name] = merged(getattr(loop, name), raised)
    return replace(loop, **given)


def _raise_caps(move: Move, caps: Mapping[str, Any]) -> None:
    raised = {name: cap for name, cap in caps.items() if cap is not None}
    if not raised:
        return
    root = move.frames[0] if len(move.frames) == 1 else move.frames[0].copy()
    root.loop = with_overrides(root.loop, raised)
    move.frames[0] = root


def _reopen(frame: Frame) -> None:
    frame.state = frame.pre_cap_state or frame.state
    frame.pre_cap_state = frame.cap = frame.came_from = None
    frame.handled = frozenset()
    frame.attempt = 1


def _reenter(move: Move, *, after: After) -> Next:
    frame = move.frame
    match move.state.on_resume:
        case "fail":
            raise EndRun("error", f"state {frame.state!r} was cut off, and its on_resume says fail")
        case "skip":
            move.warn(f"state {frame.state!r} was cut off; skipped, as its on_resume says")
            return partial(_ANSWERED[after], answer=ActionDone(0))
        case "rerun":
            frame.attempt += 1
            return partial(_flush, after=after) if after in _AFTER_FLUSH else _enter


# --- following steps ---------------------------------------------------------------------------------------


def _follow(move: Move, step: Step) -> Decision:
    following: Next = step
    turns = 0
    while True:
        try:
            following = following(move) if callable(following) else following
        except EndRun as end:
            following = partial(_finish, by=end.by, error=str(end))
        turns += following is _turn
        if turns > LONGEST_STRETCH:
            following = Wait(Breathe(), "breathe")
        if not callable(following):
            return Decision(_settled(move, following), following.effect if following else None, tuple(move.events))


def _settled(move: Move, wait: Wait | None) -> Run:
    return Run(
        frames=tuple(move.frames),
        env=move.env,
        extras=move.extras,
        at=move.at,
        ts=move.ts,
        waiting=wait.effect if wait else None,
        after=wait.after if wait else "nothing",
        stop=move.stop,
        ending=move.ending,
        spent=move.spent,
    )


# --- between states ----------------------------------------------------------------------------------------


def _turn(move: Move) -> Next:
    return _next_state if move.stop is None else _stopped(move)


def _next_state(move: Move) -> Next:
    frame = move.frame
    if _has_arrived(frame):
        return _finish(move, frame.cap or "terminal")
    for limit in limits.LIMITS:
        match limit(move):
            case limits.Stop(flush=True):
                return partial(_flush, after="flush")
            case limits.Handle(flush=True):
                return partial(_flush, after="cap_flush")
            case limits.Stop(by):
                return _finish(move, by)
            case limits.Handle() as handle:
                limits.enter_handler(move, handle)
    if frame.state not in frame.loop.states:
        raise EndRun("no_route", f"No state is called {frame.state!r}")
    _count_retry(frame)
    if frame.current.terminal and frame.loop.maintain:
        return _maintained(move)
    if frame.current.terminal and not _is_handler(frame):
        return _finish(move, frame.cap or "terminal")
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
    target = move.named(retry.then)
    move.emit(events.retry_exhausted(frame.state, count, target))
    frame.retries = without(frame.retries, frame.state)
    frame.state = target
    return _turn


def _maintained(move: Move) -> Step:
    frame = move.frame
    frame.iteration += 1
    frame.passes += 1
    target = move.named(frame.current.on_maintain) or frame.loop.initial
    move.emit(events.route(frame.state, target, "maintain"))
    frame.came_from, frame.state = frame.state, target
    return _turn


# --- in a state --------------------------------------------------------------------------------------------


def _enter(move: Move) -> Next:
    _count_step(move)
    actions.prepare(move)
    match move.state.work:
        case SubLoop() as work:
            return _wait_or_leave(subloops.start(move, work))
        case Shell() | Prompt() | McpTool():
            return memory.look(move) or _guarded
        case HumanApproval():
            return _wait_or_leave(approvals.start(move))
        case Learning() as work:
            return _wait_or_leave(learning.start(move, work))
        case Unsupported(kind):
            raise EndRun("error", f"state {move.frame.state!r}: {kind} is not available in this version")
        case Nothing():
            if move.state.routes.next is not None:
                return partial(_leave, target=move.target(move.state.routes.next))
            return _judge


def _guarded(move: Move) -> Next:
    return guards.before(move) or _wait_or_leave(actions.start(move))


def _memory_read(move: Move, answer: Answer) -> Next:
    found = memory.weigh(move, expect(Probed, answer))
    if isinstance(found, str):
        move.emit(events.route(move.frame.state, found, "host_pressure"))
        move.frame.came_from, move.frame.state = move.frame.state, found
        return _turn
    return found or _guarded


def _cooled(move: Move, answer: Answer) -> Next:
    expect(Rested, answer)
    return _guarded


def _tests_seen(move: Move, answer: Answer) -> Next:
    guards.note_before(move, expect(Probed, answer))
    return _wait_or_leave(actions.start(move))


def _count_step(move: Move, *, flushed: bool = False) -> None:
    frame = move.frame
    frame.iteration += 1
    frame.just_routed = False
    move.emit(events.state_enter(frame.state, frame.iteration, frame.passes, flushed=flushed, attempt=frame.attempt))


def _wait_or_leave(found: Wait | str | None) -> Next:
    return found if isinstance(found, Wait) else partial(_leave, target=found)


def _then(step: Callable[[Move, Answer], Wait | str | None]) -> Callable[..., Next]:
    """An answer to a kind of state that chooses its target itself."""
    return lambda move, answer: _wait_or_leave(step(move, answer))


def _flush(move: Move, *, after: After) -> Next:
    """Run the action of the state under way once, before a limit takes effect; nothing is judged or routed."""
    _count_step(move, flushed=True)
    try:
        actions.prepare(move)
        found = actions.start(move)
    except EndRun:
        return _AFTER_FLUSH[after]  # the limit is why the run ends, whatever is wrong with this action
    return Wait(found.effect, after) if isinstance(found, Wait) else _AFTER_FLUSH[after]


def _flushed(move: Move, answer: Answer, *, after: After) -> Next:
    done = expect(ActionDone, answer)
    move.frame.turn = replace(move.frame.turn, done=done)
    with suppress(EndRun):
        actions.note(move, done)
    return _AFTER_FLUSH[after]


def _acted(move: Move, answer: Answer) -> Next:
    done = expect(ActionDone, answer)
    actions.check_workdir(move, done)
    move.frame.turn = replace(move.frame.turn, done=done)
    target = actions.note(move, done)
    if target is None:
        target = actions.throttle(move)
    if target is not None:
        return partial(_leave, target=target)
    return _judge if move.state.routes.next is None else partial(_after_next, done=done)


def _after_next(move: Move, done: ActionDone) -> Next:
    """The way out of a state with `next`: nothing is judged."""
    actions.remember(move, done)
    return guards.first(move) or partial(_went_on, done=done)


def _went_on(move: Move, done: ActionDone) -> Next:
    found = retries.after_failure(move, done)
    if found is not None:
        return _wait_or_leave(found) if move.stop is None else _again
    state = move.state
    if done.exit_code and state.routes.on_error is not None:
        if done.exit_code > 0 and not _is_retryable(move, done) and state.on_retry_exhausted is not None:
            return partial(_leave, target=move.named(state.on_retry_exhausted))
        return partial(_leave, target=move.target(state.routes.on_error))
    if done.exit_code < 0:
        move.ask_to_stop(StopAsked("system_signal"))
        return partial(_leave, target=None)
    if done.exit_code:
        move.warn(f"{_failure(done)}; `next` goes on without `on_error`")
    return partial(_leave, target=move.target(state.routes.next))


_SCRIPT = re.compile(r"^\S*/ll-action-\w+\.sh: ")
"""How bash begins a complaint; the temporary file's name says nothing to a person."""


def _failure(done: ActionDone) -> str:
    """How an action failed, with the last thing that it complained about."""
    if done.timeout_kind:
        return "the action timed out"
    last = _SCRIPT.sub("", done.stderr.strip().rpartition("\n")[2])[:200]
    return f"the action ended with exit code {done.exit_code}" + (f" ({last})" if last else "")


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
        _keep_verdict(move, "")
        return _check_stall
    if judging.is_judged_by_a_model(state):
        frame.turn = replace(frame.turn, chance=move.chance, answers=())
        return _consult
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
    return partial(_evaluated, probe=expect(Probed, answer))


def _consult(move: Move) -> Next:
    try:
        found = judging.consult(move, _look(move, None))
    except EvaluatorError as error:
        raise EndRun("no_route", str(error)) from error
    return found if isinstance(found, Wait) else partial(_judged, evaluation=found)


def _consulted(move: Move, answer: Answer) -> Next:
    if not isinstance(answer, ModelSaid | Probed | Written):
        raise ValueError(f"expected what a judge was told, got {answer!r}")
    move.frame.turn = replace(move.frame.turn, answers=(*move.frame.turn.answers, answer))
    return _consult


def _evaluated(move: Move, probe: Probed | None) -> Next:
    try:
        evaluation = _evaluate(move, _look(move, probe))
    except EvaluatorError as error:
        raise EndRun("no_route", str(error)) from error
    return partial(_judged, evaluation=evaluation)


def _judged(move: Move, evaluation: Evaluation) -> Next:
    frame = move.frame
    done = frame.turn.done
    move.emit(events.evaluate(evaluation.type, evaluation.verdict, evaluation.details))
    actions.remember(move, done)
    frame.last = {"verdict": evaluation.verdict, "details": dict(evaluation.details)}
    frame.turn = replace(frame.turn, verdict=evaluation.verdict)
    _keep_verdict(move, evaluation.verdict)
    return guards.first(move) or _check_stall


def _files_checked(move: Move, answer: Answer, *, after: After) -> Next:
    """After a guard's look: the next one, or on with the state, unless a guard sends it elsewhere."""
    wait = guards.following(move, after, expect(Probed, answer))
    turn = move.frame.turn
    if wait is not None:
        return wait
    if turn.forced is not None:
        return partial(_leave, target=turn.forced)
    if move.state.routes.next is not None and turn.done is not None:
        return partial(_went_on, done=turn.done)
    return _check_stall


def _keep_verdict(move: Move, verdict: str) -> None:
    frame, name = move.frame, move.state.capture
    if name and name in frame.captured:
        frame.captured = assign(frame.captured, name, assign(frame.captured[name], "verdict", verdict))


def _look(move: Move, probe: Probed | None) -> Look:
    frame = move.frame
    done = frame.turn.done
    return Look(
        output=done.output if done else "",
        exit_code=done.exit_code if done else 0,
        scope=move.scope(),
        memory=frame.memory.get(frame.state, EMPTY),
        probe=_seen(probe),
    )


def _evaluate(move: Move, look: Look) -> Evaluation:
    frame, state = move.frame, move.state
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
    return partial(_stall_checked, fingerprint=expect(Probed, answer).value)


def _stall_checked(move: Move, fingerprint: str | None) -> Next:
    stalls.note_progress(move, fingerprint)
    if not _is_abstention(move):
        move.frame.held = without(move.frame.held, move.frame.state)
    stall = stalls.detect(move)
    if stall is not None and stall.target is None:
        if move.stop is not None and move.stop.by == "error":
            return _stopped(move)
        raise EndRun("stall_detected", stall.text)
    stalled = None if stall is None else stall.target
    done = move.frame.turn.done
    found = retries.after_failure(move, done) if done else None
    if found is not None:
        return _wait_or_leave(found) if move.stop is None else _again
    return partial(_leave, target=stalled if stalled is not None else _target_of_verdict(move, done))


def _target_of_verdict(move: Move, done: ActionDone | None) -> str | None:
    frame, state = move.frame, move.state
    verdict = frame.turn.verdict
    if verdict == "error" and done is not None and not _is_retryable(move, done):
        target = move.named(state.on_retry_exhausted) or move.target(state.routes.on_error)
        if target is not None:
            return target
    if _is_abstention(move):
        held = frame.held.get(frame.state, 0)
        if held < HOLDS:
            frame.held = assign(frame.held, frame.state, held + 1)
            return frame.state
        frame.held = without(frame.held, frame.state)
        return move.target(abstention_fallback(state.routes))
    return move.target(route(state.routes, verdict), result=frame.last)


def _is_abstention(move: Move) -> bool:
    verdict = move.frame.turn.verdict
    abstains = verdict == ABSTAINED or verdict.startswith(f"{ABSTAINED}_")
    return abstains and not takes_abstention(move.state.routes, verdict)


# --- leaving a state ---------------------------------------------------------------------------------------


def _leave(move: Move, target: str | None) -> Next:
    frame = move.frame
    if move.stop is not None and move.stop.by in ("error", "handoff"):
        return _stopped(move)
    spending.check_ceiling(move)
    target = memory.over_budget(move, target)
    if target is None and frame.loop.maintain:
        target = move.named(move.state.on_maintain) or frame.loop.initial
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
    expect(Rested, answer)
    return retries.go_on_waiting(move) or _again


def _server_error_rested(move: Move, answer: Answer) -> Next:
    expect(Rested, answer)
    retries.after_server_wait(move)
    return partial(_leave, target=move.frame.state)


def _again(move: Move) -> Next:
    """Enter the state again in place: it costs no retry and no throttle count."""
    frame = move.frame
    frame.repeated_in_place = True
    count = frame.throttled.get(frame.state, 0)
    if count:
        frame.throttled = assign(frame.throttled, frame.state, count - 1)
    return partial(_leave, target=frame.state)


def _rested(move: Move, answer: Answer) -> Next:
    expect(Rested, answer)
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
            done = move.frame.turn.done
            if done is not None and done.exit_code < 0:
                _end_all(move, "system_signal")
            else:
                _end_all(move, "interrupted", asked=True)
        case "system_signal":
            move.stop = None
            return _finish(move, "system_signal")
    return None


def _finish(move: Move, by: TerminatedBy, error: str | None = None) -> Next:
    """End the frame under way: a sub-loop goes back to its parent, the outermost loop ends the run."""
    if len(move.frames) == 1:
        if by == "terminal" and not move.frame.acted:
            move.warn("the run has come to its end without running anything")
        promotion = artifacts.due(move, by)
        if promotion is None:
            _end_all(move, by, error=error)
        return promotion
    ending = _ending(move.frame, by, error=error)
    move.emit(events.loop_complete(ending, move.frame.iteration))
    target = subloops.ended(move, ending)
    return partial(_leave, target=target)


def _promoted(move: Move, answer: Answer) -> None:
    artifacts.note(move, expect(Probed, answer))
    _end_all(move, "terminal")


def _end_all(move: Move, by: TerminatedBy, **more: Any) -> None:
    """End every frame for the same reason; they stay on the stack, so that a resume finds them."""
    for frame in reversed(move.frames):
        ending = _ending(frame, by, **more)
        name, fields = events.loop_complete(ending, frame.iteration)
        if move.spent and not frame.depth:
            fields["usage"] = spent_to_json(move.spent)
        move.events.append(Event(name, fields, frame.loop.name, frame.depth))
        move.ending = ending


def _ending(frame: Frame, by: TerminatedBy, **more: Any) -> Ending:
    state = frame.loop.states.get(frame.state)
    arrived = by in ("terminal", "max_steps", "max_iterations_reached")
    failed = arrived and state is not None and state.failure
    return Ending(by, frame.state, failure_terminal=failed, **more)


_AFTER_FLUSH: Mapping[After, Step] = {"flush": partial(_finish, by="timeout"), "cap_flush": _next_state}
_ANSWERED: Mapping[After, Callable[..., Next]] = {
    "action": _acted,
    "flush": partial(_flushed, after="flush"),
    "cap_flush": partial(_flushed, after="cap_flush"),
    "probe": _probed,
    "stall": _stall_probed,
    "rate_limit": _rate_limit_rested,
    "server_error": _server_error_rested,
    "backoff": _rested,
    "breathe": _rested,
    "load": _loaded,
    "find_human": _then(approvals.found),
    "human": _then(approvals.replied),
    "record": _then(learning.looked),
    "explore": _then(learning.explored),
    "consult": _consulted,
    "tests_before": _tests_seen,
    "patch": partial(_files_checked, after="patch"),
    "tests_after": partial(_files_checked, after="tests_after"),
    "tests_restored": partial(_files_checked, after="tests_restored"),
    "memory": _memory_read,
    "cooled": _cooled,
    "artifact": _promoted,
}
