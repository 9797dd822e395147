"""What `state.json` shows: a run as the keys of docs/files.md. A cache for people and tools, never a source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .effects import AskHuman
from .endings import status_of
from .frame import Frame, Run
from .model import Status


def snapshot(run: Run, *, updated_at: str, status: Status | None = None) -> dict[str, Any]:
    """The run's public state. `status` overrides what follows from the run itself (`queued`)."""
    root = run.root
    document: dict[str, Any] = {
        "loop_name": root.loop.name,
        "current_state": root.state,
        "iteration": root.iteration,
        "captured": dict(root.captured),
        "prev_result": dict(root.prev) if root.prev is not None else None,
        "last_result": dict(root.last) if root.last is not None else None,
        "started_at": root.started_at,
        "updated_at": updated_at,
        "status": status or (status_of(run.ending) if run.ending else "running"),
        "accumulated_ms": int(run.at * 1000),
    }
    optional: Mapping[str, Any] = {
        "continuation_prompt": run.ending.continuation if run.ending else None,
        "retry_counts": dict(root.retries),
        "edge_revisit_counts": dict(root.edges),
        "iteration_count": root.passes,
        "successors": run.successors,
        "messages": list(root.messages),
        "pre_cap_state": root.pre_cap_state,
        "consecutive_rate_limit_exhaustions": root.exhausted_in_a_row,
        "rate_limit_retries": {
            name: {"short_retries": r.short, "long_retries": r.long, "total_wait_seconds": r.waited}
            for name, r in root.rates.items()
        },
        "active_sub_loop": _position(run.frames[1:]),
        "attempt": run.top.attempt if run.top.attempt > 1 else None,
        "question": open_question(run),
    }
    document |= {key: value for key, value in optional.items() if value}
    if run.ending is not None and run.ending.error is not None:
        document["error"] = run.ending.error
    document["context"] = dict(root.context)
    return document


def open_question(run: Run) -> dict[str, Any] | None:
    """The question to a person that the run waits with: its `id`, its `state` and its `text`."""
    ask = run.waiting
    if run.ending is not None or not isinstance(ask, AskHuman):
        return None
    return {"id": ask.id, "state": ask.state, "text": ask.question}


def _position(frames: tuple[Frame, ...]) -> list[dict[str, Any]]:
    return [{"loop": f.loop.name, "state": f.state, "iteration": f.iteration} for f in frames]
