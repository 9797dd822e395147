"""Run agent loops: finite state machines in YAML whose states are shell commands or prompts.

The names below are the public ones; `ll_loop.api` documents them, `ll_loop.errors` holds the errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Library, Request, RunHandle, RunResult, Session, history, resume, run_many

__version__ = "0.1.0"
__all__ = ["Library", "Request", "RunHandle", "RunResult", "Session", "history", "resume", "run_many"]


def __getattr__(name: str) -> Any:
    """Load the API on first use: `ll-loop --help` must not pay for it."""
    if name in __all__:
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
