"""Collects complaints while a file is read, so that one mistake does not hide the next."""

from __future__ import annotations

from ..errors import Problem
from .nodes import ROOT, Mark, problem_at


class Complaints:
    """Errors and warnings in the order found."""

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def error(self, at: Mark, rule: str, message: str, *, path: str = ROOT, hint: str = "") -> None:
        self.found.append(problem_at(at, rule, path, message, hint=hint))

    def warn(self, at: Mark, rule: str, message: str, *, path: str = ROOT, hint: str = "") -> None:
        self.found.append(problem_at(at, rule, path, message, hint=hint, severity="warning"))
