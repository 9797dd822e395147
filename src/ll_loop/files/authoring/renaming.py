"""Gives a loop another name, in its file and wherever files of the project name it; all else stays byte for byte."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml
from msgspec import Struct

from ...errors import CannotCreateError, NotFoundError, StorageError, UsageError
from ..library import Library
from ..nodes import MAX_BYTES, parse
from .create import check_name, refuse_existing, replace_file
from .links import Link, links_of


class Change(Struct, frozen=True):
    """One name in a file that becomes another; `by_hand` if only a person can write it."""

    path: Path
    line: int
    column: int
    key: str
    old: str
    new: str
    by_hand: bool = False


class Renaming(Struct, frozen=True):
    """What a renaming does: the file moves from `source` to `target`, `changes` are made, then `texts` written.

    `affected` holds every file whose runs would miss the old name: the loop's own and those that name it, at any
    depth. `unread` are files that are no YAML in UTF-8: whatever they name was not seen.
    """

    source: Path
    target: Path
    changes: tuple[Change, ...]
    affected: frozenset[Path]
    texts: Mapping[Path, bytes]
    unread: tuple[Path, ...]


class _File(Struct, frozen=True):
    """A file that can be read: its text after the byte order mark, and every name in it with what it means."""

    path: Path
    mark: bytes
    text: str
    links: tuple[tuple[Link, Path | None], ...]


def plan(library: Library, old: str, new: str) -> Renaming:
    """Find out what has to change; nothing is written.

    Raises NotFoundError (not a loop of this project), UsageError, CannotCreateError (there is a loop of that name).
    """
    source = _own(library, old)
    check_name(new)
    stem, ending = _split(source.relative_to(library.loops))
    if stem == new:
        raise UsageError(f"it is called `{new}` already")
    refuse_existing(library, new)
    if any(_split(path.relative_to(library.bundled))[0] == new for path in library.files(built_in=True)):
        raise CannotCreateError(f"`{new}` is the name of a built-in loop, which would be hidden")
    target = library.loops / f"{new}{ending}"
    read = {path: _read(library, path) for path in library.files()}
    files = [file for file in read.values() if file is not None]
    changes: list[Change] = []
    texts: dict[Path, bytes] = {}
    for file in files:
        own = [(link, word) for link, word in _wanted(file, source, stem, new, ending) if word != link.text]
        changes += [_change(file.path, link, word) for link, word in own]
        if any(link.can_be_replaced for link, _ in own):
            texts[file.path] = _edited(file, own)
    return Renaming(source, target, tuple(changes), _affected(files, source), texts, _unread(read))


def _unread(read: Mapping[Path, _File | None]) -> tuple[Path, ...]:
    return tuple(path for path, file in read.items() if file is None)


def apply(renaming: Renaming) -> None:
    """Write it all down: the new file first, the old one goes last, so that every name means a loop at any time.

    Raises CannotCreateError, and StorageError if a file could not be written; what was changed until then stays.
    """
    source, target = renaming.source, renaming.target
    try:
        data = renaming.texts.get(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            file.write(source.read_bytes() if data is None else data)
        target.chmod(source.stat().st_mode & 0o7777)
    except OSError as error:
        raise CannotCreateError(f"cannot create {target}: {error.strerror}") from error
    try:
        for path, data in renaming.texts.items():
            if path != source:
                replace_file(path, data)
        source.unlink()
    except OSError as error:
        raise StorageError(f"cannot write {error.filename}: {error.strerror}") from error


def _own(library: Library, name: str) -> Path:
    path = library.resolve(name)
    if not path.is_relative_to(library.loops):
        hint = f"it is built in: `ll-loop install {name}` copies it" if path.is_relative_to(library.bundled) else ""
        raise NotFoundError(f"`{name}` is no loop of this project", hint=hint)
    if path.relative_to(library.loops).parts[0] == "runs":
        raise NotFoundError(f"`{name}` is the draft of a run", hint="copy it into the loops folder first")
    return path


def _split(path: Path) -> tuple[str, str]:
    """A file's name for people, and its ending."""
    text = path.as_posix()
    ending = next((e for e in (".fsm.yaml", ".yaml", ".yml") if text.endswith(e)), "")
    return text.removesuffix(ending), ending


def _read(library: Library, path: Path) -> _File | None:
    """A file's names; None if it is no YAML in UTF-8."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    mark = codecs.BOM_UTF8 if data.startswith(codecs.BOM_UTF8) else b""
    if len(data) > MAX_BYTES or not parse(data, path.name).readable:
        return None
    try:
        text = data[len(mark) :].decode("utf-8")
        links = links_of(text)
    except (UnicodeDecodeError, yaml.YAMLError):
        return None
    return _File(path, mark, text, tuple((link, _meant(library, path, link)) for link in links))


def _meant(library: Library, path: Path, link: Link) -> Path | None:
    match link.kind:
        case "name":
            return path
        case "import":
            return library.find_import(link.text, path.parent)
        case _:
            return None if "${" in link.text else library.find(link.text, path.parent)


def _wanted(file: _File, source: Path, old: str, new: str, ending: str) -> Iterator[tuple[Link, str]]:
    """The names of the loop in a file, each with what it has to become."""
    for link, meant in file.links:
        if meant != source:
            continue
        if link.kind == "name":
            own = {old: new, old.rpartition("/")[2]: new.rpartition("/")[2]}
            yield link, own.get(link.text, link.text)
        else:
            yield link, _renamed(link, old, new, ending)


def _renamed(link: Link, old: str, new: str, ending: str) -> str:
    """The new name in the form of the old one: with its folder and its ending, if the file stays in its folder."""
    if link.text == old:
        return new
    kept = next((e for e in (".fsm.yaml", ".yaml", ".yml") if link.text.endswith(e)), "")
    if old.rpartition("/")[0] != new.rpartition("/")[0]:
        return f"{new}{ending}" if link.kind == "import" else new
    folder, slash, _ = link.text.rpartition("/")
    return f"{folder}{slash}{new.rpartition('/')[2]}{kept}"


def _change(path: Path, link: Link, word: str) -> Change:
    return Change(path, link.line, link.column, link.kind, link.text, word, by_hand=not link.can_be_replaced)


def _edited(file: _File, wanted: list[tuple[Link, str]]) -> bytes:
    text = file.text
    for link, word in sorted(wanted, key=lambda pair: pair[0].start, reverse=True):
        if link.can_be_replaced:
            text = text[: link.start] + link.written(word) + text[link.end :]
    return file.mark + text.encode("utf-8")


def _affected(files: list[_File], source: Path) -> frozenset[Path]:
    above = {source}
    while True:
        more = {file.path for file in files if any(meant in above for _, meant in file.links)} - above
        if not more:
            return frozenset(above)
        above |= more
