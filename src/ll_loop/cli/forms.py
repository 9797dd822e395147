"""The JSON forms of what commands answer. They are promises: keys are added, never renamed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import Problem

if TYPE_CHECKING:
    from ..api import Entry, RunResult


def text_of(document: object, *, indent: int | None = 2) -> str:
    """A document as JSON text; what JSON does not know becomes a text."""
    return json.dumps(document, indent=indent, ensure_ascii=False, default=_plain)


def _plain(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else str(value)


def problem_to_json(problem: Problem) -> dict[str, Any]:
    return {
        "severity": problem.severity,
        "path": problem.path,
        "message": problem.message,
        "rule": problem.rule,
        "file": problem.file,
        "line": problem.line,
        "column": problem.column,
        "hint": problem.hint,
    }


def report_to_json(name: str, problems: Iterable[Problem]) -> dict[str, Any]:
    """The report of `validate` on one loop, `name` as typed: errors first."""
    found = sorted(problems, key=lambda problem: problem.severity != "error")
    valid = not any(problem.severity == "error" for problem in found)
    return {"loop": name, "valid": valid, "violations": [problem_to_json(problem) for problem in found]}


def results_to_json(results: Iterable[RunResult], exit_code: int) -> dict[str, Any]:
    return {"runs": [result.to_json() for result in results], "exit_code": exit_code}


def entry_to_json(entry: Entry, path: str) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": entry.name,
        "path": path,
        "category": entry.category,
        "labels": list(entry.labels),
        "visibility": entry.visibility,
        "description": " ".join(entry.description.split()),
    }
    return {**document, "built_in": True} if entry.built_in else document


def event_line(record: Mapping[str, Any]) -> str:
    """A record of a run as one line of JSON, without the checksum that belongs to the file."""
    return text_of({key: value for key, value in record.items() if key != "crc"}, indent=None)
