"""The loop itself: what stands at the top of its file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

from ...core import model as m
from ..complaints import Complaints
from ..document import FragmentUse
from ..fields import Fields, is_number, or_else
from ..keys import AGENT_BLOCKS, AGENT_STATE_KEYS, CATALOGUE, HANDOFFS, LINT_SWITCHES, THRESHOLDS
from ..nodes import Map, Seq, plain
from .parameters import parameters
from .states import states_of

_UNSTEERING = CATALOGUE | LINT_SWITCHES | {"import", "fragments", "flow", "state_defs"}


def build(
    data: Map, fragments: Mapping[str, FragmentUse], executables: frozenset[str], out: Complaints
) -> m.Loop | None:
    """The loop in `data`, or None if its states are no mapping. Complaints about shapes go to `out`."""
    top = Fields(data, out)
    states = top.under("states")
    if states is None:
        return None
    return m.Loop(
        name=top.name("name") or "",
        initial=top.name("initial") or "",
        states=MappingProxyType(states_of(states, fragments, executables, top.data)),
        fingerprint=fingerprint(data, fragments),
        description=top.text("description"),
        context=top.mapping("context"),
        parameters=MappingProxyType(parameters(top.under("parameters"))),
        scope=top.words("scope"),
        singleton=top.flag("singleton"),
        input_key=top.name("input_key") or "input",
        required_inputs=top.words("required_inputs"),
        on_max_steps=top.name("on_max_steps"),
        on_max_iterations=top.name("on_max_iterations"),
        max_edge_revisits=or_else(top.integer("max_edge_revisits"), 100),
        timeout=top.number("timeout"),
        timeout_reserve=or_else(top.number("timeout_reserve"), 0),
        on_timeout=top.name("on_timeout"),
        default_timeout=top.number("default_timeout"),
        default_idle_timeout=top.number("default_idle_timeout"),
        backoff=or_else(top.number("backoff"), 0),
        maintain=top.flag("maintain"),
        on_handoff=cast(m.Handoff, _word(top, "on_handoff", HANDOFFS, "pause")),
        circuit=_circuit(top),
        prompt_size_warn=_prompt_size(top),
        safe_interpolation=top.flag("safe_interpolation"),
        host_guard=_host_guard(top),
        artifact=_artifact(top),
        **_config(top),
        meta=MappingProxyType(_meta(top)),
        **_caps(top),
    )


def fingerprint(data: Map, fragments: Mapping[str, FragmentUse]) -> str:
    """SHA-256 of what steers a run, independent of layout, comments and the catalogue keys."""
    steering = {key: plain(value) for key, value in data.items() if key not in _UNSTEERING}
    bound = {name: [plain(use.parameters), plain(use.bindings)] for name, use in fragments.items()}
    text = json.dumps([steering, bound], sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _caps(top: Fields) -> dict[str, Any]:
    """The two caps; `max_iterations` without `max_steps` is its old name."""
    steps, iterations = top.integer("max_steps"), top.integer("max_iterations")
    if steps is None and top.data.get("max_steps") is None:
        return {"max_steps": or_else(iterations, 50), "max_iterations": None}
    return {"max_steps": or_else(steps, 50), "max_iterations": iterations}


def _word(fields: Fields, key: str, allowed: tuple[str, ...], default: str) -> str:
    value = fields.data.get(key)
    if value is None:
        return default
    if value not in allowed:
        fields.wrong(key, " or ".join(f"`{word}`" for word in allowed))
        return default
    return str(value)


def _prompt_size(top: Fields) -> int:
    guard = top.under("prompt_size_guard")
    if guard is None:
        return 50000
    limit = or_else(guard.integer("warn_chars"), 50000)
    return limit if guard.flag("enabled", default=True) else 0


def _config(top: Fields) -> dict[str, Any]:
    """What the loop says in place of the project's configuration."""
    block = top.under("config")
    if block is None:
        return {}
    commands = block.under("commands")
    gate = commands.under("confidence_gate") if commands is not None else None
    given = {} if gate is None else {name: gate.integer(name) for name in THRESHOLDS}
    thresholds = {name: value for name, value in given.items() if value is not None}
    sections = [block.under(name) for name in ("automation", "continuation")]
    successors = [one.integer("max_continuations") for one in sections if one is not None]
    return {
        "handoff_threshold": block.integer("handoff_threshold"),
        "thresholds": MappingProxyType(thresholds),
        "max_successors": next((number for number in successors if number is not None), None),
    }


def _host_guard(top: Fields) -> m.HostGuard:
    guard = top.under("host_guard") if top.data.get("host_guard") is not None else None
    if guard is None:
        return m.HostGuard()
    default = m.HostGuard()
    return m.HostGuard(
        enabled=guard.flag("enabled", default=True),
        cooldown_ms=or_else(_number(guard, "cooldown_ms"), default.cooldown_ms),
        warn_pct=or_else(_number(guard, "warn_pct"), default.warn_pct),
        critical_pct=or_else(_number(guard, "critical_pct"), default.critical_pct),
        on_pressure=guard.name("on_pressure", default.on_pressure) or "",
        pressure_state=guard.name("pressure_state"),
        on_abort_route=guard.name("on_abort_route"),
        budget_mb=or_else(_number(guard, "max_cumulative_subproc_mb"), default.budget_mb),
        on_budget_exceeded=guard.name("on_budget_exceeded", default.on_budget_exceeded) or "",
        budget_state=guard.name("budget_state"),
    )


def _number(fields: Fields, key: str) -> float | None:
    """The number under `key`; the rule load.number-coercion complains about anything else."""
    value = fields.data.get(key)
    return value if is_number(value) else None


def _artifact(top: Fields) -> m.Artifact | None:
    output = top.data.get("artifact_output")
    mode = top.name("artifact_mode") or "file"
    if isinstance(output, str) and output:
        return m.Artifact(output, mode=mode)
    source = output.get("from") if isinstance(output, Map) else None
    if not isinstance(output, Map) or not isinstance(source, str):
        return None
    fields = Fields(output, top.out, ("artifact_output",))
    on = frozenset(fields.words("on")) if output.get("on") is not None else None
    return m.Artifact(source, fields.name("to"), on, mode)


def _circuit(top: Fields) -> m.RepeatedFailure | None:
    circuit = top.under("circuit") if top.data.get("circuit") is not None else None
    if circuit is None or circuit.data.get("repeated_failure") is None:
        return None
    found = circuit.under("repeated_failure")
    if found is None:
        return None
    target = found.name("on_repeated_failure")
    return m.RepeatedFailure(
        window=or_else(found.integer("window"), 3),
        recurrent_window=found.integer("recurrent_window"),
        then=None if target == "abort" else target,
        progress_paths=found.words("progress_paths"),
        exclude_paths=found.words("exclude_paths"),
    )


def _meta(top: Fields) -> dict[str, Any]:
    """The catalogue and what only an agent host reads, as written; per state under `states`."""
    kept = (CATALOGUE | AGENT_BLOCKS) - {"description"}
    meta: dict[str, Any] = {key: plain(value) for key, value in top.data.items() if key in kept}
    states = {
        name: options
        for name, state in top.data["states"].items()
        if isinstance(state, Map)
        and (options := {key: plain(value) for key, value in state.items() if key in AGENT_STATE_KEYS})
    }
    if states:
        meta["states"] = states
    _check_commands(top)
    _check_artifact(top)
    for block in ("llm", "host_guard"):
        top.under(block)
    return meta


def _check_commands(top: Fields) -> None:
    commands = top.data.get("commands")
    if commands is None:
        return
    entries = commands if isinstance(commands, Seq) else []
    if not isinstance(commands, Seq) or not all(isinstance(e, Map) and set(e) == {"cmd", "comment"} for e in entries):
        top.wrong("commands", "a list of entries with `cmd` and `comment`")


def _check_artifact(top: Fields) -> None:
    artifact = top.data.get("artifact_output")
    if isinstance(artifact, Map) and not isinstance(artifact.get("from"), str):
        top.wrong("artifact_output", "a mapping with `from`", "`from` names the file below the run's folder")
    elif artifact is not None and not isinstance(artifact, str | Map):
        top.wrong("artifact_output", "a path or a mapping with `from`")
