"""Complaints as a SARIF 2.1.0 log, which code scanning services and editors read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from ..errors import Problem

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
ROOT = "%SRCROOT%"
"""The name of the folder that relative places count from; the value that services expect."""


def document(located: Iterable[tuple[Problem, str]], root: str, version: str) -> dict[str, Any]:
    """One log with one run. Every complaint comes with its file as seen from `root`, a `file:` URI of a folder."""
    pairs = list(located)
    rules = sorted({problem.rule for problem, _ in pairs})
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "ll-loop", "version": version, "rules": [_rule(name) for name in rules]}},
                "originalUriBaseIds": {ROOT: {"uri": root.rstrip("/") + "/"}},
                "columnKind": "unicodeCodePoints",
                "results": [_result(problem, file, rules.index(problem.rule)) for problem, file in pairs],
            }
        ],
    }


def _rule(name: str) -> dict[str, Any]:
    group, _, about = name.partition(".")
    return {"id": name, "name": name, "shortDescription": {"text": f"{group}: {about.replace('-', ' ')}"}}


def _result(problem: Problem, file: str, index: int) -> dict[str, Any]:
    text = f"{problem.message}\nhint: {problem.hint}" if problem.hint else problem.message
    result: dict[str, Any] = {
        "ruleId": problem.rule,
        "ruleIndex": index,
        "level": problem.severity,
        "message": {"text": text},
        "locations": [_location(problem, file)] if problem.file else [],
    }
    if problem.path:
        result["partialFingerprints"] = {"where/v1": f"{problem.rule}:{problem.path}"}
    return result


def _location(problem: Problem, file: str) -> dict[str, Any]:
    """Where a complaint stands: the place in the file, and the path within the document."""
    artifact: dict[str, Any] = {"uri": quote(file) if not file.startswith("/") else f"file://{quote(file)}"}
    if not file.startswith("/"):
        artifact["uriBaseId"] = ROOT
    physical: dict[str, Any] = {"artifactLocation": artifact}
    if problem.line:
        physical["region"] = {"startLine": problem.line, "startColumn": max(problem.column, 1)}
    return {"physicalLocation": physical, "logicalLocations": [{"fullyQualifiedName": problem.path}]}
