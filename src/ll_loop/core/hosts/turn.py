"""One turn of a host: its stream in, line by line; its text, its end, its tokens out.

The outcome comes from the stream's own end; the exit code is asked second, since hosts exit with 0 on errors and with
numbers of their own on success.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from ..failures import FailureClass, classify_failure
from . import told
from .base import Host

MOST_UNKNOWN = 20
"""Kinds of unknown lines that are remembered by name."""


class Reply(Struct, frozen=True, kw_only=True):
    """What came of a turn. Plain values that survive JSON.

    `output` is all of its text, `answer` the last message. `failure` is None for a success. `status` is an HTTP status;
    `retry_after` is seconds and `resets_at` epoch seconds, as far as the host told. `usd` is the host's own figure;
    `requests` counts the blocks that `usage` sums up. `suspect` says why a success may be none. `timed_out` and
    `missing` say that the host was ended, or is not there; `asked_model` and `effort` are what it was asked for,
    `left_out` what of the call it cannot do.
    """

    output: str = ""
    answer: str = ""
    failure: FailureClass | None = None
    error: str = ""
    status: int | None = None
    retry_after: float | None = None
    resets_at: float | None = None
    session: str = ""
    model: str = ""
    usage: told.Usage | None = None
    usd: float | None = None
    structured: Any = None
    requests: int = 0
    tools: int = 0
    unknown: tuple[str, ...] = ()
    suspect: str = ""
    left_out: tuple[str, ...] = ()
    host: str = ""
    asked_model: str = ""
    effort: str = ""
    timed_out: bool = False
    missing: bool = False

    @property
    def ok(self) -> bool:
        return self.failure is None

    def wait(self, now: float | None) -> float | None:
        """How many seconds the host said that it takes no calls, from `now` (epoch seconds); None if it did not say."""
        if self.resets_at is not None and now is not None and self.resets_at > now:
            return self.resets_at - now
        return self.retry_after


def reply_to_json(reply: Reply) -> dict[str, Any]:
    """What is not as by default."""
    default = Reply()
    names = [name for name in Reply.__struct_fields__ if getattr(reply, name) != getattr(default, name)]
    document = {name: getattr(reply, name) for name in names}
    if reply.usage is not None:
        document["usage"] = list(reply.usage.parts)
    return document


def reply_from_json(document: Mapping[str, Any]) -> Reply:
    """The reverse of `reply_to_json`, also for what JSON made of it."""
    fields = dict(document)
    if "usage" in fields:
        fields["usage"] = told.Usage(*fields["usage"])
    for name in ("unknown", "left_out"):
        if name in fields:
            fields[name] = tuple(fields[name])
    return Reply(**fields)


class Turn:
    """Takes in a host's stream. `feed` gives the lines of text that it completes; `is_over` when no more is wanted.

    Lines that are no JSON count as text, unless they are not `plain`.
    """

    def __init__(self, host: Host, *, plain: bool = True) -> None:
        self._host = host
        self._is_plain = plain
        self._said: list[str] = []
        self._piece = ""
        self._last = ""
        self._plain = 0
        self._end: told.Ended | None = None
        self._session = self._model = ""
        self._total: told.Usage | None = None
        self._sum: told.Usage | None = None
        self._usd: float | None = None
        self._tools = 0
        self._requests = 0
        self._troubles: list[str] = []
        self._retried = told.Retries()
        self._unknown: list[str] = []
        self._recalls = False
        self._limit: told.Limited | None = None
        self.progress = 0
        """Grows with every text, tool and token: a stream that moves without it is going nowhere."""
        self.fruitless = 0
        """Requests in a row that cost no token: a host that goes on after those will never end."""

    @staticmethod
    def never_began(why: str) -> Reply:
        """The reply of a host that could not be started."""
        return Reply(failure="real", error=why, missing=True)

    @property
    def is_over(self) -> bool:
        """Whether the host has told how the turn ended, for good."""
        return self._end is not None and self._end.final

    def feed(self, line: str) -> list[str]:
        """Take in one line; returns the lines of the assistant's text that are complete now."""
        before = len(self._said)
        document = document_of(line)
        if document is None:
            self._say_plain(line)
        else:
            events = self._host.parse(document)
            if events is None:
                self._note_unknown(str(document.get("type", "?")))
            else:
                for event in events:
                    self._take(event)
        return self._said[before:]

    def finish(self) -> list[str]:
        """The stream is at its end: the rest of the text."""
        before = len(self._said)
        self._close_piece()
        return self._said[before:]

    def reply(self, exit_code: int, stderr: str = "") -> Reply:
        """How the turn ended, given how its process did."""
        self._close_piece()
        end = self._end or self._missing_end(exit_code, stderr)
        if not end.ok and not end.message:
            end = replace(end, message=(self._troubles or ["the turn failed"])[-1])
        usage = self._total or self._sum
        if end.ok and usage is None and self._retried.message:  # it gave up, and said so in words of the assistant
            end = told.Ended(False, self._retried.message, self._retried.status)
        limit = self._limit if self._limit is not None and self._limit.rejected else None
        return Reply(
            output="\n".join(self._said),
            answer=end.answer or self._last,
            failure=None if end.ok else _failure(end, limit),
            error="" if end.ok else end.message,
            status=end.status,
            retry_after=end.retry_after,
            resets_at=limit.resets_at if limit else None,
            session=self._session,
            model=self._model,
            usage=usage,
            usd=self._usd,
            structured=end.structured,
            requests=self._requests,
            tools=self._tools,
            unknown=tuple(self._unknown),
            suspect="no token was counted" if end.ok and usage is not None and usage.is_nothing else "",
        )

    # --- events ----------------------------------------------------------------------------------------------

    def _take(self, event: told.Event) -> None:
        if self._recalls and isinstance(event, told.Said | told.UsedTool | told.Spent | told.Charged):
            return
        match event:
            case told.Said(text, delta=True):
                self._piece += text
                self.progress += 1
                return
            case told.Charged(usd):
                self._usd = usd
                return
            case told.Quiet():
                return
        self._close_piece()
        match event:
            case told.Recalls():
                self._recalls = True
            case told.Began(session, model):
                self._recalls = False
                self._session, self._model = session or self._session, model or self._model
            case told.Said(text):
                self._said += lines_of(text)
                self._last = text
                self.progress += 1
            case told.UsedTool():
                self._tools += 1
                self.progress += 1
            case told.Spent():
                self._spend(event)
            case told.Retries():
                self._end, self._retried = None, event
            case told.Limited():
                self._limit = event
            case told.Trouble(message):
                self._troubles.append(message)
            case told.Ended():
                self._end = event

    def _spend(self, event: told.Spent) -> None:
        self._model = event.model or self._model
        self._requests += 1
        if event.total:
            self._total, self._usd = event.usage, self._usd if event.usd is None else event.usd
        else:
            self._sum = event.usage if self._sum is None else self._sum + event.usage
            self._usd = event.usd if self._usd is None else self._usd + (event.usd or 0)
        self.progress += not event.usage.is_nothing
        self.fruitless = self.fruitless + 1 if event.usage.is_nothing else 0

    def _close_piece(self) -> None:
        if self._piece:
            self._said += lines_of(self._piece)
            self._last, self._piece = self._piece, ""

    def _say_plain(self, line: str) -> None:
        if line.strip() and self._is_plain:
            self._close_piece()
            self._said.append(line)
            self._last = f"{self._last}\n{line}" if self._plain else line
            self._plain += 1
            self.progress += 1

    def _note_unknown(self, kind: str) -> None:
        if kind not in self._unknown and len(self._unknown) < MOST_UNKNOWN:
            self._unknown.append(kind)

    def _missing_end(self, exit_code: int, stderr: str) -> told.Ended:
        """A host that ended without telling how: one that speaks plain text is judged by its exit code."""
        if exit_code == 0 and self._plain and self._plain == len(self._said):
            return told.Ended(ok=True)
        wrote = stderr.strip().splitlines()
        reason = self._retried.message or (self._troubles or wrote[-1:] or [""])[-1]
        what = "ended without saying how" if self._said else "said nothing"
        if exit_code:
            what = f"exited with code {exit_code}"
        return told.Ended(False, f"the host {what}{f': {reason}' if reason else ''}", self._retried.status)


def lines_of(text: str) -> list[str]:
    """The lines of a text; a line end at its end begins no new one."""
    return text.removesuffix("\n").split("\n")


def document_of(line: str) -> Mapping[str, Any] | None:
    """The JSON object that a line of a stream is, if it is one."""
    if not line.lstrip().startswith("{"):
        return None
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _failure(end: told.Ended, limit: told.Limited | None) -> FailureClass:
    if limit is not None:
        return "quota"
    match end.status:
        case 429:
            return "quota"
        case 401 | 403:
            return "auth"
        case int(status) if status >= 500:
            return "server"
        case int():  # a request that was wrong: the words of its message are no hint at anything but its length
            return "context" if classify_failure(end.message, "") == "context" else "real"
        case None:
            return classify_failure(end.message, "")
