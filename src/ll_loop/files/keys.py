"""The keys and words of the format, as tables: what is known where, and the nearest known word to a wrong one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ..core.nearest import nearest, question

CATALOGUE: Final = frozenset({"description", "category", "labels", "visibility", "commands", "targets"})
"""Keys that help people to find a loop and never steer a run."""

LINT_SWITCHES: Final = frozenset(
    {
        "meta_self_eval_ok",
        "shared_state_ok",
        "partial_route_ok",
        "artifact_versioning",
        "artifact_versioning_ok",
        "capture_reachability_ok",
        "generator_fix_ok",
        "bash_default_ok",
        "shell_pid_ok",
        "evidence_contract_ok",
        "parse_swallow_ok",
        "policy_dims_scored_ok",
        "unsafe_context_interpolation_ok",
        "pruning_profile_ok",
        "haiku_generator_ok",
        "terminal_action_ok",
        "abandonment_verdict_ok",
        "evaluate_unknown_keys_ok",
        "abstention_route_ok",
        "gate_completeness_ok",
        "session_mode_ok",
        "tamper_guard_ok",
        "prepatch_check_ok",
        "lint_ok",
    }
)

THRESHOLDS: Final = ("readiness_threshold", "outcome_threshold")
CONFIG: Final = (
    "handoff_threshold",
    *(f"commands.confidence_gate.{name}" for name in THRESHOLDS),
    "automation.max_continuations",
    "continuation.max_continuations",
)
"""What a loop's `config:` may say in place of the project's configuration."""

AGENT_BLOCKS: Final = frozenset(
    {
        "llm",
        "config",
        "host_guard",
        "prompt_size_guard",
        "pruning_profile",
        "tamper_guard",
        "prepatch_check",
        "session_mode",
        "artifact_output",
        "artifact_mode",
    }
)

TOP_LEVEL: Final = (
    CATALOGUE
    | LINT_SWITCHES
    | AGENT_BLOCKS
    | {
        "name",
        "initial",
        "states",
        "flow",
        "state_defs",
        "context",
        "parameters",
        "input_key",
        "required_inputs",
        "scope",
        "singleton",
        "max_steps",
        "on_max_steps",
        "max_iterations",
        "on_max_iterations",
        "max_edge_revisits",
        "timeout",
        "timeout_reserve",
        "on_timeout",
        "default_timeout",
        "default_idle_timeout",
        "backoff",
        "maintain",
        "on_handoff",
        "safe_interpolation",
        "circuit",
        "from",
        "import",
        "fragments",
    }
)

VERDICT_KEYS: Final = {
    "on_yes": "yes",
    "on_success": "yes",
    "on_no": "no",
    "on_failure": "no",
    "on_error": "error",
    "on_partial": "partial",
    "on_blocked": "blocked",
}
"""The shorthand routes with a fixed name; any other `on_<word>` routes the verdict `<word>`."""

OTHER_TARGETS: Final = ("on_maintain", "on_retry_exhausted", "on_rate_limit_exhausted", "on_throttle_hard")
"""State keys that name a state without being the route of a verdict."""

RATE_LIMIT_NUMBERS: Final = (
    "max_rate_limit_retries",
    "rate_limit_backoff_base_seconds",
    "rate_limit_max_wait_seconds",
)

AGENT_STATE_KEYS: Final = frozenset(
    {
        "params",
        "host",
        "agent",
        "tools",
        "model",
        "model_hint",
        "effort",
        "request_path",
        "session_mode",
        "scopes",
        "cost_ceiling",
        "tamper_guard",
        "prepatch_check",
        "pruning_profile",
        "learning",
    }
)
"""State keys kept as written, for the agent host and for later versions."""

STATE: Final = (
    AGENT_STATE_KEYS
    | frozenset(VERDICT_KEYS)
    | frozenset(OTHER_TARGETS)
    | frozenset(RATE_LIMIT_NUMBERS)
    | {
        "description",
        "action",
        "action_type",
        "capture",
        "append_to_messages",
        "timeout",
        "idle_timeout",
        "evaluate",
        "next",
        "route",
        "terminal",
        "failure",
        "max_retries",
        "retryable_exit_codes",
        "rate_limit_long_wait_ladder",
        "throttle",
        "loop",
        "with",
        "context_passthrough",
        "worktree",
        "fragment",
        "type",
        "on_resume",
    }
)

EVALUATE: Final = frozenset(
    {
        "type",
        "operator",
        "target",
        "tolerance",
        "pattern",
        "negate",
        "path",
        "prompt",
        "schema",
        "min_confidence",
        "uncertain_suffix",
        "abstain_on_exit_3",
        "source",
        "previous",
        "reference",
        "direction",
        "scope",
        "max_stall",
        "history_file",
        "epsilon",
        "track",
        "max_repeat",
        "baseline_path",
        "auto_promote",
        "min_pairs",
        "pairs",
        "line",
        "error_patterns",
        "key",
        "question",
        "verdict_map",
        "signal",
        "timeout",
        "context_from",
    }
)

EVALUATOR_NEEDS: Final[dict[str, tuple[str, ...]]] = {
    "exit_code": (),
    "output_contains": ("pattern",),
    "output_numeric": ("operator", "target"),
    "output_json": ("path", "operator", "target"),
    "classify": (),
    "convergence": ("target",),
    "diff_stall": (),
    "score_stall": (),
    "open_question_stall": (),
    "action_stall": (),
    "llm_structured": (),
    "mcp_result": (),
    "harbor_scorer": (),
    "comparator": ("baseline_path",),
    "contract": ("pairs",),
    "advisor_consult": ("question", "verdict_map"),
}
"""Every evaluator type, with the keys that it cannot do without."""

EVALUATOR_TAKES: Final[dict[str, tuple[str, ...]]] = {
    "exit_code": ("abstain_on_exit_3",),
    "output_contains": ("negate", "error_patterns"),
    "output_numeric": ("key",),
    "output_json": (),
    "classify": ("line",),
    "convergence": ("direction", "tolerance", "previous", "reference"),
    "diff_stall": ("scope", "max_stall"),
    "score_stall": ("history_file", "max_stall", "epsilon"),
    "open_question_stall": ("history_file", "max_stall", "epsilon"),
    "action_stall": ("track", "max_repeat"),
    "llm_structured": ("prompt", "schema", "min_confidence", "uncertain_suffix"),
    "mcp_result": (),
    "harbor_scorer": (),
    "comparator": ("auto_promote", "min_pairs", "prompt"),
    "contract": (),
    "advisor_consult": ("signal", "timeout", "context_from", "prompt"),
}
"""What else an evaluator looks at; any takes `type` and `source`."""

JUDGES: Final = frozenset({"llm_structured", "comparator", "contract", "advisor_consult"})
STALLS: Final = frozenset({"diff_stall", "score_stall", "open_question_stall"})

PARAMETER_KEYS: Final = frozenset({"type", "required", "default", "description", "values"})
PRUNING_KEYS: Final = frozenset({"enabled", "name", "suppress_catalog", "suppress_claude_md"})

NESTED: Final[dict[str, frozenset[str]]] = {
    "circuit": frozenset({"repeated_failure"}),
    "circuit.repeated_failure": frozenset(
        {"window", "recurrent_window", "on_repeated_failure", "progress_paths", "exclude_paths"}
    ),
    "llm": frozenset({"enabled", "model", "model_hint", "max_tokens", "timeout", "effort"}),
    "prompt_size_guard": frozenset({"enabled", "warn_chars"}),
    "host_guard": frozenset(
        {
            "enabled",
            "cooldown_ms",
            "warn_pct",
            "critical_pct",
            "on_pressure",
            "pressure_state",
            "on_abort_route",
            "max_cumulative_subproc_mb",
            "on_budget_exceeded",
            "budget_state",
        }
    ),
    "pruning_profile": PRUNING_KEYS,
    "artifact_output": frozenset({"from", "to", "on"}),
    "targets.*": frozenset({"file", "glob", "states"}),
    "targets.*.states.*": frozenset({"name", "examples_file", "eval"}),
    "parameters.*": PARAMETER_KEYS,
    "fragments.*.parameters.*": PARAMETER_KEYS,
    "states.*.pruning_profile": PRUNING_KEYS,
    "states.*.evaluate.pairs.*": frozenset(
        {"producer", "consumer", "contract", "producer_pattern", "consumer_pattern"}
    ),
    "states.*.throttle": frozenset({"normal_max", "warn_max", "hard_max"}),
    "states.*.cost_ceiling": frozenset({"cost_ceiling_per_state", "cost_warn_at"}),
    "states.*.learning": frozenset({"targets", "targets_csv", "max_retries", "max_retries_expr"}),
}
"""The keys of blocks inside blocks; `*` is any name, or any item of a list."""

ACTION_TYPES: Final = frozenset({"shell", "prompt", "slash_command", "mcp_tool", "human_approval", "contract"})
PROMPT_TYPES: Final = frozenset({"prompt", "slash_command"})
PARAMETER_TYPES: Final = ("string", "integer", "number", "boolean", "enum", "path")
HANDOFFS: Final = ("pause", "spawn", "terminate")
ON_RESUME: Final = ("rerun", "skip", "fail", "ask")
TAMPER_POLICIES: Final = ("revert", "fail", "allow")
VISIBILITIES: Final = ("public", "internal", "example")
OWN_HOSTS: Final = ("command", "acp")
MODEL_HINTS: Final = ("coding", "reasoning", "burst")
EFFORTS: Final = ("low", "medium", "high", "xhigh", "max")
REQUEST_PATHS: Final = ("cli", "sdk", "batch")
SESSION_MODES: Final = ("fresh", "continue")
ARTIFACT_MODES: Final = ("file", "template")
TAMPER_GUARDS: Final = ("revert", "fail", "allow")
PREPATCH_CHECKS: Final = ("fail", "warn", "allow")


def did_you_mean(word: str, known: Iterable[str], *, few: int = 8) -> str:
    """A hint that names the nearest of `known`; if none is near, all of them where they are no more than `few`."""
    names = sorted(known)
    if asked := question(word, names):
        return asked
    return f"known: {', '.join(names)}" if 0 < len(names) <= few else ""


def misspelt_verdict(key: str) -> str:
    """A hint on what a key was meant to be: `on_eror` is a legal route of the verdict `eror`, and hardly ever meant."""
    known = (*VERDICT_KEYS, *OTHER_TARGETS)
    if key in known or len(key) <= 6:
        return ""
    near = nearest(key, known)
    return f"did you mean `{near}`?" if abs(len(near) - len(key)) <= 1 and near[:4] == key[:4] else ""
