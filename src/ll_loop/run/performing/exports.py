"""Passes context values and captures to shell actions: as variables, and as files what is too large for one.

What the system takes for a new process is bounded, so this is too: `EACH` bytes a variable, `TOTAL` bytes for all, then
files, at most `FILES` of them. What is left out is counted in `LL_VALUES_OMITTED`; what the action's own text refers
to comes first and is never left out. NUL, which no variable can hold, is dropped. Names are made by `core.variables`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import anyio
from msgspec import Struct, field

from ...core.effects import Values
from ...core.variables import leaves
from .. import files

EACH = 32 << 10
TOTAL = 256 << 10
FILES = 256
FOLDER = "values"
_SPARE = 64 << 10


class _Piece(Struct):
    """Variables of one mapping, ready to be passed; `large` are those that must be files."""

    source: Mapping[str, Any]
    env: dict[bytes, bytes] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    size: int = 0


class Environment(Struct):
    """What an action gets: variables, and a line of bash that fetches the large ones that its text refers to."""

    env: dict[bytes, bytes] = field(default_factory=dict)
    prelude: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    room: int = TOTAL
    omitted: int = 0


class Exports:
    """The values of one run's actions. Only what has changed since the action before costs anything."""

    def __init__(self, folder: Path, base: Mapping[bytes, bytes]) -> None:
        self._folder = folder
        taken = sum(len(key) + len(value) + 10 for key, value in base.items())
        self._room = max(0, min(TOTAL, (os.sysconf("SC_ARG_MAX") - taken - _SPARE) // 2))
        self._context = _Piece({})
        self._captures: dict[str, _Piece] = {}
        self._last: tuple[Values, Environment] | None = None
        self._written: dict[str, bytes] = {}

    async def environment(self, values: Values) -> Environment:
        """What an action with these values gets; files are written, readable by their owner only. May raise OSError."""
        made = self._known(values) or self._made(values)
        changed = {name: data for name, data in made.files.items() if self._written.get(name) != data}
        if changed:
            await anyio.to_thread.run_sync(self._write, changed)
        return made

    def close(self) -> None:
        """Remove the files."""
        if self._written:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _known(self, values: Values) -> Environment | None:
        if self._last is None:
            return None
        before, made = self._last
        same = values.context is before.context and values.captured is before.captured
        return made if same and values.named == before.named else None

    def _made(self, values: Values) -> Environment:
        made = Environment(room=self._room)
        for name, text in values.named.items():
            self._add_named(made, name, _as_variable(text))
        if self._context.source is not values.context:
            self._context = _piece(values.context, leaves("context", values.context))
        captures = {name: self._capture(name, value) for name, value in values.captured.items()}
        self._captures = captures
        for piece in (self._context, *captures.values()):
            self._add(made, piece)
        if made.omitted:
            made.env[b"LL_VALUES_OMITTED"] = str(made.omitted).encode()
        self._last = values, made
        return made

    def _capture(self, name: str, value: Any) -> _Piece:
        known = self._captures.get(name)
        if known is not None and known.source is value:
            return known
        return _piece(value, leaves("captured", {name: value}))

    def _add_named(self, made: Environment, name: str, data: bytes) -> None:
        if len(data) <= EACH and len(data) <= made.room:
            made.env[name.encode()] = data
            made.room -= len(name) + len(data)
        else:
            self._add_file(made, name, data)
            made.prelude += f"IFS= read -rd '' {name} <\"${name}_FILE\"; "

    def _add(self, made: Environment, piece: _Piece) -> None:
        if piece.size <= made.room:
            made.env.update(piece.env)
            made.room -= piece.size
        else:
            for key, data in piece.env.items():
                self._add_one(made, key, data)
        for name, data in piece.large.items():
            self._add_large(made, name, data)

    def _add_one(self, made: Environment, key: bytes, data: bytes) -> None:
        if key in made.env:
            return
        if len(key) + len(data) <= made.room:
            made.env[key] = data
            made.room -= len(key) + len(data)
        else:
            self._add_large(made, key.decode(), data)

    def _add_large(self, made: Environment, name: str, data: bytes) -> None:
        if name in made.files:
            return
        if len(made.files) < FILES:
            self._add_file(made, name, data)
        else:
            made.omitted += 1

    def _add_file(self, made: Environment, name: str, data: bytes) -> None:
        made.files[name] = data
        made.env[f"{name}_FILE".encode()] = os.fsencode(self._path(name))

    def _path(self, name: str) -> Path:
        short = name if len(name) < 200 else hashlib.sha256(name.encode()).hexdigest()
        return self._folder / short

    def _write(self, changed: Mapping[str, bytes]) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, data in changed.items():
            self._written[name] = b""
            descriptor = os.open(self._path(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(data)
            self._written[name] = data


def _piece(source: Mapping[str, Any], found: Iterable[tuple[str, str]]) -> _Piece:
    piece = _Piece(source)
    for name, text in found:
        data = _as_variable(text)
        if len(data) > EACH:
            piece.large[name] = data
        else:
            piece.env[name.encode()] = data
            piece.size += len(name) + len(data)
    return piece


def _as_variable(text: str) -> bytes:
    return files.to_bytes(text).replace(b"\0", b"")
