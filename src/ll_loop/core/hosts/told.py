"""What the stream of an agent host tells, whatever the host: the events that parsers make of its lines."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class Usage(Struct, frozen=True):
    """Tokens, each counted once: `input` without what came from the cache. None is unknown, which is not zero."""

    input: int | None = None
    cache_read: int | None = None
    cache_write: int | None = None
    output: int | None = None

    def __add__(self, other: Usage) -> Usage:
        return Usage(*map(_sum, self.parts, other.parts))

    @property
    def parts(self) -> tuple[int | None, int | None, int | None, int | None]:
        return self.input, self.cache_read, self.cache_write, self.output

    @property
    def is_nothing(self) -> bool:
        """Whether no token at all was counted, which no model's answer costs."""
        return not any(self.parts)


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


class Began(Struct, frozen=True):
    """The session has an id, and maybe a model."""

    session: str = ""
    model: str = ""


class Recalls(Struct, frozen=True):
    """What follows, until the session begins, was said and done in earlier turns."""


class Said(Struct, frozen=True):
    """Text of the assistant: a whole message, or with `delta` a piece of one."""

    text: str
    delta: bool = False


class UsedTool(Struct, frozen=True):
    """A tool was started, made progress or ended."""

    name: str = ""


class Spent(Struct, frozen=True):
    """Tokens of one request, or with `total` of the whole turn. `usd` is the host's own figure, if it gives one."""

    usage: Usage
    total: bool = False
    model: str = ""
    usd: float | None = None


class Charged(Struct, frozen=True):
    """What the turn costs so far, in dollars, by the host's own count."""

    usd: float


class Retries(Struct, frozen=True):
    """The host tries again by itself, in `delay` seconds: an end that was told before does not count."""

    status: int | None = None
    delay: float | None = None
    message: str = ""


class Limited(Struct, frozen=True):
    """The provider's limit: reached (`rejected`), until `resets_at` (epoch seconds) if that is known, or near."""

    rejected: bool
    resets_at: float | None = None
    kind: str = ""


class Ended(Struct, frozen=True):
    """The end of the turn. `status` is the HTTP status behind a failure.

    A failure without a message is the last trouble that was told.

    `answer` is its final text, where the host tells it apart, and `structured` the answer to a schema.

    One that is not `final` may still be taken back, by `Retries` or by a later end.
    """

    ok: bool
    message: str = ""
    status: int | None = None
    answer: str = ""
    structured: Any = None
    retry_after: float | None = None
    final: bool = True


class Trouble(Struct, frozen=True):
    """An error that the host told of on its way, and may have got over."""

    message: str


class Quiet(Struct, frozen=True):
    """A line that is known and tells nothing that counts."""


Event = Began | Recalls | Said | UsedTool | Spent | Charged | Retries | Limited | Ended | Trouble | Quiet
