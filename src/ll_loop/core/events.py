"""The event vocabulary: names and fields of docs/files.md, one constructor an event.

Events of sub-loops carry `depth` and the sub-loop's name. Time, run id and sequence number are added by the journal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from .effects import AskHuman
from .endings import exit_code_of, status_of
from .hosts.turn import Reply
from .model import Ending

PREVIEW = 2000


class Event(Struct, frozen=True):
    """Something that happened in a run. `loop` names the (sub-)loop, `depth` is 0 for the run itself."""

    name: str
    fields: Mapping[str, Any]
    loop: str = ""
    depth: int = 0


Fields = dict[str, Any]


def loop_start(origin: Mapping[str, Any]) -> tuple[str, Fields]:
    return "loop_start", dict(origin)


def loop_resume(state: str, iteration: int, continuation: str | None) -> tuple[str, Fields]:
    fields: Fields = {"from_state": state, "iteration": iteration}
    if continuation is not None:
        fields |= {"from_handoff": True, "continuation_prompt": continuation}
    return "loop_resume", fields


def loop_complete(ending: Ending, iterations: int) -> tuple[str, Fields]:
    fields: Fields = {
        "final_state": ending.state,
        "iterations": iterations,
        "terminated_by": ending.by,
        "failure_terminal": ending.failure_terminal,
        "status": status_of(ending),
        "exit_code": exit_code_of(ending),
    }
    if ending.error is not None:
        fields["error"] = ending.error
    return "loop_complete", fields


def state_enter(
    state: str, iteration: int, passes: int, *, flushed: bool = False, attempt: int = 1
) -> tuple[str, Fields]:
    fields: Fields = {"state": state, "iteration": iteration, "iteration_count": passes}
    if flushed:
        fields["flushed"] = True
    if attempt > 1:
        fields["attempt"] = attempt
    return "state_enter", fields


def route(source: str, target: str, reason: str = "") -> tuple[str, Fields]:
    fields: Fields = {"from": source, "to": target}
    if reason:
        fields["reason"] = reason
    return "route", fields


def action_start(action: str, is_prompt: bool) -> tuple[str, Fields]:
    return "action_start", {"action": action, "is_prompt": is_prompt}


def action_output(line: str) -> tuple[str, Fields]:
    return "action_output", {"line": line}


def preview(text: str) -> str | None:
    """The end of a text as events show it: its last 2,000 characters without blanks around, None for no text at all."""
    return text[-PREVIEW:].strip() if text else None


def action_complete(
    state: str, iteration: int, exit_code: int, duration_ms: int, output: str, stderr: str, is_prompt: bool,
    reply: Reply | None = None,
) -> tuple[str, Fields]:  # fmt: skip
    return "action_complete", {
        "exit_code": exit_code,
        "duration_ms": duration_ms,
        "output_preview": preview(output),
        "stderr_preview": preview(stderr) or None,
        "is_prompt": is_prompt,
        "state": state,
        "iteration": iteration,
        **(_of_the_host(reply) if reply is not None else {}),
    }


def _of_the_host(reply: Reply) -> Fields:
    """The session, the model and the tokens of a turn, as far as the host told."""
    fields: dict[str, Any] = {"session_id": reply.session} if reply.session else {}
    if reply.asked_model:
        model = reply.asked_model
        fields |= {"model_requested": model, "model_resolved": reply.model or model, "model_backend": reply.host}
    if reply.effort:
        fields["effort"] = reply.effort
    if reply.usage is None:
        return fields
    names = ("input_tokens", "cache_read_tokens", "cache_creation_tokens", "output_tokens")
    parts = dict(zip(names, reply.usage.parts, strict=True))
    counts = {"usage_event_count": reply.requests, **parts}
    counts |= {f"{name}_missing": int(value is None) for name, value in parts.items()}
    model = reply.model or "unknown"
    fields |= {**counts, "model": model, "usage_contributions": [{"model": model, "is_batch": False, **counts}]}
    return fields if reply.usd is None else {**fields, "cost_usd": reply.usd}


def action_error(state: str, error: str) -> tuple[str, Fields]:
    return "action_error", {"state": state, "error": error, "route": "on_error"}


def evaluate(type_: str, verdict: str, details: Mapping[str, Any]) -> tuple[str, Fields]:
    return "evaluate", {"type": type_, "verdict": verdict, **details}


def messages_append(state: str, message: str) -> tuple[str, Fields]:
    return "messages_append", {"message": message, "state": state}


def retry_exhausted(state: str, retries: int, target: str) -> tuple[str, Fields]:
    return "retry_exhausted", {"state": state, "retries": retries, "next": target}


def cycle_detected(source: str, target: str, count: int, limit: int) -> tuple[str, Fields]:
    return "cycle_detected", {
        "edge": f"{source}->{target}", "from": source, "to": target, "count": count, "max": limit,
    }  # fmt: skip


def stall_detected(
    state: str, exit_code: int, verdict: str, kind: str, count: int, target: str | None
) -> tuple[str, Fields]:
    action = f"route:{target}" if target else "abort"
    return "stall_detected", {
        "state": state, "exit_code": exit_code, "verdict": verdict, kind: count, "action": action,
    }  # fmt: skip


def max_steps_summary(state: str, iterations: int) -> tuple[str, Fields]:
    return "max_steps_summary", {"summary_state": state, "iterations": iterations}


def max_iterations_summary(state: str, passes: int) -> tuple[str, Fields]:
    return "max_iterations_reached_summary", {"summary_state": state, "iteration_count": passes}


def timeout_summary(state: str, elapsed: float) -> tuple[str, Fields]:
    return "timeout_summary", {"summary_state": state, "elapsed_seconds": round(elapsed, 3)}


def throttle_warn(state: str, count: int, normal: int, warn: int, hard: int) -> tuple[str, Fields]:
    return "throttle_warn", {
        "state": state, "count": count, "normal_max": normal, "warn_max": warn, "hard_max": hard,
    }  # fmt: skip


def throttle_hard(state: str, count: int, hard: int, target: str | None) -> tuple[str, Fields]:
    return "throttle_hard", {"state": state, "count": count, "hard_max": hard, "next": target}


def throttle_stop(state: str, count: int, hard: int) -> tuple[str, Fields]:
    return "throttle_stop", {"state": state, "count": count, "hard_max": hard}


def prompt_size_warn(state: str, size: int, threshold: int) -> tuple[str, Fields]:
    return "prompt_size_warn", {"state": state, "size": size, "threshold": threshold, "est_tokens": size // 4}


def rate_limit_waiting(state: str, elapsed: float, remaining: float, total: float, budget: float) -> tuple[str, Fields]:
    return "rate_limit_waiting", {
        "state": state,
        "elapsed_seconds": elapsed,
        "next_attempt_in": remaining,
        "total_waited_seconds": total,
        "budget_seconds": budget,
        "tier": "long_wait",
    }


def rate_limit_exhausted(state: str, short: int, long: int, total: float, target: str | None) -> tuple[str, Fields]:
    return "rate_limit_exhausted", {
        "state": state,
        "retries": short + long,
        "short_retries": short,
        "long_retries": long,
        "total_wait_seconds": total,
        "next": target,
    }


def rate_limit_storm(state: str, count: int) -> tuple[str, Fields]:
    return "rate_limit_storm", {"state": state, "count": count}


def cost_ceiling_unknown(state: str, reason: str) -> tuple[str, Fields]:
    return "cost_ceiling_unknown", {"state": state, "reason": reason}


def cost_ceiling_warn(state: str, usd: float, near: float) -> tuple[str, Fields]:
    return "cost_ceiling_warn", {"state": state, "cost_usd": round(usd, 6), "cost_warn_at": near}


def cost_ceiling_exceeded(state: str, usd: float, ceiling: float) -> tuple[str, Fields]:
    return "cost_ceiling_exceeded", {
        "state": state, "cost_usd": round(usd, 6), "cost_ceiling_per_state": ceiling, "action": "abort",
    }  # fmt: skip


def api_error_retry(state: str, attempt: int, backoff: float) -> tuple[str, Fields]:
    return "api_error_retry", {"state": state, "attempt": attempt, "backoff": backoff}


def api_error_exhausted(state: str, retries: int) -> tuple[str, Fields]:
    return "api_error_exhausted", {"state": state, "retries": retries}


def request_path_downgrade(requested: str, reason: str) -> tuple[str, Fields]:
    return "request_path_downgrade", {"requested": requested, "reason": reason}


def handoff_detected(state: str, iteration: int, continuation: str) -> tuple[str, Fields]:
    return "handoff_detected", {"state": state, "iteration": iteration, "continuation": continuation}


def handoff_spawned(state: str, successor: int, most: int) -> tuple[str, Fields]:
    """The successor is a new session in the same run, so it has no process id of its own yet."""
    return "handoff_spawned", {"pid": None, "state": state, "successor": successor, "of": most}


def tamper_detected(
    state: str, policy: str, findings: Sequence[Mapping[str, str]], reverted: Sequence[str], target: str | None
) -> tuple[str, Fields]:
    """Ours: an action changed test files."""
    return "tamper_detected", {
        "state": state, "policy": policy, "findings": list(findings), "reverted": list(reverted), "next": target,
    }  # fmt: skip


def prepatch_check_flagged(state: str, policy: str, files: Sequence[str], target: str | None) -> tuple[str, Fields]:
    return "prepatch_check_flagged", {
        "state": state, "policy": policy, "outcomes": len(files), "files": list(files), "next": target,
    }  # fmt: skip


def host_cooldown(state: str, used: float, seconds: float) -> tuple[str, Fields]:
    return "host_cooldown", {"state": state, "used_pct": used, "cooldown_seconds": seconds}


def host_pressure(state: str, used: float, action: str) -> tuple[str, Fields]:
    return "host_pressure", {"state": state, "used_pct": used, "action": action}


def host_pressure_relieved(state: str, used: float) -> tuple[str, Fields]:
    return "host_pressure_relieved", {"state": state, "used_pct": used}


def host_pressure_abort(state: str, used: float) -> tuple[str, Fields]:
    return "host_pressure_abort", {"state": state, "used_pct": used}


def host_subproc_rss(state: str, peak: int, total: int, budget: float) -> tuple[str, Fields]:
    return "host_subproc_rss", {
        "state": state, "peak_rss_mb": peak, "cumulative_mb": total, "budget_mb": budget,
    }  # fmt: skip


def host_budget_exceeded(state: str, total: int, budget: float, action: str) -> tuple[str, Fields]:
    return "host_budget_exceeded", {"state": state, "cumulative_mb": total, "budget_mb": budget, "action": action}


def artifact_promoted(state: str, source: str, path: str) -> tuple[str, Fields]:
    """Ours: a deliverable was taken out of the run's folder."""
    return "artifact_promoted", {"state": state, "from": source, "to": path}


def sub_loop_worktree(what: str, branch: str, **fields: Any) -> tuple[str, Fields]:
    """`what` is `attached`, `detached` or `error`."""
    return f"sub_loop_worktree_{what}", {"branch": branch, **fields}


def workdir_vanished(state: str, path: str) -> tuple[str, Fields]:
    return "workdir_vanished", {"state": state, "path": path}


def learning_target(outcome: str, state: str, target: str, **more: Any) -> tuple[str, Fields]:
    """`outcome` is `proven`, `refuted` or `stale`."""
    return f"learning_target_{outcome}", {"state": state, "target": target, **more}


def learning_explore_invoked(state: str, target: str, attempt: int) -> tuple[str, Fields]:
    return "learning_explore_invoked", {"state": state, "target": target, "attempt": attempt}


def learning_blocked(state: str, target: str, reason: str) -> tuple[str, Fields]:
    return "learning_blocked", {"state": state, "target": target, "reason": reason}


def learning_complete(state: str, targets: tuple[str, ...]) -> tuple[str, Fields]:
    return "learning_complete", {"state": state, "targets": list(targets)}


def human_approval_requested(ask: AskHuman, deadline: str) -> tuple[str, Fields]:
    return "human_approval_requested", {
        "state": ask.state,
        "alert_id": ask.id,
        "prompt": ask.question,
        "timeout": ask.timeout,
        "deadline_ts": deadline,
        "captured_context": {},
    }


def human_approval_resolved(
    state: str, alert_id: str | None, verdict: str, elapsed: float, target: str | None, reason: str | None
) -> tuple[str, Fields]:
    return "human_approval_resolved", {
        "state": state,
        "alert_id": alert_id,
        "verdict": verdict,
        "elapsed_seconds": elapsed,
        "route": target,
        "reason": reason,
    }


def warning(state: str, message: str) -> tuple[str, Fields]:
    """Ours: something a person should know, without effect on the run."""
    return "warning", {"state": state, "message": message}
