"""Checks of many loops at once: names, patterns, files and whole folders in, one report a loop out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from msgspec import Struct

from ..core.model import Loop
from ..errors import NotFoundError, Problem, UsageError
from .heads import head_of, looks_like_a_loop
from .library import Library, is_of_an_archived_run, stamp_of
from .nodes import MAX_BYTES, parse

MISSING = "load.missing"
"""The rule of a report on a name that means no file."""


class Report(Struct, frozen=True):
    """What a check says of one loop: it can run if `loop` is there. `name` is what was asked for.

    `path` is its file, None if there is none; the complaints of the loops that it runs as sub-loops are among its own.
    """

    name: str
    path: Path | None
    loop: Loop | None
    problems: tuple[Problem, ...]

    @property
    def is_missing(self) -> bool:
        return self.path is None

    @property
    def errors(self) -> int:
        return sum(problem.severity == "error" for problem in self.problems)

    @property
    def warnings(self) -> int:
        return len(self.problems) - self.errors


def check_all(library: Library, wanted: Iterable[str] = ()) -> list[Report]:
    """Check loops by name, pattern (`lint-*`), file or folder, in that order; without `wanted` the project's own.

    A folder stands for the loops at any depth below it; a name that is a loop's is no folder. A file that several words
    mean is checked once. A name without a file gives a report that says so; a folder or pattern without a loop raises
    NotFoundError. Blocks on the disk.
    """
    words = list(wanted)
    pairs = _own(library) if not words else (pair for word in words for pair in _meant(library, word))
    found: dict[Path | str, Report] = {}
    for name, path in pairs:
        report = report_on(library, name, path)
        found.setdefault(report.path or name, report)
    return list(found.values())


def report_on(library: Library, name: str, path: Path | None = None) -> Report:
    """Check one loop, `name` or the file that it is known to mean."""
    try:
        path = path or library.resolve(name)
        return Report(name, path, *library.check(str(path)))
    except NotFoundError as error:
        return Report(name, None, None, (Problem("error", MISSING, "<root>", str(error), hint=error.hint),))


def expand(library: Library, patterns: Iterable[str]) -> list[str]:
    """The loops that names and patterns (`lint-*`) mean, in order; a pattern adds no loop that is already there.

    A pattern is matched against the catalogue's names: the project's own loops, the built-in ones if none of those
    fits. Raises NotFoundError for a pattern that fits nothing; plain names are taken as they are.
    """
    names: list[str] = []
    for pattern in patterns:
        if not is_pattern(pattern):
            names.append(pattern)
            continue
        fitting = [entry for entry in library.list() if fnmatchcase(entry.name, pattern)]
        own = [entry for entry in fitting if not entry.built_in] or fitting
        if not own:
            raise NotFoundError(f"no loop fits `{pattern}`", hint="`ll-loop list` shows all loops")
        names += [entry.name for entry in own if entry.name not in names]
    return names


def is_pattern(word: str) -> bool:
    return bool(set(word) & set("*?["))


def folder_of(library: Library, word: str) -> Path | None:
    """The folder that `word` means, if it means one: a loop of that name comes first."""
    if not word or not os.path.isdir(word):
        return None
    folder = Path(word)
    if folder.name == word:  # neither `.` nor anything with a slash
        try:
            library.resolve(word)
        except NotFoundError:
            return folder
        return None
    return folder


def _meant(library: Library, word: str) -> Iterator[tuple[str, Path | None]]:
    if not word.strip():
        raise UsageError("an empty name means no loop")
    folder = folder_of(library, word)
    if folder is not None:
        folder = Path(os.path.normpath(folder.absolute()))
        files = loops_below(library, folder)
        if not files:
            raise NotFoundError(f"no loop file in `{word}`", hint="a loop is a .yaml file with `initial` and `states`")
        yield from ((os.path.normpath(os.path.join(word, file.relative_to(folder))), file) for file in files)
    elif is_pattern(word):
        yield from ((name, library.resolve(name)) for name in expand(library, [word]))
    else:
        yield word, None


def _own(library: Library) -> Iterator[tuple[str, Path | None]]:
    files = loops_below(library, library.loops)
    if not files:
        raise NotFoundError(f"no loops in {library.shown(library.loops)}", hint="say which: `ll-loop validate PATH`")
    for file in files:
        inside = file.relative_to(library.loops).as_posix()
        yield inside.removesuffix(".yaml").removesuffix(".fsm"), file


def loops_below(library: Library, folder: Path) -> list[Path]:
    """The loop files at any depth below an absolute `folder`, sorted, those with mistakes too.

    Among the project's own loops, what is empty or no YAML at all counts as one: it was cut off. Not among them: files
    of runs, libraries of fragments, and unfinished loops that others build on (`from:`).
    """
    files = _yaml_files(folder, library.loops / "runs")
    own = library.loops
    heads = {path: head for path in files if (head := _head(path, path.is_relative_to(own))) is not None}
    bases = {_base(library, str(head["from"]), path) for path, head in heads.items() if "from" in head}
    return sorted(path for path in heads if path not in bases or library.is_whole(path))


def _yaml_files(folder: Path, runs: Path) -> Iterator[Path]:
    for top, folders, files in os.walk(folder):
        here = Path(top)
        if is_of_an_archived_run(here, files):
            folders.clear()
            continue
        hidden = {name for name in folders if name.startswith(".") and name != ".loops"}
        of_runs = {name for name in folders if name == "runs" and (here.name == ".loops" or here / name == runs)}
        folders[:] = [name for name in folders if name not in hidden | of_runs]
        yield from (here / name for name in files if name.endswith(".yaml") and not name.startswith("."))


def _head(path: Path, own: bool) -> Mapping[str, Any] | None:
    """The catalogue keys of a loop file; None for any other file. Of our `own`, one that says nothing is a loop."""
    if stamp_of(path) is None:
        return None  # opening a pipe would wait for its writer
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES)
    except OSError:
        return {}  # the check says why
    if looks_like_a_loop(data):
        return head_of(data) or {}
    return {} if own and parse(data, "").value is None else None


def _base(library: Library, name: str, path: Path) -> Path | None:
    return library.find(name, path.parent)
