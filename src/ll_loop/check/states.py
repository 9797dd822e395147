"""Rules over single states: kinds of work, retries, limits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from ..files.keys import ACTION_TYPES, MODEL_HINTS, ON_RESUME
from ..files.kinds import untyped
from ..files.nodes import Map
from .subject import Finding, StateView, Subject, items, nearest, number_in

Findings = Iterator[Finding]
Find = Callable[[Subject], Findings]

CREDENTIALS = frozenset(
    {
        "github",
        "anthropic-api",
        "openai-api",
        "gemini-api",
        "kimi-api",
        "opencode-api",
        "openrouter-api",
        "qwen-api",
        "vision-api",
        "autofigure-api",
    }
)
THROTTLE_LIMITS = ("normal_max", "warn_max", "hard_max")


def _say(state: StateView, message: str) -> str:
    return f"state `{state.name}`: {message}"


def each(find: Callable[[StateView], Findings]) -> Find:
    """A rule over the loop from a rule over one state."""

    def all_states(subject: Subject) -> Findings:
        for state in subject:
            yield from find(state)

    return all_states


# --- models and credentials ------------------------------------------------------------------------------


def model_hint_value(state: StateView) -> Findings:
    hint = state.data.get("model_hint")
    if hint is not None and hint not in MODEL_HINTS:
        message = _say(state, f"no model hint `{hint}`")
        yield Finding(state.steps("model_hint"), message, nearest(str(hint), MODEL_HINTS))


def model_hint_exclusive(state: StateView) -> Findings:
    if state.has("model_hint") and state.has("model"):
        yield Finding(state.steps("model_hint"), _say(state, "`model` and `model_hint` exclude each other"), "keep one")


def model_hint_inapplicable(state: StateView) -> Findings:
    if state.has("model_hint") and not state.uses_model:
        message = _say(state, "`model_hint` on a state that uses no model")
        yield Finding(state.steps("model_hint"), message, "leave it out, or make the action a prompt")


def ignored(key: str) -> Find:
    """A rule: `key` has no effect on a state whose declared action type runs no model."""

    def find(state: StateView) -> Findings:
        if state.has(key) and not untyped(state.data) and not state.is_prompt_kind and not state.llm_judged:
            yield Finding(state.steps(key), _say(state, f"`{key}` has no effect here"), "it is for prompts and judges")

    return each(find)


def scopes_unknown(state: StateView) -> Findings:
    for group, at in items(state.data.get("scopes")):
        if not (isinstance(group, str) and group in CREDENTIALS):
            hint = nearest(str(group), CREDENTIALS)
            yield Finding(state.steps("scopes"), _say(state, f"no credential group `{group}`"), hint, at)


def scopes_not_shell(state: StateView) -> Findings:
    if state.data.get("scopes") and state.kind not in ("shell", "nothing"):
        yield Finding(state.steps("scopes"), _say(state, "`scopes` is for shell actions"), "leave it out")


# --- kinds of work ---------------------------------------------------------------------------------------


def action_type(state: StateView) -> Findings:
    word = state.data.get("action_type")
    if word is not None and untyped(state.data):
        message = f"`action_type: {word}` means nothing and counts as absent"
        hint = nearest(str(word), ACTION_TYPES)
        yield Finding(state.steps("action_type"), _say(state, message), hint)


def path_command(subject: Subject) -> Findings:
    for name in sorted(subject.document.executables):
        message = f"state `{name}`: the action begins with an existing program and runs in a shell"
        yield Finding(("states", name, "action"), message, "say so with `action_type: shell`")


def path_prompt(subject: Subject) -> Findings:
    for state in subject:
        word = state.action.split(None, 1)[0] if state.kind == "prompt" and state.action.strip() else ""
        if untyped(state.data) and _PATH.match(word):
            message = _say(state, f"`{word}` is no program here, so the action is a prompt for an agent")
            hint = "say `action_type: shell` if it is a command, `slash_command` if not"
            yield Finding(state.steps("action"), message, hint, state.at("action"))


_PATH = re.compile(r"/[\w.+-]+/|/[\w+-]+\.(?:sh|py|pl|rb|js)$")


def contract_action(state: StateView) -> Findings:
    if state.data.get("action_type") == "contract" and state.data.get("action"):
        runs = state.kind == "shell"
        message = "its action is run" if runs else "its action is never run"
        hint = "take away `next`, and route the verdict" if runs else "take the action away: `evaluate` names the files"
        yield Finding(state.steps("action"), _say(state, f"a contract is about files; {message}"), hint)


def on_resume(state: StateView) -> Findings:
    word = state.data.get("on_resume")
    if word is not None and word not in ON_RESUME:
        message = _say(state, f"`on_resume: {word}` is the route of a verdict `resume`, not a policy")
        yield Finding(state.steps("on_resume"), message, f"policies are {', '.join(ON_RESUME)}")


def append_needs_interpolation(state: StateView) -> Findings:
    text = state.data.get("append_to_messages")
    if isinstance(text, str) and text and "${" not in text:
        message = _say(state, "`append_to_messages` holds no `${...}`: the same text every time")
        yield Finding(state.steps("append_to_messages"), message, "say what happened, as in `${captured.NAME.output}`")


def params_not_mcp(state: StateView) -> Findings:
    if state.data.get("params") and state.data.get("action_type") != "mcp_tool":
        message = _say(state, "`params` is for `action_type: mcp_tool`")
        yield Finding(state.steps("params"), message, "write values into the action")


def mcp_action(state: StateView) -> Findings:
    if state.kind == "mcp_tool" and "${" not in state.action and not re.fullmatch(r"[^/\s]+/\S+", state.action.strip()):
        message = _say(state, f"`{state.action.strip()}` names no tool of an MCP server")
        yield Finding(state.steps("action"), message, "write `SERVER/TOOL`")


def loop_and_action(state: StateView) -> Findings:
    if state.data.get("loop") and state.data.get("action"):
        message, hint = "`loop` and `action` exclude each other", "put the action into a state of its own"
        yield Finding(state.steps(), _say(state, message), hint, state.at("action"))


def with_without_loop(state: StateView) -> Findings:
    if state.data.get("with") and state.kind != "loop":
        yield Finding(
            state.steps("with"), _say(state, "`with` needs `loop` or `fragment`"), "name what takes the values"
        )


def worktree_without_loop(state: StateView) -> Findings:
    if state.data.get("worktree") and state.kind != "loop":
        yield Finding(state.steps("worktree"), _say(state, "`worktree` needs `loop`"), "only sub-loops run in one")


def with_and_passthrough(state: StateView) -> Findings:
    if state.data.get("with") and state.data.get("context_passthrough"):
        message = _say(state, "`with` and `context_passthrough` exclude each other")
        yield Finding(state.steps(), message, "keep one", state.at("with"))


def approval_action(state: StateView) -> Findings:
    if state.kind == "human_approval" and not state.data.get("action"):
        message = _say(state, "`human_approval` needs an `action`")
        yield Finding(state.steps("action"), message, "the action is the question")


def approval_routes(state: StateView) -> Findings:
    route = state.block("route") or Map()
    shorthand = state.shorthands
    if state.kind == "human_approval" and not ({"yes", "no"} <= shorthand.keys() or {"yes", "no"} <= route.keys()):
        message = _say(state, "`human_approval` needs routes for `yes` and `no`")
        yield Finding(state.steps(), message, "add `on_yes` and `on_no`")


def approval_timeout(state: StateView) -> Findings:
    if state.kind == "human_approval" and not state.has("timeout"):
        message = _say(state, "`human_approval` without `timeout`")
        yield Finding(state.steps("timeout"), message, "say how many seconds to wait for a person")


# --- learning --------------------------------------------------------------------------------------------


def learning_targets(state: StateView) -> Findings:
    block = state.block("learning")
    if state.kind == "learning" and block is not None and not (block.get("targets") or block.get("targets_csv")):
        message = _say(state, "`learning` needs `targets` or `targets_csv`")
        yield Finding(state.steps("learning", "targets"), message, "name what must be known")


def learning_max_retries(state: StateView) -> Findings:
    block = state.block("learning")
    value = number_in(block, "max_retries") if block is not None else None
    if state.kind == "learning" and value is not None and value < 0:
        message = _say(state, "`learning.max_retries` must not be negative")
        yield Finding(state.steps("learning", "max_retries"), message, "leave it out for 2")


def learning_on_yes(state: StateView) -> Findings:
    if state.kind == "learning" and "yes" not in state.shorthands:
        message = _say(state, "a learning state needs `on_yes`")
        yield Finding(state.steps("on_yes"), message, "name the state for: all is known")


def learning_on_blocked(state: StateView) -> Findings:
    if state.kind == "learning" and not state.shorthands.keys() & {"blocked", "no"}:
        message = _say(state, "a learning state needs `on_blocked` or `on_no`")
        yield Finding(state.steps(), message, "name the state for: something is still unknown")


# --- retries ---------------------------------------------------------------------------------------------


def paired(key: str, other: str) -> Find:
    """A rule: `key` and `other` come together."""

    def find(state: StateView) -> Findings:
        if state.has(key) != state.has(other):
            given, missing = (key, other) if state.has(key) else (other, key)
            message = _say(state, f"`{given}` needs `{missing}`")
            yield Finding(state.steps(), message, f"add `{missing}`", state.at(given))

    return each(find)


def at_least_one(key: str) -> Find:
    """A rule: the number under `key` must be at least 1."""

    def find(state: StateView) -> Findings:
        value = state.number(key)
        if value is not None and value < 1:
            message = _say(state, f"`{key}` must be at least 1")
            yield Finding(state.steps(), message, "leave it out for the default", state.at(key))

    return each(find)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def retryable_needs_on_error(state: StateView) -> Findings:
    if state.has("retryable_exit_codes") and "error" not in state.shorthands:
        message = _say(state, "`retryable_exit_codes` needs `on_error`")
        yield Finding(state.steps(), message, "say where other failures lead", state.at("retryable_exit_codes"))


def retryable_value(state: StateView) -> Findings:
    for code, at in items(state.data.get("retryable_exit_codes")):
        if not _is_count(code):
            message = _say(state, f"`{code}` is no exit code of a failure")
            yield Finding(state.steps("retryable_exit_codes"), message, "use whole numbers from 1", at)
            return


def ladder_empty(state: StateView) -> Findings:
    ladder = state.data.get("rate_limit_long_wait_ladder")
    if isinstance(ladder, list) and not ladder:
        message = _say(state, "`rate_limit_long_wait_ladder` is empty")
        yield Finding(state.steps(), message, "leave it out for the default", state.at("rate_limit_long_wait_ladder"))


def ladder_value(state: StateView) -> Findings:
    for step, at in items(state.data.get("rate_limit_long_wait_ladder")):
        if not _is_count(step):
            message = _say(state, f"`rate_limit_long_wait_ladder`: {step!r} is no whole number of seconds")
            yield Finding(state.steps(), message, "use whole numbers from 1", at)


def throttle_value(state: StateView) -> Findings:
    block = state.block("throttle") or Map()
    for key in THROTTLE_LIMITS:
        if block.get(key) is not None and not _is_count(block[key]):
            message = _say(state, f"`throttle.{key}` must be a whole number from 1")
            yield Finding(state.steps(), message, "leave it out for the default", block.values_at[key])


def throttle_order(state: StateView) -> Findings:
    block = state.block("throttle") or Map()
    for low, high in (("normal_max", "warn_max"), ("warn_max", "hard_max")):
        lower, upper = number_in(block, low), number_in(block, high)
        if lower is not None and upper is not None and lower >= upper:
            message = _say(state, f"`throttle.{low}` must be below `{high}`")
            yield Finding(state.steps(), message, "they are met in the order normal, warn, hard", block.values_at[low])


# --- cost and time ---------------------------------------------------------------------------------------


def cost_negative(state: StateView) -> Findings:
    block = state.block("cost_ceiling") or Map()
    for key in block:
        value = number_in(block, key)
        if value is not None and value < 0:
            message = _say(state, f"`{key}` must not be negative")
            yield Finding(state.steps(), message, "write an amount in USD", block.values_at[key])


def cost_order(state: StateView) -> Findings:
    block = state.block("cost_ceiling") or Map()
    warn, ceiling = number_in(block, "cost_warn_at"), number_in(block, "cost_ceiling_per_state")
    if warn is not None and ceiling is not None and warn > ceiling:
        message = _say(state, "`cost_warn_at` is above `cost_ceiling_per_state`")
        yield Finding(state.steps(), message, "it would never be told", block.values_at["cost_warn_at"])


def cost_inert(state: StateView) -> Findings:
    if state.block("cost_ceiling") and not untyped(state.data) and not state.is_prompt_kind and not state.llm_judged:
        message = _say(state, "`cost_ceiling` has no effect: the action never costs anything")
        yield Finding(state.steps(), message, "leave it out", state.at("cost_ceiling"))


def timeouts(state: StateView) -> Findings:
    for key in ("timeout", "idle_timeout"):
        value = state.number(key)
        if value is not None and value < 0:
            yield Finding(state.steps(key), _say(state, f"`{key}` must not be negative"), "0 means no limit")
