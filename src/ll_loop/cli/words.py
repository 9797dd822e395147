"""What the command says: endings, durations and events in a few words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .terminal import clean

if TYPE_CHECKING:
    from ..api import RunResult

GOOD_VERDICTS = frozenset({"yes", "target", "progress", "success"})
BAD_VERDICTS = frozenset({"no", "error"})

_ENDINGS: Mapping[str, str] = {
    "terminal": "done",
    "max_steps": "stopped: step limit",
    "max_iterations_reached": "stopped: pass limit",
    "timeout": "stopped: time limit",
    "interrupted": "interrupted",
    "user_stopped": "stopped: by the user",
    "system_signal": "failed: a signal ended an action",
    "handoff": "waiting to continue",
    "cycle_detected": "stopped: cycle",
    "stall_detected": "stopped: stall",
    "error": "failed: error",
    "no_route": "failed: no route",
    "workdir_vanished": "failed: directory gone",
    "host_pressure_abort": "failed: memory",
    "host_budget_exceeded": "failed: memory budget",
    "queue_timeout": "refused",
    "cost_ceiling_exceeded": "failed: cost ceiling",
    "budget_exceeded": "stopped: budget",
    "refused": "refused",
    "internal_error": "failed: internal error",
}


def ending(by: str, *, failure: bool = False, asked: bool = False) -> str:
    """How a run ended, named. `failure` is a failure terminal, `asked` a stop that the loop itself asked for."""
    if asked:
        return "stopped: the loop asked for it"
    if failure:
        return "failed" if by == "terminal" else f"failed after {_ENDINGS[by].removeprefix('stopped: ')}"
    return _ENDINGS.get(by, by)


def ending_of(result: RunResult) -> str:
    """How a run ended, named."""
    asked = result.terminated_by == "interrupted" and result.exit_code == 0
    return ending(result.terminated_by, failure=result.failure_terminal, asked=asked)


def placed(word: str, state: str) -> str:
    """An ending with the state in which it came, where that says more."""
    if word == "done" or not state:
        return word
    return f"failed: reached {state}" if word == "failed" else f"{word}, in {state}"


def plural(number: int, word: str) -> str:
    """A number of things: `1 retry`, `2 retries`, `2 keys`, `2 processes`."""
    if number == 1:
        return f"{number} {word}"
    if word[-1] == "y" and word[-2] not in "aeo":
        return f"{number} {word[:-1]}ies"
    return f"{number} {word}{'es' if word[-1] == 's' else 's'}"


def seconds(value: float, *, whole: bool = False) -> str:
    """A duration for people: `0.4s`, `12s`, `2m 05s`, `1h 02m`. `whole` leaves out tenths (for ticking clocks)."""
    if value < 10 and not whole:
        return f"{value:.1f}s"
    minutes, rest = divmod(int(value), 60)
    if not minutes:
        return f"{rest}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m" if hours else f"{minutes}m {rest:02}s"


def spent(usage: Mapping[str, Any]) -> tuple[str, str]:
    """Tokens and dollars of a run, as `1,234` and `$0.12`; what is only a part of it gets a `>`."""
    tokens, usd = f"{usage['known_tokens']:,}", f"${usage['known_cost_usd']:.2f}"
    if usage["tokens"] is None:
        tokens = f">{tokens}" if usage["known_tokens"] else "unknown"
    if usage["cost_usd"] is None:
        usd = f">{usd}" if usage["known_cost_usd"] else "unknown"
    return tokens, usd


def tried(attempt: int, before: str = "") -> str:
    """Which attempt at a state this is, empty for the first: a run that was cut off enters its state again."""
    return f"{before}attempt {attempt}" if attempt > 1 else ""


def exit_words(code: int | None) -> str:
    """An action's exit code in words, empty for a clean end."""
    if not code:
        return ""
    if code == 124:
        return "timed out"
    return f"exit {code}" if code > 0 else f"killed by signal {-code}"


# --- events ------------------------------------------------------------------------------------------------

Words = Callable[[Mapping[str, Any]], str]

_NOTES: Mapping[str, Words] = {
    "warning": lambda r: f"warning: {r['state']}: {r['message']}" if r.get("state") else f"warning: {r['message']}",
    "action_error": lambda r: f"{r['state']}: {r['error']}",
    "retry_exhausted": lambda r: f"{r['state']}: no more retries after {r['retries']}, going to {r['next']}",
    "cycle_detected": lambda r: f"cycle: {r['from']} -> {r['to']} was taken {r['count']} times (limit {r['max']})",
    "stall_detected": lambda r: f"stall: {r['state']} gave {r['verdict']} again and again; {r['action']}",
    "timeout_summary": lambda r: f"time is nearly up, running {r['summary_state']}",
    "max_steps_summary": lambda r: f"step limit reached, running {r['summary_state']}",
    "max_iterations_reached_summary": lambda r: f"pass limit reached, running {r['summary_state']}",
    "throttle_warn": lambda r: f"{r['state']} ran {r['count']} times in a row",
    "throttle_hard": lambda r: f"{r['state']} ran {r['count']} times in a row, going to {r['next'] or 'the end'}",
    "throttle_stop": lambda r: f"{r['state']} ran {r['count']} times in a row: stopped",
    "prompt_size_warn": lambda r: f"{r['state']}: a prompt of {r['size']} characters",
    "evaluate": lambda r: _unjudged(r),
    "rate_limit_waiting": lambda r: f"{r['state']}: rate limit, retrying in {seconds(r['next_attempt_in'])}",
    "rate_limit_exhausted": lambda r: f"{r['state']}: rate limit, gave up after {seconds(r['total_wait_seconds'])}",
    "rate_limit_storm": lambda r: f"{r['state']}: rate limits {r['count']} times in a row",
    "cost_ceiling_unknown": lambda r: f"{r['state']}: its cost ceiling may not hold: {r['reason']}",
    "cost_ceiling_warn": lambda r: f"{r['state']} has cost ${r['cost_usd']:.2f} (warning from ${r['cost_warn_at']:g})",
    "cost_ceiling_exceeded": lambda r: (
        f"{r['state']} has cost ${r['cost_usd']:.2f}, more than its ceiling of ${r['cost_ceiling_per_state']:g}"
    ),
    "api_error_retry": lambda r: f"{r['state']}: server error, retrying in {seconds(r['backoff'])}",
    "api_error_exhausted": lambda r: f"{r['state']}: server error, gave up after {plural(r['retries'], 'retry')}",
    "human_approval_resolved": lambda r: _resolved(r),
    "learning_target_stale": lambda r: f"{r['state']}: {r['target']} is {r['cause']}, exploring",
    "learning_blocked": lambda r: f"{r['state']}: {r['target']} blocks, {r['reason'].replace('_', ' ')}",
    "handoff_detected": lambda r: f"{r['state']}: hands over to a later session",
    "request_path_downgrade": lambda r: f"`request_path: {r['requested']}` goes through the agent host: {r['reason']}",
    "handoff_spawned": lambda r: f"{r['state']}: successor {r['successor']} of {r['of']} takes over",
    "tamper_detected": lambda r: f"{r['state']}: changed tests: {', '.join(one['path'] for one in r['findings'])}",
    "prepatch_check_flagged": lambda r: f"{r['state']}: tests that pass without the patch: {', '.join(r['files'])}",
    "host_budget_exceeded": lambda r: f"{r['state']}: its actions used {r['cumulative_mb']} MB",
    "artifact_promoted": lambda r: f"promoted {r['to']}",
    "workdir_vanished": lambda r: f"{r['state']}: the directory {r['path']} is gone",
    "worktree_created": lambda r: f"worktree {r['worktree']}",  # its branch is named alike
    "loop_resume": lambda r: f"goes on after step {r['iteration']}, in {r['from_state']}",
    "host_waiting": lambda r: f"waits for {r['why']}" + (f" until {r['until'][11:19]} UTC" if "until" in r else ""),
    "run_resumed": lambda r: _doubt(r),
    "swept": lambda r: f"ended {plural(len(r['ended']), 'process')} that the last session left" if r["ended"] else "",
}


REPLIES = {"approve": "yes", "reject": "no"}
"""What a person said, as the verdict that is routed."""


def _doubt(record: Mapping[str, Any]) -> str:
    """That an action may have done its work before its run was cut off, and what is done about it."""
    if "doubt" not in record:
        return ""
    deed = {
        "rerun": f"it runs again, attempt {record['attempt']}",
        "skip": "it is skipped",
        "leave": f"the run goes on from {record['from']['state']}" if "from" in record else "",
    }
    what = deed.get(record["policy"], "the run fails")
    return f"the action of {record['doubt']} was cut off, nobody knows how far it came: {what}"


def _resolved(record: Mapping[str, Any]) -> str:
    if record["verdict"] == "timeout":
        headless = "nobody is there to answer (with --attended it waits for `ll-loop approve`)"
        said = headless if record["reason"] == "headless" else "nobody answered in time"
        return f"{record['state']}: {said}"
    if record["verdict"] == "shutdown":
        return f"{record['state']}: the question is withdrawn"
    reason = f" ({record['reason']})" if record["reason"] else ""
    return f"{record['state']}: answered {REPLIES.get(record['verdict'], record['verdict'])}{reason}"


def _unjudged(record: Mapping[str, Any]) -> str:
    """Why there is no verdict, unless the action itself has failed."""
    if record["verdict"] != "error" or not record.get("error") or "exit_code" in record:
        return ""
    preview = f": {record['raw_preview'][:80]}" if record.get("raw_preview") else ""
    return f"no verdict: {record['error']}{preview}"


def note(record: Mapping[str, Any]) -> str:
    """What a person should hear of an event that is no part of the usual course; empty for all others."""
    words = _NOTES.get(record["event"])
    return clean(words(record)) if words else ""


_DETAILS: Mapping[str, Words] = {
    "loop_start": lambda r: str(r["loop"]),
    "worktree_created": lambda r: f"{r['worktree']} on {r['branch']}",
    "loop_complete": lambda r: f"{r['final_state']}  {plural(r['iterations'], 'step')}  [{r['terminated_by']}]",
    "state_enter": lambda r: f"{r['state']}  (step {r['iteration']}{tried(r.get('attempt', 1), ', ')})",
    "action_start": lambda r: f"{clean(r['action'])}  [{'prompt' if r['is_prompt'] else 'shell'}]",
    "action_output": lambda r: f"| {clean(r['line'])}",
    "action_complete": lambda r: f"{exit_words(r['exit_code']) or 'ok'}  {seconds(r['duration_ms'] / 1000)}",
    "evaluate": lambda r: f"{r['verdict']}  ({r['type']})",
    "route": lambda r: f"{r['from']} -> {r['to']}",
    "scope_waiting": lambda r: f"waits for {r['holder']}",
    "human_approval_requested": lambda r: f"asks: {r['prompt']}",
}
_COMMON = frozenset({"event", "ts", "run_id", "loop", "depth", "seq", "crc"})


def detail(record: Mapping[str, Any]) -> str:
    """An event's own fields, for the line of a history."""
    words = _DETAILS.get(record["event"]) or _NOTES.get(record["event"])
    if words is not None:
        return clean(words(record))
    return clean("  ".join(f"{key}={value}" for key, value in record.items() if key not in _COMMON))
