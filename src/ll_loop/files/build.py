"""From a resolved mapping to the frozen `Loop`: types, defaults and the kinds of work; ranges and graph are rules."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar, cast

from ..core import model as m
from .complaints import Complaints
from .document import FragmentUse
from .fields import Fields, frozen, is_number
from .keys import (
    AGENT_BLOCKS,
    AGENT_STATE_KEYS,
    CATALOGUE,
    EVALUATOR_NEEDS,
    HANDOFFS,
    JUDGES,
    LINT_SWITCHES,
    ON_RESUME,
    OTHER_TARGETS,
    OWN_HOSTS,
    RATE_LIMIT_NUMBERS,
    TAMPER_POLICIES,
    THRESHOLDS,
    VERDICT_KEYS,
)
from .kinds import begins_with_slash, kind_of
from .nodes import Map, Seq, plain

_T = TypeVar("_T")

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
        states=MappingProxyType(_states(states, fragments, executables, top.data)),
        fingerprint=fingerprint(data, fragments),
        description=top.text("description"),
        context=top.mapping("context"),
        parameters=MappingProxyType(_parameters(top.under("parameters"))),
        scope=top.words("scope"),
        singleton=top.flag("singleton"),
        input_key=top.name("input_key") or "input",
        required_inputs=top.words("required_inputs"),
        on_max_steps=top.name("on_max_steps"),
        on_max_iterations=top.name("on_max_iterations"),
        max_edge_revisits=_or(top.integer("max_edge_revisits"), 100),
        timeout=top.number("timeout"),
        timeout_reserve=_or(top.number("timeout_reserve"), 0),
        on_timeout=top.name("on_timeout"),
        default_timeout=top.number("default_timeout"),
        default_idle_timeout=top.number("default_idle_timeout"),
        backoff=_or(top.number("backoff"), 0),
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


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value


def _caps(top: Fields) -> dict[str, Any]:
    """The two caps; `max_iterations` without `max_steps` is its old name."""
    steps, iterations = top.integer("max_steps"), top.integer("max_iterations")
    if steps is None and top.data.get("max_steps") is None:
        return {"max_steps": _or(iterations, 50), "max_iterations": None}
    return {"max_steps": _or(steps, 50), "max_iterations": iterations}


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
    limit = _or(guard.integer("warn_chars"), 50000)
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
        cooldown_ms=_or(_number(guard, "cooldown_ms"), default.cooldown_ms),
        warn_pct=_or(_number(guard, "warn_pct"), default.warn_pct),
        critical_pct=_or(_number(guard, "critical_pct"), default.critical_pct),
        on_pressure=guard.name("on_pressure", default.on_pressure) or "",
        pressure_state=guard.name("pressure_state"),
        on_abort_route=guard.name("on_abort_route"),
        budget_mb=_or(_number(guard, "max_cumulative_subproc_mb"), default.budget_mb),
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
        window=_or(found.integer("window"), 3),
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


# --- parameters ------------------------------------------------------------------------------------------


def _parameters(block: Fields | None) -> dict[str, m.Parameter]:
    if block is None:
        return {}
    found = {name: _parameter(block, name) for name in block.data}
    return {name: parameter for name, parameter in found.items() if parameter is not None}


def _parameter(block: Fields, name: str) -> m.Parameter | None:
    spec = block.under(name)
    if spec is None:
        return None
    if not isinstance(spec.data.get("type"), str):
        block.wrong(name, "a mapping with a `type`")
        return None
    values = spec.data.get("values")
    return m.Parameter(
        name=name,
        type=spec.text("type"),
        required=spec.flag("required"),
        default=plain(spec.data.get("default")),
        description=spec.text("description"),
        values=tuple(plain(values)) if isinstance(values, Seq) else (),
    )


# --- states ----------------------------------------------------------------------------------------------


def _states(
    block: Fields, fragments: Mapping[str, FragmentUse], executables: frozenset[str], top: Map
) -> dict[str, m.State]:
    states: dict[str, m.State] = {}
    for name in block.data:
        fields = block.under(name)
        if fields is not None:
            states[name] = _state(name, fields, fragments.get(name), name in executables, top)
    return states


def _state(name: str, fields: Fields, use: FragmentUse | None, is_program: bool, top: Map) -> m.State:
    terminal = fields.flag("terminal")
    failure = fields.flag("failure", default=terminal and name in m.FAILURE_NAMES)
    _check_agent_keys(fields)
    return m.State(
        name=name,
        work=_work(fields, is_program),
        evaluate=_evaluate(fields),
        routes=_routes(fields),
        terminal=terminal,
        failure=failure,
        capture=fields.name("capture"),
        append_to_messages=fields.text_or_none("append_to_messages"),
        timeout=fields.number("timeout"),
        idle_timeout=fields.number("idle_timeout"),
        on_maintain=fields.name("on_maintain"),
        retry=_retry(fields),
        retryable_exit_codes=_exit_codes(fields),
        on_retry_exhausted=fields.name("on_retry_exhausted"),
        rate_limit=_rate_limit(fields),
        throttle=_throttle(fields),
        bindings=frozen(use.bindings) if use is not None and use.bindings is not None else None,
        fragment_parameters=_fragment_parameters(fields, use),
        learning_type=fields.data.get("type") == "learning" and not isinstance(fields.data.get("learning"), Map),
        on_resume=_on_resume(fields),
        scopes=fields.words("scopes") if fields.data.get("scopes") is not None else None,
        tamper_guard=cast(m.TamperPolicy | None, _policy(fields, top, "tamper_guard", TAMPER_POLICIES)),
        prepatch_check=cast(m.PatchPolicy | None, _policy(fields, top, "prepatch_check", ("fail", "warn"))),
    )


def _check_host(fields: Fields) -> None:
    host = fields.data.get("host")
    known = host is None or isinstance(host, str) or (isinstance(host, Map) and any(key in host for key in OWN_HOSTS))
    if not known:
        fields.wrong("host", "a host's name, or a mapping with a `command` or `acp`")


def _check_agent_keys(fields: Fields) -> None:
    """Complain about shapes of what is only kept here; the values themselves are the host's business."""
    _check_host(fields)
    for key in ("action_type", "agent", "model", "model_hint", "effort"):
        fields.text_or_none(key)
    for key in ("cost_ceiling", "params", "learning"):
        if fields.data.get(key) is not None:
            fields.under(key)
    if fields.data.get("loop") is not None:
        fields.name("loop")


def _on_resume(fields: Fields) -> m.OnResume:
    word = fields.data.get("on_resume")
    return cast(m.OnResume, word) if word in ON_RESUME else "rerun"


def _policy(fields: Fields, top: Map, key: str, words: tuple[str, ...]) -> str | None:
    """A guard's policy, the state's before the loop's; any other word is none."""
    word = fields.data.get(key)
    word = top.get(key) if word is None else word
    return next((known for known in words if known == word), None)


def _fragment_parameters(fields: Fields, use: FragmentUse | None) -> tuple[m.Parameter, ...]:
    if use is None:
        return ()
    return tuple(_parameters(Fields(use.parameters, fields.out, ("fragments", use.name, "parameters"))).values())


def _work(fields: Fields, is_program: bool) -> m.Work:
    action = fields.text("action")
    match kind_of(fields.data, is_program=is_program):
        case "shell":
            return m.Shell(action)
        case "prompt":
            slash = fields.data.get("action_type") == "slash_command" or begins_with_slash(fields.data)
            return m.Prompt(action, slash)
        case "loop":
            return _sub_loop(fields)
        case "mcp_tool":
            return m.McpTool(action, fields.mapping("params"))
        case "human_approval":
            return m.HumanApproval(action)
        case "learning":
            return _learning(fields)
        case "nothing":
            return m.Nothing()


def _learning(fields: Fields) -> m.Learning:
    block = fields.under("learning")
    if block is None:
        return m.Learning()
    return m.Learning(
        targets=block.words("targets"),
        targets_csv=block.text_or_none("targets_csv"),
        max_retries=_or(block.integer("max_retries"), m.Learning().max_retries),
        max_retries_expr=block.text_or_none("max_retries_expr"),
    )


def _sub_loop(fields: Fields) -> m.SubLoop:
    bindings = fields.under("with") if fields.data.get("with") is not None else None
    return m.SubLoop(
        name=fields.data.text("loop") or "",
        bindings=None if bindings is None else frozen(bindings.data),
        passthrough=fields.flag("context_passthrough"),
        worktree=fields.text("worktree"),
    )


def _routes(fields: Fields) -> m.Routes:
    on: dict[str, str] = {}
    for key in fields.data:
        verdict = verdict_of(key, fields.data)
        if verdict is None or (key in ("on_success", "on_failure") and verdict in on):
            continue
        target = fields.name(key) if key in VERDICT_KEYS else fields.data.text(key)
        if target:
            on[verdict] = target
    return m.Routes(next=fields.name("next"), on=MappingProxyType(on), table=_table(fields))


def verdict_of(key: str, state: Map) -> str | None:
    """The verdict that the state key `key` routes, if it is such a key."""
    if key in VERDICT_KEYS:
        return VERDICT_KEYS[key]
    if not key.startswith("on_") or key in OTHER_TARGETS or (key == "on_resume" and state[key] in ON_RESUME):
        return None
    return key.removeprefix("on_") or None


def _table(fields: Fields) -> Mapping[str, str] | None:
    route = fields.under("route")
    if route is None:
        return None
    table: dict[str, str] = {}
    for verdict in route.data:
        if verdict in ("_", "_error") or not verdict.startswith("_"):
            target = route.name(verdict)
            if target is not None:
                table[verdict] = target
            elif route.data[verdict] is None:
                route.wrong(verdict, "the name of a state")
    return MappingProxyType(table)


def _retry(fields: Fields) -> m.Retry | None:
    limit, target = fields.integer("max_retries"), fields.data.text("on_retry_exhausted")
    return m.Retry(limit, target) if limit is not None and target else None


def _exit_codes(fields: Fields) -> tuple[int, ...] | None:
    codes = fields.data.get("retryable_exit_codes")
    if codes is None:
        return None
    if not isinstance(codes, Seq):
        fields.wrong("retryable_exit_codes", "a list of exit codes")
        return None
    return tuple(code for code in codes if isinstance(code, int))


def _rate_limit(fields: Fields) -> m.RateLimit | None:
    ladder = fields.data.get("rate_limit_long_wait_ladder")
    retries, base, longest = (fields.number(key) for key in RATE_LIMIT_NUMBERS)
    then = fields.name("on_rate_limit_exhausted")
    if ladder is not None and not isinstance(ladder, Seq):
        fields.wrong("rate_limit_long_wait_ladder", "a list of seconds")
    if then is None and all(value is None for value in (ladder, retries, base, longest)):
        return None
    default = m.RateLimit()
    steps = tuple(step for step in ladder if is_number(step)) if isinstance(ladder, Seq) else ()
    return m.RateLimit(
        retries=int(_or(retries, default.retries)),
        base=_or(base, default.base),
        max_wait=_or(longest, default.max_wait),
        ladder=steps or default.ladder,
        then=then,
    )


def _throttle(fields: Fields) -> m.Throttle | None:
    block = fields.under("throttle") if fields.data.get("throttle") is not None else None
    then = fields.name("on_throttle_hard")
    if block is None:
        return m.Throttle(then=then) if then is not None else None
    given = {key: block.data.get(key) for key in ("normal_max", "warn_max", "hard_max")}
    limits = {key: int(value) for key, value in given.items() if is_number(value) and value is not None}
    return m.Throttle(**limits, then=then)


# --- evaluators ------------------------------------------------------------------------------------------


def _evaluate(fields: Fields) -> m.Evaluate | None:
    block = fields.under("evaluate")
    if block is None:
        return None
    kind = block.data.get("type")
    if not isinstance(kind, str) or not kind:
        fields.wrong("evaluate", "a mapping with a `type`")
        return None
    needs = EVALUATOR_NEEDS.get(kind)
    if needs is None or any(block.data.get(key) is None for key in needs):
        return None  # the rules eval.type-unknown and eval.required-field say so
    evaluator = _judge(block, kind) if kind in JUDGES else _EVALUATORS[kind](block)
    return None if evaluator is None else m.Evaluate(evaluator, block.text_or_none("source"))


def _judge(block: Fields, kind: str) -> m.Judge:
    keys = {key: plain(value) for key, value in block.data.items() if key not in ("type", "source")}
    return m.Judge(kind, MappingProxyType(keys))


def _operator(block: Fields) -> m.Operator | None:
    word = block.data.get("operator")
    return next((known for known in m.OPERATORS if known == word), None)  # eval.operator complains


def _output_numeric(block: Fields) -> m.Evaluator | None:
    operator, target = _operator(block), block.number_or_text("target")
    if operator is None or target is None:
        return None
    return m.OutputNumeric(operator, target, block.name("key"))


def _output_json(block: Fields) -> m.Evaluator | None:
    operator, path = _operator(block), block.name("path")
    if operator is None or path is None:
        return None
    return m.OutputJson(path, operator, plain(block.data["target"]))


def _output_contains(block: Fields) -> m.Evaluator | None:
    pattern = block.text("pattern")
    return m.OutputContains(pattern, block.flag("negate"), block.words("error_patterns"))


def _convergence(block: Fields) -> m.Evaluator | None:
    target, tolerance = block.number_or_text("target"), block.number_or_text("tolerance")
    direction = block.data.get("direction")
    if target is None:
        return None
    return m.Convergence(
        target=target,
        direction="maximize" if direction == "maximize" else "minimize",  # eval.direction complains
        tolerance=0 if tolerance is None else tolerance,
        previous=block.name("previous"),
        reference=block.number_or_text("reference"),
    )


def _classify(block: Fields) -> m.Evaluator | None:
    line = block.data.get("line")
    return m.Classify(line if isinstance(line, int | str) and not isinstance(line, bool) else None)


def _diff_stall(block: Fields) -> m.Evaluator | None:
    return m.DiffStall(block.words("scope"), _or(block.integer("max_stall"), 1))


def _score_stall(default_file: str, falling: bool) -> Callable[[Fields], m.Evaluator | None]:
    def read(block: Fields) -> m.Evaluator:
        return m.ScoreStall(
            history_file=block.text("history_file") or default_file,
            max_stall=_or(block.integer("max_stall"), 1),
            epsilon=_or(block.number("epsilon"), 0.5),
            falling=falling,
        )

    return read


def _action_stall(block: Fields) -> m.Evaluator | None:
    return m.ActionStall(block.words("track") or ("action",), _or(block.integer("max_repeat"), 2))


_EVALUATORS: dict[str, Callable[[Fields], m.Evaluator | None]] = {
    "exit_code": lambda block: m.ExitCode(block.flag("abstain_on_exit_3")),
    "output_contains": _output_contains,
    "output_numeric": _output_numeric,
    "output_json": _output_json,
    "classify": _classify,
    "convergence": _convergence,
    "diff_stall": _diff_stall,
    "score_stall": _score_stall("${context.run_dir}/.score_history", falling=False),
    "open_question_stall": _score_stall("${context.run_dir}/.open_questions_history", falling=True),
    "action_stall": _action_stall,
    "mcp_result": lambda _: m.McpResult(),
    "harbor_scorer": lambda _: m.HarborScorer(),
}
