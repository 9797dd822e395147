"""What templates can see, and how a run's `context` is filled before its first state.

Everything here is a function of its arguments: the run directory, the environment, the time and the steering
file's values are handed in. The order in which later values win over earlier ones is that of docs/format.md.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from msgspec import Struct

from .model import EMPTY, Judge, Loop, Parameter, State, SubLoop
from .template import TemplateError, missing, plain, references, render_value, text_of

THRESHOLDS: Mapping[str, Any] = MappingProxyType({"readiness_threshold": 85, "outcome_threshold": 65})
_DESIGN = {"design_tokens_context": "", "design_guidance_context": ""}
_KINDS: Mapping[type, str] = {bool: "boolean", int: "integer", float: "number"}
_LAST = re.compile(r"last\((\d{1,9})\)")


class MissingParameter(TemplateError):  # noqa: N818 - says what happened
    """A required parameter of a sub-loop or a fragment that nobody bound."""

    def __init__(self, name: str, owner: str) -> None:
        super().__init__(f"Missing required parameter '{name}' of {owner}", hint=f"bind it: with: {{{name}: ...}}")
        self.name = name


class Namespaces(Struct, frozen=True):
    """The values behind `${...}` at one moment of a run: a `template.Scope`.

    `prev` is None before the first state has run, `param` outside states made from a fragment, and `result`
    except while a route is looked up; paths into them are then missing. `elapsed_ms` is milliseconds.
    """

    context: Mapping[str, Any] = EMPTY
    captured: Mapping[str, Any] = EMPTY
    prev: Mapping[str, Any] | None = None
    state_name: str = ""
    iteration: int = 0
    loop_name: str = ""
    started_at: str = ""
    elapsed_ms: int = 0
    env: Mapping[str, str] = EMPTY
    messages: tuple[str, ...] = ()
    param: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None

    def lookup(self, namespace: str, path: tuple[str, ...]) -> Any:
        """The value at `path`; only mappings can be descended into. Raises `template.MissingValue`."""
        if namespace == "messages":
            return _message_text(self.messages, path)
        value: Any = self._root(namespace)
        for depth, segment in enumerate(path):
            if not isinstance(value, Mapping) or segment not in value:
                raise missing(namespace, path, depth)
            value = value[segment]
        return value

    def _root(self, namespace: str) -> Mapping[str, Any]:
        match namespace:
            case "context":
                return self.context
            case "captured":
                return self.captured
            case "prev":
                return self.prev or EMPTY
            case "param":
                return self.param or EMPTY
            case "result":
                return self.result or EMPTY
            case "env":
                return self.env
            case "state":
                return {"name": self.state_name, "iteration": self.iteration}
            case "loop":
                return self._loop()
            case _:
                return EMPTY  # `missing` names the namespace

    def _loop(self) -> Mapping[str, Any]:
        return {
            "name": self.loop_name,
            "started_at": self.started_at,
            "elapsed_ms": self.elapsed_ms,
            "elapsed": elapsed_text(self.elapsed_ms),
        }


def elapsed_text(milliseconds: int) -> str:
    """A duration for people: `29ms`, `12s`, `2m`, `2m 15s`."""
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, seconds = divmod(milliseconds // 1000, 60)
    if not minutes:
        return f"{seconds}s"
    return f"{minutes}m {seconds}s" if seconds else f"{minutes}m"


def _message_text(messages: tuple[str, ...], path: tuple[str, ...]) -> str:
    match path:
        case () | ("output",):
            return "\n".join(messages)
        case ("summary",):
            return ""
        case (member,) if last := _LAST.fullmatch(member):
            return "\n".join(messages[max(0, len(messages) - int(last[1])) :])
        case _:
            raise missing("messages", path)


# --- the start of a run ----------------------------------------------------------------------------------


Overrides = Sequence[tuple[str, str]] | Mapping[str, Any]
"""Values for a context: `KEY=VALUE` texts as pairs, or a mapping of values."""


def initial_context(
    loop: Loop,
    *,
    input: str | None = None,  # noqa: A002 - the word of the command line and of the format
    program: Mapping[str, Any] = EMPTY,
    overrides: Mapping[str, Any] = EMPTY,
    texts: Sequence[tuple[str, str]] = (),
    extras: Mapping[str, Any] = EMPTY,
) -> dict[str, Any]:
    """The context of a top-level run; each of these wins over those before it.

    The file's `context` and, for absent keys, parameter defaults; the positional `input`; `program`, the
    steering file's values; `overrides`; `texts`, which take the type of the value that they replace. The loop's own
    thresholds, `extras` (`run_dir` and values from the project's configuration) and the values every run has are set
    where still absent.
    """
    context = dict(plain(loop.context))
    _set_absent(context, _defaults(loop.parameters))
    if input is not None:
        _take_input(context, input, loop.input_key)
    context.update(program)
    context.update(overrides)
    context.update(replacing(context, texts))
    _set_absent(context, loop.thresholds)
    _set_absent(context, extras)
    _set_absent(context, _input_hash(context))
    _set_absent(context, {"max_steps": loop.max_steps})
    if loop.max_iterations is not None:
        _set_absent(context, {"max_iterations": loop.max_iterations})
    _set_absent(context, {**THRESHOLDS, **_DESIGN})
    return context


def replacing(context: Mapping[str, Any], overrides: Overrides) -> dict[str, Any]:
    """What overrides put in the place of values of the context: pairs take their types, a mapping is as it is."""
    if isinstance(overrides, Mapping):
        return dict(overrides)
    found: dict[str, Any] = {}
    for key, text in overrides:
        name = key.strip()
        found[name] = cast_like(found.get(name, context.get(name)), text.strip())
    return found


def cast_like(current: Any, text: str) -> Any:
    """The text as a value of the type of `current`, or of the type that it declares as `{type: ...}`.

    A text that does not fit, and any text where `current` is no boolean or number, stays a text.
    """
    try:
        match current.get("type") if isinstance(current, Mapping) else _KINDS.get(type(current)):
            case "boolean":
                return {"true": True, "false": False}.get(text.lower(), text)
            case "integer":
                return int(text)
            case "number":
                number = float(text)
                return number if math.isfinite(number) else text
            case _:
                return text
    except ValueError:
        return text


def _take_input(context: dict[str, Any], text: str, input_key: str) -> None:
    """A JSON object with a known key sets its known keys; any other text goes to `input_key` as it is."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    known = {key: value[key] for key in value if key in context} if isinstance(value, dict) else {}
    context.update(known or {input_key: text})


def _input_hash(context: Mapping[str, Any]) -> Mapping[str, str]:
    text = context.get("input")
    if not isinstance(text, str):
        return EMPTY
    return {"input_hash": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]}


def _defaults(parameters: Mapping[str, Parameter]) -> Iterator[tuple[str, Any]]:
    for name, parameter in parameters.items():
        if not parameter.required and parameter.default is not None:
            yield name, plain(parameter.default)


def _set_absent(context: dict[str, Any], values: Mapping[str, Any] | Iterator[tuple[str, Any]]) -> None:
    for key, value in dict(values).items():
        context.setdefault(key, value)


def missing_inputs(loop: Loop, context: Mapping[str, Any]) -> list[str]:
    """The context values that a run of this loop would miss; empty when it may start.

    Every unguarded `${context.KEY...}` in an action or a judge's prompt needs KEY, whatever comes after it;
    every one of `required_inputs` needs a value that is not empty.
    """
    wanted = {
        reference.path[0]
        for state in loop.states.values()
        for template in _checked_templates(state)
        for reference in references(template)
        if reference.namespace == "context" and not reference.guarded
    }
    absent = sorted(wanted - context.keys())
    empty = [key for key in loop.required_inputs if not context.get(key) and key not in absent]
    return [*absent, *empty]


def may_read(loop: Loop, key: str) -> bool:
    """Whether a text of the loop names a context value, or one of its sub-loops is given all of them."""
    if any(isinstance(state.work, SubLoop) and state.work.passthrough for state in loop.states.values()):
        return True
    texts = repr(loop.states)
    return "LL_CTX_" in texts or re.search(rf"context\.{re.escape(key)}\b", texts) is not None


def told_missing(loop: Loop, missing: Sequence[str], name: str) -> tuple[str, str]:
    """What to say of missing values: the message, and a command that gives all. `name` is the loop as typed."""
    values = "a value" if len(missing) == 1 else f"{len(missing)} values"
    message = f"loop `{name}` needs {values}: {', '.join(missing)}"
    given = [f"--context {key}=VALUE" for key in missing if key != loop.input_key]
    if loop.input_key in (*missing, *loop.required_inputs):
        given.insert(0, loop.input_key.upper())
    return message, f"ll-loop run {name} {' '.join(given)}"


def _checked_templates(state: State) -> Iterator[str]:
    yield state.template
    if state.evaluate is not None and isinstance(state.evaluate.by, Judge):
        prompt = state.evaluate.by.keys.get("prompt")
        if isinstance(prompt, str):
            yield prompt


# --- sub-loops and fragments -----------------------------------------------------------------------------


def child_context(
    child: Loop,
    work: SubLoop,
    rendered_bindings: Mapping[str, Any] | None,
    parent_context: Mapping[str, Any],
    parent_captured: Mapping[str, Any],
    run_dir: str | None,
    extras: Mapping[str, Any] = EMPTY,
) -> dict[str, Any]:
    """The context a sub-loop begins with.

    With bindings: its own context, the parent's run directory, the bindings, the later winning. With
    `context_passthrough`: the parent's context, the parent's captures (an action's as its output), its own
    context. Else its own context alone. `extras` and the usual values fill what is absent. Raises
    `MissingParameter` if there are bindings but not for a required parameter.
    """
    own = plain(child.context)
    if rendered_bindings:
        inherited = {} if run_dir is None else {"run_dir": run_dir}
        context = {**own, **inherited, **rendered_bindings}
        for name, parameter in child.parameters.items():
            if parameter.required and name not in context:
                raise MissingParameter(name, f"loop '{child.name}'")
    elif work.passthrough:
        outputs = {name: _as_value(capture) for name, capture in parent_captured.items()}
        context = {**plain(parent_context), **outputs, **own}
    else:
        context = dict(own)
    _set_absent(context, _defaults(child.parameters))
    _set_absent(context, child.thresholds)
    _set_absent(context, extras)
    _set_absent(context, _input_hash(context))
    _set_absent(context, THRESHOLDS)
    return context


def _as_value(capture: Any) -> Any:
    """A capture as a context value: an action's output text, anything else (a sub-loop's captures) whole."""
    if isinstance(capture, Mapping) and capture.get("exit_code") is not None:
        return text_of(capture.get("output"))
    return plain(capture)


def bind_fragment(state: State, scope: Namespaces) -> Mapping[str, Any]:
    """The values of `${param.*}` in this state: rendered bindings, then defaults of what is not bound.

    Raises `MissingParameter` for a required parameter without binding, `TemplateError` if a binding cannot be
    rendered.
    """
    if not state.bindings and not state.fragment_parameters:
        return EMPTY
    bound: dict[str, Any] = render_value(state.bindings or EMPTY, scope)
    for parameter in state.fragment_parameters:
        if parameter.name in bound:
            continue
        if parameter.required:
            raise MissingParameter(parameter.name, f"the fragment of state '{state.name}'")
        if parameter.default is not None:
            bound[parameter.name] = plain(parameter.default)
    return bound
