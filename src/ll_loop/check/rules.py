"""The list of all rules. A new one is a function in one of the modules here and a line in `RULES`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

from ..errors import Problem, Severity
from ..files.document import dotted
from ..files.keys import PREPATCH_CHECKS, STALLS, TAMPER_GUARDS, did_you_mean
from ..files.nodes import problem_at
from . import (
    agents,
    bindings,
    captures,
    document,
    evaluators,
    graph,
    harness,
    inputs,
    policy,
    scripts,
    states,
    templates,
    words,
)
from .states import each
from .subject import Finding, Rule, Subject

RULES: tuple[Rule, ...] = (
    # the document
    Rule("doc.visibility", "warning", document.visibility),
    Rule("doc.description-missing", "warning", document.description_missing),
    Rule("doc.input-key-unguarded", "warning", document.input_key_unguarded),
    Rule("doc.scope-missing", "warning", document.scope_missing),
    Rule("doc.session-mode", "warning", words.loop_session_mode),
    Rule("scope.unresolved", "warning", inputs.scope_unresolved),
    Rule("doc.config", "warning", document.config_block),
    Rule("doc.handoff-threshold", "error", document.handoff_threshold),
    Rule("load.llm-model-conflict", "error", document.llm_model_conflict),
    Rule("load.number-coercion", "error", document.llm_number),
    Rule("params.type", "error", document.parameter_type),
    Rule("params.enum-values", "error", document.parameter_enum),
    Rule("params.required-with-default", "error", document.parameter_required_default),
    Rule("params.default-type", "error", document.parameter_default_type),
    Rule("targets.file-extension", "error", document.target_file),
    Rule("artifact.template-needs-output", "error", document.artifact_needs_output),
    Rule("artifact.template-suffix", "warning", document.artifact_suffix),
    Rule("artifact.mode", "warning", words.artifact_mode),
    Rule("artifact.subloop-inert", "warning", bindings.artifact_inert),
    Rule("doc.max-steps", "error", document.max_steps),
    Rule("doc.max-iterations", "error", document.max_iterations),
    Rule("doc.max-edge-revisits", "error", document.above_zero("max_edge_revisits")),
    Rule("doc.backoff", "error", document.not_negative("backoff")),
    Rule("doc.timeout", "error", document.above_zero("timeout")),
    Rule("doc.timeout-reserve", "error", document.not_negative("timeout_reserve")),
    Rule("doc.timeout-reserve-unused", "error", document.reserve_of_nothing),
    Rule("doc.on-timeout-target", "error", document.handler_target("on_timeout")),
    Rule("doc.default-timeout", "error", document.not_negative("default_timeout")),
    Rule("doc.default-idle-timeout", "error", document.not_negative("default_idle_timeout")),
    Rule("doc.on-max-steps-target", "error", document.handler_target("on_max_steps")),
    Rule("doc.on-max-iterations-target", "error", document.handler_target("on_max_iterations")),
    Rule("llm.max-tokens", "error", document.llm_above_zero("max_tokens")),
    Rule("llm.timeout", "error", document.llm_above_zero("timeout")),
    Rule("llm.model-hint-value", "error", document.llm_hint_value),
    Rule("llm.model-hint-unused", "warning", document.llm_hint_unused),
    Rule("llm.model-hint-unresolved", "warning", agents.loop_hint_unresolved),
    Rule("llm.effort", "warning", words.loop_effort),
    Rule("circuit.window", "error", document.circuit_at_least("window", 1)),
    Rule("circuit.recurrent-window", "error", document.circuit_at_least("recurrent_window", 2)),
    Rule("circuit.target", "error", document.circuit_target),
    Rule("circuit.progress-path-written", "warning", scripts.progress_path_written),
    Rule("host-guard.pct-range", "error", document.guard_percent),
    Rule("host-guard.pct-order", "error", document.guard_order),
    Rule("host-guard.cooldown", "error", document.guard_not_negative("cooldown_ms")),
    Rule("host-guard.on-pressure", "error", document.guard_word("on_pressure", "cool_down", "route", "abort")),
    Rule("host-guard.pressure-state-missing", "error", document.guard_pressure_missing),
    Rule("host-guard.pressure-state-unknown", "error", document.guard_state("pressure_state")),
    Rule("host-guard.abort-route-unknown", "error", document.guard_state("on_abort_route")),
    Rule("host-guard.budget-negative", "error", document.guard_not_negative("max_cumulative_subproc_mb")),
    Rule("host-guard.on-budget", "error", document.guard_word("on_budget_exceeded", "route", "abort")),
    Rule("host-guard.budget-state-missing", "error", document.guard_budget_missing),
    Rule("host-guard.budget-state-unknown", "error", document.guard_state("budget_state")),
    Rule("prompt-size.warn-chars", "error", document.prompt_size),
    Rule("lint.tamper-guard-value", "warning", agents.guard_word("tamper_guard", *TAMPER_GUARDS), ("tamper_guard_ok",)),
    Rule(
        "lint.prepatch-value",
        "warning",
        agents.guard_word("prepatch_check", *PREPATCH_CHECKS),
        ("prepatch_check_ok",),
    ),
    Rule("policy.dimension-unscored", "warning", policy.dimension_unscored, ("policy_dims_scored_ok",)),
    Rule("policy.row-malformed", "warning", policy.row_malformed),
    Rule("policy.target-unknown", "warning", policy.target_unknown),
    # the graph
    Rule("graph.initial-unknown", "error", graph.initial_unknown),
    Rule("graph.no-terminal", "error", graph.no_terminal),
    Rule("graph.unknown-target", "error", graph.unknown_target),
    Rule("graph.no-transition", "error", graph.no_transition),
    Rule("graph.shorthand-and-route", "warning", graph.shorthand_and_route),
    Rule("graph.unreachable", "warning", graph.unreachable),
    Rule("graph.failure-terminal-undiagnosed", "warning", graph.failure_undiagnosed),
    Rule("graph.terminal-action", "warning", graph.terminal_action, ("terminal_action_ok",)),
    Rule("graph.partial-dead-end", "warning", graph.partial_dead_end, ("partial_route_ok",)),
    Rule("graph.classify-no-default", "warning", graph.classify_no_default, ("partial_route_ok",)),
    Rule("graph.abstention-unrouted", "warning", graph.abstention_unrouted, ("abstention_route_ok",)),
    Rule("eval.verdict-unrouted", "warning", graph.verdict_unrouted),
    Rule("route.next-swallows-failure", "warning", graph.next_swallows_failure),
    Rule("route.next-hides", "warning", graph.next_hides),
    Rule("route.no-takes-error", "warning", graph.no_takes_error),
    Rule("route.never-taken", "warning", graph.never_taken),
    Rule("route.key-dropped", "warning", graph.dropped_route),
    # single states
    Rule("state.model-hint-value", "error", each(states.model_hint_value)),
    Rule("state.model-hint-exclusive", "error", each(states.model_hint_exclusive)),
    Rule("state.model-hint-inapplicable", "error", each(states.model_hint_inapplicable)),
    Rule("state.model-hint-unresolved", "warning", agents.state_hint_unresolved),
    Rule("state.append-needs-interpolation", "error", each(states.append_needs_interpolation)),
    Rule("state.model-ignored", "warning", states.ignored("model")),
    Rule("state.effort-ignored", "warning", states.ignored("effort")),
    Rule("state.effort", "warning", words.effort),
    Rule("state.request-path", "warning", words.request_path),
    Rule("state.request-path-cli", "warning", agents.request_path_downgraded),
    Rule("state.session-mode", "warning", words.session_mode),
    Rule("state.params-not-mcp", "error", each(states.params_not_mcp)),
    Rule("state.scopes-unknown", "error", each(states.scopes_unknown)),
    Rule("state.scopes-not-shell", "error", each(states.scopes_not_shell)),
    Rule("state.mcp-action", "warning", each(states.mcp_action)),
    Rule("state.loop-and-action", "error", each(states.loop_and_action)),
    Rule("state.with-without-loop", "error", each(states.with_without_loop)),
    Rule("state.worktree-without-loop", "error", each(states.worktree_without_loop)),
    Rule("state.with-and-passthrough", "error", each(states.with_and_passthrough)),
    Rule("state.action-type", "warning", each(states.action_type)),
    Rule("state.path-command", "warning", states.path_command),
    Rule("state.path-prompt", "warning", states.path_prompt),
    Rule("state.learning-inert", "warning", words.learning_inert),
    Rule("state.contract-action", "warning", each(states.contract_action)),
    Rule("state.on-resume", "warning", each(states.on_resume)),
    Rule("state.timeout", "error", each(states.timeouts)),
    Rule("learning.targets-empty", "error", each(states.learning_targets)),
    Rule("learning.max-retries", "error", each(states.learning_max_retries)),
    Rule("learning.on-yes", "error", each(states.learning_on_yes)),
    Rule("learning.on-blocked", "error", each(states.learning_on_blocked)),
    Rule("approval.action", "error", each(states.approval_action)),
    Rule("approval.routes", "error", each(states.approval_routes)),
    Rule("approval.timeout", "warning", each(states.approval_timeout)),
    Rule("state.max-retries-pair", "error", states.paired("max_retries", "on_retry_exhausted")),
    Rule("state.max-retries-range", "error", states.at_least_one("max_retries")),
    Rule("state.retryable-needs-on-error", "error", each(states.retryable_needs_on_error)),
    Rule("state.retryable-value", "error", each(states.retryable_value)),
    Rule("state.rate-limit-pair", "error", states.paired("max_rate_limit_retries", "on_rate_limit_exhausted")),
    Rule("state.rate-limit-retries-range", "error", states.at_least_one("max_rate_limit_retries")),
    Rule("state.rate-limit-backoff-range", "error", states.at_least_one("rate_limit_backoff_base_seconds")),
    Rule("state.rate-limit-max-wait-range", "error", states.at_least_one("rate_limit_max_wait_seconds")),
    Rule("state.rate-limit-ladder-empty", "error", each(states.ladder_empty)),
    Rule("state.rate-limit-ladder-value", "error", each(states.ladder_value)),
    Rule("state.throttle-value", "error", each(states.throttle_value)),
    Rule("state.throttle-order", "error", each(states.throttle_order)),
    Rule("state.cost-negative", "error", each(states.cost_negative)),
    Rule("state.cost-order", "error", each(states.cost_order)),
    Rule("state.cost-inert", "warning", each(states.cost_inert)),
    # evaluators
    Rule("eval.type-unknown", "error", evaluators.type_unknown),
    Rule("eval.required-field", "error", evaluators.required_field),
    Rule("eval.key-unused", "warning", evaluators.key_unused, ("evaluate_unknown_keys_ok",)),
    Rule("eval.operator", "error", evaluators.operator),
    Rule("eval.direction", "error", evaluators.direction),
    Rule("eval.tolerance", "error", evaluators.bounded("tolerance", frozenset({"convergence"}), 0)),
    Rule("eval.min-confidence", "error", evaluators.bounded("min_confidence", frozenset({"llm_structured"}), 0, 1)),
    Rule("eval.max-stall", "error", evaluators.bounded("max_stall", STALLS, 1)),
    Rule("eval.epsilon", "error", evaluators.bounded("epsilon", STALLS - {"diff_stall"}, 0)),
    Rule("eval.max-repeat", "error", evaluators.bounded("max_repeat", frozenset({"action_stall"}), 1)),
    Rule("eval.evidence-words", "warning", evaluators.evidence_words, ("evidence_contract_ok",)),
    Rule("eval.zero-retry-budget", "warning", scripts.zero_retry_budget),
    Rule("eval.session-continuity", "warning", agents.session_continuity, ("session_mode_ok",)),
    Rule("eval.pattern-plain", "warning", evaluators.pattern_plain),
    Rule("eval.not-interpolated", "warning", evaluators.never_interpolated),
    Rule("eval.target-not-numeric", "warning", evaluators.literal_target),
    Rule("eval.track-default", "warning", evaluators.action_stall_default),
    Rule("eval.own-previous", "warning", evaluators.own_previous),
    # templates
    Rule("template.namespace", "warning", templates.namespace),
    Rule("template.unsafe-place", "error", templates.unsafe_place),
    Rule("lint.bash-default", "error", templates.bash_default, ("bash_default_ok",)),
    Rule("lint.double-dollar", "error", templates.double_dollar, ("shell_pid_ok",)),
    Rule("lint.count-or-zero", "warning", templates.count_or_zero),
    Rule("lint.raw-interpolation", "warning", templates.raw_interpolation, ("unsafe_context_interpolation_ok",)),
    Rule("lint.marker-malformed", "error", templates.marker_malformed, ("unsafe_context_interpolation_ok",)),
    Rule("lint.marker-stale", "warning", templates.marker_stale, ("unsafe_context_interpolation_ok",)),
    # habits
    Rule("lint.shared-tmp", "warning", scripts.shared_tmp, ("shared_state_ok",)),
    Rule("lint.parse-swallow", "warning", scripts.parse_swallow, ("parse_swallow_ok",)),
    Rule("lint.abandonment-hidden", "warning", scripts.abandonment_hidden, ("abandonment_verdict_ok",)),
    Rule("lint.hardcoded-success", "warning", scripts.hardcoded_success, ("abandonment_verdict_ok",)),
    Rule("lint.gate-restates-table", "warning", scripts.gate_restates_table, ("gate_completeness_ok",)),
    Rule("lint.haiku-generator", "warning", agents.haiku_generator, ("haiku_generator_ok",)),
    Rule("lint.meta-no-objective-check", "error", harness.meta_no_objective_check, ("meta_self_eval_ok",)),
    Rule("lint.meta-no-baseline", "warning", harness.meta_no_baseline, ("meta_self_eval_ok",)),
    Rule("lint.screenshot-only-gate", "warning", harness.screenshot_only_gate, ("meta_self_eval_ok",)),
    Rule(
        "lint.artifact-overwrite",
        "warning",
        harness.artifact_overwrite,
        ("artifact_versioning", "artifact_versioning_ok"),
    ),
    Rule("lint.hand-patch", "warning", harness.hand_patch, ("generator_fix_ok",)),
    Rule("lint.skill-not-in-tools", "error", harness.skill_not_in_tools, ("pruning_profile_ok",)),
    Rule("lint.skill-catalog-suppressed", "warning", harness.skill_catalog_suppressed, ("pruning_profile_ok",)),
    Rule("lint.skill-no-profile", "warning", harness.skill_no_profile, ("pruning_profile_ok",)),
    Rule("capture.missing", "error", captures.missing, ("capture_reachability_ok",)),
    Rule("capture.subloop-own-name", "error", captures.sub_loop_own_name, ("capture_reachability_ok",)),
    Rule("capture.bypass", "warning", captures.bypass, ("capture_reachability_ok",)),
    Rule("capture.implicit-bypass", "warning", captures.implicit_bypass, ("capture_reachability_ok",)),
    # other files
    Rule("subloop.unresolved", "error", bindings.unresolved),
    Rule("subloop.cycle", "warning", bindings.cycle),
    Rule("subloop.with-unknown", "error", bindings.sub_loop_unknown),
    Rule("subloop.with-missing", "error", bindings.sub_loop_missing),
    Rule("subloop.required-unbound", "warning", bindings.required_unbound),
    Rule("bind.with-type", "error", bindings.with_type),
    Rule("fragment.with-unknown", "error", bindings.fragment_unknown),
    Rule("fragment.with-missing", "error", bindings.fragment_missing),
)

LOADING: Mapping[str, Severity] = MappingProxyType(
    {
        "load.unreadable": "error",
        "load.yaml-syntax": "error",
        "load.not-mapping": "error",
        "load.not-found": "error",
        "load.from-type": "error",
        "load.from-cycle": "error",
        "load.from-parent-not-mapping": "error",
        "load.flow-type": "error",
        "load.flow-empty": "error",
        "load.flow-entry-type": "error",
        "load.flow-ternary": "error",
        "load.import-not-found": "error",
        "load.fragment-unknown": "error",
        "load.missing-required": "error",
        "load.states-shape": "error",
        "load.shape": "error",
        "load.duplicate-key": "warning",
        "load.not-boolean": "warning",
        "doc.unknown-key": "warning",
        "doc.flow-and-states": "warning",
        "doc.flow-repeated": "warning",
        "doc.state-def-unused": "warning",
        "state.unknown-key": "warning",
        "eval.unknown-key": "warning",
        "subloop.invalid": "error",
        "doc.lint-ok": "warning",
    }
)
"""What is noted by no rule of the table: while files are read, about children, and about `lint_ok` itself."""


def check(subject: Subject) -> list[Problem]:
    """Every complaint of the rules about one document, sorted by position.

    Warnings and lint findings named in the loop's `lint_ok`, or turned off by their switch, are left out.
    """
    if not isinstance(subject.data.get("states"), dict):
        return []  # the loader has said what is wrong; anything more would only follow from it
    excused = _excused(subject)
    found = [
        _problem(rule, finding, subject)
        for rule in RULES
        if not _silenced(rule, subject, excused)
        for finding in rule.find(subject)
    ]
    found.extend(_unknown_names(subject, excused))
    return sorted(found, key=lambda p: (p.file, p.line, p.column, p.severity, p.rule))


def excuses(subject: Subject, problem: Problem) -> bool:
    """Whether the loop's `lint_ok` takes back a warning noted while it was read."""
    return problem.severity == "warning" and problem.rule in _excused(subject)


def _problem(rule: Rule, finding: Finding, subject: Subject) -> Problem:
    severity = finding.severity or rule.severity
    path, at = dotted(finding.steps), subject.mark(finding)
    return problem_at(at, rule.name, path, finding.message, hint=finding.hint, severity=severity)


def _excused(subject: Subject) -> Collection[str]:
    names = subject.data.get("lint_ok")
    return frozenset(str(name) for name in names) if isinstance(names, list) else frozenset()


def _silenced(rule: Rule, subject: Subject, excused: Collection[str]) -> bool:
    """A rule without which a run would break can't be turned off."""
    if any(subject.data.get(key) is True for key in rule.silenced_by):
        return True
    return rule.name in excused and (rule.severity == "warning" or bool(rule.silenced_by))


def _unknown_names(subject: Subject, excused: Collection[str]) -> list[Problem]:
    known = {rule.name for rule in RULES} | LOADING.keys()
    at = subject.document.mark("lint_ok")
    return [
        problem_at(
            at,
            "doc.lint-ok",
            "lint_ok",
            f"`lint_ok`: no rule `{name}`",
            hint=did_you_mean(name, known),
            severity="warning",
        )
        for name in sorted(set(excused) - known)
    ]
