"""What `run --dry-run` prints: everything that is known before the first step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..core.drawing.mermaid import edges
from ..core.model import (
    HumanApproval,
    Learning,
    Loop,
    McpTool,
    Nothing,
    Parameter,
    Prompt,
    Shell,
    State,
    SubLoop,
)
from .forms import text_of
from .terminal import Look, clean

if TYPE_CHECKING:
    from ..api import RunHandle


def plan_lines(handle: RunHandle, waits_for: Sequence[str], look: Look) -> Iterator[str]:
    """The plan of a prepared run, for people; `waits_for` are loops that are started before it and exclude it."""
    for line in _lines(handle, waits_for):
        yield look.fit(line)


def _lines(handle: RunHandle, waits_for: Sequence[str]) -> Iterator[str]:
    loop = handle.loop
    yield f"{loop.name}  {loop.path}"
    yield f"initial: {loop.initial}"
    yield from (f"{name}: {value}" for name, value in caps_of(loop))
    yield f"scope: {', '.join(handle.paths) or 'a worktree of its own'}"
    if waits_for:
        yield f"waits for: {', '.join(waits_for)}"
    yield "context:"
    context = handle.secrets.document(handle.context)
    yield from (f"  {key}: {clean(_value(value))}" for key, value in context.items())
    yield "states:"
    for state in loop.states.values():
        yield from state_lines(state)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else text_of(value, indent=None)


def caps_of(loop: Loop) -> Iterator[tuple[str, str]]:
    """What limits a run of the loop."""
    yield "max steps", f"{loop.max_steps}" + (f", then {loop.on_max_steps}" if loop.on_max_steps else "")
    if loop.max_iterations is not None:
        handler = f", then {loop.on_max_iterations}" if loop.on_max_iterations else ""
        yield "max iterations", f"{loop.max_iterations}{handler}"
    if loop.timeout is not None:
        reserve = f", {loop.timeout_reserve:g} s of it for {loop.on_timeout}" if loop.on_timeout else ""
        yield "timeout", f"{loop.timeout:g} s{reserve}"
    if loop.backoff:
        yield "delay", f"{loop.backoff:g} s"


def state_lines(state: State) -> Iterator[str]:
    """One state: what it does, how it is judged, where it leads."""
    end = ("  (failure)" if state.failure else "  (end)") if state.terminal else ""
    yield f"  {state.name}{end}"
    kind, text = work_of(state)
    first, *more = text.strip().splitlines() or [""]
    if kind:
        yield f"    {kind}: {first.rstrip()}"
        yield from (f"      {line.rstrip()}" for line in more)
    if state.evaluate is not None:
        yield f"    evaluate: {state.evaluate.type}"
    for label, target in edges(state):
        yield f"    {label} -> {target}"


def work_of(state: State) -> tuple[str, str]:
    """The kind of a state's work and its text as written."""
    match state.work:
        case Nothing():
            return "", ""
        case Shell(action):
            return "shell", action
        case Prompt(action):
            return "prompt", action
        case SubLoop(name):
            return "loop", name
        case McpTool(action):
            return "mcp_tool", action
        case HumanApproval(action):
            return "human_approval", action
        case Learning(targets, csv):
            return "learning", ", ".join(targets) if csv is None else csv


def plan_to_json(handle: RunHandle, waits_for: Sequence[str]) -> dict[str, Any]:
    """The plan of a prepared run, for programs; `waits_for` as in `plan_lines`."""
    loop = handle.loop
    return {
        "loop": loop.name,
        "file": loop.path,
        "initial": loop.initial,
        "max_steps": loop.max_steps,
        "max_iterations": loop.max_iterations,
        "timeout": loop.timeout,
        "timeout_reserve": loop.timeout_reserve or None,
        "on_timeout": loop.on_timeout,
        "scope": list(handle.paths),
        "waits_for": list(waits_for),
        "context": dict(handle.secrets.document(handle.context)),
        "states": {state.name: state_to_json(state) for state in loop.states.values()},
    }


def state_to_json(state: State) -> dict[str, Any]:
    """A state as `show --json` and plans give it; only what is set."""
    kind, text = work_of(state)
    document: dict[str, Any] = {
        "terminal": state.terminal,
        "failure": state.failure,
        "action_type": kind if kind not in ("", "loop") else None,
        "action": text if kind not in ("", "loop") else None,
        "loop": text if kind == "loop" else None,
        "evaluate": state.evaluate.type if state.evaluate else None,
        "routes": dict(edges(state)),
        "capture": state.capture,
        "timeout": state.timeout,
    }
    return {key: value for key, value in document.items() if value not in (None, False, {})}


def loop_lines(loop: Loop) -> Iterator[str]:
    """What a loop is made of, for people."""
    yield f"{loop.name}  {loop.path}"
    if loop.description:
        yield f"  {clean(loop.description)}"
    yield f"initial: {loop.initial}"
    yield from (f"{name}: {value}" for name, value in caps_of(loop))
    yield f"scope: {', '.join(loop.scope) or '(the whole project)'}"
    if loop.required_inputs:
        yield f"needs: {', '.join(loop.required_inputs)}"
    if loop.parameters:
        yield "parameters:"
        yield from (_parameter_line(parameter) for parameter in loop.parameters.values())
    if loop.context:
        yield "context:"
        yield from (f"  {key}: {clean(_value(value))}" for key, value in loop.context.items())
    yield "states:"
    for state in loop.states.values():
        yield from state_lines(state)


def _parameter_line(parameter: Parameter) -> str:
    default = "" if parameter.default is None else f" ({clean(_value(parameter.default))})"
    return f"  {parameter.name}{default}: {clean(parameter.description)}".rstrip(": ")


def loop_to_json(loop: Loop) -> dict[str, Any]:
    """A loop as `show --json` gives it: resolved, without what is not set."""
    document: dict[str, Any] = {
        "name": loop.name,
        "initial": loop.initial,
        "states": {state.name: state_to_json(state) for state in loop.states.values()},
        "description": loop.description,
        "context": dict(loop.context),
        "scope": list(loop.scope),
        "singleton": loop.singleton,
        "required_inputs": list(loop.required_inputs),
        "max_steps": loop.max_steps,
        "on_max_steps": loop.on_max_steps,
        "max_iterations": loop.max_iterations,
        "on_max_iterations": loop.on_max_iterations,
        "timeout": loop.timeout,
        "backoff": loop.backoff or None,
        "maintain": loop.maintain,
        "file": loop.path,
        "fingerprint": loop.fingerprint,
    }
    return {key: value for key, value in document.items() if value not in (None, False, "", [], {})}
