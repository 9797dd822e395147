"""Runs that outlive the command that starts them: one value says all that is asked, a process of its own does it.

The process is started in a session of its own, forks once more, and so belongs to nobody. Of ours it has the standard
streams only, and those no longer than until it has said what became of the start.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import anyio
import anyio.abc
from msgspec import Struct
from msgspec.structs import asdict

from ..core.model import OnResume
from ..errors import RefusedError
from .journals.request import Request

WORKER = "ll_loop.cli.detached"


class Resumption(Struct, frozen=True):
    """One `resume`, as the command line or the API asked for it: see `ll_loop.api.resume`."""

    wanted: str | None = None
    max_steps: int | None = None
    max_iterations: int | None = None
    delay: float | None = None
    prompt_size_warn: int | None = None
    handoff_threshold: int | None = None
    texts: tuple[tuple[str, str], ...] = ()
    failed: bool = False
    no_host_guard: bool = False
    host_guard_budget_mb: float | None = None
    in_doubt: OnResume | dict[str, OnResume] | None = None
    from_state: str | None = None

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Resumption:
        """The wish that `asdict` gave, after JSON."""
        return cls(**{**document, "texts": tuple((key, text) for key, text in document["texts"])})


class Errand(Struct, frozen=True):
    """What a background process is to do: start `requests`, or `resume` what is meant. Round-trips through JSON."""

    project: str
    requests: tuple[Request, ...] = ()
    resume: Resumption | None = None
    jobs: int | None = None
    grace: float = 5.0
    fail_fast: bool = False
    attended: bool = False
    quiet: bool = False
    verbose: bool = False
    many: bool = False
    backend: str = "asyncio"
    host_slots: int | None = None
    max_usd: float | None = None
    max_tokens: int | None = None
    deadline: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The errand as JSON takes it."""
        return {
            **asdict(self),
            "requests": [request.to_json() for request in self.requests],
            "resume": None if self.resume is None else asdict(self.resume),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Errand:
        """The errand that `to_json` gave."""
        resume = document["resume"]
        return cls(
            **{
                **document,
                "requests": tuple(Request.from_json(request) for request in document["requests"]),
                "resume": None if resume is None else Resumption.from_json(resume),
            }
        )


async def send(errand: Errand) -> dict[str, Any]:
    """Start a process that does the errand; its report, once every run goes on, waits in a line, or was refused.

    Cancelled before that, the process ends what it has begun. RefusedError if it ends without a report.
    """
    argv = [sys.executable, "-P", "-m", WORKER]
    process = await anyio.open_process(argv, stderr=None, start_new_session=True)
    async with process:
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.send(json.dumps(errand.to_json()).encode())
        await process.stdin.aclose()
        told = await _all(process.stdout)
    try:
        report = json.loads(told)
    except ValueError:
        raise RefusedError("the background process ended before it said what became of the runs") from None
    return dict(report)


async def _all(stream: anyio.abc.ByteReceiveStream) -> bytes:
    return b"".join([part async for part in stream])
