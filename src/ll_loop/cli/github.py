"""Complaints as workflow commands of GitHub Actions, which shows them beside the lines of a pull request."""

from __future__ import annotations

from ..errors import Problem

_DATA = {"%": "%25", "\r": "%0D", "\n": "%0A"}
_PROPERTY = {**_DATA, ":": "%3A", ",": "%2C"}
_ESCAPED = str.maketrans(_DATA)
_ESCAPED_PROPERTY = str.maketrans(_PROPERTY)


def annotation(problem: Problem, file: str) -> str:
    """The line that makes an annotation; `file` is the complaint's file as seen from the top of the repository."""
    properties: dict[str, str] = {}
    if problem.file:
        properties["file"] = file
    if problem.line:
        properties |= {"line": str(problem.line), "col": str(problem.column)}
    properties["title"] = problem.rule
    said = ",".join(f"{key}={value.translate(_ESCAPED_PROPERTY)}" for key, value in properties.items())
    message = f"{problem.message}\nhint: {problem.hint}" if problem.hint else problem.message
    return f"::{problem.severity} {said}::{message.translate(_ESCAPED)}"
