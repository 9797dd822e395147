"""What was asked of a run and what came of it: the values between the API and the orchestrator."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct, field
from msgspec.structs import asdict, replace

from ...core.context import Overrides
from ...core.model import EMPTY
from ...errors import UsageError

LONGEST_NAME = 40
_OPTIONAL = ("worktree", "usage", "handoff")
"""What a result tells only where there is something to tell."""


class Request(Struct, frozen=True):
    """One start, as the command line or the API asked for it. Round-trips through JSON.

    `context` values are taken as they are; `texts` are `KEY=VALUE` texts that win over them and take the type of the
    value they replace. `queue` waits for a held scope, at most `queue_timeout` seconds; `lock` false takes no scope.
    `program_md` is the path of a steering file in place of the project's own. `handoff_threshold` (1 to 100 percent)
    and `context_limit` (tokens) are told to actions. `host` and `model` say who takes prompts (a state's own model
    comes first), `llm_model` who judges; with `no_llm` nobody does. `effort` says how hard a model is to think, where
    its state does not. `no_host_guard` pays no heed to the machine's memory, `host_guard_budget_mb` is what actions may
    use of it in sum, 0 for no limit. `prompt_size_warn` is in characters, 0 for never.
    `max_usd`, `max_tokens` and `deadline` (seconds) are what this run may spend before no further prompt is started.
    `secrets` names variables and context values that are secret though their names do not say so. `max_successors` is
    how often a run goes on by itself after a handoff.
    """

    name: str
    input: str | None = None
    context: Mapping[str, Any] = EMPTY
    texts: tuple[tuple[str, str], ...] = ()
    max_steps: int | None = None
    delay: float | None = None
    worktree: bool = False
    queue: bool = True
    queue_timeout: float | None = None
    lock: bool = True
    max_iterations: int | None = None
    program_md: str | None = None
    handoff_threshold: int | None = None
    context_limit: int | None = None
    host: str = ""
    model: str = ""
    llm_model: str = ""
    no_llm: bool = False
    prompt_size_warn: int | None = None
    max_usd: float | None = None
    max_tokens: int | None = None
    deadline: float | None = None
    effort: str = ""
    no_host_guard: bool = False
    host_guard_budget_mb: float | None = None
    secrets: tuple[str, ...] = ()
    max_successors: int | None = None

    def overrides(self) -> dict[str, Any]:
        """What replaces the loop's own values."""
        given = {"max_steps": self.max_steps, "max_iterations": self.max_iterations, "backoff": self.delay,
                 "prompt_size_warn": self.prompt_size_warn, "handoff_threshold": self.handoff_threshold,
                 "max_successors": self.max_successors}  # fmt: skip
        budget = limits(self.max_usd, self.max_tokens, self.deadline)
        return {key: value for key, value in given.items() if value is not None} | (
            {"budget": budget} if budget else {}
        )

    def but_with(self, values: Overrides) -> Request:
        """The request with values of the context replaced."""
        if not isinstance(values, Mapping):
            return replace(self, texts=(*self.texts, *values))
        texts = tuple(pair for pair in self.texts if pair[0] not in values)
        return replace(self, context={**self.context, **values}, texts=texts)

    def to_json(self) -> dict[str, Any]:
        texts = [list(pair) for pair in self.texts]
        return {**asdict(self), "context": dict(self.context), "texts": texts, "secrets": list(self.secrets)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Request:
        texts = tuple((key, value) for key, value in document["texts"])
        return cls(**{**document, "texts": texts, "secrets": tuple(document.get("secrets", ()))})


def check_numbers(request: Request) -> None:
    """Raise UsageError for a number that cannot be meant."""
    for name in ("max_steps", "max_iterations", "context_limit", "handoff_threshold"):
        number = getattr(request, name)
        if number is not None and number < 1:
            raise UsageError(f"{name.replace('_', ' ')} must be at least 1, not {number}")
    if request.handoff_threshold is not None and request.handoff_threshold > 100:
        raise UsageError(f"a handoff threshold is at most 100 percent, not {request.handoff_threshold}")
    if request.delay is not None and request.delay < 0:
        raise UsageError(f"a delay cannot be negative: {request.delay:g}")
    if request.queue_timeout is not None and request.queue_timeout < 0:
        raise UsageError(f"a queue timeout cannot be negative: {request.queue_timeout:g}")


class RunResult(Struct, frozen=True):
    """How a run ended. `duration_ms` counts all segments of a resumed run; `run_dir` is its folder of artifacts.

    `status` is a word of docs/files.md, or `refused` for a run that never began. `usage` is what hosts have cost, in
    all and by state; empty if none took a turn. `handoff` tells of a run that waits to be continued: `state`,
    `continuation` (what was handed over), `successors` (how many there have been).
    """

    run_id: str
    loop: str
    status: str
    terminated_by: str
    final_state: str
    iterations: int
    exit_code: int
    duration_ms: int
    run_dir: str
    failure_terminal: bool = False
    error: str | None = None
    hint: str = ""
    resumable: bool = False
    worktree: Mapping[str, Any] = field(default=EMPTY)
    usage: Mapping[str, Any] = field(default=EMPTY)
    handoff: Mapping[str, Any] = field(default=EMPTY)

    @property
    def ok(self) -> bool:
        """Whether it reached a terminal that is no failure (or stopped because its loop asked for that)."""
        return self.exit_code == 0

    def to_json(self) -> dict[str, Any]:
        document = {name: getattr(self, name) for name in self.__struct_fields__ if name not in ("hint", *_OPTIONAL)}
        document |= {name: dict(value) for name in _OPTIONAL if (value := getattr(self, name))}
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> RunResult:
        """The result that `to_json` gave, as far as it told."""
        return cls(**document)


def limits(usd: float | None, tokens: int | None, seconds: float | None) -> dict[str, float]:
    """Those limits of a budget that are given, by the names of `core.model.Budget`. UsageError for one below zero."""
    found = {"usd": usd, "tokens": tokens, "seconds": seconds}
    given = {name: value for name, value in found.items() if value is not None}
    for name, value in given.items():
        if value < 0:
            raise UsageError(f"a budget cannot be negative: {value:g} {name}")
    return given


def new_run_id(loop: str) -> str:
    """A random id that tells its age: UTC time to the second, the loop's name, the rest of the time, 16 random bits."""
    now = datetime.now(UTC)
    rest = now.microsecond * 0x10000 // 1_000_000
    return f"{now:%Y%m%dT%H%M%S}-{slug(loop)}-{rest:04x}{secrets.token_hex(2)}"


def age_key(run_id: str) -> tuple[str, str]:
    """What sorts ids by the time of their making."""
    return run_id[:15], run_id.rpartition("-")[2]


def slug(name: str) -> str:
    """A name as part of a file name: letters, digits, `_`, `.` and `-`, at most 40 characters."""
    plain = re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-.")
    return plain[:LONGEST_NAME].rstrip("-.") or "loop"
