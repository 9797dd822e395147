"""Writes loop files for people: a new loop, a copy of a built-in one, the schema for their editor.

Nothing that is there already is ever written over, except the schema, which is ours.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import yaml
from msgspec import Struct

from ... import __version__
from ...core.nearest import question
from ...errors import CannotCreateError, NotFoundError, UsageError
from ..library import Library
from ..nodes import MAX_BYTES, parse
from . import starters
from .links import links_of
from .schema import schema_text

SCHEMA_FILE = ".schema.json"
"""Below the loops folder; loop files name it in their first line, so that editors need no network."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*", re.ASCII)


class Created(Struct, frozen=True):
    """A new loop: its name, its file, and what it began with."""

    name: str
    path: Path
    start: str


class Installed(Struct, frozen=True):
    """What an installation copied, the loop itself first, and what it found there and left as it was."""

    name: str
    copied: tuple[Path, ...]
    kept: tuple[Path, ...]


def check_name(name: str) -> None:
    """UsageError unless a loop of the project may be called so."""
    if not _NAME.fullmatch(name) or name.endswith((".yaml", ".yml", ".fsm")) or name.startswith("runs/"):
        raise UsageError(
            f"a loop can't be called {name!r}", hint="use letters, digits, `-`, `_` and `.`; `/` makes a folder"
        )


def create(library: Library, name: str, start: str = starters.USUAL) -> Created:
    """Write a new loop of the project that begins with a template or inherits from another loop.

    Raises UsageError (a name that can't be), CannotCreateError (there is such a loop), NotFoundError (no such start),
    DefinitionError (the loop to start from is wrong).
    """
    check_name(name)
    refuse_existing(library, name)
    text = _text(library, name, start)
    path = library.loops / f"{name}.yaml"
    write_schema(library)
    _write_new(path, f"{modeline(name)}\n{text}".encode())
    return Created(name, path, start)


def modeline(name: str) -> str:
    """The comment by which editors find the schema of the loop file `name`."""
    return f"# yaml-language-server: $schema={'../' * name.count('/')}{SCHEMA_FILE}"


def write_schema(library: Library) -> Path:
    """Write the schema of this version below the loops folder, and return its path. CannotCreateError."""
    path = library.loops / SCHEMA_FILE
    text = schema_text(__version__)
    with suppress(OSError, UnicodeDecodeError):
        if path.read_text(encoding="utf-8") == text:
            return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text.encode())
    except OSError as error:
        raise _cannot_create(path, error) from error
    return path


def install(library: Library, name: str, called: str | None = None) -> Installed:
    """Copy a built-in loop into the project, byte for byte, with every built-in file that it uses.

    With `called` it gets that name in place of its own. What it uses and the project has already stays as it is. Raises
    NotFoundError, UsageError (a name that can't be), and CannotCreateError if there is a loop of that name.
    """
    source = library.resolve(name, built_in=True)
    name = called or _stem(source.relative_to(library.bundled))
    check_name(name)
    refuse_existing(library, name)
    copied, kept = [], []
    for path in [source, *_needs(library, source)]:
        own = called is not None and path == source
        target = library.loops / (f"{name}.yaml" if own else path.relative_to(library.bundled))
        if path != source and target.exists():
            kept.append(target)
        else:
            data = path.read_bytes()
            _write_new(target, _named(data, name) if own else data)
            copied.append(target)
    return Installed(name, tuple(copied), tuple(kept))


def _named(data: bytes, name: str) -> bytes:
    """A loop file under another name."""
    text = data.decode()
    link = next(one for one in links_of(text) if one.kind == "name")
    return f"{text[: link.start]}{link.written(name.rpartition('/')[2])}{text[link.end :]}".encode()


def refuse_existing(library: Library, name: str) -> None:
    """CannotCreateError if the project has a file for a loop called `name`."""
    for ending in (".yaml", ".fsm.yaml"):
        path = library.loops / f"{name}{ending}"
        if os.path.lexists(path):
            raise CannotCreateError(f"there is a {path.relative_to(library.project)} already")


def replace_file(path: Path, data: bytes) -> None:
    """Replace the content of a file at once: it is never half written, not even after a crash. Raises OSError."""
    path = path.resolve()
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            draft.chmod(path.stat().st_mode & 0o7777)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def _text(library: Library, name: str, start: str) -> str:
    if start in starters.names():
        return starters.from_template(start, name)
    if start == name:
        raise UsageError(f"`{name}` can't start from itself", hint="give the new loop a name of its own")
    try:
        parent = library.load(start).loop
    except NotFoundError as error:
        known = f"templates are {', '.join(starters.names())}; any loop of `ll-loop list` will do too"
        hint = question(start, starters.names(), then=known)
        raise NotFoundError(f"no template or loop `{start}`", hint=hint) from error
    return starters.from_loop(parent, start, name)


def _needs(library: Library, source: Path) -> Iterator[Path]:
    """The built-in files that a built-in file uses, at any depth, each once."""
    seen, waiting = {source}, [source]
    while waiting:
        path = waiting.pop()
        for found in _used(library, path):
            if found not in seen and found.is_relative_to(library.bundled):
                seen.add(found)
                waiting.append(found)
                yield found


def _used(library: Library, path: Path) -> Iterator[Path]:
    data = path.read_bytes()[:MAX_BYTES]
    try:
        links = links_of(data.decode("utf-8")) if parse(data, path.name).readable else []
    except (UnicodeDecodeError, yaml.YAMLError):
        return  # what can't be read names nothing; the loop itself says so when it is checked
    for link in links:
        find = library.find_import if link.kind == "import" else library.find
        found = find(link.text, path.parent) if link.kind != "name" else None
        if found is not None:
            yield found


def _stem(path: Path) -> str:
    return path.as_posix().removesuffix(".yaml").removesuffix(".fsm")


def _write_new(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            _fill(file, data)
    except FileExistsError as error:
        raise CannotCreateError(f"there is a {path} already") from error
    except OSError as error:
        raise _cannot_create(path, error) from error


def _fill(file: BinaryIO, data: bytes) -> None:
    """Write all or leave no file."""
    try:
        file.write(data)
        file.flush()
    except OSError:
        os.unlink(file.name)
        raise


def _cannot_create(path: Path, error: OSError) -> CannotCreateError:
    return CannotCreateError(f"cannot create {path}: {error.strerror}")
