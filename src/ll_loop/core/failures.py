"""What the text of an action says beyond its exit code: the class of a failure, and run markers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Literal

from msgspec import Struct

FailureClass = Literal["quota", "network", "timeout", "resource", "auth", "server", "context", "tooling", "real"]

_WORD = r"\b{}\b"
_TEXTS: tuple[tuple[FailureClass, list[str]], ...] = (
    ("quota", ["out of extra usage", "rate limit", "quota exceeded", "too many requests", "api limit",
               "usage limit", r"hit your (?:[\w-]+ )?limit", "429", "resource exhausted", "resourceexhausted"]),
    ("network", ["connection (?:refused|timeout|reset)", "network error", "dns resolution",
                     "service unavailable", "502 bad gateway", "503 service unavailable", "504 gateway timeout",
                     _WORD.format("(?:econnrefused|enotfound|etimedout)")]),
    ("timeout", ["timeout", "timed out", "deadline exceeded"]),
    ("resource", ["disk full", "no space left", "resource temporarily unavailable", "too many open files",
                      "memory allocation failed", "out of memory"]),
    ("auth", ["401", "403", "unauthorized", "forbidden", "authentication", "invalid api key",
                  "invalid_api_key", "expired token"]),
    ("server", ["the server had an error", "internal server error", "overloaded_error", "overloaded", "529",
                    "api error"]),
    ("context", ["prompt is too long", "context length exceeded", "context window", "maximum context"]),
    ("tooling", ["command not found", "read-only variable", _WORD.format("killed"), "tool_use_error"]),
)  # fmt: skip


@cache
def _groups() -> list[tuple[FailureClass, re.Pattern[str]]]:
    """Compiled at the first failure: most commands never need them."""
    return [(name, re.compile("|".join(patterns))) for name, patterns in _TEXTS]


def classify_failure(output: str, stderr: str) -> FailureClass:
    """The first group of docs/format.md (failure texts) that the text of a failed action falls into."""
    text = f"{output}\n{stderr}".lower()
    return next((name for name, pattern in _groups() if pattern.search(text)), "real")


def failure_type(name: FailureClass) -> str:
    """The word that `${captured.X.failure_type}` shows for it."""
    if name == "auth":
        return "non_recoverable"
    return "real" if name == "real" else "transient"


MARKERS = ("CONTEXT_HANDOFF:", "FATAL_ERROR:", "LOOP_STOP:")
"""Run markers in the order of their weight: it decides, not their place in the output."""


class Marker(Struct, frozen=True):
    """A line by which an action steers its run."""

    kind: Literal["handoff", "fatal", "stop"]
    payload: str


def marked_lines(lines: Iterable[str]) -> list[str]:
    """The lines that hold a run marker."""
    return [line for line in lines if any(marker in line for marker in MARKERS)]


def first_marker(lines: Iterable[str]) -> Marker | None:
    """The marker that counts: the weightiest, and of its kind the first. An empty payload stays empty."""
    held = list(lines)
    kinds: tuple[Literal["handoff", "fatal", "stop"], ...] = ("handoff", "fatal", "stop")
    for kind, marker in zip(kinds, MARKERS, strict=True):
        for line in held:
            _, found, payload = line.partition(marker)
            if found:
                return Marker(kind, payload.strip())
    return None
