"""What every agent host has in common: how a call is asked for, and helpers for its stream.

A host is a small class with two pure methods, `build` (a call into a command line) and `parse` (one line of its stream
into events of `told`); `turn` folds the events into the outcome. A new host is a module here and one line in `table`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from msgspec import Struct

from ..model import EMPTY
from . import told

FILES = "{files}"
"""In `Launch.argv` and `Launch.env`: the private folder that holds `Launch.files`."""

Line = Mapping[str, Any]


class Call(Struct, frozen=True, kw_only=True):
    """One turn of an agent: a prompt in, a text out.

    `schema` asks for an answer that fits a JSON schema, `session` goes on with an earlier session by its id, `effort`
    says how hard to think, `profile` is the pruning profile for the host's hooks. What a host cannot do of these
    is left out and named in `Launch.left_out`.
    """

    prompt: str
    cwd: str
    model: str = ""
    effort: str = ""
    profile: str = ""
    agent: str = ""
    tools: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None
    session: str = ""


class Talk(Protocol):
    """Our side of a conversation with a host. `left_out` is what of the call it turned out not to be able to do."""

    @property
    def left_out(self) -> tuple[str, ...]: ...

    def answer(self, line: Line) -> bytes:
        """What is to be written to the host when it has written this line."""

    def cancel(self) -> bytes:
        """What asks the host to break off its turn; empty if it cannot be asked now."""


class Launch(Struct, frozen=True, kw_only=True):
    """A call as a command. The prompt is never in `argv`: it goes to `stdin`, which is closed behind it.

    `env` is added to the environment; `files` are put into a private folder first (see `FILES`). With `talk` the
    turn is a conversation: `stdin` is only its beginning, and the input is closed when the turn is over.
    """

    argv: tuple[str, ...]
    stdin: bytes
    env: Mapping[str, str] = EMPTY
    files: Mapping[str, str] = EMPTY
    left_out: tuple[str, ...] = ()
    talk: Talk | None = None


def launch(
    call: Call,
    argv: Iterable[str],
    *,
    env: Mapping[str, str] = EMPTY,
    files: Mapping[str, str] = EMPTY,
    cannot: tuple[str, ...] = (),
) -> Launch:
    """The command that takes a call: the prompt on its stdin. `cannot` names the fields of a call that it ignores."""
    left_out = tuple(name for name in cannot if getattr(call, name))
    return Launch(argv=tuple(argv), stdin=call.prompt.encode(errors="replace"), env=env, files=files, left_out=left_out)


class Host(Protocol):
    """One agent command line."""

    @property
    def key(self) -> str:
        """Its name in settings and in `LL_HOST_CLI`."""

    @property
    def binary(self) -> str:
        """What is looked for on PATH."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Beginnings of variables (`NAME=`, or of several names) by which an agent above us would confuse this one."""

    def build(self, call: Call) -> Launch:
        """The command of a call."""

    def parse(self, line: Line) -> Iterable[told.Event] | None:
        """The events of one line of the stream; None for a line of no known kind."""


# --- helpers for parsers ---------------------------------------------------------------------------------


def mapping(value: object) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one: streams change, and a parser never raises."""
    return value if isinstance(value, Mapping) else EMPTY


def mappings(value: object) -> list[Mapping[str, Any]]:
    """The items of a list that are mappings."""
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def text(value: object) -> str:
    return value if isinstance(value, str) else ""


def count(value: object) -> int | None:
    """A number of tokens; None if it is not one."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def less(whole: int | None, *parts: int | None) -> int | None:
    """What is left of a count without its parts; None where any is unknown, or the parts are more than the whole."""
    if whole is None or any(part is None for part in parts):
        return None
    left = whole - sum(part for part in parts if part is not None)
    return left if left >= 0 else None


_STATUS = re.compile(r"(?:\bstatus:?\s+|\bcode\"?:\s*|^\s*|\(|Error:\s+)([45]\d\d)\b")
_AFTER = re.compile(r"retry (?:after|in) (\d+(?:\.\d+)?) ?s", re.IGNORECASE)


def status_in(message: str) -> int | None:
    """The HTTP status that an error message names."""
    found = _STATUS.search(message)
    return int(found[1]) if found else None


def retry_after_in(message: str) -> float | None:
    """The seconds to wait that an error message names."""
    found = _AFTER.search(message)
    return float(found[1]) if found else None


def texts_of(content: object, kind: str = "text") -> str:
    """The text blocks of a message's content, an empty line between them."""
    found = (text(block.get("text")) for block in mappings(content) if block.get("type") == kind)
    return "\n\n".join(one for one in found if one)
