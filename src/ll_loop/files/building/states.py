"""States: what they do, and where their verdicts lead."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

from ...core import model as m
from ..document import FragmentUse
from ..fields import Fields, frozen, is_number, or_else
from ..keys import ON_RESUME, OTHER_TARGETS, OWN_HOSTS, RATE_LIMIT_NUMBERS, TAMPER_POLICIES, VERDICT_KEYS
from ..kinds import begins_with_slash, kind_of
from ..nodes import Map, Seq
from .evaluators import evaluate
from .parameters import parameters


def states_of(
    block: Fields, fragments: Mapping[str, FragmentUse], executables: frozenset[str], top: Map
) -> dict[str, m.State]:
    """The states in `block`, by name; `top` is the whole file, `executables` are those whose action is a program."""
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
        evaluate=evaluate(fields),
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
    return tuple(parameters(Fields(use.parameters, fields.out, ("fragments", use.name, "parameters"))).values())


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
        max_retries=or_else(block.integer("max_retries"), m.Learning().max_retries),
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
        retries=int(or_else(retries, default.retries)),
        base=or_else(base, default.base),
        max_wait=or_else(longest, default.max_wait),
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
