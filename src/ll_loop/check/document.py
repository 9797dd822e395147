"""Rules over the document itself: the catalogue, parameters, numbers and blocks of the top level."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..files.keys import CONFIG, MODEL_HINTS, PARAMETER_TYPES, VISIBILITIES, did_you_mean
from ..files.nodes import Map, Mark
from .subject import Finding, Subject, items, nearest, number_in
from .values import fits

Findings = Iterator[Finding]
Find = Callable[[Subject], Findings]


def visibility(subject: Subject) -> Findings:
    word = subject.data.get("visibility")
    if word is not None and word not in VISIBILITIES:
        hint = did_you_mean(str(word), VISIBILITIES) or "use public, internal or example"
        yield Finding(("visibility",), f"`visibility: {word}` means nothing and counts as public", hint)


def description_missing(subject: Subject) -> Findings:
    if not subject.data.get("description"):
        yield Finding((), "no `description`", "one line that says what the loop is for")


def scope_missing(subject: Subject) -> Findings:
    if not subject.data.get("scope"):
        yield Finding(
            ("scope",), "no `scope`: the loop excludes every other one in this project", "list what it writes"
        )


def input_key_unguarded(subject: Subject) -> Findings:
    key = subject.data.text("input_key")
    if key and key != "input" and not subject.data.get("required_inputs"):
        at = subject.data.values_at["input_key"]
        message = f"`input_key: {key}` without `required_inputs`: the loop starts with no input too"
        yield Finding(("required_inputs",), message, f"add `required_inputs: [{key}]`", at)


def config_block(subject: Subject) -> Findings:
    """Keys of `config:` that nobody knows, or that nothing obeys yet."""
    block = subject.data.get("config")
    for steps, at in _leaves(block, ("config",)) if isinstance(block, Map) else ():
        name = ".".join(steps[1:])
        if name not in CONFIG:
            yield Finding(steps, f"`config` has no key `{name}`", nearest(name, CONFIG), at)


def _leaves(data: Map, steps: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mark]]:
    for key, value in data.items():
        if isinstance(value, Map):
            yield from _leaves(value, (*steps, key))
        else:
            yield (*steps, key), data.keys_at[key]


def handoff_threshold(subject: Subject) -> Findings:
    block = subject.data.get("config")
    value = number_in(block, "handoff_threshold") if isinstance(block, Map) else None
    if value is not None and not 1 <= value <= 100:
        yield Finding(
            ("config", "handoff_threshold"), "`handoff_threshold` must be between 1 and 100", "it is a percentage"
        )


# --- numbers ---------------------------------------------------------------------------------------------


_LEAVE_OUT = {
    "max_steps": "leave it out for 50",
    "max_iterations": "leave it out for no limit",
    "max_edge_revisits": "leave it out for 100",
    "timeout": "leave it out for no limit",
    "window": "leave it out for 3",
    "recurrent_window": "leave it out to look at neighbours only",
}


def above_zero(key: str) -> Find:
    """A rule: the number under `key` must be greater than 0."""

    def find(subject: Subject) -> Findings:
        value = subject.number(key)
        if value is not None and value <= 0:
            yield Finding((key,), f"`{key}` must be greater than 0", _LEAVE_OUT.get(key, ""))

    return find


def max_steps(subject: Subject) -> Findings:
    key = "max_steps" if subject.data.get("max_steps") is not None else "max_iterations"
    value = subject.number(key)
    if value is not None and value <= 0:
        at = subject.data.values_at[key]
        yield Finding(("max_steps",), f"`{key}` must be greater than 0", _LEAVE_OUT["max_steps"], at)


def max_iterations(subject: Subject) -> Findings:
    value = subject.number("max_iterations")
    if value is not None and value <= 0 and subject.data.get("max_steps") is not None:
        yield Finding(("max_iterations",), "`max_iterations` must be greater than 0", _LEAVE_OUT["max_iterations"])


def not_negative(key: str) -> Find:
    """A rule: the number under `key` must not be below 0."""

    def find(subject: Subject) -> Findings:
        value = subject.number(key)
        if value is not None and value < 0:
            yield Finding((key,), f"`{key}` must not be negative", "0 is none")

    return find


def handler_target(key: str) -> Find:
    """A rule: the state named by the top-level `key` must exist."""

    def find(subject: Subject) -> Findings:
        name = subject.data.text(key)
        if name and name not in subject.names:
            yield Finding((key,), f"`{key}` names no state: `{name}`", nearest(name, subject.names))

    return find


def reserve_of_nothing(subject: Subject) -> Findings:
    reserve, timeout = subject.number("timeout_reserve"), subject.number("timeout")
    if reserve and (timeout is None or reserve >= timeout or not subject.data.text("on_timeout")):
        message = "`timeout_reserve` is for nothing without a longer `timeout` and an `on_timeout`"
        yield Finding(("timeout_reserve",), message, "it is the part of `timeout` that is kept for that state")


# --- parameters ------------------------------------------------------------------------------------------


def _parameters(subject: Subject) -> Iterator[tuple[str, Map, str]]:
    block = subject.block("parameters")
    for name, spec in block.items() if block is not None else ():
        if isinstance(spec, Map) and isinstance(spec.get("type"), str):
            yield name, spec, spec["type"]


def parameter_type(subject: Subject) -> Findings:
    for name, spec, kind in _parameters(subject):
        if kind not in PARAMETER_TYPES:
            hint = did_you_mean(kind, PARAMETER_TYPES) or f"types are {', '.join(PARAMETER_TYPES)}"
            at = spec.values_at["type"]
            yield Finding(("parameters", name), f"parameter `{name}`: no type `{kind}`", hint, at)


def parameter_enum(subject: Subject) -> Findings:
    for name, spec, kind in _parameters(subject):
        if kind == "enum" and not spec.get("values"):
            yield Finding(
                ("parameters", name), f"parameter `{name}`: an enum needs `values`", "add `values: [one, two]`"
            )


def parameter_required_default(subject: Subject) -> Findings:
    for name, spec, _ in _parameters(subject):
        if spec.get("required") and spec.get("default") is not None:
            at = spec.values_at["default"]
            yield Finding(("parameters", name), f"parameter `{name}` is required and has a default", "keep one", at)


def parameter_default_type(subject: Subject) -> Findings:
    for name, spec, kind in _parameters(subject):
        default = spec.get("default")
        if default is not None and not fits(default, kind, spec.get("values")):
            at = spec.values_at["default"]
            message = f"parameter `{name}`: the default is no {kind}: {default!r}"
            yield Finding(("parameters", name), message, "change the default, or the type", at)


# --- blocks ----------------------------------------------------------------------------------------------


def target_file(subject: Subject) -> Findings:
    for index, (target, _) in enumerate(items(subject.data.get("targets"))):
        file = target.get("file") if isinstance(target, Map) else None
        if file is not None and not str(file).endswith(".yaml"):
            yield Finding(("targets", index, "file"), f"`{file}` must end in .yaml", "name a loop file")


def _is_template(subject: Subject) -> bool:
    context = subject.block("context")
    if context is not None and "artifact_mode" in context:
        return True
    return subject.data.get("artifact_mode") == "template"


def artifact_needs_output(subject: Subject) -> Findings:
    if _is_template(subject) and not subject.data.get("artifact_output"):
        hint = "say which file of the run it is: `artifact_output: page.llat`"
        yield Finding(("artifact_mode",), "`artifact_mode: template` needs `artifact_output`", hint)


def artifact_suffix(subject: Subject) -> Findings:
    output = subject.block("artifact_output")
    to = output.get("to") if output is not None else None
    if _is_template(subject) and isinstance(to, str) and not to.endswith(".llat"):
        message = f"a template's `to` should end in .llat: `{to}`"
        yield Finding(("artifact_output", "to"), message, "by the ending it is known as a template")


def llm_model_conflict(subject: Subject) -> Findings:
    llm = subject.block("llm")
    if llm is not None and llm.get("model") is not None and llm.get("model_hint") is not None:
        yield Finding((), "`llm` has both `model` and `model_hint`", "keep one", llm.values_at["model_hint"])


def llm_above_zero(key: str) -> Find:
    def find(subject: Subject) -> Findings:
        llm = subject.block("llm")
        value = number_in(llm, key) if llm is not None else None
        if value is not None and value <= 0:
            yield Finding(("llm", key), f"`llm.{key}` must be greater than 0", "leave it out for the default")

    return find


def llm_hint_value(subject: Subject) -> Findings:
    llm = subject.block("llm")
    hint = llm.get("model_hint") if llm is not None else None
    if hint is not None and hint not in MODEL_HINTS:
        words = f"hints are {', '.join(MODEL_HINTS)}"
        yield Finding(("llm", "model_hint"), f"no model hint `{hint}`", did_you_mean(str(hint), MODEL_HINTS) or words)


def llm_hint_unused(subject: Subject) -> Findings:
    llm = subject.block("llm")
    if llm is not None and llm.get("model_hint") is not None and not any(s.uses_model for s in subject):
        message = "`llm.model_hint` has no effect: no state uses a model"
        yield Finding(("llm", "model_hint"), message, "leave it out")


def llm_number(subject: Subject) -> Findings:
    """Text where a number is converted: cost ceilings, host guard percentages."""
    for state in subject:
        cost = state.block("cost_ceiling")
        for key in ("cost_ceiling_per_state", "cost_warn_at") if cost is not None else ():
            if cost is not None and cost.get(key) is not None and number_in(cost, key) is None:
                message = f"state `{state.name}`: `{key}` must be a number"
                yield Finding((), message, "write an amount in USD", cost.values_at[key])
    guard = subject.block("host_guard")
    for key in ("warn_pct", "critical_pct", "cooldown_ms", "max_cumulative_subproc_mb"):
        if guard is not None and guard.get(key) is not None and number_in(guard, key) is None:
            yield Finding((), f"`host_guard.{key}` must be a number", "write digits only", guard.values_at[key])


def prompt_size(subject: Subject) -> Findings:
    guard = subject.block("prompt_size_guard")
    value = number_in(guard, "warn_chars") if guard is not None else None
    if value is not None and value < 0:
        yield Finding(("prompt_size_guard", "warn_chars"), "`warn_chars` must not be negative", "0 switches it off")


# --- circuit ---------------------------------------------------------------------------------------------


def circuit_at_least(key: str, least: int) -> Find:
    def find(subject: Subject) -> Findings:
        block = subject.repeated_failure
        value = number_in(block, key) if block is not None else None
        if value is not None and value < least:
            steps = ("circuit", "repeated_failure", key)
            yield Finding(steps, f"`{key}` must be at least {least}", _LEAVE_OUT.get(key, ""))

    return find


def circuit_target(subject: Subject) -> Findings:
    block = subject.repeated_failure
    name = block.text("on_repeated_failure") if block is not None else None
    if name and name != "abort" and name not in subject.names:
        steps = ("circuit", "repeated_failure", "on_repeated_failure")
        hint = nearest(name, subject.names | {"abort"})
        yield Finding(steps, f"`on_repeated_failure` names no state: `{name}`", hint)


# --- host guard ------------------------------------------------------------------------------------------


def _guard(subject: Subject) -> Map:
    return subject.block("host_guard") or Map()


def guard_percent(subject: Subject) -> Findings:
    for key in ("warn_pct", "critical_pct"):
        value = number_in(_guard(subject), key)
        if value is not None and not 0 <= value <= 100:
            yield Finding(("host_guard", key), f"`{key}` must be from 0 to 100", "it is a percentage")


def guard_order(subject: Subject) -> Findings:
    guard = _guard(subject)
    warn, critical = number_in(guard, "warn_pct"), number_in(guard, "critical_pct")
    if (85 if critical is None else critical) < (75 if warn is None else warn):
        at = guard.values_at.get("critical_pct", guard.values_at.get("warn_pct"))
        message = "`critical_pct` must not be below `warn_pct`"
        yield Finding(("host_guard", "critical_pct"), message, "without a value they are 85 and 75", at)


def guard_not_negative(key: str) -> Find:
    def find(subject: Subject) -> Findings:
        value = number_in(_guard(subject), key)
        if value is not None and value < 0:
            yield Finding(("host_guard", key), f"`{key}` must not be negative", "0 is none")

    return find


def guard_word(key: str, *allowed: str) -> Find:
    def find(subject: Subject) -> Findings:
        word = _guard(subject).get(key)
        if word is not None and word not in allowed:
            yield Finding(
                ("host_guard", key), f"no `{key}` called `{word}`", f"use {', '.join(allowed[:-1])} or {allowed[-1]}"
            )

    return find


def guard_pressure_missing(subject: Subject) -> Findings:
    guard = _guard(subject)
    if guard.get("on_pressure") == "route" and not guard.get("pressure_state"):
        message = "`on_pressure: route` needs `pressure_state`"
        yield Finding(("host_guard", "pressure_state"), message, "name the state to go to")


def guard_budget_missing(subject: Subject) -> Findings:
    guard = _guard(subject)
    on = (number_in(guard, "max_cumulative_subproc_mb") or 0) > 0
    if on and guard.get("on_budget_exceeded", "route") == "route" and not guard.get("budget_state"):
        message = "a memory budget that routes needs `budget_state`"
        yield Finding(("host_guard", "budget_state"), message, "name a state, or say `on_budget_exceeded: abort`")


def guard_state(key: str) -> Find:
    def find(subject: Subject) -> Findings:
        name = _guard(subject).text(key)
        if name and name not in subject.names:
            hint = nearest(name, subject.names)
            yield Finding(("host_guard", key), f"`{key}` names no state: `{name}`", hint)

    return find
