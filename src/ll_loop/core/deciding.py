"""From what an action did to the way out of its state: `next`, or an evaluator's verdict, guards and stalls."""

from __future__ import annotations

import re
from functools import partial

from msgspec.structs import replace

from . import actions, events, guards, judging, retries, stalls
from .effects import ActionDone, Answer, ModelSaid, Probed, ProbeFile, ProbeTree, Written
from .frame import After, StopAsked
from .leaving import again, leave, stopped, wait_or_leave
from .model import EMPTY, DiffStall, ScoreStall
from .move import EndRun, Move, Next, Wait, assign, expect, without
from .routing import ABSTAINED, HOLDS, abstention_fallback, route, takes_abstention
from .template import TemplateError
from .verdicts import Evaluation, EvaluatorError, Look, default_evaluation, evaluate


def acted(move: Move, answer: Answer) -> Next:
    done = expect(ActionDone, answer)
    actions.check_workdir(move, done)
    move.frame.turn = replace(move.frame.turn, done=done)
    target = actions.note(move, done)
    if target is None:
        target = actions.throttle(move)
    if target is not None:
        return partial(leave, target=target)
    return judge if move.state.routes.next is None else partial(_after_next, done=done)


def _after_next(move: Move, done: ActionDone) -> Next:
    """The way out of a state with `next`: nothing is judged."""
    actions.remember(move, done)
    return guards.first(move) or partial(_went_on, done=done)


def _went_on(move: Move, done: ActionDone) -> Next:
    found = retries.after_failure(move, done)
    if found is not None:
        return wait_or_leave(found) if move.stop is None else again
    state = move.state
    if done.exit_code and state.routes.on_error is not None:
        if done.exit_code > 0 and not _is_retryable(move, done) and state.on_retry_exhausted is not None:
            return partial(leave, target=move.named(state.on_retry_exhausted))
        return partial(leave, target=move.target(state.routes.on_error))
    if done.exit_code < 0:
        move.ask_to_stop(StopAsked("system_signal"))
        return partial(leave, target=None)
    if done.exit_code:
        move.warn(f"{_failure(done)}; `next` goes on without `on_error`")
    return partial(leave, target=move.target(state.routes.next))


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


def judge(move: Move) -> Next:
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


def probed(move: Move, answer: Answer) -> Next:
    return partial(_evaluated, probe=expect(Probed, answer))


def _consult(move: Move) -> Next:
    try:
        found = judging.consult(move, _look(move, None))
    except EvaluatorError as error:
        raise EndRun("no_route", str(error)) from error
    return found if isinstance(found, Wait) else partial(_judged, evaluation=found)


def consulted(move: Move, answer: Answer) -> Next:
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


def files_checked(move: Move, answer: Answer, *, after: After) -> Next:
    """After a guard's look: the next one, or on with the state, unless a guard sends it elsewhere."""
    wait = guards.following(move, after, expect(Probed, answer))
    turn = move.frame.turn
    if wait is not None:
        return wait
    if turn.forced is not None:
        return partial(leave, target=turn.forced)
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
        memory=frame.memory.get((frame.loop.name, frame.state), EMPTY),
        probe=_seen(probe),
    )


def _evaluate(move: Move, look: Look) -> Evaluation:
    frame, state = move.frame, move.state
    if state.evaluate is None:
        return default_evaluation(state.work, look)
    evaluation, memory = evaluate(state.evaluate, look)
    if memory:
        frame.memory = {**frame.memory, (frame.loop.name, frame.state): memory}
    return evaluation


def _seen(probe: Probed | None) -> str | dict[str, str] | None:
    if probe is None:
        return None
    return {"error": probe.error} if probe.error is not None else probe.value


def _check_stall(move: Move) -> Next:
    return stalls.probe_for_progress(move) or partial(_stall_checked, fingerprint=None)


def stall_probed(move: Move, answer: Answer) -> Next:
    return partial(_stall_checked, fingerprint=expect(Probed, answer).value)


def _stall_checked(move: Move, fingerprint: str | None) -> Next:
    stalls.note_progress(move, fingerprint)
    if not _is_abstention(move):
        move.frame.held = without(move.frame.held, move.frame.state)
    stall = stalls.detect(move)
    if stall is not None and stall.target is None:
        if move.stop is not None and move.stop.by == "error":
            return stopped(move)
        raise EndRun("stall_detected", stall.text)
    stalled = None if stall is None else stall.target
    done = move.frame.turn.done
    found = retries.after_failure(move, done) if done else None
    if found is not None:
        return wait_or_leave(found) if move.stop is None else again
    return partial(leave, target=stalled if stalled is not None else _target_of_verdict(move, done))


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
