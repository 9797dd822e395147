"""Errors by who can mend them. Each carries the exit code of docs/compatibility.md and, where there is one, a hint.

Expected endings of a run are values (`ll_loop.core.model.Ending`), never exceptions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from msgspec import Struct

Severity = Literal["error", "warning"]


class Problem(Struct, frozen=True):
    """One complaint about a loop file: where, what, and what to do about it."""

    severity: Severity
    rule: str
    path: str
    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}: " if self.line else f"{self.file}: " if self.file else ""
        mark = "" if self.severity == "error" else "warning: "
        return f"{place}{mark}{self.message}"

    def lines(self) -> list[str]:
        """The complaint as printed: `file:line:col: message`, then `hint: ...` if there is one."""
        return [str(self), f"hint: {self.hint}"] if self.hint else [str(self)]


class LoopError(Exception):
    """Base of what ll-loop raises on purpose. `exit_code` is what the command ends with."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(LoopError):
    """The command line, or the arguments of an API call, are wrong."""

    exit_code = 64


class DefinitionError(LoopError):
    """A loop file is wrong. `problems` holds every complaint, sorted by position."""

    exit_code = 65

    def __init__(self, name: str, problems: Sequence[Problem]) -> None:
        self.name = name
        self.problems = tuple(problems)
        super().__init__("\n".join(str(p) for p in self.problems if p.severity == "error"))


class NotFoundError(LoopError):
    """No such loop, run or input."""

    exit_code = 66


class CannotCreateError(LoopError):
    """The disk refused to create what a run needs."""

    exit_code = 73


class StorageError(LoopError):
    """The disk refused to keep what a run must not lose, or the system what an action needs to start."""

    exit_code = 74


class BudgetError(LoopError):
    """A budget of a run or of a batch is used up: no further prompt or question is started."""


class RefusedError(LoopError):
    """Not now: the scope is held, the queue timed out, or the run directory is in use."""

    exit_code = 75
