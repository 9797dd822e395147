"""What a run did, as facts that two runs share: no times, ids, paths or wording of errors."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

Event = dict[str, Any]

VOLATILE = frozenset(
    [
        "ts", "run_id", "duration_ms", "loop_yaml_path", "loop_yaml_sha256", "head_sha", "branch", "worktree_digest",
        "started_at", "updated_at", "elapsed_seconds", "next_attempt_at", "total_wait_seconds", "total_waited_seconds",
        "backoff", "seq", "crc",
    ]
)  # fmt: skip
"""Keys that are different in every run."""
WORDING = frozenset(["error"])
"""Keys whose text is each engine's own: only whether they are there counts."""
STATE_KEYS = ("current_state", "iteration", "captured", "prev_result", "messages", "status", "retry_counts")

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:?\d\d:?\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?")
_SCRIPT = re.compile(r"(?m)^\S+: line (?=\d+: )")


@dataclass(frozen=True)
class Trace:
    """`code` is None for a run that hung; a run that was refused has neither events nor state.

    `said` is what the engine wrote to standard error.
    """

    code: int | None
    events: list[Event] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    said: str = ""

    @property
    def ending(self) -> Event:
        """The run's own `loop_complete`, empty if there is none."""
        ends = [event for event in self.events if event["event"] == "loop_complete" and not event.get("depth")]
        return ends[-1] if ends else {}


def read_trace(project: Path, folder: str, code: int | None) -> Trace:
    """The trace of the only run in a project, found in the folder where its engine keeps runs."""
    said = (project.parent / "err.txt").read_text(errors="replace")
    found = sorted((project / folder).glob("*/events.jsonl"))
    if not found:
        return Trace(code, said=said)
    clean = Cleaner(project)
    events = [clean(json.loads(line)) for line in found[-1].read_text(encoding="utf-8").split("\n") if line.strip()]
    path = found[-1].parent / "state.json"
    state = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return Trace(code, events, {key: clean(state[key]) for key in STATE_KEYS if state.get(key)}, said)


class Cleaner:
    """Takes out of a value what no two runs share. The capture of a sub-loop state is a list of all its events."""

    def __init__(self, project: Path) -> None:
        self._project = str(project)

    def __call__(self, value: Any) -> Any:
        match value:
            case str():
                text = value.replace(self._project, "<PROJECT>")
                return _SCRIPT.sub("<SCRIPT>: line ", _TIME.sub("<TIME>", text))
            case {"output": str(), "exit_code": None}:
                return self({key: item for key, item in value.items() if key != "output"})
            case dict():
                return {self(key): self._field(key, item) for key, item in value.items() if key not in VOLATILE}
            case list():
                return [self(item) for item in value]
            case float() if value != value or value in (float("inf"), float("-inf")):
                return None
            case float() if value == int(value):
                return int(value)
            case _:
                return value

    def _field(self, key: str, value: Any) -> Any:
        return bool(value) if key in WORDING else self(value)


@dataclass(frozen=True)
class Difference:
    """The first thing in which two traces differ: `where` is the number of an event, or a word for what is no event."""

    where: int | str
    old: Any
    ours: Any

    def __str__(self) -> str:
        return f"{self.where}:\n  old  {json.dumps(self.old)}\n  ours {json.dumps(self.ours)}"


def first_difference(old: Trace, ours: Trace) -> Difference | None:
    """Compare what the old engine tells; further events (names not in `KNOWN`) and fields of ours do not count."""
    told = [event for event in ours.events if event["event"] in KNOWN]
    wanted = [event for event in old.events if event["event"] in KNOWN and not _is_default_throttle(event)]
    for number, (theirs, mine) in enumerate(zip_longest(wanted, told)):
        if theirs is None or mine is None or theirs != {key: mine.get(key) for key in theirs}:
            return Difference(number, theirs, mine)
    for key, value in old.state.items():
        if ours.state.get(key) != value:
            return Difference(key, value, ours.state.get(key))
    if _outcome(old) != _outcome(ours):
        return Difference("exit code", old.code, ours.code)
    return None


def _is_default_throttle(event: Event) -> bool:
    """A warning from the throttle that little-loops puts on every state: here, throttles are opt-in."""
    return bool(event["event"] == "throttle_warn" and event["warn_max"] == 8)


def _outcome(trace: Trace) -> int | str | None:
    """The exit code; refusals have different ones in the two engines."""
    return "refused" if trace.code and not trace.events else trace.code


KNOWN = frozenset(
    [
        "loop_start", "state_enter", "route", "action_start", "action_output", "action_complete", "action_error",
        "evaluate", "messages_append", "retry_exhausted", "cycle_detected", "stall_detected", "rate_limit_waiting",
        "rate_limit_exhausted", "rate_limit_storm", "throttle_warn", "throttle_hard", "throttle_stop",
        "prompt_size_warn", "handoff_detected", "max_steps_summary", "max_iterations_reached_summary",
        "workdir_vanished", "loop_resume", "loop_complete",
    ]
)  # fmt: skip
"""The events that both engines tell, as far as loops without prompts bring them about."""
