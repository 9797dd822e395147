"""What a run that was cut short had achieved: `best_effort.json` among its artifacts, for whoever takes over."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from ...core.frame import Run
from ...core.model import TerminatedBy
from ...core.secrets import Secrets
from .. import files
from .journal import finite, now, plain

NAME = "best_effort.json"
CUT_SHORT: frozenset[TerminatedBy] = frozenset(
    {"max_steps", "max_iterations_reached", "timeout", "stall_detected", "cycle_detected"}
)


def keep(run: Run | None, folder: Path, secrets: Secrets) -> None:
    """Write the file if the run was cut short, and remove an earlier one if it ended in any other way."""
    if run is None or run.ending is None:
        return
    with suppress(OSError):  # like state.json, it is for people: the journal has it all
        if run.ending.by in CUT_SHORT:
            files.replace_text(folder / NAME, _text(run, secrets))
        else:
            (folder / NAME).unlink(missing_ok=True)


def _text(run: Run, secrets: Secrets) -> str:
    root, ending = run.root, run.ending
    assert ending is not None
    document = {
        "metadata": {
            "best_effort": True,
            "loop_name": root.loop.name,
            "started_at": root.started_at,
            "written_at": now(),
        },
        "final_state": ending.state,
        "iterations": root.iteration,
        "terminated_by": ending.by,
        "duration_ms": int(run.at * 1000),
        "captured": root.captured,
    }
    optional = {
        "messages": list(root.messages),
        "failure_terminal": ending.failure_terminal,
        "pre_cap_state": root.pre_cap_state,
    }
    document |= {key: value for key, value in optional.items() if value}
    document["error"] = ending.error
    return json.dumps(finite(secrets.document(document)), ensure_ascii=False, indent=1, default=plain)
