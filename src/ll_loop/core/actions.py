"""Entering a state, and what its action's result means before anything is judged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import events, memory, sessions
from .agents import agent_of, request_path_of
from .context import bind_fragment
from .effects import ActionDone, RunAction, Values
from .failures import failure_type, first_marker
from .frame import After, StopAsked, Turn
from .hosts.turn import Reply
from .model import McpTool, Shell, State
from .move import EndRun, Move, Wait, assign, explain
from .retries import class_of
from .secrets import secret_capture
from .template import HeredocCollision, TemplateError, render_value

DEFAULT_TIMEOUT = 3600.0
TOOL_TIMEOUT = 30.0
NO_VALUES = Values()


def prepare(move: Move) -> None:
    """Bind the parameters of a state that was made from a fragment."""
    state = move.state
    if state.bindings is None and not state.fragment_parameters:
        move.frame.turn = Turn()
        return
    try:
        move.frame.turn = Turn(param=bind_fragment(state, move.scope()))
    except TemplateError as error:
        raise EndRun("error", explain(move.frame, error)) from error


def start(move: Move) -> Wait | str:
    """The action to run, or the target of `on_error` when its text cannot be made."""
    state = move.state
    try:
        text, values = _rendered(move)
        if state.is_prompt:
            text = sessions.text_with_continuation(move, text)
            _tell_path(move)
        arguments = render_value(dict(state.work.params), move.scope()) if isinstance(state.work, McpTool) else None
    except TemplateError as error:
        return on_error(move, error)
    return launch(move, text, arguments=arguments, values=values)


def _tell_path(move: Move) -> None:
    """Say once that prompts go through the agent host, whatever the state asks for."""
    path, frame = request_path_of(move.frame.loop, move.state), move.frame
    if path in ("sdk", "batch") and "" not in frame.told:
        frame.told = assign(frame.told, "", (path,))
        move.emit(events.request_path_downgrade(path, "this version sends no requests of its own"))


def launch(
    move: Move,
    text: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    after: After = "action",
    values: Values = NO_VALUES,
) -> Wait:
    """The action with this text; the machine goes on with its answer at `after`."""
    state, loop = move.state, move.frame.loop
    if 0 < loop.prompt_size_warn <= len(text):
        move.emit(events.prompt_size_warn(state.name, len(text), loop.prompt_size_warn))
    move.emit(events.action_start(text, state.is_prompt))
    idle = _first(state.idle_timeout, loop.default_idle_timeout, 0.0)
    action = RunAction(
        text, state.name, move.frame.iteration, state.is_prompt, _wall(state, loop.default_timeout, idle), idle,
        move.frame.attempt,
        loop.name,
        move.frame.depth,
        arguments,
        agent_of(loop, state, move.frame.session) if state.is_prompt else None,
        values,
        state.scopes,
        state.patience,
        _visit(move),
        secret_capture(state.capture),
    )  # fmt: skip
    return Wait(action, after)


def _visit(move: Move) -> str:
    """The states under way, outermost loop first, each with its step: of the last, that of its first attempt."""
    frame = move.frame
    if frame.attempt == 1:
        frame.first_step = frame.iteration
    above = [f"{one.state}:{one.iteration}" for one in move.frames[:-1]]
    return "/".join([*above, f"{frame.state}:{frame.first_step}"])


def _rendered(move: Move) -> tuple[str, Values]:
    """The action's text, and the values that a shell action gets as variables."""
    frame, template = move.frame, move.state.template
    if not isinstance(move.state.work, Shell):
        return move.render(template), NO_VALUES
    if frame.loop.safe_interpolation and "$" in template:
        from .shell.quoting import render_quoted  # here, because only loops that ask for it pay for reading scripts

        rendered = render_quoted(template, move.scope())
        return rendered.text, Values(frame.context, frame.captured, rendered.values)
    return move.render(template), Values(frame.context, frame.captured)


def _first(*candidates: float | None) -> float:
    return next((c for c in candidates if c is not None), 0.0)


def _wall(state: State, default: float | None, idle: float) -> float:
    if state.is_prompt and idle and state.timeout is None and default is None:
        return 0
    return _first(state.timeout, default, TOOL_TIMEOUT if isinstance(state.work, McpTool) else DEFAULT_TIMEOUT)


def on_error(move: Move, error: TemplateError) -> str:
    """Where an action leads whose text cannot be made; ends the run when no route helps."""
    state = move.state
    if isinstance(error, HeredocCollision) or state.routes.on_error is None:
        raise EndRun("error", explain(move.frame, error)) from error
    move.emit(events.action_error(state.name, str(error)))
    return move.target(state.routes.on_error) or state.name


def check_workdir(move: Move, done: ActionDone) -> None:
    """End the run if the action found its directory gone."""
    if done.workdir is not None:
        move.emit(events.workdir_vanished(move.frame.state, done.workdir))
        raise EndRun("workdir_vanished", f"Working directory vanished: {done.workdir}")


def note(move: Move, done: ActionDone) -> str | None:
    """Record what an action did: its event, its capture, its message, its markers.

    Returns the target of `on_error` when the message cannot be made.
    """
    frame, state = move.frame, move.state
    frame.acted = True
    move.trace_output(done.output)
    move.emit(
        events.action_complete(
            state.name,
            frame.iteration,
            done.exit_code,
            done.duration_ms,
            done.output,
            done.stderr,
            state.is_prompt,
            done.reply,
        )
    )
    memory.account(move, done)
    sessions.note(move, done)
    if done.note:
        move.warn(done.note)
    _tell_of_the_host(move, done.reply)
    if state.capture:
        frame.captured = assign(frame.captured, state.capture, captured(done))
    target = _append_message(move, state)
    obey_markers(move, done)
    return target


def _tell_of_the_host(move: Move, reply: Reply | None) -> None:
    if reply is None:
        return
    if reply.left_out:
        move.warn(f"{reply.host} cannot do this of the state, which was left out: {', '.join(reply.left_out)}")
    if reply.suspect:
        move.warn(f"{reply.host} told of a success, but {reply.suspect}")
    if reply.unknown:
        move.warn(f"{reply.host} wrote lines of unknown kinds: {', '.join(reply.unknown)}")


def captured(done: ActionDone) -> dict[str, Any]:
    """What `${captured.NAME.*}` holds: the output without its trailing line ends, and how it ended."""
    return {
        "output": done.output.rstrip("\r\n"),
        "stderr": done.stderr,
        "exit_code": done.exit_code,
        "duration_ms": done.duration_ms,
        "failure_type": failure_type(class_of(done)) if done.exit_code else "",
        "timeout_kind": done.timeout_kind,
    }


def _append_message(move: Move, state: State) -> str | None:
    if state.append_to_messages is None:
        return None
    try:
        message = move.render(state.append_to_messages)
    except TemplateError as error:
        return on_error(move, error)
    move.frame.messages = (*move.frame.messages, message)
    move.emit(events.messages_append(state.name, message))
    return None


def obey_markers(move: Move, done: ActionDone) -> None:
    """Act on `CONTEXT_HANDOFF:`, `FATAL_ERROR:` and `LOOP_STOP:`, also in sub-loops: they mean the whole run."""
    marker = first_marker(done.marked)
    if marker is None:
        return
    match marker.kind:
        case "handoff":
            move.ask_to_stop(StopAsked("handoff", marker.payload))
        case "fatal":
            move.ask_to_stop(StopAsked("error", marker.payload))
        case "stop":
            move.ask_to_stop(StopAsked("interrupted", marker.payload))


def throttle(move: Move) -> str | None:
    """Count consecutive runs of a state that asked for a throttle; a target when its hard limit is reached."""
    frame, state = move.frame, move.state
    limits = state.throttle
    if limits is None:
        return None
    count = frame.throttled.get(state.name, 0) + 1
    frame.throttled = assign(frame.throttled, state.name, count)
    if count == limits.warn_max:
        move.emit(events.throttle_warn(state.name, count, limits.normal_max, limits.warn_max, limits.hard_max))
    if state.learning_type or count < limits.hard_max:
        return None
    if count == limits.hard_max:
        target = move.named(limits.then or state.routes.on_error)
        move.emit(events.throttle_hard(state.name, count, limits.hard_max, target))
        return target
    move.emit(events.throttle_stop(state.name, count, limits.hard_max))
    raise EndRun(
        "error",
        f"Throttle stop: state {state.name!r} exceeded hard_max={limits.hard_max} tool calls "
        "with no on_throttle_hard target",
    )


def remember(move: Move, done: ActionDone | None) -> None:
    """Set what `${prev.*}` shows from now on."""
    frame = move.frame
    prev: Mapping[str, Any] = {
        "output": done.output if done else "",
        "exit_code": done.exit_code if done else 0,
        "state": frame.state,
        "timeout_kind": done.timeout_kind if done else None,
    }
    frame.prev = prev
